"""Simulated readers with a written-down taste for any text, for runs and tests in which no people can be asked.

They are programs, called simulated everywhere. **Their taste** is the table `TEXT_FEATURES`: what can be seen of a
prompt and a completion without understanding either, each 0 .. 1, ::

    utility = sum over features of weight * measure(prompt, completion)

Results obtained with them say how the loop recovers a known taste, not what people want. **Each reader** weighs the
features in its own way, adds Gaussian noise, likes what is shown first a little more, and ties completions that feel
closer than its threshold. All of it follows from ``(seed, reader, prompt, text)`` alone, but for the order shown.

What they cannot see: whether anything is true, useful or kind. Words are runs of letters, so that texts in scripts
without spaces are judged by little more than their ending.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from accord.errors import UsageError
from accord.people.simulation.annotators import (
    AnnotatorGroup,
    AnnotatorRequest,
    AnswerJson,
    Opinion,
    ShownTask,
    answer_of,
    ranks_of,
)
from accord.records import Annotator
from accord.seeds import stream_seed

# Shorter words are mostly grammar, in every language with an alphabet.
CONTENT_LETTERS = 4
# "order", "orders" and "ordering" are one word to a reader; five letters tell most others apart.
STEM_LETTERS = 5
ENOUGH_ON_TOPIC = 2  # words of the prompt: one may be chance, more would reward an echo
ENOUGH_OWN = 6  # words that the prompt has not: about a sentence that says something
SHORTEST, LONGEST = 8, 120  # words: a sentence, and a screen of a chat window

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_ENDING = re.compile(r"(?:[.!?…。！？][\"'”’»)\]*_]*|```)$")
_REFUSAL = re.compile(
    r"\bas an ai\b|\b(?:i['’]m|i am) (?:sorry|unable|not able)\b|\bi (?:can['’]?t|cannot|can not|won['’]t) "
    r"(?:help|assist|answer|do|provide|comply)\b",
    re.IGNORECASE,
)
_BROKEN = re.compile(r"[\ufffd\x00-\x08\x0b-\x1f]|<\|")
REFUSES_WITHIN = 160  # characters: a refusal stands at the beginning


def text_words(text: str) -> list[str]:
    """Return the words of a text in lower case, in any script with an alphabet."""
    return [word.lower() for word in _WORD.findall(text)]


def stems(text: str) -> set[str]:
    """Return what the longer words of a text begin with."""
    return {word[:STEM_LETTERS] for word in text_words(text) if len(word) >= CONTENT_LETTERS}


# ---- what is seen of a text ------------------------------------------------------------------------------------------


def on_topic(prompt: str, text: str) -> float:
    """Share of enough words of the prompt that come back; 1 where the prompt has none."""
    asked = stems(prompt)
    return min(1.0, len(asked & stems(text)) / min(ENOUGH_ON_TOPIC, len(asked))) if asked else 1.0


def own_words(prompt: str, text: str) -> float:
    """Share of enough words that the prompt does not have."""
    return min(1.0, len(stems(text) - stems(prompt)) / ENOUGH_OWN)


def wholeness(_: str, text: str) -> float:
    """1 where the text ends as a sentence or a block of code does."""
    return float(_ENDING.search(text.rstrip()) is not None)


def freshness(_: str, text: str) -> float:
    """Share of distinct pairs of words."""
    pairs = list(pairwise(text_words(text)))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def moderation(_: str, text: str) -> float:
    """1 between the shortest and the longest, in proportion below, falling to 0 at twice the longest."""
    count = len(text_words(text))
    return max(0.0, min(1.0, count / SHORTEST, 2.0 - count / LONGEST))


def plainness(_: str, text: str) -> float:
    """1 / (1 + exclamation marks beyond the first, shouted words, broken characters and marks of a chat template)."""
    shouted = sum(len(word) >= CONTENT_LETTERS and word.isupper() for word in _WORD.findall(text))
    faults: int = max(0, text.count("!") - 1) + shouted + len(_BROKEN.findall(text))
    return 1 / (1 + faults)


def willingness(_: str, text: str) -> float:
    """0 where the text begins with a refusal."""
    return float(_REFUSAL.search(text[:REFUSES_WITHIN]) is None)


@dataclass(frozen=True)
class TextFeature:
    """One thing seen of (prompt, completion), 0 .. 1, what it counts, and why."""

    measure: Callable[[str, str], float]
    weight: float
    reason: str


#: The taste. What makes a text an answer at all weighs 1, manners weigh less.
TEXT_FEATURES: Mapping[str, TextFeature] = {
    "on topic": TextFeature(on_topic, 1.0, "an answer speaks of what was asked"),
    "own words": TextFeature(own_words, 1.0, "an echo of the question is no answer"),
    "whole": TextFeature(wholeness, 1.0, "a text that breaks off was not worth reading to its end"),
    "fresh": TextFeature(freshness, 1.0, "repeating itself is what weak models do when they have nothing to say"),
    "moderate": TextFeature(moderation, 0.75, "neither a word nor a flood: more text is not more answer"),
    "plain": TextFeature(plainness, 0.5, "no shouting, no broken characters, no markup left over"),
    "answers": TextFeature(willingness, 0.75, "a refusal helps nobody who asked an ordinary question"),
}


def text_utility(prompt: str, text: str, weights: Mapping[str, float]) -> float:
    """Return how good a completion is before noise, with these weights of `TEXT_FEATURES`."""
    return sum(weights[name] * feature.measure(prompt, text) for name, feature in TEXT_FEATURES.items())


def table_weights() -> dict[str, float]:
    """Return the weights as the table has them."""
    return {name: feature.weight for name, feature in TEXT_FEATURES.items()}


# ---- readers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimulatedReader:
    """One simulated annotator.

    ``weights`` of the features, the standard deviation of its ``noise``, what standing first is worth to it (``lean``),
    and how near it calls equal (``tie_within``), all in units of utility.
    """

    name: str
    weights: Mapping[str, float]
    noise: float
    lean: float
    tie_within: float
    seed: int
    patience: float = math.inf

    def record(self) -> Annotator:
        """Return the annotator as a fact for the store."""
        weighed = ", ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items())
        own = f"noise {self.noise:.2f}, first place {self.lean:.2f}, ties within {self.tie_within:.2f}"
        return Annotator(name=self.name, annotator_kind="simulated", note=f"simulated: {weighed}; {own}")

    def felt(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """Return how good each text seems, in the order shown: utility, noise, and the lean to the first."""
        last = max(1, len(texts) - 1)
        return [
            text_utility(prompt, text, self.weights) + self._noise(prompt, text) + self.lean * (1 - place / last)
            for place, text in enumerate(texts)
        ]

    def ranks(self, prompt: str, texts: Sequence[str]) -> tuple[int, ...]:
        """Return the ranks of texts in the order shown, 1 = best; what feels closer than the threshold ties."""
        felt = {f"{place:04d}": value for place, value in enumerate(self.felt(prompt, texts))}
        ranks = ranks_of(felt, self.tie_within)
        return tuple(ranks[place] for place in sorted(felt))

    def answer(self, task: ShownTask) -> AnswerJson | None:
        """Answer a task of the queue; kinds that ask for more than an opinion are skipped."""
        felt, whole = self.felt(task.prompt, task.texts), sum(self.weights.values())
        # Of what a text can have, two thirds make it good: most finished answers on the topic do.
        fractions = [1 / (1 + math.exp(-6 * (value / whole - 2 / 3))) for value in felt]
        return answer_of(task, Opinion([value / 0.25 for value in felt], fractions, self.tie_within / 0.25))

    def _noise(self, prompt: str, text: str) -> float:
        return random.Random(stream_seed(self.seed, "noise", self.name, prompt, text)).gauss(0.0, self.noise)


def one_reader(seed: int) -> SimulatedReader:
    """Return a reader with the table's own weights, little noise and no lean: one taste, as it is written down."""
    return SimulatedReader(f"simulated-{seed}", table_weights(), 0.1, 0.0, 0.05, seed)


