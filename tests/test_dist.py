"""Training in several processes: the gradients of one, checkpoints for any number of them, and no waiting for ever.

Two processes on the CPU (gloo), tiny models. Adam turns a difference in a gradient's last digit into one of the size of
a step where the gradient is near 0, so gradients are compared, and weights only after the steps that follow them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pair
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from stages import Bench

from accord.cli.main import refuse_several
from accord.config import LoraConfig, OptimConfig, SftConfig
from accord.errors import DataError, ResourceError
from accord.files import InputFile, format_said
from accord.models.folder import load_policy
from accord.progress import quiet
from accord.ranks import ONE_PROCESS, Ranks, dealt
from accord.train.launch import TrainingCall, carry_out_stage
from accord.train.sft import sft

SAME = 1e-6  # of a tensor's largest number
STAGES = ("pretrain", "sft_lora", "sft", "reward", "rl", "rl_lora", "dpo", "kto", "online")


# -- how work is dealt out ---------------------------------------------------------------------------------------------


class OneOf(Ranks):
    """A process whose others are silent: dealing needs none of them."""


def packs_of(limit: int) -> Any:
    def pack(sizes: list[int]) -> Iterator[list[int]]:
        pending: list[int] = []
        for size in sizes:
            if pending and sum(pending) + size > limit:
                yield pending
                pending = []
            pending = [*pending, size]
        yield pending

    return pack


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 60))
def test_every_process_gets_as_many_micro_batches_and_nothing_counts_twice(
    sizes: list[int], world: int, limit: int
) -> None:
    shares = [OneOf(rank, world).share(sizes, packs_of(limit), lambda size: size) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = [size for share in shares for micro, counts in share if counts for size in micro]
    assert sorted(counted) == sorted(sizes)
    assert all(micro for share in shares for micro, _ in share)


def test_alone_nothing_is_dealt() -> None:
    sizes = [5, 1, 4, 1, 3]
    assert ONE_PROCESS.share(sizes, packs_of(5), lambda size: size) == [(micro, 1.0) for micro in packs_of(5)(sizes)]
    assert (
        ONE_PROCESS.gather("x") == ["x"]
        and ONE_PROCESS.sums({"a": 0.1}) == {"a": 0.1}
        and ONE_PROCESS.others(9) == frozenset()
    )
    assert ONE_PROCESS.by_row([1, 2, 3], lambda rows: [row * 2 for row in rows]) == [2, 4, 6]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(2, 5))
def test_no_process_has_more_than_one_piece_more_than_another(sizes: list[int], world: int) -> None:
    loads = [sum(part) for part in dealt(sizes, world, lambda size: size)]
    assert max(loads) - min(loads) <= max(sizes)


def test_completions_of_a_prompt_stay_together_unless_a_process_would_be_idle() -> None:
    rows = [("a", 9), ("a", 8), ("b", 2), ("b", 2), ("c", 3)]
    parts = dealt(rows, 2, lambda row: row[1], lambda row: row[0])
    assert parts == [[("a", 9), ("a", 8)], [("b", 2), ("b", 2), ("c", 3)]]
    one = dealt(rows[:2], 2, lambda row: row[1], lambda row: row[0])
    assert one == [[("a", 9)], [("a", 8)]]


def test_one_process_loads_no_engine_for_several() -> None:
    """torch itself imports a part of torch.distributed; FSDP, DCP, a process group, Ray and vLLM must not be there."""
    code = (
        "import accord.train.rl, accord.loop.run, accord.train.learner as l, torch, sys, json\n"
        "from accord.config import OptimConfig\n"
        "net = torch.nn.Linear(2, 2)\n"
        "learner = l.Learner({'net': net}, {'net': OptimConfig()}, 5)\n"
        "learner.update([net(torch.ones(1, 2)).sum()])\n"
        "heavy = ('torch.distributed.fsdp', 'torch.distributed.checkpoint', 'ray', 'vllm')\n"
        "print(json.dumps([[m for m in heavy if m in sys.modules], torch.distributed.is_initialized()]))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded, initialised = json.loads(said.stdout)
    assert not initialised
    assert not {"torch.distributed.checkpoint", "ray", "vllm"} & set(loaded)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All checks, by one pair of processes."""
    out = tmp_path_factory.mktemp("pair")
    found: dict[str, Any] = pair.together(out, partial(pair.all_checks, list(pair.CHECKS), out))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", pair.CHECKS)
