"""The benchmarks: the harness' arithmetic by hand, our workloads in miniature, and processes that fail."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bound, gpu, imports, measure, process, rows, table
from benchmarks.__main__ import chosen
from benchmarks.measure import Reading

FAST, SLOW, PEER = (rows.Side(name, peer, ()) for name, peer in (("a", "accord"), ("b", "accord"), ("p", "trl")))
ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {"trl": "9.9"}


def row(**changes: Any) -> rows.Row:
    settings = {"name": "x-f32", "work": "sft step", "model": "tiny", "precision": "f32", "unit": "items/s"}
    return rows.Row(**{**settings, "ours": (FAST, SLOW), "theirs": (PEER,), "floor": 2.0, "goal": 3.0, **changes})


def reading(median: float, memory: float = 100.0) -> Reading:
    return Reading(median, median - 1, median + 1, 3, memory)


def line(ratio: float | None, *, better: str = "higher", floor: float | None = 2.0, **more: Any) -> dict[str, Any]:
    return {"name": "x", "ratio": ratio, "better": better, "floor": floor, "goal": None, **more}


# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_several_starts_are_one_reading() -> None:
    """Medians 10, 40, 30: the middle one is 30; the range is 9 to 41; the largest memory counts."""
    assert measure.pooled([reading(10, 5), reading(40, 7), reading(30, 6)]) == Reading(30, 9, 41, 9, 7)


def test_a_row_compares_the_fastest_of_each_side() -> None:
    readings = {"a": [reading(50, 80), reading(70, 90)], "b": [reading(20)], "p": [reading(30, 120)]}
    (found,) = measure.lines_of(row(), readings, VERSIONS)
    assert (found["ours"], found["theirs"], found["ratio"]) == (60, 30, 2.0)  # the median of 50 and 70 is 60
    assert (found["ours_min"], found["ours_max"], found["n_ours"], found["ours_side"]) == (49, 71, 6, "a")
    assert (found["peer"], found["peer_version"]) == ("trl", "9.9")
    wanted = {"work", "model", "precision", "peer", "peer_version", "ours", "theirs", "ratio", "unit"}
    assert wanted <= set(found)


def test_a_median_is_taken_from_the_seconds_where_rates_are_rounded() -> None:
    """32 episodes in 113 s are 0.28 a second; the peer's script says 0.3."""
    said = {"median": 0.3, "min": 0.3, "max": 0.3, "n": 2, "sec_median": 113.0}
    assert measure.reading_of(said, 32, 7) == Reading(
        pytest.approx(0.28319, abs=1e-5), pytest.approx(32 / 113), 0.3, 2, 7
    )
    assert measure.reading_of(said, None, 7) == Reading(0.3, 0.3, 0.3, 2, 7)


def test_slow_sides_leave_after_a_round_unless_a_row_needs_them() -> None:
    readings = {"a": [reading(100)], "b": [reading(79)], "p": [reading(1)]}
    assert measure.contenders([row()], readings) == {"a", "p"}  # b has less than 0.8 of a
    assert measure.contenders([row(), row(ours=(SLOW,))], readings) == {"a", "b", "p"}
    assert measure.contenders([row()], {"a": [], "b": [reading(79)], "p": []}) == {"b"}


def test_memory_is_that_of_the_sides_compared() -> None:
    readings = {"a": [reading(60, 50)], "b": [reading(20, 10)], "p": [reading(30, 200)]}
    speed, memory = measure.lines_of(row(memory=(0.5, None)), readings, VERSIONS)
    assert speed["name"] == "x-f32" and memory["name"] == "x-f32-memory"
    assert (memory["ours"], memory["theirs"], memory["ratio"], memory["better"]) == (50, 200, 0.25, "lower")
    assert not measure.falls_short(memory)
    assert measure.falls_short(memory | {"ratio": 0.51})


def test_a_side_without_result_leaves_the_others() -> None:
    (found,) = measure.lines_of(row(), {"a": [], "b": [reading(20)], "p": [reading(10)]}, VERSIONS)
    assert found["ratio"] == 2.0 and found["without"] == ["a"]
    (found,) = measure.lines_of(row(), {"a": [reading(60)], "b": [], "p": []}, VERSIONS)
    assert found["ratio"] is None and "p" in found["failed"] and measure.falls_short(found)


