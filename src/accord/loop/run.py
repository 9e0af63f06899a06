"""The whole loop as one page: reviews and ratings in, an aligned model and a report out."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import accord
from accord.config import DpoConfig, Recipe, RlConfig
from accord.demo.film_reviews import completion_for, prompt_for
from accord.demo.films import SIMULATED_ORIGIN, prepare, queue_samples, rank_samples, read_judged
from accord.errors import UsageError
from accord.evals.evaluate import evaluate
from accord.evals.judge import Judge, fit_judge, run_probes
from accord.evals.results import card_json, summarise
from accord.evals.reward_card import fit_pair_baseline, held_out_pairs, longer_wins, reward_card
from accord.extend import outside
from accord.files import read_json, write_folder, write_json, write_text
from accord.formats.jsonl import read_demonstrations, read_prompts, read_rankings
from accord.loop.cache import Log, Runner
from accord.models.folder import load_policy
from accord.models.known_models import NAMED, add_model, folder_name
from accord.models.placement import Placement
from accord.records import Source
from accord.report.run_page import write_model_card, write_report, write_seeds_report
from accord.rollout.engine import Engine, Sampling
from accord.scoring.reward_model import RewardModel
from accord.scoring.weighted import scorer_inputs
from accord.seeds import stream_seed
from accord.train.dpo import dpo
from accord.train.lm import pretrain, sft, tokenizer
from accord.train.loop import snapshots_of
from accord.train.reward import reward
from accord.train.rl import find_algorithm, rl

#: The baseline that the floor names: taught by the human rankings of film reviews. The card also shows one taught by
#: all human rankings (products, tweets, words), as the reward model is.
BASELINE = "tfidf_bradley_terry"
#: Share of a run's time each stage takes, for the time left (measured on 2 cores).
SHARES = {
    "data": 0.05,
    "base": 0.02,
    "tokenizer": 0.01,
    "pretrain": 0.21,
    "sft": 0.11,
    "rankings": 0.02,
    "reward": 0.30,
    "rl": 0.13,
    "rl_uncured": 0.07,
    "eval": 0.09,
    "queue": 0.01,
}


def run_seeds(
    recipe: Recipe,
    *,
    output_dir: Path,
    seeds: Sequence[int] = (0,),
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
    log: Log = lambda fraction, text: None,
) -> dict[str, Any]:
    """Run the loop for each seed. One seed writes into ``output_dir`` itself, several into ``seed_N`` below it."""
    if len(seeds) == 1:
        only = recipe.model_copy(update={"seed": seeds[0]})
        return run(only, output_dir=output_dir, store=store, from_dir=from_dir, resume=resume, log=log)
    shared = store or str(output_dir / "accord.db")
    cache = output_dir / "downloads"
    summaries: dict[str, Any] = {}
    for index, seed in enumerate(seeds):

        def part(fraction: float, text: str, index: int = index, seed: int = seed) -> None:
            log((index + fraction) / len(seeds), f"seed {seed}: {text}")

        summaries[f"seed_{seed}"] = run(
            recipe.model_copy(update={"seed": seed}),
            output_dir=output_dir / f"seed_{seed}",
            store=shared,
            cache=cache,
            from_dir=from_dir,
            resume=resume,
            log=part,
        )
    write_seeds_report(output_dir, [output_dir / name for name in summaries])
    write_json(output_dir / "summary.json", summaries)
    return summaries


def run(
    recipe: Recipe,
    *,
    output_dir: Path,
    store: str | None = None,
    cache: Path | None = None,
    from_dir: Path | None = None,
    lenders: Sequence[Path] = (),
    resume: bool = True,
    log: Log = lambda fraction, text: None,
) -> dict[str, Any]:
    """Run, or continue, every stage of a recipe in ``output_dir`` and return the summary.

    Args:
        store: Path or URL of the store of facts; ``accord.db`` in the run's folder by default.
        cache: Folder that keeps the downloaded artefacts; ``downloads`` in the run's folder by default.
        from_dir: Folder that already holds the artefacts, for machines without a network.
        lenders: Folders of other runs whose finished stages are taken over where settings and inputs are the same.
    """
    recipe.check_lengths()
    check_base(recipe)
    check_sampling(recipe)
    check_rl(recipe.rl)
    runner = Runner(output_dir, shares(recipe), resume, log, lenders)
    facts = store or str(output_dir / "accord.db")
    write_run_files(recipe, output_dir)
    stages = Stages(recipe, runner, facts, cache or output_dir / "downloads", from_dir)
    stages.to_reward_model()
    stages.rl("rl", recipe.rl)
    if recipe.uncured.iterations:
        stages.rl("rl_uncured", uncured(recipe))
    stages.eval()
    stages.publish()
    if recipe.queue.prompts:
        stages.queue()
    summary = stages.summary()
    write_json(output_dir / "summary.json", summary)
    write_model_card(output_dir)
    write_report(output_dir)
    return summary


def shares(recipe: Recipe) -> dict[str, float]:
    """Share of each stage that this recipe has in the time of the whole run."""
    absent = {"tokenizer", "pretrain"} if recipe.base.model else {"base"}
    absent |= {
        name
        for name, wanted in (("rl_uncured", recipe.uncured.iterations), ("queue", recipe.queue.prompts))
        if not wanted
    }
    found = {name: share for name, share in SHARES.items() if name not in absent}
    return {name: share / sum(found.values()) for name, share in found.items()}


def is_folder(model: str) -> bool:
    """Whether ``base.model`` is a folder to be used as it stands; a name that Accord knows comes first."""
    return bool(model) and model not in NAMED and Path(model).is_dir()


def check_base(recipe: Recipe) -> None:
    """Refuse a ``base.model`` that is no folder, no known name and no GGUF file, before any work."""
    if recipe.base.model and not is_folder(recipe.base.model):
        folder_name(recipe.base.model)


def check_sampling(recipe: Recipe) -> None:
    """Refuse best-of-n for the samples that annotators rank: nothing can choose among them yet."""
    if recipe.sample.best_of > 1:
        raise UsageError(
            f"sample.best_of {recipe.sample.best_of} has no effect in a run",
            why="its samples are ranked before there is a reward model",
            hint="use it with `accord sample`",
        )


def check_rl(config: RlConfig) -> None:
    """Refuse an algorithm or a function of the user's own that cannot be found, before any work."""
    find_algorithm(config)
    for name in (config.prompts.function, *(scorer.function for scorer in config.rewards)):
        if name:
            outside(name)


