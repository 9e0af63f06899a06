"""Simulated annotators: programs that rank completions as a hurried person with a stated taste might.

They are called simulated everywhere (``Annotator.annotator_kind == "simulated"``) and stand in for people where nobody
can be asked: for fresh samples of a policy in a demo or a test. Results obtained with them say how the loop recovers a
known taste, not what people want.

**Their taste** is hidden from what is trained. It is neither the judge (a ridge regression on words of rated reviews)
nor a reward model: it is a formula over human word ratings and the shape of the text, ::

    utility    = positivity_weight * positivity + substance_weight * substance
    positivity = tanh(sum of ratings of the rated words / (their number + 1) / 2),             -1 .. 1
    substance  = length * ending * freshness * specificity * calm,                               0 .. 1

* the rating of a word is what people gave it, -4..4; "not", "never", "without" ... up to three words before it turn its
  sign and halve it. Words of grammar ("like", "well", "no") count as unrated;
* length: 1 between ``shortest`` and ``longest`` words, in proportion below, falling to 0 at twice the longest;
* ending: 1 if the text ends like a sentence, else 0.5;
* freshness: (share of distinct word pairs) x (share of distinct words that are not grammar);
* specificity: distinct words that are neither rated nor grammar, / 4, at most 1: praise must say of what;
* calm: 1 / number of exclamation marks, and (1/3) / share of rated words, each at most 1: a slogan is not a review.

**Their noise**: each annotator has own weights, adds Gaussian noise to each utility, and ties completions that it feels
to be closer than its threshold to the best of the tie. All of it follows from ``(seed, annotator, group)`` alone, so
neither the order shown, nor the order or number of the groups changes a ranking.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean

from accord.errors import UsageError
from accord.people.simulation.annotators import ranks_of
from accord.records import Annotator, Completion, Ranking, content_id
from accord.seeds import stream_seed

GUIDELINE = (
    "A good review speaks well of the film, and it is a complete review: of ordinary length, a finished sentence or "
    "more, saying something about this film, not repeating itself, not a slogan. Rank the reviews from best to worst; "
    "give the same rank to reviews you find equally good."
)
#: Simulated rankings happen at no moment. A fixed one keeps their ids the same on every run.
RANKED_AT = "1970-01-01T00:00:00.000000+00:00"

# Positivity spans -1..1, substance 0..1: the emptiest praise (1.25) stays below a complete neutral review (1.5).
POSITIVITY_WEIGHT = 1.25
SUBSTANCE_WEIGHT = 1.5
# Praise must say of what: so many words that are neither rated nor grammar.
NUM_SPECIFIC_WORDS = 4
# More rated words than that make a slogan, not a review.
LARGEST_RATED_SHARE = 1 / 3
# "not a very good film": a negation reaches three words on, turns the sign and halves the rating.
NEGATION_REACH = 3
NEGATION_FACTOR = -0.5

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_ENDING = re.compile(r"[.!?][\"')\]]*$")
_NEGATORS = frozenset(
    ["not", "no", "never", "nothing", "nor", "neither", "nobody", "none", "without", "hardly", "barely", "cannot"]
)
_GRAMMAR = _NEGATORS | frozenset(
    [
        *["a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "been", "being", "both"],
        *["but", "by", "can", "could", "did", "do", "does", "else", "even", "ever", "every", "film", "films", "for"],
        *["from", "get", "had", "has", "have", "he", "her", "him", "his", "how", "i", "if", "in", "into", "is", "it"],
        *["it's", "its", "just", "kind", "less", "like", "many", "may", "me", "might", "more", "most", "movie"],
        *["movies", "much", "my", "of", "off", "on", "one", "only", "or", "other", "our", "out", "over", "own"],
        *["pretty", "quite", "rather", "really", "she", "should", "so", "some", "such", "than", "that", "that's"],
        *["the", "their", "them", "then", "there", "there's", "these", "they", "this", "those", "though", "through"],
        *["to", "too", "up", "us", "very", "was", "we", "well", "were", "what", "when", "where", "which", "while"],
        *["who", "will", "with", "would", "you", "your"],
    ]
)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; an apostrophe may stand inside."""
    return _WORD.findall(text.lower())


