"""Many policies on one scale, judges' agreement, sample-size advice, refusals, and the probes of a policy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import WriteRows

import accord
from accord.config import EvalConfig, SampleConfig, ScorerConfig
from accord.errors import DataError
from accord.evals.behaviour import HARMFUL, QUESTIONS, behaviour_of, plain_nll
from accord.evals.folders import Beside
from accord.evals.samples import LoadedPolicy
from accord.evals.standings import refuses, standings_of
from accord.stats import clusters_needed, ranked_policies

NAMES = ("start", "a", "b", "c")


def comparisons(theta: np.ndarray, prompts: int, rng: np.random.Generator, luck: float = 0.0) -> np.ndarray:
    """One comparison of every two policies a prompt, drawn by Bradley-Terry; topics of two prompts share a luck."""
    wins = np.zeros((prompts, len(theta), len(theta)))
    for p in range(prompts):
        if p % 2 == 0:
            own = theta + luck * rng.normal(size=len(theta))
        for i in range(len(theta)):
            for j in range(i):
                won = float(rng.random() < 1 / (1 + math.exp(own[j] - own[i])))
                wins[p, i, j], wins[p, j, i] = won, 1 - won
    return wins


def test_the_ranking_is_choixs_and_told_against_the_first() -> None:
    import choix

    theta = np.array([0.0, 0.8, -0.5, 0.3])
    wins = comparisons(theta, 60, np.random.default_rng(0))
    pairs = [(i, j) for one in wins for i in range(4) for j in range(4) for _ in range(int(one[i, j]))]
    wanted = choix.opt_pairwise(4, pairs)
    found = ranked_policies(NAMES, wins, resamples=20)
    for one in found:
        assert one.strength.value == pytest.approx(wanted[NAMES.index(one.name)] - wanted[0], abs=1e-4)
    assert [one.rank for one in found] == [1, 2, 3, 4]
    start = next(one for one in found if one.name == "start")
    assert start.strength.value == start.strength.low == start.strength.high == 0


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "luck", "least"), [(80, 0.0, 0.9), (40, 0.8, 0.86)])
def test_intervals_of_strengths_hold_what_drew_them(prompts: int, luck: float, least: float) -> None:
    """60 experiments of three strengths; with luck that topics share the truth is a little nearer to 0."""
    theta = np.array([0.0, 0.6, -0.4, 1.0])
    far = ranked_policies(NAMES, comparisons(theta, 4000, np.random.default_rng(99), luck), resamples=2)
    truth = {one.name: one.strength.value for one in far}
    inside = []
    for seed in range(60):
        wins = comparisons(theta, prompts, np.random.default_rng(seed), luck)
        topics = np.repeat(np.arange(prompts // 2), 2)
        for one in ranked_policies(NAMES, wins, topics, resamples=80, seed=seed):
            inside += [one.strength.low <= truth[one.name] <= one.strength.high] if one.name != "start" else []
    assert np.mean(inside) >= least


def test_who_wins_every_time_is_finitely_ahead_and_ties_are_even() -> None:
    always = np.zeros((30, 2, 2))
    always[:, 0, 1] = 1
    best = ranked_policies(("x", "y"), always, resamples=20)
    assert [one.name for one in best] == ["x", "y"] and -10 < best[1].strength.value < -3
    even = ranked_policies(("x", "y"), np.full((30, 2, 2), 0.5) * (1 - np.eye(2)), resamples=20)
    assert all(one.strength.value == pytest.approx(0) and one.rank == 1 for one in even)
    with pytest.raises(DataError, match="wins of shape"):
        ranked_policies(("x",), np.zeros((3, 1, 1)))


def test_advice_by_hand_and_in_simulation() -> None:
    """Of wins and losses by a coin, 785 show five points: ((1.96 + .8416) * .5 / .05)^2 = 784.9."""
    coin = np.array([0.0, 1.0] * 50_000)
    assert clusters_needed(coin) == 785
    assert clusters_needed(np.repeat(coin[:1000], 4), np.repeat(np.arange(1000), 4)) == clusters_needed(coin[:1000])
    assert clusters_needed([0.5, 0.5]) is None and clusters_needed([1.0]) is None
    rng = np.random.default_rng(0)
    shares = rng.random((2000, 785)) < 0.55
    error = shares.std(1, ddof=1) / math.sqrt(785)
    assert np.mean((shares.mean(1) - 0.5) / error > 1.96) == pytest.approx(0.8, abs=0.03)


def rows() -> list[dict[str, object]]:
    """Two prompts, two samples each: by the judge a beats the start everywhere, by the other on the first prompt."""
    said = {"start": ("I'm sorry, I cannot.", "Fine."), "a": ("Yes.", "Of course.")}
    found = []
    for name, texts in said.items():
        for p in range(2):
            for text in texts:
                score = float(name == "a")
                other = score if p == 0 else 0.5
                where = {"policy": name, "prompt": f"p{p}", "topic": f"t{p}", "completion": text}
                found.append({**where, "judge": score, "judge:other": other})
    return found


def test_standings_by_hand() -> None:
    found = standings_of(rows(), ["first", "other"])  # type: ignore[arg-type]
    assert [one.name for one in found.rankings["first"]] == ["a", "start"]
    (agreement,) = found.agreement
    assert agreement.judges == ("first", "other")
    assert agreement.alike.value == pytest.approx((1 + 0.5) / 2)  # the other judge's ties are half alike
    assert found.refusals["start"].value == 0.5 and found.refusals["a"].value == 0
    assert found.needed == {"a": None} and found.have == 2  # every topic says the same
    with pytest.raises(DataError, match="one policy"):
        standings_of([row for row in rows() if row["policy"] == "a"], ["first"])  # type: ignore[arg-type]


def pair(prompt: int, wins: list[float], *, candidate: str = "Yes.", alike: bool = False) -> dict[str, object]:
    """A pair that somebody compared: a completion of the policy beside one of the start."""
    texts = {"champion": "Fine.", "candidate": candidate, "candidate_wins": wins, "alike": alike}
    return {"read": f"p{prompt}", "topic": f"t{prompt}", "prompt": "as asked", **texts}


def test_judges_of_pairs_are_ranked_and_agree_by_hand() -> None:
    """People: for a on the first prompt, three of four against it on the second; a chat model likes it on both.

    The first judge prefers a on both: alike with people on one of two, with the chat model on both. The other judge
    ties on the second prompt, which is half alike. Alike texts and pairs that nobody judged say nothing.
    """
    people = {"a": [pair(0, [1.0]), pair(1, [0.0, 0.0, 1.0, 0.0]), pair(1, [], candidate="Of course.")]}
    chat = {"a": [pair(0, [1.0]), pair(1, [1.0]), pair(0, [0.5], candidate="Of course.", alike=True)]}
    found = standings_of(rows(), ["first", "other"], {"people": people, "chat": chat})  # type: ignore[arg-type]
    assert set(found.rankings) == {"first", "other", "people", "chat"}
    strength = {one.name: one.strength.value for one in found.rankings["people"]}
    assert strength["a"] == pytest.approx(math.log(1.25 / 0.75)) and strength["start"] == 0  # of 2 it wins 1.25
    alike = {one.judges: one.alike for one in found.agreement}
    assert alike["first", "people"].value == 0.5 and alike["first", "chat"].value == 1
    assert alike["other", "people"].value == pytest.approx((1 + 0.5) / 2)
    assert alike["people", "chat"].value == 0.5 and alike["people", "chat"].n == 2
    assert ("first", "other") in alike


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I\u2019m sorry, but I can\u2019t help with that.", True),
        ("As an AI, I must decline.", True),
        ("I apologize, that is not appropriate.", True),
        ("Sure! First you take the bread.", False),
        ("A long tale. " * 30 + "I cannot go on.", False),  # it began otherwise
        ("", False),
    ],
)
def test_refusals_are_told_by_how_an_answer_begins(text: str, is_refusal: bool) -> None:
    assert refuses(text) is is_refusal


def test_plain_texts_cost_what_a_plain_forward_says(policy_folder: Path) -> None:
    policy = LoadedPolicy.load(policy_folder)
    texts = ["The old lighthouse keeper counted ships.", "Bread wants time."]
    found = plain_nll(policy, texts)
    import torch

    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([policy.tokenizer.encode(text)])
        with torch.no_grad():
            logp = policy.model(ids).float().log_softmax(-1)[0, :-1]
        total -= float(logp.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert found.value == pytest.approx(total / count, rel=1e-4) and found.n == 2


def test_a_policy_without_room_for_the_probes_is_left_out_with_the_reason(policy_folder: Path) -> None:
    with pytest.raises(DataError, match="no room for the probes"):
        behaviour_of(LoadedPolicy.load(policy_folder))


def test_a_chat_model_is_probed_by_its_template(chat_model: Path, write_rows: WriteRows) -> None:
    texts = write_rows("plain.jsonl", [{"text": "The chess club met on Tuesdays."}, {"text": "He wrote a letter."}])
    found = behaviour_of(LoadedPolicy.load(chat_model), texts)
    assert found.knows.n == len(QUESTIONS) == found.gives_in.n and found.refuses_harm.n == len(HARMFUL)
    assert found.plain_nll is not None and found.perplexity == pytest.approx(math.exp(found.plain_nll.value))
    assert 0 <= found.still_knows.value <= 1


@pytest.mark.slow
def test_a_page_shows_the_standings_and_a_second_judge_draws_nothing(
    policy_folder: Path, letters_folder: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_judges.py").write_text(
        "def letters(prompts, texts):\n    return [sum(c in 'abcd' for c in t) / (1 + len(t)) for t in texts]\n"
        "def short(prompts, texts):\n    return [-len(t) for t in texts]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prompts = write_rows("test.jsonl", [{"prompt": f"The fog {i}"} for i in range(6)])

    def compare(out: str, *names: str) -> dict[str, object]:
        judges = {name: ScorerConfig(function=f"some_judges:{name}") for name in names}
        accord.evaluate(
            EvalConfig(judges=judges, samples_per_prompt=2, bootstrap=100),
            policies={"taught": letters_folder, "same": policy_folder},
            reference=policy_folder,
            data=prompts,
            output_dir=tmp_path / out,
            sampling=SampleConfig(max_new_tokens=8),
            beside=Beside(cache=tmp_path / "cache"),
        )
        return json.loads((tmp_path / out / "eval/beside.json").read_text())  # type: ignore[no-any-return]

    first = compare("one", "letters")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    second = compare("two", "short", "letters")
    assert len(kept) == 3 and {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept
    assert first["standings"]["rankings"]["letters"][0]["name"] == "taught"  # type: ignore[index]
    assert second["standings"]["rankings"]["letters"] == first["standings"]["rankings"]["letters"]  # type: ignore[index]
    assert len(second["standings"]["agreement"]) == 1  # type: ignore[index]
    page = (tmp_path / "two/report.html").read_text()
    assert "All on one scale" in page and "to see 5 points" in page and "no room for the probes" in page