def uncured(recipe: Recipe) -> RlConfig:
    """The settings of the optimisation without its cure."""
    changes = {name: getattr(recipe.uncured, name) for name in type(recipe.uncured).model_fields}
    return recipe.rl.model_copy(update=changes)


def uncured_note(recipe: Recipe) -> str:
    """What that optimisation does otherwise, in words."""
    cured, bare = _flat(recipe.rl.model_dump()), _flat(recipe.uncured.model_dump())
    said = [f"{name} {new} instead of {cured[name]}" for name, new in bare.items() if new != cured[name]]
    return ", ".join(said) or "nothing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Stages:
    """The stages of one run. Each names its settings and input files; the runner decides whether it must work."""

    def __init__(self, recipe: Recipe, runner: Runner, store: str, cache: Path, from_dir: Path | None) -> None:
        self.recipe, self.runner, self.store, self.cache, self.from_dir = recipe, runner, store, cache, from_dir
        self.folder = runner.folder

    def stage(
        self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, Path], work: Callable[[Path, Log], Any]
    ) -> dict[str, Any]:
        everything = {"seed": self.recipe.seed, **settings}
        return self.runner.stage(name, settings=everything, inputs=inputs, work=work)

    def path(self, name: str) -> Path:
        return self.folder / name

    def to_reward_model(self) -> None:
        """What every policy optimisation needs: data, SFT policy, rankings, reward model."""
        self.data()
        if self.recipe.base.model:
            self.base()
        else:
            self.tokenizer()
            self.pretrain()
        self.sft()
        self.rankings()
        self.reward()

    def data(self) -> None:
        config = self.recipe.data

        def work(folder: Path, log: Log) -> Any:
            log(0.0, "fetching and joining reviews and ratings")
            return prepare(
                config, folder, store=self.store, cache=self.cache, from_dir=self.from_dir, seed=self.recipe.seed
            )

        self.stage("data", {"data": config.model_dump(), "store": self.store}, {}, work)

    @property
    def start(self) -> Path:
        """The model that everything starts from; a given Hugging Face folder is used where it stands."""
        given = self.recipe.base.model
        if is_folder(given):
            return Path(given)
        return self.path("base/model" if given else "pretrain/model")

    def base(self) -> None:
        wanted = self.recipe.base.model
        if is_folder(wanted):
            return

        def work(folder: Path, log: Log) -> Any:
            add_model(wanted, folder / "model", cache=self.cache, from_dir=self.from_dir, log=log)
            return {"model": folder / "model"}

        self.stage("base", {"model": wanted}, {} if wanted in NAMED else {"file": Path(wanted)}, work)

    def tokenizer(self) -> None:
        config, texts = self.recipe.tokenizer, self.path("data/texts.jsonl")
        self.stage(
            "tokenizer",
            {"config": config.model_dump()},
            {"texts": texts},
            lambda folder, log: tokenizer(config, texts=texts, output_dir=folder),
        )

    def pretrain(self) -> None:
        config, shape = self.recipe.pretrain, self.recipe.model
        inputs = {
            "texts": self.path("data/texts.jsonl"),
            "valid_texts": self.path("data/texts_valid.jsonl"),
            "tokenizer": self.path("tokenizer"),
        }
        settings = {"config": config.model_dump(), "shape": shape.model_dump()}
        self.stage(
            "pretrain",
            settings,
            inputs,
            lambda folder, log: self._train(pretrain, folder, log, config, shape, **inputs),
        )

    def _train(self, stage: Callable[..., Any], folder: Path, log: Log, *configs: Any, **inputs: Path) -> Any:
        return stage(*configs, **inputs, output_dir=folder, seed=self.recipe.seed, resume=self.runner.resume, log=log)

    def sft(self) -> None:
        config = self.recipe.sft
        inputs = {
            "model": self.start,
            "data": self.path("data/demonstrations.jsonl"),
            "valid_data": self.path("data/demonstrations_valid.jsonl"),
        }
        self.stage(
            "sft", {"config": config.model_dump()}, inputs, lambda f, log: self._train(sft, f, log, config, **inputs)
        )

    def rankings(self) -> None:
        config, sampling = self.recipe.data, self.recipe.sample
        inputs = {"model": self.path("sft/model"), "prompts": self.path("data/prompts_train.jsonl")}

        def work(folder: Path, log: Log) -> Any:
            log(0.0, "simulated annotators rank samples of the SFT policy")
            return self._rank_samples(folder, inputs["model"], inputs["prompts"])

        self.stage("rankings", {"data": config.model_dump(), "sample": sampling.model_dump()}, inputs, work)

    def _rank_samples(self, folder: Path, model: Path, prompts: Path) -> Any:
        config = self.recipe.data
        human = [completion for _, completion in read_demonstrations(self.path("data/demonstrations.jsonl"))]
        result = rank_samples(
            config,
            groups=self._draw(model, prompts, config.ranked_prompts, "ranked samples"),
            source=self._source("sft"),
            words=read_json(self.path("data/words.json")),
            human_texts=human,
            store=self.store,
            output=folder / "simulated.jsonl",
            seed=self.recipe.seed,
        )
        both = [self.path("data/rankings.jsonl"), folder / "simulated.jsonl"]
        write_text(folder / "rankings.jsonl", "".join(path.read_text(encoding="utf-8") for path in both))
        return result

    def _draw(self, model: Path, prompts: Path, num_prompts: int, stream: str) -> list[tuple[str, str, list[str]]]:
        """Samples of a policy: (prompt, topic, texts), prompts in their order and again from the first."""
        policy, words = load_policy(model, Placement.of(self.recipe.rl))
        rows = read_prompts(prompts)
        chosen = [rows[i % len(rows)] for i in range(num_prompts)]
        samples = Engine(policy, words.stop_ids).generate(
            [words.encode(row.text) for row in chosen],
            Sampling(**self._sampling()),
            seed=stream_seed(self.recipe.seed, stream),
        )
        texts: list[list[str]] = [[] for _ in chosen]
        for sample in samples:
            text = words.decode(sample.completion)
            if text.strip():  # an annotator cannot be shown nothing
                texts[sample.prompt_index].append(text)
        return [(row.text, row.topic, group) for row, group in zip(chosen, texts, strict=True)]

    def _sampling(self) -> dict[str, Any]:
        return self.recipe.sample.model_dump(exclude={"best_of"})

    def _source(self, stage: str) -> Source:
        """Who wrote the samples of a stage's policy."""
        drawn = ", ".join(f"{key} {value}" for key, value in self._sampling().items())
        name, version = f"{self.recipe.name}/{stage}", f"seed {self.recipe.seed}"
        return Source(origin="policy", name=name, version=version, sampling=drawn)

    def reward(self) -> None:
        config = self.recipe.reward
        inputs = {
            "model": self.start,
            "data": self.path("rankings/rankings.jsonl"),
            "valid_data": self.path("data/rankings_valid.jsonl"),
        }

        def work(folder: Path, log: Log) -> Any:
            result = self._train(reward, folder, log, config, **inputs)
            log(1.0, "held-out pairs and baselines")
            write_json(folder / "card.json", self._reward_card(folder / "model", inputs["data"]))
            return result

        self.stage("reward", {"config": config.model_dump()}, inputs, work)

    def _reward_card(self, model: Path, rankings: Path) -> dict[str, Any]:
        """Accuracy on reviews of test films, beside baselines taught by the same human rankings."""
        scorer = RewardModel.load(model, Placement.of(self.recipe.reward))
        valid, test = (read_judged(self.path(f"data/reviews_{split}.jsonl")) for split in ("valid", "test"))
        human = [g for g in read_rankings(rankings) if g.origin != SIMULATED_ORIGIN]
        taught = {BASELINE: [g for g in human if g.topic], "tfidf_all_human_rankings": human}
        texts = [r.text for r in test]
        baselines: dict[str, Any] = {"longer_wins": longer_wins(texts)}
        for name, groups in taught.items():
            fitted = fit_pair_baseline(groups, [r.text for r in valid], held_out_pairs(valid), seed=self.recipe.seed)
            baselines[name] = fitted.score(texts)

        def score(prompts: Sequence[str], written: Sequence[str]) -> Any:
            return scorer.score([(p, completion_for(t)) for p, t in zip(prompts, written, strict=True)]).numpy()

        card = reward_card(score([prompt_for(r.film) for r in test], texts), test, baselines, seed=self.recipe.seed)
        film = prompt_for(test[0].film)
        probes = {"reward model": run_probes(lambda t: score([film] * len(t), t))}
        return card_json(card, probes)

    def rl(self, name: str, config: RlConfig) -> None:
        inputs = {
            "model": self.path("sft/model"),
            "reward_model": self.path("reward/model"),
            "data": self.path("data/prompts_train.jsonl"),
        }
        if config.ptx.coef > 0:
            inputs["ptx_data"] = self.path("data/texts.jsonl")
        self.stage(
            name,
            {"config": config.model_dump()},
            {**inputs, **scorer_inputs(config.rewards)},
            lambda f, log: self._train(rl, f, log, config, **inputs),
        )

    def dpo(self, name: str, config: DpoConfig, data: Path) -> None:
        inputs = {"model": self.path("sft/model"), "data": data}
        self.stage(
            name, {"config": config.model_dump()}, inputs, lambda f, log: self._train(dpo, f, log, config, **inputs)
        )

    def eval(self) -> None:
        config, inputs = (
            self.recipe.eval,
            {
                "base": self.start,
                "sft": self.path("sft/model"),
                "reward_model": self.path("reward/model"),
                "valid_prompts": self.path("data/prompts_valid.jsonl"),
                "test_prompts": self.path("data/prompts_test.jsonl"),
            },
        )
        names = ("rl", "rl_uncured") if self.recipe.uncured.iterations else ("rl",)
        runs = {name: self.path(f"{name}/snapshots") for name in names}
        judged = self.path("data/reviews_judge.jsonl")

        def work(folder: Path, log: Log) -> Any:
            judge = fit_and_save_judge(judged, folder / "judge", log)
            evaluate(
                config,
                base=inputs["base"],
                sft=inputs["sft"],
                reward_model=inputs["reward_model"],
                valid_prompts=inputs["valid_prompts"],
                test_prompts=inputs["test_prompts"],
                snapshots=snapshots_of(runs["rl"]),
                uncured=snapshots_of(runs["rl_uncured"]) if "rl_uncured" in runs else None,
                uncured_note=uncured_note(self.recipe),
                rewards=self.recipe.rl.rewards,
                judge=folder / "judge",
                max_new_tokens=self.recipe.rl.max_new_tokens,
                temperature=self.recipe.rl.temperature,
                output_dir=folder,
                seed=self.recipe.seed,
                placement=Placement.of(self.recipe.rl),
                log=log,
            )
            return {"judge": judge.hash}

        rewards = self.recipe.rl.rewards
        settings = {"config": config.model_dump(), "rewards": [reward.model_dump() for reward in rewards]}
        self.stage("eval", settings, {**inputs, **runs, **scorer_inputs(rewards), "judged": judged}, work)

    def publish(self) -> None:
        """Put the policy that the judge chose where a user looks for it: ``model/`` in the run's folder."""
        step = read_json(self.path("eval/results.json"))["selection"]["step"]
        chosen = self.path(f"rl/snapshots/step_{step:06d}")
        write_folder(self.path("model"), lambda aside: copy_into(chosen, aside))

    def queue(self) -> None:
        """Samples of the published policy wait for people: `accord label` shows them."""
        count = self.recipe.queue.prompts
        inputs = {"model": self.path("model"), "prompts": self.path("data/prompts_train.jsonl")}

        def work(folder: Path, log: Log) -> Any:
            log(0.0, "samples for people to rank")
            groups = self._draw(inputs["model"], inputs["prompts"], count, "queued samples")
            return {"queued": queue_samples(groups, self._source("rl"), store=self.store)}

        settings = {"prompts": count, "sample": self.recipe.sample.model_dump(), "store": self.store}
        self.stage("queue", settings, inputs, work)

    def summary(self) -> dict[str, Any]:
        """The few numbers that decide, out of what the stages wrote."""
        manifest, card, results = (
            read_json(self.path(name)) for name in ("data/manifest.json", "reward/card.json", "eval/results.json")
        )
        counts = {**manifest["counts"], "human_rankings": manifest["human_rankings"]}
        seconds = round(sum(self.runner.seconds.values()), 1)
        return summarise(results, card, baseline=BASELINE, seconds=seconds, counts=counts)


def copy_into(source: Path, folder: Path) -> None:
    """Copy a folder's content into another that exists."""
    shutil.copytree(source, folder, dirs_exist_ok=True)


def fit_and_save_judge(judged: Path, folder: Path, log: Log) -> Judge:
    """The judge of a run, fitted to the ratings of its own films."""
    rows = read_judged(judged)
    log(0.0, f"fitting the judge to ratings of {len({r.film for r in rows})} films that trained nothing")
    judge = fit_judge([r.text for r in rows], [r.mean for r in rows], [r.film for r in rows])
    judge.save(folder)
    return judge


def write_run_files(recipe: Recipe, folder: Path) -> None:
    """What was asked for and on what machine: ``recipe.yaml``, ``resolved.json``, ``env.json``."""
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    write_json(folder / "resolved.json", recipe.resolved())
    packages = ("torch", "tokenizers", "numpy", "scikit-learn", "safetensors")
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
