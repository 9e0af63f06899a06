"""Over-optimisation: the two laws by hand and with planted coefficients, and `accord eval goodhart`."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import WriteRows
from typer.testing import CliRunner

import accord
from accord.cli.main import app
from accord.errors import DataError
from accord.evals.sample_cache import Drawing, kept_samples
from accord.evals.samples import PolicySamples
from accord.models.placement import PLAIN
from accord.rollout.engine import Sampling
from accord.stats import Interval, Unknown, best_of_n_kl_bound, best_of_n_scores, fit_gold_law


def flat(values: list[float], prompts: int = 4) -> np.ndarray:
    """The same on every prompt: nothing is uncertain."""
    return np.repeat(np.array(values)[:, None], prompts, axis=1)


def test_the_laws_by_hand() -> None:
    """R = d (2 - d / 2) peaks at d = 2 with 2; R = d (1 - log(d) / 5) at d = e^4 with e^4 / 5."""
    d = np.array([0.5, 1.0, 2.0, 3.0])
    parabola = fit_gold_law("best_of_n", flat(list(d * (2 - 0.5 * d))), d**2)
    assert (parabola.alpha.value, parabola.beta.value) == (pytest.approx(2), pytest.approx(0.5))
    assert isinstance(parabola.peak_kl, Interval) and isinstance(parabola.peak_gold, Interval)
    assert parabola.peak_kl.value == pytest.approx(4) and parabola.peak_gold.value == pytest.approx(2)
    assert parabola.says == "peaks" and parabola.residual == pytest.approx(0, abs=1e-9)
    assert parabola.at(9.0) == pytest.approx(3 * (2 - 1.5))
    log = fit_gold_law("rl", flat(list(d * (1 - 0.2 * np.log(d)))), d**2)
    assert isinstance(log.peak_kl, Interval) and isinstance(log.peak_gold, Interval)
    assert math.sqrt(log.peak_kl.value) == pytest.approx(54.598, abs=1e-3)
    assert log.peak_gold.value == pytest.approx(10.920, abs=1e-3) and log.says == "still rises"


def test_the_fit_is_scipys_least_squares() -> None:
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(0)
    d = np.linspace(0.3, 4, 9)
    noisy = d * (1.3 - 0.4 * np.log(d)) + rng.normal(0, 0.1, 9)
    found = fit_gold_law("rl", noisy[:, None].repeat(2, 1), d**2)
    (alpha, beta), _ = curve_fit(lambda d, a, b: d * (a - b * np.log(d)), d, noisy)
    assert (found.alpha.value, found.beta.value) == (pytest.approx(alpha), pytest.approx(beta))


@pytest.mark.parametrize(("law", "weighed"), [("best_of_n", lambda d: d), ("rl", np.log)])
def test_planted_coefficients_lie_in_their_intervals(law: str, weighed: object) -> None:
    """100 experiments of 40 prompts in 20 topics, which share a luck: each interval holds its coefficient in 95 %."""
    rng, d, inside = np.random.default_rng(3), np.sqrt([0.2, 0.6, 1.2, 2.0, 3.0, 4.5]), []
    topics = np.repeat(np.arange(20), 2)
    for seed in range(100):
        luck = rng.normal(0, 0.3, 20)[topics]
        gold = (d * (1.5 - 0.5 * weighed(d)))[:, None] * (1 + luck) + rng.normal(0, 0.3, (6, 40))  # type: ignore[operator]
        kl = (d**2)[:, None] * rng.gamma(20, 1 / 20, (6, 40))  # measured too
        found = fit_gold_law(law, gold, kl, topics, resamples=200, seed=seed)
        inside += [found.alpha.low <= 1.5 <= found.alpha.high, found.beta.low <= 0.5 <= found.beta.high]
    assert np.mean(inside) >= 0.87  # 20 clusters: a percentile bootstrap covers a little less than 95 %


def test_gold_that_is_not_hurt_still_rises_and_noise_shows_nothing() -> None:
    rng, d = np.random.default_rng(0), np.sqrt([0.2, 0.6, 1.2, 2.0, 3.0])
    rising = d[:, None] * np.ones(50) * (1 + 0.1 * d[:, None]) + rng.normal(0, 0.02, (5, 50))
    found = fit_gold_law("best_of_n", rising, d**2)
    assert found.says == "still rises" and isinstance(found.peak_kl, Unknown)
    assert fit_gold_law("best_of_n", rng.normal(0, 1, (5, 50)), d**2).says == "not shown"
    assert fit_gold_law("best_of_n", rising[:, :1], d**2).says == "not shown"  # one prompt has no interval
    with pytest.raises(DataError, match="a law needs 3"):
        fit_gold_law("rl", flat([0.0, 1.0, 2.0]), [0.0, 1.0, 2.0])


def test_best_of_n_by_a_proxy_that_knows_half_gains_half_and_does_not_peak() -> None:
    """Gold and proxy are normal with correlation c: gold of best of n is c E[max of n], by the closed form."""
    rng, c = np.random.default_rng(1), 0.5
    gold = rng.normal(size=(300, 16))
    proxy = c * gold + math.sqrt(1 - c * c) * rng.normal(size=gold.shape)
    ns = [2, 4, 8, 16]
    curve = np.stack([best_of_n_scores(gold, proxy, n) - gold.mean(1) for n in ns])
    assert curve.mean(1)[-1] == pytest.approx(c * 1.765991, abs=0.1)
    found = fit_gold_law("best_of_n", curve, [best_of_n_kl_bound(n) for n in ns])
    assert found.says != "peaks" and found.alpha.low > 0


# ---- the command ---------------------------------------------------------------------------------------------------

SCORERS = """
def gold(prompts, texts):
    return [sum(letter in "abcd" for letter in text) - .02 * len(text) ** 1.5 for text in texts]

