"""Numbers of a run in other tools' trackers, read back with the trackers' own readers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from accord import files
from accord.errors import ResourceError
from accord.report import trackers
from accord.report.trackers import TRACKERS, Follower, tracked


class Heard:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, dict[str, float]]] = []
        self.closed = False

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        self.rows.append((stage, step, dict(numbers)))

    def close(self) -> None:
        self.closed = True


def write_rows(path: Path, *steps: int, scale: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": scale / (step + 1), "odd": None, "told": "x"}) + "\n")


def told_of(folder: Path) -> list[tuple[str, int]]:
    heard = Heard()
    Follower(folder, "tensorboard", heard).catch_up()
    return [(stage, step) for stage, step, _ in heard.rows]


def test_every_row_is_handed_on_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft/metrics.jsonl", 0, 1)
    write_rows(tmp_path / "rl/metrics.jsonl", 0)
    assert sorted(told_of(tmp_path)) == [("rl", 0), ("sft", 0), ("sft", 1)]
    assert told_of(tmp_path) == []
    write_rows(tmp_path / "rl/metrics.jsonl", 1)
    assert told_of(tmp_path) == [("rl", 1)]


def test_a_look_reads_only_what_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with a row more only that row is read; one that was cut or replaced, from its beginning."""
    path, lines, plain = tmp_path / "metrics.jsonl", list[str](), files.row_in
    monkeypatch.setattr(files, "row_in", lambda line: (lines.append(line), plain(line))[1])
    rows = files.GrowingRows(path)
    assert rows.rows() == []
    write_rows(path, *range(100))
    assert [row["step"] for row in rows.rows()] == list(range(100))
    lines.clear()
    write_rows(path, 100)
    assert len(rows.rows()) == 101 and len([line for line in lines if line]) == 1
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert [row["step"] for row in rows.rows()] == [0, 1]
    path.unlink()
    write_rows(path, *range(7, 40), scale=3.0)  # longer than it was
    assert [row["step"] for row in rows.rows()] == list(range(7, 40))


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft/metrics.jsonl", 1)
    heard = Heard()
    Follower(tmp_path, "wandb", heard).catch_up()
    assert heard.rows == [("sft", 1, {"loss": 0.5})]


def test_each_tracker_has_its_own_place(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft/metrics.jsonl", 0)
    first, second = Heard(), Heard()
    Follower(tmp_path, "wandb", first).catch_up()
    Follower(tmp_path, "trackio", second).catch_up()
    assert len(first.rows) == len(second.rows) == 1


def test_a_row_that_is_being_written_waits(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft/metrics.jsonl", 0)
    with (tmp_path / "sft/metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "loss": 0.2')
    assert told_of(tmp_path) == [("sft", 0)]
    with (tmp_path / "sft/metrics.jsonl").open("a") as file:
        file.write("5}\n")
    assert told_of(tmp_path) == [("sft", 1)]


def test_steps_that_a_resumed_run_takes_again_are_not_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "sft/metrics.jsonl"
    write_rows(path, 0, 1, 2, 3)
    told_of(tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))  # back to a checkpoint
    assert told_of(tmp_path) == []
    write_rows(path, 2, 3, 4)
    assert told_of(tmp_path) == [("sft", 4)]


def test_another_training_in_the_same_folder_is_sent_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "sft/metrics.jsonl"
    write_rows(path, 0, 1, 2)
    told_of(tmp_path)
    path.unlink()
    write_rows(path, 0, 1, scale=7.0)
    assert told_of(tmp_path) == [("sft", 0), ("sft", 1)]


def test_single_stages_rounds_and_seeds_are_found(tmp_path: Path) -> None:
    write_rows(tmp_path / "ppo/metrics.jsonl", 0)
    assert told_of(tmp_path / "ppo") == [("ppo", 0)]
    run = tmp_path / "demo"
    for place in (run / "seed_0", run / "seed_0/round_2", run / "seed_1"):
        write_rows(place / "rl/metrics.jsonl", 0)
        (place / "resolved.json").write_text("{}")
    assert sorted(told_of(run)) == [("seed_0/rl", 0), ("seed_0/round_2/rl", 0), ("seed_1/rl", 0)]


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Heard):
        def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
            raise OSError("its server is gone")

    whole, said = Heard(), list[str]()
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": lambda folder: Broken(), "trackio": lambda folder: whole})
    with tracked(tmp_path, ("wandb", "trackio"), lambda done, text: said.append(text)):
        write_rows(tmp_path / "sft/metrics.jsonl", 0)
    assert [row[:2] for row in whole.rows] == [("sft", 0)] and whole.closed
    assert said == ["the tracker wandb failed and gets no more: OSError: its server is gone"]


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ResourceError, match="wandb is not installed"), tracked(tmp_path, ("wandb",), print):
        pytest.fail("it began")


def test_nothing_is_loaded_unless_it_is_asked_for(tmp_path: Path) -> None:
    with tracked(tmp_path / "none", (), print):
        write_rows(tmp_path / "none/sft/metrics.jsonl", 0)
    assert not (tmp_path / "none/tracked.json").exists()
    assert set(TRACKERS) == {"tensorboard", "wandb", "trackio"}


# ---- with the trackers themselves ------------------------------------------------------------------------------------

WRITE = """
import sys
from pathlib import Path
from accord.report.trackers import tracked
with tracked(Path(sys.argv[1]), (sys.argv[2],), lambda done, text: sys.exit(text)):
    pass
"""
READERS = {
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1] + "/tensorboard").Reload()
rows = [[tag, one.step, one.tensor_proto] for tag in found.Tags()["tensors"] for one in found.Tensors(tag)]
rows = [[tag, step, value.float_val[0]] for tag, step, value in rows]
""",
    # Its file is a log in LevelDB's form (blocks of 32 KB, records of checksum, length, kind) of its own messages.
    "wandb": """
import struct
from wandb.proto.wandb_internal_pb2 import Record
def records(data):
    at, parts = 7, b""  # after the file's own header
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""
rows = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")):
    for record in records(path.read_bytes()):
        said = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.history.item}
        stages = {name.rpartition("/")[0]: value for name, value in said.items() if name.endswith("/step")}
        for stage, step in stages.items():
            rows += [[k, step, v] for k, v in said.items() if k.startswith(stage + "/") and k != stage + "/step"]
""",
    "trackio": """
import os
os.environ["TRACKIO_DIR"] = sys.argv[1] + "/trackio"
from trackio.sqlite_storage import SQLiteStorage
rows = []
for run in SQLiteStorage.get_runs("accord"):
    for one in SQLiteStorage.get_logs("accord", run):
        rows += [[k, one["step"], v] for k, v in one.items() if "/" in k]
""",
}
FINISH = "\nprint('ROWS', json.dumps(sorted(rows)))"


def python(program: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_its_own_reader_finds_every_number(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    write_rows(tmp_path / "sft/metrics.jsonl", 0, 1)
    python(WRITE, str(tmp_path), name)
    write_rows(tmp_path / "sft/metrics.jsonl", 2)
    write_rows(tmp_path / "rl/metrics.jsonl", 0)
    python(WRITE, str(tmp_path), name)  # a later command goes on
    said = python("import json, pathlib, sys" + READERS[name] + FINISH, str(tmp_path))
    rows = json.loads(said.partition("ROWS ")[2])
    expected = [["rl/loss", 0, 1.0], ["sft/loss", 0, 1.0], ["sft/loss", 1, 0.5], ["sft/loss", 2, 1 / 3]]
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected], rel=1e-6)
