"""Stages as commands: no model is lost, what was done is told, results say what they mean, folders what made them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from accord.cli.main import app
from accord.cli.verdicts import alarm_lines, verdict_of
from accord.files import sha256_tree
from accord.report.stage_card import stage_card

WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], Path]
DEMOS = [{"prompt": f"The village {i}:", "completion": " soup and salt."} for i in range(4)]
QUICK = ("sft.epochs=1", "sft.precision=fp32")


def call(*argv: object) -> Result:
    return CliRunner().invoke(app, list(map(str, argv)))


@pytest.fixture
def argv(policy_folder: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A fine-tuning that takes a moment, below the working directory."""
    monkeypatch.chdir(tmp_path)
    return ["sft", "--model", policy_folder, "--data", write_rows("d.jsonl", DEMOS), "-o", "own", *QUICK]


# ---- nothing is lost -------------------------------------------------------------------------------------------------


def test_other_settings_replace_no_model(argv: list[object], write_rows: WriteRows) -> None:
    assert call(*argv).exit_code == 0
    before = sha256_tree(Path("own"))
    other = call(*argv, "sft.epochs=2", "sft.optim.lr=1e-3")
    assert other.exit_code == 2 and sha256_tree(Path("own")) == before
    assert "own/model: holds a model already" in other.stderr
    assert "sft.epochs was 1.0, is 2.0" in other.stderr and "sft.optim.lr was 0.0005, is 0.001" in other.stderr
    assert "-o own-2, or --overwrite" in other.stderr
    write_rows("d.jsonl", DEMOS[:3])
    assert "the contents of its inputs were others" in call(*argv).stderr
    assert "`accord sft` made it" in call("dpo", *argv[1:7]).stderr  # another command
    again = call(*argv, "sft.epochs=2", "--overwrite")
    assert again.exit_code == 0 and sha256_tree(Path("own")) != before


def test_a_model_of_unknown_making_is_not_replaced(argv: list[object]) -> None:
    Path("own/model").mkdir(parents=True)
    done = call(*argv)
    assert done.exit_code == 2 and "nothing says what made it" in done.stderr


def test_the_only_copy_of_a_model_is_not_trained_on_in_place(argv: list[object]) -> None:
    assert call(*argv).exit_code == 0
    argv[2] = "own/model"
    done = call(*argv)
    assert done.exit_code == 2 and "own/model: is --model itself, and would be replaced" in done.stderr
    assert "give a fresh folder, -o own-2" in done.stderr


