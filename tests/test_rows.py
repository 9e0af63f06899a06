"""Every row of every table of algorithms has a golden test, a heading in the docs, and functions that are there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from accord.algo.table import TABLES, Named, Row
from accord.config import Recipe, describe

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs" / "algorithms.md"
ROWS = [
    pytest.param(key, name, row, id=f"{key}={name}") for key, table in TABLES.items() for name, row in table.items()
]


def lacks(key: str, name: str, row: Row, headings: set[str], tests: set[str]) -> list[str]:
    """What a row should have and has not."""
    found = []
    if row.heading not in headings:
        found.append(f"docs/algorithms.md has no heading {row.heading!r}")
    elif not re.search(rf"[`=]{re.escape(name)}`", row.heading):
        found.append(f"the heading {row.heading!r} does not name it")
    if not 0 < len(row.summary) <= 100:
        found.append("no summary of one line for a command's help")
    if row.golden not in tests:
        found.append(f"no test {row.golden!r} is collected")
    return found


@pytest.fixture(scope="module")
def headings() -> set[str]:
    return set(re.findall(r"^#+ (.*)$", DOCS.read_text(encoding="utf-8"), re.M))


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The tests that pytest finds in the files that rows name, with and without what stands in brackets."""
    files = sorted({row.golden.partition("::")[0] for table in TABLES.values() for row in table.values() if row.golden})
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *files]
    done = subprocess.run(argv, cwd=TESTS, capture_output=True, text=True, check=True)
    nodes = {line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}
    return nodes | {node.partition("[")[0] for node in nodes}


@pytest.mark.parametrize(("key", "name", "row"), ROWS)
def test_a_row_is_tested_and_documented(key: str, name: str, row: Row, headings: set[str], collected: set[str]) -> None:
    assert lacks(key, name, row, headings, collected) == []


def test_a_row_that_is_neither_is_seen(headings: set[str], collected: set[str]) -> None:
    bare = Row(heading="Nowhere (`new`)", golden="test_algo.py::test_of_nothing")
    assert len(lacks("rl.algorithm", "new", bare, headings, collected)) == 3
    assert len(lacks("rl.algorithm", "new", Row(), headings, collected)) == 3
    other = TABLES["dpo.loss"]["dpo"]
    assert len(lacks("dpo.loss", "new", other, headings, collected)) == 1


@pytest.mark.parametrize(("key", "name", "row"), ROWS)
def test_the_functions_of_a_row_are_there(key: str, name: str, row: Row) -> None:
    held: list[Any] = [getattr(row, field.name) for field in fields(row)]
    functions = [value for value in held if isinstance(value, Named)]
    assert functions or (key, name) == ("rl.kl_in", "reward")
    assert all(callable(function.function) for function in functions)


@pytest.mark.parametrize(("key", "name", "row"), ROWS)
def test_what_a_row_sets_comes_with_its_name_and_differs_from_the_section_s_own(key: str, name: str, row: Row) -> None:
    section: Any = Recipe()
    for part in key.split(".")[:-1]:
        section = getattr(section, part)
    own = {key: value for key, value, _ in describe(section)}
    told = {key: value for key, value, _ in describe(type(section)(**{key.rsplit(".", 1)[-1]: name}))}
    for leaf, value in leaves(row.defaults).items():
        assert told[leaf] == value != own[leaf]


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_a_named_function_is_imported_when_it_is_called() -> None:
    assert Named("math:floor")(2.5) == 2
    late: Callable[..., Any] = Named("no_such_module_here:f")
    with pytest.raises(ModuleNotFoundError):
        late()