def proxy(prompts, texts):
    return [sum(letter in "abcd" for letter in text) for text in texts]
"""


@pytest.mark.slow
def test_best_of_n_and_checkpoints_of_ones_own_folders_are_shown_and_samples_are_drawn_once(
    policy_folder: Path, letters_folder: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_scorers.py").write_text(SCORERS)
    monkeypatch.syspath_prepend(tmp_path)
    prompts = write_rows("test.jsonl", [{"prompt": f"The fog {i}"} for i in range(6)])
    snapshots = tmp_path / "ppo/snapshots"
    for step, folder in ((10, policy_folder), (20, letters_folder)):
        shutil.copytree(folder, snapshots / f"step_{step:06d}")
    out, cache = tmp_path / "out", tmp_path / "cache"
    argv = ["eval", "goodhart", "--model", str(policy_folder), "--proxy", "letters=two_scorers:proxy"]
    argv += ["--gold", "two_scorers:gold", "--data", str(prompts), "--snapshots", str(tmp_path / "ppo"), "-o", str(out)]
    argv += ["--cache", str(cache), "--json", "eval.curve_samples=16", "eval.samples_per_prompt=2"]
    argv += ["eval.bootstrap=100", "sample.max_new_tokens=8"]
    result = CliRunner().invoke(app, argv, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert set(made["curves"]) == {"best_of_n by letters", "rl by letters"}
    assert "a law needs 3 distances, and there are 1" in made["curves"]["rl by letters"]["left_out"]  # one is the start
    curves = json.loads((out / "goodhart/curves.json").read_text())["curves"]
    assert [one["kl"]["value"] for one in curves[0]["points"]] == pytest.approx(
        [0.193147, 0.636294, 1.204442, 1.835089]
    )
    assert all(one["proxy"]["value"] > 0 for one in curves[0]["points"])
    page = (out / "report.html").read_bytes()
    assert b"Gold along the distance" in page and accord.redraw(out) == [out / "report.html"]
    assert (out / "report.html").read_bytes() == page
    kept = sorted(cache.iterdir())
    assert len(kept) == 3
    again = CliRunner().invoke(app, argv, catch_exceptions=False)
    assert again.exit_code == 0 and sorted(cache.iterdir()) == kept
    assert json.loads((out / "goodhart/curves.json").read_text())["curves"][0]["points"] == curves[0]["points"]


def test_kept_samples_are_those_that_were_drawn_and_any_change_draws_anew(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")
    drawn = PolicySamples(
        texts=(("a é\u2028", "b"),), finished_PK=np.array([[True, False]]), tokens_PK=np.array([[3, 4]]),
        logp_PK=np.array([[-0.1, -1 / 3]]), ref_logp_PK=np.array([[-0.2, -2e-17]]),
    )  # fmt: skip
    calls = []

    def draw() -> PolicySamples:
        calls.append(1)
        return drawn

    def kept(**more: object) -> PolicySamples:
        drawing = Drawing(model, model, ("p",), Sampling(8), 0, PLAIN)
        return kept_samples(tmp_path / "cache", replace(drawing, **more), draw)

    first, second = kept(), kept()
    assert len(calls) == 1 and second.texts == first.texts == drawn.texts
    for name in ("finished_PK", "tokens_PK", "logp_PK", "ref_logp_PK"):
        found, wanted = getattr(second, name), getattr(drawn, name)
        assert found.dtype == wanted.dtype and (found == wanted).all(), name
    kept(seed=1)
    kept(prompts=("q",))
    kept(sampling=Sampling(9))
    assert len(calls) == 4
    (model / "weights").write_text("2")
    kept()
    assert len(calls) == 5
    for path in (tmp_path / "cache").iterdir():
        path.write_text("{")
    kept()
    assert len(calls) == 6  # what cannot be read is drawn anew
    assert kept_samples(None, Drawing(model, model, ("p",), Sampling(8), 0, PLAIN), draw) is drawn
