"""Surface measures against hand counts and a second, naive implementation of BLEU."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from accord.errors import DataError
from accord.evals.metrics import (
    distinct_n,
    distinct_share,
    log_words,
    mean_repetition,
    repetition,
    self_bleu,
    sentence_end_share,
    surface_numbers,
    word_count,
    words_and_marks,
)


def test_tokens_are_words_and_marks() -> None:
    assert words_and_marks("It's GOOD, isn\u2019t it?") == ["it's", "good", ",", "isn\u2019t", "it", "?"]
    assert word_count("  two  words. ") == 2
    assert log_words("two words") == pytest.approx(math.log(3))


def test_distinct_n_by_hand() -> None:
    # bigrams: "a b", "b a", "a b" | "a b" -> 2 distinct of 4; unigrams: a, b of 6
    assert distinct_n(["a b a b", "A b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["a b a b", "A b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a", ""], 2) == 0


def test_distinct_share_ignores_white_space_only() -> None:
    assert distinct_share(["a b", " a  b\n", "A b", "c"]) == pytest.approx(3 / 4)
    assert distinct_share(["same"] * 5) == pytest.approx(1 / 5)


def test_repetition_golden() -> None:
    assert repetition("a b a b a b a b a") == pytest.approx(0.714286, abs=1e-6)  # 1 - 2/7
    assert repetition("a b c d e") == 0
    assert repetition("a b") == 0
    assert mean_repetition(["a b a b a b a b a", "a b c d e"]) == pytest.approx(0.357143, abs=1e-6)


def test_sentence_ends() -> None:
    ended = ["Yes.", "No! ", 'He said "yes."', "Really?)", "So\u2026", "and \u201cfine.\u201d"]
    assert sentence_end_share(ended) == 1
    assert sentence_end_share([*ended, "it was", "", "well,", "3.5 stars"]) == pytest.approx(0.6)


def test_self_bleu_by_hand() -> None:
    # "a b c d" against {"a b c e", "x"}: 3/4, 2/3, 1/2 and no 4-gram -> .1/1; the nearest length is its own.
    # (3/4 * 2/3 * 1/2 * .1) ** (1/4) = .397635; "a b c e" likewise; "x" shares nothing: 0. Mean .265090.
    assert self_bleu(["a b c d", "a b c e", "x"]) == pytest.approx(0.265090, abs=1e-6)


def test_self_bleu_of_a_collapsed_and_of_a_varied_policy() -> None:
    assert self_bleu(["great fun!"] * 6) == pytest.approx(1)  # orders longer than the text do not count
    assert self_bleu(["a b c", "d e f", "g h i"]) == 0
    assert self_bleu(["", ""]) == 0


def test_brevity_penalty_by_hand() -> None:
    # "a b c d" of 4 words against one of 6: exp(1 - 6/4) times 1; "a b c d e f" against 4: 4/6, 3/5, 2/4, 1/3
    long = (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert self_bleu(["a b c d", "a b c d e f"]) == pytest.approx((math.exp(-0.5) + long) / 2)


def _naive_bleu(hypothesis: list[str], references: list[list[str]]) -> float:
    logs = []
    for n in range(1, 5):
        grams = Counter(tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1))
        if not grams:
            break
        matched = 0
        for gram, count in grams.items():
            most = max(sum(tuple(r[i : i + n]) == gram for i in range(len(r))) for r in references)
            matched += min(count, most)
        if matched == 0 and n == 1:
            return 0.0
        logs.append(math.log((matched or 0.1) / sum(grams.values())))
    if not logs:
        return 0.0
    nearest = sorted(references, key=lambda r: (abs(len(r) - len(hypothesis)), len(r)))[0]
    penalty = min(1.0, math.exp(1 - len(nearest) / len(hypothesis)))
    return penalty * math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_equals_a_naive_one(seed: int) -> None:
    rng = random.Random(seed)
    split = [[rng.choice("abcd") for _ in range(rng.randrange(12))] for _ in range(15)]
    expected = [_naive_bleu(words, split[:i] + split[i + 1 :]) for i, words in enumerate(split)]
    assert self_bleu([" ".join(words) for words in split]) == pytest.approx(sum(expected) / 15)


def test_self_bleu_is_capped_by_a_seeded_draw() -> None:
    texts = [f"word{i % 7} of text{i} and word{i % 5}" for i in range(60)]
    capped = self_bleu(texts, cap=20, seed=3)
    assert capped == self_bleu(texts, cap=20, seed=3)
    assert capped != self_bleu(texts, cap=20, seed=4)
    assert self_bleu(texts, cap=60, seed=3) == self_bleu(texts, cap=60, seed=4)


def test_describe_names_them_all() -> None:
    texts = ["One two three.", "One two three four five."]
    numbers = surface_numbers(texts)
    assert numbers["words_mean"] == 4
    assert numbers["words_p95"] == pytest.approx(4.9)  # 3 + .95 * 2
    assert numbers["sentence_end_share"] == 1
    assert numbers["distinct_share"] == 1
    assert numbers["self_bleu"] == self_bleu(texts)
    assert numbers["distinct_2"] == pytest.approx(6 / 8)  # 3 + 5 bigrams; "one two" and "two three" stand twice
    assert numbers["distinct_1"] == pytest.approx(6 / 10)
    assert numbers["repetition"] == 0


@pytest.mark.parametrize(
    "measure", [distinct_n, distinct_share, mean_repetition, sentence_end_share, self_bleu, surface_numbers]
)
def test_no_texts_is_an_error(measure: object) -> None:
    with pytest.raises(DataError):
        measure([])  # type: ignore[operator]
