"""The judge against scikit-learn, brute-force hold-out and hand arithmetic, and its sense of length."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accord.config import ScorerConfig
from accord.demo.probes import film_probes
from accord.errors import DataError, UsageError
from accord.evals.judges import ALPHAS, TextJudge, fit_text_judge, load_text_judge, open_judges
from accord.evals.probes import Probe, run_probes
from accord.evals.tfidf import char_terms, word_terms

GOOD = ["superb", "moving", "funny", "warm", "clever", "gripping"]
BAD = ["dull", "clumsy", "tedious", "shallow", "noisy", "stale"]
PLAIN = [f"{kind}{i}" for kind in ("plot", "cast", "music", "scene", "hero") for i in range(16)]


def _reviews(seed: int = 0, films: int = 40, each: int = 10) -> tuple[list[str], list[float], list[str]]:
    """Made-up reviews of 2 to 24 words; one to three are good or bad words, their balance and noise make the rating."""
    rng = random.Random(seed)
    texts, ratings, names = [], [], []
    for film in range(films):
        for _ in range(each):
            told = [rng.choice([1, 1, 1, -1, -1, -1, 0]) for _ in range(rng.randint(1, 3))]
            words = [rng.choice(GOOD if one > 0 else BAD if one < 0 else PLAIN) for one in told]
            words += [rng.choice(PLAIN) for _ in range(rng.randint(2, 24) - len(words))]
            rng.shuffle(words)
            texts.append(" ".join(words).capitalize() + ".")
            ratings.append(max(-4.0, min(4.0, 1.3 * sum(told) + rng.gauss(0, 0.5))))
            names.append(f"film {film}")
    return texts, ratings, names


@pytest.fixture(scope="module")
def plain() -> TextJudge:
    return fit_text_judge(*_reviews(), length_aware=False)


@pytest.fixture(scope="module")
def judge() -> TextJudge:
    return fit_text_judge(*_reviews())


def test_terms_by_hand() -> None:
    assert word_terms("A fine, fine film") == {"w:a", "w:fine", "w:film", "w:a fine", "w:fine fine", "w:fine film"}
    assert char_terms("Oh") == {"c: o", "c:oh", "c:h ", "c: oh", "c:oh ", "c: oh "}


def _film_reviews() -> tuple[list[str], list[float], list[str]]:
    """The reviews with a word and a rating of each film's own: leaving out single texts would reward learning films."""
    texts, ratings, films = _reviews(films=20)
    offset = {film: random.Random(film).gauss(0, 2) for film in films}
    own = [f"{text[:-1]} {film.replace(' ', '')}." for text, film in zip(texts, films, strict=True)]
    return own, [rating + offset[film] for rating, film in zip(ratings, films, strict=True)], films


@pytest.mark.slow
def test_the_plain_judge_is_scikit_learns_ridge_on_its_tfidf() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_union

    texts, ratings, films = _film_reviews()
    plain = fit_text_judge(texts, ratings, films, length_aware=False)
    shared = {"min_df": 2, "binary": True}
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+(?:'\w+)*", **shared),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared),
    )
    rows, y, names = features.fit_transform(texts), np.array(ratings), np.array(films)

    oracle = Ridge(alpha=plain.alpha, fit_intercept=False, solver="cholesky").fit(rows, y - y.mean())
    fresh = _reviews(seed=1, films=4)[0]
    expected = np.clip(y.mean() + oracle.predict(features.transform(fresh)), y.min(), y.max())
    assert plain.score_texts(fresh) == pytest.approx(expected, abs=1e-6)

    gram = (rows @ rows.T).toarray()

    def held_out_error(alpha: float, labels: np.ndarray) -> float:  # refitted without each label in turn
        error = 0.0
        for label in set(labels.tolist()):
            out, kept = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
            dual = np.linalg.solve(gram[np.ix_(kept, kept)] + alpha * np.eye(len(kept)), y[kept] - y.mean())
            error += float(np.sum((gram[np.ix_(out, kept)] @ dual + y.mean() - y[out]) ** 2))
        return error

    by_film = {alpha: held_out_error(alpha, names) for alpha in ALPHAS}
    by_text = {alpha: held_out_error(alpha, np.arange(len(y))) for alpha in ALPHAS}
    assert plain.alpha == min(by_film, key=lambda alpha: by_film[alpha])
    assert plain.alpha != min(by_text, key=lambda alpha: by_text[alpha])


@pytest.mark.slow
def test_it_learns_what_people_meant(judge: TextJudge) -> None:
    texts, ratings, _ = _reviews(seed=2)
    assert np.corrcoef(judge.score_texts(texts), ratings)[0, 1] > 0.75


