"""One turn of the loop: sample, ask, learn what is liked, optimise, look whether it is better, promote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import Recipe, RlConfig
from accord.evals.contestants import Contestant, EvalPrompts
from accord.evals.evaluate import EvalRun
from accord.evals.evaluate import evaluate as evaluate_policies
from accord.evals.results import summarise
from accord.files import write_json
from accord.loop.asking import JUDGEMENTS, SAMPLES, ask_stage, collect_stage, queue_stage
from accord.loop.cache import Inputs, Log, Stage
from accord.loop.stages import (
    Home,
    data_stage,
    json_of,
    judge_stage,
    judges_of,
    publish,
    reward_stage,
    rl_stage,
    sample_stage,
    sft_stage,
    start_of,
    start_stages,
)
from accord.models.placement import Placement
from accord.report.run_page import write_model_card, write_report
from accord.rollout.engine import Sampling
from accord.scoring.weighted import load_scorer, scorer_inputs
from accord.train.training_run import snapshots_of


@dataclass(frozen=True)
class Champion:
    """The policy that the next round starts from, and the model that its reward model is built on."""

    policy: Path
    start: Path


def play_round(home: Home, champion: Champion) -> Champion:
    """Sample, ask, learn what is liked, optimise, look whether it is better, and promote or say why not."""
    prompts = home.task.prompts("train")
    samples = sample(home, champion.policy, prompts)
    asked = ask(home, samples)
    judgements = collect(home, asked)
    reward = fit_reward(home, judgements)
    candidate = optimise(home, "rl", home.recipe.rl, champion.policy, reward)
    controls = optimise_controls(home, champion.policy, reward)
    verdict = evaluate(home, champion, candidate, controls, reward)
    promoted = promote(home, candidate, verdict)
    queue(home, promoted.policy)
    report(home, verdict)
    return promoted


def first_champion(home: Home) -> Champion:
    """What there is before the first round: the task's files, a model, and its fine-tuning on demonstrations."""
    home.do(data_stage(home))
    for stage in start_stages(home):
        home.do(stage)
    fine_tuning = sft_stage(home)
    if fine_tuning is None:
        return Champion(start_of(home), start_of(home))
    home.do(fine_tuning)
    return Champion(home.path("sft/model"), start_of(home))


def sample(home: Home, policy: Path, prompts: Path) -> Path | None:
    """Completions of the policy for somebody to rank; none where nobody is asked."""
    if home.recipe.ask.who == "nobody":
        return None
    home.do(sample_stage(home, "sample", policy, prompts, home.recipe.ask.prompts, "ranked samples"))
    return home.path(f"sample/{SAMPLES}")


def ask(home: Home, samples: Path | None) -> Path | None:
    """Their judgements as a file; none where nobody is asked."""
    stage = None if samples is None else ask_stage(home, samples, "sft")
    if stage is None:
        return None
    home.do(stage)
    return home.path(f"ask/{JUDGEMENTS}")


def collect(home: Home, asked: Path | None) -> Path:
    """All judgements of the round: those that stood already and those just made."""
    home.do(collect_stage(home, asked))
    return home.path("rankings/rankings.jsonl")


def fit_reward(home: Home, judgements: Path) -> Path:
    """A reward model of the judgements."""
    home.do(reward_stage(home, judgements))
    return home.path("reward/model")


def optimise(home: Home, name: str, config: RlConfig, policy: Path, reward: Path) -> Path:
    """Snapshots of the policy while it is optimised against the reward model."""
    home.do(rl_stage(home, name, config, policy, reward))
    return home.path(f"{name}/snapshots")


def optimise_controls(home: Home, policy: Path, reward: Path) -> dict[str, Path]:
    """Snapshots of the same optimisation with the changes of each control."""
    recipe = home.recipe
    return {name: optimise(home, f"rl_{name}", recipe.control(name), policy, reward) for name in recipe.controls}


def evaluate(
    home: Home, champion: Champion, candidate: Path, controls: Mapping[str, Path], reward: Path
) -> dict[str, Any]:
    """What the judges say of the candidate and its controls on prompts that nothing was trained on."""
    for name in judges_of(home):
        home.do(judge_stage(home, name))
    home.do(eval_stage(home, champion, candidate, controls, reward))
    found: dict[str, Any] = json_of(home, "eval/results.json")
    return found


def promote(home: Home, candidate: Path, verdict: Mapping[str, Any]) -> Champion:
    """Publish the snapshot that the judge chose, and record whether it held its floors."""
    step = verdict["selections"][verdict["candidate"]]["step"]
    policy = publish(home, candidate / f"step_{step:06d}")
    return Champion(policy, start_of(home))