def test_the_same_command_again_says_so_and_does_nothing(argv: list[object]) -> None:
    first = call(*argv)
    stamps = {path: path.stat().st_mtime_ns for path in Path("own").rglob("*")}
    again = call(*argv)
    assert again.exit_code == 0 and again.stdout.startswith("finished before: the same command made own/model")
    assert again.stdout.split("\n", 1)[1] == first.stdout
    assert {path: path.stat().st_mtime_ns for path in Path("own").rglob("*")} == stamps
    told = json.loads(call(*argv, "--json").stdout)
    assert told["finished_before"] is True and told["num_steps"] == 1
    assert not call(*argv, "--no-resume").stdout.startswith("finished before")


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_a_result_is_a_verdict_then_numbers_and_a_card(argv: list[object], policy_folder: Path) -> None:
    done = call(*argv)
    assert "too few texts to hold any out: give --valid-data" in done.stdout.splitlines()[0]
    assert "num_steps: 1" in done.stdout and "verdict" not in done.stdout
    card = Path("own/model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "fine-tuned on demonstrations" in card and f"from `{policy_folder}`" in card
    assert "too few texts to hold any out" in card and "- `sft.epochs=1.0`" in card and "sft.optim.lr" not in card
    assert "AutoModelForCausalLM" in card and '"own/model"' in card
    json.loads(Path("own/finished.json").read_text())


def test_status_names_what_was_trained(argv: list[object]) -> None:
    assert call(*argv).exit_code == 0
    done = call("status")
    assert "own  sft: learnt to" in done.stdout and "try `accord demo`" not in done.stdout
    assert [one["command"] for one in json.loads(call("status", "--json").stdout)["trained"]] == ["sft"]
    # Status reads whatever it finds, and never fails.
    Path("own/finished.json").write_text('{"command": "rl", "result": {}}')
    assert "own  rl: its numbers cannot be read" in call("status").stdout


@pytest.mark.parametrize(
    ("command", "model_type", "loads"),
    [
        ("sft", "llama", "AutoModelForCausalLM"),
        ("sft", "accord_lstm", "open_generator"),
        ("reward", "llama", "RewardModel"),
    ],
)
def test_a_card_says_how_its_model_opens(command: str, model_type: str, loads: str, policy_folder: Path) -> None:
    made = {"command": command, "version": "1", "seed": 0, "inputs": {}, "settings": {}, "result": {}}
    card = stage_card(made, "learnt", [], usual={}, folder=str(policy_folder), model_type=model_type)
    code = card.split("```python\n")[1].split("```")[0]
    library = "accord" if model_type.startswith("accord_") else "transformers"
    assert loads in code and f"library_name: {library}\n" in card
    if (command, model_type) == ("sft", "accord_lstm"):
        exec(code, {})  # it opens
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("share", "count", "says"),
    [
        (0.9, 100, "orders 0.90 [0.80, 1.00] of 100 held-out judgements as they say (by 'longer wins' 0.55): better"),
        (0.55, 20, "not shown to be better than chance"),
        (0.1, 100, "worse than chance"),
        (None, 0, "too few judgements to hold any out"),
    ],
)
def test_verdicts_of_a_reward_model(share: float | None, count: int, says: str, tmp_path: Path) -> None:
    assert says in verdict_of("reward", {"held_out": told(share, count, "longer wins", 0.55)}, tmp_path)


def told(value: float | None, n: int, baseline_is: str, baseline: float, units: int = 30) -> dict[str, Any]:
    """A held-out number as a stage's result has it, with an interval of .1 either way."""
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    given = {"value": value, "low": low, "high": high, "n": n, "units": units}
    return {**given, "baseline_is": baseline_is, "baseline": baseline}


def test_thumbs_are_held_against_the_commoner_kind_and_few_prompts_are_told(tmp_path: Path) -> None:
    """Nine of ten thumbs are up: .85 is far from chance, and no more than calling everything good."""
    said = verdict_of("reward", {"held_out": told(0.85, 60, "every one is good", 0.9, units=2)}, tmp_path)
    assert "(by 'every one is good' 0.90): not shown to be better than that" in said
    assert "of 60 held-out judgements as they say, of 2 prompts or topics alone" in said


