"""A package outside the tree brings rows of its own to every table: nothing of Accord knows its name.

Whoever opens a new door adds what goes through it to `SOURCES`, and a test that passes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows

from accord.config import DpoConfig, OptimConfig, PromptsConfig, RewardConfig, RlConfig, SampleConfig, load_recipe
from accord.errors import UsageError

SOURCES = {
    "__init__.py": "",
    "policies.py": '''
"""A policy algorithm: completions are weighed by the rank of their return."""
import torch
from accord.algo.table import Named, PolicyAlgorithm

def by_rank(rewarded, settings):
    rank_B = rewarded.return_B.argsort().argsort().float()
    return rewarded.spread(rank_B / (len(rank_B) - 1) - 0.5), None

def soft(tokens, settings):
    return -tokens.advantage_N * torch.tanh(tokens.log_ratio_N) - tokens.advantage_N * 0.0 * tokens.logp_N

ranked = PolicyAlgorithm(by_rank, soft, Named("accord.algo.policy_loss:token_mean"), min_group=2)
''',
    "losses.py": '''
"""A preference loss (SLiC's hinge) and a reward loss (the same on scores)."""
import torch
from accord.algo.table import PreferenceAlgorithm, RewardLoss

def hinge(better_N, worse_N, settings):
    return torch.relu(1 - settings.dpo_beta * (better_N - worse_N))

def scores_hinge(judged, total_weight, center_coef):
    pairs = judged.pairs
    gap_N = judged.score_S[pairs.chosen_N] - judged.score_S[pairs.rejected_N]
    return (pairs.weight_N / total_weight * (1 - gap_N).clamp_min(0)).sum(), {}

slic = PreferenceAlgorithm(hinge)
score_slic = RewardLoss(scores_hinge, reads="pairs")
''',
    "scores.py": '''
"""A scorer, and a filter of prompts."""
def vowels(prompts, completions):
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]

def short(prompt):
    return len(prompt) < 12
''',
    "writers.py": '''
"""A generator: it writes every prompt back, in capitals."""
from accord.rollout.generator import Generated

class Parrot:
    chat = None

    def __init__(self, policy, placement):
        self.policy = policy

    def generate(self, prompts, sampling, *, seed):
        times = range(sampling.samples_per_prompt)
        return [Generated(p, f" {p.upper()} {k}", (1,), (2,), (-0.5,), "stop") for p in prompts for k in times]
''',
    "judges.py": '''
"""A judge: the fewer vowels, the better."""
def terse(prompts, completions):
    return [-sum(letter in "aeiou" for letter in text) for text in completions]
''',
    "tasks.py": '''
"""A task: prompts by number, judgements that like short texts, and a judge of its own that learns the least length."""
import json
from accord.loop.task import PlainTask, TaskJudge
from accord.scoring.rules import RegexScorer

def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\\n" for row in rows))

def fit(inputs, folder, log):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "letter").write_text(inputs["data"].read_text()[0])

def load(folder, placement):
    return RegexScorer((folder / "letter").read_text())

class Numbers(PlainTask):
    has = frozenset({"judgements"})

    def __init__(self, place):
        super().__init__(place)
        self.judges = {"letters": TaskJudge({"data": place.folder / "letters.txt"}, fit, load)}

    def prepare(self, inputs, folder, log):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "letters.txt").write_text(self.place.config.options["letter"])
        for split, start in (("train", 0), ("valid", 100), ("test", 200)):
            asked = [f"{start + i}:" for i in range(4)]
            write(self.path("prompts", split), [{"prompt": p, "topic": p} for p in asked])
            pairs = [{"prompt": p, "chosen": " one fox", "rejected": " rain", "topic": p} for p in asked]
            write(self.path("judgements", split), pairs)
        return {"counts": {"prompts": 12}}
''',
    "notes.py": '''
"""A format: questions and answers of a notebook."""
from accord.formats import Format, Item, row_by_row

def told(fields):
    return "question and note" if {"q", "note"} <= fields.keys() else ""

def read(row):
    yield Item(prompt=row.fields["q"], completions=(row.fields["note"],), demonstration=True)

