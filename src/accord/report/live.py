"""A run's folder as one page that keeps up with it: how far it is, curves, samples, alarms. Torch-free.

The page is asked for once; what has changed since comes by server-sent events, as the piece of HTML that replaces what
stood there. It reads files alone, so it may look at a run of any process, at one that was killed, or at a finished one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.files import numbered, object_in
from accord.progress import duration
from accord.report.figures import Curve, Figure, MetricRows, training_figure
from accord.report.names import title_of
from accord.report.pages import filled
from accord.report.parts import Draw, part, training
from accord.report.run_folder import RunFolder, read_run

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

#: What a stage says of the work before it: its steps, and the process that takes them.
STEPS_FILE = "steps.json"
#: By these names a page of this machine is called; another is a stranger's name that leads here (DNS rebinding).
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
_LOOK_S = 1.0  # seconds between two looks at the folder
_SILENCE_S = 15.0  # after which a comment keeps the connection from being closed on the way
_SHOWN_SAMPLES = 3  # files of samples, the newest first
_RECENT = 20  # steps whose seconds say how fast it goes now
_READ = ("stage.json", STEPS_FILE, "metrics.jsonl", "events.jsonl")


@dataclass(frozen=True)
class StageNow:
    """A stage as it stands: the steps it took and will take, seconds a step lately, and whether its process is gone.

    ``total`` is 0 where nobody has said how many steps there will be.
    """

    name: str
    done: bool
    step: int
    total: int
    step_s: float
    gone: bool
    seconds: float
    memory_mb: int
    rates: tuple[str, ...]

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return 1.0 if self.done else min(1.0, self.step / self.total) if self.total else 0.0

    @property
    def says(self) -> str:
        """How far it is, in words."""
        if self.done:
            return f"done in {duration(self.seconds)}"
        steps = f"step {self.step:,} of {self.total:,}" if self.total else f"step {self.step:,}"
        if self.gone:
            return f"{steps}, stopped: the same command goes on from the last checkpoint"
        left = f", about {duration(self.step_s * (self.total - self.step))} left" if self.total and self.step_s else ""
        return f"{steps}{left}"


def stage_now(run: RunFolder, name: str) -> StageNow:
    """Return how far a stage of a run is."""
    rows, told = run.metrics[name], object_in(run.path / name / STEPS_FILE)
    seconds = [float(row["seconds"]) for row in rows if isinstance(row.get("seconds"), int | float)][-_RECENT:]
    # A resumed stage counts its seconds anew: only rising ones are of one process.
    steps = [later - before for before, later in itertools.pairwise(seconds) if later > before]
    finished, pid = run.stage(name), told.get("pid")
    memory = _memory_mb(pid) if isinstance(pid, int) and not finished else 0
    return StageNow(
        name=title_of(name),
        done=bool(finished),
        step=int(rows[-1].get("step", -1)) + 1 if rows else 0,
        total=int(told.get("total", 0)),
        step_s=sum(steps) / len(steps) if steps else 0.0,
        gone=isinstance(pid, int) and not finished and not memory,
        seconds=float(finished.get("seconds") or (seconds[-1] if seconds else 0.0)),
        memory_mb=memory,
        rates=tuple(_rates(rows, sum(steps) / len(steps))) if steps else (),
    )


def _rates(rows: list[dict[str, Any]], step_s: float) -> Iterator[str]:
    """How fast it goes: steps a minute, and of optimisation samples and tokens a second."""
    yield f"{60 / step_s:.3g} steps a minute"
    drawn, length = rows[-1].get("scored"), rows[-1].get("length")
    if drawn and length:
        yield f"{drawn / step_s:.3g} samples a second"
        yield f"{drawn * length / step_s:,.0f} tokens a second"


def _memory_mb(pid: int) -> int:
    """The memory of a process in MB, 0 where there is none of that number."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def newest_round(folder: Path) -> Path:
    """Return the folder of a run's last round, which is its own where it has had one only."""
    return [folder, *numbered(folder, "round_").values()][-1]


