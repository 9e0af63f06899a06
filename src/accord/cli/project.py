"""A project is a folder with an ``accord.yaml``; commands find it from the working directory upwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from accord.cli.options import FromDir, Json, Verbose
from accord.cli.talk import path_text, talking
from accord.config import Layer, read_layer, recipe_schema
from accord.errors import DataError, UsageError
from accord.files import write_json, write_text
from accord.models.known_models import KNOWN_MODELS, add_model, model_folder_name

FILE, STORE, SCHEMA = "accord.yaml", "accord.db", "recipe.schema.json"
FOLDERS = ("models", "runs", "exports")
TEMPLATE = f"""\
# A project of Accord. Commands find this file from the working directory upwards, or by --project.

# Where the facts are kept: a SQLite file beside this one, or postgresql://user@host/database
store: {STORE}

# Keys of a recipe that hold for every run here, unless the recipe or the command line says otherwise, for example
# defaults:
#   rl:
#     kl_coef: 0.05
defaults: {{}}

# What annotators are asked by `accord label`, for example
# label:
#   kind: pair
#   overlap: 2
label: {{}}
"""

_OFFERED = ", ".join(f"{name} ({known.title}, {known.size} to fetch)" for name, known in KNOWN_MODELS.items())
_OFFERED += ", or the path of a .gguf file"
ProjectDir = Annotated[
    Path | None, typer.Option("--project", metavar="DIR", help="The project; by default the one around you.")
]


@dataclass(frozen=True)
class Project:
    """A project: its folder, its store (path or URL), its own defaults of recipes and of labelling.

    `accord.config.load_label` makes the settings of ``label``.
    """

    root: Path
    store: str
    defaults: Layer
    label: Layer

    @property
    def runs(self) -> Path:
        return self.root / "runs"


def find_project(given: Path | None) -> Project | None:
    """Return the project given, or the one in this folder or above; None where there is none.

    Raises UsageError for a folder given that holds no project, and for an ``accord.yaml`` that makes no sense.
    """
    if given is not None:
        if not (given / FILE).is_file():
            raise UsageError(f"no {FILE} here", where=str(given), hint=f"run `accord init {given}` first")
        return _read(given.resolve())
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / FILE).is_file()), None)
    return None if root is None else _read(root)


def find_place(given: Path | None) -> Project:
    """Return where facts are kept: a project, given or around you, or the folder of a run with its own store.

    Raises UsageError where there is neither.
    """
    if given is not None and not (given / FILE).is_file() and (given / STORE).is_file():
        nothing = Layer({}, str(given), {})
        return Project(given.resolve(), str(given.resolve() / STORE), nothing, nothing)
    found = find_project(given)
    if found is None:
        raise UsageError(
            "there is no project here", hint="run `accord init`, or name the folder of a project or of a run"
        )
    return found


def _read(root: Path) -> Project:
    layer = read_layer(root / FILE)
    values: dict[str, Any] = {"store": STORE, "defaults": {}, "label": {}, **layer.values}
    unknown = set(values) - {"store", "defaults", "label"}
    if unknown:
        key = sorted(map(str, unknown))[0]
        raise UsageError(
            f"unknown key {key!r}", where=layer.where((key,)), hint="keys of a recipe go below `defaults:`"
        )
    store = values["store"]
    if not isinstance(store, str) or not store:
        raise UsageError(f"store is {store!r}, not a path or URL", where=layer.where(("store",)))
    place = store if "://" in store else str(root / store)
    return Project(root, place, _below(layer, "defaults", values), _below(layer, "label", values))


def _below(layer: Layer, key: str, values: Mapping[str, Any]) -> Layer:
    """Return what stands below a key as a layer of its own."""
    inner = values[key] or {}
    if not isinstance(inner, dict):
        raise UsageError(f"{key} is {inner!r}, not a mapping", where=layer.where((key,)))
    return Layer(inner, layer.name, {path[1:]: line for path, line in layer.lines.items() if path[0] == key})


def run_dir(given: Path | None, project: Project | None, name: str) -> Path:
    """Return where a run writes: as given, else ``runs/NAME`` in the project, else in the working directory."""
    return given or (project.runs if project else Path("runs")) / name


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The project's folder.")] = Path("."),
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Also put a model into models/: {_OFFERED}.")
    ] = None,
    from_dir: FromDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a folder a project.

    It gets settings, an empty store, and places for models, runs and exports. Nothing that is there already is
    touched. A project is not needed for single stages on files.

    \b
    Examples:
      accord init
      accord init reviews && cd reviews && accord run demo
      accord init chat --model smollm2
    """
    with talking(json, verbose) as talk:
        if from_dir is not None and model not in KNOWN_MODELS:
            raise UsageError(
                "--from-dir has no effect without --model NAME", hint=f"NAME is one of {', '.join(KNOWN_MODELS)}"
            )
        target = folder / "models" / model_folder_name(model) if model is not None else None
        made = create_project(folder)
        next_step = "accord run demo --dry-run, accord doctor"
        if model is not None and target is not None:
            if not target.exists():
                add_model(model, target, cache=folder / "downloads", from_dir=from_dir, log=talk.log)
                made.append(f"models/{target.name}")
            next_step = f"accord sft --model {path_text(target)} --data demonstrations.jsonl -o sft"
        talk.result(
            {"project": folder.resolve(), "created": made, "model": target and target.resolve()},
            text=f"{path_text(folder)}: " + (", ".join(made) if made else "a project already, nothing to do"),
            next_step=next_step,
        )


def create_project(folder: Path) -> list[str]:
    """Create what a project lacks and return the names of what was created."""
    from accord.store import Store

    if folder.exists() and not folder.is_dir():
        raise DataError("is a file, not a folder", where=str(folder), hint="choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in (*FOLDERS, SCHEMA, FILE) if not (folder / name).exists()]
    for name in missing:
        if name in FOLDERS:
            (folder / name).mkdir()
        elif name == SCHEMA:
            write_json(folder / name, recipe_schema())
        else:
            write_text(folder / name, TEMPLATE)
    store = _read(folder.resolve()).store
    new_store = "://" not in store and not Path(store).exists()
    with Store.open(store):
        pass
    return [*missing, *([Path(store).name] if new_store else [])]
