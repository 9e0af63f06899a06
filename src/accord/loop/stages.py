"""The stages of a run as values: each names its settings and its input files, and works with these alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accord.config import DpoConfig, Recipe, RlConfig, ScaleConfig
from accord.files import read_json, write_folder, write_json
from accord.formats import read_items
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import read_prompts
from accord.loop.cache import Inputs, Runner, Stage, given_inputs
from accord.loop.kept import KEPT, keeps_share
from accord.loop.task import Task, TaskJudge
from accord.models.known_models import KNOWN_MODELS, add_model
from accord.models.placement import Placement
from accord.people.watching import Watcher
from accord.progress import Log
from accord.records import Source
from accord.rollout.engine import Sampling
from accord.rollout.generator import Generator, by_prompt, open_generator
from accord.scoring.reward_model import RewardModel
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import scorer_inputs
from accord.seeds import stream_seed
from accord.train.dpo import dpo
from accord.train.launch import TrainingCall, carry_out_stage
from accord.train.pretrain import pretrain
from accord.train.reward import reward
from accord.train.rl import rl
from accord.train.sft import sft
from accord.train.tokenizer import tokenizer

#: Whether a run waits for people that it asks; a function does, and is told at each look how far they are.
Wait = bool | Watcher


@dataclass(frozen=True)
class Home:
    """One round of a run: what was asked for, what it is about, and where its work is kept.

    Round 1 works in the run's own folder, ``root``, later ones in ``round_2`` and so on below it. ``wait`` for people
    where they are asked, and look at the store until they have answered.
    """

    recipe: Recipe
    task: Task
    runner: Runner
    store: str
    cache: Path
    from_dir: Path | None = None
    number: int = 1
    wait: Wait = False

    @property
    def root(self) -> Path:
        return self.runner.folder if self.number == 1 else self.runner.folder.parent

    @property
    def seed(self) -> int:
        """The seed of this round's draws: what one round drew, the next does not draw again."""
        seed = self.recipe.seed
        return seed if self.number == 1 else stream_seed(seed, f"round {self.number}")

    def path(self, name: str) -> Path:
        """A file or folder of this round."""
        return self.runner.folder / name

    def earlier(self, name: str) -> list[Path]:
        """The same file of every round before this one."""
        return [round_folder(self.root, number) / name for number in range(1, self.number)]

    def do(self, stage: Stage) -> dict[str, Any]:
        """Carry a stage out, or find it done; its result."""
        return self.runner.run(stage)

    def stage(
        self, name: str, settings: Mapping[str, Any], inputs: Inputs, work: Callable[[Inputs, Path, Log], Any]
    ) -> Stage:
        return Stage(name, {"seed": self.seed, **settings}, inputs, work)

    def training(self, name: str, train: Callable[..., Any], inputs: Mapping[str, Path | None], *configs: Any) -> Stage:
        """A stage of `accord.train` with its sections of the recipe; an input that is None is left out."""
        labels = ("config", "shape")[: len(configs)]

        def work(inputs: Inputs, folder: Path, log: Log) -> Any:
            call = TrainingCall(train, configs, inputs, folder, self.seed, self.runner.resume)
            return carry_out(call, self.recipe.scale, log)

        settings = {label: config.model_dump() for label, config in zip(labels, configs, strict=True)}
        return self.stage(name, settings, given_inputs(inputs), work)


def carry_out(call: TrainingCall, scale: ScaleConfig, log: Log) -> Any:
    """Carry a training stage out where the recipe says."""
    if scale.ray:
        from accord.cluster.learners import carry_out_on_ray  # Ray is there only for who asks for it

        return carry_out_on_ray(call, scale, log)
    return carry_out_stage(call, scale.ranks, log)


def round_folder(root: Path, number: int) -> Path:
    """Where a round works: the first in the run's own folder."""
    return root if number == 1 else root / f"round_{number}"


# ---- up to the policy that optimisation starts from ----------------------------------------------------------------


def data_stage(home: Home) -> Stage:
    """What the task derives: prompts, demonstrations, judgements and texts of each split."""
    settings = {"task": home.recipe.task.use, **home.task.settings, "store": home.store}
    return home.stage("data", settings, home.task.inputs, home.task.prepare)


def is_folder(model: str) -> bool:
    """Whether ``base.model`` is a folder to be used as it stands; a name that Accord knows comes first."""
    return bool(model) and model not in KNOWN_MODELS and Path(model).is_dir()


def start_of(home: Home) -> Path:
    """The model that everything starts from; a given Hugging Face folder is used where it stands."""
    given = home.recipe.base.model
    if is_folder(given):
        return Path(given)
    return home.root / ("base/model" if given else "pretrain/model")


