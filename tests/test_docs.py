"""Docs rot unless executed: every path, command and Python name they mention exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import accord
from accord.cli.main import app
from accord.config import Recipe, Section
from accord.demo.films import FilmConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# Folders of the repository; what commands write (runs/, models/) is not promised to exist.
OURS = ("src/", "tests/", "docs/", "recipes/", "examples/", "benchmarks/", ".ci/")
commands = set(getattr(get_command(app), "commands"))  # noqa: B009 - a group of Typer's own vendored kind


def code_of(page: Path) -> Iterator[str]:
    """Code spans, fenced blocks and indented blocks of a page, a line each."""
    text = page.read_text(encoding="utf-8")
    fenced = re.compile(r"^```.*?\n(.*?)^```", re.M | re.S)
    for block in fenced.findall(text):
        yield from block.splitlines()
    text = fenced.sub("", text)
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))
    yield from re.findall(r"`([^`\n]+)`", text)


def paths_in(code: str) -> Iterator[str]:
    """Paths of the repository; what a colon stands before is a user's own (``--data hh:mine.txt``)."""
    for word in re.findall(r"(?<![\w./*:-])[\w./*-]+", code):
        if word.startswith(OURS) or re.fullmatch(r"[\w.-]+\.(md|toml|txt)", word):
            yield word.rstrip(".")


def links_of(page: Path) -> Iterator[str]:
    """Targets of links to files, without their anchors."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_exist(page: Path) -> None:
    named = {path for code in code_of(page) for path in paths_in(code)}
    assert [path for path in named if not [*ROOT.glob(path), *page.parent.glob(path)]] == []
    assert [link for link in links_of(page) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page: Path) -> None:
    named = {name for code in code_of(page) for name in re.findall(r"(?:^|[\s/])accord ([a-z]+)\b", code)}
    assert named <= commands


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for code in code_of(page) for name in re.findall(r"^make ([a-z]+)\b", code)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_names_exist(page: Path) -> None:
    named = {name for code in code_of(page) for name in re.findall(r"\baccord\.([a-z_]+)\(", code)}
    assert all(hasattr(accord, name) for name in named)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_recipe_keys_exist(page: Path) -> None:
    """``rl.kl_coef=0.02`` in a page names a key of the recipe; ``task.options`` in a page are the demo's."""
    sections = "|".join(key for key, field in Recipe.model_fields.items() if isinstance(field.default, Section))
    for code in code_of(page):
        for dotted in re.findall(rf"(?<![\w/.])((?:{sections})\.[a-z_.]+)=", code):
            value: object = Recipe()
            if dotted.startswith("task.options."):
                value, dotted = FilmConfig(), dotted.removeprefix("task.options.")
            for part in dotted.split("."):
                assert hasattr(value, part), dotted
                value = getattr(value, part)


def test_the_first_pages_are_there() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= set(IDS)
    assert (ROOT / "CONTRIBUTING.md").read_text().count("\n") < 120


ARCHITECTURE = ROOT / "docs" / "architecture.md"


def test_the_architecture_tells_one_life_in_ten_steps_and_names_every_room() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^(\d+)\. ", text, re.M)] == [*range(1, 11)]
    table = text.partition("## The rooms")[2].partition("## To add")[0]
    named = set(
        re.findall(r"`(\w+(?:\.py|/))`", "\n".join(row.split("|")[1] for row in re.findall(r"^\|.*", table, re.M)))
    )
    package = ROOT / "src" / "accord"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == rooms | modules


def test_the_architecture_says_file_shape_and_test_of_ten_things_to_add() -> None:
    table = ARCHITECTURE.read_text(encoding="utf-8").partition("## To add")[2]
    rows = [row.split("|")[1:-1] for row in re.findall(r"^\| \*\*.*", table, re.M)]
    assert len(rows) == 10
    for _, touched, shape, test in rows:
        assert "`src/accord/" in touched and "`tests/test_" in test
        names = re.findall(r"`([A-Z]\w+)`", shape + touched)
        sources = [ROOT / path for path in re.findall(r"`(src/accord/[\w/]+\.py)`", touched + shape)]
        code = "".join(path.read_text(encoding="utf-8") for path in sources)
        assert [name for name in names if not re.search(rf"^(class )?{name}\b", code, re.M)] == [], touched


def test_every_command_and_public_function_stands_in_a_row_of_the_commands() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `accord ([a-z]+).*\|(.*)\|$", page, re.M)
    assert {name for name, _ in rows} == commands
    told = set(re.findall(r"`accord\.(\w+)`", "".join(functions for _, functions in rows)))
    assert told == set(accord.__all__) - {"__version__", "load_recipe", "sweep_stage"}


def test_public_functions_exist() -> None:
    """Every name that ``import accord`` promises can be loaded."""
    assert [name for name in accord.__all__ if not hasattr(accord, name)] == []
    assert set(accord.__all__) <= set(dir(accord))
