"""The model card of a single stage: what the model is, of what it was made, how it went, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accord.progress import without_passwords

#: What the command made, in a sentence.
WHAT = {
    "pretrain": "A small language model, trained from scratch on plain texts.",
    "sft": "A language model, fine-tuned on demonstrations.",
    "reward": "A reward model: it gives a completion of a prompt a number, learnt from judgements.",
    "rl": "A language model, optimised to score higher.",
    "dpo": "A language model, improved on judgements directly, without a reward model.",
}
_LOAD_POLICY = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained("{folder}") for kind in (AutoModelForCausalLM, AutoTokenizer))"""
_LOAD_OWN = """\
from pathlib import Path

from accord.rollout.generator import open_generator

generator = open_generator(Path("{folder}"))  # a layout of Accord's own: transformers does not know it"""
_LOAD_REWARD = """\
from pathlib import Path

from accord.scoring import RewardModel

scores = RewardModel.load(Path("{folder}")).score([("prompt", "completion")])  # 0 is average, 1 a deviation above"""


def stage_card(
    made: Mapping[str, Any],
    verdict: str,
    alarms: Sequence[str],
    *,
    usual: Mapping[str, Any],
    folder: str,
    model_type: str,
) -> str:
    """Return the card as Markdown with the front matter that Hugging Face reads.

    Args:
        made: What `accord.train.finished.record_finished` has written.
        usual: The settings' defaults: those that differ are listed.
        folder: How a reader names the model's folder.
        model_type: What its config.json calls it: Accord's own kinds open with Accord alone.
    """
    command, is_own = made["command"], model_type.startswith("accord_")
    load = _LOAD_REWARD if command == "reward" else _LOAD_OWN if is_own else _LOAD_POLICY
    base = made["inputs"].get("model")
    parts = [
        f"---\nlibrary_name: {'accord' if is_own else 'transformers'}\ntags:\n- accord\n- rlhf\n- {command}\n---\n",
        f"# {folder}\n",
        f"{WHAT[command]} Made by `accord {command}` of Accord {made['version']}, seed {made['seed']}"
        + (f", from `{base}`, whose licence holds for this one too.\n" if base else ".\n"),
        f"**{verdict}.**\n",
        *(f"- Alarm: {line}" for line in alarms),
        "## Made of\n",
        "\n".join(f"- {name}: `{path}`" for name, path in made["inputs"].items()) + "\n",
        "## Results\n",
        "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in _numbers(made["result"])) + "\n",
        "## Settings that are not the usual ones\n",
        "\n".join(_unusual(made["settings"], usual)) + "\n",
        "All of them stand in `finished.json`, in the folder above this one.\n",
        "## How to load it\n",
        f"```python\n{load.format(folder=folder)}\n```\n",
        "The numbers above are of this training alone. Unless they say so, nobody was asked what people think of it.",
    ]
    return without_passwords("\n".join(parts)) + "\n"


def _numbers(result: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{name}.")
        elif isinstance(value, float):
            yield f"{above}{name}", f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{above}{name}", f"{value:,}"


def _unusual(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[str]:
    found = [(name, value) for name, value in _leaves(settings) if value != dict(_leaves(usual)).get(name)]
    yield from (f"- `{name}={json.dumps(value)}`" for name, value in found)
    if not found:
        yield "None."


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", list(value) if isinstance(value, tuple) else value
