"""The recipe: all sections of a run, and how one is found, read and built."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from accord.config.base import S, Section, layered
from accord.config.layers import Layer, build, names_row, override_layer, read_layer, yaml_word
from accord.config.live import AdmitConfig, CanaryConfig, GatesConfig
from accord.config.origins import Traced
from accord.config.policy import (
    DpoConfig,
    RlConfig,
)
from accord.config.rewards import RewardConfig
from accord.config.sections import (
    AskConfig,
    BaseConfig,
    CompareConfig,
    EvalConfig,
    LabelConfig,
    ModelConfig,
    PretrainConfig,
    SampleConfig,
    SftConfig,
    TokenizerConfig,
)
from accord.config.task import TaskConfig
from accord.errors import UsageError
from accord.files import name_from

#: Folders of a run that are not those of its controls or methods.
SHARED_STAGES = frozenset(
    {
        *("data", "base", "tokenizer", "pretrain", "sft", "sample", "ask", "rankings", "reward", "labelled", "eval"),
        *("rl", "dpo", "model", "queued", "queue", "downloads", "candidates"),
    }
)
#: Tools that people watch their runs in.
Tracker = Literal["tensorboard", "wandb", "trackio"]
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ScaleConfig(Section):
    """Where the work is done, and by how many processes; what comes out is the same up to rounding."""

    ranks: int = Field(1, ge=1, description="Processes of each training stage; on GPUs each has one of its own.")
    rollout: Literal["engine", "vllm"] = Field(
        "engine", description="Who draws the samples of rl: the policy itself, or vLLM in a process of its own."
    )
    ray: str = Field("", description="Ray cluster that trains: its address, or auto: one that runs, else a local one.")
    rollout_workers: int = Field(0, ge=0, description="Of the cluster, to draw the samples of rl; 0: the learners do.")

    @model_validator(mode="after")
    def _workers_are_of_a_cluster(self) -> Self:
        if self.rollout_workers and not self.ray:
            raise ValueError("rollout_workers are of a Ray cluster: set ray=auto, or its address")
        return self


class Recipe(Traced):
    """A whole run."""

    refused: ClassVar[Mapping[str, str]] = {
        "data": "rankings belong to the task now: write task.options (the film demo's deals, group_size, tie_width, "
        "other_corpora, annotators, annotators_per_group), ask.prompts for ranked_prompts, ask.weight for "
        "simulated_weight",
        "uncured": "any recipe may name controls now: write controls: {uncured: {rl: {...}}}",
        "queue": "it is ask.queue now",
    }
    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run's folder.")
    seed: int = Field(0, ge=0, description="Decides every random choice of the run.")
    rounds: int = Field(1, ge=1, description="Turns of the loop; each starts from the policy that the last promoted.")
    task: TaskConfig = Field(TaskConfig(), description="What the run is about.")
    base: BaseConfig = Field(BaseConfig(), description="A given model in place of a pretrained one.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="Tokenizer.")
    model: ModelConfig = Field(ModelConfig(), description="Shape of the backbone.")
    pretrain: PretrainConfig = Field(PretrainConfig(), description="Pretraining.")
    sft: SftConfig = Field(SftConfig(), description="Supervised fine-tuning.")
    sample: SampleConfig = Field(SampleConfig(), description="Samples that are ranked.")
    ask: AskConfig = Field(AskConfig(), description="Who ranks them.")
    admit: AdmitConfig = Field(AdmitConfig(), description="What users said of served completions.")
    reward: RewardConfig = Field(RewardConfig(), description="Reward model.")
    optimise: Literal["rl", "dpo"] = Field("rl", description="rl: against the reward model. dpo: on the judgements.")
    rl: RlConfig = Field(RlConfig(), description="Policy optimisation.")
    # Near the last alone, N rounds may drift N times as far, each step within its bounds.
    reference: Literal["both", "last", "first"] = Field(
        "both",
        description="What rl pays KL to in later rounds: the last champion, where round 1 started, half to each.",
    )
    dpo: DpoConfig = Field(DpoConfig(), description="Direct preference, in place of a reward model and rl.")
    controls: dict[str, dict[str, Any]] = Field(
        {}, description="Name to {rl: ...}, or {dpo: ...} as optimise says: the same with these changes, beside it."
    )
    eval: EvalConfig = Field(EvalConfig(), description="Evaluation.")
    gates: GatesConfig = Field(GatesConfig(), description="What `accord round` asks of a candidate.")
    canary: CanaryConfig = Field(CanaryConfig(), description="A share of conversations first.")
    compare: CompareConfig = Field(CompareConfig(), description="A comparison of methods instead of one optimisation.")
    track: tuple[Tracker, ...] = Field(
        (), strict=False, description="Hand the numbers on to tensorboard, wandb (offline), trackio, as they come."
    )
    scale: ScaleConfig = Field(ScaleConfig(), description="Several processes.")

    @model_validator(mode="after")
    def _methods_and_controls_can_be_run(self) -> Self:
        for name in self.compare.methods:
            self.method(name)
        for name in self.controls:
            self.control(name)
        if self.compare.methods and self.rounds > 1:
            raise ValueError(f"rounds is {self.rounds}, and a comparison of methods (compare.methods) has one")
        comparing = [name for name, judge in self.eval.judges.items() if judge.chat is not None]
        comparing += ["people"] if self.eval.people.prompts else []
        if self.compare.methods and comparing:
            raise ValueError(f"{comparing[0]} would judge one candidate, and compare.methods has several")
        return self

    def method(self, name: str) -> RlConfig | DpoConfig | int:
        """Return the settings of one of the compared methods; n of best-of-n.

        They are the recipe's own section with what the method changes. Raises ValueError where they cannot be
        understood.
        """
        key = f"compare.methods.{name}"
        if name in SHARED_STAGES:
            raise ValueError(f"{key}: a method's folder cannot be called so; give it another name")
        stage, change = _only_change(key, name, self.compare.methods[name], ("rl", "dpo", "best_of"))
        if stage == "best_of":
            if not isinstance(change, int) or change < 2:
                raise ValueError(f"{key}.best_of is {change!r}, not a number from 2 on")
            return change
        made = _changed(f"{key}.{stage}", self.optimisation(stage), change)
        if isinstance(made, DpoConfig) and made.online:
            raise ValueError(f"{key}.dpo.online: the dpo methods of a comparison share labelled samples")
        return made

    def optimisation(self, stage: str = "") -> RlConfig | DpoConfig:
        """Return the settings of a stage that optimises, rl or dpo; by default of the one that ``optimise`` names."""
        return self.rl if (stage or self.optimise) == "rl" else self.dpo

    def control(self, name: str) -> RlConfig | DpoConfig:
        """Return the optimisation that a control names: the recipe's own, rl or dpo, with the control's changes.

        Raises ValueError where they cannot be understood, or change what the recipe does not do.
        """
        key = f"controls.{name}"
        stage, change = _only_change(key, name, self.controls[name], ("rl", "dpo"))
        if stage != self.optimise:
            raise ValueError(f"{key} has {stage}: give {self.optimise}, as optimise says")
        return _changed(f"{key}.{stage}", self.optimisation(), change)

    def check_lengths(self) -> None:
        """Refuse texts longer than the recipe's own model has positions; a given model is asked once it is there.

        Raises UsageError.
        """
        own = self.task.texts or self.task.use != "files" or "model" in self.model_fields_set
        if self.base.model or not own:
            return
        lengths = {
            "pretrain.block_tokens": self.pretrain.block_tokens,
            "sft.max_tokens": self.sft.max_tokens,
            "sample.max_new_tokens": self.sample.max_new_tokens,
            "reward.max_tokens": self.reward.max_tokens,
            "rl.max_new_tokens": self.rl.max_new_tokens,
            "rl.ptx.block_tokens": self.rl.ptx.block_tokens if self.rl.ptx.coef > 0 else 0,
            **{f"controls.{name}.rl.max_new_tokens": one.max_new_tokens for name, one in self._rl_controls().items()},
        }
        for key, length in lengths.items():
            if length > self.model.max_positions:
                raise UsageError(
                    f"{key} {length} is above model.max_positions {self.model.max_positions}",
                    where=f"recipe {self.name}",
                    hint=f"raise model.max_positions or lower {key}",
                )

    def _rl_controls(self) -> dict[str, RlConfig]:
        found = {name: self.control(name) for name in self.controls}
        return {name: one for name, one in found.items() if isinstance(one, RlConfig)}

    def resolved(self) -> dict[str, Any]:
        """Return every key with its final value, ready for JSON: the run's ``resolved.json``."""
        return self.model_dump(mode="json")


