"""Whole or absent, and nothing of a killed writer stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accord.errors import ResourceError
from accord.files import write_folder, write_text


def dead_pid() -> int:
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(process.stdout)


def test_a_later_write_removes_what_killed_writers_left_and_spares_living_ones(tmp_path: Path) -> None:
    dead, living = dead_pid(), os.getppid()
    for pid in (dead, living):
        (tmp_path / f".model.{pid}.partial").mkdir()
        (tmp_path / f".model.{pid}.partial" / "half").write_text("x")
        (tmp_path / f".row.json.{pid}.partial").write_text("x")
    write_folder(tmp_path / "model", lambda aside: (aside / "whole").write_text("y") and None)
    write_text(tmp_path / "row.json", "{}")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f".model.{living}.partial", f".row.json.{living}.partial", "model", "row.json"]


def test_a_failed_fill_leaves_the_older_folder_and_no_part(tmp_path: Path) -> None:
    def fill(aside: Path) -> None:
        (aside / "half").write_text("x")
        raise OSError(28, "No space left on device")

    write_folder(tmp_path / "model", lambda aside: (aside / "whole").write_text("y") and None)
    with pytest.raises(ResourceError, match="No space left"):
        write_folder(tmp_path / "model", fill)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "whole"]
