"""Where a scorer is right and where it is not: its accuracy by source, clearness, length, topic and annotator.

Beside it, measured in the same judgements, how often one person agrees with the others. Torch-free.

Shapes: M texts, N pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accord.errors import DataError
from accord.evals.metrics import word_count
from accord.evals.pairs import HeldOutPairs, pair_accuracy, pair_hits
from accord.formats.stage_rows import RankedRow
from accord.stats import (
    Estimate,
    FloatArray,
    Interval,
    Unknown,
    bootstrap_by_cluster,
    paired_difference,
    share_by_cluster,
)

MOST_ROWS = 16  # of a facet: a reader looks at no more, and what is rare has wide intervals
OTHERS = "all others"
#: What says of a judgement that it is a program's: such a one is no person's.
PROGRAMS = ("AI feedback", "simulated annotators")
# Half as long or twice as long is seen at a glance; a tenth is not.
LENGTH_EDGES = ((0.5, "less than half as long"), (0.9, "shorter"), (1.1, "about as long"), (2.0, "longer"))
LENGTH_BEYOND = "more than twice as long"


@dataclass(frozen=True)
class FacetRow:
    """The pairs of one label: how often the scorer orders them as people did."""

    label: str
    accuracy: Interval


# ---- what pairs are told apart by ----------------------------------------------------------------------------------


def _source(row: RankedRow, better: str, worse: str) -> str:
    return row.group.origin


def _margin(row: RankedRow, better: str, worse: str) -> str:
    """Return how clear the choice was, as far as the row says."""
    group = row.group
    if group.strength:
        return group.strength
    if group.margin is not None:
        return f"margin {math.floor(group.margin)} to {math.floor(group.margin) + 1}"
    if group.probability is not None:
        return f"probability {math.floor(group.probability * 10) / 10:.1f} and more"
    return ""


def _length_gap(row: RankedRow, better: str, worse: str) -> str:
    """Return how long the preferred text is beside the other, in words."""
    ratio = (1 + word_count(better)) / (1 + word_count(worse))
    return next((name for edge, name in LENGTH_EDGES if ratio < edge), LENGTH_BEYOND)


def _topic(row: RankedRow, better: str, worse: str) -> str:
    return row.group.topic


def _annotator(row: RankedRow, better: str, worse: str) -> str:
    return row.annotator


def _place(row: RankedRow, better: str, worse: str) -> str:
    """Return which of the two stands first in the row."""
    texts = row.group.completions
    return "the first" if texts.index(better) < texts.index(worse) else "a later one"


#: What pairs are told apart by; a label of "" is not known.
FACETS: Mapping[str, Callable[[RankedRow, str, str], str]] = {
    "source": _source,
    "margin": _margin,
    "length_gap": _length_gap,
    "topic": _topic,
    "annotator": _annotator,
    "place": _place,
}


def facets(
    scores: npt.ArrayLike, held_out: HeldOutPairs, rows: Sequence[RankedRow], *, seed: int = 0
) -> dict[str, tuple[FacetRow, ...]]:
    """Return a scorer's accuracy by every facet that has two labels at least; the rarest labels are one.

    Args:
        scores: (M,) of the texts of ``held_out``, whose pairs are those of ``rows``, in their order.
    """
    found = {}
    for name, label_of in FACETS.items():
        label_N = pair_labels(held_out, rows, label_of)
        if len(set(label_N) - {""}) > 1:
            found[name] = _rows_of(scores, held_out, label_N, by_prompt=name == "topic", seed=seed)
    return found


def pair_labels(
    held_out: HeldOutPairs, rows: Sequence[RankedRow], label_of: Callable[[RankedRow, str, str], str]
) -> npt.NDArray[np.str_]:
    """Return (N,) what a facet says of each pair."""
    pairs, texts = held_out.pairs, held_out.completions
    triples = zip(pairs.groups, pairs.better, pairs.worse, strict=True)
    return np.array([label_of(rows[g], texts[b], texts[w]) for g, b, w in triples])


def _rows_of(
    scores: npt.ArrayLike, held_out: HeldOutPairs, label_N: npt.NDArray[np.str_], *, by_prompt: bool, seed: int
) -> tuple[FacetRow, ...]:
    common = [label for label, _ in Counter(label_N[label_N != ""].tolist()).most_common()]
    shown = common if len(common) <= MOST_ROWS else common[: MOST_ROWS - 1]
    pairs, hit_N = held_out.pairs, pair_hits(scores, held_out.pairs)
    # A topic is the unit of resampling elsewhere: within one its prompts are.
    prompts = np.array([held_out.texts[b][0] for b in pairs.better])
    cluster_N = prompts if by_prompt else pairs.topics

    def row(label: str, inside: npt.NDArray[np.bool_]) -> FacetRow:
        return FacetRow(label, share_by_cluster(hit_N[inside], cluster_N[inside], seed=seed))

    found = [row(label, label_N == label) for label in shown]
    rest = (label_N != "") & ~np.isin(label_N, shown)
    return (*found, row(OTHERS, rest)) if rest.any() else tuple(found)


# ---- the human ceiling ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceiling:
    """How often one person orders a pair as the others who judged it do, and how often the scorer does.

    Both on the same judgements: each is compared with the majority of all others of its pair, an even one counts half.
    ``unnamed`` of the ``judgements`` name nobody: those of one ``group`` are taken for a person each, without a group a
    pair that stands twice is one judgement. ``programs`` were left out.
    """

    human: Estimate
    model: Estimate
    model_minus_human: Estimate
    judgements: int = 0
    unnamed: int = 0
    programs: int = 0


def human_ceiling(
    scores: npt.ArrayLike, held_out: HeldOutPairs, rows: Sequence[RankedRow], *, seed: int = 0
) -> Ceiling:
    """Measure how far people agree on pairs that several of them judged; `Unknown` where none was."""
    score_M = np.asarray(scores, dtype=np.float64)
    number = {text: i for i, text in enumerate(held_out.texts)}
    said, programs = _said_of_pairs(rows, number)
    human, model, topic, unnamed = [], [], [], 0
    for (a, b), votes in said.items():
        lead = float(np.sign(score_M[a] - score_M[b]))
        for i, (voter, vote, of) in enumerate(votes):
            others = math.copysign(1, rest) if (rest := sum(v for j, (_, v, _) in enumerate(votes) if j != i)) else 0
            if len(votes) > 1 and vote:
                human.append((1 + vote * others) / 2)
                model.append((1 + lead * others) / 2)
                topic.append(of)
                unnamed += not voter
    if not human:
        why = Unknown("no pair was judged by two people: without that nobody knows how good a model can be")
        return Ceiling(why, why, why, programs=programs)
    shares = (share_by_cluster(human, topic, seed=seed), share_by_cluster(model, topic, seed=seed))
    return Ceiling(*shares, paired_difference(model, human, topic, seed=seed), len(human), unnamed, programs)


_Votes = dict[tuple[int, int], list[tuple[str, int, str]]]


def _said_of_pairs(rows: Sequence[RankedRow], number: Mapping[tuple[str, str], int]) -> tuple[_Votes, int]:
    """Return who ordered each pair of texts how (1: the one of the lower number is better), and the programs' rows."""
    said: _Votes = {}
    programs, seen = 0, set()
    for row in rows:
        group = row.group
        if group.origin in PROGRAMS:
            programs += 1
            continue
        places = [number.get((group.prompt, text)) for text in group.completions]
        for i, a in enumerate(places):
            for j, b in enumerate(places):
                if a is None or b is None or a >= b:
                    continue
                # Who judged a pair twice is one person, and so is nobody: the same row twice is no agreement.
                if (row.annotator or not group.group) and (row.annotator, a, b) in seen:
                    continue
                seen.add((row.annotator, a, b))
                vote = int(np.sign(group.ranks[j] - group.ranks[i]))
                said.setdefault((a, b), []).append((row.annotator, vote, group.topic or group.prompt))
    return said, programs