def _only_change(key: str, name: str, given: Mapping[str, Any], stages: Sequence[str]) -> tuple[str, Any]:
    """Return the one stage that a method or control changes, and how."""
    if not _FOLDER.fullmatch(name):
        raise ValueError(f"{key}: a folder cannot be called so; give it another name")
    if len(given) != 1 or not given.keys() <= set(stages):
        raise ValueError(f"{key} has {', '.join(given) or 'nothing'}: give one of {', '.join(stages)}")
    ((stage, change),) = given.items()
    return stage, change


def _changed(key: str, own: S, change: Any) -> S:
    """Return a section with a method's or control's changes. Raises ValueError where they cannot be understood."""
    if not isinstance(change, dict):
        raise ValueError(f"{key} is {yaml_word(change)}: write `key: value` lines")
    try:
        return type(own)(**layered(type(own), own.model_dump(exclude_unset=True), change))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, (key, *first["loc"])))
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


# ---- doors -----------------------------------------------------------------------------------------------------


def shipped_recipes() -> dict[str, Path]:
    """Return name and path of the recipes that come with Accord: inside the wheel, or the repository's own folder."""
    here = Path(__file__).resolve()
    folders = (here.parents[1] / "recipes", here.parents[3] / "recipes")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """Return a path as it stands, or the name of a shipped recipe."""
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    raise UsageError(
        f"no recipe {str(recipe)!r}",
        why="it is neither a file nor one of the shipped recipes",
        hint=f"did you mean {near[0]!r}?" if near else "give a YAML file or one of: " + ", ".join(shipped),
    )


