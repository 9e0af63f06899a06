"""A comparison as one page: the shared stages once a seed, then every method on the same policy and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.config import DpoConfig, Recipe
from accord.errors import DataError
from accord.evals.contestants import Contestant
from accord.files import read_rows, write_json
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import read_prompts
from accord.lock import writes_alone
from accord.loop.cache import Inputs, Runner, Stage
from accord.loop.choosing import PLACES
from accord.loop.round import (
    Champion,
    ask,
    collect,
    first_champion,
    fit_judges,
    fit_reward,
    measure,
    measured_inputs,
    measured_settings,
    pass_gate,
    sample_prompts,
)
from accord.loop.run import (
    TIME_SHARES,
    Where,
    check_recipe,
    open_home,
    prepare_run,
)
from accord.loop.stages import Home, Wait, dpo_stage, json_of, rl_stage
from accord.models.placement import Placement
from accord.progress import Log, named_part, quiet
from accord.records import ranks_by_value
from accord.report.comparison_page import write_comparison
from accord.rollout.engine import Sampling
from accord.rollout.generator import open_generator
from accord.scoring.reward_model import RewardModel
from accord.seeds import stream_seed
from accord.train.training_run import snapshots_of

METHOD_SHARE = 0.15  # of the time of the shared stages, a method


@writes_alone
def compare(
    recipe: Recipe,
    *,
    output_dir: Path,
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
    wait: Wait = False,
    log: Log = quiet,
) -> dict[str, Any]:
    """Run, or continue, every method of ``recipe.compare`` on every seed, and write one report of them all.

    A seed writes into ``seed_N``; ``comparison.json`` and ``report.html`` stand in ``output_dir`` itself. All methods
    start from the seed's SFT policy and are judged as `accord run` judges one policy.
    """
    methods = map(recipe.method, recipe.compare.methods)
    check_recipe(recipe, [one for one in methods if not isinstance(one, int)])
    seeds = recipe.compare.seeds
    where = Where(store or str(output_dir / "accord.db"), output_dir / "downloads", from_dir)
    found = []
    for index, seed in enumerate(seeds):
        part = named_part(log, index, len(seeds), f"seed {seed}")
        seeded = recipe.model_copy(update={"seed": seed})
        home = _open_seed(seeded, output_dir / f"seed_{seed}", where, resume, part, wait)
        found.append(_compare_seed(home))
    write_json(output_dir / "comparison.json", found)
    return write_comparison(output_dir, recipe.name, found)


def _open_seed(recipe: Recipe, folder: Path, where: Where, resume: bool, log: Log, wait: Wait) -> Home:
    return prepare_run(open_home(recipe, folder, where, Runner(folder, compare_shares(recipe), resume, log), wait))


def _compare_seed(home: Home) -> dict[str, Any]:
    champion = first_champion(home)
    samples = sample_prompts(home, champion.policy, home.task.prompts("train"))
    reward = fit_reward(home, collect(home, ask(home, champion, samples)))
    pass_gate(home)
    costs = {name: _carry_out(home, name, champion, reward) for name in home.recipe.compare.methods}
    fit_judges(home)
    home.do(_eval_stage(home, champion, reward))
    found: dict[str, Any] = json_of(home, "eval/results.json")
    return found | {"costs": costs}


def compare_shares(recipe: Recipe) -> dict[str, float]:
    """Share of each stage in the time of a seed."""
    absent = {"rl", "eval", "queued"} | ({"tokenizer", "pretrain"} if recipe.base.model else {"base"})
    absent |= {"candidates"} if recipe.ask.choose in PLACES else set()
    found = {name: share for name, share in TIME_SHARES.items() if name not in absent} | {"labelled": 0.03}
    trained = {name: METHOD_SHARE for name, given in recipe.compare.methods.items() if "best_of" not in given}
    found |= trained | {"eval": 0.1 * len(recipe.compare.methods)}
    return {name: share / sum(found.values()) for name, share in found.items()}


def _carry_out(home: Home, name: str, champion: Champion, reward: Path) -> dict[str, float]:
    """Carry a method out; what it cost: completions scored or labelled for it, and its own share of the time."""
    one = home.recipe.method(name)
    if isinstance(one, int):
        return {"num_scored": 0, "seconds": 0.0}
    if isinstance(one, DpoConfig):
        scored = home.do(_label_stage(home, champion, reward))["labelled"]
        home.do(dpo_stage(home, name, one, champion.policy, home.path("labelled/rankings.jsonl")))
    else:
        home.do(rl_stage(home, name, one, champion.policy, reward))
        scored = round(sum(row.get("scored", 0) for row in read_rows(home.path(f"{name}/metrics.jsonl"))))
    return {"num_scored": scored, "seconds": home.runner.seconds[name]}


def _label_stage(home: Home, champion: Champion, reward: Path) -> Stage:
    """Samples of the policy that all methods start from, ranked by the reward model: what direct methods learn from.

    A completion that did not end is left out, as text does not say so; groups keep what is left.
    """
    config, rl, seed = home.recipe.compare, home.recipe.rl, stream_seed(home.recipe.seed, "labelled")
    sampling = Sampling(rl.max_new_tokens, config.labelled_per_prompt, rl.temperature)

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, "the reward model ranks samples of the SFT policy")
        groups, labelled = _labelled(inputs, config.labelled_prompts, sampling, seed, Placement.of(rl))
        kept = [(prompt, group) for prompt, group in groups if len(group) > 1]
        if not kept:
            raise DataError(
                f"of {labelled} samples of the SFT policy no two of one prompt ended",
                hint="raise rl.max_new_tokens, or train SFT to end",
            )
        write_jsonl(folder / "rankings.jsonl", (_ranking(prompt, group) for prompt, group in kept))
        return {"groups": len(kept), "labelled": labelled}

    inputs = {"model": champion.policy, "reward_model": reward, "prompts": home.task.prompts("train")}
    settings = {"compare": config.model_dump(include={"labelled_prompts", "labelled_per_prompt"})}
    sampled = rl.model_dump(include={"max_new_tokens", "temperature"})
    return home.stage("labelled", settings | {"sampling": sampled}, inputs, work)


Labelled = list[tuple[str, list[tuple[str, float]]]]


def _labelled(inputs: Inputs, count: int, sampling: Sampling, seed: int, placement: Placement) -> tuple[Labelled, int]:
    """Each prompt with its samples that ended and their scores; and how many samples were scored."""
    generator = open_generator(inputs["model"], placement)
    rows = [row.text for row in read_prompts(inputs["prompts"], generator.chat)]
    prompts = [rows[i % len(rows)] for i in range(count)]
    samples = generator.generate(prompts, sampling, seed=seed)
    scorer = RewardModel.load(inputs["reward_model"], placement)
    scores = scorer.score([one.pair for one in samples]).tolist()
    groups: list[list[tuple[str, float]]] = [[] for _ in prompts]
    for place, (one, score) in enumerate(zip(samples, scores, strict=True)):
        if one.finished and one.text.strip():
            groups[place // sampling.samples_per_prompt].append((one.text, score))
    return list(zip(prompts, groups, strict=True)), len(samples)


def _ranking(prompt: str, group: Sequence[tuple[str, float]]) -> dict[str, Any]:
    ranks = ranks_by_value([score for _, score in group])
    return {"prompt": prompt, "completions": [text for text, _ in group], "ranks": ranks, "origin": "reward model"}


def _eval_stage(home: Home, champion: Champion, reward: Path) -> Stage:
    """Measure every method as a run measures its one candidate."""
    methods = {name: home.recipe.method(name) for name in home.recipe.compare.methods}
    trained = {name: home.path(f"{name}/snapshots") for name, one in methods.items() if not isinstance(one, int)}
    best_of = {name: one for name, one in methods.items() if isinstance(one, int)}

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        contestants = [
            Contestant(name, {0: inputs["reference"]}, best_of=best_of[name])
            if name in best_of
            else Contestant(name, snapshots_of(inputs[name]))
            for name in methods
        ]
        measure(home, champion.name, contestants, inputs, folder, log)
        return {}

    inputs = {**measured_inputs(home, champion, reward), **trained}
    return home.stage("eval", {**measured_settings(home), "best_of": best_of}, inputs, work)