def reader_panel(count: int, seed: int) -> tuple[SimulatedReader, ...]:
    """Return readers who differ in taste and in how far they can be relied on.

    Weights are about a third up or down, noise .1 to .8 (the median .3), the lean 0 to .2, ties within .05 to .2. The
    first of many are the same as the first of few.

    Raises:
        UsageError: ``count`` is below 1.
    """
    if count < 1:
        raise UsageError(f"a panel of {count} simulated annotators", hint="ask for at least 1")
    return tuple(_panel_reader(index, seed) for index in range(count))


def _panel_reader(index: int, seed: int) -> SimulatedReader:
    draw = random.Random(stream_seed(seed, "panel reader", index))
    weights = {name: weight * math.exp(draw.gauss(0.0, 0.35)) for name, weight in table_weights().items()}
    noise = min(0.8, max(0.1, 0.3 * math.exp(draw.gauss(0.0, 0.5))))
    lean, tie_within = draw.uniform(0.0, 0.2), draw.uniform(0.05, 0.2)
    return SimulatedReader(f"simulated-{seed}-{index:02d}", weights, noise, lean, tie_within, seed)


def describe_readers(readers: Sequence[SimulatedReader]) -> list[str]:
    """Return what a report must say about simulated readers, a sentence an item."""
    seen = "; ".join(f"{name} ({feature.weight:g}): {feature.reason}" for name, feature in TEXT_FEATURES.items())
    noises = [reader.noise for reader in readers]
    return [
        f"{len(readers)} simulated annotator{'s' * (len(readers) > 1)}, programs and not people, ranked the samples.",
        f"Their taste adds what can be seen of a text without understanding it, with its weight: {seen}.",
        f"The noise on a text's worth has standard deviation {min(noises):.2f} to {max(noises):.2f}. What comes out "
        "says how well the loop finds this taste, not what people want.",
    ]


def simulated_readers(request: AnnotatorRequest) -> Iterator[AnnotatorGroup]:
    """Yield the panel that ``ask.who: panel`` asks, for `accord simulate`: it answers what waits and adds no tasks.

    Raises:
        UsageError: Defects or tasks are asked of it.
    """
    if request.defects:
        raise UsageError("--defects has no effect on the readers", hint="add --annotators synthetic")
    if request.num_tasks:
        raise UsageError("the readers answer what waits, and bring no texts", hint="leave --tasks away")
    yield AnnotatorGroup(reader_panel(request.count, request.seed), (), "readers with a written-down taste, no people")
