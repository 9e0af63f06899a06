"""Two runs never write into one folder, and a lock ends with its process however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accord.cli.main import app
from accord.errors import ResourceError
from accord.lock import LOCK, only_writer

HOLD = "import sys, pathlib; from accord.lock import only_writer\n"
HOLD += "with only_writer(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@contextlib.contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_refused_with_the_others_process_and_a_kill_frees_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held_elsewhere(folder) as process:
        with (
            pytest.raises(ResourceError, match=f"run: process {process.pid} on .* is writing here"),
            only_writer(folder),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / LOCK).exists()  # a killed one leaves the file, but not the lock
    with only_writer(folder):
        assert (folder / LOCK).read_text().startswith(f"{os.getpid()} on ")
    assert list(tmp_path.iterdir()) == [folder] and list(folder.iterdir()) == []


def test_a_folder_by_another_name_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with held_elsewhere(tmp_path / "run"), pytest.raises(ResourceError), only_writer(tmp_path / "link"):
        pass


def test_who_holds_it_may_again_but_no_other_thread(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def other() -> None:
        try:
            with only_writer(tmp_path):
                pass
        except ResourceError as error:
            refused.append(error)

    with only_writer(tmp_path), only_writer(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "another thread" in str(refused[0])
    other()
    assert len(refused) == 1


def test_a_child_does_not_hold_what_its_killed_parent_held(tmp_path: Path) -> None:
    fork = "import os, sys, pathlib, time; from accord.lock import only_writer\n"
    fork += "with only_writer(pathlib.Path(sys.argv[1])):\n"
    # The child says when it is there: until then it may hold what it was born with.
    fork += "    if os.fork() == 0: print(os.getpid(), flush=True)\n    time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", fork, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with only_writer(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


TAKE_TURNS = """
import sys, pathlib, time
from accord.errors import ResourceError
from accord.lock import only_writer
number, done = pathlib.Path(sys.argv[1]) / "n", 0
while done < 15:
    try:
        with only_writer(number.parent):
            number.write_text(str(int(number.read_text()) + 1))
            done += 1
    except ResourceError:
        time.sleep(0.0005)
"""


@pytest.mark.slow
def test_many_tries_at_once_and_one_at_a_time(tmp_path: Path) -> None:
    """Each that gets in adds one to a number by reading and writing it: two at once would lose one."""
    (tmp_path / "n").write_text("0")
    each = [subprocess.Popen([sys.executable, "-c", TAKE_TURNS, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in each] == [0] * 4
    assert (tmp_path / "n").read_text() == "60"


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(ResourceError), only_writer(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_file_system_without_locks_is_told_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="knows no locks"), only_writer(tmp_path):
        pass


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/none/below"])
def test_a_folder_that_cannot_be_made_is_named(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot write the folder"), only_writer(tmp_path / where):
        pass


def test_what_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError), only_writer(tmp_path / "run"):
        raise ValueError
    assert not (tmp_path / "run").exists()


WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], Path]


@pytest.mark.parametrize("command", ["sft", "reward", "dpo", "rl", "pretrain"])
def test_every_stage_and_its_command_hold_their_folder(
    command: str, policy_folder: Path, reward_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows(
        "d.jsonl", [{"prompt": "A:", "completion": " yes", "text": "yes", "chosen": " a", "rejected": " b"}]
    )
    files = (
        ["--texts", data, "--valid-texts", data]
        if command == "pretrain"
        else ["--model", policy_folder, "--data", data]
    )
    with held_elsewhere(tmp_path / "out") as process:
        done = CliRunner().invoke(app, [command, *map(str, files), "-o", str(tmp_path / "out")])
        assert done.exit_code == 4 and f"process {process.pid}" in done.stderr


@pytest.mark.slow
def test_a_run_holds_its_folder(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "out") as process:
        done = CliRunner().invoke(app, ["run", "smoke", "-o", str(tmp_path / "out")])
        assert done.exit_code == 4 and f"process {process.pid}" in done.stderr
