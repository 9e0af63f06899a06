"""Runs side by side in one page: who is ahead, at what cost, along which curves, and by which settings. Torch-free.

Runs may be of different algorithms, tasks and judges. What can be laid beside each other is said to be so: policies
that one and the same judge has scored on the same prompts are compared with each other; else each stands against its
own start, and the page says why no more can be said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accord.errors import DataError, UsageError
from accord.files import read_json
from accord.report import parts
from accord.report.duels import FEWEST, Duel, Side, SidePolicy, duel_section, duel_verdict, judge_identity, shared_duels
from accord.report.figures import (
    CURVES,
    METHOD_STYLES,
    Curve,
    Figure,
    ResultRow,
    dot_of,
    lines_along_kl,
    snapshot_line,
    training_figure,
    training_legend,
    win_figure,
)
from accord.report.first_screen import sentence_of
from accord.report.matchup import matchup_of
from accord.report.names import Names, policy_title, title_of
from accord.report.pages import ComparedPage, ComparedRow, Measure, text_cell, write_page
from accord.report.run_folder import GATE, Absent, RunFolder, read_run
from accord.report.svg import WIDE

SIDES_PAGE = "side_by_side.html"
_TEMPLATE = "side_by_side.html.j2"
SIDE_MEASURES = (
    Measure("Win rate against its start", "win_rate", "win_rate"),
    Measure("By whom", "judge", "by"),
    Measure("At equal length", "length_controlled", "length_controlled"),
    Measure("KL to its start", "kl", "kl", 2),
    Measure("Length ratio", "length_ratio", "length_ratio"),
    Measure("Tokens", "tokens", "tokens", 1),
    Measure("NLL above its start’s", "nll_excess", "nll_excess"),
    Measure("Distinct", "distinct_share", "distinct_share"),
    Measure("Proxy", "proxy", "proxy"),
    Measure("Floors", "floor", "floors"),
)
_WORDS = ("by", "floors")  # measures that are told in words


def side_by_side(folders: Sequence[Path], page: Path = Path(SIDES_PAGE)) -> Path:
    """Write one page over several runs or evaluations, and return its path; nothing is computed again.

    Args:
        folders: of runs, evaluations, or of several runs (seeds, a sweep, a comparison), which stand for those in them.
        page: where it is written.

    Raises:
        UsageError: fewer than two runs are named, or ``page`` is a file that is no such page.
        DataError: there is no such folder, or nothing in it was evaluated.
    """
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in _runs_in(folder)))
    if len(paths) < FEWEST:
        raise UsageError("one run cannot stand beside itself", hint="name two folders of runs at least")
    if page.exists() and f'content="{SIDES_PAGE}"' not in page.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise UsageError("a file of something else is here", where=str(page), hint="name another one with -o")
    sides = _Sides(tuple(_side(path, label) for path, label in zip(paths, _labels(paths), strict=True)))
    return write_page(page, _TEMPLATE, sides.sections(page.parent), Names("its start", "the policy"))


def _runs_in(folder: Path) -> list[Path]:
    """Return the runs that a folder stands for: itself, or those of its seeds, its sweep or its comparison."""
    if (folder / "eval/results.json").is_file():
        return [folder]
    if (folder / "sweep.json").is_file():
        below = [folder / row["name"] for row in read_json(folder / "sweep.json")["runs"]]
    else:
        below = sorted(folder.glob("seed_*")) if folder.is_dir() else []
    found = [path for path in below if (path / "eval/results.json").is_file()]
    if not found:
        why = "it holds no eval/results.json: no run, or one that is not evaluated yet" if folder.is_dir() else ""
        raise DataError(
            "nothing here can be set beside another run" if folder.is_dir() else "no such folder",
            where=str(folder),
            why=why,
            hint="give folders that `accord run` or `accord eval policy` has finished",
        )
    return found


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell all of them apart."""
    depth = next(
        depth for depth in range(1, 99) if len({path.parts[-depth:] for path in paths}) == len(paths) or depth == 98
    )
    return ["/".join(path.parts[-depth:]) for path in paths]


# ---- what stands there ---------------------------------------------------------------------------------------------


def _side(path: Path, label: str) -> Side:
    side = Side(label, read_run(path))
    try:
        for row in side.results["policies"]:
            _ = (row["name"], row["role"], row["kl"])
    except (Absent, KeyError, TypeError) as gap:
        raise DataError("its results cannot be read", where=str(path / "eval/results.json"), why=str(gap)) from gap
    return side