def test_slogans_win_with_the_plain_judge_and_not_with_this_one(plain: TextJudge, judge: TextJudge) -> None:
    slogans = ["Superb!", "A moving plot1.", "Funny, warm.", "clever", "gripping and superb"]
    full = [
        "Superb cast1 and moving plot3, with scene4 and scene9 and music2 for hero3, hero7 and hero9 in scene1.",
        "A warm hero1, clever plot5 and plot8, scene2 and scene3, music7 and music9 for cast4 and cast6.",
    ]
    assert plain.score_texts(slogans).min() > plain.score_texts(full).max()
    assert judge.score_texts(slogans).max() < judge.score_texts(full).min() - 1
    assert plain.prior == 0 < judge.prior


def test_repeating_a_text_or_a_word_buys_nothing(judge: TextJudge) -> None:
    word, repeated, padded = judge.score_texts(["superb", "superb " * 30, " superb\n"])
    assert word == padded
    assert repeated <= word + 0.5  # "superb superb" is a pair of words the vocabulary may know
    assert (
        repeated < judge.score_texts(["Superb cast1, moving plot2 and plot4, funny scene3, warm music5 and music6."])[0]
    )


def test_thin_texts_sink_linearly_to_the_floor(judge: TextJudge) -> None:
    ratings = _reviews()[1]
    assert judge.low == pytest.approx(np.percentile(ratings, 5))
    assert judge.score_texts(["", "  \n", "zzz qqq xxx"]) == pytest.approx([judge.low] * 3)
    thin = replace(judge, thin_words=4.0)
    never = replace(judge, thin_words=0.0)
    text = ["superb cast1, moving"]  # three known words: three quarters of the plain score, one of the floor
    assert thin.score_texts(text) == pytest.approx(0.75 * never.score_texts(text) + 0.25 * judge.low)


def test_no_score_leaves_the_scale_people_used(judge: TextJudge) -> None:
    ratings = _reviews()[1]
    stuffed = judge.score_texts([" ".join(GOOD * 2), " ".join(BAD * 2)])
    assert min(ratings) <= stuffed.min() and stuffed.max() <= max(ratings)
    assert stuffed[0] > 2 and stuffed[1] < -2


def test_scores_do_not_depend_on_company_or_order(judge: TextJudge) -> None:
    texts = _reviews(seed=3, films=3)[0]
    together = judge.score_texts(texts)
    assert judge.score_texts(texts[::-1])[::-1] == pytest.approx(together, abs=1e-12)
    assert [judge.score_texts([text])[0] for text in texts] == pytest.approx(together, abs=1e-12)
    assert judge.score_texts([]).shape == (0,)


