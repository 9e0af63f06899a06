"""The harness' arithmetic: readings of commands in, lines of `results.json` out. No clock and no process here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Agreement, Row, Side

Line = dict[str, Any]
CLOSE = 0.8  # a side this near to the fastest may be the fastest in another round


@dataclass(frozen=True)
class Reading:
    """What one start of a command said: items a second, and its peak memory above that of its imports, in MB."""

    median: float
    low: float
    high: float
    n: int
    memory_mb: float


def reading_of(result: Mapping[str, Any], items: int | None, memory_mb: float) -> Reading:
    """A ``RESULT`` line as a reading. With ``items`` the median is taken from the seconds, which are less rounded."""
    median, low, high = result["median"], result["min"], result["max"]
    if items is not None:
        median = items / result["sec_median"]
    return Reading(median, min(low, median), max(high, median), result["n"], memory_mb)


def pooled(readings: Sequence[Reading]) -> Reading:
    """Several starts as one: the median of their medians, the whole range, the largest memory."""
    return Reading(
        median=statistics.median(r.median for r in readings),
        low=min(r.low for r in readings),
        high=max(r.high for r in readings),
        n=sum(r.n for r in readings),
        memory_mb=max(r.memory_mb for r in readings),
    )


def fastest(sides: Sequence[Side], readings: Mapping[str, Reading]) -> str:
    """Name of the side with the highest median, among those that have a reading."""
    return max((s.name for s in sides if s.name in readings), key=lambda name: readings[name].median)


def contenders(rows: Sequence[Row], readings: Mapping[str, Sequence[Reading]]) -> set[str]:
    """Sides that are or may yet be the fastest of theirs in some row: later rounds leave the others out."""
    found = {name: pooled(several).median for name, several in readings.items() if several}
    kept = set()
    for sides in (sides for row in rows for sides in (row.ours, row.theirs)):
        medians = {side.name: found[side.name] for side in sides if side.name in found}
        kept |= {name for name, median in medians.items() if median >= CLOSE * max(medians.values())}
    return kept


def lines_of(row: Row, readings: Mapping[str, Sequence[Reading]], versions: Mapping[str, str]) -> list[Line]:
    """The line of a row, and that of its memory where it has one. Without a reading of each side, why it failed."""
    found = {name: pooled(several) for name, several in readings.items() if several}
    if not all(any(s.name in found for s in sides) for sides in (row.ours, row.theirs)):
        missing = [s.name for s in (*row.ours, *row.theirs) if s.name not in found]
        return [failed(row, f"no result from: {', '.join(missing)}", versions)]
    ours, theirs = fastest(row.ours, found), fastest(row.theirs, found)
    a, b = found[ours], found[theirs]
    line = heading(row, versions) | {
        "ours": _short(a.median),
        "theirs": _short(b.median),
        "ratio": round(a.median / b.median, 3),
        "unit": row.unit,
        "better": "higher",
        "floor": row.floor,
        "goal": row.goal,
        "ours_min": _short(a.low),
        "ours_max": _short(a.high),
        "theirs_min": _short(b.low),
        "theirs_max": _short(b.high),
        "n_ours": a.n,
        "n_theirs": b.n,
        "ours_side": ours,
        "theirs_side": theirs,
        "sides": {name: _short(reading.median) for name, reading in found.items()},
    }
    silent = [s.name for s in (*row.ours, *row.theirs) if s.name not in found]
    if silent:
        line["without"] = silent
    if row.memory is None:
        return [line]
    memory = heading(row, versions) | {
        "name": f"{row.name}-memory",
        "work": f"{row.work}: peak memory above imports",
        "ours": round(a.memory_mb),
        "theirs": round(b.memory_mb),
        "ratio": round(a.memory_mb / b.memory_mb, 3),
        "unit": "MB",
        "better": "lower",
        "floor": row.memory[0],
        "goal": row.memory[1],
        "ours_side": ours,
        "theirs_side": theirs,
    }
    return [line, memory]


def agreement_line(
    row: Agreement,
    ours: tuple[Sequence[float], Sequence[float]],
    theirs: tuple[Sequence[float], Sequence[float]],
    peer: tuple[str, str],
) -> Line:
    """Losses and gradient norms of both sides. Their difference: absolute for losses, relative for norms."""
    gaps = [abs(a - b) for a, b in zip(ours[0], theirs[0], strict=True)]
    gaps += [abs(a - b) / b for a, b in zip(ours[1], theirs[1], strict=True)]
    numbers = all(map(math.isfinite, gaps))
    trouble = {} if numbers else {"failed": "a sum is not a number"}
    return trouble | {
        "name": row.name,
        "work": row.work,
        "model": "tiny",
        "precision": row.precision,
        "peer": peer[0].removesuffix("-ppo"),
        "peer_version": peer[1],
        "ours": [_short(x) for series in ours for x in series],
        "theirs": [_short(x) for series in theirs for x in series],
        "ratio": float(f"{max(gaps, default=0.0):.3g}") if numbers else None,
        "unit": "largest difference",
        "better": "lower",
        "floor": row.tolerance,
        "goal": None,
    }


def heading(row: Row, versions: Mapping[str, str]) -> Line:
    """Which row a line is of, and against whom."""
    peer = row.theirs[0].peer
    return {
        "name": row.name,
        "work": row.work,
        "model": row.model,
        "precision": row.precision,
        "peer": peer.removesuffix("-ppo"),
        "peer_version": versions.get(peer, ""),
    }


def failed(row: Row, why: str, versions: Mapping[str, str]) -> Line:
    """A row without numbers."""
    nothing = {"ours": None, "theirs": None, "ratio": None, "unit": row.unit, "better": "higher"}
    return heading(row, versions) | nothing | {"floor": row.floor, "goal": row.goal, "failed": why}


def reaches(line: Line, bound: float | None) -> bool:
    """Whether the ratio is on the good side of a floor or goal; True where there is none."""
    if bound is None:
        return True
    if line["ratio"] is None:
        return False
    return bool(line["ratio"] >= bound if line["better"] == "higher" else line["ratio"] <= bound)


def falls_short(line: Line) -> bool:
    """Whether the run must end with exit code 1: a floor missed, or a row that failed where its peer was there."""
    return not line.get("no_peer") and (line["ratio"] is None or not reaches(line, line["floor"]))


def merged(old: Iterable[Line], new: Iterable[Line], order: Sequence[str]) -> list[Line]:
    """Old lines with those measured now in their place, in the order of the table; lines of unknown rows go."""
    fresh = list(new)
    stems = {line["name"].removesuffix("-memory") for line in fresh}
    kept = [line for line in old if line["name"].removesuffix("-memory") not in stems]
    place = {name: (i, extra) for i, stem in enumerate(order) for extra, name in enumerate((stem, f"{stem}-memory"))}
    return sorted((line for line in (*kept, *fresh) if line["name"] in place), key=lambda line: place[line["name"]])


def _short(value: float) -> float:
    return float(f"{value:.5g}")