# -- taste -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taste:
    """The preferences of simulated annotators before noise. ``valence`` maps a word to its human rating, -4..4."""

    valence: Mapping[str, float]
    shortest: float
    longest: float

    def utility(
        self, text: str, *, positivity_weight: float = POSITIVITY_WEIGHT, substance_weight: float = SUBSTANCE_WEIGHT
    ) -> float:
        """Return how good the text is, without noise: higher is better; differences count, the zero does not."""
        return positivity_weight * self.positivity(text) + substance_weight * self.substance(text)

    def positivity(self, text: str) -> float:
        """Return how positive the text is, from -1 to 1; 0 where no word is rated."""
        ratings = self._ratings(words_of(text))
        return math.tanh(sum(ratings) / (len(ratings) + 1) / 2)

    def substance(self, text: str) -> float:
        """Return how complete a review the text is, from 0 to 1."""
        words = words_of(text)
        if not words:
            return 0.0
        ending = 1.0 if _ENDING.search(text.rstrip()) else 0.5
        return (
            self._length(len(words)) * ending * _freshness(words) * self._specificity(words) * self._calm(text, words)
        )

    def _ratings(self, words: Sequence[str]) -> list[float]:
        """Return the ratings of the rated words, those under a negation turned and halved."""
        ratings = []
        for i, word in enumerate(words):
            if word in self.valence:
                before = words[max(0, i - NEGATION_REACH) : i]
                negated = any(w in _NEGATORS or w.endswith("n't") for w in before)
                ratings.append(self.valence[word] * (NEGATION_FACTOR if negated else 1.0))
        return ratings

    def _length(self, count: int) -> float:
        if count < self.shortest:
            return count / self.shortest
        return max(0.0, min(1.0, 2.0 - count / self.longest))

    def _specificity(self, words: Sequence[str]) -> float:
        specific = {word for word in words if word not in self.valence and word not in _GRAMMAR}
        return min(1.0, len(specific) / NUM_SPECIFIC_WORDS)

    def _calm(self, text: str, words: Sequence[str]) -> float:
        share = sum(word in self.valence for word in words) / len(words)
        return min(1.0, LARGEST_RATED_SHARE / share if share else 1.0) / max(1, text.count("!"))


def _freshness(words: Sequence[str]) -> float:
    pairs = list(pairwise(words))
    content = [word for word in words if word not in _GRAMMAR]
    return _distinct(pairs) * _distinct(content)


def _distinct(items: Sequence[object]) -> float:
    return len(set(items)) / len(items) if items else 1.0


def ordinary_length(texts: Iterable[str]) -> tuple[float, float]:
    """Return the lengths in words between which three in four human texts lie: the 20 % and 95 % quantiles.

    Raises:
        UsageError: There are no texts.
    """
    lengths = sorted(len(words_of(text)) for text in texts)
    if not lengths:
        raise UsageError("the ordinary length of no texts is unknown", hint="give human-written texts")
    last = len(lengths) - 1
    return float(max(1, lengths[round(0.20 * last)])), float(max(1, lengths[round(0.95 * last)]))


def build_taste(words: Mapping[str, float], typical_length: tuple[float, float]) -> Taste:
    """Build a taste from human word ratings (-4..4) and the ordinary length of a text (shortest, longest, in words).

    Raises:
        UsageError: There are no rated words, or the lengths are not ``0 < shortest <= longest``.
    """
    shortest, longest = typical_length
    if not 0 < shortest <= longest:
        raise UsageError(
            f"an ordinary length of {shortest:g} to {longest:g} words", hint="give 0 < shortest <= longest"
        )
    # Words of grammar carry no opinion, whatever the lexicon says of "like" or "no".
    valence = {word.lower(): value for word, value in words.items() if word.lower() not in _GRAMMAR}
    if not valence:
        raise UsageError("a taste needs rated words, and there are none", hint="give the words of the lexicon")
    return Taste(valence, shortest, longest)