@pytest.mark.parametrize(
    ("found", "short"),
    [
        (line(2.0), False),
        (line(1.99), True),
        (line(0.1, floor=None), False),
        (line(0.5, better="lower", floor=0.5), False),
        (line(0.6, better="lower", floor=0.5), True),
        (line(None), True),
        (line(None, no_peer=True), False),
    ],
)
def test_a_missed_floor_fails_the_run(found: dict[str, Any], short: bool) -> None:
    assert measure.falls_short(found) is short


def test_results_are_merged_row_by_row() -> None:
    old = [line(1.0, work="a") | {"name": name} for name in ("one", "two", "two-memory", "gone")]
    new = [line(5.0) | {"name": "two"}, line(6.0) | {"name": "three"}]
    found = measure.merged(old, new, ["three", "two", "one"])
    # "two" was measured again without its memory, so the old memory goes; a row that is no more goes too.
    assert [(x["name"], x["ratio"]) for x in found] == [("three", 6.0), ("two", 5.0), ("one", 1.0)]


def test_agreement_is_absolute_for_losses_and_relative_for_norms() -> None:
    agreement = rows.Agreement("agree-ppo-f32", "agreement", "f32", 1e-2)
    found = measure.agreement_line(agreement, ([4.0, 2.001], [100.5]), ([4.0, 2.0], [100.0]), ("trl", "1"))
    assert found["ratio"] == pytest.approx(0.005)  # 0.001 of the losses, 0.5 / 100 of the norms
    assert not measure.falls_short(found)
    far = measure.agreement_line(agreement, ([4.0], [102.0]), ([4.0], [100.0]), ("trl", "1"))
    assert measure.falls_short(far)
    nan = measure.agreement_line(agreement, ([1.0, math.nan], []), ([1.0, 1.0], []), ("trl", "1"))
    assert measure.falls_short(nan)
    with pytest.raises(ValueError, match="longer"):
        measure.agreement_line(agreement, ([1.0], []), ([1.0, 2.0], []), ("trl", "1"))


def test_an_iteration_of_ppo_on_tiny_is_most_of_a_teraflop() -> None:
    """`../shared/PERFORMANCE.md` counted 0.93 TFLOP for 32 episodes of whole passes, attention included."""
    assert 32 * bound.gflop("PPO iteration, full lengths", "tiny") == pytest.approx(860, rel=0.05)


def test_a_pair_of_rewards_by_hand() -> None:
    """Two texts of 96 tokens, forward and twice that backward, 2 operations a weight. A block of tiny has 262,144
    weights in attention and 528,384 in its feed-forward; the last one runs keys and values (131,072) for all tokens,
    the other 659,456 for one."""
    text = 2 * (5 * 790_528 * 96 + 131_072 * 96 + 659_456 * 1)
    assert bound.gflop("reward step", "tiny") == pytest.approx(3 * 2 * text / 1e9)


def test_operations_of_an_iteration_without_a_critic() -> None:
    # tiny, in millions of weights: a block 2 * .065536 + (2 * .065536 + 3 * .176128), head 2.097152
    block, head = 4 * 0.065536 + 3 * 0.176128, 2.097152
    kv, rest = 2 * 0.065536, 2 * 0.065536 + 3 * 0.176128
    prompt = 5 * block * 32 + kv * 32 + rest + head  # its last token alone is read; four completions share it
    decode = (6 * block + head) * 63
    policy = 5 * block * 96 + kv * 96 + rest * 64 + head * 64
    wanted = 2e-3 * (prompt / 4 + decode + (1 + 3) * policy)
    for work in ("GRPO iteration, full lengths", "RLOO iteration, full lengths"):
        assert bound.gflop(work, "tiny") == pytest.approx(wanted, rel=1e-6)