# ---- length and place ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LengthHabit:
    """How often the longer of two texts is preferred, by people and by the scorer, and the difference."""

    people: Interval
    model: Interval
    model_minus_people: Interval


def length_habit(scores: npt.ArrayLike, held_out: HeldOutPairs, *, seed: int = 0) -> LengthHabit | Unknown:
    """Compare how often people and a scorer prefer the longer text (in words), on pairs of different lengths."""
    words_M = np.array([word_count(text) for text in held_out.completions], dtype=np.float64)
    longer_N = np.sign(held_out.pairs.margins(words_M))
    uneven = longer_N != 0
    if not uneven.any():
        return Unknown("all texts of a pair are equally long")
    topics = held_out.pairs.topics[uneven]
    people_N = (1 + longer_N[uneven]) / 2
    model_N = (1 + np.sign(held_out.pairs.margins(scores))[uneven] * longer_N[uneven]) / 2
    shares = (share_by_cluster(people_N, topics, seed=seed), share_by_cluster(model_N, topics, seed=seed))
    return LengthHabit(*shares, paired_difference(model_N, people_N, topics, seed=seed))


def first_preferred(held_out: HeldOutPairs, rows: Sequence[RankedRow], *, seed: int = 0) -> Estimate:
    """Return how often people preferred the text that stands first; `Unknown` where it always does or never."""
    first_N = (pair_labels(held_out, rows, _place) == "the first").astype(np.float64)
    if first_N.all() or not first_N.any():
        return Unknown("the better text always stands in one place: the file does not say in which it was shown")
    return share_by_cluster(first_N, held_out.pairs.topics, seed=seed)