@dataclass(frozen=True)
class _Sides:
    sides: tuple[Side, ...]

    @cached_property
    def policies(self) -> tuple[SidePolicy, ...]:
        """The candidates of all runs; a run without any stands there with its first policy but the reference."""
        found = [(side, row) for side in self.sides for row in _candidates(side.results)]
        several = {side.label for side in self.sides if len(_candidates(side.results)) > 1}
        return tuple(
            SidePolicy(
                f"{side.label}: {policy_title(row)}" if side.label in several else side.label,
                METHOD_STYLES[i % len(METHOD_STYLES)],
                side,
                row,
            )
            for i, (side, row) in enumerate(found)
        )

    def sections(self, page_dir: Path) -> dict[str, Any]:
        """Return what the page shows."""
        duels = shared_duels(self.policies)
        wins = [dot_of(one.name, one.style, win) for one in self.policies if (win := one.judged["win_rate"])]
        figures = (
            [win_figure("Win rate of each against its own start, by the judge that decides", wins)] if wins else []
        )
        return {
            "page": self._table(page_dir, figures, duels),
            "duels": [duel_section(one) for one in duels],
            "apart": list(self._apart(duels)),
            "sentences": [(side.label, _sentence(side)) for side in self.sides],
            "judges": [row for one in self.policies for row in _judge_rows(one)],
            "along": self._along(duels),
            "curves": list(self._curves()),
            "reward": [row for side in self.sides if (row := _reward_row(side))],
            "alarms": [[side.label, *row] for side in self.sides for row in _alarm_rows(side.run)],
            "settings": self._settings(),
            "labels": [side.label for side in self.sides],
        }

    def _table(self, page_dir: Path, figures: Sequence[Figure], duels: Sequence[Duel]) -> ComparedPage:
        return ComparedPage(
            title=f"{len(self.sides)} runs side by side",
            kind=f"{len(self.sides)} runs side by side",
            verdict=duel_verdict(duels, len(self.policies)),
            caption="Each on its own test prompts, against the policy that it started from. Brackets: 95% by topic",
            headings=("Run", "Policy", "Started from"),
            measures=SIDE_MEASURES,
            rows=tuple(_row(one, page_dir) for one in self.policies),
            figures=tuple(figures),
            section="Run by run",
        )

    def _apart(self, duels: Sequence[Duel]) -> Iterator[str]:
        """Yield what makes the win rates in the table incomparable, in words."""
        differing = {
            "test prompts": {tuple(sorted({row["prompt"] for row in side.run.samples})) for side in self.sides},
            "the judge that decides": {(one.judged["judge"], _digest(one.side, one.judged)) for one in self.policies},
            "the start": {_start(side) for side in self.sides},
            "the number of samples a prompt": {side.results.get("samples_per_prompt") for side in self.sides},
            "the temperature": {side.results.get("temperature") for side in self.sides},
            "the longest completion": {side.results.get("max_new_tokens") for side in self.sides},
        }
        found = [name for name, values in differing.items() if len(values) > 1]
        if found:
            yield f"These runs differ in {_listed(found)}: their win rates are of different things."
        if not duels:
            yield "No judge has scored all of these policies on the same prompts: none is compared with another."

    def _along(self, duels: Sequence[Duel]) -> list[Figure]:
        """Return the snapshots of every policy along KL: by a judge that all share, else by each one's win rate."""
        leading = {_leading(side) for side in self.sides}
        measure, label = ("judge", "judge score") if len(leading) == 1 and duels else ("win_rate", "win rate")
        lines = [line for one in self.policies if (line := _line(one, measure))]
        if not lines:
            return []
        title = f"{label.capitalize()} against KL on validation prompts, one line a policy"
        note = "" if measure == "judge" else "Each by its own leading judge, against its own start."
        return [replace(lines_along_kl(title, lines, label, "its start", size=(WIDE, 420)), note=note)]

    def _curves(self) -> Iterator[tuple[str, list[Figure], Any]]:
        """Yield name, figures and legend of the curves of each kind of stage, all runs in one picture."""
        for kind, curves in CURVES.items():
            lines = [line for i, side in enumerate(self.sides) for line in _metric_lines(side, kind, i)]
            if sum(bool(_metric_lines(side, kind, 0)) for side in self.sides) < FEWEST:
                continue
            drawn = [training_figure(one.title.format(reference="its start"), one, lines) for one in _single(curves)]
            if figures := [figure for figure in drawn if figure]:
                yield title_of(kind), figures, training_legend(lines)

    def _settings(self) -> list[tuple[str, list[str]]]:
        """Return the keys that differ, with each run's value; hashes of data, models and code among them."""
        found = [_settings_of(side.run) for side in self.sides]
        keys = list(dict.fromkeys(key for one in found for key in one))
        rows = [(key, [one.get(key, parts.NONE) for one in found]) for key in keys]
        return [(key, values) for key, values in rows if len(set(values)) > 1]


def _candidates(results: ResultRow) -> list[ResultRow]:
    return [row for row in results["policies"] if row["role"] == "candidate"]


def _digest(side: Side, judge: ResultRow) -> str:
    return str(side.results["judges"].get(judge["judge"], ""))


def _leading(side: Side) -> tuple[str, str]:
    name, digest = next(iter(side.results["judges"].items()), ("", ""))
    return judge_identity(name, digest)


def _start(side: Side) -> Any:
    """Return what the start wrote: two that write the same are one."""
    name = side.results["reference"]
    return tuple(row["completion"] for row in side.run.samples if row["policy"] == name)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _sentence(side: Side) -> str:
    found = parts.part(lambda run: {"told": sentence_of(matchup_of(run))}, side.run)
    return str(found.get("told") or f"Nothing is said: {found['absent']}.")


