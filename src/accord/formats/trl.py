"""TRL's dataset shapes (its documentation, "Dataset formats and types"), plain and conversational.

* language modelling ``{"text"}`` or ``{"messages"}``, prompt-only ``{"prompt"}``, ``{"prompt", "completion"}``
* preference ``{"prompt", "chosen", "rejected"}``, or with the prompt inside both (implicit); ``margin`` may be there
* unpaired ``{"prompt", "completion", "label"}`` and stepwise ``{"prompt", "completions", "labels"}``

Plain completions keep their leading space. An implicit prompt is what both sides begin with: the common messages, or
the common text without a space at its end (as ``trl.extract_prompt``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from accord.formats import own
from accord.formats.format import Fields, Format, all_messages, has, item_by_item, row_by_row
from accord.formats.hh import is_dialogue
from accord.formats.item import Item, TextOrTurns, cannot, chosen_rejected, turns_of
from accord.formats.rows import InputRow, truth_of
from accord.formats.scored import MODEL_COLUMNS, SCORE_COLUMNS, written_by

_FIELDS = frozenset(
    ("prompt", "completion", "chosen", "rejected", "label", "completions", "labels", "messages", "text", "margin")
)
_SCORED = frozenset((*SCORE_COLUMNS, *MODEL_COLUMNS))


def _spoken(value: Any) -> bool:
    return isinstance(value, str) or all_messages(value)


def _plain(text: TextOrTurns) -> Any:
    return text if isinstance(text, str) else [dict(message) for message in text]


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_lm(row: InputRow) -> Iterable[Item]:
    text: TextOrTurns = row.messages("messages") if "messages" in row else row.text("text")
    return [Item(prompt=None, completions=(text,))]


def _read_prompt(row: InputRow) -> Iterable[Item]:
    return [Item(prompt=row.text_or_messages("prompt"))]


def _read_demonstration(row: InputRow) -> Iterable[Item]:
    return [own.read_demonstration(row, {})]


def _read_unpaired(row: InputRow) -> Iterable[Item]:
    return [own.read_label(row, {})]


def _read_preference(row: InputRow) -> Iterable[Item]:
    return [own.read_pair(row, _margin(row))]


def _read_implicit(row: InputRow) -> Iterable[Item]:
    return [own.read_dialogues(row, _margin(row))]


def _margin(row: InputRow) -> dict[str, Any]:
    return {"margin": row.optional_number("margin"), "sources": written_by(row, *MODEL_COLUMNS)}


def _read_steps(row: InputRow) -> Iterable[Item]:
    steps = tuple(row.string(f"completions[{i}]", text) for i, text in enumerate(row.items("completions")))
    labels = tuple(row.truth(f"labels[{i}]", value) for i, value in enumerate(row.items("labels")))
    if len(steps) != len(labels):
        row.fail("labels", f"are {len(labels)} for {len(steps)} completions", "write one for each step")
    return [Item(prompt=row.text("prompt"), completions=steps, labels=labels, steps=True)]


# -- writing -----------------------------------------------------------------------------------------------------------


def _write_lm(item: Item) -> Iterable[Fields]:
    if item.prompt is None:
        return [_lm_row(item.completions[0])]
    if item.kind != "demonstration":
        cannot(f"a {item.kind} is no text to learn from")
    prompt, completion = item.prompt, item.completions[0]
    if isinstance(prompt, str) and isinstance(completion, str):
        return [_lm_row(prompt + completion)]
    return [_lm_row((*turns_of(prompt), *turns_of(completion, "assistant")))]


def _lm_row(text: TextOrTurns) -> Fields:
    return {"text" if isinstance(text, str) else "messages": _plain(text)}


def _write_prompt(item: Item) -> Iterable[Fields]:
    return [{"prompt": _plain(item.prompt)}] if item.prompt is not None else cannot(f"a {item.kind} has no prompt")


def _write_demonstration(item: Item) -> Iterable[Fields]:
    if item.kind not in ("demonstration", "sample") or item.prompt is None:
        cannot(f"a {item.kind} is no demonstration")
    return [{"prompt": _plain(item.prompt), "completion": _plain(text)} for text in item.completions]


def _write_preference(item: Item) -> Iterable[Fields]:
    margin = {} if item.margin is None else {"margin": item.margin}
    for chosen, rejected in chosen_rejected(item):
        sides = {"chosen": _plain(chosen), "rejected": _plain(rejected)}
        # Explicit prompts, which DPO trainers prefer: an implicit one is found by comparing texts, and may be found
        # wrong.
        yield {"prompt": _plain(item.prompt or ""), **sides, **margin}


def _write_implicit(item: Item) -> Iterable[Fields]:
    for row in _write_preference(item):
        prompt = row["prompt"]
        whole = {"chosen": prompt + row["chosen"], "rejected": prompt + row["rejected"]}
        yield {**whole, **{name: value for name, value in row.items() if name == "margin"}}


def _write_unpaired(item: Item) -> Iterable[Fields]:
    # Only labels of their own: the chosen one of a pair need not be good.
    if item.kind == "steps" or item.prompt is None or not any(label is not None for label in item.labels):
        cannot(f"a {item.kind} says of no completion by itself that it is good or bad")
    judged = zip(item.completions, item.labels, strict=True)
    prompt = _plain(item.prompt)
    return [
        {"prompt": prompt, "completion": _plain(text), "label": label} for text, label in judged if label is not None
    ]


def _write_steps(item: Item) -> Iterable[Fields]:
    if not item.steps:
        cannot(f"a {item.kind} has no steps")
    return [{"prompt": item.prompt, "completions": list(item.completions), "labels": list(item.labels)}]


# -- the rows of the table ---------------------------------------------------------------------------------------------


def _lm_why(fields: Fields) -> str:
    if all_messages(fields.get("messages")) and "chosen" not in fields and _begins(fields):
        return '"messages" holds a conversation'
    return '"text" stands by itself' if has(fields, text=str) and not _KNOWN & fields.keys() else ""


def _begins(fields: Fields) -> bool:
    """Return whether a conversation holds its row's prompt, where it has one, as the sets of alignment-handbook do."""
    prompt = fields.get("prompt")
    return prompt is None or any(message.get("content") == prompt for message in fields["messages"])


