"""A store that is damaged is told, mended as far as it can be read, and copied whole while people answer."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accord.cli.main import app
from accord.errors import DataError, ResourceError, UsageError
from accord.records import Prompt
from accord.store import Store, back_up, problems_of, repair, require_sound

NUM_PROMPTS = 900


def prompts(count: int = NUM_PROMPTS) -> list[Prompt]:
    return [Prompt(text=f"prompt {i} " + "word " * (i % 40)) for i in range(count)]


@pytest.fixture(scope="module")
def bytes_of_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store of some dozen pages, as one file."""
    path = tmp_path_factory.mktemp("store") / "accord.db"
    with Store.open(path) as store:
        store.add(prompts())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE").close()
    return path.read_bytes()


@pytest.fixture
def path(bytes_of_store: bytes, tmp_path: Path) -> Path:
    (tmp_path / "accord.db").write_bytes(bytes_of_store)
    (tmp_path / "accord.yaml").write_text("")
    return tmp_path / "accord.db"


def pages(path: Path, kind: str) -> list[int]:
    """The first pages of the tables, or of the indexes, of a store, counted from 1."""
    with closing(sqlite3.connect(path)) as connection:
        roots = connection.execute("SELECT name, rootpage FROM sqlite_master WHERE type = ?", (kind,)).fetchall()
    return [root for _, root in roots if root]


def spoil(path: Path, page: int, *, from_byte: int = 0) -> None:
    size = int.from_bytes(path.read_bytes()[16:18], "big")
    with path.open("r+b") as file:
        file.seek((page - 1) * size + from_byte)
        file.write(b"\xa5" * (size - from_byte))


def num_pages(path: Path) -> int:
    content = path.read_bytes()
    return len(content) // int.from_bytes(content[16:18], "big")


def texts(path: Path) -> set[str]:
    with Store.open(path) as store:
        assert store.verify() == []
        return {prompt.text for prompt in store.prompts()}


def call(*argv: object) -> Any:
    return CliRunner().invoke(app, list(map(str, argv)))


# ---- who may read it -------------------------------------------------------------------------------------------------


def test_a_store_and_all_beside_it_are_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(tmp_path / "accord.db") as store:
            store.add(prompts(3))
            assert len(list(tmp_path.iterdir())) == 3  # with -wal and -shm
            assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
            copy = back_up(tmp_path / "accord.db", tmp_path / "copy.db")
            assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.slow
def test_doctor_tells_of_a_store_that_others_can_open(path: Path) -> None:
    path.chmod(0o644)
    told = call("doctor", "--project", path.parent).stdout
    assert "sound, and others can open it" in told and f"chmod 600 {path}" in told
    path.chmod(0o600)
    assert "accord.db is sound\n" in call("doctor", "--project", path.parent).stdout


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_store_is_told_at_the_start(path: Path) -> None:
    assert problems_of(path) == [] and problems_of(path, thorough=True) == []
    spoil(path, num_pages(path) // 2)
    with pytest.raises(DataError, match="the store is damaged"):
        require_sound(path)
    for argv in (["label", path.parent, "--no-link"], ["export", "--format", "jsonl", "--project", path.parent]):
        done = call(*argv)
        assert done.exit_code == 3 and "accord doctor --repair" in done.stderr, done.stderr
    done = call("doctor", "--project", path.parent)
    assert done.exit_code == 4 and "[BAD ] store" in done.stdout


def test_a_store_behind_a_url_or_not_there_has_no_file_to_look_at(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    assert problems_of(tmp_path / "none.db") == [] and not (tmp_path / "none.db").exists()
    assert problems_of("postgresql://nobody@127.0.0.1:1/none") == []


def test_a_sound_store_is_left_as_it_is(path: Path) -> None:
    before = path.read_bytes()
    done = repair(path)
    assert (done.problems, done.damaged) == ([], None) and path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir() if "damaged" in one.name] == []


def mended(path: Path) -> set[str]:
    """Repair a store that is damaged; the prompts that it then holds, all of them as they were."""
    before = path.read_bytes()
    done = repair(path)
    assert done.problems and done.damaged is not None and done.damaged.read_bytes() == before
    assert problems_of(path, thorough=True) == [] and done.changed == 0
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(done.damaged.stat().st_mode) == 0o600
    found = texts(path)
    assert found <= {prompt.text for prompt in prompts()} and done.kept["prompts"] == len(found)
    with Store.open(path) as store:  # it refuses changes as ever, and takes new facts
        store.add([Prompt(text="one more")])
    with contextlib.closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.Error):
        connection.execute("DELETE FROM prompts")
    return found


def test_a_damaged_index_loses_nothing(path: Path) -> None:
    spoil(path, max(pages(path, "index")), from_byte=0)
    assert len(mended(path)) == NUM_PROMPTS


