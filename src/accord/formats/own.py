"""Accord's own rows, which every stage reads (`accord.formats.stage_rows`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from accord.formats.format import Fields, Format, has, item_by_item, row_by_row
from accord.formats.item import Item, TextOrTurns, Turns, beside, cannot, common_length, is_plain, plain_turns
from accord.formats.rows import InputRow, RowError
from accord.formats.scored import MODEL_COLUMNS, SCORE_COLUMNS, scored_ranks
from accord.records import Strength

_JUDGED = ("ranks", "unacceptable", "chosen", "rejected", "label", "rating", "scale", "axis")
_CLEAR = ("strength", "margin", "probability")
_BESIDES = ("weight", "topic", "origin", "group", "annotator", "created_at")
_STAGES_READ = ("weight", "topic", "origin", "group", "annotator")
ACCORD_FIELDS = frozenset(("prompt", "completion", "completions", "messages", "text", *_JUDGED, *_CLEAR, *_BESIDES))
Besides = dict[str, Any]


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(row: InputRow) -> Iterable[Item]:
    """Return all that a row says; its columns decide what it is."""
    besides, said = _besides(row, *_BESIDES), _said_by(row.fields)
    return [_READERS[said](row, besides)]


def _said_by(fields: Fields) -> str:
    """Return what a row of ours is, by its columns."""
    there = {name for name, value in fields.items() if value is not None}
    if "prompt" not in there:
        return "messages" if "messages" in there else "text"
    if "completions" in there:
        return "completions"
    if {"chosen", "rejected"} & there:
        return "pair"
    if "completion" not in there:
        return "prompt"
    return next((name for name in ("label", "rating") if name in there), "completion")


def _used(fields: Fields) -> frozenset[str]:
    """Return the columns of a row of ours that are read: those of what it is, and what stands beside all of them."""
    return _USED[_said_by(fields)]


_ALWAYS = frozenset((*_BESIDES, "axis", "scale"))
_TWO = frozenset(("chosen", "rejected", *_CLEAR, *SCORE_COLUMNS, *MODEL_COLUMNS))
_USED: Mapping[str, frozenset[str]] = {
    "messages": _ALWAYS | {"messages"},
    "text": _ALWAYS | {"text"},
    "completions": _ALWAYS | {"prompt", "completions", "ranks", "unacceptable", *_CLEAR},
    "pair": _ALWAYS | {"prompt"} | _TWO,
    "prompt": _ALWAYS | {"prompt"},
    "label": _ALWAYS | {"prompt", "completion", "label", "rating"},
    "rating": _ALWAYS | {"prompt", "completion", "rating"},
    "completion": _ALWAYS | {"prompt", "completion"},
}


def read_label(row: InputRow, besides: Besides) -> Item:
    """Read a completion that somebody called good or bad."""
    label = row.truth("label", row.get("label"))
    rated = {"ratings": (row.number("rating", row.get("rating")),), "scale": _scale(row)} if "rating" in row else {}
    return _answered(row, besides, labels=(label,), axis=row.optional_text("axis"), **rated)


def _rated(row: InputRow, besides: Besides) -> Item:
    rating = row.number("rating", row.get("rating"))
    return _answered(row, besides, ratings=(rating,), scale=_scale(row), axis=row.optional_text("axis"))


def read_demonstration(row: InputRow, besides: Besides) -> Item:
    """Read a completion to imitate."""
    return _answered(row, besides, demonstration=True)


def _answered(row: InputRow, besides: Besides, **judged: Any) -> Item:
    prompt, completion = row.text_or_messages("prompt"), row.text_or_messages("completion")
    return Item(prompt=beside(prompt, completion), completions=(completion,), **judged, **besides)


def _scale(row: InputRow) -> tuple[float, float] | None:
    if "scale" not in row:
        return None
    ends = [row.number("scale", end) for end in row.items("scale")]
    if len(ends) != 2 or ends[0] >= ends[1]:
        row.fail("scale", "is not [lowest, highest]", "write the ends of the scale, like [1, 7]")
    return ends[0], ends[1]


def read_pair(row: InputRow, besides: Besides) -> Item:
    """Read a prompt with a chosen and a rejected completion; dialogues beside a prompt of text bring their own."""
    prompt, *sides = (row.text_or_messages(name) for name in ("prompt", "chosen", "rejected"))
    # TRL writes both: completions beside a prompt, and whole dialogues beside its text.
    if isinstance(prompt, str) and not isinstance(sides[0], str) and sides[0][0]["role"] != "assistant":
        return read_dialogues(row, besides)
    return _preferred(row, beside(prompt, *sides), sides, besides)


def read_dialogues(row: InputRow, besides: Besides) -> Item:
    """Read a chosen and a rejected dialogue; the prompt is what both begin with."""
    chosen, rejected = row.text_or_messages("chosen"), row.text_or_messages("rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        row.fail("rejected", "is not of the form that chosen has", "write both as texts or both as messages")
    length = common_length(chosen, rejected)
    if isinstance(chosen, str):
        # As trl.extract_prompt: the space belongs to the completion, whose first token holds it.
        length -= chosen[:length].endswith(" ")
    # A dialogue that is the other's beginning has no completion of its own.
    elif not 0 < length < min(len(chosen), len(rejected)):
        row.fail("chosen", "shares no prompt with rejected that both answer", "begin both with the same messages")
    return _preferred(row, chosen[:length], (chosen[length:], rejected[length:]), besides)


def _preferred(row: InputRow, prompt: TextOrTurns, sides: Iterable[TextOrTurns], besides: Besides) -> Item:
    pair = Item(prompt=prompt, completions=tuple(sides), ranks=scored_ranks(row), **besides)
    if pair.completions[0] == pair.completions[1]:
        row.fail("rejected", "is the same text as chosen", "remove the row: it says nothing")
    return pair


def _group(row: InputRow, besides: Besides) -> Item:
    """Return a ranking, or labels of several completions, or both; without either they are samples."""
    ranked = _ranked(row, besides) if "ranks" in row else _several(row, besides)
    return replace(ranked, labels=_flags(row, ranked)) if "unacceptable" in row else ranked


def _several(row: InputRow, besides: Besides) -> Item:
    texts = [InputRow({f"completions[{i}]": text}, row.where) for i, text in enumerate(row.items("completions"))]
    completions = tuple(text.text_or_messages(f"completions[{i}]") for i, text in enumerate(texts))
    prompt = beside(row.text_or_messages("prompt"), *completions)
    return Item(prompt=prompt, completions=completions, axis=row.optional_text("axis"), **besides)


def _ranked(row: InputRow, besides: Besides) -> Item:
    found = _several(row, besides)
    if len(found.completions) < 2:
        row.fail("completions", f"has {len(found.completions)} texts", "a ranking needs at least 2")
    given = row.items("ranks")
    # null: nobody ranked it. A tie at the end is another thing.
    ranks = tuple(None if rank is None else row.number(f"ranks[{i}]", rank) for i, rank in enumerate(given))
    _check_ranks(row, ranks, len(found.completions))
    ranked = [rank for rank in ranks if rank is not None]
    return replace(found, ranks=ranks, **(_clear(row) if len(ranked) == 2 and ranked[0] != ranked[1] else {}))


def _flags(row: InputRow, group: Item) -> tuple[bool | None, ...]:
    given = row.items("unacceptable")
    flags = tuple(None if f is None else not row.truth(f"unacceptable[{i}]", f) for i, f in enumerate(given))
    if len(flags) != len(group.completions):
        row.fail("unacceptable", f"are {len(flags)} for {len(group.completions)} completions", "write one for each")
    return flags


def _check_ranks(row: InputRow, ranks: Sequence[float | None], num_completions: int) -> None:
    ranked = [rank for rank in ranks if rank is not None]
    if len(ranks) != num_completions:
        row.fail("ranks", f"are {len(ranks)} for {num_completions} completions", "write one for each, 1 = best")
    if len(ranked) < 2:
        row.fail("ranks", f"ranks {len(ranked)} of {num_completions} completions", "a ranking needs at least 2")
    if min(ranked) < 1:
        row.fail("ranks", f"holds {min(ranked):g}", "ranks start at 1 = best; equal ranks are a tie, null is none")


def _clear(row: InputRow) -> dict[str, Any]:
    strength = row.optional_text("strength") or None
    # Shorter words for the ends of the scale, as people type them; the facts have Llama 2's.
    strength = {"much": "significantly", "barely": "negligibly"}.get(strength or "", strength)
    if strength is not None and strength not in get_args(Strength):
        row.fail("strength", f"is {strength[:40]!r}", f"write one of {', '.join(get_args(Strength))}, much, barely")
    probability = row.optional_number("probability")
    # Below a half the other one would be the better: the row contradicts itself.
    if probability is not None and not 0.5 <= probability <= 1:
        row.fail("probability", f"is {probability:g}", "write 0.5 to 1: how sure it is that the better one is better")
    return {"strength": strength, "margin": row.optional_number("margin"), "probability": probability}


def _besides(row: InputRow, *names: str) -> Besides:
    """Return what a row says beside its texts, of the columns that somebody asks for."""
    texts = [name for name in names if name not in ("weight", "created_at", "annotator")]
    found: Besides = {name: row.optional_text(name) for name in texts}
    if "annotator" in names:
        found["annotator"] = row.name("annotator")
    weight = row.optional_number("weight")
    # 0 would be a row that is read and says nothing; below it, one that unlearns.
    if weight is not None and weight <= 0:
        row.fail("weight", f"is {weight:g}", "write a number above 0, or remove the row")
    found["weight"] = 1.0 if weight is None else weight
    return found | ({"created_at": row.moment("created_at")} if "created_at" in names else {})


_READERS: Mapping[str, Callable[[InputRow, Besides], Item]] = {
    "messages": lambda row, besides: Item(prompt=None, completions=(row.messages("messages"),), **besides),
    "text": lambda row, besides: Item(prompt=None, completions=(row.text("text"),), **besides),
    "completions": _group,
    "pair": lambda row, besides: read_pair(row, besides | _clear(row)),
    "prompt": lambda row, besides: Item(prompt=row.text_or_messages("prompt"), **besides),
    "label": read_label,
    "rating": _rated,
    "completion": read_demonstration,
}


# -- one view of a row: stages read what they need and leave the other columns alone -----------------------------------


def _as_prompt(row: InputRow) -> Item:
    besides = _besides(row, "topic")
    if "prompt" not in row.fields and "messages" in row.fields:
        return Item(prompt=None, completions=(row.messages("messages"),), **besides)
    return Item(prompt=row.text_or_messages("prompt"), **besides)


def _as_answer(row: InputRow) -> Item:
    return read_demonstration(row, {})


def _as_lesson(row: InputRow) -> Item:
    if "messages" in row.fields:
        return Item(prompt=None, completions=(row.messages("messages"),))
    return read_demonstration(row, {})


def _as_text(row: InputRow) -> Item:
    return Item(prompt=None, completions=(row.text("text"),))


def _as_ranking(row: InputRow) -> Item:
    besides = _besides(row, *_STAGES_READ)
    if "completions" in row or "ranks" in row:
        return _ranked(row, besides)
    if "chosen" in row or "rejected" in row:
        return read_pair(row, besides | _clear(row))
    what = 'neither "completions" and "ranks" nor "chosen" and "rejected" are there'
    hint = 'write rows like {"prompt": "...", "chosen": "...", "rejected": "..."}'
    raise RowError(what, where=row.where, hint=hint)


def _as_labels(row: InputRow) -> Item:
    besides = _besides(row, *_STAGES_READ)
    if "unacceptable" not in row.fields:
        return read_label(row, besides)
    several = _several(row, besides)
    return replace(several, labels=_flags(row, several))


def _as_rating(row: InputRow) -> Item:
    return _answered(row, _besides(row, *_STAGES_READ), ratings=(row.number("rating", row.get("rating")),))


def _as_judgement(row: InputRow) -> Item:
    labelled = "label" in row.fields or ("unacceptable" in row.fields and "ranks" not in row.fields)
    return _as_labels(row) if labelled else _as_ranking(row)


#: How Accord's own rows are read by what somebody wants of them (`accord.formats.stage_rows`).
VIEWS: Mapping[str, Callable[[InputRow], Item]] = {
    "prompts": _as_prompt,
    "lessons": _as_lesson,
    "demonstrations": _as_answer,
    "completions": _as_answer,
    "texts": _as_text,
    "rankings": _as_ranking,
    "labels": _as_labels,
    "ratings": _as_rating,
    "judgements": _as_judgement,
}


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(item: Item) -> Iterable[Fields]:
    besides = {name: getattr(item, name) for name in _BESIDES if getattr(item, name) not in ("", 1.0)}
    return [{**row, **besides} for row in _bare(item)]


def _bare(item: Item) -> Iterable[dict[str, Any]]:
    """Yield rows without topic, weight and the like. What no stage would read raises CannotSay."""
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
        return [{"prompt": prompt, "completions": texts, **_ranking(item), **_writers(item)}]
    if item.kind in ("label", "rating"):
        return _each_judged(item, prompt, texts)
    return [{"prompt": prompt, "completion": text} for text in texts] or [{"prompt": prompt}]


def _ranking(item: Item) -> dict[str, Any]:
    ranks = [None if rank is None else _whole(rank) for rank in item.ranks]
    clear = {name: getattr(item, name) for name in _CLEAR if getattr(item, name) is not None}
    labels = {"unacceptable": [None if good is None else not good for good in item.labels]} if item.labels else {}
    return {"ranks": ranks, **labels, **clear, **({"axis": item.axis} if item.axis else {})}


def _writers(item: Item) -> dict[str, Any]:
    """Return who wrote each completion, where they are several: a blind comparison stays one of two models."""
    names = [source.name if source else None for source in item.sources]
    return {"model": names} if len(set(names)) > 1 else {}


def _each_judged(item: Item, prompt: Any, texts: list[Any]) -> Iterable[dict[str, Any]]:
    axis = {"axis": item.axis} if item.axis else {}
    scale = {"scale": list(map(_whole, item.scale))} if item.scale else {}
    for i, text in enumerate(texts):
        if item.labels and item.labels[i] is not None:
            yield {"prompt": prompt, "completion": text, "label": item.labels[i], **axis}
        rating = item.ratings[i] if item.ratings else None
        if rating is not None:
            yield {"prompt": prompt, "completion": text, "rating": _whole(rating), **scale, **axis}


def _whole(number: float) -> float:
    # 1 and not 1.0: rows are read by people too, and the same item gives the same bytes.
    return int(number) if math.isfinite(number) and number == int(number) else number


def _text(text: str) -> str:
    return text if text.strip() else cannot("a text is empty")


def _messages(messages: Turns) -> list[dict[str, Any]]:
    for message in messages:
        if is_plain(message) and (message["role"] == "assistant" or message["content"] != ""):
            _text(message["content"])  # as the stages' reader: only others may say nothing
    return [dict(message) for message in messages] or cannot("a prompt holds no messages")


def _completion(completion: TextOrTurns) -> Any:
    if isinstance(completion, str):
        return _text(completion)
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        cannot("a completion is more than one message of the assistant's")
    only = _messages(completion)
    # A plain reply is written as text: any reader takes it, with a chat template or without.
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
    ACCORD_FIELDS,
    _why,
    row_by_row(_read, ACCORD_FIELDS),
    item_by_item(_write, ACCORD_FIELDS),
    reads_too=("trl-preference", "trl-unpaired", "trl-completion", "trl-prompt", "trl-lm"),
    used=_used,
    part_by_part=True,
)
