"""Alpaca: ``{"instruction", "input", "output", "system"?, "history"?: [[question, answer], ..]}``.

The prompt is instruction and input, a line each. Answers in ``history`` are learned too (as LLaMA-Factory does), so a
row that has one is a conversation. A preference has ``chosen`` and ``rejected`` in place of ``output`` (in older files
of LLaMA-Factory ``output`` is a list, the better one first), a judgement of one completion ``kto_tag`` beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from accord.formats.format import Fields, Format, has, item_by_item, row_by_row
from accord.formats.item import (
    ChatTurn,
    Item,
    TextOrTurns,
    Turns,
    cannot,
    chosen_rejected,
    plain_turns,
    reply_of,
    turns_of,
)
from accord.formats.rows import InputRow, truth_of
from accord.formats.scored import MODEL_COLUMNS, SCORE_COLUMNS, scored_ranks, written_by

_FIELDS = frozenset(("instruction", "input", "output", "system", "history", "chosen", "rejected", "kto_tag"))


def _prompt(row: InputRow) -> TextOrTurns:
    """Return what is asked: a text, or messages where a system prompt or a history comes before."""
    # As LLaMA-Factory joins them; Alpaca's own long frame around both belongs to its model.
    asked = "\n".join(filter(None, [row.text("instruction"), row.optional_text("input")]))
    system, before = row.optional_text("system"), _history(row)
    if not system and not before:
        return asked
    first: Turns = ({"role": "system", "content": system},) if system else ()
    return (*first, *before, {"role": "user", "content": asked})


def _history(row: InputRow) -> list[ChatTurn]:
    said: list[ChatTurn] = []
    for i, pair in enumerate(row.items("history") if "history" in row else []):
        field = f"history[{i}]"
        if len(row.listed(field, pair)) != 2:
            row.fail(field, f"holds {len(pair)} texts, not a question and an answer", 'write ["question", "answer"]')
        for role, text in zip(("user", "assistant"), pair, strict=True):
            said.append({"role": role, "content": row.string(field, text)})
    return said


def _read(row: InputRow) -> Iterable[Item]:
    prompt, output = _prompt(row), row.text("output")
    if "history" in row:
        return [Item(prompt=None, completions=((*turns_of(prompt), {"role": "assistant", "content": output}),))]
    return [Item(prompt=prompt, completions=(output,), demonstration=True)]


def _read_preference(row: InputRow) -> Iterable[Item]:
    in_list = isinstance(row.fields.get("output"), list)
    chosen, rejected = _both(row) if in_list else (row.text("chosen"), row.text("rejected"))
    if chosen == rejected:
        row.fail("rejected", "is the same as chosen", "remove the row: it says nothing")
    said: dict[str, Any] = {"ranks": scored_ranks(row), "sources": written_by(row, *MODEL_COLUMNS)}
    return [Item(prompt=_prompt(row), completions=(chosen, rejected), **said)]


def _both(row: InputRow) -> list[str]:
    texts = [row.string(f"output[{i}]", text) for i, text in enumerate(row.items("output"))]
    return texts if len(texts) == 2 else row.fail("output", f"holds {len(texts)} texts", "write the better, the worse")


def _read_kto(row: InputRow) -> Iterable[Item]:
    label = row.truth("kto_tag", row.get("kto_tag"))
    return [Item(prompt=_prompt(row), completions=(row.text("output"),), labels=(label,))]


def _asked(prompt: TextOrTurns | None) -> dict[str, object]:
    """Return the fields of a prompt. Raises CannotSay for one that does not alternate and end with the user."""
    system, rounds, last = _rounds(plain_turns(turns_of(prompt)))
    if last is None:
        cannot("the prompt does not end with the user")
    # All of it: where an instruction ends and its input begins, no other format says.
    row: dict[str, object] = {"instruction": last, "input": ""}
    return row | ({"system": system} if system else {}) | ({"history": rounds} if rounds else {})


def _rounds(turns: Sequence[dict[str, str]]) -> tuple[str, list[list[str]], str | None]:
    """Return the system prompt, [question, answer] rounds, and the question left unanswered."""
    system = turns[0]["content"] if turns and turns[0]["role"] == "system" else ""
    said = turns[1:] if system else turns
    wanted = ("user", "assistant") * len(said)
    if not said or any(turn["role"] != role for turn, role in zip(said, wanted, strict=False)):
        cannot("Alpaca has room for a system prompt, then user and assistant in turn")
    texts = [turn["content"] for turn in said]
    last = texts.pop() if len(texts) % 2 else None
    return system, [texts[i : i + 2] for i in range(0, len(texts), 2)], last


def _write(item: Item) -> Iterable[Fields]:
    if item.kind == "conversation":
        system, rounds, last = _rounds(plain_turns(turns_of(item.completions[0])))
        if last is not None:
            cannot("the conversation does not end with the assistant")
        (question, answer), before = rounds[-1], rounds[:-1]
        row = {"instruction": question, "input": "", "output": answer}
        return [row | ({"system": system} if system else {}) | {"history": before}]
    if item.kind != "demonstration":
        cannot(f"a {item.kind} is no demonstration")
    asked = _asked(item.prompt)
    if "history" in asked:
        # In history they count; in an item's prompt they do not.
        cannot("answers in the prompt would be learned too")
    return [{**asked, "output": reply_of(item.completions[0])}]


def _write_preference(item: Item) -> Iterable[Fields]:
    for chosen, rejected in chosen_rejected(item):
        yield {**_asked(item.prompt), "chosen": reply_of(chosen), "rejected": reply_of(rejected)}


def _write_kto(item: Item) -> Iterable[Fields]:
    if item.kind not in ("label", "ranking") or not any(label is not None for label in item.labels):
        cannot(f"a {item.kind} says of no completion by itself that it is good or bad")
    for text, label in zip(item.completions, item.labels, strict=True):
        if label is not None:
            yield {**_asked(item.prompt), "output": reply_of(text), "kto_tag": label}


def _why(fields: Fields) -> str:
    found = has(fields, instruction=str, output=str) and "kto_tag" not in fields
    return '"instruction" and "output"' if found else ""


def _preference_why(fields: Fields) -> str:
    if has(fields, instruction=str, output=list) and len(fields["output"]) == 2:
        return '"instruction" and two in "output", the better one first'
    found = has(fields, instruction=str, chosen=str, rejected=str)
    return '"instruction", "chosen" and "rejected"' if found else ""


def _kto_why(fields: Fields) -> str:
    found = has(fields, instruction=str, output=str) and truth_of(fields.get("kto_tag")) is not None
    return '"instruction", "output" and "kto_tag"' if found else ""


_OPTIONAL = frozenset(("input", "system"))
_ASKED = frozenset(("instruction", "input", "system", "history"))


def _shape(name: str, title: str, why: Callable[[Fields], str], read: _Reader, write: _Writer, *own: str) -> Format:
    fields = _ASKED | frozenset(own)
    reader, writer = row_by_row(read, fields), item_by_item(write, _FIELDS)
    return Format(name, title, fields, why, reader, writer, optional=_OPTIONAL, part_by_part=True)


_Reader = Callable[[InputRow], Iterable[Item]]
_Writer = Callable[[Item], Iterable[Fields]]
ALPACA_SFT = _shape("alpaca", "Alpaca", _why, _read, _write, "output")
ALPACA_PREFERENCE = _shape(
    "alpaca-preference",
    "Alpaca: preference",
    _preference_why,
    _read_preference,
    _write_preference,
    *("output", "chosen", "rejected", *SCORE_COLUMNS, *MODEL_COLUMNS),
)
ALPACA_KTO = _shape("alpaca-kto", "Alpaca: KTO", _kto_why, _read_kto, _write_kto, "output", "kto_tag")