def test_two_processes_have_the_gradients_of_one(compared: dict[str, Any], name: str) -> None:
    found = compared[name]
    assert found["gap"] < SAME
    assert found["stats"] < 1e-4, found["worst"]


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tied", "untied", "lora"])
def test_a_checkpoint_goes_on_in_any_number_of_processes(variant: str, tmp_path: Path) -> None:
    found = pair.together(tmp_path / "pair", partial(pair.checkpoint, variant, tmp_path))
    assert found["two to two"] == 0.0
    assert found["two to one, read"] == found["one to two, read"] == 0.0
    assert found["two to one, stepped"] < 1e-6
    assert found["one to two, stepped"] < 1e-6
    assert found["states"] == [{"kept": 0.25}, {"kept": 0.25}, {"kept": 0.5}]
    assert found["other inputs"] is None
    # Nothing that unpickles: hashes, safetensors and JSON alone, a part from each process.
    assert [name.partition(".")[2] for name in found["files"]] == ["", "safetensors", "safetensors", "json"]


@pytest.mark.slow
@pytest.mark.parametrize("bad_rank", [0, 1])
def test_a_loss_that_is_no_number_stops_all_with_one_message(bad_rank: int, tmp_path: Path) -> None:
    found = pair.together(tmp_path, partial(pair.not_a_number, bad_rank))
    one, other = found["said"]
    assert one == other and one.startswith("the loss is nan at step 0")
    assert not found["moved"]


# -- whole stages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> list[Bench]:
    """Every stage, carried out by one process in the first folder and by two in the second."""
    folder = tmp_path_factory.mktemp("stages")
    made = []
    for name, world in (("one", 1), ("two", 2)):
        (folder / name).mkdir()
        made.append(Bench(folder / name, "cpu"))
        pair.together(folder / f"{name}-pair", partial(pair.stages, folder / name, STAGES), world)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_of_two_processes_starts_as_one_does_and_is_written_once(benches: list[Bench], name: str) -> None:
    """Dropout and Adam part them from the second step on; the first loss is of the same weights and the same rows."""
    dropped = ("pretrain", "sft", "sft_lora", "reward")
    folder = pair.FOLDERS.get(name, name)
    one, two = (pair.rows_of(bench.folder / folder / "metrics.jsonl") for bench in benches)
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(len(one)))
    assert one[0].keys() == two[0].keys()
    tolerance = 0.2 if name in dropped else 1e-4
    for key in ["loss"] if name in dropped else one[0].keys() - {"seconds"}:
        assert two[0][key] == pytest.approx(one[0][key], rel=tolerance, abs=tolerance), key
    model = benches[1].folder / folder / "model"
    weights = [load_file(b.folder / folder / "model" / "model.safetensors") for b in benches]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][k].shape == weights[1][k].shape for k in weights[0])
    assert (benches[1].folder / folder / "adapter").exists() == name.endswith("lora")
    if name not in ("reward",):
        load_policy(model)


@pytest.mark.slow
def test_a_snapshot_of_several_processes_is_the_policy_as_it_was(benches: list[Bench]) -> None:
    last = max((benches[1].folder / "rl" / "snapshots").iterdir())
    one, other = (load_file(folder / "model.safetensors") for folder in (last, benches[1].folder / "rl" / "model"))
    assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


