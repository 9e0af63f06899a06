"""A comparison as one page: the shared stages once a seed, then every method on the same SFT policy and rewards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.config import DpoConfig, Recipe, RlConfig
from accord.errors import DataError
from accord.evals.comparison import Method, compare_policies
from accord.files import read_json, write_json
from accord.formats.jsonl import read_prompts, write_jsonl
from accord.loop.cache import Log, Runner
from accord.loop.run import (
    SHARES,
    Stages,
    check_base,
    check_rl,
    check_sampling,
    fit_and_save_judge,
    write_run_files,
)
from accord.models.folder import load_policy
from accord.models.placement import Placement
from accord.report.comparison_page import write_comparison
from accord.rollout.engine import Engine, Sampling
from accord.scoring.reward_model import RewardModel
from accord.seeds import stream_seed
from accord.train.loop import snapshots_of

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
    found = []
    for index, seed in enumerate(seeds):

        def part(fraction: float, text: str, index: int = index, seed: int = seed) -> None:
            log((index + fraction) / len(seeds), f"seed {seed}: {text}")

        folder = output_dir / f"seed_{seed}"
        found.append(
            _compare_seed(recipe.model_copy(update={"seed": seed}), folder, output_dir, store, from_dir, resume, part)
        )
    write_json(output_dir / "comparison.json", found)
    return write_comparison(output_dir, recipe.name, found)


def _compare_seed(
    recipe: Recipe, folder: Path, shared: Path, store: str | None, from_dir: Path | None, resume: bool, log: Log
) -> dict[str, Any]:
    names = list(recipe.compare.methods)
    runner = Runner(folder, compare_shares(recipe), resume, log)
    write_run_files(recipe, folder)
    stages = Stages(recipe, runner, store or str(shared / "accord.db"), shared / "downloads", from_dir)
    stages.to_reward_model()
    settings = {name: recipe.method(name) for name in names}
    if any(isinstance(one, DpoConfig) for one in settings.values()):
        _label(recipe, stages)
    for name, one in settings.items():
        if isinstance(one, RlConfig):
            stages.rl(name, one)
        elif isinstance(one, DpoConfig):
            stages.dpo(name, one, folder / "labelled/rankings.jsonl")
    return _evaluate(recipe, stages, [_method(recipe, stages, name, one) for name, one in settings.items()])


def compare_shares(recipe: Recipe) -> dict[str, float]:
    """Share of each stage in the time of a seed."""
    absent = {"rl", "rl_uncured", "eval", "queue"} | ({"tokenizer", "pretrain"} if recipe.base.model else {"base"})
    found = {name: share for name, share in SHARES.items() if name not in absent} | {"labelled": 0.03}
    trained = {name: METHOD_SHARE for name, given in recipe.compare.methods.items() if "best_of" not in given}
    found |= trained | {"eval": 0.1 * len(recipe.compare.methods)}
    return {name: share / sum(found.values()) for name, share in found.items()}


def _label(recipe: Recipe, stages: Stages) -> None:
    """Samples of the SFT policy, ranked by the reward model: what the direct methods learn from.

    A completion that did not end is left out, as text does not say so; groups keep what is left.
    """
    config = recipe.compare
    inputs = {
        "model": stages.path("sft/model"),
        "reward_model": stages.path("reward/model"),
        "prompts": stages.path("data/prompts_train.jsonl"),
    }

    def work(folder: Path, log: Log) -> Any:
        log(0.0, "the reward model ranks samples of the SFT policy")
        placement = Placement.of(recipe.rl)
        policy, words = load_policy(inputs["model"], placement)
        rows = [row.text for row in read_prompts(inputs["prompts"])]
        prompts = [rows[i % len(rows)] for i in range(config.labelled_prompts)]
        sampling = Sampling(recipe.rl.max_new_tokens, config.labelled_per_prompt, recipe.rl.temperature)
        seed = stream_seed(recipe.seed, "labelled")
        samples = Engine(policy, words.stop_ids).generate([words.encode(p) for p in prompts], sampling, seed=seed)
        pairs = [(prompts[s.prompt_index], words.decode(s.completion)) for s in samples]
        scores = RewardModel.load(inputs["reward_model"], placement).score(pairs).tolist()
        groups: list[list[tuple[str, float]]] = [[] for _ in prompts]
        for sample, (_, text), score in zip(samples, pairs, scores, strict=True):
            if sample.finish == "stop" and text.strip():
                groups[sample.prompt_index].append((text, score))
        kept = [(prompt, group) for prompt, group in zip(prompts, groups, strict=True) if len(group) > 1]
        if not kept:
            raise DataError(
                f"of {len(samples)} samples of the SFT policy no two of one prompt ended",
                hint="raise rl.max_new_tokens, or train SFT to end",
            )
        write_jsonl(folder / "rankings.jsonl", (_ranking(prompt, group) for prompt, group in kept))
        return {"groups": len(kept), "labelled": len(samples)}

    settings = {"compare": config.model_dump(include={"labelled_prompts", "labelled_per_prompt"})}
    sampled = recipe.rl.model_dump(include={"max_new_tokens", "temperature"})
    stages.stage("labelled", settings | {"sampling": sampled}, inputs, work)


def _ranking(prompt: str, group: Sequence[tuple[str, float]]) -> dict[str, Any]:
    ranks = [1 + sum(other > score for _, other in group) for _, score in group]
    return {"prompt": prompt, "completions": [text for text, _ in group], "ranks": ranks, "origin": "reward model"}


def _method(recipe: Recipe, stages: Stages, name: str, one: RlConfig | DpoConfig | int) -> Method:
    """What a method left, and what it cost."""
    if isinstance(one, int):
        return Method(name, {}, one, 0, 0.0)
    seconds = stages.runner.seconds[name]
    if isinstance(one, DpoConfig):
        labelled = read_json(stages.path("labelled/stage.json"))["result"]["labelled"]
        return Method(name, snapshots_of(stages.path(f"{name}/snapshots")), 0, labelled, seconds)
    rows = stages.path(f"{name}/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    scored = round(sum(json.loads(row)["scored"] for row in rows))
    return Method(name, snapshots_of(stages.path(f"{name}/snapshots")), 0, scored, seconds)


def _evaluate(recipe: Recipe, stages: Stages, methods: Sequence[Method]) -> dict[str, Any]:
    judged = stages.path("data/reviews_judge.jsonl")
    inputs = {
        "sft": stages.path("sft/model"),
        "reward_model": stages.path("reward/model"),
        "valid_prompts": stages.path("data/prompts_valid.jsonl"),
        "test_prompts": stages.path("data/prompts_test.jsonl"),
    }
    trained = {one.name: stages.path(f"{one.name}/snapshots") for one in methods if one.snapshots}

    def work(folder: Path, log: Log) -> Any:
        judge = fit_and_save_judge(judged, folder / "judge", log)
        compare_policies(
            recipe.eval,
            **inputs,
            methods=methods,
            judge=folder / "judge",
            max_new_tokens=recipe.rl.max_new_tokens,
            temperature=recipe.rl.temperature,
            output_dir=folder,
            seed=recipe.seed,
            placement=Placement.of(recipe.rl),
            log=log,
        )
        return {"judge": judge.hash}

    best_of = {one.name: one.best_of for one in methods if one.best_of}
    settings = {"config": recipe.eval.model_dump(), "best_of": best_of}
    stages.stage("eval", settings, {**inputs, **trained, "judged": judged}, work)
    found: dict[str, Any] = read_json(stages.path("eval/comparison.json"))
    return found
