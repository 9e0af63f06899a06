"""Judgements as training reads them: who counts, how much, and what belongs into one batch element.

A view of one prompt's judgements is made in this order:

1. Answers to gold questions are left out: they say how good the annotator is. So is what simulated annotators said,
   unless it is asked for, and what an adjudication has decided.
2. Rankings of the prompt that share a completion, directly or through others, are one group: one K-way ranking by
   three people, a group served as m random pairs, an edit set above what it edited.
3. Each person's rankings of a group count ``weight`` together, spread evenly over the pairs they compare (InstructGPT,
   arXiv:2203.02155, eq. 1, weighs the C(K, 2) pairs of a ranking so). A label, rating or demonstration counts
   ``weight`` by itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from accord.formats import View, Weighed
from accord.people.answers import ADJUDICATION, GOLD
from accord.records import Annotator, AnnotatorKind, Judgement, Label, Ranking, Rating

#: What the rows of a file say of whose judgement they are.
ORIGINS: Mapping[AnnotatorKind, str] = {"human": "people", "simulated": "simulated annotators", "model": "models"}


def training_view(
    annotators: Iterable[Annotator],
    *,
    weights: Mapping[str, float] | None = None,
    simulated: bool = False,
    left_out: Counter[str] | None = None,
) -> View:
    """A view for `accord.formats.from_facts`.

    Args:
        weights: What a person's judgements count, by annotator id; 1 where it says nothing.
        simulated: Also take what simulated annotators said.
        left_out: Counts by reason what is left out.
    """
    kinds = {annotator.id: annotator.annotator_kind for annotator in annotators}
    weight_of, reasons = weights or {}, Counter[str]() if left_out is None else left_out

    def view(judgements: Sequence[Judgement]) -> Iterator[Weighed]:
        kept = list(_kept(judgements, kinds, simulated, reasons))
        groups = _groups([judgement for judgement in kept if isinstance(judgement, Ranking)])
        pairs = Counter[tuple[str, str]]()
        for judgement in kept:
            if isinstance(judgement, Ranking):
                pairs[groups[judgement.id], judgement.annotator_id] += _num_pairs(judgement)
        for judgement in kept:
            weight = weight_of.get(judgement.annotator_id, 1.0)
            group = groups.get(judgement.id, "")
            if isinstance(judgement, Ranking):
                weight *= _num_pairs(judgement) / pairs[group, judgement.annotator_id]
            yield Weighed(judgement, round(weight, 6), group, ORIGINS[kinds[judgement.annotator_id]])

    return view


def _kept(
    judgements: Sequence[Judgement], kinds: Mapping[str, AnnotatorKind], simulated: bool, left_out: Counter[str]
) -> Iterator[Judgement]:
    decided = [_subject(judgement) for judgement in judgements if ADJUDICATION in judgement.flags]
    for judgement in judgements:
        kind, about = _subject(judgement)
        if GOLD in judgement.flags:
            left_out["answers to gold questions"] += 1
        elif kinds[judgement.annotator_id] == "simulated" and not simulated:
            left_out["judgements by simulated annotators"] += 1
        elif ADJUDICATION not in judgement.flags and any(kind == k and about <= whole for k, whole in decided):
            left_out["judgements that an adjudication has decided"] += 1
        else:
            yield judgement


def _subject(judgement: Judgement) -> tuple[str, frozenset[str]]:
    """What a judgement is about: two of one kind on the same completions can contradict each other."""
    if isinstance(judgement, Ranking):
        return "ranking", frozenset(judgement.completion_ids)
    if isinstance(judgement, Rating):
        return f"rating {judgement.axis}", frozenset([judgement.completion_id])
    if isinstance(judgement, Label):
        return "label", frozenset([judgement.completion_id])
    return "demonstration", frozenset([judgement.id])


def _groups(rankings: Sequence[Ranking]) -> dict[str, str]:
    """The name of each ranking's group, by ranking: the least of its group's completions."""
    leader: dict[str, str] = {}

    def find(id_: str) -> str:
        while leader.setdefault(id_, id_) != id_:
            id_ = leader[id_]
        return id_

    for ranking in rankings:
        roots = {find(id_) for id_ in ranking.completion_ids}
        leader.update(dict.fromkeys(roots, min(roots)))
    members: defaultdict[str, list[str]] = defaultdict(list)
    for ranking in rankings:
        members[find(ranking.completion_ids[0])].append(ranking.id)
    return {id_: root for root, ids in members.items() for id_ in ids}


def _num_pairs(ranking: Ranking) -> int:
    return len(ranking.ranks) * (len(ranking.ranks) - 1) // 2
