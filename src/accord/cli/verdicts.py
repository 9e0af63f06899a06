"""How a stage went, in a sentence, with the alarms that rang: what a command says before its numbers. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accord.files import read_rows

Plain = Mapping[str, Any]
#: Nats a token by which held-out texts may be less likely than learnt ones: e to it is a perplexity half as high again.
OVERFIT_NATS = 0.4
NOBODY_ASKED = "whether people like it better, `accord label --add` and `accord eval` can say"


def verdict_of(command: str, result: Plain, folder: Path) -> str:
    """Return what a stage's numbers mean, in one sentence."""
    return VERDICTS[command](result, folder)


def alarm_lines(folder: Path) -> list[str]:
    """Return the alarms of a stage's folder, one a line: how often each rang, when last, and its likely cause."""
    rows = [row for row in read_rows(folder / "events.jsonl") if {"alarm", "cause", "step"} <= row.keys()]
    causes = {row["alarm"]: row["cause"] for row in rows}
    steps = {name: [row["step"] + 1 for row in rows if row["alarm"] == name] for name in causes}
    return [f"{name} (rang {_times(steps[name])}): {cause}" for name, cause in causes.items()]


def run_lines(folder: Path) -> list[str]:
    """Return what the report of a run or an evaluation says first: its sentence, alarms, and what to know besides."""
    if not (folder / "eval/results.json").is_file():
        return []
    from accord.report.first_screen import headline
    from accord.report.parts import part
    from accord.report.run_folder import read_run

    found = part(headline, read_run(folder))
    if "sentence" not in found:
        return []
    return [str(found["sentence"]), *(f"alarm: {line}" for line in found["alarms"]), *map(str, found["notes"])]


def _times(steps: list[int]) -> str:
    return f"at step {steps[0]}" if len(steps) == 1 else f"{len(steps)} times, last at step {steps[-1]}"


def _language_model(result: Plain, folder: Path) -> str:
    learnt, held = result["train_nll"], result["valid_nll"]
    if not result["num_held_out"]:
        return f"learnt to {learnt:.2f} nats a token; too few texts to hold any out: give --valid-data, or 20 and more"
    said = f"{held:.2f} nats a token on {result['num_held_out']:,} held-out texts, {learnt:.2f} on what it learnt from"
    overfit = "it knows its own texts much better than others: fewer epochs, or more of them"
    return f"{said}; " + (overfit if held - learnt > OVERFIT_NATS else "no sign of overfitting")


def _orders(result: Plain, what: str) -> str:
    """How much of held-out judgements is ordered as they say, and whether that is more than chance."""
    share, count = result["valid_accuracy"], result["num_held_out"]
    if share is None:
        return f"too few judgements to hold any out: how {what} orders others is unknown (--valid-data gives some)"
    from accord.stats import wilson  # numpy takes half a second, which `accord --help` has not

    bounds = wilson(share * count, count)
    chance = "not shown to be better" if bounds.low <= 0.5 <= bounds.high else "better" if bounds.low > 0.5 else "worse"
    interval = f"{share:.2f} [{bounds.low:.2f}, {bounds.high:.2f}]"
    return f"{what} orders {interval} of {count:,} held-out judgements as they say: {chance} than chance"


def _reward(result: Plain, folder: Path) -> str:
    return _orders(result, "it")


def _dpo(result: Plain, folder: Path) -> str:
    return f"{_orders(result, 'its implicit reward')}; {NOBODY_ASKED}"


def _rl(result: Plain, folder: Path) -> str:
    """How far the score went, and how far the policy: it is what was optimised, and nobody's judgement."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if {"score", "kl"} <= row.keys()]
    first, last = rows[0]["score"], result["final"].get("score", rows[-1]["score"])
    per = f"mean of {result['num_episodes'] // max(1, len(rows)):,} samples an iteration"
    moved = "rose" if last > first else "did not rise"
    said = f"the score that was optimised {moved}, {first:.3g} to {last:.3g} ({per})"
    return f"{said}, {rows[-1]['kl']:.2g} nats of KL away; {NOBODY_ASKED}"


#: What each command that trains says of itself.
VERDICTS: Mapping[str, Callable[[Plain, Path], str]] = {
    "pretrain": _language_model,
    "sft": _language_model,
    "reward": _reward,
    "rl": _rl,
    "dpo": _dpo,
}