def test_verdicts_of_language_models_and_of_policies(tmp_path: Path) -> None:
    nll = {"train_nll": 1.0, "valid_nll": 1.2, "held_out": told(1.2, 40, "the model that was given", 3.0)}
    assert "1.20 [1.10, 1.30] nats a token on 40 held-out texts (by the model that was given 3.00)" in verdict_of(
        "sft", nll, tmp_path
    )
    assert verdict_of("sft", nll, tmp_path).endswith("no sign of overfitting")
    assert "fewer epochs" in verdict_of("sft", nll | {"valid_nll": 1.6}, tmp_path)
    rows = [{"step": i, "score": 0.1 * i, "kl": 0.5 * i} for i in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = verdict_of("rl", {"final": {"score": 0.2}, "num_episodes": 192}, tmp_path)
    assert "rose, 0 to 0.2 (mean of 64 samples an iteration), 1 nats of KL away" in said
    assert "whether people like it better" in said


def test_alarms_are_told_once_each(tmp_path: Path) -> None:
    rows = [{"step": i, "alarm": "no end", "cause": "completions are cut"} for i in (1, 4)]
    rows += [{"step": 2, "alarm": "copies", "cause": "mode collapse"}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert alarm_lines(tmp_path) == [
        "no end (rang 2 times, last at step 5): completions are cut",
        "copies (rang at step 3): mode collapse",
    ]
    assert alarm_lines(tmp_path / "none") == []


def test_who_watches_is_told_of_an_alarm_when_it_rings_first(tmp_path: Path) -> None:
    from accord.progress import Notice
    from accord.train.training_run import TrainingRun

    said: list[tuple[float, str]] = []
    run = TrainingRun(tmp_path, 0, log=lambda *told: said.append(told))
    for step in (2, 5):
        run.event(step, {"alarm": "copies", "cause": "mode collapse"}, done=(step + 1) / 10)
    assert said == [(0.3, "alarm at step 3: copies: mode collapse")] and isinstance(said[0][1], Notice)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_a_reward_model_of_two_rankings_claims_no_accuracy(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("r.jsonl", [{"prompt": p, "chosen": " yes", "rejected": " no"} for p in ("A:", "B:")])
    done = call("reward", "--model", policy_folder, "--data", data, "-o", tmp_path / "r", "reward.epochs=1", "--json")
    told = json.loads(done.stdout)
    assert (told["valid_accuracy"], told["num_held_out"]) == (None, 0)
    assert "too few judgements to hold any out" in told["verdict"]
    card = (tmp_path / "r/model/README.md").read_text()
    assert "A reward model" in card and "RewardModel.load" in card


def test_a_score_out_of_range_is_called_that(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    (tmp_path / "huge_reward.py").write_text("def score(prompts, completions):\n    return [1e30] * len(prompts)\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    data = write_rows("p.jsonl", [{"prompt": "The village:"}])
    argv = ["rl", "--model", policy_folder, "--data", data, "-o", tmp_path / "out", "rl.max_new_tokens=4"]
    argv += ["rl.rewards=[{function: 'huge_reward:score'}]", "rl.prompts_per_iteration=4", "rl.minibatches=1"]
    done = subprocess.run(
        [sys.executable, "-m", "accord", *map(str, argv)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3 and "a score is 1e+30, out of range" in done.stderr
    assert "learning rate" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_a_command_keeps_what_it_did(number: int, argv: list[object], tmp_path: Path) -> None:
    more = ["sft.epochs=100000", "sft.batch_tokens=20", "sft.checkpoint_every=100000"]
    with started([*argv, *more], tmp_path) as child:
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number, err
    assert "stops after this step, with a checkpoint" in err and "goes on after step " in err
    kept = int(err.rsplit("goes on after step ", 1)[1].split()[0])
    assert [path.name for path in (tmp_path / "own/checkpoints").iterdir()] == [f"step_{kept:06d}"]
    assert len((tmp_path / "own/metrics.jsonl").read_text().splitlines()) == kept


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_asked_twice_a_command_stops_at_once(number: int, code: int, tmp_path: Path, policy_folder: Path) -> None:
    """In the midst of a step that never ends."""
    (tmp_path / "slow_reward.py").write_text(
        "import time, pathlib\ndef score(p, c):\n    pathlib.Path('own/metrics.jsonl').write_text('\\n' * 12)\n"
        "    while True: time.sleep(.01)\n"
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "The village:"}\n')
    argv = ["rl", "--model", policy_folder, "--data", "p.jsonl", "-o", "own", "rl.max_new_tokens=4"]
    argv += ["rl.rewards=[{function: 'slow_reward:score'}]", "rl.prompts_per_iteration=4", "rl.minibatches=1"]
    with started(argv, tmp_path) as child:
        child.send_signal(number)
        time.sleep(0.5)
        assert child.poll() is None
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert not (tmp_path / "own/checkpoints").exists() and not (tmp_path / "own/model").exists()


@contextlib.contextmanager
def started(argv: list[object], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command at work, after its first dozen rows."""
    command = [sys.executable, "-m", "accord", *map(str, argv)]
    # A shell starts what runs in the background deaf to Ctrl-C, and children inherit it: not from a handler.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, heard)
    rows = folder / "own/metrics.jsonl"
    try:
        while not rows.exists() or rows.read_text().count("\n") < 12:
            assert child.poll() is None
            time.sleep(0.05)
        yield child
    finally:
        child.kill()
