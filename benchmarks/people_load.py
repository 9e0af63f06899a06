"""Many annotators at once against a real ``accord label``, killed with -9 in the middle: is it quick, is nothing lost?

    python -m benchmarks.people_load --annotators 100 --every 5 --seconds 120

Each annotator judges one task every ``--every`` seconds over a kept HTTP/1.1 connection: claim, then submit with an
idempotency key, and every tenth answer is sent twice, as a double click does. Half-way the server is killed with -9 and
started again on the same port and store. A request that the kill interrupts is sent again with the same key until it is
answered; its time is not among the latencies, but reported as the longest wait. Afterwards the store is read: every
acknowledged answer must be there once, no slot filled twice, every fact whole.

Clients and server share the machine: the client is asyncio and raw sockets, so that it takes little of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.config import LabelConfig
from accord.people.desk import Desk, NewTask
from accord.records import Completion, Prompt, Source
from accord.store import Store

FLOOR_MS = 250.0  # p99 of a claim and of a submit
TWICE = 0.1  # share of answers that are sent twice
STARTED_WITHIN_S = 60.0
GIVE_UP_S = 60.0  # a request that is not answered for so long has failed


@dataclass(frozen=True)
class Load:
    """How many annotators, one judgement each every so many seconds, for how long, and with a kill in the middle."""

    annotators: int
    every_s: float
    seconds: float
    kill: bool = True


@dataclass
class Log:
    """What the clients saw. ``acknowledged``: submission id -> (person, task)."""

    latency_s: dict[str, list[float]] = field(default_factory=lambda: {"claim": [], "submit": []})
    acknowledged: dict[str, tuple[int, str]] = field(default_factory=dict)
    interrupted: int = 0
    longest_wait_s: float = 0.0
    doubles: int = 0
    unlike_doubles: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    late: int = 0


# ---- one annotator ---------------------------------------------------------------------------------------------------


class Line:
    """One kept connection with a token."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def post(self, path: str, body: bytes, more: str = "") -> tuple[int, Any]:
        """Status and JSON. OSError or EOFError where the connection breaks: it is closed then."""
        try:
            if self._reader is None or self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            head = f"POST {path} HTTP/1.1\r\n{self._head}{more}Content-Length: {len(body)}\r\n\r\n"
            self._writer.write(head.encode() + body)
            told = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            size = told.partition("\r\ncontent-length:")[2].partition("\r\n")[0]
            text = await self._reader.readexactly(int(size)) if size else b""
        except (OSError, EOFError):
            self.close()
            raise
        return int(told.split(" ", 2)[1]), json.loads(text) if text else None


async def annotate(person: int, token: str, port: int, load: Load, end: float, log: Log, seed: int) -> None:
    """Claim and submit at a steady pace from a random offset until the end."""
    draw, line = random.Random(seed), Line(port, token)
    due = time.perf_counter() + draw.uniform(0, load.every_s)
    while due < end:
        wait = due - time.perf_counter()
        log.late += wait < -load.every_s
        await asyncio.sleep(max(0.0, wait))
        given = await _ask(line, log, "claim", "/api/claim", {"kinds": None}, "")
        if given is not None:
            ranks = list(range(1, len(given["completions"]) + 1))
            draw.shuffle(ranks)
            key = f"Idempotency-Key: {draw.getrandbits(96):024x}\r\n"
            path, answer = f"/api/tasks/{given['task_id']}/submit", {"ranks": ranks, "seconds": 1.0}
            receipt = await _ask(line, log, "submit", path, answer, key)
            if receipt is not None:
                log.acknowledged[receipt["submission_id"]] = (person, given["task_id"])
                if draw.random() < TWICE:
                    again = await _ask(line, log, "", path, answer, key)
                    log.doubles += 1
                    log.unlike_doubles += again is None or again["submission_id"] != receipt["submission_id"]
        due += load.every_s
    line.close()


async def _ask(line: Line, log: Log, what: str, path: str, body: Any, more: str) -> Any:
    """Send until it is answered; the latency counts where nothing interrupted it."""
    data, start, whole, pause_s = json.dumps(body).encode(), time.perf_counter(), True, 1.0
    while True:
        try:
            status, found = await line.post(path, data, more)
            break
        except (OSError, EOFError):
            whole = False
            if time.perf_counter() - start > GIVE_UP_S:
                log.refused["no answer"] += 1
                return None
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # as the page's script does
            pause_s = min(2 * pause_s, 10.0)
    took = time.perf_counter() - start
    if whole and what:
        log.latency_s[what].append(took)
    if not whole:
        log.interrupted += 1
        log.longest_wait_s = max(log.longest_wait_s, took)
    if status >= 300 or status == 204:
        log.refused[f"{what or 'again'} {status}"] += 1
        return None
    return found


# ---- the server ------------------------------------------------------------------------------------------------------