_KNOWN = {"prompt", "chosen", "rejected", "completion", "completions", "message_id", "instruction", "label"}


def _prompt_why(fields: Fields) -> str:
    others = _KNOWN - {"prompt", "message_id"} | {"ranks", "response", "answer", "text", "messages"}
    return '"prompt" stands by itself' if _spoken(fields.get("prompt")) and not others & fields.keys() else ""


def _demonstration_why(fields: Fields) -> str:
    both = _spoken(fields.get("prompt")) and _spoken(fields.get("completion"))
    return '"prompt" and "completion"' if both and not {"label", "rating"} & fields.keys() else ""


def _preference_why(fields: Fields) -> str:
    three = all(_spoken(fields.get(name)) for name in ("prompt", "chosen", "rejected"))
    return '"prompt", "chosen" and "rejected"' if three else ""


def _implicit_why(fields: Fields) -> str:
    both = _spoken(fields.get("chosen")) and _spoken(fields.get("rejected"))
    others = {"prompt", "instruction", "conversations"} & fields.keys() or is_dialogue(fields.get("chosen"))
    return '"chosen" and "rejected" with the prompt inside' if both and not others else ""


def _unpaired_why(fields: Fields) -> str:
    both = _spoken(fields.get("prompt")) and _spoken(fields.get("completion"))
    known = truth_of(fields.get("label")) is not None
    return '"prompt", "completion" and a "label"' if both and known else ""


def _steps_why(fields: Fields) -> str:
    three = has(fields, prompt=str, completions=list, labels=list)
    return '"completions" are steps with "labels"' if three else ""


def _shapes() -> Iterator[Format]:
    pair = ("prompt", "chosen", "rejected", "margin", "messages", *_SCORED)
    label, steps = ("prompt", "completion", "label"), ("prompt", "completions", "labels")
    table = {
        "trl-preference": ("preference with a prompt", _preference_why, _read_preference, _write_preference, pair),
        "trl-implicit": ("preference, the prompt inside", _implicit_why, _read_implicit, _write_implicit, pair),
        "trl-unpaired": ("unpaired preference (KTO)", _unpaired_why, _read_unpaired, _write_unpaired, label),
        "trl-stepwise": ("stepwise supervision", _steps_why, _read_steps, _write_steps, steps),
        "trl-completion": (
            "prompt and completion",
            _demonstration_why,
            _read_demonstration,
            _write_demonstration,
            label[:2],
        ),
        "trl-lm": ("language modelling", _lm_why, _read_lm, _write_lm, ("messages", "text", "prompt")),
        "trl-prompt": ("prompts only", _prompt_why, _read_prompt, _write_prompt, ("prompt",)),
    }
    for name, (title, why, read, write, columns) in table.items():
        fields = frozenset(columns)
        writer = item_by_item(write, _FIELDS, uniform=True)
        yield Format(name, f"TRL: {title}", fields, why, row_by_row(read, fields), writer, part_by_part=True)


TRL_SHAPES: tuple[Format, ...] = tuple(_shapes())
