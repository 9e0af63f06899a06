"""The cost model of many GPUs: by hand where it can be worked out, and its check beside published figures."""

from __future__ import annotations

import pytest

from benchmarks.simulate import (
    GPUS,
    H100,
    MODELS,
    OPENRLHF,
    STEP_S,
    Gpu,
    Model,
    Shares,
    Work,
    check,
    engine_seconds,
    fits,
    iteration,
    lengths_of,
    main,
    one_step_off,
    openrlhf_seconds,
    span,
)  # fmt: skip

PLAIN = Gpu("plain", 1e12, 1e11, 1e10, 1e11, 1e10)
SMALL = Model("small", 1e9, 10, 100)
ALL = Shares(1.0, 1.0, 1.0)


def test_one_row_by_hand() -> None:
    """2 GB of weights and 2,000 bytes a token of the cache, over 100 GB/s, and 2e9 products at 1e12, ten times."""
    cached = 2 * 10 * 100 * (8 + 10 / 2)
    step = (2e9 + cached) / 1e11 + 2e9 / 1e12 + STEP_S
    assert engine_seconds(SMALL, PLAIN, [10], 8, ALL) == pytest.approx(2e9 * 8 / 1e12 + 10 * step)


def test_rows_that_run_together_share_the_weights() -> None:
    alone, together = (engine_seconds(SMALL, PLAIN, [10] * n, 8, ALL) for n in (1, 8))
    assert alone < together < 2 * alone
    longer = engine_seconds(SMALL, PLAIN, [10] * 7 + [100], 8, ALL)
    assert longer > 5 * together  # the longest one bounds it


def test_engines_span_what_their_weights_need() -> None:
    """70.6e9 weights are 141 GB: more than .45 of 80 GB four times over is 144."""
    assert [span(MODELS[name], H100) for name in MODELS] == [1, 1, 4]


def test_lengths_are_those_asked_for() -> None:
    lengths = lengths_of(Work(20_000, 512, 600, 2048))
    assert min(lengths) >= 8 and max(lengths) == 2048 and 520 < sum(lengths) / len(lengths) < 620
    assert lengths_of(Work(3, 1, 7, 9, spread=0.0)) == [7, 7, 7]


def test_it_is_as_far_off_as_it_says() -> None:
    """Published seconds over the model's; the design's own simulation of events came to the same four."""
    ratios = [one.seconds / openrlhf_seconds(one) for one in OPENRLHF]
    assert ratios == pytest.approx([0.68, 0.86, 1.20, 1.72], abs=0.01)
    text = "\n".join(check())
    assert "off by x0.68 to x1.72" in text and "do not argue for asynchrony" in text


def test_more_gpus_are_faster_until_the_longest_completion_bounds_them() -> None:
    seconds = [iteration(MODELS["8B"], H100, gpus, Work()).whole for gpus in GPUS]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] / seconds[1] > 1.8 and seconds[-2] / seconds[-1] < 1.1
    assert one_step_off(MODELS["8B"], H100, 64, Work())[0] < iteration(MODELS["8B"], H100, 64, Work()).whole


def test_what_does_not_fit_is_not_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert not fits(MODELS["70B"], H100, 32, Work()) and fits(MODELS["8B"], H100, 8, Work())
    main(["--model", "70B", "--gpus", "32", "--gpus", "128", "--samples", "512"])
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[1].strip() == "70B" and row[2].strip() == "-" and "/" in row[3]