def _row(one: SidePolicy, page_dir: Path) -> ComparedRow:
    """Return the row of a policy; the cell of its floors is marked where one is broken."""
    floors = one.side.results["floors"].get(one.row["name"], ())
    if one.row["name"] == one.side.results["candidate"]:
        floors = parts.part(lambda run: {"floors": parts.floors_of(run)}, one.side.run).get("floors", floors)
    broken = [parts.floor_name(one.side.run, floor["name"]) for floor in floors if not floor["held"]]
    judged = one.judged
    told = {
        "by": title_of(judged["judge"]) + (f": {judged['called']}" if judged["called"] else ""),
        "floors": ("broken: " + ", ".join(broken) if broken else "all held") if floors else parts.NONE,
    }
    numbers = {**one.row, "win_rate": judged["win_rate"]}
    cells = [
        text_cell(told[m.key]) if m.key in _WORDS else parts.interval(numbers.get(m.key), m.digits)
        for m in SIDE_MEASURES
    ]
    if one.row["kl_is_bound"]:
        kl = [m.key for m in SIDE_MEASURES].index("kl")
        cells[kl] = {**cells[kl], "prefix": "≤ "}
    report = one.side.run.path / "report.html"
    link = Path(os.path.relpath(report, page_dir)).as_posix() if report.is_file() else ""
    labels = (one.side.label, policy_title(one.row), title_of(one.side.results["reference"]))
    return ComparedRow(labels, tuple(cells), link, broken=len(cells) - 1 if broken else None)


def _judge_rows(one: SidePolicy) -> list[list[str]]:
    return [
        [
            one.name,
            title_of(row["judge"]),
            row["called"],
            _ranged(row["win_rate"]),
            row["says"],
            "decides" if row["decides"] else "",
        ]
        for row in one.said
    ]


def _ranged(found: ResultRow | None) -> str:
    return " ".join(filter(None, parts.interval(found).values())) if found else parts.NONE


def _reward_row(side: Side) -> list[str]:
    """Return how good the reward model of a run is, and what its gate says; nothing where it has none."""
    card, gate = side.run.get("reward/card.json"), side.run.get(GATE)
    found = card.get("model", {}).get("all_pairs")
    if not found:
        return []
    says = f"{gate['says']}: {gate['sentence']}" if gate.get("says") and gate.get("sentence") else parts.NONE
    return [side.label, _ranged(found), f"{found['n']:,}", says]


def _alarm_rows(run: RunFolder) -> list[list[str]]:
    found = parts.part(lambda run: {"rows": parts.training_alarms(run)}, run).get("rows", ())
    return [[row["stage"], row["alarm"], str(row["times"]), row["cause"]] for row in found]


def _settings_of(run: RunFolder) -> dict[str, str]:
    """Return every setting of a run by its dotted key, and the hashes of its data, judges and code."""
    found = dict(parts.flat(run.get("resolved.json")))
    env, results = run.get("env.json"), run.get("eval/results.json")
    found |= {f"environment: {key}": str(value) for key, value in parts.flat(env) if key != "command"}
    found |= {
        f"data: {name}": str(digest) for name, digest in run.get("data/manifest.json").get("artefacts", {}).items()
    }
    return found | {f"judge: {name}": str(digest) or parts.NONE for name, digest in results.get("judges", {}).items()}


# ---- curves --------------------------------------------------------------------------------------------------------


def _line(one: SidePolicy, measure: str) -> Any:
    """Return the snapshots of a policy along KL; None where it has none, or none was judged."""
    chosen = one.side.results["selections"].get(one.row["name"], {"snapshots": []})["snapshots"]
    if not chosen or any(snapshot["row"][measure] is None for snapshot in chosen):
        return None
    results = one.side.results
    if results["start"][measure] is None:  # a start wins half of the comparisons with itself
        half = {"value": 0.5, "low": None, "high": None}
        results = {**results, "start": {**results["start"], measure: half}}
    return snapshot_line(one.name, one.style, results, chosen, measure)


def _metric_lines(side: Side, kind: str, place: int) -> list[tuple[str, str, Any]]:
    """Return name, style and metrics of a run's stages of a kind."""
    if kind != "policy":
        rows = side.run.metrics.get(kind)
        return [(side.label, METHOD_STYLES[place % len(METHOD_STYLES)], rows)] if rows else []
    lines = parts.policy_lines(side.run)
    named = [(f"{side.label}: {name}" if len(lines) > 1 else side.label, rows) for name, _, rows in lines]
    return [(name, METHOD_STYLES[(place + 3 * i) % len(METHOD_STYLES)], rows) for i, (name, rows) in enumerate(named)]


def _single(curves: Sequence[Curve]) -> list[Curve]:
    """Return the curves with one key each: a picture of several runs has room for one."""
    return [
        Curve(f"{curve.title}: {name}" if len(curve.keys) > 1 else curve.title, ((key, name),), curve.share)
        for curve in curves
        for key, name in curve.keys
    ]
