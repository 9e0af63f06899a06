"""Whole or absent, and nothing of a killed writer stays."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accord import files
from accord.errors import ResourceError
from accord.files import append_row, numbered, partial_name, read_rows, write_folder, write_text


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


# ---- a folder is never lost ------------------------------------------------------------------------------------------


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(aside: Path) -> None:
        for name in ("first", "second"):
            (aside / name).write_text(text)

    return fill


def whole_text(folder: Path) -> str:
    """The text that both files of a folder hold; a folder of which one is missing, or another, is no whole one."""
    first, second = (folder / name for name in ("first", "second"))
    assert first.read_text() == second.read_text()
    return first.read_text()


def killed_at(count: int, path: Path, *, exchange: bool) -> bool:
    """Write a folder in a child that kills itself before its ``count``-th step at the disk; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = [count]

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return call

        for owner, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (files, "_fsync")):
            setattr(owner, name, counted(getattr(owner, name)))
        setattr(files, "_exchange", counted(files._exchange if exchange else lambda first, second: False))  # noqa: B010
        write_folder(path, fill_with("new"))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(exchange: bool, tmp_path: Path) -> None:
    seen, count = set(), 0
    while True:
        path = tmp_path / f"at {count}" / "model"
        write_folder(path, fill_with("old"))
        dies = killed_at(count, path, exchange=exchange)
        if not exchange:  # for an instant there is none: whoever writes next puts it back
            partial_name(path)
        seen.add(whole_text(path))
        write_folder(path, fill_with("third"))
        assert whole_text(path) == "third" and [one.name for one in path.parent.iterdir()] == ["model"]
        if not dies:
            break
        count += 1
    assert seen == {"old", "new"} and count > 5


def test_a_file_of_that_name_is_no_folder_to_replace(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ResourceError, match="a file has this name"):
        write_folder(tmp_path / "model", fill_with("new"))
    assert (tmp_path / "model").read_text() == "mine"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    write_folder(tmp_path / "link", fill_with("new"))
    assert whole_text(tmp_path / "link") == "new" and not list((tmp_path / "elsewhere").iterdir())


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_can_be_read_by_who_reads_their_neighbours(mask: int, mode: int, tmp_path: Path) -> None:
    """safetensors makes files that only their owner reads, whatever the umask."""

    def fill(aside: Path) -> None:
        (aside / "config.json").write_text("{}")
        os.close(os.open(aside / "model.safetensors", os.O_CREAT | os.O_WRONLY, 0o600))

    with umask(mask):
        write_folder(tmp_path / "model", fill)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()} == {mode}


# ---- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_called_that_with_the_path_and_the_room(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"(?s)/dev/full: the disk is full .* MB are free in /dev.*hint: free some"):
        append_row(Path("/dev/full"), {"step": 0})

    def fill(aside: Path) -> None:  # as safetensors and tokenizers say it: no OSError
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    write_folder(tmp_path / "model", fill_with("old"))
    with pytest.raises(ResourceError, match="model: the disk is full"):
        write_folder(tmp_path / "model", fill)
    assert whole_text(tmp_path / "model") == "old"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk of 120 kB")
def test_real_writers_on_a_full_disk_say_so(words: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    fills: list[Callable[[Path], object]] = [
        lambda aside: save_file({"w": torch.zeros(100_000)}, aside / "w.safetensors"),
        lambda aside: [
            words.save(Path(os.path.join(aside, str(i), "."))) for i in range(100) if not (aside / str(i)).mkdir()
        ],
        lambda aside: (aside / "w").write_bytes(bytes(200_000)),
    ]
    try:
        for fill in fills:
            with pytest.raises(ResourceError, match=r"the disk is full \(No space left on device\)"):
                write_folder(disk / "model", fill)
            assert list(disk.iterdir()) == []
        with pytest.raises(ResourceError, match="the disk is full"):
            write_text(disk / "page", "x" * 200_000)
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- rows and numbers ------------------------------------------------------------------------------------------------


def test_rows_that_are_whole_are_read_whatever_stands_between(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"step": 0}\n\n\x00\x00\x00\n{"st\n[1]\nnull\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": 1}\n{"step": 2'
    )
    assert read_rows(path) == [{"step": 0}, {"step": 1}]
    assert read_rows(tmp_path / "none") == []


def test_folders_are_sorted_by_their_number(tmp_path: Path) -> None:
    for name in (
        "step_999999",
        "step_1000000",
        "step_000002",
        "step_latest",
        "step_",
        "step_1e3",
        "step_\u0663",
        "other",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step_000003").write_text("a file")
    assert list(numbered(tmp_path)) == [2, 999_999, 1_000_000]
    assert numbered(tmp_path / "none") == {}
