"""Policies of several runs against each other, by judges that scored all of them on the same prompts. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accord.report import parts
from accord.report.figures import ResultRow
from accord.report.names import title_of
from accord.report.parts import percent
from accord.report.run_folder import RunFolder, score_key
from accord.stats import FloatArray, Interval, Ranked, prompt_wins, ranked_policies, share_by_cluster

FEWEST = 2  # policies that can be compared


@dataclass(frozen=True)
class Side:
    """A run beside others, and how pages call it."""

    label: str
    run: RunFolder

    @cached_property
    def results(self) -> ResultRow:
        found: ResultRow = self.run.need("eval/results.json")
        return found


@dataclass(frozen=True)
class SidePolicy:
    """One candidate of a run: its name on the page, how it is drawn, and its measures."""

    name: str
    style: str
    side: Side
    row: ResultRow

    @property
    def said(self) -> Sequence[ResultRow]:
        """What each judge says of it, the most trusted first."""
        if self.row["name"] == self.side.results["candidate"]:
            return parts.judged_of(self.side.run)
        found: Sequence[ResultRow] = self.side.results.get("judged", {}).get(self.row["name"], ())
        return found

    @property
    def judged(self) -> ResultRow:
        """The row of the judge that decides about it; the win rate of its own row where none is named."""
        first = next(iter(self.side.results["judges"]), "")
        unsaid = {"judge": first, "called": "", "win_rate": self.row["win_rate"]}
        return next((one for one in self.said if one["decides"]), unsaid)


@dataclass(frozen=True)
class Duel:
    """What one judge that has scored all policies on the same prompts says of each against the others.

    ``ranked``: all of them by Bradley-Terry, the strongest first. ``wins``: of each but the strongest, how often the
    strongest beats it, in the order of the ranks.
    """

    judge: str
    prompts: int
    topics: int
    ranked: tuple[Ranked, ...]
    wins: Mapping[str, Interval]


def shared_duels(policies: Sequence[SidePolicy]) -> list[Duel]:
    """Return what each judge says that has scored samples of all policies on the same prompts; none where none has."""
    if len(policies) < FEWEST:
        return []
    keys = [_score_keys(one.side) for one in policies]
    shared = [judge for judge in keys[0] if all(judge in others for others in keys[1:])]
    return [duel for judge in shared if (duel := _duel(policies, judge, [key[judge] for key in keys]))]


def _score_keys(side: Side) -> dict[tuple[str, str], str]:
    """Return under which key samples hold the score of each judge, which is known by its hash, else by its name."""
    judges = side.results["judges"]
    return {judge_identity(name, digest): score_key(name, judges) for name, digest in judges.items()}


def judge_identity(name: str, digest: str) -> tuple[str, str]:
    """Return what a judge is known by in all runs: its hash, else its name."""
    return ("", digest) if digest else (name, "")


def _duel(policies: Sequence[SidePolicy], judge: tuple[str, str], keys: Sequence[str]) -> Duel | None:
    scored = [_scores(one, key) for one, key in zip(policies, keys, strict=True)]
    prompts = [prompt for prompt in scored[0] if all(prompt in others for others in scored[1:])]
    if not prompts:
        return None
    topic_of = {row["prompt"]: row["topic"] for row in policies[0].side.run.samples}
    topics = [topic_of[prompt] or prompt for prompt in prompts]
    win_PNN = prompt_wins([[of[prompt] for prompt in prompts] for of in scored])
    names = tuple(one.name for one in policies)
    ranked = ranked_policies(names, win_PNN, topics)
    best = names.index(ranked[0].name)
    wins = {one.name: share_by_cluster(win_PNN[:, best, names.index(one.name)], topics) for one in ranked[1:]}
    return Duel(_judge_name(policies[0].side, judge), len(prompts), len(set(topics)), ranked, wins)


def _judge_name(side: Side, judge: tuple[str, str]) -> str:
    name = next((name for name, digest in side.results["judges"].items() if judge in ((name, ""), ("", digest))), "")
    return title_of(name) + ("" if judge[1] else " (it has no hash: taken for one judge by its name)")


def _scores(one: SidePolicy, key: str) -> dict[str, FloatArray]:
    """Return the scores of a policy's samples by prompt."""
    found: dict[str, list[float]] = {}
    for row in one.side.run.samples:
        if row["policy"] == one.row["name"] and isinstance(row.get(key), int | float):
            found.setdefault(row["prompt"], []).append(float(row[key]))
    return {prompt: np.array(scores) for prompt, scores in found.items()}


def duel_section(duel: Duel) -> dict[str, Any]:
    """Return what a page shows of a duel: a row a policy, the strongest first."""
    rows = [
        {
            "name": one.name,
            "rank": f"{one.rank}" + ("" if one.rank_low == one.rank_high else f" ({one.rank_low} to {one.rank_high})"),
            "strength": parts.interval(one.strength.to_json()),
            "beaten": parts.interval(duel.wins[one.name].to_json()) if one.name in duel.wins else parts.interval(None),
        }
        for one in duel.ranked
    ]
    return {"judge": duel.judge, "prompts": duel.prompts, "topics": duel.topics, "rows": rows}


def duel_verdict(duels: Sequence[Duel], count: int) -> str:
    """Return who is ahead by the first judge that all share, and whether that is shown."""
    if not duels:
        return f"{count} policies, each against its own start: none is compared with another."
    duel = duels[0]
    best, second = duel.ranked[0].name, duel.ranked[1].name
    win = duel.wins[second]
    of = "" if count == FEWEST else f" Of {count} these two are the strongest."
    share = f"prefers its answer in {percent(win.value)} of comparisons on {duel.prompts:,} shared prompts"
    if math.isnan(win.low):
        return (
            f"{best} is not shown to be better than {second}: {duel.judge} {share}, too few topics for an interval.{of}"
        )
    told = f"{duel.judge} {share} (95% interval {percent(win.low)} to {percent(win.high)}).{of}"
    if win.low > 0.5:
        return f"{best} is better than {second}: {told}"
    return f"{best} is not shown to be better than {second}: {told}"
