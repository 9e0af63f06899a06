"""How often completions of one source were preferred to those of another, blind, by who compared them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import Any

from accord.formats.facts import ORIGINS
from accord.people.desk.answers import GOLD, JUDGING
from accord.stats import Interval, share_by_cluster
from accord.store import RankedSource, Store


@dataclass(frozen=True)
class SourceMatchup:
    """How often ``first`` was preferred to ``second``: a prompt counts once, a tie half.

    ``by`` says who compared them, ``annotators`` how many they are; ``ties`` is the share of comparisons that tied.
    The interval resamples topics, and prompts that have none.
    """

    first: str
    second: str
    by: str
    win_rate: Interval
    annotators: int
    comparisons: int
    ties: float

    @property
    def verdict(self) -> str:
        """Who is preferred, or that nothing is shown."""
        if self.win_rate.low > 0.5:
            return f"{self.first} is preferred"
        if self.win_rate.high < 0.5:
            return f"{self.second} is preferred"
        return "too few to say"

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"win_rate": self.win_rate.to_json(), "verdict": self.verdict}

    def text(self) -> str:
        many = f"{self.win_rate.n} prompts, {self.comparisons} comparisons by {self.annotators}"
        return f"{self.first} against {self.second}, {self.by}: {self.win_rate} of {many}; {self.verdict}"


@dataclass
class _Outcomes:
    """Outcomes of one pair of sources by one kind of annotator: 1 where the first is better, a half for a tie."""

    of_prompt: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    cluster: dict[int, str] = field(default_factory=dict)
    annotators: set[int] = field(default_factory=set)


def source_matchups(store: Store) -> list[SourceMatchup]:
    """Return the win rates of every two sources whose completions somebody ranked together.

    Answers to gold questions are left out, and so is what a run asked to judge its policies by: it reports that itself.
    """
    found: defaultdict[tuple[str, str, str], _Outcomes] = defaultdict(_Outcomes)
    for _, rows in groupby(store.ranked_sources(), key=lambda row: row.ranking):
        _take(found, list(rows))
    return [_matchup(*key, outcomes) for key, outcomes in sorted(found.items())]


def _take(found: defaultdict[tuple[str, str, str], _Outcomes], rows: list[RankedSource]) -> None:
    """Count one ranking in the outcomes of every two sources in it."""
    one = rows[0]
    if {GOLD, JUDGING} & set(json.loads(one.flags)):
        return
    for first, second, outcome in _outcomes(rows):
        kept = found[first, second, ORIGINS[one.annotator_kind]]
        kept.of_prompt[one.prompt].append(outcome)
        kept.cluster[one.prompt] = one.topic or f"prompt {one.prompt}"
        kept.annotators.add(one.annotator)


def _outcomes(rows: Iterable[RankedSource]) -> Iterator[tuple[str, str, float]]:
    """Yield every two sources of a ranking, by name, with the share of cross pairs that the first wins."""
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        ranks[row.source].append(row.rank)
    names = sorted(ranks)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            pairs = list(product(ranks[first], ranks[second]))
            yield first, second, sum((a < b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def _matchup(first: str, second: str, by: str, outcomes: _Outcomes) -> SourceMatchup:
    said = outcomes.of_prompt
    shares = [sum(of) / len(of) for of in said.values()]
    every = [outcome for of in said.values() for outcome in of]
    return SourceMatchup(
        first,
        second,
        by,
        share_by_cluster(shares, [outcomes.cluster[prompt] for prompt in said]),
        len(outcomes.annotators),
        len(every),
        sum(outcome == 0.5 for outcome in every) / len(every),
    )