def changes(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what tells one moment of a run from another: names, sizes and times of what the page reads."""
    here = newest_round(folder)
    files = [file for name in _READ for depth in ("*", "*/*", ".") for file in here.glob(f"{depth}/{name}")]
    found = []
    for file in {here / "summary.json", *files}:
        try:
            stat = file.stat()
        except OSError:
            continue
        found.append((file.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def _samples(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """What the policy wrote in its newest steps."""
    files = sorted((run.path / stage / "samples").glob("step_*.txt"), reverse=True)[:_SHOWN_SAMPLES]
    return [
        {"step": int(file.stem.removeprefix("step_")), "text": file.read_text("utf-8", "replace")}
        for file in files
        if file.stem.removeprefix("step_").isdecimal()
    ]


class DrawnCurves:
    """Curves that are drawn anew only where their rows have changed: of a long run most stages are over."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[Any, Figure | None]] = {}

    def __call__(self, title: str, curve: Curve, lines: Sequence[tuple[str, str, MetricRows]]) -> Figure | None:
        """Draw a curve, or return it as it was drawn."""
        where = (title, lines[0][0])
        seen = [(name, style, len(rows), rows[-1] if rows else None) for name, style, rows in lines]
        kept = self._kept.get(where)
        if kept is None or kept[0] != seen:
            kept = self._kept[where] = (seen, training_figure(title, curve, lines))
        return kept[1]


def live_parts(folder: Path, draw: Draw = training_figure) -> dict[str, Any]:
    """Return what the page shows of a run at this moment; ``draw`` draws its curves.

    Raises:
        DataError: there is no such folder.
    """
    here = newest_round(folder)
    # A single stage's folder is its own: the report looks one level above.
    alone = (
        any((here / name).exists() for name in ("metrics.jsonl", STEPS_FILE)) and not (here / "resolved.json").exists()
    )
    run = read_run(here.parent) if alone else read_run(here)
    names = tuple(name for name in run.stages if not alone or name == here.name)
    if alone:
        run = RunFolder(run.path, names, run.files, run.metrics, run.events, [], run.damaged)
    stages = [stage_now(run, name) for name in names]
    samples = [{"stage": title_of(name), "rows": rows} for name in names if (rows := _samples(run, name))]
    report = here / "report.html"
    return {
        "title": f"{run.name if not alone else here.name}" + (f", {here.name}" if here != folder else ""),
        "says": _says(stages, (here / "summary.json").is_file()),
        "stages": stages,
        "training": part(lambda run: training(run, draw), run),
        "samples": samples[-1:],
        "report": str(report) if report.is_file() else "",
        "at": time.strftime("%H:%M:%S"),
    }


def _says(stages: list[StageNow], finished: bool) -> str:
    if finished:
        return "This round is finished; its report says how it went."
    at_work = next((one for one in stages if not one.done), None)
    if at_work is None:
        return "Nothing is at work at the moment." if stages else "Nothing has been logged yet."
    return f"{at_work.name}: {at_work.says}."


async def _events(folder: Path) -> AsyncIterator[str]:
    """Yield the page's contents whenever they have changed, and a comment where nothing does for long."""
    known: object = None
    draw = DrawnCurves()  # one a page that is open
    silent_since = time.monotonic()
    while True:
        now = await asyncio.to_thread(changes, folder)
        if now != known:
            known, silent_since = now, time.monotonic()
            html = await asyncio.to_thread(lambda: filled("live_now.html.j2", live_parts(folder, draw)))
            yield f"data: {json.dumps({'html': html})}\n\n"
        elif time.monotonic() - silent_since > _SILENCE_S:
            silent_since = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_LOOK_S)


def live_app(folder: Path) -> Starlette:
    """Return the app that shows a run's folder: one page, and its events. It is for this machine alone.

    Raises:
        DataError: there is no such folder.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, StreamingResponse
    from starlette.routing import Route

    live_parts(folder)  # what cannot be read is said before a server starts

    async def page(request: Request) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        context = await asyncio.to_thread(live_parts, folder)
        allowed = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'"
        html = filled("live.html.j2", {**context, "nonce": nonce, "policy": allowed})
        return HTMLResponse(html, headers={"Content-Security-Policy": allowed, "Cache-Control": "no-store"})

    async def events(request: Request) -> StreamingResponse:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(folder), media_type="text/event-stream", headers=headers)

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK_NAMES), www_redirect=False)
    return Starlette(routes=[Route("/", page), Route("/events", events)], middleware=[hosts])