def test_the_share_of_the_bound_uses_the_precision_that_won() -> None:
    flop = bound.gflop("sft step", "tiny")
    found = {"work": "sft step", "model": "tiny", "ours": 10.0, "ratio": 2.0, "better": "higher"}
    shares = [
        bound.with_share(found | {"ours_side": f"accord sft tiny {p}"}, {"f32": 100.0, "bf16": 1000.0})
        for p in ("f32", "bf16")
    ]
    assert [x["share_of_bound"] for x in shares] == [round(flop / 10, 3), round(flop / 100, 3)]


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_says_how_each_row_stands() -> None:
    full = {"model": "tiny", "precision": "f32", "peer": "trl", "peer_version": "1.16", "unit": "tok/s"}
    numbers = {"ours": 2500.0, "ours_min": 2400.0, "ours_max": 2600.0, "theirs": 1000.0}
    lines = [
        line(2.5, **full, **numbers) | {"goal": 2.2},
        line(2.5, **full, **numbers) | {"goal": 4.0},
        line(1.5, **full, **numbers),
        line(None, **full, failed="it fell over"),
    ]
    assert [table.verdict(x) for x in lines] == ["goal", "goal open", "FLOOR MISSED", "it fell over"]
    text = table.plain(lines)
    assert "2,500 (2,400-2,600) tok/s" in text and "1,000 (trl 1.16)" in text and ">= 4" in text
    assert {len(x.split("|")) for x in table.markdown(lines).splitlines()} == {len(table.HEAD) + 2}


def test_only_what_stands_between_the_markers_changes() -> None:
    page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.between_markers(page, "new")
    assert once == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
    assert table.between_markers(once, "new") == once
    with pytest.raises(ValueError, match="lacks"):
        table.between_markers("no markers", "new")


def test_rows_are_named_once_and_chosen_by_the_start_of_their_name() -> None:
    names = [r.name for r in (*rows.ROWS, *rows.AGREEMENTS)]
    assert len(set(names)) == len(names)
    speeds, sums = chosen("sft,agree-ppo")
    assert [r.name for r in speeds] == ["sft-f32", "sft-best"] and [r.name for r in sums] == ["agree-ppo-f32"]
    with pytest.raises(SystemExit, match="nothing-like-it"):
        chosen("sft,nothing-like-it")


def test_sides_of_one_name_are_one_command() -> None:
    """Readings are kept by name: two commands under one name would be mixed up."""
    commands: dict[str, set[tuple[str, ...]]] = {}
    for side in (side for r in rows.ROWS for side in (*r.ours, *r.theirs)):
        commands.setdefault(side.name, set()).add((*side.args, *side.env))
    assert [name for name, different in commands.items() if len(different) > 1] == []


def test_the_committed_results_are_of_rows_that_exist() -> None:
    results = json.loads((Path(measure.__file__).parent / "results.json").read_text())
    names = {r.name for r in (*rows.ROWS, *rows.AGREEMENTS)}
    assert {x["name"].removesuffix("-memory") for x in results} <= names


# -- processes --------------------------------------------------------------------------------------------------------


def start(tmp_path: Path, code: str, limit_s: int = 60) -> process.Ran:
    return process.run(
        [sys.executable, "-c", code], env={}, path=[], cwd=tmp_path, log=tmp_path / "log", limit_s=limit_s
    )


def test_a_command_gives_its_last_result_and_its_peak_memory(tmp_path: Path) -> None:
    code = """print('RESULT {"n": 1}'); print('RESULT {"n": 2}'); x = bytearray(SIZE * 2**20); del x"""
    # From a process without torch, as in the harness: a child starts as a copy of its caller, and the peak with it.
    caller = """import sys; from pathlib import Path; from benchmarks.process import run
ran = run([sys.executable, "-c", sys.argv[1]], env={}, path=[], cwd=Path.cwd(), log=Path(sys.argv[2]), limit_s=60)
print(ran.result, ran.peak_mb)"""
    peaks = []
    for size in (1, 201):
        command = [sys.executable, "-c", caller, code.replace("SIZE", str(size)), str(tmp_path / "log")]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        assert said.startswith("{'n': 2}")
        peaks.append(float(said.split()[-1]))
    assert peaks[1] - peaks[0] == pytest.approx(200, abs=10)


def test_a_command_that_fails_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(process.Failed, match="ValueError: too bad"):
        start(tmp_path, "raise ValueError('too bad')")


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(process.Failed, match="longer than 1 s"):
        start(tmp_path, "import time; time.sleep(60)", limit_s=1)


def test_nothing_from_outside_tunes_a_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    code = "import os, json; print('RESULT ' + json.dumps({'set': 'MALLOC_TRIM_THRESHOLD_' in os.environ}))"
    assert start(tmp_path, code).result == {"set": False}


def test_imports_of_a_script_are_found_inside_functions_too() -> None:
    source = "import os, sys; x = 1\nfrom json import *\ndef f():\n    from math import pi\n    print(pi)\n"
    assert imports.imports_of(source) == "import os, sys\nfrom json import *\nfrom math import pi"


# -- our workloads, once each in miniature ----------------------------------------------------------------------------


