"""What `accord sample` says at its end: how many samples were cut, three of them, and what to do with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.cli.project import find_project
from accord.cli.taken import SAMPLES
from accord.cli.talk import path_text
from accord.config import Recipe

if TYPE_CHECKING:
    from accord.scoring.sample_file import SampleResult

SHOWN = 3
MOST_ASKED, MOST_SAID = 200, 400  # characters of a prompt and of a completion that are shown
# Below a tenth the cut ones are the long answers of any model; above it the limit is what cuts them.
MANY_CUT = 0.1


def fitted_for_people(recipe: Recipe, model: Path) -> tuple[Recipe, list[str]]:
    """Return the recipe with values that fit the model, where it leaves them open, and a line for each."""
    if not (model / "config.json").is_file():
        return recipe, []
    from accord.config.origins import FITTED_WHY
    from accord.loop.facts import fitted_samples

    made = fitted_samples(recipe, model)
    said = {key: why for key, why in made.origins().items() if key.startswith("sample.") and FITTED_WHY in why}
    return made, [f"{key}={getattr(made.sample, key.split('.')[1])}  ({why})" for key, why in said.items()]


def samples_text(made: SampleResult, limit: int) -> str:
    """The result in a sentence, three samples, and the numbers."""
    cut = made.cut / made.num_samples
    said = f"{made.num_samples:,} samples in {path_text(made.output)}"
    said += f"; {made.cut:,} ({cut:.0%}) were cut at {limit} tokens" if made.cut else "; all of them end by themselves"
    said += f": raise sample.max_new_tokens above {limit}" if cut > MANY_CUT else ""
    numbers = {"mean_tokens": made.mean_tokens, "mean_score": made.mean_score}
    numbers |= {"best_of": made.best_of, "kl_bound": made.kl_bound} if made.best_of > 1 else {}
    told = [f"{name}: {value:.4g}" for name, value in numbers.items() if value is not None]
    return "\n".join([said, *told, *_shown(made.output)])


def next_after_samples(output: Path, scored: bool) -> str:
    """What to do with samples: let people judge them, or a reward model."""
    home = find_project(None)
    if home is not None and output.resolve() == (home.root / SAMPLES).resolve():
        return "accord label   (queues them and opens the page where people judge; then accord reward)"
    first = "" if home else "accord init && "
    step = f"{first}accord label --add {path_text(output)}   (people judge them)"
    scores = f"\n      accord score --model DIR --data {path_text(output)} -o scored.jsonl   (a reward model does)"
    return step if scored else step + scores


def _shown(output: Path) -> Iterable[str]:
    """Three samples of prompts that stand far apart in the file."""
    lines = output.read_text(encoding="utf-8").splitlines() if output.suffix != ".gz" else []
    rows = [json.loads(line) for line in lines]
    first = list({json.dumps(row["prompt"]): row for row in reversed(rows)}.values())[::-1]
    places = sorted({0, len(first) // 2, len(first) - 1}) if first else []
    for row in [first[place] for place in places][:SHOWN]:
        yield f"  asked: {_short(_asked(row['prompt']), MOST_ASKED)}"
        yield f"  wrote: {_short(row['completion'], MOST_SAID)}{_ending(row)}"


def _asked(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _ending(row: Mapping[str, Any]) -> str:
    return f"  [cut at {row['tokens']} tokens]" if row["finish"] == "length" else ""


def _short(text: str, most: int) -> str:
    from accord.formats.inspecting import printable

    line = " ".join(text.split())
    return printable(line if len(line) <= most else f"{line[:most]} ...")