def test_save_and_load_keep_every_bit(judge: TextJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge")
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == ["judge.json", "judge.safetensors"]
    loaded = load_text_judge(tmp_path / "judge")
    texts = _reviews(seed=4)[0]
    assert np.array_equal(loaded.score_texts(texts), judge.score_texts(texts))
    assert loaded.hash == judge.hash
    judge.save(tmp_path / "judge")  # over an older one
    assert load_text_judge(tmp_path / "judge").hash == judge.hash


def test_fitting_is_deterministic_and_the_hash_tells_judges_apart(judge: TextJudge, plain: TextJudge) -> None:
    texts, ratings, films = _reviews()
    assert fit_text_judge(texts, ratings, films).hash == judge.hash != plain.hash
    moved = replace(judge, coefficients=judge.coefficients + 1e-9)
    weighed = replace(judge, chars=replace(judge.chars, idf=judge.chars.idf * 1.001))
    renamed = replace(judge, words=replace(judge.words, vocabulary=("w:else", *judge.words.vocabulary[1:])))
    lower = replace(judge, low=judge.low - 1e-9)
    assert len({one.hash for one in (judge, moved, weighed, renamed, lower)}) == 5


def _other_number(folder: Path) -> None:
    header = json.loads((folder / "judge.json").read_text())
    header["numbers"]["low"] += 1
    (folder / "judge.json").write_text(json.dumps(header))


def _flipped_byte(folder: Path) -> None:
    data = bytearray((folder / "judge.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "judge.safetensors").write_bytes(bytes(data))


def _cut_short(folder: Path) -> None:
    data = (folder / "judge.safetensors").read_bytes()
    (folder / "judge.safetensors").write_bytes(data[:100])


def _no_arrays(folder: Path) -> None:
    (folder / "judge.safetensors").unlink()


def _no_header(folder: Path) -> None:
    (folder / "judge.json").unlink()


def _not_a_judge(folder: Path) -> None:
    (folder / "judge.json").write_text("[]")


@pytest.mark.parametrize("damage", [_other_number, _flipped_byte, _cut_short, _no_arrays, _no_header, _not_a_judge])
def test_a_damaged_judge_is_refused(judge: TextJudge, tmp_path: Path, damage: object) -> None:
    judge.save(tmp_path / "judge")
    damage(tmp_path / "judge")  # type: ignore[operator]
    with pytest.raises(DataError):
        load_text_judge(tmp_path / "judge")


def test_bad_ratings_are_refused() -> None:
    texts, ratings, films = _reviews(films=3)
    for bad in (
        (texts, ratings[:-1], films),
        (texts, [float("nan"), *ratings[1:]], films),
        (texts, ratings, ["a"] * 24),
    ):
        with pytest.raises(DataError):
            fit_text_judge(*bad)
    with pytest.raises(DataError, match="no term"):
        fit_text_judge(["one", "two"], [1.0, 2.0], ["a", "b"])


def test_probes_mark_what_reaches_the_lowest_reference() -> None:
    assert {probe.kind for probe in film_probes()} == {"hack", "reference", "negative"}
    assert len({probe.name for probe in film_probes()}) == len(film_probes())

    def by_length(texts: list[str]) -> list[float]:  # a scorer that likes brevity: every hack but long ones reaches
        return [-float(len(text)) for text in texts]

    results = {result.probe.name: result for result in run_probes(by_length, film_probes())}
    assert results["slogan"].outscores_reference and results["empty"].outscores_reference
    assert not any(result.outscores_reference for result in results.values() if result.probe.kind == "reference")
    lowest = min(result.score for result in results.values() if result.probe.kind == "reference")
    assert results["full negative: comedy"].outscores_reference == (results["full negative: comedy"].score >= lowest)


def test_probes_without_a_reference_are_refused() -> None:
    with pytest.raises(DataError, match="no probe is a reference"):
        run_probes(lambda texts: [0.0] * len(texts), [Probe("slogan", "hack", "Superb!")])


def test_a_text_judge_is_a_scorer_of_the_bare_completion(judge: TextJudge) -> None:
    texts = _reviews(seed=5, films=2)[0]
    scores = judge.score([("a prompt that it does not read", f"  {text}\n") for text in texts])
    assert scores.tolist() == judge.score_texts(texts).tolist()
    assert judge.score([]).tolist() == []


def polite(prompts: list[str], completions: list[str]) -> list[float]:
    """A judge of one's own: whether the completion thanks for what the prompt gives."""
    return [float(prompt in completion) for prompt, completion in zip(prompts, completions, strict=True)]


def test_judges_are_opened_by_name_in_their_order() -> None:
    configs = [
        ScorerConfig(name="thanks", function=f"{__name__}:polite"),
        ScorerConfig(name="ends", regex=r"\.$"),
    ]
    judges = open_judges(configs)
    assert list(judges) == ["thanks", "ends"]
    pairs = [("bread", "bread for all"), ("bread", "no.")]
    assert [judge.scorer.score(pairs).tolist() for judge in judges.values()] == [[1, 0], [0, 1]]


def test_no_judge_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="no judge is named"):
        open_judges([])
    with pytest.raises(UsageError, match="two judges share a name"):
        open_judges([ScorerConfig(regex="a"), ScorerConfig(regex="b")])


@pytest.mark.slow
@pytest.mark.skipif("ACCORD_TEST_ARTEFACTS" not in os.environ, reason="needs the downloaded film reviews")
def test_on_the_real_ratings_no_hack_reaches_a_full_positive_review(tmp_path: Path) -> None:
    from accord.demo import film_reviews
    from accord.evals.pair_baseline import length_scores
    from accord.evals.pairs import RatedCompletion, pair_accuracy, rated_pairs

    data = film_reviews.read_reviews(film_reviews.fetch(tmp_path, os.environ["ACCORD_TEST_ARTEFACTS"]))
    own = [review for review in data.rated if film_reviews.film_split(review.film) == "judge"]
    valid = [review for review in data.rated if film_reviews.film_split(review.film) == "valid"]
    real = fit_text_judge([r.text for r in own], [r.mean for r in own], [r.film for r in own])
    texts = [r.text for r in valid]
    pairs = rated_pairs([RatedCompletion(r.film, r.text, r.film, r.mean) for r in valid]).pairs
    assert pair_accuracy(real.score_texts(texts), pairs).low > pair_accuracy(length_scores(texts), pairs).high
    assert not [
        result.probe.name for result in run_probes(real.score_texts, film_probes()) if result.outscores_reference
    ]
