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
    learnt, told, held = result["train_nll"], result["held_out"], result["valid_nll"]
    if held is None:
        few = _too_few("texts", told)
        return f"learnt to {learnt:.2f} nats a token; {few}: give --valid-data of 20 and more"
    said = f"{_stated(told)} nats a token on {told['n']:,} held-out texts{_alone(told)} (by {told['baseline_is']} "
    said += f"{told['baseline']:.2f}), {learnt:.2f} on what it learnt from"
    overfit = "it knows its own texts much better than others: fewer epochs, or more of them"
    return f"{said}; " + (overfit if held - learnt > OVERFIT_NATS else "no sign of overfitting")


def _orders(result: Plain, what: str) -> str:
    """How much of held-out judgements is ordered as they say, and whether that is more than chance."""
    told = result["held_out"]
    if told["value"] is None:
        few = _too_few("judgements", told)
        return f"{few}: how {what} orders others is unknown (--valid-data gives some, 20 and more)"
    # Of thumbs a coin is no measure: who calls all of them by the commoner name is right more often.
    level, than = (0.5, "chance") if told["baseline_is"] == "longer wins" else (told["baseline"], "that")
    chance = "not shown to be better" if told["low"] <= level <= told["high"] else _side(told["low"] > level)
    said = f"{what} orders {_stated(told)} of {told['n']:,} held-out judgements as they say{_alone(told)}"
    return f"{said} (by '{told['baseline_is']}' {told['baseline']:.2f}): {chance} than {than}"


def _too_few(what: str, told: Plain) -> str:
    return f"too few {what} are held out for a number ({told['n']})" if told["n"] else f"too few {what} to hold any out"


def _side(above: bool) -> str:
    return "better" if above else "worse"


def _stated(told: Plain) -> str:
    return f"{told['value']:.2f} [{told['low']:.2f}, {told['high']:.2f}]"


def _alone(told: Plain) -> str:
    """Of how many prompts or topics alone the number is, where these are too few to speak for others."""
    few = told["units"] < min(20, told["n"])
    return f", of {told['units']} prompt{'s' if told['units'] > 1 else ''} or topics alone" if few else ""


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
