"""A project is a folder with an ``accord.yaml``; commands find it from the working directory upwards."""

from __future__ import annotations

import contextlib
import difflib
import json as jsonlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.options import FromDir, Json, PromptField, TopicField, Verbose
from accord.cli.talk import Talk, path_text, talking
from accord.config import Layer, Recipe, build, load_recipe, read_layer, recipe_schema
from accord.errors import DataError, UsageError
from accord.files import child, name_from, write_json, write_text
from accord.models.known_models import KNOWN_MODELS, add_model, model_folder_name
from accord.progress import for_terminal

if TYPE_CHECKING:
    from accord.formats import Format, Imported, ReadAs

FILE, STORE, SCHEMA = "accord.yaml", "accord.db", "recipe.schema.json"
FOLDERS = ("models", "runs", "exports")
OWN_KEYS = ("store", "defaults", "label")  # of accord.yaml, besides those of the project's own recipe
# What `accord init` writes: the project's own recipe, a line each, and what else the line may say.
TEMPLATE = """\
# A project of Accord: what `accord run` does here. Commands find this file from the working directory upwards, or by
# --project. Files and folders are named as seen from this one. Change any line. What is not here has its usual value:
# `accord run --show-recipe` prints all keys, `accord run --help-all` their meanings, `accord run --dry-run` the plan.

# ---- what the run is about -----------------------------------------------------------------------------------------
task:
  use: store # what `accord import` put into the store; or files, with prompts: FILE, judgements: FILE and so on
  chat: {chat} # true: a prompt is what a user says, in the model's chat template; false: the model goes on writing it
  split_by: prompt # no prompt is both trained and measured on; or topic, no topic is: wants two dozen or more
  valid_share: 0.1 # of the prompts choose among snapshots of the model; of a hundred prompts or fewer rather 0.2
  test_share: 0.15 # of the prompts are what the report measures on, and nothing else; of a hundred or fewer rather 0.3
{base}
# ---- who says which answers are better -----------------------------------------------------------------------------
ask:
  who: people # on the page of `accord label`; or panel, simulated (both programs), scorer, module:NAME, nobody
  kind: ranking # best to worst; or pair, two at a time
  prompts: 120 # prompts whose answers they compare in a round
  overlap: 2 # people who see each: two show how far people agree, one is half the work
sample: {{samples_per_prompt: 4}} # answers of the model to each of those prompts, 2 to 9
eval: {{people: {{prompts: 0}}}} # blind pairs of old and new answers that people judge too: 85 show a win rate of .65

# ---- how the model learns from it ----------------------------------------------------------------------------------
optimise: rl # a reward model of the judgements, then reinforcement learning; or dpo, straight from the judgements
rl: {{algorithm: ppo}} # or rloo, grpo, reinforce and others of docs/algorithms.md
rounds: 2 # turns of the loop: each asks anew, and starts from the model that was promoted last

# ---- the project ---------------------------------------------------------------------------------------------------
store: {store} # where the facts are kept: a SQLite file beside this one, or postgresql://user@host/database
label: {{}} # what `accord label` asks beside a run, for example {{kind: pair, min_seconds: 5}}
defaults: {{}} # keys of a recipe for every run here, other recipes too, for example {{rl: {{kl_coef: 0.05}}}}
"""
BASE = "base: {{model: {model}}} # the model to be made better; or a Hugging Face folder, a .gguf file{known}\n"
NO_BASE = (
    "# base: {model: FOLDER} # FILL IN the model to be made better: a Hugging Face folder, a .gguf file, smollm2\n"
)

_OFFERED = ", ".join(f"{name} ({known.title}, {known.size} to fetch)" for name, known in KNOWN_MODELS.items())
_OFFERED += ", the path of a .gguf file, or a Hugging Face folder, used where it stands"
ProjectDir = Annotated[
    Path | None, typer.Option("--project", metavar="DIR", help="The project; by default the one around you.")
]


