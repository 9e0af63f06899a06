"""The live page of a run: what it says of files as they grow, through a real server and a browser."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.errors import DataError
from accord.people.web.serving import Address, served
from accord.report import live
from accord.report.live import changes, live_app, live_parts, newest_round, stage_now
from accord.report.run_folder import read_run
from tests.webapp import chromium


def run_of(folder: Path, *, pid: int, steps: int = 4) -> Path:
    """A run amid policy optimisation: 64 samples of 10 tokens a step of half a second."""
    stage = folder / "rl"
    (stage / "samples").mkdir(parents=True)
    (folder / "resolved.json").write_text('{"name": "support", "seed": 3}')
    (stage / "steps.json").write_text(json.dumps({"total": 20, "pid": pid}))
    (stage / "metrics.jsonl").write_text("".join(row(step) for step in range(steps)))
    return folder


def row(step: int) -> str:
    numbers = {"step": step, "score": 0.1 * step, "kl": 0.2 * step, "scored": 64, "length": 10.0, "entropy": 2.0}
    return json.dumps({**numbers, "seconds": 7.0 + 0.5 * step}) + "\n"


def gone_process() -> int:
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


@contextlib.contextmanager
def page_of(folder: Path) -> Iterator[str]:
    address = Address(port=0)
    with contextlib.closing(address.bound()) as listening, served(live_app(folder), listening):
        yield address.url(listening)


def test_a_stage_says_how_far_it_is_and_how_fast_it_goes(tmp_path: Path) -> None:
    now = stage_now(read_run(run_of(tmp_path, pid=os.getpid())), "rl")
    assert (now.step, now.total, now.step_s, now.share) == (4, 20, 0.5, 0.2)
    assert now.says == "step 4 of 20, about 8 s left"  # 16 steps of half a second
    assert now.rates == ("120 steps a minute", "128 samples a second", "1,280 tokens a second")
    assert now.memory_mb > 20  # this process with Python in it


def test_a_stage_whose_process_is_gone_says_so(tmp_path: Path) -> None:
    now = stage_now(read_run(run_of(tmp_path, pid=gone_process())), "rl")
    assert now.says == "step 4 of 20, stopped: the same command goes on from the last checkpoint"
    assert now.memory_mb == 0


def test_a_resumed_stage_counts_the_seconds_of_one_process(tmp_path: Path) -> None:
    run_of(tmp_path, pid=os.getpid())
    with (tmp_path / "rl/metrics.jsonl").open("a") as file:  # a new process began with its clock at 0
        file.write(
            row(4).replace('"seconds": 9.0', '"seconds": 0.5') + row(5).replace('"seconds": 9.5', '"seconds": 1.0')
        )
    assert stage_now(read_run(tmp_path), "rl").step_s == 0.5


def test_a_finished_stage_needs_no_steps(tmp_path: Path) -> None:
    run_of(tmp_path, pid=gone_process())
    (tmp_path / "rl/stage.json").write_text('{"seconds": 3725, "result": {}}')
    now = stage_now(read_run(tmp_path), "rl")
    assert (now.says, now.share) == ("done in 1 h 02 min", 1.0)


def test_what_is_damaged_is_passed_over(tmp_path: Path) -> None:
    run_of(tmp_path, pid=os.getpid())
    (tmp_path / "rl/steps.json").write_text('{"total": ')
    with (tmp_path / "rl/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "sco')
    now = stage_now(read_run(tmp_path), "rl")
    assert (now.step, now.total, now.says) == (4, 0, "step 4")


def test_a_single_stage_has_a_page_too(tmp_path: Path) -> None:
    run_of(tmp_path, pid=os.getpid())
    shown = live_parts(tmp_path / "rl")
    assert [one.name for one in shown["stages"]] == ["RL"]
    assert shown["says"] == "RL: step 4 of 20, about 8 s left."


def test_the_last_round_is_shown(tmp_path: Path) -> None:
    run_of(tmp_path, pid=gone_process())
    run_of(tmp_path / "round_2", pid=os.getpid(), steps=2)
    run_of(tmp_path / "round_10", pid=os.getpid(), steps=3)
    assert newest_round(tmp_path) == tmp_path / "round_10"
    assert live_parts(tmp_path)["stages"][0].step == 3


def test_every_file_that_is_shown_counts_as_a_change(tmp_path: Path) -> None:
    run_of(tmp_path, pid=os.getpid())
    seen = {changes(tmp_path)}
    for name in ("rl/events.jsonl", "rl/stage.json", "summary.json"):
        (tmp_path / name).write_text("{}\n")
        seen.add(changes(tmp_path))
    assert len(seen) == 4
    assert changes(tmp_path) in seen


def test_a_curve_is_drawn_anew_only_where_its_rows_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    plain = live.training_figure
    monkeypatch.setattr(live, "training_figure", lambda title, *more: (drawn.append(title), plain(title, *more))[1])
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n')
    run_of(tmp_path, pid=os.getpid())
    draw = live.DrawnCurves()
    first = live_parts(tmp_path, draw)["training"]
    assert "Fine-tuning loss (nats per token)" in drawn and "Proxy score" in drawn
    drawn.clear()
    assert live_parts(tmp_path, draw)["training"] == first and not drawn
    with (tmp_path / "rl/metrics.jsonl").open("a") as file:
        file.write(row(4))
    assert live_parts(tmp_path, draw)["training"] == live_parts(tmp_path)["training"] != first
    assert "Proxy score" in drawn and "Fine-tuning loss (nats per token)" not in drawn


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        live_app(tmp_path / "nothing")


def test_other_names_of_this_machine_are_turned_away(tmp_path: Path) -> None:
    run_of(tmp_path, pid=os.getpid())
    with page_of(tmp_path) as url:
        for path in ("/", "/events"):
            asked = urllib.request.Request(url + path, headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(asked, timeout=10)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.slow
def test_a_browser_sees_a_run_go_on(tmp_path: Path) -> None:
    run_of(tmp_path, pid=os.getpid())
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    with page_of(tmp_path) as url, chromium() as browser:
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.goto(url)
        page.get_by_text("RL: step 4 of 20, about 8 s left.").wait_for()
        page.get_by_role("progressbar", name="RL").wait_for()
        with (tmp_path / "rl/metrics.jsonl").open("a") as file:
            file.write(row(4))
        event = {"step": 4, "alarm": "entropy", "cause": "the policy has collapsed to a single text"}
        (tmp_path / "rl/events.jsonl").write_text(json.dumps(event) + "\n")
        (tmp_path / "rl/samples/step_000005.txt").write_text(f"[+1.00] 'hello' {hostile}\n")
        page.get_by_text("RL: step 5 of 20").wait_for()
        page.get_by_text("the policy has collapsed to a single text").wait_for()
        page.get_by_text(hostile).wait_for()  # as text
        assert page.locator("figure svg").count() >= 3
        assert page.title() == "support, live"
        assert not faults
