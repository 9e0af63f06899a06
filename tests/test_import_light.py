"""What must start at once never waits for torch: importing the torch-free rooms, and every --help."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import cpu_of_children

SRC = Path(__file__).resolve().parents[1] / "src" / "accord"
HEAVY = ("torch", "transformers", "sklearn", "matplotlib")
LIGHT_ROOMS = ("errors", "files", "seeds", "records", "config", "grid", "stats", "store", "formats", "people", "cli")


def modules_of(room: str) -> list[str]:
    """Every module of a room; migrations run only under Alembic and are not importable by themselves."""
    found = [SRC / f"{room}.py"] if (SRC / f"{room}.py").exists() else sorted((SRC / room).rglob("*.py"))
    names = [".".join(path.relative_to(SRC.parent).with_suffix("").parts) for path in found]
    return [name.removesuffix(".__init__") for name in names if "migrations" not in name]


def heavy_after(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter holds after running the code."""
    told = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_room_is_torch_free(room: str) -> None:
    modules = modules_of(room)
    assert modules, f"no modules in {room}"
    assert heavy_after("\n".join(f"import {module}" for module in modules)) == []


@pytest.mark.slow
def test_facade_and_help_are_torch_free() -> None:
    code = (
        "import accord, contextlib, io\n"
        "from accord.cli.main import app\n"
        "for argv in (['--help'], ['rl', '--help'], ['demo', '--help']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        app(argv, prog_name='accord', standalone_mode=False)\n"
        "    assert 'Usage: accord' in out.getvalue()\n"
    )
    assert heavy_after(code) == []


def test_the_look_sees_torch() -> None:
    assert heavy_after("import types; sys.modules['torch'] = types.ModuleType('torch')") == ["torch"]


def test_every_package_that_is_required_is_imported() -> None:
    """scikit-learn was required for years of runs, and only tests imported it."""
    required = tomllib.loads((SRC.parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {re.split(r"[<>=\[~! ;]", one)[0].lower().replace("_", "-") for one in required}
    trees = (ast.parse(path.read_text()) for path in SRC.rglob("*.py"))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    from_modules = packages_distributions()
    found = {dist for name in names for dist in from_modules.get(name.split(".")[0], ())}
    assert wanted - {dist.lower().replace("_", "-") for dist in found} == set()


@pytest.mark.slow
def test_help_answers_at_once() -> None:
    """0.3 s of the processor, whatever else runs on the machine; the bound leaves room for a slower one."""
    seconds = []
    for _ in range(3):
        before = cpu_of_children()
        subprocess.run([sys.executable, "-m", "accord", "--help"], capture_output=True, check=True)
        seconds.append(cpu_of_children() - before)
    assert statistics.median(seconds) < 1.0
