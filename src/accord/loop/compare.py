"""A comparison as one page: the shared stages once a seed, then every method on the same policy and rewards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.config import DpoConfig, Recipe, RlConfig
from accord.errors import DataError
from accord.evals.contestants import Contestant, EvalPrompts
from accord.evals.evaluate import EvalRun, evaluate
from accord.files import write_json
from accord.formats.jsonl import read_prompts, write_jsonl
from accord.loop.cache import Inputs, Log, Runner, Stage
from accord.loop.round import Champion, ask, collect, first_champion, fit_reward, sample, sampling_for_eval
from accord.loop.run import (
    TIME_SHARES,
    Where,
    check_base,
    check_rl,
    check_sampling,
    open_home,
    part_of,
    write_run_files,
)
from accord.loop.stages import Home, dpo_stage, json_of, judge_stage, judges_of, rl_stage
from accord.models.folder import load_policy
from accord.models.placement import Placement
from accord.report.comparison_page import write_comparison
from accord.rollout.engine import Engine, Sampling
from accord.scoring.reward_model import RewardModel
from accord.seeds import stream_seed
from accord.train.training_run import snapshots_of

METHOD_SHARE = 0.15  # of the time of the shared stages, a method


def compare(
    recipe: Recipe,
    *,
    output_dir: Path,
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
    log: Log = lambda fraction, text: None,
) -> dict[str, Any]:
    """Run, or continue, every method of ``recipe.compare`` on every seed, and write one report of them all.

    A seed writes into ``seed_N``; ``comparison.json`` and ``report.html`` stand in ``output_dir`` itself. All methods
    start from the seed's SFT policy and are judged as `evaluate` judges one run.
    """
    recipe.check_lengths()
    check_base(recipe)
    check_sampling(recipe)
    for name in recipe.compare.methods:
        if isinstance(one := recipe.method(name), RlConfig):
            check_rl(one)
    seeds = recipe.compare.seeds
    where = Where(store or str(output_dir / "accord.db"), output_dir / "downloads", from_dir)
    found = []
    for index, seed in enumerate(seeds):
        part = part_of(log, index, len(seeds), f"seed {seed}")
        seeded = recipe.model_copy(update={"seed": seed})
        found.append(_compare_seed(seeded, output_dir / f"seed_{seed}", where, resume, part))
    write_json(output_dir / "comparison.json", found)
    return write_comparison(output_dir, recipe.name, found)


def _compare_seed(recipe: Recipe, folder: Path, where: Where, resume: bool, log: Log) -> dict[str, Any]:
    home = open_home(recipe, folder, where, Runner(folder, compare_shares(recipe), resume, log))
    write_run_files(recipe, folder)
    champion = first_champion(home)
    reward = fit_reward(home, collect(home, ask(home, sample(home, champion.policy, home.task.prompts("train")))))
    costs = {name: _method(home, name, champion, reward) for name in recipe.compare.methods}
    for name in judges_of(home):
        home.do(judge_stage(home, name))
    home.do(_eval_stage(home, champion, reward, costs))
    return {**json_of(home, "eval/results.json"), "costs": json_of(home, "eval/costs.json")}


def compare_shares(recipe: Recipe) -> dict[str, float]:
    """Share of each stage in the time of a seed."""
    absent = {"rl", "eval", "queued"} | ({"tokenizer", "pretrain"} if recipe.base.model else {"base"})
    found = {name: share for name, share in TIME_SHARES.items() if name not in absent} | {"labelled": 0.03}
    trained = {name: METHOD_SHARE for name, given in recipe.compare.methods.items() if "best_of" not in given}
    found |= trained | {"eval": 0.1 * len(recipe.compare.methods)}
    return {name: share / sum(found.values()) for name, share in found.items()}


def _method(home: Home, name: str, champion: Champion, reward: Path) -> dict[str, float]:
    """Carry a method out. Returns its cost: completions scored or labelled for it, and its own share of the time."""
    one = home.recipe.method(name)
    if isinstance(one, int):
        return {"num_scored": 0, "seconds": 0.0}
    if isinstance(one, DpoConfig):
        scored = home.do(_label_stage(home, champion, reward))["labelled"]
        home.do(dpo_stage(home, name, one, champion.policy, home.path("labelled/rankings.jsonl")))
    else:
        home.do(rl_stage(home, name, one, champion.policy, reward))
        rows = home.path(f"{name}/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        scored = round(sum(json.loads(row)["scored"] for row in rows))
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
    policy, words = load_policy(inputs["model"], placement)
    rows = [row.text for row in read_prompts(inputs["prompts"], words.chat)]
    prompts = [rows[i % len(rows)] for i in range(count)]
    samples = Engine(policy, words.stop_ids).generate([words.encode(p) for p in prompts], sampling, seed=seed)
    pairs = [(prompts[s.prompt_index], words.decode(s.completion)) for s in samples]
    scores = RewardModel.load(inputs["reward_model"], placement).score(pairs).tolist()
    groups: list[list[tuple[str, float]]] = [[] for _ in prompts]
    for one, (_, text), score in zip(samples, pairs, scores, strict=True):
        if one.finish == "stop" and text.strip():
            groups[one.prompt_index].append((text, score))
    return list(zip(prompts, groups, strict=True)), len(samples)


def _ranking(prompt: str, group: Sequence[tuple[str, float]]) -> dict[str, Any]:
    ranks = [1 + sum(other > score for _, other in group) for _, score in group]
    return {"prompt": prompt, "completions": [text for text, _ in group], "ranks": ranks, "origin": "reward model"}


def _eval_stage(home: Home, champion: Champion, reward: Path, costs: Mapping[str, Mapping[str, float]]) -> Stage:
    recipe, task = home.recipe, home.task
    best_of = {name: one for name in recipe.compare.methods if isinstance(one := recipe.method(name), int)}
    trained = [name for name in recipe.compare.methods if name not in best_of]
    read = {
        "sft": champion.policy,
        "reward_model": reward,
        "valid_prompts": task.prompts("valid"),
        "test_prompts": task.prompts("test"),
        **{f"judge_{name}": home.path(f"judge_{name}") for name in judges_of(home)},
        **{name: home.path(f"{name}/snapshots") for name in trained},
    }

    def contestant(name: str, inputs: Inputs) -> Contestant:
        if name in best_of:
            return Contestant(name, {0: inputs["sft"]}, best_of=best_of[name])
        return Contestant(name, snapshots_of(inputs[name]))

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        placement = Placement.of(recipe.rl)
        evaluate(
            recipe.eval,
            [contestant(name, inputs) for name in recipe.compare.methods],
            reference=Contestant("sft", {0: inputs["sft"]}),
            proxy=RewardModel.load(inputs["reward_model"], placement),
            judges={name: load(inputs[f"judge_{name}"], placement) for name, load in judges_of(home).items()},
            prompts=EvalPrompts(inputs["valid_prompts"], inputs["test_prompts"]),
            run=EvalRun(folder, sampling_for_eval(recipe), recipe.seed, placement, log),
        )
        write_json(folder / "costs.json", costs)
        return {}

    return home.stage("eval", {"config": recipe.eval.model_dump(), "best_of": best_of}, read, work)
