"""`accord eval policy`: models of any origin, compared by judges on prompts, from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import WriteRows
from typer.testing import CliRunner

import accord
from accord.cli.evaluating import judge_of, named
from accord.cli.main import app
from accord.config import EvalConfig, SampleConfig
from accord.errors import UsageError

PROMPTS = ["Bread", "The fog", "Nobody", "A film", "Two", "She"]
JUDGE = """
def letters(prompts, completions):
    return [sum(letter in "abcd" for letter in text) / (1 + len(text)) for text in completions]
"""
SMALL = ("eval.samples_per_prompt=2", "eval.bootstrap=100", "sample.max_new_tokens=8")


@pytest.fixture
def prompts(write_rows: WriteRows) -> Path:
    return write_rows("test.jsonl", [{"prompt": prompt} for prompt in PROMPTS])


@pytest.fixture(autouse=True)
def own_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letter_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_the_better_model_is_found_and_shown(
    policy_folder: Path, letters_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    """One model was taught to write a, b, c and d; the judge counts just these."""
    where = [f"taught={letters_folder}", f"same={policy_folder}"]
    where += ["--reference", str(policy_folder), "--data", str(prompts), "-o", str(tmp_path / "out")]
    argv = ["eval", "policy", *where, "--judge", "letters=letter_judge:letters", "--json", *SMALL]
    result = CliRunner().invoke(app, argv, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert set(made["policies"]) == {"taught", "same"}  # no reward model, hence no best-of-n
    taught, same = made["policies"]["taught"], made["policies"]["same"]
    assert taught["win_rate"]["letters"]["low"] > 0.5 and same["kl"] == 0.0 < taught["kl"]
    assert same["win_rate"]["letters"]["low"] <= 0.5 <= same["win_rate"]["letters"]["high"]
    rows = [json.loads(line) for line in (tmp_path / "out/eval/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * len(PROMPTS) * 2 and {row["prompt"] for row in rows} == set(PROMPTS)
    page = tmp_path / "out/report.html"
    before = page.read_bytes()
    assert made["report"] == str(page) and b"Taught" in before
    assert b"no reward model is named" in before  # what stands in the column of the proxy is said there
    page.unlink()
    assert accord.redraw(tmp_path / "out") == [page] and page.read_bytes() == before


@pytest.mark.slow
def test_a_reward_model_stands_beside_the_judge_and_picks_best_of_n(
    policy_folder: Path, reward_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    config = EvalConfig(
        judges={"letters": judge_of("letter_judge:letters"), "model": judge_of(str(reward_folder))},
        samples_per_prompt=2, best_of=2, bootstrap=100, curve_samples=2,
    )  # fmt: skip
    made = accord.evaluate(
        config,
        policies={"copy": policy_folder},
        reference=policy_folder,
        data=prompts,
        output_dir=tmp_path / "out",
        reward_model=reward_folder,
        sampling=SampleConfig(max_new_tokens=6),
    )
    assert set(made.policies) == {"copy", "best_of_n"}
    assert set(made.policies["best_of_n"]["win_rate"]) == {"letters", "model"}
    rows = [json.loads(line) for line in (tmp_path / "out/eval/samples.jsonl").read_text().splitlines()]
    assert all(row["proxy"] == pytest.approx(row["judge:model"], abs=1e-5) for row in rows)  # the same reward model
    assert made.policies["best_of_n"]["win_rate"]["model"]["value"] > 0.5  # the best of two by that very score


def test_what_is_no_comparison_is_refused(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    def refused(told: str, config: EvalConfig, **own: object) -> None:
        given = {"policies": {"a": policy_folder}, "reference": policy_folder, "data": prompts} | own
        with pytest.raises(UsageError, match=told):
            accord.evaluate(config, output_dir=tmp_path / "out", **given)
        assert not (tmp_path / "out").exists()

    judged = EvalConfig(judges={"letters": judge_of("letter_judge:letters")})
    refused("there is no policy", judged, policies={})
    refused("no judge is named", EvalConfig())
    refused("on their own distribution", judged, sampling=SampleConfig(top_p=0.9))
    refused("two policies are called", judged, policies={policy_folder.parent.name: policy_folder})


def test_names_and_judges_are_read_from_flags() -> None:
    assert named("MODEL", ["a=x/model", "y/model"], unnamed=lambda folder: folder[0]) == {
        "a": "x/model",
        "y": "y/model",
    }
    with pytest.raises(UsageError, match="has no name"):
        named("--judge", ["mine:score"])
    with pytest.raises(UsageError, match="two are called 'a'"):
        named("--judge", ["a=x", "a=y"])
    assert [judge_of(what).kind for what in ("mine:score", "http://h/score", "judge/model")] == [
        "function",
        "http",
        "model",
    ]
