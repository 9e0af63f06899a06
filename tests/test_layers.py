"""The layers of the house: a room imports only rooms further left, or its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "accord"

# From left to right. Rooms of one group may use each other in the order given, within a line.
LAYERS = [
    ["errors", "files", "lock", "seeds", "extend", "progress", "artefacts", "connected", "ranks", "mirror", "isolated"],
    ["records"],
    ["config"],
    ["grid"],
    ["stats", "algo"],
    ["text", "store", "formats"],
    ["dist", "models"],
    ["rollout", "scoring"],
    ["report"],
    ["people"],
    ["train", "evals"],
    ["serve"],
    ["cluster"],
    ["loop"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
ORDER = {room: (layer, place) for layer, rooms in enumerate(LAYERS) for place, room in enumerate(rooms)}
# Pairs within a layer that are ordered, as DESIGN writes them with "<"; others of a layer are strangers.
ORDERED = {
    ("extend", "errors"),
    ("extend", "files"),
    ("artefacts", "errors"),
    ("artefacts", "files"),
    ("files", "errors"),
    ("lock", "errors"),
    ("lock", "files"),
    ("seeds", "errors"),
    ("models", "dist"),
    ("lock", "ranks"),
    ("ranks", "errors"),
    ("mirror", "errors"),
    ("mirror", "files"),
    ("scoring", "rollout"),
}
# Single modules that a room further left may read: the tables of algorithms hold names and no torch.
READABLE = {"config": {"algo.table"}}
# The parts of the people's room, from left to right.
PEOPLE = [
    "remembered",
    "running",
    "desk",
    "intake",
    "matchups",
    "scrub",
    "admission",
    "signals",
    "views",
    "quality",
    "watching",
    "exporting",
    "web",
    "simulation",
]


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Full dotted names that a module imports, relative imports resolved against its package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def rooms_imported(source: str, package: tuple[str, ...] = ("accord",), of: tuple[str, ...] = ("accord",)) -> set[str]:
    names = [tuple(name.split(".")) for name in imported(ast.parse(source), package)]
    depth = len(of)
    return {name[depth] for name in names if name[:depth] == of and len(name) > depth}


def modules_imported(source: str, room: str, package: tuple[str, ...] = ("accord",)) -> set[str]:
    """The modules of another room that a source imports, as ``room.module``."""
    names = [name.split(".") for name in imported(ast.parse(source), package)]
    return {".".join(name[1:3]) for name in names if name[:2] == ["accord", room]}


def allowed(room: str, other: str) -> bool:
    if other == room or other not in ORDER:  # not a room: a name of the facade, such as accord.__version__
        return True
    return ORDER[other][0] < ORDER[room][0] or (room, other) in ORDERED


MODULES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_left(path: Path) -> None:
    room = room_of(path)
    assert room in ORDER, f"{room} is a new room: give it a place in LAYERS"
    package = ("accord", *path.relative_to(SRC).parts[:-1])
    source = path.read_text()
    wrong = {other for other in rooms_imported(source, package) if not allowed(room, other)}
    for module in READABLE.get(room, ()):
        other = module.partition(".")[0]
        wrong -= {other} if modules_imported(source, other, package) == {module} else set()
    assert not wrong, f"{room} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", sorted((SRC / "people").rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_the_parts_of_the_people_s_room_point_left(path: Path) -> None:
    package = path.relative_to(SRC).with_suffix("").parts
    part = package[1]
    used = rooms_imported(path.read_text(), ("accord", *package[:-1]), of=("accord", "people"))
    assert part == "__init__" or used <= set(PEOPLE[: PEOPLE.index(part) + 1])


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) == "algo"], ids=lambda path: path.name)
def test_algo_is_pure(path: Path) -> None:
    """algo imports torch and nothing of ours but its own functions."""
    package = ("accord", *path.relative_to(SRC).parts[:-1])
    assert rooms_imported(path.read_text(), package) <= {"algo"}
    allowed_roots = {"__future__", "accord", "collections", "dataclasses", "math", "torch", "typing"}
    allowed_roots |= {"functools", "importlib", "inspect", "re"}  # rows hold functions by name; shapes are named
    assert {name.split(".")[0] for name in imported(ast.parse(path.read_text()), package)} <= allowed_roots


@pytest.mark.parametrize(
    ("source", "package", "rooms"),
    [
        ("import accord.train.rl", ("accord",), {"train"}),
        ("from accord import cli", ("accord",), {"cli"}),
        ("from accord.models import decoder", ("accord",), {"models"}),
        ("from .rl import step", ("accord", "train"), {"train"}),
        ("from ..cli import main", ("accord", "train"), {"cli"}),
        ("from .. import loop", ("accord", "train"), {"loop"}),
        ("def f():\n    from accord.loop import run", ("accord", "train"), {"loop"}),
        ("import torch\nfrom accordion import x", ("accord",), set()),
    ],
)
def test_every_way_to_import_is_seen(source: str, package: tuple[str, ...], rooms: set[str]) -> None:
    assert rooms_imported(source, package) == rooms


def test_the_order_forbids_what_it_should() -> None:
    forbidden = [("train", "cli"), ("stats", "algo"), ("rollout", "scoring"), ("records", "config"), ("train", "evals")]
    assert not any(allowed(room, other) for room, other in forbidden)
    assert not allowed("config", "algo")  # but for the tables
    source = "from accord.algo.table import TABLES\nfrom accord.algo import kl\nimport accord.algo.table"
    assert modules_imported(source, "algo") == {"algo.table", "algo.kl"}
    assert allowed("scoring", "rollout") and allowed("cli", "loop") and allowed("models", "text")