# -- annotators --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TasteAnnotator:
    """One simulated annotator: its weights, the standard deviation of its noise, and how near it calls equal."""

    name: str
    positivity_weight: float
    substance_weight: float
    noise: float
    tie_within: float

    def record(self) -> Annotator:
        """Return the annotator as a fact for the store."""
        note = (
            f"simulated: positivity {self.positivity_weight:.3f}, substance {self.substance_weight:.3f}, "
            f"noise {self.noise:.3f}, ties within {self.tie_within:.3f}"
        )
        return Annotator(name=self.name, annotator_kind="simulated", note=note)

    def utility(self, taste: Taste, text: str) -> float:
        """Return the text's utility under this annotator's own weights, before its noise."""
        return taste.utility(text, positivity_weight=self.positivity_weight, substance_weight=self.substance_weight)


def taste_annotators(n: int, seed: int) -> tuple[TasteAnnotator, ...]:
    """Make ``n`` simulated annotators: weights 15-25 % apart, noise 0.25-0.45, ties within 0.05-0.2 units of utility.

    The first of more are the same as the first of fewer.

    Raises:
        UsageError: ``n`` is below 1.
    """
    if n < 1:
        raise UsageError(f"{n} simulated annotators", hint="ask for at least 1")
    return tuple(_annotator(i, seed) for i in range(n))


def _annotator(index: int, seed: int) -> TasteAnnotator:
    # A stream for each: the first of many are the same as the first of few.
    draw = random.Random(stream_seed(seed, "simulated annotator", index))
    return TasteAnnotator(
        name=f"simulated-{seed}-{index:02d}",
        positivity_weight=POSITIVITY_WEIGHT * math.exp(draw.gauss(0.0, 0.15)),
        substance_weight=SUBSTANCE_WEIGHT * math.exp(draw.gauss(0.0, 0.25)),
        noise=draw.uniform(0.25, 0.45),
        tie_within=draw.uniform(0.05, 0.20),
    )


# -- rankings ----------------------------------------------------------------------------------------------------------


def rank(taste: Taste, annotator: TasteAnnotator, completions: Sequence[Completion], seed: int) -> Ranking:
    """Return one annotator's ranking of distinct completions of one prompt, shown in an order of its own.

    Raises:
        UsageError: The completions do not answer one prompt.
        DataError: There are fewer than two, or one stands twice.
    """
    prompt_ids = {completion.prompt_id for completion in completions}
    if len(prompt_ids) > 1:
        raise UsageError(f"a ranking of completions of {len(prompt_ids)} prompts", hint="rank one prompt at a time")
    # Sorted by content, so that neither noise nor order depends on how the group was handed over.
    by_id = {completion.id: completion.text for completion in sorted(completions, key=lambda c: c.id)}
    group = _group_key(by_id)
    felt = {key: annotator.utility(taste, text) + _noise(annotator, seed, group, key) for key, text in by_id.items()}
    ranks = ranks_of(felt, annotator.tie_within)
    shown = [completion.id for completion in sorted(completions, key=lambda c: c.id)]
    random.Random(stream_seed(seed, "order shown", annotator.name, group)).shuffle(shown)
    return Ranking(
        annotator_id=annotator.record().id,
        created_at=RANKED_AT,
        guideline=GUIDELINE,
        prompt_id=next(iter(prompt_ids), ""),
        completion_ids=tuple(shown),
        ranks=tuple(ranks[key] for key in shown),
    )


def _group_key(ids: Iterable[str]) -> str:
    return content_id("group", sorted(ids))