class Server:
    """A real ``accord label`` of a project on one port; it can be killed and started again."""

    def __init__(self, project: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._project = project
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds until it answers."""
        start = time.perf_counter()
        command = [sys.executable, "-m", "accord", "label", str(self._project), "--port", str(self.port), "--no-link"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while time.perf_counter() - start < STARTED_WITHIN_S:
            if self._process.poll() is not None:
                raise RuntimeError(f"accord label ended with {self._process.returncode}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return time.perf_counter() - start
            time.sleep(0.02)
        raise RuntimeError("accord label did not start")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None


def prepare(project: Path, load: Load) -> list[tuple[int, str]]:
    """A project with tasks enough, and people with tokens: (id, token)."""
    source, wanted = Source(origin="policy", name="load"), int(load.annotators * (load.seconds / load.every_s + 2))
    with Store.open(project / "accord.db") as store:
        desk = Desk(store, LabelConfig())
        for start in range(0, wanted, 500):
            desk.queue.add_tasks([_task(number, source) for number in range(start, min(start + 500, wanted))])
        people = [desk.directory.add_person(f"load {i}", "annotator", simulated=True) for i in range(load.annotators)]
        return [(person.id, desk.directory.make_token(person.id, "load")) for person in people]


def _task(number: int, source: Source) -> NewTask:
    """Four completions of about 400 characters."""
    prompt = Prompt(text=f"Question {number}: what should somebody know who has never done this before?")
    texts = (
        f"Completion {i} of question {number}. " + "It says something, and then something else. " * 8 for i in range(4)
    )
    completions = tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in texts)
    return NewTask(kind="ranking", prompt=prompt, completions=completions, overlap=1)


# ---- the run and what is left of it ----------------------------------------------------------------------------------


def run(project: Path, load: Load, *, log: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The whole test on a fresh project; the result as JSON has it."""
    people = prepare(project, load)
    server = Server(project)
    log(f"{load.annotators} annotators, one judgement per {load.every_s:g} s, {load.seconds:g} s")
    try:
        started_s = server.start()
        seen, restarted_s = asyncio.run(_work(server, people, load))
    finally:
        server.stop()
    found = audit(project, seen)
    latency = {what: _quantiles(values) for what, values in seen.latency_s.items()}
    return {
        "annotators": load.annotators,
        "every_s": load.every_s,
        "seconds": load.seconds,
        "latency_ms": latency,
        "floor_met": all(one.get("p99", FLOOR_MS) < FLOOR_MS for one in latency.values()),
        "started_s": round(started_s, 2),
        "restarted_s": restarted_s and round(restarted_s, 2),
        "interrupted_requests": seen.interrupted,
        "longest_wait_s": round(seen.longest_wait_s, 2),
        "acknowledged": len(seen.acknowledged),
        "sent_twice": seen.doubles,
        "answered_unlike_the_first": seen.unlike_doubles,
        "refused": dict(seen.refused),
        "turns_missed": seen.late,
        **found,
    }


async def _work(server: Server, people: Sequence[tuple[int, str]], load: Load) -> tuple[Log, float | None]:
    log, end = Log(), time.perf_counter() + load.seconds
    working = [
        asyncio.create_task(annotate(person, token, server.port, load, end, log, seed))
        for seed, (person, token) in enumerate(people)
    ]
    restarted_s = None
    if load.kill:
        await asyncio.sleep(load.seconds / 2)
        server.kill()
        restarted_s = await asyncio.to_thread(server.start)
    await asyncio.gather(*working)
    return log, restarted_s


def audit(project: Path, log: Log) -> dict[str, int]:
    """What the store holds against what was acknowledged: ``lost``, ``double`` and ``damaged`` must be zero."""
    with Store.open(project / "accord.db") as store:
        submissions = list(Desk(store, LabelConfig()).reading.submissions())
        facts = Counter(record.id for record in store.rankings())
        damaged = len(store.verify())
    kept = {one.id: (one.person_id, one.task_id) for one in submissions}
    lost = sum(kept.get(id_) != place for id_, place in log.acknowledged.items())
    lost_facts = sum(not all(facts[judgement] == 1 for judgement in one.judgement_ids) for one in submissions)
    slots = Counter(one.task_id for one in submissions if not one.extra)
    by_person = Counter((one.person_id, one.task_id) for one in submissions)
    double = sum(n - 1 for n in slots.values()) + sum(n - 1 for n in by_person.values())
    return {
        "in_the_store": len(submissions),
        "facts": sum(facts.values()),
        "lost": lost + lost_facts,
        "double": double + len(submissions) - len(kept),
        "damaged": damaged,
    }


def _quantiles(values_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values_s)
    if not ordered:
        return {"n": 0}
    at = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in QUANTILES}
    return {"n": len(ordered)} | {name: round(1000 * value, 1) for name, value in at.items()}


QUANTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the result as JSON; 1 where the floor is missed or anything was lost, double, damaged or refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.people_load", description=__doc__)
    parser.add_argument("--annotators", type=int, default=100)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two judgements of one annotator")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--no-kill", action="store_true")
    given = parser.parse_args(argv)
    load = Load(given.annotators, given.every, given.seconds, not given.no_kill)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "accord.yaml").write_text("store: accord.db\n")
        result = run(project, load, log=lambda text: print(text, file=sys.stderr))
    print(json.dumps(result | {"cpus": os.cpu_count()}, indent=1))
    wrong = result["lost"] + result["double"] + result["damaged"] + result["answered_unlike_the_first"]
    return int(bool(wrong or result["refused"] or not result["floor_met"]))


if __name__ == "__main__":
    raise SystemExit(main())
