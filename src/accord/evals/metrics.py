"""What a set of completions is like as text: diversity, repetition, length, endings. Torch-free.

Every number here is about surface form. It says whether a policy has collapsed, not whether it is good. Words are
runs of letters, digits and inner apostrophes, lower-cased; a mark of punctuation is a token of its own in n-grams.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from accord.errors import DataError

TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*$")
NO_MATCH = 0.1  # counted in place of zero matching n-grams, so that one missing order does not erase the others


def words_and_marks(text: str) -> list[str]:
    """Lower-cased words and marks of punctuation."""
    return TOKEN.findall(text.lower())


def ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(items[start:] for start in range(n)), strict=False)


def word_count(text: str) -> int:
    """Length in words: pieces between white space."""
    return len(text.split())


def log_words(text: str) -> float:
    """log(1 + words), the measure of length in correlations."""
    return math.log1p(word_count(text))


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of the whole set over all its n-grams (Li et al. 2016); 0 where there is none.

    It falls as a set grows, so compare sets with equal numbers of texts and mind their length.
    """
    counts = Counter(gram for text in _some(texts) for gram in ngrams(words_and_marks(text), n))
    return len(counts) / counts.total() if counts else 0.0


def distinct_share(texts: Sequence[str]) -> float:
    """Share of distinct texts after white space is normalised: 1 = no text stands twice, 1/N = all are the same."""
    return len({" ".join(text.split()) for text in _some(texts)}) / len(texts)


def repetition(text: str, n: int = 3) -> float:
    """1 - distinct / total n-grams within one text; 0 for a text without n-grams."""
    counts = Counter(ngrams(words_and_marks(text), n))
    return 1 - len(counts) / counts.total() if counts else 0.0


def mean_repetition(texts: Sequence[str], n: int = 3) -> float:
    return float(np.mean([repetition(text, n) for text in _some(texts)]))


def sentence_end_share(texts: Sequence[str]) -> float:
    """Share of texts whose last mark closes a sentence (. ! ? or an ellipsis, quotes and brackets may follow)."""
    return sum(bool(SENTENCE_END.search(text.rstrip())) for text in _some(texts)) / len(texts)


def self_bleu(texts: Sequence[str], n: int = 4, cap: int = 500, seed: int = 0) -> float:
    """Mean BLEU-n of each text against all others of the set (Zhu et al. 2018): 0 = nothing shared, 1 = all alike.

    Sentence BLEU (Papineni et al. 2002): geometric mean of the clipped precisions of orders 1..n, times the brevity
    penalty to the reference nearest in length. Orders longer than the text do not count; an order without a match
    counts ``NO_MATCH`` matches; a text that shares no word scores 0. The value grows with the size of the set, so
    larger sets are cut to ``cap`` texts drawn by ``seed``; compare sets of one size.
    """
    if len(texts) < 2:
        raise DataError(f"self-BLEU of {len(texts)} text", why="each text is compared with the others, so it needs two")
    chosen = list(texts)
    if len(chosen) > cap:
        chosen = [chosen[i] for i in sorted(np.random.default_rng(seed).choice(len(chosen), cap, replace=False))]
    split = [words_and_marks(text) for text in chosen]
    precisions = np.stack([_clipped_precisions(split, order) for order in range(1, n + 1)], axis=1)
    penalties = _brevity_penalties([len(words) for words in split])
    return float(np.mean([_bleu(row, penalty) for row, penalty in zip(precisions, penalties, strict=True)]))


def _clipped_precisions(split: list[list[str]], order: int) -> np.ndarray:
    """(N,) precision of each text's n-grams against all others; NaN where the text has none, 0 where none matches.

    An n-gram's clip is its largest count in any *other* text: the largest of the set, or, for the one text that
    holds the largest, the second largest. That makes the whole linear in the number of tokens.
    """
    counts = [Counter(ngrams(words, order)) for words in split]
    largest: dict[tuple[str, ...], tuple[int, int, int]] = {}  # n-gram -> largest count, its text, second largest
    for i, count in enumerate(counts):
        for gram, times in count.items():
            top, owner, second = largest.get(gram, (0, -1, 0))
            largest[gram] = (times, i, top) if times > top else (top, owner, max(second, times))
    result = np.full(len(split), math.nan)
    for i, count in enumerate(counts):
        if count:
            clips = ((times, largest[gram]) for gram, times in count.items())
            matches = sum(min(times, second if owner == i else top) for times, (top, owner, second) in clips)
            result[i] = (matches or (NO_MATCH if order > 1 else 0)) / count.total()
    return result


def _brevity_penalties(lengths: list[int]) -> list[float]:
    """exp(1 - r/c) where the text (c) is shorter than the other text nearest in length (r; of two, the shorter)."""
    ordered = sorted(lengths)
    penalties = []
    for length in lengths:
        here = bisect_left(ordered, length)
        others = ordered[max(0, here - 1) : here] + ordered[here + 1 : here + 2]
        nearest = min(others, key=lambda other: (abs(other - length), other))
        penalties.append(math.exp(1 - nearest / length) if 0 < length < nearest else 1.0)
    return penalties


def _bleu(precisions: np.ndarray, penalty: float) -> float:
    counted = precisions[~np.isnan(precisions)]
    if len(counted) == 0 or counted[0] == 0:
        return 0.0
    return penalty * math.exp(float(np.mean(np.log(counted))))


def surface_numbers(texts: Sequence[str]) -> dict[str, float]:
    """Return the numbers above for one set of completions, under the names the report uses."""
    words = [word_count(text) for text in _some(texts)]
    return {
        "words_mean": float(np.mean(words)),
        "words_p95": float(np.percentile(words, 95)),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "distinct_share": distinct_share(texts),
        "self_bleu": self_bleu(texts),
        "repetition": mean_repetition(texts),
        "sentence_end_share": sentence_end_share(texts),
    }


def _some(texts: Sequence[str]) -> Sequence[str]:
    if not len(texts):
        raise DataError("no texts to measure", hint="give at least one completion")
    return texts
