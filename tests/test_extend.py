"""Code of a user's own is an input: its file, what it imports of the user's, and never by running it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from accord.extend import code_in

FILES = {
    "mine_of_test.py": "import helper_of_test, math, numpy\nopen('ran', 'w')\ndef f(p, c): return helper_of_test.x\n",
    "helper_of_test.py": "from deep_of_test import inner\nimport mine_of_test\nx = 1\n",
    "deep_of_test/__init__.py": "",
    "deep_of_test/inner.py": "from . import other\nfrom .more import far\n",
    "deep_of_test/other.py": "y = 1\n",
    "deep_of_test/more/far.py": "z = 1\n",
    "stranger_of_test.py": "w = 1\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize("name", [name for name in FILES if name != "stranger_of_test.py"])
def test_an_edit_of_anything_behind_a_function_is_seen(name: str, folder: Path) -> None:
    settings = {"rewards": [{"function": "mine_of_test:f", "weight": 1.0}]}
    before = code_in(settings)
    assert before.keys() == {"mine_of_test:f"} and code_in(settings) == before
    (folder / "stranger_of_test.py").write_text("w = 2\n")
    assert code_in(settings) == before
    (folder / name).write_text(FILES[name] + "# edited\n")
    assert code_in(settings) != before
    assert not (folder / "ran").exists() and "mine_of_test" not in sys.modules


@pytest.mark.parametrize("module", ["deep_of_test", "deep_of_test.inner", "deep_of_test.more.far"])
def test_all_of_a_package_counts(module: str, folder: Path) -> None:
    before = code_in(f"{module}:f")
    assert before
    (folder / "deep_of_test/other.py").write_text("y = 2\n")
    assert code_in(f"{module}:f") != before


def test_what_cannot_be_read_as_python_counts_all_the_same(folder: Path) -> None:
    (folder / "mine_of_test.py").write_bytes(b"def f(:\x00")
    before = code_in("mine_of_test:f")
    (folder / "mine_of_test.py").write_bytes(b"def f(:\x00 ")
    assert before and code_in("mine_of_test:f") != before


def test_of_what_is_installed_one_file_counts_and_of_what_is_not_there_none() -> None:
    assert len(code_in(["torch.nn.functional:relu", "json:loads", "no_such_module:f", "text without"])) == 2
