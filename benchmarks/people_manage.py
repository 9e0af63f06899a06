"""The manager's pages of a large project: seconds, CPU and memory of a real ``accord label``.

    python -m benchmarks.people_manage --tasks 50000 --people 5

The store is filled with pairs, each answered by so many of fifty people who agree more often than not, row by row as
the desk writes them. Then a manager opens each page twice, waits for the quality report, opens the pages again, and
exports twice.
Memory is the highest resident size of the server so far; CPU is what the server has used since the page was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, insert, select

from accord.config import LabelConfig
from accord.people.desk import Desk, NewTask, Person
from accord.people.desk.answers import Answer
from accord.records import Completion, Prompt, Ranking, Source
from accord.store import Store, add_facts
from accord.store.operations import assignments, submissions, tasks
from benchmarks.people_load import Server

TEAM = 50
ALIKE = 0.8  # share of answers in which the first one listed wins
_AT_ONCE = 500  # tasks a transaction
PAGES = ("/manage", "/manage/disagreements", "/manage/gold", "/manage/export", "/api/progress")
EXPORTS = ("/api/export?format=jsonl", "/api/export?format=trl-preference")


class Seen(NamedTuple):
    """What one request took."""

    path: str
    seconds: float
    cpu_s: float
    peak_mb: int
    size: int


# ---- the store -------------------------------------------------------------------------------------------------------


def fill(place: Path, num_tasks: int, num_people: int) -> str:
    """Make a store of answered pairs; return the token of a manager."""
    draw = random.Random(0)
    with Store.open(place) as store:
        desk = Desk(store, LabelConfig(overlap=num_people))
        team = [desk.directory.add_person(f"person {i}", "annotator") for i in range(TEAM)]
        moe = desk.directory.add_person("Moe", "manager")
        for start in range(0, num_tasks, _AT_ONCE):
            made = [_pair(number) for number in range(start, min(start + _AT_ONCE, num_tasks))]
            desk.queue.add_tasks(made)
            store.write(
                lambda connection, made=made, start=start: _answer(connection, made, start, team, num_people, draw)
            )
        return desk.directory.make_token(moe.id, "benchmark")


def _pair(number: int) -> NewTask:
    prompt = Prompt(text=f"Question {number}: what should somebody know who has never done this before?")
    source = Source(origin="policy", name="bench")
    words = "It says something, and then something else. "
    texts = (f"Completion {i} of question {number}. " + words * (2 + (number + 3 * i) % 7) for i in range(2))
    return NewTask(
        kind="pair",
        prompt=prompt,
        completions=tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text in texts),
    )


def _answer(
    connection: Connection,
    made: Sequence[NewTask],
    start: int,
    team: Sequence[Person],
    num_people: int,
    draw: random.Random,
) -> None:
    keys = connection.scalars(select(tasks.c.id).order_by(tasks.c.id.desc()).limit(len(made))).all()[::-1]
    connection.execute(tasks.update().where(tasks.c.id.in_(keys)).values(free=0))
    facts, given, kept = [], [], []
    for number, (key, task) in enumerate(zip(keys, made, strict=True), start):
        for turn, person in enumerate(draw.sample(list(team), num_people)):
            at = 1.7e9 + 6.0 * number + turn
            order = (0, 1) if draw.random() < 0.5 else (1, 0)
            first = draw.random() < ALIKE
            ranks = tuple(1 + (first == bool(place)) for place in order)
            ids = tuple(task.completions[place].id for place in order)
            moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
            said = {"prompt_id": task.prompt.id, "completion_ids": ids, "ranks": ranks, "seconds": 9.0}
            fact = Ranking(**said, annotator_id=person.annotator_id, created_at=moment)
            facts.append(fact)
            row = {
                "task_id": key,
                "person_id": person.id,
                "shown": json.dumps(order),
                "revision": 1,
                "guideline_rev": 0,
            }
            lease = {"state": "submitted", "counts": True, "given_at": at - 9, "until": at, "draft": None}
            given.append(row | lease | {"reason": "", "note": ""})
            sent = {"submission_id": f"s{number}-{turn}", "key": f"key-{number}-{turn}", "answer": _content(ranks)}
            rest = {"seconds": 9.0, "pauses_s": 0.0, "created_at": at, "undone_at": None, "extra": False}
            kept.append(row | sent | rest | {"adjudication": False, "judgement_ids": json.dumps([fact.id])})
    add_facts(connection, facts)
    connection.execute(insert(assignments), given)
    connection.execute(insert(submissions), kept)


def _content(ranks: Sequence[int]) -> str:
    return json.dumps(Answer(ranks=tuple(ranks)).plain(), sort_keys=True)


# ---- the pages -------------------------------------------------------------------------------------------------------


def measure(project: Path, token: str, *, exports: bool) -> Iterator[Seen]:
    """Open every page twice, then again when the report is made, then export twice."""
    server = Server(project)
    server.start()
    try:
        for path in (*PAGES, *PAGES, "/api/quality", *PAGES, *(2 * EXPORTS if exports else ())):
            yield _seen(server, token, path)
    finally:
        server.stop()


def _seen(server: Server, token: str, path: str) -> Seen:
    before, start = _cpu_s(server.pid), time.perf_counter()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=1800) as answer:
        size = len(answer.read())
    seconds = time.perf_counter() - start
    return Seen(path, round(seconds, 2), round(_cpu_s(server.pid) - before, 2), _peak_mb(server.pid), size)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> int:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a store, or take one that was filled before, and print what each page took, a line of JSON each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.people_manage", description=__doc__)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--people", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder for the store, used again by the next call")
    parser.add_argument("--no-exports", action="store_true")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        project = given.keep or Path(folder)
        project.mkdir(parents=True, exist_ok=True)
        known = project / "token"
        if not known.exists():
            (project / "accord.yaml").write_text("store: accord.db\n")
            known.write_text(fill(project / "accord.db", given.tasks, given.people))
            print("filled", file=sys.stderr)
        for one in measure(project, known.read_text(), exports=not given.no_exports):
            print(json.dumps(one._asdict()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
