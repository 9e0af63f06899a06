"""Whole runs: one recipe, or one recipe on several seeds, from the first file to the report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

import accord
from accord.algo.table import PREFERENCE_LOSSES
from accord.config import DpoConfig, LabelConfig, Recipe, RlConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.evals.trust import KIND_OF_SCORER, check_judge_name
from accord.extend import is_outside, outside, row
from accord.files import read_json, write_json, write_text
from accord.lock import writes_alone
from accord.loop.asking import check_annotators, reads_of, sources_asked
from accord.loop.cache import Runner
from accord.loop.choosing import PLACES, check_choosing
from accord.loop.facts import check_adapters
from accord.loop.files_task import TASKS
from accord.loop.kept import check_judged
from accord.loop.layout import check_scale
from accord.loop.round import first_champion, play_round, prepare_home
from accord.loop.stages import Home, Wait, is_folder, round_folder
from accord.loop.task import Task, TaskPlace, find_task
from accord.models.known_models import model_folder_name
from accord.models.placement import Placement
from accord.people.desk.kinds import kind_of
from accord.progress import Log, named_part, quiet
from accord.report.seeds_page import write_seeds_report
from accord.rollout.generator import GENERATORS
from accord.scoring.chat_comparer import api_key
from accord.scoring.weighted import refuse_score, scorer_inputs
from accord.train.rl import find_algorithm

#: Share of a run's time each stage takes, for the time left (measured on 2 cores, on the film demo).
TIME_SHARES = {
    "data": 0.05,
    "base": 0.02,
    "tokenizer": 0.01,
    "pretrain": 0.21,
    "sft": 0.11,
    "candidates": 0.06,
    "sample": 0.015,
    "ask": 0.005,
    "reward": 0.30,
    "rl": 0.26,
    "eval": 0.09,
    "queued": 0.01,
}
BEFORE_ROUNDS = ("data", "base", "tokenizer", "pretrain", "sft")
CONTROL_SHARE = 0.07
#: The judgements that the answers to a kind of task make; a kind of one's own says it by what it writes.
JUDGEMENT_OF_KIND = {"pair": "ranking", "ranking": "ranking", "label": "label", "rating": "rating"}


@dataclass(frozen=True)
class Where:
    """Where a run keeps what it shares with others: facts, downloads, finished stages of other runs.

    ``store`` is the path or URL of the store of facts, ``accord.db`` in the run's folder by default; ``cache`` keeps
    downloads, ``downloads`` there by default; ``from_dir`` holds them already, for machines without a network.
    ``reuse_from`` are folders of other runs whose finished stages are taken over where settings and inputs are alike.
    ``frozen``: what the store holds when the run begins is what it learns from, however often it is started again.
    """

    store: str | None = None
    cache: Path | None = None
    from_dir: Path | None = None
    reuse_from: Sequence[Path] = ()
    frozen: bool = False


@writes_alone
def run(
    recipe: Recipe,
    *,
    output_dir: Path,
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
    wait: Wait = False,
    log: Log = quiet,
) -> dict[str, Any]:
    """Run, or continue, every stage of a recipe in ``output_dir`` and return the summary.

    Args:
        store: Path or URL of the store of facts; ``accord.db`` in ``output_dir`` by default.
        from_dir: Folder that already holds what would be downloaded, for machines without a network.
        wait: Where people are asked, wait for their answers; a function is called at each look, with the questions and
            how far people are (`accord.people.watching.Watcher`).

    Raises:
        WaitingForPeople: people are asked and have not answered yet; the same call goes on from there.
    """
    return run_in(recipe, output_dir, Where(store, None, from_dir), resume, log, wait)


@writes_alone
def run_seeds(
    recipe: Recipe,
    *,
    output_dir: Path,
    seeds: Sequence[int] = (0,),
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
    wait: Wait = False,
    log: Log = quiet,
) -> dict[str, Any]:
    """Run the recipe on each seed. One writes into ``output_dir`` itself, several into ``seed_N`` below it.

    Several share store and downloads, and have one report of them all.
    """
    seeded = {seed: recipe.model_copy(update={"seed": seed}) for seed in seeds}
    if len(seeds) == 1:
        return run_in(seeded[seeds[0]], output_dir, Where(store, None, from_dir), resume, log, wait)
    where = Where(store or str(output_dir / "accord.db"), output_dir / "downloads", from_dir)
    summaries: dict[str, Any] = {}
    for index, (seed, one) in enumerate(seeded.items()):
        part = named_part(log, index, len(seeds), f"seed {seed}")
        summaries[f"seed_{seed}"] = run_in(one, output_dir / f"seed_{seed}", where, resume, part, wait)
    write_seeds_report(output_dir, [output_dir / name for name in summaries])
    write_json(output_dir / "summary.json", summaries)
    return summaries


def run_in(recipe: Recipe, folder: Path, where: Where, resume: bool, log: Log, wait: Wait = False) -> dict[str, Any]:
    """One run, or the rest of it, in a folder; its summary."""
    check_recipe(recipe, [recipe.rl, recipe.optimisation(), *map(recipe.control, recipe.controls)])
    part = log if recipe.rounds == 1 else named_part(log, 0, recipe.rounds, "round 1")
    home = open_home(recipe, folder, where, Runner(folder, time_shares(recipe), resume, part, where.reuse_from), wait)
    home = prepare_run(home)
    champion = play_round(home, first_champion(home))
    for number in range(2, recipe.rounds + 1):
        later = later_round(home, number, log)
        write_run_files(home.recipe, later.runner.folder)
        champion = play_round(later, champion)
    summary: dict[str, Any] = read_json(folder / "summary.json")
    return summary


def prepare_run(home: Home) -> Home:
    """Prepare a run, and write down what was asked for: at once, and with the values that were fitted."""
    write_run_files(home.recipe, home.root)
    ready = prepare_home(home)
    if ready.recipe is not home.recipe:
        write_run_files(ready.recipe, home.root)
    return ready


def open_home(recipe: Recipe, folder: Path, where: Where, runner: Runner, wait: Wait = False) -> Home:
    """Where a run of the recipe lives. Raises UsageError for a task that cannot be found."""
    place = task_place(recipe, folder, where, runner.resume)
    return Home(recipe, task_of(recipe, place), runner, place.store, place.cache, where.from_dir, wait=wait)


def task_place(recipe: Recipe, folder: Path, where: Where, resume: bool = True) -> TaskPlace:
    """Where the task of a run finds and keeps its things."""
    store, cache = where.store or str(folder / "accord.db"), where.cache or folder / "downloads"
    place = TaskPlace(recipe.task, folder / "data", store, cache, where.from_dir, recipe.seed, reads_of(recipe))
    return replace(place, asks=sources_asked(recipe), resume=resume, frozen=where.frozen, admit=recipe.admit)


def later_round(home: Home, number: int, log: Log) -> Home:
    """Where a round after the first works. What does not change from round to round (judges) is taken over."""
    shares = {name: share for name, share in home.runner.time_shares.items() if name not in BEFORE_ROUNDS}
    whole = {name: share / sum(shares.values()) for name, share in shares.items()}
    part = named_part(log, number - 1, home.recipe.rounds, f"round {number}")
    reuse = [home.root, *(round_folder(other, number) for other in home.runner.reuse_from)]
    runner = Runner(round_folder(home.root, number), whole, home.runner.resume, part, reuse)
    return replace(home, runner=runner, number=number)


def task_of(recipe: Recipe, place: TaskPlace) -> Task:
    """The task of a recipe. Raises UsageError where it lacks what the recipe needs."""
    task = find_task(place, TASKS)
    if task.texts("train") is None and not recipe.base.model:
        raise UsageError(
            f"the task {recipe.task.use} has no texts to pretrain a model on",
            hint="name a model with base.model, or texts with task.texts",
        )
    check_annotators(recipe, task)
    check_judged(recipe, task)
    return task


# ---- before any work -------------------------------------------------------------------------------------------------


def check_run(recipe: Recipe, *, output_dir: Path, store: str | None = None, from_dir: Path | None = None) -> None:
    """Check what can be checked of a run before any work, and write nothing: settings, names, the files it names.

    Raises UsageError or DataError.
    """
    methods = [one for one in map(recipe.method, recipe.compare.methods) if not isinstance(one, int)]
    check_recipe(recipe, [recipe.rl, recipe.optimisation(), *map(recipe.control, recipe.controls), *methods])
    task_of(recipe, task_place(recipe, output_dir, Where(store, None, from_dir)))


def check_recipe(recipe: Recipe, optimisations: Iterable[RlConfig | DpoConfig]) -> None:
    """Refuse what cannot be run, before any work. Raises UsageError or DataError."""
    recipe.check_lengths()
    check_base(recipe)
    check_sampling(recipe)
    check_asking(recipe)
    check_choosing(recipe)
    check_adapters(recipe)
    check_scale(recipe)
    asked = [*recipe.eval.judges.values()] + ([] if recipe.ask.scorer is None else [recipe.ask.scorer])
    scored = [*recipe.rl.rewards, *recipe.dpo.rewards]
    check_scorers([*scored, *asked])
    check_comparers(scored, asked)
    for name, judge in recipe.eval.judges.items():
        check_judge_name(name, KIND_OF_SCORER[judge.kind])
    for config in optimisations:
        if isinstance(config, RlConfig):
            check_rl(config)
        else:
            row(PREFERENCE_LOSSES, config.loss)


def time_shares(recipe: Recipe) -> dict[str, float]:
    """Share of each stage that this recipe has in the time of the whole run."""
    absent = {"tokenizer", "pretrain"} if recipe.base.model else {"base"}
    absent |= {"sample", "ask"} if recipe.ask.who == "nobody" else set()
    absent |= {"candidates"} if recipe.ask.choose in PLACES else set()
    absent |= set() if recipe.ask.queue else {"queued"}
    found = {name: share for name, share in TIME_SHARES.items() if name not in absent}
    found[recipe.optimise] = found.pop("rl")
    found |= {f"{recipe.optimise}_{name}": CONTROL_SHARE for name in recipe.controls}
    return {name: share / sum(found.values()) for name, share in found.items()}


def check_base(recipe: Recipe) -> None:
    """Refuse a ``base.model`` that is no folder, no known name and no GGUF file, before any work."""
    if recipe.base.model and not is_folder(recipe.base.model):
        model_folder_name(recipe.base.model)


def check_sampling(recipe: Recipe) -> None:
    """Refuse a generator that cannot be found, and best-of-n for samples to rank: nothing can choose among them yet."""
    row(GENERATORS, recipe.sample.generator)
    if recipe.sample.best_of > 1:
        raise UsageError(
            f"sample.best_of {recipe.sample.best_of} has no effect in a run",
            why="its samples are ranked before there is a reward model",
            hint="use it with `accord sample`",
        )


def check_asking(recipe: Recipe) -> None:
    """Refuse to ask people what the reward model cannot learn from, or more at once than a task can show."""
    if recipe.ask.who != "people":
        return
    kind, reads, shown = recipe.ask.kind, reads_of(recipe), recipe.sample.samples_per_prompt
    if JUDGEMENT_OF_KIND.get(kind, reads) != reads:
        kinds = [name for name, judgement in JUDGEMENT_OF_KIND.items() if judgement == reads]
        raise UsageError(
            f"ask.kind {kind} brings no {reads}s, which reward.loss {recipe.reward.loss} learns from",
            hint=f"give ask.kind {' or '.join(kinds)}, or another reward.loss",
        )
    row = kind_of(kind, LabelConfig(own_kinds=(kind,) if is_outside(kind) else ()))
    fewest, most = max(2, row.fewest), 9 if kind == "pair" else row.most
    if not (fewest if reads == "ranking" else 1) <= shown <= most:
        raise UsageError(
            f"sample.samples_per_prompt is {shown}, and ask.kind {kind} shows {fewest} to {most} at once",
            hint="change sample.samples_per_prompt",
        )


def check_scorers(scorers: Iterable[ScorerConfig]) -> None:
    """Refuse scorers whose models are not there, before any work."""
    for config in scorers:
        for path in scorer_inputs([config]).values():
            if not path.exists():
                raise DataError("there is no such model", where=str(path), why=f"the scorer {config.label} names it")


def check_comparers(scored: Iterable[ScorerConfig], asked: Iterable[ScorerConfig]) -> None:
    """Refuse a chat model that is to give scores, and one that compares and has no key, before any work."""
    for config in scored:
        if config.chat is not None:
            refuse_score(config)
    for config in asked:
        if config.chat is not None:
            api_key(config.chat)


def check_rl(config: RlConfig) -> None:
    """Refuse an algorithm or a function of the user's own that cannot be found, before any work."""
    find_algorithm(config)
    for name in (config.prompts.function, *(scorer.function for scorer in config.rewards)):
        if name:
            outside(name)


# ---- files -----------------------------------------------------------------------------------------------------------


def write_run_files(recipe: Recipe, folder: Path) -> None:
    """What was asked for and on what machine: ``recipe.yaml``, ``resolved.json``, ``origins.json``, ``env.json``.

    ``origins.json`` says where the value of each dotted key came from.
    """
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    write_json(folder / "resolved.json", recipe.resolved())
    write_json(folder / "origins.json", recipe.origins())
    packages = ("torch", "tokenizers", "numpy", "scipy", "safetensors")
    environment = {
        "accord": accord.__version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        **Placement.of(recipe.rl).facts(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    write_json(folder / "env.json", environment)