@dataclass(frozen=True)
class Project:
    """A project: its folder, its store (path or URL), its own defaults of recipes and of labelling, its own recipe.

    `accord.config.load_label` makes the settings of ``label``, `recipe_with` those of ``recipe``, which holds nothing
    where accord.yaml has no keys of a recipe.
    """

    root: Path
    store: str
    defaults: Layer
    label: Layer
    recipe: Layer

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def rounds(self) -> Path:
        """Where `accord round` keeps its rounds, and the aliases of what is served."""
        return self.root / "rounds"

    @property
    def file(self) -> Path:
        return self.root / FILE

    def recipe_with(self, overrides: Sequence[str] = ()) -> Recipe:
        """Return the project's own recipe. Raises UsageError where it has none, or makes no sense."""
        if not self.recipe.values:
            raise UsageError(
                "the project has no recipe of its own",
                where=str(self.file),
                hint="name one, as in `accord run demo`, or write keys of one there: base, task, ask, rl and so on",
            )
        return load_recipe(self.recipe, overrides, defaults=self.defaults)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Work in the project's folder: what its own recipe names is named as seen from there."""
        with contextlib.chdir(self.root):
            yield


def find_project(given: Path | None) -> Project | None:
    """Return the project given, or the one in this folder or above; None where there is none.

    Raises UsageError for a folder given that holds no project, and for an ``accord.yaml`` that makes no sense.
    """
    if given is not None:
        if not (given / FILE).is_file():
            raise UsageError(f"no {FILE} here", where=str(given), hint=f"run `accord init {given}` first")
        return _read(given.resolve())
    here = Path.cwd()
    found = (folder for folder in (here, *here.parents) if (folder / FILE).is_file() and _is_obeyed(folder, here))
    root = next(found, None)
    return None if root is None else _read(root)


def _is_obeyed(folder: Path, here: Path) -> bool:
    """Whether the project of a folder may say what is done in the working folder; where it may not, that is told.

    Its file names code that is run, and where files go. Whoever can write to a folder above, as anybody can to /tmp,
    could have everybody below obey; so could whoever leaves one in a folder that all may write to.
    """
    owner, may_all_write = (folder / FILE).stat().st_uid, bool(folder.stat().st_mode & stat.S_IWOTH)
    if owner in (os.geteuid(), 0) or (folder == here and not may_all_write):
        return True
    said = f"{folder / FILE} belongs to another user, and is not obeyed; --project {folder} takes it"
    typer.echo(for_terminal(f"accord: {said}"), err=True)
    return False


def find_place(given: Path | None) -> Project:
    """Return where facts are kept: a project, given or around you, or the folder of a run with its own store.

    Raises UsageError where there is neither.
    """
    if given is not None and not (given / FILE).is_file() and (given / STORE).is_file():
        nothing = Layer({}, str(given), {})
        return Project(given.resolve(), str(given.resolve() / STORE), nothing, nothing, nothing)
    found = find_project(given)
    if found is None:
        raise UsageError(
            "there is no project here", hint="run `accord init`, or name the folder of a project or of a run"
        )
    return found


def _read(root: Path) -> Project:
    layer = read_layer(root / FILE)
    values: dict[str, Any] = {"store": STORE, "defaults": {}, "label": {}, **layer.values}
    own = replace(layer, values={key: value for key, value in layer.values.items() if key not in OWN_KEYS})
    _refuse_unknown(own)
    store = values["store"]
    if not isinstance(store, str) or not store:
        raise UsageError(f"store is {store!r}, not a path or URL", where=layer.where(("store",)))
    place = store if "://" in store else str(root / store)
    return Project(root, place, _below(layer, "defaults", values), _below(layer, "label", values), own)


def _refuse_unknown(own: Layer) -> None:
    """Refuse keys that are neither a project's nor a recipe's. What stands below them is checked where it is used."""
    for key, value in own.values.items():
        if key not in {*Recipe.model_fields, "extends"}:
            if near := difflib.get_close_matches(str(key), OWN_KEYS, n=1):
                hint = f"did you mean {near[0]!r}?"
                raise UsageError(f"unknown key {str(key)!r}", where=own.where((str(key),)), hint=hint)
            build(Recipe, [replace(own, values={key: value})])  # refuses it and says what may be meant