def start_stages(home: Home) -> list[Stage]:
    """How that model comes about: not at all, by a download, or by pretraining."""
    given = home.recipe.base.model
    if is_folder(given):
        return []
    return [_base_stage(home)] if given else [_tokenizer_stage(home), _pretrain_stage(home)]


def _base_stage(home: Home) -> Stage:
    wanted, cache, from_dir = home.recipe.base.model, home.cache, home.from_dir

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        add_model(str(inputs.get("file", wanted)), folder / "model", cache=cache, from_dir=from_dir, log=log)
        return {"model": folder / "model"}

    return home.stage("base", {"model": wanted}, {} if wanted in KNOWN_MODELS else {"file": Path(wanted)}, work)


def _tokenizer_stage(home: Home) -> Stage:
    config = home.recipe.tokenizer

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        return tokenizer(config, texts=inputs["texts"], output_dir=folder)

    inputs = given_inputs({"texts": home.task.texts("train")})
    return home.stage("tokenizer", {"config": config.model_dump()}, inputs, work)


def _pretrain_stage(home: Home) -> Stage:
    inputs = {
        "texts": home.task.texts("train"),
        "valid_texts": home.task.texts("valid"),
        "tokenizer": home.path("tokenizer"),
    }
    return home.training("pretrain", pretrain, inputs, home.recipe.pretrain, home.recipe.model)


def sft_stage(home: Home) -> Stage | None:
    """Fine-tuning, where the task has demonstrations."""
    data = home.task.demonstrations("train")
    if data is None:
        return None
    inputs = {"model": start_of(home), "data": data, "valid_data": home.task.demonstrations("valid")}
    return home.training("sft", sft, inputs, home.recipe.sft)


# ---- samples and judgements ----------------------------------------------------------------------------------------


def sampling_of(home: Home) -> dict[str, Any]:
    """How the samples that somebody ranks are drawn."""
    return home.recipe.sample.drawing()


def source_of(home: Home, policy: str) -> Source:
    """Who wrote the samples of a policy, as facts say it."""
    return policy_source(home, policy, ", ".join(f"{key} {value}" for key, value in sampling_of(home).items()))


def policy_source(home: Home, policy: str, drawn: str) -> Source:
    """A policy of this run as facts say it, with how its completions were drawn."""
    name, version = f"{home.recipe.name}/{policy}", f"seed {home.recipe.seed}"
    return Source(origin="policy", name=name, version=version, sampling=drawn)


@dataclass(frozen=True)
class Places:
    """Which prompts of a file are sampled: ``of(inputs)`` gives their places there, 0 = the first.

    ``settings`` and the contents of ``inputs`` (beside "prompts", the file) decide them.
    """

    of: Callable[[Inputs], Sequence[int]]
    settings: Mapping[str, Any]
    inputs: Inputs = field(default_factory=dict)


def in_order(count: int, first: int = 0) -> Places:
    """So many prompts in their order, from ``first`` on and round again."""
    return Places(lambda inputs: range(first, first + count), {"count": count, **({"first": first} if first else {})})


def sample_stage(home: Home, name: str, policy: Path, prompts: Path, places: Places, stream: str) -> Stage:
    """Completions of prompts by a policy.

    ``samples.jsonl`` holds ``{"prompt", "text", "topic", "completions"}`` rows, ``text`` being what the model read of
    the prompt; ``stream`` names the random stream.
    """
    placement, sampling, generator = Placement.of(home.recipe.rl), sampling_of(home), home.recipe.sample.generator
    seed = stream_seed(home.seed, stream)

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        chosen = places.of(inputs)
        log(0.0, f"samples of {len(chosen)} prompts")
        writer = open_generator(inputs["model"], placement, generator)
        rows = draw(writer, inputs["prompts"], chosen, Sampling(**sampling), seed)
        write_jsonl(folder / "samples.jsonl", rows)
        return {"prompts": len(rows), "completions": sum(len(row["completions"]) for row in rows)}

    settings = {**places.settings, "stream": stream, "sample": sampling, "generator": generator}
    return home.stage(name, settings, {"model": policy, "prompts": prompts, **places.inputs}, work)


def draw(
    generator: Generator, prompts: Path, places: Iterable[int], sampling: Sampling, seed: int
) -> list[dict[str, Any]]:
    """Samples of a policy for the prompts at these places, without those that are empty: nobody can be shown nothing.

    After the last prompt comes the first again.
    """
    rows, asked = read_prompts(prompts, generator.chat), [item.prompt for item in read_items(prompts)]
    chosen = [i % len(rows) for i in places]
    drawn = generator.generate([rows[i].text for i in chosen], sampling, seed=seed)
    return [
        {
            "prompt": asked[i],
            "text": rows[i].text,
            "topic": rows[i].topic,
            "completions": [one.text for one in group if one.text.strip()],
        }
        for i, group in zip(chosen, by_prompt(drawn, sampling.samples_per_prompt), strict=True)
    ]