def queue(home: Home, policy: Path) -> None:
    """Samples of the published policy wait for people: `accord label` shows them."""
    count = home.recipe.ask.queue
    if not count:
        return
    prompts = home.task.prompts("train")
    home.do(sample_stage(home, "queued", policy, prompts, count, "queued samples"))
    home.do(queue_stage(home, "queue", home.path(f"queued/{SAMPLES}"), "rl"))


def report(home: Home, verdict: Mapping[str, Any]) -> None:
    """The summary, the model card and the page of the run."""
    write_json(home.path("summary.json"), summary_of(home, verdict))
    write_model_card(home.runner.folder)
    write_report(home.runner.folder)


def summary_of(home: Home, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers that decide, out of what the stages wrote."""
    manifest, place = json_of(home, "data/manifest.json"), home.path("reward/card.json")
    card = json_of(home, "reward/card.json") if place.exists() else None
    counts = {**manifest["counts"], **{key: manifest[key] for key in ("human_rankings",) if key in manifest}}
    seconds = round(sum(home.runner.seconds.values()), 1)
    baseline = home.task.held_out.baseline if home.task.held_out else ""
    found = summarise(verdict, card, baseline=baseline, seconds=seconds, counts=counts)
    return found | {"champion": champion_record(found["floors"])}


def champion_record(floors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the candidate is promoted, or which floors it broke."""
    broken = [
        f"{name} is {floor['value']:.3g}, not {floor['bound']}" for name, floor in floors.items() if not floor["held"]
    ]
    return {"policy": "model", "promoted": not broken, "reasons": broken}


# ---- the evaluation as a stage ---------------------------------------------------------------------------------------


def control_note(recipe: Recipe, name: str) -> str:
    """What a control does otherwise, in words."""
    own, other = _flat(recipe.rl.model_dump()), _flat(recipe.control(name).model_dump())
    said = [f"{key} {new} instead of {own[key]}" for key, new in other.items() if new != own[key]]
    return ", ".join(said) or "nothing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def eval_stage(home: Home, champion: Champion, candidate: Path, controls: Mapping[str, Path], reward: Path) -> Stage:
    """Measure the candidate beside its controls, the policy it started from and best-of-n."""
    recipe, task = home.recipe, home.task
    inputs = {
        "base": champion.start,
        "sft": champion.policy,
        "reward_model": reward,
        "valid_prompts": task.prompts("valid"),
        "test_prompts": task.prompts("test"),
        "rl": candidate,
        **{f"judge_{name}": home.path(f"judge_{name}") for name in judges_of(home)},
        **{f"rl_{name}": folder for name, folder in controls.items()},
        **scorer_inputs(recipe.rl.rewards),
    }

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        placement = Placement.of(recipe.rl)
        evaluate_policies(
            recipe.eval,
            contestants_of(recipe, inputs),
            reference=Contestant("sft" if inputs["sft"] != inputs["base"] else "base", {0: inputs["sft"]}),
            proxy=load_scorer(recipe.rl.rewards, inputs["reward_model"], placement),
            judges={name: load(inputs[f"judge_{name}"], placement) for name, load in judges_of(home).items()},
            prompts=EvalPrompts(inputs["valid_prompts"], inputs["test_prompts"]),
            run=EvalRun(folder, sampling_for_eval(recipe), recipe.seed, placement, log),
        )
        return {}

    rewards = [one.model_dump() for one in recipe.rl.rewards]
    settings = {"config": recipe.eval.model_dump(), "rewards": rewards, "controls": dict(recipe.controls)}
    return home.stage("eval", settings, inputs, work)


def contestants_of(recipe: Recipe, inputs: Inputs) -> list[Contestant]:
    """The base, best-of-n of the policy it became, the optimised policy by its algorithm's name, and the controls."""
    algorithm, n = recipe.rl.algorithm.rsplit(":", 1)[-1], recipe.eval.best_of
    base = [Contestant("base", {0: inputs["base"]}, "baseline", "before fine-tuning")]
    best = Contestant("best_of_n", {0: inputs["sft"]}, "baseline", f"the proxy picks one of {n} samples", n)
    controls = [
        Contestant(
            f"{algorithm} {name}",
            snapshots_of(inputs[f"rl_{name}"]),
            "control",
            control_note(recipe, name),
            stream=f"{algorithm}_{name}",
        )
        for name in recipe.controls
    ]
    found = [best, Contestant(algorithm, snapshots_of(inputs["rl"])), *controls]
    return found if inputs["sft"] == inputs["base"] else base + found


def sampling_for_eval(recipe: Recipe) -> Sampling:
    """How completions are drawn that are measured: as those were that the policy was optimised on."""
    return Sampling(recipe.rl.max_new_tokens, temperature=recipe.rl.temperature)