def recipe_layers(recipe: str | Path | Layer) -> list[Layer]:
    """Return the recipe's own layer, above those of the recipe that it ``extends`` (a name, or a path beside it)."""
    layers: list[Layer] = []
    given: Layer | Path | None = recipe if isinstance(recipe, Layer) else find_recipe(recipe)
    while given is not None:
        layer = given if isinstance(given, Layer) else read_layer(given)
        if any(layer.name == seen.name for seen in layers):
            raise UsageError("recipes extend each other in a circle", where=layer.where(("extends",)))
        layers.insert(0, Layer({k: v for k, v in layer.values.items() if k != "extends"}, layer.name, layer.lines))
        base = layer.values.get("extends")
        given = None if base is None else _base_recipe(layer, base)
    return layers


def _base_recipe(layer: Layer, base: Any) -> Path:
    if not isinstance(base, str):
        raise UsageError(f"extends is {yaml_word(base)}, not the name of a recipe", where=layer.where(("extends",)))
    beside = Path(layer.name).parent / base
    try:
        return find_recipe(beside if beside.is_file() else base)
    except UsageError as error:
        raise UsageError(error.what, where=layer.where(("extends",)), why=error.why, hint=error.hint) from error


def load_recipe(
    recipe: str | Path | Layer | None, overrides: Sequence[str] = (), *, defaults: Layer | None = None
) -> Recipe:
    """Read a recipe by path or shipped name and apply ``key=value`` overrides.

    Args:
        recipe: A YAML file, or the name of a recipe that comes with Accord ("demo"); None for the defaults alone,
            as a single stage on a user's own model needs them (the recipe's ``model`` section then says nothing).
            A layer is a project's own recipe, called after the project's folder.
        overrides: Dotted, typed by YAML: ``rl.kl_coef=0.02``.
        defaults: A project's own defaults; the recipe wins over them.

    Raises:
        UsageError: For anything that cannot be understood, with file, line, key and a suggestion.
    """
    layers = [replace(defaults, kind="project")] if defaults else []
    if recipe is not None:
        own = recipe_layers(recipe)
        file = Path(own[-1].name)
        name = name_from(file.parent.name) if isinstance(recipe, Layer) else file.stem
        layers += [*own[:-1], Layer({"name": name}, own[-1].name, {}), own[-1]]
    given = sorted(map(override_layer, overrides), key=lambda layer: not names_row(Recipe, layer.values))
    made = build(Recipe, [*layers, *given]).from_layers([*layers, *given])
    if recipe is not None:
        made.check_lengths()
    return made


def load_label(overrides: Sequence[str] = (), *, defaults: Layer | None = None) -> LabelConfig:
    """Return a project's settings of labelling (its key ``label``), with ``key=value`` overrides on top.

    Raises:
        UsageError: For anything that cannot be understood, with file, line, key and a suggestion.
    """
    return build(LabelConfig, [*([defaults] if defaults else []), *map(override_layer, overrides)])


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe's YAML, by which editors complete and explain keys."""
    schema = Recipe.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "A recipe whose keys hold unless given here."}
    return schema