def _below(layer: Layer, key: str, values: Mapping[str, Any]) -> Layer:
    """Return what stands below a key as a layer of its own."""
    inner = values[key] or {}
    if not isinstance(inner, dict):
        raise UsageError(f"{key} is {inner!r}, not a mapping", where=layer.where((key,)))
    return Layer(inner, layer.name, {path[1:]: line for path, line in layer.lines.items() if path[0] == key})


def run_dir(given: Path | None, project: Project | None, name: str) -> Path:
    """Return where a run writes: as given, else ``runs/NAME`` in the project, else in the working directory."""
    return given or (project.runs if project else Path("runs")) / name


# ---- a new project ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProjectModel:
    """The model of a new project: its folder, how accord.yaml names it, and whether it was put there just now."""

    folder: Path
    named: str
    is_new: bool

    @property
    def is_chat(self) -> bool:
        """Whether it has a chat template. Raises DataError for a folder without a tokenizer."""
        from accord.text.tokenizer import load_tokenizer

        return load_tokenizer(self.folder).chat is not None


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The project's folder.")] = Path("."),
    model: Annotated[str | None, typer.Option(metavar="NAME", help=f"The model to be made better: {_OFFERED}.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also import this file, as `accord import` does; several times."),
    ] = None,
    prompt_field: PromptField = None,
    topic_field: TopicField = None,
    from_dir: FromDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a folder a project.

    It gets accord.yaml, which holds a recipe of its own, line by line explained; an empty store; and places for models,
    runs and exports. Nothing that is there already is touched. A project is not needed for single stages on files.

    \b
    Examples:
      accord init support --model smollm2
      accord init support --model ../my-chat-model --data ../bot_log.jsonl --prompt-field question
      accord init reviews && cd reviews && accord run demo
    """
    with talking(json, verbose) as talk:
        if from_dir is not None and model not in KNOWN_MODELS:
            raise UsageError(
                "--from-dir has no effect without --model NAME", hint=f"NAME is one of {', '.join(KNOWN_MODELS)}"
            )
        columns, files = named_columns(prompt_field, topic_field), data or []
        _check_given(model, files)
        before = (folder / FILE).exists()
        made = _make_folders(folder)
        used = None if model is None else _place_model(model, folder, from_dir, talk)
        made += ([f"models/{used.folder.name}"] if used and used.is_new else []) + create_project(folder, used)
        home = _read(folder.resolve())
        imported = {str(file): import_file(home, file, columns) for file in files}
        told = {"project": home.root, "created": made, "model": used and used.folder.resolve()}
        told |= {"imported": imported} if imported else {}
        talk.result(told, text="\n".join(_said(folder, made, used, imported)), next_step=_after(home, used, before))


def _check_given(model: str | None, files: Sequence[Path]) -> None:
    """Refuse a model or a file that is not there, before anything is made."""
    if model is not None and model not in KNOWN_MODELS and Path(model).is_dir():
        for name in ("config.json", "tokenizer.json"):
            if not (Path(model) / name).is_file():
                raise DataError(f"no {name} in the folder", where=model, hint="give a whole Hugging Face model folder")
    elif model is not None:
        model_folder_name(model)
    for file in files:
        if not file.is_file():
            raise DataError("there is no such file", where=str(file), hint="check the path")


def _place_model(model: str, project: Path, from_dir: Path | None, talk: Talk) -> ProjectModel:
    """Put a model into models/, where it is not a folder already: that is used where it stands."""
    if model not in KNOWN_MODELS and Path(model).is_dir():
        path, root = Path(model).resolve(), project.resolve()
        return ProjectModel(path, path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path), False)
    name = model_folder_name(model)
    target = project / "models" / name
    is_new = not target.exists()
    if is_new:
        add_model(model, target, cache=project / "downloads", from_dir=from_dir, log=talk.log)
    return ProjectModel(target, f"models/{name}", is_new)


def _said(folder: Path, made: Sequence[str], used: ProjectModel | None, imported: Mapping[str, Imported]) -> list[str]:
    """What was done, in lines."""
    lines = [f"{path_text(folder)}: " + (", ".join(made) if made else "a project already, nothing to do")]
    if used is not None:
        where = "put there just now" if used.is_new else "used where it stands, not copied"
        kind = "a chat model" if used.is_chat else "no chat template: prompts are read as they stand"
        lines.append(f"model: {path_text(used.folder)} ({where}; {kind})")
    return lines + [
        f"imported {file}: {one.prompts:,} prompts, {one.judgements:,} judgements" for file, one in imported.items()
    ]


def _after(home: Project, used: ProjectModel | None, before: bool) -> str:
    """The next step, for the project as it is now."""
    place = path_text(home.root)
    enter = "" if place == "." else f"cd {place} && "
    if used is not None and before and used.named != base_model(home):
        return f"write this line into {path_text(home.file)}:  base: {{model: {used.named}}}"
    if used is None and not base_model(home):
        return f"accord init {place} --model smollm2, or name a model in {path_text(home.file)}; or accord run demo"
    return enter + next_after_import(home, "accord import FILE   (prompts, and judgements if there are any)")


def base_model(home: Project) -> str:
    """The model that the project's own recipe names, "" where it names none."""
    base = home.recipe.values.get("base")
    return str(base.get("model") or "") if isinstance(base, dict) else ""