NOTES = Format("notes", "a notebook", frozenset({"q", "note"}), told, row_by_row(read, {"q", "note"}), None)
''',
}
OPTIM = OptimConfig(lr=2e-3)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package, installed beside Accord."""
    folder = tmp_path / "site" / "guest_of_accord"
    folder.mkdir(parents=True)
    for name, source in SOURCES.items():
        (folder / name).write_text(source)
    monkeypatch.syspath_prepend(folder.parent)
    for name in [name for name in sys.modules if name.split(".")[0] == folder.name]:
        monkeypatch.delitem(sys.modules, name)  # that of another test
    return folder.name


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_policy_algorithm_a_scorer_and_a_filter_of_prompts(
    guest: str, policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    from accord.train.rl import rl

    data = write_rows("p.jsonl", [{"prompt": p} for p in ("Say:", "A", "B", "C", "a prompt that is much too long")])
    config = RlConfig(
        algorithm=f"{guest}.policies:ranked",
        rewards=({"function": f"{guest}.scores:vowels", "name": "vowels"},),
        prompts=PromptsConfig(function=f"{guest}.scores:short"),
        iterations=2,
        prompts_per_iteration=4,
        samples_per_prompt=2,
        ppo_epochs=2,
        max_new_tokens=6,
        kl_coef=0.01,
        precision="fp32",
        actor=OPTIM,
    )
    result = rl(config, model=policy_folder, data=data, output_dir=tmp_path / "out")
    rows = logged(tmp_path / "out")
    assert len(rows) == 2 and (result.model / "config.json").is_file()
    assert rows[0]["part_vowels"] == pytest.approx(rows[0]["score"])
    assert "value_loss" not in rows[0]  # its row has no critic
    alone = config.model_copy(update={"samples_per_prompt": 1})
    with pytest.raises(UsageError, match="compares completions"):
        rl(alone, model=policy_folder, data=data, output_dir=tmp_path / "alone")


def test_what_was_begun_with_other_code_is_not_gone_on_with(guest: str, write_rows: WriteRows, tmp_path: Path) -> None:
    from accord.train.training_run import TrainingRun

    data = write_rows("p.jsonl", [{"prompt": "A"}])

    def identity(function: str) -> str:
        config = RlConfig(rewards=({"function": function, "name": "own"},))
        return TrainingRun(tmp_path, 0).identity({"data": data}, config=config)

    own, plain = identity(f"{guest}.scores:vowels"), identity("accord.files:read_json")
    path = tmp_path / "site" / guest / "scores.py"
    path.write_text(path.read_text() + "# more\n")
    assert identity(f"{guest}.scores:vowels") != own and identity("accord.files:read_json") == plain


def test_a_reward_loss(guest: str, policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    from accord.train.reward import reward

    rows = [{"prompt": "Say:", "completions": [" one fox", " rain"], "ranks": [1, 2]} for _ in range(24)]
    config = RewardConfig(loss=f"{guest}.losses:score_slic", precision="fp32", dropout=0.0, optim=OPTIM, epochs=2)
    result = reward(config, model=policy_folder, data=write_rows("r.jsonl", rows), output_dir=tmp_path / "out")
    losses = [row["loss"] for row in logged(tmp_path / "out")]
    assert losses[-1] < losses[0] and (result.model / "config.json").is_file()


def test_a_preference_loss(guest: str, policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    from accord.train.dpo import dpo

    rows = [{"prompt": f"Say {i}:", "chosen": " one fox", "rejected": " rain"} for i in range(24)]
    config = DpoConfig(loss=f"{guest}.losses:slic", precision="fp32", groups_per_step=8, epochs=2, optim=OPTIM)
    dpo(config, model=policy_folder, data=write_rows("d.jsonl", rows), output_dir=tmp_path / "out")
    losses = [row["loss"] for row in logged(tmp_path / "out")]
    assert losses[0] == pytest.approx(1.0, abs=1e-5) and losses[-1] < losses[0]


def test_a_format(guest: str, write_rows: WriteRows) -> None:
    from accord.formats.stage_rows import read_demonstrations

    path = write_rows("notes.jsonl", [{"q": "What is it?", "note": "A note."}])
    assert read_demonstrations(path, format=f"{guest}.notes:NOTES") == [("What is it?", "A note.")]


def test_a_generator(guest: str, policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    from accord.scoring import sample

    config = SampleConfig(generator=f"{guest}.writers:Parrot", samples_per_prompt=2)
    data, output = write_rows("p.jsonl", [{"prompt": "Say:"}, {"prompt": "A"}]), tmp_path / "samples.jsonl"
    made = sample(config, model=policy_folder, data=data, output=output)
    found = [json.loads(line)["completion"] for line in output.read_text().splitlines()]
    assert found == [" SAY: 0", " SAY: 1", " A 0", " A 1"] and made.num_samples == 4
    with pytest.raises(UsageError, match="no attribute 'Owl'"):
        sample(SampleConfig(generator=f"{guest}.writers:Owl"), model=policy_folder, data=data, output=output)


@pytest.mark.slow
def test_a_task_with_a_judge_and_the_judge_and_generator_of_a_recipe(
    guest: str, policy_folder: Path, tmp_path: Path
) -> None:
    """A whole run that only its recipe ties to the package."""
    from accord.loop.run import run

    recipe = load_recipe(
        None,
        [
            *(f"task.use={guest}.tasks:Numbers", "task.options={letter: e}", f"base.model={policy_folder}"),
            *(
                f"eval.judges={{terse: {{function: '{guest}.judges:terse'}}}}",
                f"sample.generator={guest}.writers:Parrot",
            ),
            *("ask.queue=2", "reward={epochs: 1, dropout: 0}", "rl={iterations: 1, prompts_per_iteration: 4}"),
            *("rl.max_new_tokens=6", "rl.ppo_epochs=1", "rl.eval_every=1", "eval.samples_per_prompt=2"),
            *("eval.best_of=2", "eval.curve_samples=2", "eval.bootstrap=100"),
        ],
    )
    run(recipe, output_dir=tmp_path / "run")
    results = json.loads((tmp_path / "run/eval/results.json").read_text())
    assert list(results["judges"]) == ["letters", "terse"] and results["num_test_prompts"] == 4
    samples = [json.loads(line) for line in (tmp_path / "run/eval/samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in samples} == {"200:", "201:", "202:", "203:"}
    for row in samples:
        assert row["judge"] == float("e" in row["completion"])
        assert row["judge:terse"] == -sum(letter in "aeiou" for letter in row["completion"])
    queued = [json.loads(line) for line in (tmp_path / "run/queued/samples.jsonl").read_text().splitlines()]
    assert queued[0]["completions"] == [f" 0: {k}" for k in range(4)]


def test_a_name_that_is_not_there_is_refused_with_a_hint(
    guest: str, policy_folder: Path, write_rows: WriteRows
) -> None:
    from accord.train.rl import find_algorithm

    with pytest.raises(UsageError, match="no attribute 'rank'"):
        find_algorithm(RlConfig(algorithm=f"{guest}.policies:rank"))
    with pytest.raises(UsageError, match="is no row of algorithms"):
        find_algorithm(RlConfig(algorithm=f"{guest}.losses:slic"))
