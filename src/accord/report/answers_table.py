"""All prompts of a run with their answers before and after: a table that a reader filters and searches. Torch-free.

The table is whole without scripts; a script of the page, allowed by its hash alone, hides and orders its rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from accord.report.names import title_of
from accord.report.one_prompt import first_answers
from accord.report.parts import shown_prompt
from accord.report.run_folder import Absent, RunFolder, score_key
from accord.report.turns import folded
from accord.seeds import stream_seed

MOST_PROMPTS_SHOWN = 400  # prompts: a page of chat answers stays within some megabytes
MOST_OF_AN_ANSWER = 400  # characters of an answer before it is folded
_LONGER = 1.5  # times as many tokens
#: What a row may be marked by, and how the filter calls it.
ANSWER_MARKS = {
    "after": "the judge prefers the answer after",
    "before": "the judge prefers the answer before",
    "tie": "the judge prefers neither",
    "gamed": "the proxy rises and the judge falls",
    "split": "the judges disagree",
    "longer": "half as long again, or longer",
    "shorter": "two thirds as long, or shorter",
    "cut": "cut at the limit",
    "alike": "the two are alike",
}
_Row = Mapping[str, Any]


def answers_table(run: RunFolder) -> dict[str, Any]:
    """The first answers of reference and candidate to every test prompt, with what each judge says of the change.

    Of more than `MOST_PROMPTS_SHOWN` prompts so many are drawn by the run's seed, and the page says of how many.
    """
    results = run.need("eval/results.json")
    before, after = (first_answers(run, results[who]) for who in ("reference", "candidate"))
    prompts = [prompt for prompt in before if prompt in after]
    if not prompts:
        raise Absent("eval/samples.jsonl holds no prompt with answers of both")
    keys = {name: score_key(name, results["judges"]) for name in results["judges"]}
    shown = _drawn(prompts, results["seed"])
    rows = [_row(before[prompt], after[prompt], keys) for prompt in shown]
    held = {mark for row in rows for mark in row["marks"]}
    return {
        "rows": rows,
        "filters": [(mark, told) for mark, told in ANSWER_MARKS.items() if mark in held],
        "of": len(prompts),
        "leads": title_of(next(iter(keys), "")),
    }


def _drawn(prompts: Sequence[str], seed: int) -> list[str]:
    """Return the prompts that are shown, in the order of the file."""
    if len(prompts) <= MOST_PROMPTS_SHOWN:
        return list(prompts)
    rng = random.Random(stream_seed(seed, "answers in the report"))
    return [prompts[i] for i in sorted(rng.sample(range(len(prompts)), MOST_PROMPTS_SHOWN))]


def _row(before: _Row, after: _Row, keys: Mapping[str, str]) -> dict[str, Any]:
    changes = {name: _change(before, after, key) for name, key in keys.items()}
    changes["proxy"] = _change(before, after, "proxy")
    return {
        "prompt": folded(shown_prompt(before), MOST_OF_AN_ANSWER),
        "before": folded(before["completion"], MOST_OF_AN_ANSWER),
        "after": folded(after["completion"], MOST_OF_AN_ANSWER),
        "change": next(iter(changes.values())) or 0.0,
        "told": [(title_of(name), f"{value:+.2f}") for name, value in changes.items() if value is not None],
        "tokens": f"{before['tokens']} → {after['tokens']} tokens"
        + ("" if after["finished"] else ", cut at the limit"),
        "marks": [mark for mark, held in _marks(before, after, changes).items() if held],
    }


def _change(before: _Row, after: _Row, key: str) -> float | None:
    first, second = before.get(key), after.get(key)
    return float(second - first) if isinstance(first, int | float) and isinstance(second, int | float) else None


def _marks(before: _Row, after: _Row, changes: Mapping[str, float | None]) -> dict[str, bool]:
    """Return which of `ANSWER_MARKS` hold of a pair of answers."""
    told = [value for name, value in changes.items() if name != "proxy" and value is not None]
    judge, proxy, length = told[0] if told else None, changes["proxy"], after["tokens"] / max(1, before["tokens"])
    return {
        "after": judge is not None and judge > 0,
        "before": judge is not None and judge < 0,
        "tie": judge == 0,
        "gamed": judge is not None and proxy is not None and judge < 0 < proxy,
        "split": bool(told) and min(told) < 0 < max(told),
        "longer": length >= _LONGER,
        "shorter": length <= 1 / _LONGER,
        "cut": not after["finished"],
        "alike": before["completion"].split() == after["completion"].split(),
    }