def _make_folders(folder: Path) -> list[str]:
    """Make the folders that a project lacks and return their names."""
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file, not a folder", where=str(folder), hint="choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in FOLDERS if not (folder / name).exists()]
    for name in missing:
        (folder / name).mkdir()
    return missing


def create_project(folder: Path, model: ProjectModel | None = None) -> list[str]:
    """Create the files that a project lacks and return the names of what was created."""
    from accord.store import Store

    missing = [name for name in (SCHEMA, FILE) if not (folder / name).exists()]
    if SCHEMA in missing:
        write_json(folder / SCHEMA, recipe_schema())
    if FILE in missing:
        write_text(folder / FILE, template_of(model))
    store = _read(folder.resolve()).store
    new_store = "://" not in store and not Path(store).exists()
    with Store.open(store):
        pass
    return [*missing, *([Path(store).name] if new_store else [])]


def template_of(model: ProjectModel | None) -> str:
    """What accord.yaml says of a new project."""
    known = "".join(f", {name}" for name in KNOWN_MODELS)
    base = NO_BASE if model is None else BASE.format(model=_yaml_text(model.named), known=known)
    return TEMPLATE.format(base=base, chat="true" if model is None or model.is_chat else "false", store=STORE)


def _yaml_text(text: str) -> str:
    """A text as YAML reads it inside braces: in quotes where it holds what means something there."""
    return text if re.fullmatch(r"[\w./-]+", text) else jsonlib.dumps(text)


# ---- files into its store --------------------------------------------------------------------------------------------


def named_columns(prompt: str | None, topic: str | None, **others: Any) -> Format | None:
    """Return the format of a table whose columns the user named; None where none is.

    ``others``: further parts of `accord.formats.Columns`; what is empty was not said.
    """
    from accord.formats import Columns, named_table

    said = {name: value for name, value in (others | {"prompt": prompt, "topic": topic}).items() if value}
    alone = [name for name in said if prompt is None and name not in ("means", "system_text")]
    if alone:
        flag = "--answer-fields" if alone[0] == "answers" else f"--{alone[0]}-field"
        raise UsageError(f"{flag} has no effect without --prompt-field", hint="name the prompts' column too")
    return named_table(Columns(**said)) if said else None


def import_file(home: Project, file: Path, format: str | Format | ReadAs | None, **bounds: Any) -> Imported:
    """Add what a file says to the project's store; its manifest and what is no good stand below ``imports``."""
    from accord import formats
    from accord.store import Store, require_sound

    require_sound(home.store)
    imports = home.root / "imports"
    imports.mkdir(exist_ok=True)
    with Store.open(home.store) as store:
        return formats.add_to(store, file, child(imports, name_from(file.name)), format, **bounds)


def next_after_import(home: Project, empty: str) -> str:
    """What to do with a project's store: look at the plan of its own recipe, or ``empty`` where the store is empty."""
    from accord.store import Store

    with Store.open(home.store) as store:
        if not store.counts()["prompts"]:
            return empty
    if not home.recipe.values:
        return "accord run files --dry-run task.use=store base.model=DIR"
    return "accord run --dry-run"
