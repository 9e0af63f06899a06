"""Best of n: what choosing costs in KL, what it gains, and the command that does it. Golden values: check 19."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WriteRows
from test_cli import Done

from accord.config import SampleConfig, ScorerConfig
from accord.errors import UsageError
from accord.loop import run
from accord.scoring import RewardModel, sample
from accord.scoring.sample_file import best_rows
from accord.stats import best_of_n_kl_bound, best_of_n_scores


def test_the_bound_holds_where_scores_tie() -> None:
    """n = 4 from m equally likely outcomes with m different scores: outcome i wins with (i^4 - (i - 1)^4) / m^4."""
    for outcomes, exact in ((4, 0.590310), (16, 0.633370), (256, 0.636283)):
        chance = [(i**4 - (i - 1) ** 4) / outcomes**4 for i in range(1, outcomes + 1)]
        kl = sum(p * math.log(p * outcomes) for p in chance)
        assert kl == pytest.approx(exact, abs=1e-6)
        assert kl < best_of_n_kl_bound(4)


@pytest.mark.parametrize(("n", "wins"), [(2, 0.666667), (4, 0.8), (16, 0.941176), (64, 0.984615)])
def test_best_of_n_beats_a_fresh_sample_n_times_in_n_plus_one(n: int, wins: float) -> None:
    """Against the i-th of N ordered samples a fresh one loses with chance i / (N + 1)."""
    ordered = np.arange(1, 201)[None]
    assert best_of_n_scores(ordered / 201, ordered, n)[0] == pytest.approx(wins, abs=1e-6)


class ByText:
    """Scores that the test wrote down."""

    def __init__(self, **scores: float) -> None:
        self.scores = scores

    def score(self, pairs: Any) -> Any:
        import torch

        return torch.tensor([self.scores[completion] for _, completion in pairs])


def test_of_each_n_the_best_is_kept_and_ranked_within_its_prompt() -> None:
    rows = [{"prompt": "p", "completion": c} for c in "abcd"] + [{"prompt": "q", "completion": c} for c in "efgh"]
    scorer = ByText(a=1.0, b=3.0, c=2.5, d=2.0, e=0.0, f=0.0, g=-1.0, h=0.0)
    kept = best_rows(rows, scorer, 2, per_prompt=2)
    # of a, b: b; of c, d: c; of e, f, which are equal: the earlier; of g, h: h, which is as good as e
    assert [(row["completion"], row["score"], row["rank"]) for row in kept] == [
        ("b", 3.0, 1),
        ("c", 2.5, 2),
        ("e", 0.0, 1),
        ("h", 0.0, 1),
    ]
    assert all(row["best_of"] == 2 for row in kept)


def test_the_best_of_four_are_the_best_of_the_samples_that_would_be_drawn(
    policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("prompts.jsonl", [{"prompt": "He:"}, {"prompt": "The village:"}])
    given: dict[str, Any] = {"model": policy_folder, "data": data, "seed": 3}
    plain = sample(SampleConfig(samples_per_prompt=8, max_new_tokens=6), **given, output=tmp_path / "all.jsonl").output
    best = sample(
        SampleConfig(samples_per_prompt=2, max_new_tokens=6, best_of=4),
        **given,
        output=tmp_path / "best.jsonl",
        reward_model=reward_folder,
    )
    drawn = [json.loads(line) for line in plain.read_text().splitlines()]
    kept = [json.loads(line) for line in best.output.read_text().splitlines()]
    scores = RewardModel.load(reward_folder).score([(row["prompt"], row["completion"]) for row in drawn]).tolist()
    for place, row in enumerate(kept):
        four = range(4 * place, 4 * place + 4)
        winner = max(four, key=lambda i: scores[i])
        assert row["completion"] == drawn[winner]["completion"] and row["logp"] == drawn[winner]["logp"]
        assert row["score"] == pytest.approx(max(scores[i] for i in four), abs=1e-5)
    assert best.num_samples == 4 and best.best_of == 4
    assert best.kl_bound == pytest.approx(0.636294, abs=1e-6)
    assert best.mean_score == pytest.approx(sum(row["score"] for row in kept) / 4)


def test_scores_alone_leave_every_sample(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("prompts.jsonl", [{"prompt": "He:"}])
    config = SampleConfig(samples_per_prompt=3, max_new_tokens=4)
    rewards = [ScorerConfig(regex="e")]
    made = sample(config, model=policy_folder, data=data, output=tmp_path / "s.jsonl", rewards=rewards)
    rows = [json.loads(line) for line in made.output.read_text().splitlines()]
    assert [row["score"] for row in rows] == [float("e" in row["completion"]) for row in rows]
    assert made.kl_bound == 0.0 and made.num_samples == 3


def test_best_of_needs_something_to_choose_by(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("prompts.jsonl", [{"prompt": "He:"}])
    argv = ("sample", "--model", str(policy_folder), "--data", str(data), "-o", str(tmp_path / "s"), "sample.best_of=4")
    done = Done(*argv)
    assert done.code == 2 and "something to choose by" in done.err
    done = Done(*argv, 'rl.rewards=[{regex: "e"}]', "sample.max_new_tokens=4")
    assert done.code == 0, done.err
    assert "best_of: 4" in done.out and "kl_bound: 0.6363" in done.out


def test_a_run_refuses_best_of_for_the_samples_that_are_ranked(tmp_path: Path) -> None:
    from accord.config import load_recipe

    with pytest.raises(UsageError, match=r"sample\.best_of 4 has no effect in a run"):
        run(load_recipe("smoke", ["sample.best_of=4"]), output_dir=tmp_path / "run")