def long_run(bench: Bench) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The weights that the long stage left, and its metrics."""
    rows = pair.rows_of(bench.folder / "long" / "metrics.jsonl")
    metrics = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return load_file(bench.folder / "long/model/model.safetensors"), metrics


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    bench = Bench(folder, "cpu")
    pair.together(folder / "pair", partial(pair.stages, folder, ["long"]))
    return long_run(bench)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on_bit_for_bit(
    uninterrupted: tuple[dict[str, Any], list[dict[str, Any]]], victim: int, tmp_path: Path
) -> None:
    """kill -9 amid a run of two; what stops is not a hang, and the same call afterwards ends as if nothing had been."""
    bench = Bench(tmp_path, "cpu")
    work = partial(pair.stages, tmp_path, ["long"])
    running = pair.started(tmp_path / "first", work)
    pair.wait_until(lambda: any((tmp_path / "long" / "checkpoints").glob("step_*/state.json")))
    running[victim].kill()
    codes = pair.ended(running)
    assert codes[victim] == -9 and codes[1 - victim] not in (0, None)
    pair.together(tmp_path / "second", work)
    (weights, metrics), (again, metrics_again) = uninterrupted, long_run(bench)
    assert len(metrics) == 10 and metrics == metrics_again
    assert all((weights[k] == again[k]).all() for k in weights)


# -- torchrun ----------------------------------------------------------------------------------------------------------


def test_a_call_is_the_same_after_its_way_to_another_process(tmp_path: Path) -> None:
    data = InputFile(tmp_path / "rows.jsonl")
    data.format = "hh"
    config = SftConfig(epochs=0.5, optim=OptimConfig(lr=3e-5), lora=LoraConfig(rank=4))
    call = TrainingCall(sft, [config], {"model": tmp_path / "m", "data": data}, tmp_path / "out", 7, False)
    again = TrainingCall.of(json.loads(json.dumps(call.to_json())))
    assert again == call
    assert (format_said(again.inputs["data"]), format_said(again.inputs["model"])) == ("hh", None)


@pytest.mark.parametrize(
    ("argv", "stops"),
    [
        (["sft", "--model", "m"], False),
        (["rl", "--help"], False),
        ([], False),
        (["run", "demo"], True),
        (["sample"], True),
        (["sft", "--sweep", "sft.optim.lr=1,2"], True),
    ],
)
def test_what_each_process_would_do_by_itself_is_refused(
    argv: list[str], stops: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_several(argv)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) if stops else contextlib.nullcontext():
            refuse_several(argv)
        said.append(capsys.readouterr().err)
    assert ("torchrun started 2" in said[0]) == stops and said[1] == ""


def torchrun(*argv: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=pair.DEADLINE_S, cwd=folder, check=False)


@pytest.mark.slow
def test_a_command_by_torchrun_says_once_what_it_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "cpu")
    argv = ["-m", "accord", "sft", "--model", bench.start, "--data", bench.path("demos"), "-o", "made", "--json"]
    said = torchrun(*argv, "sft.epochs=1", "sft.batch_tokens=200", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["num_steps"] > 1
    assert said.stderr.count("[100%]") == 1
    assert json.loads((tmp_path / "made/finished.json").read_text())["command"] == "sft"
    load_policy(tmp_path / "made/model")
    wrong = torchrun(*argv[:-3], "-o", "other", "sft.max_tokens=2", folder=tmp_path)
    assert wrong.returncode != 0
    assert wrong.stderr.count("all demonstrations are longer than 2 tokens") == 1


@pytest.mark.slow
def test_a_stage_in_processes_of_its_own_tells_its_progress_its_result_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    bench = Bench(tmp_path, "cpu")
    said: list[tuple[float, str]] = []

    def call(**changes: Any) -> TrainingCall:
        config = SftConfig(**{"epochs": 1, "batch_tokens": 200, **changes})
        inputs = {"model": bench.start, "data": bench.path("demos")}
        return TrainingCall(sft, [config], inputs, tmp_path / "made", 0, True)

    result = carry_out_stage(call(), 2, lambda fraction, text: said.append((fraction, text)))
    assert result["model"] == str(tmp_path / "made/model") and result["num_steps"] == len(
        pair.rows_of(tmp_path / "made/metrics.jsonl")
    )
    assert said[-1][0] == 1.0 and "loss" in said[-1][1]
    with pytest.raises(DataError, match="all demonstrations are longer than 2 tokens") as error:
        carry_out_stage(call(max_tokens=2), 2, quiet)
    assert error.value.where == str(bench.path("demos")) and "process" not in error.value.what
    dying = TrainingCall(pair.one_dies, [], {}, tmp_path / "died", 0, True)
    with pytest.raises(ResourceError, match="one of 2 processes ended before the stage was done"):
        carry_out_stage(dying, 2, quiet)