# ---- training on judgements ----------------------------------------------------------------------------------------


def reward_stage(home: Home, judgements: Path) -> Stage:
    """The reward model, and where the task holds something out for it, ``card.json``: how it fares there."""
    config, held_out = home.recipe.reward, home.task.held_out
    given = {"model": start_of(home), "data": judgements, "valid_data": home.task.judgements("valid")}
    trained = home.training("reward", reward, given, config)
    if held_out is None:
        return trained
    stage, seed = trained.also_reading(held_out.inputs), home.seed

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        result = stage.work(inputs, folder, log)
        log(1.0, "held-out pairs and baselines")
        scorer = RewardModel.load(folder / "model", Placement.of(config))
        write_json(folder / "card.json", held_out.card(inputs, scorer, inputs["data"], seed))
        return result

    return replace(stage, settings={**stage.settings, "task": home.recipe.task.use}, work=work)


#: What `accord.train.rl.rl` calls the first start, by what the recipe says that KL is paid to.
FIRST_START_AS = {"last": None, "first": "reference", "both": "second_reference"}


def rl_stage(
    home: Home, name: str, config: RlConfig, policy: Path, reward_model: Path, first: Path | None = None
) -> Stage:
    """Policy optimisation against the reward model, and the scores that ``rl.rewards`` adds.

    KL is paid to the policy that it starts from, and to the ``first`` start as the recipe's ``reference`` says.
    """
    if home.recipe.scale.rollout != "engine":
        rollout = config.rollout.model_copy(update={"use": home.recipe.scale.rollout})
        config = config.model_copy(update={"rollout": rollout})
    inputs = {"model": policy, "reward_model": reward_model, "data": home.task.prompts("train")}
    texts = home.task.texts("train") if config.ptx.coef > 0 else None
    held_to = FIRST_START_AS[home.recipe.reference]
    references = {held_to: first} if held_to and first != policy else {}
    return home.training(name, rl, {**inputs, "ptx_data": texts, **references}, config).also_reading(
        scorer_inputs(config.rewards)
    )


def dpo_stage(
    home: Home,
    name: str,
    config: DpoConfig,
    policy: Path,
    judgements: Path,
    valid: Path | None = None,
    reward_model: Path | None = None,
) -> Stage:
    """Direct preference optimisation on judgements; online on the task's prompts, ranked by a reward model."""
    data = {"data": home.task.prompts("train"), "reward_model": reward_model} if config.online else {"data": judgements}
    inputs = {"model": policy, "valid_data": valid, **data}
    return home.training(name, dpo, inputs, config).also_reading(scorer_inputs(config.rewards))


# ---- judges --------------------------------------------------------------------------------------------------------


SECOND = "second_reward_model"  # the judge of a task that brings none


def task_judges(home: Home) -> dict[str, TaskJudge]:
    """The judges of the task; of a task that names none, a reward model of the judgements kept for judging.

    Those judgements train nothing else, and the judge is told apart from the reward model by its seed too. Where none
    stand already and nobody else judges, a share of what the run asks is kept (`accord.loop.kept`).
    """
    kept = home.path(f"rankings/{KEPT}") if keeps_share(home.recipe, home.task) else None
    if home.task.judges or (data := home.task.judgements("judge") or kept) is None:
        return dict(home.task.judges)
    config, seed = home.recipe.reward, stream_seed(home.recipe.seed, "judge")

    def fit(inputs: Inputs, folder: Path, log: Log) -> Any:
        call = TrainingCall(reward, [config], inputs, folder, seed, home.runner.resume)
        return carry_out(call, home.recipe.scale, log)

    def load(folder: Path, placement: Placement) -> Scorer:
        return RewardModel.load(folder / "model", placement)

    inputs = {"model": start_of(home), "data": data}
    return {SECOND: TaskJudge(inputs, fit, load, {"config": config.model_dump()})}


def judge_stage(home: Home, name: str) -> Stage:
    """A judge, fitted to what trains nothing else; the same in every round."""
    one = task_judges(home)[name]
    settings = {"seed": home.recipe.seed, "task": home.recipe.task.use, **one.settings}
    return home.stage(f"judge_{name}", settings, one.inputs, one.fit)


# ---- files ---------------------------------------------------------------------------------------------------------


def publish(home: Home, snapshot: Path) -> Path:
    """Put the chosen policy where a user looks for it: ``model/`` in the run's folder."""
    write_folder(home.path("model"), lambda aside: copy_into(snapshot, aside))
    return home.path("model")


def copy_into(source: Path, folder: Path) -> None:
    """Copy a folder's content into another that exists."""
    shutil.copytree(source, folder, dirs_exist_ok=True)


def json_of(home: Home, name: str) -> Any:
    """The JSON of a file in the run's folder."""
    return read_json(home.path(name))