def test_a_damaged_page_of_texts_loses_what_stood_on_it(path: Path) -> None:
    """Pages of texts hold some dozen: all others stay, and what referred to the lost ones goes."""
    size, content = 4096, path.read_bytes()
    leaves = [page for page in range(1, num_pages(path) + 1) if content[(page - 1) * size] == 13]  # of tables
    spoil(path, next(page for page in leaves if b"prompt 450 " in content[(page - 1) * size : page * size]))
    assert NUM_PROMPTS - 200 <= len(mended(path)) < NUM_PROMPTS


@pytest.mark.slow
def test_whatever_page_is_damaged_what_is_kept_is_as_it_was(path: Path, bytes_of_store: bytes) -> None:
    kept: list[int] = []
    for page in range(2, num_pages(path) + 1, 3):
        path.write_bytes(bytes_of_store)
        for left in path.parent.glob("accord.db?*"):
            left.unlink()
        spoil(path, page, from_byte=page % 2 * 100)
        if problems_of(path, thorough=True):
            try:
                kept.append(len(mended(path)))
            except DataError as error:  # the root of the texts: nothing is left that makes sense
                assert "nothing of the store can be read" in str(error) and problems_of(path, thorough=True)
    assert len(kept) > 5 and sorted(kept)[len(kept) // 2] > NUM_PROMPTS // 2


def test_of_what_nothing_can_be_read_nothing_is_replaced(path: Path) -> None:
    spoil(path, 1, from_byte=100)
    before = path.read_bytes()
    with pytest.raises(DataError, match="nothing of the store can be read"):
        repair(path)
    assert path.read_bytes() == before


def test_a_store_in_use_is_not_repaired_under_its_users(path: Path) -> None:
    with Store.open(path) as store:
        store.counts()
        spoil(path, max(pages(path, "index")))
        with pytest.raises(ResourceError, match="the store is in use"):
            repair(path)


def test_the_command_says_what_it_did(path: Path) -> None:
    assert "sound, nothing to do" in call("doctor", "--repair", "--project", path.parent).stdout
    spoil(path, max(pages(path, "index")))
    done = call("doctor", "--repair", "--project", path.parent)
    assert done.exit_code == 0 and "rows kept" in done.stdout and "as it was: " in done.stdout
    assert call("doctor", "--repair").exit_code == 2


# ---- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_made_while_others_write_is_whole(path: Path, tmp_path: Path) -> None:
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            store.add([Prompt(text=f"new {written[0]}")])
            written[0] += 1

    with Store.open(path) as store:
        thread = threading.Thread(target=write)
        thread.start()
        try:
            copies = []
            for i in range(3):
                least = written[0]
                copies.append((least, back_up(path, tmp_path / f"{i}.db"), written[0] + 1))
        finally:
            stop.set()
            thread.join()
    for least, copy, most in copies:
        new = [text for text in texts(copy) if text.startswith("new ")]
        assert least <= len(new) <= most and set(new) == {f"new {i}" for i in range(len(new))}
        assert problems_of(copy, thorough=True) == []


def test_what_cannot_be_copied_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "there.db").write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        back_up(path, tmp_path / "there.db")
    with pytest.raises(DataError, match="no such store"):
        back_up(tmp_path / "none.db", tmp_path / "copy.db")
    with pytest.raises(ResourceError):
        back_up(path, tmp_path / "there.db" / "copy.db")
    spoil(path, num_pages(path) // 2)
    with pytest.raises(DataError, match="damaged"):
        back_up(path, tmp_path / "copy.db")
    assert (tmp_path / "there.db").read_text() == "mine" and not (tmp_path / "copy.db").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_newest_copies_are_kept_and_nothing_else_is_removed(path: Path) -> None:
    folder = path.parent / "backups"
    folder.mkdir()
    old = [f"accord-2026010{i}-030000.db" for i in range(1, 6)]
    others = ["accord-before-the-move.db", "other-20260101-030000.db", "notes"]
    for name in [*old, *others]:
        (folder / name).write_text("x")
    done = call("backup", "--project", path.parent, "--keep", 3, "--json")
    told = json.loads(done.stdout)
    assert [Path(one).name for one in told["removed"]] == old[:3]
    assert {one.name for one in folder.iterdir()} == {*old[3:], *others, Path(told["backup"]).name}
    assert len(texts(Path(told["backup"]))) == NUM_PROMPTS
    spoil(path, num_pages(path) // 2)
    left = {one.name for one in folder.iterdir()}
    time.sleep(1.0)  # copies are named by the second
    done = call("backup", "--project", path.parent, "--keep", 1)  # no good copy goes for a bad one
    assert done.exit_code == 3, done.output
    assert {one.name for one in folder.iterdir()} == left
    assert call("backup", "--project", path.parent, "--keep", 1, "-o", path.parent / "x.db").exit_code == 2


@pytest.mark.slow
def test_it_runs_as_cron_runs_it(path: Path) -> None:
    """No terminal, no environment, another working folder, the installed entry point."""
    code = "from accord.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", code, "backup", "--project", str(path.parent), "--json"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(
        command, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(json.loads(done.stdout)["backup"]).parent == path.parent / "backups"
