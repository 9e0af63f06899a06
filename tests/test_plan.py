"""The plan of a run: against a run of the same recipe, hand-made files and arithmetic; and that nothing is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows
from safetensors.torch import load_file

from accord.cli.plans import plan_text
from accord.config import Recipe, load_recipe
from accord.errors import UsageError
from accord.loop.costs import Amounts, Estimator, ModelSize, StageWork
from accord.loop.plan import RunPlan, plan_run
from accord.loop.run import run
from accord.models.weights import count_weights
from accord.text.tokenizer import load_tokenizer

TINY = [
    *("sample.samples_per_prompt=2", "sample.max_new_tokens=6", "ask={who: scorer, scorer: {regex: e}, prompts: 4}"),
    *("ask.queue=0", "reward={epochs: 1, precision: fp32, max_tokens: 80}", "rl.iterations=2", "rl.ppo_epochs=1"),
    *("rl.prompts_per_iteration=4", "rl.max_new_tokens=6", "rl.eval_every=1", "rl.precision=fp32"),
    *("eval={samples_per_prompt: 1, best_of: 2, bootstrap: 100, curve_samples: 1}",),
    "task.chat=true",
]
JUDGE = "eval.judges={vowels: {regex: '[aeiou]'}}"
ASKED = [f"What is in house {i}?" for i in range(40)] + ["Why " * 30 + "?"]


@pytest.fixture
def recipe(chat_model: Path, write_rows: WriteRows) -> Any:
    """``recipe(*overrides)``: a run of a chat model on 41 prompts, of which one is long."""
    prompts = write_rows("prompts.jsonl", [{"prompt": asked} for asked in ASKED])

    def make(*overrides: str) -> Recipe:
        return load_recipe(
            None,
            [f"base.model={chat_model}", f"task.prompts={prompts}", "task.judge_share=0", *TINY, JUDGE, *overrides],
        )

    return make


def states(plan: RunPlan) -> dict[str, str]:
    """What is to become of each stage; of several rounds, ``2 rl``."""
    rounds = max(stage.round for stage in plan.stages)
    return {f"{stage.round} {stage.name}" if rounds > 1 else stage.name: stage.state for stage in plan.stages}


def why(plan: RunPlan, name: str) -> str:
    return next(stage.why for stage in plan.stages if stage.name == name)


# ---- before a run ----------------------------------------------------------------------------------------------------


def test_the_plan_of_a_run_that_has_not_begun(recipe: Any, tmp_path: Path, chat_model: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = plan_run(recipe(), output_dir=tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before
    names = ["data", "sft", "sample", "ask", "rankings", "reward", "rl", "eval"]
    assert states(plan) == {name: "left out" if name == "sft" else "to do" for name in names}
    assert why(plan, "sft") == "as the task has no demonstrations" and not plan.is_done
    # By hand: the template writes "[user] ...", a line end, and "[assistant] ".
    tokenizer = load_tokenizer(chat_model)
    lengths = [len(tokenizer.encode(f"[user] {asked}\n[assistant] ")) for asked in ASKED]
    counts = plan.counts["prompts"]
    assert counts.keys() == {"train", "valid", "test", "judge"} and sum(counts.values()) == 41
    assert plan.lengths is not None and plan.lengths.count == 41
    assert plan.lengths.mean == pytest.approx(sum(lengths) / 41)
    assert plan.lengths.longest == max(lengths) and plan.lengths.answer == 6
    assert plan.lengths.too_long == {"the model's positions": (640, 0), "reward.max_tokens": (80, 1)}
    assert all(text.pieces[0][0].startswith("[user] What is") for text in plan.prompts) and len(plan.prompts) == 3
    assert plan.demonstration is None


def test_a_demonstration_shows_what_counts(recipe: Any, tmp_path: Path, write_rows: WriteRows) -> None:
    rows = [{"prompt": f"Ask {i}?", "completion": "Gladly."} for i in range(40)]
    plan = plan_run(recipe(f"task.demonstrations={write_rows('d.jsonl', rows)}"), output_dir=tmp_path / "run")
    assert plan.demonstration is not None and states(plan)["sft"] == "to do"
    (read, _), (counted, counts) = plan.demonstration.pieces
    assert read.startswith("[user] Ask ") and read.endswith("?\n[assistant] ")
    assert (counted, counts) == ("Gladly.\n<|end|>", True)
    assert sum(plan.counts["demonstrations"].values()) == 40
    text = plan_text(plan)
    assert "  | [assistant] \n  > Gladly.\n  > <|end|>" in text and "lines marked > count in the loss" in text


def test_what_a_run_would_miss_is_said_before_it(recipe: Any, tmp_path: Path) -> None:
    given = recipe("ask.prompts=90", "task.chat=false")
    no_judge = given.model_copy(update={"eval": given.eval.model_copy(update={"judges": {}})})
    plan = plan_run(given, output_dir=tmp_path / "run")
    train, test = plan.counts["prompts"]["train"], plan.counts["prompts"]["test"]
    *notes, fitted = plan.notes
    assert fitted.endswith("fitted to the model and the data: --show-recipe in place of --dry-run says why")
    assert tuple(notes) == (
        f"ask.prompts 90 is above {train} train prompts: some are asked again, with new samples",
        # 85 is the number that tests/test_stats.py works out; 41 prompts in all, .3 of them 12.
        f"{test} test prompts are too few to be sure of a win rate of 0.65, which takes 85; "
        "task.test_share=0.3 would leave about 12",
        "the model is a chat model: prompts of plain text are read without its template, unless task.chat is true",
    )
    chat = "scorer: {regex: '', chat: {url: 'http://localhost:1', model: judge-1}}"
    asked = recipe(f"ask={{who: scorer, {chat}}}", "ask.prompts=5", "sample.samples_per_prompt=3")
    # Three pairs of three samples, each in both orders, of five prompts: 30.
    told = "judge-1 is asked up to 30 times a round: about every two samples, in both orders"
    assert told in plan_run(asked, output_dir=tmp_path / "run").notes
    with pytest.raises(UsageError, match="nobody judges the result"):
        plan_run(no_judge, output_dir=tmp_path / "run")
    shared = no_judge.model_copy(update={"task": no_judge.task.model_copy(update={"judge_share": 0.2})})
    plan = plan_run(shared, output_dir=tmp_path / "run")
    assert plan.notes[-1].startswith("20% of the prompts that are asked about teach the judge alone")
    assert [name for name in states(plan) if name.startswith("judge_")]
    with pytest.raises(UsageError, match="no judgements to learn from, and nobody is asked"):
        plan_run(recipe("ask={who: nobody, scorer: null}"), output_dir=tmp_path / "run")


def test_people_are_waited_for_and_their_answers_counted(recipe: Any, tmp_path: Path) -> None:
    """Four prompts by two people: 8 rankings, or of three samples 3 pairs each, 24."""
    people = ("ask={who: people, scorer: null, overlap: 2}", "sample.samples_per_prompt=3")
    for kind, answers in (("ranking", 8), ("pair", 24)):
        plan = plan_run(recipe(*people, f"ask.kind={kind}"), output_dir=tmp_path / "run")
        assert why(plan, "ask") == f"waits for people: up to {answers} answers"
    assert "people's time aside" in plan_text(plan)


def test_rows_that_are_no_good_are_counted(recipe: Any, tmp_path: Path, write_rows: WriteRows) -> None:
    log = write_rows("odd.jsonl", [*({"prompt": f"Ask {i}?"} for i in range(40)), {"prompt": " "}, {"prompt": 7}])
    plan = plan_run(recipe(f"task.prompts={log}"), output_dir=tmp_path / "run")
    assert sum(plan.counts["prompts"].values()) == 40
    assert "left out of the prompts: 1 a text is empty, 1" in plan_text(plan)


# ---- beside a run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_plan_is_what_the_run_then_does(recipe: Any, tmp_path: Path) -> None:
    out, two = tmp_path / "run", recipe("rounds=2")
    plan = plan_run(two, output_dir=out)
    run(two, output_dir=out)
    made = {f"1 {path.parent.name}" for path in out.glob("*/stage.json")}
    made |= {f"2 {path.parent.name}" for path in out.glob("round_2/*/stage.json")}
    assert {name for name, state in states(plan).items() if state == "to do"} == made
    # A prompt that the reward model has no room for ends no run; in which split it stands is a matter of its hash.
    long = next(path for path in out.glob("data/prompts_*.jsonl") if "Why Why" in path.read_text())
    named = {"prompts_test": "test", "prompts_valid": "validation"}.get(long.stem)
    results = json.loads((out / "eval/results.json").read_text())
    assert results["left_out"] == ({named: {"reward model": 1}} if named else {})
    assert named is not None, long
    for split, count in plan.counts["prompts"].items():
        assert len((out / f"data/prompts_{split}.jsonl").read_text().splitlines()) == count
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = plan_run(two, output_dir=out)
    assert done.is_done and set(states(done).values()) == {"done", "left out"}
    assert done.cost is not None and (done.cost.seconds, done.cost.tokens, done.cost.disk) == (0, 0, 0)
    assert done.counts == plan.counts and done.lengths == plan.lengths

    changed = plan_run(recipe("rounds=2", "rl.kl_coef=0.3"), output_dir=out)
    found = {stage.name: (stage.state, stage.why) for stage in changed.stages if stage.round == 1}
    assert found["reward"] == ("done", "") and found["rl"][1] == "again: its settings or what it reads have changed"
    assert found["eval"] == ("to do", "unless rl comes out as before")

    (out / "round_2/rl/stage.json").rename(tmp_path / "aside.json")  # as after a kill in the second round
    (out / "round_2/rl/checkpoints/step_000001").mkdir(parents=True)
    begun = plan_run(two, output_dir=out)
    found = {stage.name: (stage.state, stage.why) for stage in begun.stages if stage.round == 2}
    assert found["rl"] == ("begun", "goes on from step_000001") and found["reward"] == ("done", "")
    assert found["eval"][0] == "to do"
    assert set(states(plan_run(two, output_dir=out, resume=False)).values()) == {"to do", "left out"}
    (out / "round_2/rl/checkpoints/step_000001").rmdir()
    (out / "round_2/rl/checkpoints").rmdir()
    (tmp_path / "aside.json").rename(out / "round_2/rl/stage.json")
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert before.keys() == after.keys()


def test_a_task_that_prepares_for_minutes_is_left_alone(tmp_path: Path) -> None:
    plan = plan_run(load_recipe("smoke"), output_dir=tmp_path / "run")
    assert plan.counts == {} and plan.cost is None and not list(tmp_path.iterdir())
    assert plan.notes[0].startswith("counts and costs are known once the task accord.demo.films:FILMS")
    assert list(states(plan))[:4] == ["data", "tokenizer", "pretrain", "sft"]
    assert "judge_ratings" in states(plan) and "plan of smoke" in plan_text(plan)


def test_a_comparison_is_planned_for_one_of_its_seeds(tmp_path: Path) -> None:
    made = load_recipe("compare")
    found = states(plan_run(made, output_dir=tmp_path / "run"))
    assert list(found)[-len(made.compare.methods) - 1 :] == [*made.compare.methods, "eval"]
    assert not list(tmp_path.iterdir())


# ---- costs -----------------------------------------------------------------------------------------------------------

SIZE = ModelSize(weights=1_000_000, width=100, layers=10, positions=512)


def estimate(*overrides: str, **amounts: Any) -> Estimator:
    return Estimator(load_recipe(None, list(overrides)), SIZE, Amounts(prompt=5.0, **amounts))


def test_weights_are_counted_without_being_loaded(chat_model: Path) -> None:
    assert count_weights(chat_model) == sum(t.numel() for t in load_file(chat_model / "model.safetensors").values())


def test_seconds_of_a_stage_by_hand() -> None:
    """At 1e9 operations a second: learning 6 x 1e6 x 1000 at half speed, reading 2 x at half, writing at a quarter."""
    assert StageWork(learnt=1000).seconds(SIZE, 1e9) == pytest.approx(12)
    assert StageWork(read=1000).seconds(SIZE, 1e9) == pytest.approx(4)
    assert StageWork(written=1000).seconds(SIZE, 1e9) == pytest.approx(8)
    assert StageWork(learnt=1000, adapter=True).seconds(SIZE, 1e9) == pytest.approx(8)
    assert StageWork(learnt=1000, share=0.5).seconds(SIZE, 1e9) == pytest.approx(6)
    assert StageWork(1, 2, 3).tokens == 6


def test_work_of_sft_and_samples_by_hand() -> None:
    made = estimate("sft.epochs=2.5", "ask.prompts=3", "sample.max_new_tokens=20", demonstrations=400)
    sft, sample = made.work("sft", 1), made.work("sample", 1)
    assert (sft.learnt, sft.read, sft.written) == (1000, 0, 0)
    # Four samples of each of three prompts, of 20 tokens at most; each prompt is read once.
    assert (sample.read, sample.written, sample.learnt) == (15, 240, 0)
    # Trained in full: weights, gradient and two averages; 1000 tokens of 10 layers of 100; saved, and two checkpoints.
    assert sft.memory == 16e6 + 1000 * 10 * 100 * 150 and sft.disk == 4e6 + 2 * 12e6
    assert made.work("data", 1).tokens == 0


def test_work_of_ppo_by_hand() -> None:
    """Two iterations of four completions of 10 tokens to prompts of 5, three passes of policy and critic."""
    keys = ("rl.iterations=2", "rl.prompts_per_iteration=4", "rl.max_new_tokens=10", "rl.ppo_epochs=3")
    ppo = estimate(*keys, "rl.eval_every=1").work("rl", 1)
    assert ppo.written == 8 * 10 and ppo.read == 8 * (5 + 15 * 4) and ppo.learnt == 8 * 15 * 3 * 2
    # Policy and critic train, reference and reward model stand; four texts of 15 tokens at once.
    assert ppo.memory == 2 * 16e6 + 2 * 4e6 + 60 * 10 * 100 * 150
    assert ppo.disk == 3 * 4e6 + 2 * 24e6  # two snapshots and the last; checkpoints of both
    rloo = estimate(*keys, "rl.algorithm=rloo", "rl.ppo_epochs=1", "rl.lora.rank=8").work("rl", 1)
    # Four completions of each prompt, no critic; the adapter off is the reference; the reward model stands beside it.
    assert (rloo.adapter, rloo.learnt) == (True, 4 * 8 * 15)
    assert rloo.memory == 2 * 4e6 + 240 * 10 * 100 * 150


def test_the_reward_model_reads_what_stood_and_what_each_round_asked() -> None:
    made = estimate(
        "reward.epochs=2", "ask={who: people, prompts: 3, overlap: 2}", "sample.max_new_tokens=20", judged=70
    )
    asked = 3 * 2 * 4 * (5 + 20)
    assert made.work("reward", 1).learnt == 2 * (70 + asked)
    assert made.work("reward", 2).learnt == 2 * (70 + 2 * asked)
    assert estimate("reward.epochs=2", judged=70).work("reward", 2).learnt == 140
    half = estimate("reward.trunk_layers=5", judged=70).work("reward", 1)
    assert half.share == 0.5 and half.disk == 0.5 * (4e6 + 24e6)


def test_controls_and_methods_have_their_own_work() -> None:
    made = estimate("controls={long: {rl: {iterations: 120}}}")
    assert made.work("rl_long", 1).learnt == 2 * made.work("rl", 1).learnt
    methods = estimate("compare.methods={short: {rl: {iterations: 30}}, n: {best_of: 4}}")
    assert methods.work("short", 1).learnt == made.work("rl", 1).learnt / 2 and methods.work("n", 1) == StageWork()


def test_the_sum_is_of_what_is_left(recipe: Any, tmp_path: Path) -> None:
    plan = plan_run(recipe(), output_dir=tmp_path / "run")
    cost = plan.cost
    assert cost is not None and cost.seconds == pytest.approx(sum(stage.seconds or 0 for stage in plan.stages))
    assert cost.tokens == sum(stage.tokens or 0 for stage in plan.stages) > 0
    assert (cost.low, cost.high) == (cost.seconds / 2, cost.seconds * 2) and not math.isnan(cost.memory)
    assert "measured just now" in cost.basis and "an estimate" in plan_text(plan)
    assert cost.memory_stage in ("rl", "reward") and cost.disk_free > 0