def _noise(annotator: TasteAnnotator, seed: int, group: str, completion_id: str) -> float:
    stream = stream_seed(seed, "noise", annotator.name, group, completion_id)
    return random.Random(stream).gauss(0.0, annotator.noise)


def simulate_rankings(
    groups: Iterable[Sequence[Completion]],
    taste: Taste,
    team: Sequence[TasteAnnotator],
    seed: int,
    *,
    per_group: int = 1,
) -> Iterator[Ranking]:
    """Yield rankings of groups of completions, each group by ``per_group`` members of the team, chosen by hash.

    Equal completions of a group count once; a group with fewer than two different ones is left out.

    Raises:
        UsageError: ``per_group`` is not within 1 and the size of the team.
    """
    if not 1 <= per_group <= len(team):
        raise UsageError(
            f"{per_group} rankings a group from {len(team)} simulated annotators",
            hint="ask for 1 up to the team's size",
        )
    for group in groups:
        distinct = list({completion.text: completion for completion in group}.values())
        if len(distinct) < 2:
            continue
        key = _group_key(completion.id for completion in distinct)
        # By hash, not in turn: leaving one group out gives no other group to somebody else.
        turns = sorted(team, key=lambda member: stream_seed(seed, "turn", key, member.name))
        for member in turns[:per_group]:
            yield rank(taste, member, distinct, seed)


# -- how well they agree -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Shares over pairs of completions; None where no pair counts.

    Args:
        between: Of pairs that two annotators both order, those ordered the same way.
        with_taste: Of pairs that an annotator orders, those ordered as the noise-free taste does.
        tied: Of all pairs ranked, those tied.
        num_pairs: All pairs ranked, each annotator's counted.
    """

    between: float | None
    with_taste: float | None
    tied: float | None
    num_pairs: int


def agreement(rankings: Iterable[Ranking], utilities: Mapping[str, float]) -> Agreement:
    """Return how far rankings agree with each other and with the noise-free utilities (by completion id)."""
    votes: dict[tuple[str, str], list[int]] = {}
    for ranking in rankings:
        for (left, a), (right, b) in combinations(sorted(zip(ranking.completion_ids, ranking.ranks, strict=True)), 2):
            votes.setdefault((left, right), []).append((b > a) - (b < a))
    signs = [sign for found in votes.values() for sign in found]
    same = [a == b for found in votes.values() for a, b in combinations(filter(None, found), 2)]
    true = [
        (sign > 0) == (utilities[left] > utilities[right])
        for (left, right), found in votes.items()
        for sign in filter(None, found)
    ]
    return Agreement(_share(same), _share(true), _share([sign == 0 for sign in signs]), len(signs))


def _share(hits: Sequence[bool]) -> float | None:
    return fmean(hits) if hits else None


def describe_taste(taste: Taste, team: Sequence[TasteAnnotator]) -> list[str]:
    """Return what a report must say about simulated annotators, a sentence an item."""
    return [
        f"{len(team)} simulated annotators, programs and not people, ranked completions. Their guideline: {GUIDELINE}",
        f"Their hidden taste adds positivity (the mean human rating of the {len(taste.valence)} rated words, turned by "
        f"negation, saturated; weight {POSITIVITY_WEIGHT:g}) and substance (weight {SUBSTANCE_WEIGHT:g}): "
        f"{taste.shortest:g} to {taste.longest:g} words, an ended sentence, no repetition, at least "
        f"{NUM_SPECIFIC_WORDS} words on the film itself, no slogan. Neither the judge nor the reward model sees it.",
        f"Each weighs the two a little differently and errs: the noise on a utility has standard deviation "
        f"{min(a.noise for a in team):.2f} to {max(a.noise for a in team):.2f}, and texts that feel closer than "
        f"{min(a.tie_within for a in team):.2f} to {max(a.tie_within for a in team):.2f} are tied.",
    ]