# ---- the members of an ensemble ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberAgreement:
    """How far the members of an ensemble agree on which text of a pair is better.

    ``alike``: of two members, how often they order a pair alike. ``unanimous``: on how many pairs all do, and the
    accuracy there and elsewhere. ``spread``: mean standard deviation of a text's scores over members.
    """

    members: int
    accuracies: tuple[Interval, ...]
    alike: Interval
    unanimous: Interval
    accuracy_unanimous: Estimate
    accuracy_split: Estimate
    spread: float


def member_agreement(member_scores: npt.ArrayLike, held_out: HeldOutPairs, *, seed: int = 0) -> MemberAgreement:
    """Measure the members of an ensemble on held-out pairs; ``member_scores`` (M texts, members)."""
    score_MH = np.asarray(member_scores, dtype=np.float64)
    if score_MH.ndim != 2 or score_MH.shape[1] < 2:
        raise DataError(f"members' scores of shape {score_MH.shape}", why="agreement needs two members")
    pairs, size = held_out.pairs, score_MH.shape[1]
    sign_HN = np.stack([np.sign(pairs.margins(score_M)) for score_M in score_MH.T])
    first, second = np.triu_indices(size, k=1)
    alike_N = ((1 + sign_HN[first] * sign_HN[second]) / 2).mean(0)
    together = np.abs(sign_HN.sum(0)) == size
    return MemberAgreement(
        members=size,
        accuracies=tuple(pair_accuracy(score_M, pairs, seed=seed) for score_M in score_MH.T),
        alike=share_by_cluster(alike_N, pairs.topics, seed=seed),
        unanimous=share_by_cluster(together.astype(np.float64), pairs.topics, seed=seed),
        accuracy_unanimous=_accuracy_where(together, sign_HN, held_out, seed),
        accuracy_split=_accuracy_where(~together, sign_HN, held_out, seed),
        spread=float(score_MH.std(axis=1, ddof=1).mean()),
    )


def _accuracy_where(inside: npt.NDArray[np.bool_], sign_HN: FloatArray, held_out: HeldOutPairs, seed: int) -> Estimate:
    """Return how often the majority of members is right on these pairs."""
    if not inside.any():
        return Unknown("there is no such pair")
    hit_N = (1 + np.sign(sign_HN.sum(0)[inside])) / 2
    return bootstrap_by_cluster(hit_N, held_out.pairs.topics[inside], seed=seed)
