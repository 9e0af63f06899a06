"""Judgements as training reads them: which count, how much, and which belong into one batch element.

1. Answers to gold questions are left out: they say how good the annotator is. So is what is kept for judging policies,
   what simulated annotators said, and AI feedback, unless it is asked for, and what an adjudication has decided.
   So is what users said of served completions and nobody admitted (`accord.people.admission`): by default all of it.
2. Each person's rankings of a group of completions, as it was served, count ``weight`` together, spread evenly over the
   pairs they compare: one K-way ranking, m random pairs, a ranking and an edit set above what it edited (InstructGPT,
   arXiv:2203.02155, eq. 1, weighs the C(K, 2) pairs of a ranking so). A ranking that came from a file counts by itself,
   and so does a label, a rating or a demonstration.
3. Rankings that share a completion, directly or through others, are one batch element, up to `MOST_TOGETHER`
   completions; of more, each served group is one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

from accord.config import AdmitConfig, LabelConfig
from accord.connected import Connected
from accord.formats import View, Weighed
from accord.people.admission import LIVE_ORIGINS, Admission, read_admission
from accord.people.desk import Desk
from accord.people.desk.answers import ADJUDICATION, GOLD, JUDGING
from accord.records import AnnotatorKind, Judgement, Label, Ranking, Rating
from accord.store import Store

# Completions of one batch element. Each runs once in it instead of once a judgement, with the same loss (1e-6);
# the bound keeps an element within memory where thousands of rankings hang together.
MOST_TOGETHER = 32
#: What is no person's judgement, by the kind of annotator, as it is counted where it is left out.
BY_PROGRAMS: Mapping[AnnotatorKind, str] = {
    "simulated": "judgements by simulated annotators",
    "model": "judgements that are AI feedback",
}


def training_view(
    store: Store,
    *,
    weights: Mapping[str, float] | None = None,
    simulated: bool = False,
    ai: bool = False,
    admission: Admission | None = None,
    left_out: dict[str, int] | None = None,
) -> View:
    """Return a view of this store for `accord.formats.from_facts`. It reads all rankings: memory grows with them.

    Args:
        weights: What a person's judgements count, by annotator id; 1 where it says nothing.
        simulated: Also take what simulated annotators said.
        ai: Also take AI feedback: what models and functions said.
        admission: Which of users' feedback counts; None: none of it.
        left_out: Counts by reason what is left out.
    """
    kinds = {annotator.id: annotator.annotator_kind for annotator in store.annotators()}
    served, gold = _served(store)
    decided = _decided(store)
    weight_of, reasons = weights or {}, {} if left_out is None else left_out
    users = read_admission(store, AdmitConfig(feedback=False)) if admission is None else admission
    programs = {kind: why for kind, why in BY_PROGRAMS.items() if not {"simulated": simulated, "model": ai}[kind]}

    def why_not(judgement: Judgement) -> str:
        # Gold questions measure people and train nothing.
        if GOLD in judgement.flags or judgement.id in gold:
            return "answers to gold questions"
        if JUDGING in judgement.flags:
            return "answers kept for judging"
        if why := programs.get(kinds[judgement.annotator_id]):
            return why
        if judgement.id in users.live and (why := users.refused.get(judgement.id, "")):
            return f"users' feedback: {why}"
        overruled = ADJUDICATION not in judgement.flags and _overruled(judgement, decided)
        return "judgements that an adjudication has decided" if overruled else ""

    kept = (ranking for ranking in store.rankings() if not why_not(ranking))
    pairs_of, element_of = _groups(kept, served)

    def view(judgement: Judgement) -> Weighed | None:
        if reason := why_not(judgement):
            reasons[reason] = reasons.get(reason, 0) + 1
            return None
        weight, element = weight_of.get(judgement.annotator_id, 1.0) * users.weight.get(judgement.id, 1.0), ""
        origin = LIVE_ORIGINS.get(kinds[judgement.annotator_id], "") if judgement.id in users.live else ""
        if isinstance(judgement, Ranking):
            unit = served.get(judgement.id, judgement.id)
            # A person counts once a group as it was served, as one ranking of four or as six pairs. Once a connected
            # set would make thirty tasks from a pool of nineteen texts a single vote.
            weight *= _num_pairs(judgement) / pairs_of[unit, judgement.annotator_id]
            element = element_of(judgement) or unit
        return Weighed(round(weight, 6), element, origin)

    return view


Decided = Mapping[tuple[str, str], list[frozenset[str]]]


def _decided(store: Store) -> Decided:
    """Return what was adjudicated: sets of completions, by kind of judgement and each of the completions."""
    found: defaultdict[tuple[str, str], list[frozenset[str]]] = defaultdict(list)
    if (
        ADJUDICATION not in store.flags()
    ):  # most projects decide nothing: a look at the flags alone is ten times cheaper
        return found
    for judgement in chain(store.rankings(), store.labels(), store.ratings()):
        if ADJUDICATION in judgement.flags:
            kind, about = _subject(judgement)
            for id_ in about:
                found[kind, id_].append(about)
    return found


def _overruled(judgement: Judgement, decided: Decided) -> bool:
    kind, about = _subject(judgement)
    return any(about <= whole for whole in decided.get((kind, min(about)), ()))


def _subject(judgement: Judgement) -> tuple[str, frozenset[str]]:
    """Return the subject of a judgement: two of one kind on the same completions can contradict each other."""
    if isinstance(judgement, Ranking):
        return "ranking", frozenset(judgement.completion_ids)
    if isinstance(judgement, Rating):
        return f"rating {judgement.axis}", frozenset([judgement.completion_id])
    if isinstance(judgement, Label):
        return "label", frozenset([judgement.completion_id])
    return "demonstration", frozenset([judgement.id])


def _served(store: Store) -> tuple[dict[str, str], set[str]]:
    """Return the group or task that each judgement answered, and the judgements whose task is now a gold question.

    Judgements that came from files answered none.
    """
    served: dict[str, str] = {}
    gold: set[str] = set()
    for one in Desk(store, LabelConfig()).reading.served():
        served.update(dict.fromkeys(one.judgement_ids, one.group))
        gold.update(one.judgement_ids if one.gold else ())
    return served, gold


def _groups(
    rankings: Iterable[Ranking], served: Mapping[str, str]
) -> tuple[Counter[tuple[str, str]], Callable[[Ranking], str]]:
    """Count the pairs compared by served group and annotator, and name the batch element of each ranking.

    The name is the least of the connected completions, "" where an element would hold too many.
    """
    # By the least id: the name of an element does not depend on the order in which rankings came.
    together = Connected[str]()
    pairs = Counter[tuple[str, str]]()
    for ranking in rankings:
        together.join(ranking.completion_ids)
        pairs[served.get(ranking.id, ranking.id), ranking.annotator_id] += _num_pairs(ranking)
    sizes = together.sizes()

    def element_of(ranking: Ranking) -> str:
        root = together.find(ranking.completion_ids[0])
        return root if sizes[root] <= MOST_TOGETHER else ""

    return pairs, element_of


def _num_pairs(ranking: Ranking) -> int:
    return len(ranking.ranks) * (len(ranking.ranks) - 1) // 2
