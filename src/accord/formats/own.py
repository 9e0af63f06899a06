"""Accord's own rows, which every stage reads (`accord.formats.jsonl`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, get_args

from accord.formats.format import Fields, Format, has, item_by_item, row_by_row
from accord.formats.item import Item, Messages, Text, cannot, is_plain, plain_turns
from accord.formats.rows import Row
from accord.records import Strength

_JUDGED = ("ranks", "unacceptable", "chosen", "rejected", "label", "rating", "scale", "axis")
_CLEAR = ("strength", "margin", "probability")
_BESIDES = ("weight", "topic", "origin", "group", "annotator", "created_at")
FIELDS = frozenset(("prompt", "completion", "completions", "messages", "text", *_JUDGED, *_CLEAR, *_BESIDES))


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(row: Row) -> Iterable[Item]:
    besides = _besides(row)
    if "prompt" not in row:
        said: Text = row.messages("messages") if "messages" in row else row.text("text")
        return [Item(prompt=None, completions=(said,), **besides)]
    prompt = row.text_or_messages("prompt")
    if "completions" in row:
        return [_group(row, prompt, besides)]
    if "chosen" in row or "rejected" in row:
        pair = (row.text_or_messages("chosen"), row.text_or_messages("rejected"))
        if pair[0] == pair[1]:
            row.fail("rejected", "is the same as chosen", "remove the row: it says nothing")
        return [Item(prompt=prompt, completions=pair, ranks=(1, 2), **besides, **_clear(row))]
    if "completion" not in row:
        return [Item(prompt=prompt, **besides)]
    judged = _judged(row)
    return [Item(prompt=prompt, completions=(row.text_or_messages("completion"),), **judged, **besides)]


def _judged(row: Row) -> dict[str, Any]:
    if "label" in row:
        return {"labels": (row.truth("label", row.get("label")),)}
    if "rating" in row:
        rating = row.number("rating", row.get("rating"))
        return {"ratings": (rating,), "scale": _scale(row), "axis": row.optional_text("axis")}
    return {"demonstration": True}


def _scale(row: Row) -> tuple[float, float] | None:
    if "scale" not in row:
        return None
    ends = [row.number("scale", end) for end in row.items("scale")]
    if len(ends) != 2 or ends[0] >= ends[1]:
        row.fail("scale", "is not [lowest, highest]", "write the ends of the scale, like [1, 7]")
    return ends[0], ends[1]


def _group(row: Row, prompt: Text, besides: dict[str, Any]) -> Item:
    texts = [Row({f"completions[{i}]": text}, row.where) for i, text in enumerate(row.items("completions"))]
    completions = tuple(text.text_or_messages(f"completions[{i}]") for i, text in enumerate(texts))
    ranks: tuple[float | None, ...] = ()
    labels: tuple[bool | None, ...] = ()
    if "ranks" in row:
        given = row.items("ranks")
        ranks = tuple(None if rank is None else row.number(f"ranks[{i}]", rank) for i, rank in enumerate(given))
        _check_ranks(row, ranks, completions)
    if "unacceptable" in row:
        flags = row.items("unacceptable")
        labels = tuple(
            None if flag is None else not row.truth(f"unacceptable[{i}]", flag) for i, flag in enumerate(flags)
        )
        if len(labels) != len(completions):
            row.fail("unacceptable", f"are {len(labels)} for {len(completions)} completions", "write one for each")
    clear = _clear(row) if len(ranks) == 2 and ranks[0] != ranks[1] else {}
    return Item(prompt=prompt, completions=completions, ranks=ranks, labels=labels, **besides, **clear)


def _check_ranks(row: Row, ranks: tuple[float | None, ...], completions: tuple[Text, ...]) -> None:
    ranked = [rank for rank in ranks if rank is not None]
    if len(ranks) != len(completions):
        row.fail("ranks", f"are {len(ranks)} for {len(completions)} completions", "write one for each, 1 = best")
    if len(ranked) < 2 or min(ranked) < 1:
        row.fail("ranks", "rank fewer than two completions, or hold one below 1", "1 = best, equal = tie, null = none")


def _clear(row: Row) -> dict[str, Any]:
    strength = row.optional_text("strength") or None
    strength = {"much": "significantly", "barely": "negligibly"}.get(strength or "", strength)
    if strength is not None and strength not in get_args(Strength):
        row.fail("strength", f"is {strength[:40]!r}", f"write one of {', '.join(get_args(Strength))}")
    probability = row.optional_number("probability")
    if probability is not None and not 0.5 <= probability <= 1:
        row.fail("probability", f"is {probability:g}", "write 0.5 to 1")
    return {"strength": strength, "margin": row.optional_number("margin"), "probability": probability}


def _besides(row: Row) -> dict[str, Any]:
    weight = row.optional_number("weight")
    if weight is not None and weight <= 0:
        row.fail("weight", f"is {weight:g}", "write a number above 0, or remove the row")
    texts = {name: row.optional_text(name) for name in _BESIDES if name not in ("weight", "created_at")}
    return {"weight": 1.0 if weight is None else weight, **texts, "created_at": row.moment("created_at")}


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(item: Item) -> Iterable[Fields]:
    besides = {name: getattr(item, name) for name in _BESIDES if getattr(item, name) not in ("", 1.0)}
    return [{**row, **besides} for row in _bare(item)]


def _bare(item: Item) -> Iterable[dict[str, Any]]:
    """Rows without topic, weight and the like. What no stage would read raises CannotSay."""
    if item.prompt is None:
        said = item.completions[0]
        return [{"text": _text(said)} if isinstance(said, str) else {"messages": _messages(said)}]
    if item.steps:
        cannot("steps are no row of Accord's")
    prompt = _text(item.prompt) if isinstance(item.prompt, str) else _messages(item.prompt)
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        cannot("the prompt ends with what the assistant said")
    texts = [_completion(text) for text in item.completions]
    if item.kind == "ranking":
        return [{"prompt": prompt, "completions": texts, **_ranking(item)}]
    if item.kind in ("label", "rating"):
        return _each_judged(item, prompt, texts)
    return [{"prompt": prompt, "completion": text} for text in texts] or [{"prompt": prompt}]


def _ranking(item: Item) -> dict[str, Any]:
    ranks = [None if rank is None else _whole(rank) for rank in item.ranks]
    clear = {name: getattr(item, name) for name in _CLEAR if getattr(item, name) is not None}
    labels = {"unacceptable": [None if good is None else not good for good in item.labels]} if item.labels else {}
    return {"ranks": ranks, **labels, **clear}


def _each_judged(item: Item, prompt: Any, texts: list[Any]) -> Iterable[dict[str, Any]]:
    axis = ({"scale": list(map(_whole, item.scale))} if item.scale else {}) | ({"axis": item.axis} if item.axis else {})
    for i, text in enumerate(texts):
        if item.labels and item.labels[i] is not None:
            yield {"prompt": prompt, "completion": text, "label": item.labels[i]}
        rating = item.ratings[i] if item.ratings else None
        if rating is not None:
            yield {"prompt": prompt, "completion": text, "rating": _whole(rating), **axis}


def _whole(number: float) -> float:
    return int(number) if math.isfinite(number) and number == int(number) else number


def _text(text: str) -> str:
    return text if text.strip() else cannot("a text is empty")


def _messages(messages: Messages) -> list[dict[str, Any]]:
    for message in messages:
        if is_plain(message) and (message["role"] == "assistant" or message["content"] != ""):
            _text(message["content"])  # as the stages' reader: only others may say nothing
    return [dict(message) for message in messages] or cannot("a prompt holds no messages")


def _completion(completion: Text) -> Any:
    if isinstance(completion, str):
        return _text(completion)
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        cannot("a completion is more than one message of the assistant's")
    only = _messages(completion)
    return only[0]["content"] if only[0].keys() == {"role", "content"} and plain_turns(completion) else only


def _why(fields: Fields) -> str:
    if not isinstance(fields.get("prompt"), str | list):
        return ""
    if has(fields, completions=list, ranks=list) or has(fields, completions=list, unacceptable=list):
        return '"prompt", "completions" and their "ranks" or "unacceptable"'
    if isinstance(fields.get("completion"), str | list) and isinstance(fields.get("rating"), int | float):
        return '"prompt", "completion" and a "rating"'
    marks = [name for name in (*_BESIDES, "strength", "probability") if name in fields]
    return f'"prompt" and "{marks[0]}"' if marks and {"completion", "chosen"} & fields.keys() else ""


ACCORD = Format(
    "accord",
    "Accord's own rows",
    FIELDS,
    _why,
    row_by_row(_read, FIELDS),
    item_by_item(_write, FIELDS),
    reads_too=("trl-preference", "trl-unpaired", "trl-completion", "trl-prompt", "trl-lm"),
)