@pytest.fixture
def miniature(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder beside a text, and workloads of 3 rows of 4 + 6 tokens."""
    from benchmarks import agreement, ours

    (policy_folder.parent / "text.txt").write_text("The kettle sang and the cat left the room. " * 40)
    for name, value in (("PROMPT", 4), ("NEW", 6), ("ROWS", 3), ("LENGTH", 10), ("STEPS", 2)):
        for module in (ours, agreement):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    yield policy_folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "options", "items"),
    [
        ("sample", (), 32 * 6),
        ("sft", (), 3),
        ("reward", (), 3),
        ("dpo", (), 3),
        ("ppo", ("none",), 3),
        ("ppo", ("eos",), 3),
    ],
)
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_workload_runs_and_counts_its_items(
    miniature: Path, work: str, options: tuple[str, ...], items: int, precision: str
) -> None:
    from benchmarks import ours

    run = ours.WORKLOADS[work](miniature, precision, *options)
    assert run() == items
    assert len(ours.rates(run, 2)) == 2


def test_mixed_lengths_count_the_tokens_that_were_drawn(miniature: Path) -> None:
    from benchmarks import ours

    assert 128 <= ours.sample_mixed(miniature, "f32", "64")() <= 128 * 6


def test_the_first_losses_of_the_agreement_are_those_of_transformers(miniature: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from benchmarks import agreement

    found = agreement.sft(miniature, "f32", tmp_path)["losses"]
    ids = torch.tensor(json.loads((tmp_path / "steps.json").read_text())[0])
    theirs = AutoModelForCausalLM.from_pretrained(miniature)
    with torch.no_grad():
        assert len(found) == 2 and found[0] == pytest.approx(float(theirs(ids, labels=ids).loss), abs=1e-5)

    found = agreement.reward(miniature, "f32", tmp_path)["losses"]
    pairs = torch.tensor(json.loads((tmp_path / "steps.json").read_text())[0])
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    scorer.config.pad_token_id = None  # every row is whole
    with torch.no_grad():
        scores = [float(scorer(ids[None]).logits) for both in pairs for ids in both]
    expected = sum(math.log1p(math.exp(b - a)) for a, b in zip(scores[::2], scores[1::2], strict=True)) / 3
    assert found[0] == pytest.approx(expected, abs=1e-5)


def test_the_losses_of_dpo_begin_at_log_2_and_name_what_they_saw(miniature: Path, tmp_path: Path) -> None:
    from benchmarks import agreement

    found = agreement.dpo(miniature, "f32", tmp_path)["losses"]
    assert found[0] == pytest.approx(math.log(2), abs=1e-5) and len(found) == 2
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert [[[len(ids) for ids in row] for row in step] for step in steps] == [[[4, 6, 6]] * 3] * 2


def test_a_dpo_step_is_four_passes_of_each_text() -> None:
    """Forward and backward of the policy are three, the reference is one; 96 tokens, of which 64 are read."""
    text = 2 * (5 * 790_528 * 96 + 131_072 * 96 + (659_456 + 256 * 8192) * 64)
    assert bound.gflop("dpo step", "tiny") == pytest.approx(4 * 2 * text / 1e9)


def test_the_rollout_of_the_agreement_is_what_was_scored(miniature: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file

    from benchmarks import agreement

    shutil.copytree(miniature, miniature.with_name("tiny-eos"), dirs_exist_ok=True)
    found = agreement.ppo(miniature, "f32", tmp_path)
    rollout = load_file(tmp_path / "rollout.safetensors")
    assert rollout["ids_BT"].shape == (3, 10) and rollout["score_B"].shape == (3,)
    assert len(found["losses"]) == 4 and len(found["norms"]) == 8
    # The first epoch's ratio is 1 and its advantages are whitened: the policy's share of the loss is 0.
    assert found["losses"][0] >= 0


def test_the_rows_of_a_gpu_run_dry_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--device", "cpu", "--tiny", "--runs", "1", "sampling-135M", "update-1.1B"])
    drawn, updated = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    wanted = {"work", "model", "precision", "peer", "peer_version", "ours", "theirs", "ratio", "unit"}
    assert wanted <= set(drawn) and wanted <= set(updated)
    assert drawn["ours"] > 0 and drawn["theirs"] > 0 and drawn["peer"] == "transformers"
    assert updated["ours"] > 0 and updated["share_of_peak"] is None
