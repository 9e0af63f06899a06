"""Labels, ratings and RewardBench 2's ties as what `accord eval reward` measures a reward model on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WriteRows
from typer.testing import CliRunner

from accord.cli.main import app
from accord.errors import DataError
from accord.evals.judged_rows import concordance, read_measured
from accord.evals.pairs import ranked_pairs
from accord.evals.subsets import subset_table, tie_score
from accord.formats.stage_rows import read_ranked_rows


def test_rewardbench_2s_score_of_ties_by_hand() -> None:
    """All held, gaps 4 and 3, spread 1: .3 + .3 + .2 + .2 + .01 tanh(3 / 1 - 1); its reference lost: .3 + .2 of it."""
    right, tied_right = np.array([True, False]), np.array([True, True, False])
    tied = np.array([6.0, 5.0, 2.0])
    assert tie_score(np.array([5.0, 1.0]), right, tied, tied_right) == pytest.approx(1 + 0.01 * math.tanh(2))
    lost = tie_score(np.array([1.0, 2.0]), right, tied, tied_right)
    assert lost == pytest.approx(0.3 + 0.2 + 0.01 * math.tanh(-2))
    even = np.array([5.0, 5.0, 2.0])  # no spread: the gap is infinitely wider
    assert tie_score(np.array([5.0, 1.0]), right, even, tied_right) == pytest.approx(1.01)
    assert tie_score(np.array([1.0, 1.0]), right, np.array([2.0, 2.0, 2.0]), tied_right) == 0  # 0 / 0


def test_a_file_with_rewardbench_2s_ids_gets_its_score(write_rows: WriteRows) -> None:
    """Two prompts, each with its reference; letters are right everywhere on the first, nowhere on the other."""
    file: list[dict[str, Any]] = [
        {"id": "tied:1", "subset": "Ties", "prompt": "Name a colour", "chosen": ["aaaa", "aaa"], "rejected": ["b"]},
        {"id": "ref:1", "subset": "Ties", "prompt": "Name the sky's colour", "chosen": ["aaaa"], "rejected": ["b"]},
        {"id": "tied:2", "subset": "Ties", "prompt": "Name a tree", "chosen": ["b", "bb"], "rejected": ["aaa"]},
        {"id": "ref:2", "subset": "Ties", "prompt": "Name my tree", "chosen": ["b"], "rejected": ["aaa"]},
    ]
    for row in file:
        right, wrong = len(row["chosen"]), len(row["rejected"])
        row |= {"num_correct": right, "num_incorrect": wrong, "total_completions": right + wrong, "models": ["x"]}
    rows = read_ranked_rows(write_rows("ties.jsonl", file), format="rewardbench")
    held_out = ranked_pairs([row.group for row in rows])
    letters = [text.count("a") for text in held_out.completions]
    ties = next(row for row in subset_table({"model": letters}, held_out, rows) if row.kind == "ties")
    first = 1 + 0.01 * math.tanh(3 / 1 - 1)  # gaps 3 and 4, spread 1
    assert ties.composite["model"].value == pytest.approx((first + 0.01 * -1) / 2)  # the second: -3 / 0, tanh is -1
    assert ties.composite["model"].clusters == 2


def test_labels_and_ratings_order_what_one_person_or_all_have_judged(write_rows: WriteRows) -> None:
    """Ann orders both texts of p1 by herself; of p2 nobody does, and the means 2 and 4 do; p3 stands alone."""
    ratings = [("p1", "good", 5, "Ann"), ("p1", "bad", 1, "Ann"), ("p1", "good", 1, "Ben")]
    ratings += [("p2", "x", 1, "Ann"), ("p2", "x", 3, "Ben"), ("p2", "y", 4, "Cem"), ("p3", "z", 3, "Ann")]
    file = [{"prompt": p, "completion": text, "rating": value, "annotator": who} for p, text, value, who in ratings]
    found = read_measured([write_rows("ratings.jsonl", file)], None)
    told = {(row.group.prompt, row.annotator): (row.group.completions, row.group.ranks) for row in found.rows}
    assert told == {("p1", "Ann"): (("good", "bad"), (1, 2)), ("p2", ""): (("x", "y"), (2, 1))}
    assert found.alone == 1 and len(found.judged) == 5
    assert {(p, t): value for p, t, _, value in found.judged}["p1", "good"] == 3  # the mean of 5 and 1
    labels = [{"prompt": "p", "completion": text, "label": good} for text, good in (("good", True), ("bad", False))]
    (row,) = read_measured([write_rows("labels.jsonl", labels)], None).rows
    assert row.group.completions == ("good", "bad") and row.group.ranks == (1, 2)


def test_what_orders_nothing_is_refused(write_rows: WriteRows) -> None:
    alone = [{"prompt": f"p{i}", "completion": "x", "label": bool(i % 2)} for i in range(4)]
    with pytest.raises(DataError, match="no two completions of one prompt were judged differently"):
        read_measured([write_rows("alone.jsonl", alone)], None)
    with pytest.raises(DataError):
        read_measured([write_rows("prompts.jsonl", [{"prompt": "p"}])], None)


def test_concordance_is_the_area_under_the_curve_and_covers() -> None:
    """Scikit-learn's and SciPy's numbers; normal scores one deviation apart have an area of Phi(1 / sqrt 2) = .7602."""
    from scipy.stats import kendalltau
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), np.round(rng.normal(size=200), 1)  # with ties
    keys = [(f"p{i // 2}", f"t{i}") for i in range(200)]
    judged = [(p, t, p, float(label)) for (p, t), label in zip(keys, labels, strict=True)]
    assert concordance(dict(zip(keys, scores, strict=True)), judged).value == pytest.approx(
        roc_auc_score(labels, scores)
    )
    ratings, other = rng.permutation(200) + 1.0, rng.normal(size=200)  # without ties: (tau + 1) / 2
    judged = [(p, t, p, float(value)) for (p, t), value in zip(keys, ratings, strict=True)]
    tau = kendalltau(ratings, other).statistic
    assert concordance(dict(zip(keys, other, strict=True)), judged).value == pytest.approx((tau + 1) / 2)
    inside = []
    for seed in range(40):
        of = {(f"{k}{i}", "x"): float(rng.normal(k, 1)) for k in (1, 0) for i in range(50)}
        found = concordance(of, [(p, t, p, float(p[0])) for p, t in of], seed=seed)
        inside.append(found.low <= 0.7602 <= found.high)
    assert np.mean(inside) >= 0.85  # .95 nominal; fewer than 34 of 40 has a chance below 1 in 100


def test_labels_are_measured_by_the_command(
    write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counts_words.py").write_text(
        "def words(prompts, texts):\n    return [len(t.split()) for t in texts]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = [
        {"prompt": f"Question {i}?", "completion": text, "label": good}
        for i in range(24)
        for text, good in (("A long and good answer.", True), ("No.", False))
    ]
    file.append({"prompt": "alone", "completion": "It stands alone.", "label": True})
    out, data = tmp_path / "out", str(write_rows("labels.jsonl", file))
    argv = ["eval", "reward", "--model", "counts_words:words", "--data", data, "-o", str(out), "--json"]
    result = CliRunner().invoke(app, argv, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    card = json.loads((out / "reward/card.json").read_text())
    assert card["model"]["all_pairs"]["value"] == 1 and card["concordance"]["value"] == 1
    assert "1 of 49 judged completions" in card["left_out"]["judged_alone"]
    assert "The better of two judged completions" in (out / "report.html").read_text()
