"""Texts as sparse rows of TF-IDF: what the judge and the reward model's baselines read. Torch-free.

Presence, not frequency: a term counts once however often a text repeats it, so repeating a good word buys nothing.
Terms carry their kind (``w:masterful``, ``c: mas``), so one vocabulary holds words and characters side by side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.errors import DataError
from accord.stats import FloatArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array
else:
    csr_array = Any

Terms = Callable[[str], set[str]]

WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation."""
    return WORD.findall(text.lower())


def word_terms(text: str) -> set[str]:
    """Single words and pairs of neighbouring words."""
    found = words(text)
    return {f"w:{word}" for word in found} | {f"w:{a} {b}" for a, b in pairwise(found)}


def char_terms(text: str) -> set[str]:
    """Runs of 2 to 5 characters inside each piece between white space, the piece padded with a space on both sides."""
    terms: set[str] = set()
    for piece in set(text.lower().split()):
        padded = f" {piece} "
        for size in range(2, 6):
            terms.update(f"c:{padded[i : i + size]}" for i in range(len(padded) - size + 1))
    return terms


def fit_vocabulary(texts: Iterable[str], terms: Terms, min_texts: int = 2) -> tuple[list[str], FloatArray]:
    """Return the terms of at least ``min_texts`` texts, sorted, and their idf = 1 + log((1 + N) / (1 + df))."""
    found = [terms(text) for text in texts]
    counts = Counter(term for one in found for term in one)
    vocabulary = sorted(term for term, count in counts.items() if count >= min_texts)
    if not vocabulary:
        raise DataError(f"no term stands in {min_texts} of the {len(found)} texts", hint="give more texts")
    frequency = np.array([counts[term] for term in vocabulary], dtype=np.float64)
    return vocabulary, 1 + np.log((1 + len(found)) / (1 + frequency))


def tfidf_rows(texts: Sequence[str], terms: Terms, vocabulary: Sequence[str], idf: FloatArray) -> csr_array:
    """(N, V) idf of the terms each text holds, 0 elsewhere; not normalised."""
    from scipy.sparse import csr_array

    number = {term: i for i, term in enumerate(vocabulary)}
    rows = [sorted(number[term] for term in terms(text) if term in number) for text in texts]
    columns = np.fromiter((column for row in rows for column in row), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    return csr_array((idf[columns], columns, starts), shape=(len(texts), len(vocabulary)))


def squared_norms(rows: csr_array) -> FloatArray:
    """(N,) the evidence in each text: the sum of its terms' squared idf."""
    return np.asarray(rows.multiply(rows).sum(axis=1), dtype=np.float64).ravel()


def scale_rows(rows: csr_array, factor_N: FloatArray) -> csr_array:
    """Return each row times its factor."""
    from scipy.sparse import diags_array

    return (diags_array(factor_N) @ rows).tocsr()


def unit_rows(rows: csr_array) -> csr_array:
    """Return each row at Euclidean length 1; a row without terms stays zero."""
    norm_N = np.sqrt(squared_norms(rows))
    return scale_rows(rows, np.divide(1.0, norm_N, out=np.zeros_like(norm_N), where=norm_N > 0))
