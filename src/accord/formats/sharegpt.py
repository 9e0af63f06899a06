"""ShareGPT: ``{"conversations": [{"from": "human", "value": ".."}, {"from": "gpt", ..}], "system"?, "tools"?}``.

A preference ends with the human's turn and has ``chosen`` and ``rejected`` turns beside it. Roles go by many names in
the wild, and need not alternate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accord.formats.format import Fields, Format, all_messages, item_by_item, row_by_row
from accord.formats.item import ChatTurn, Item, Turns, cannot, chosen_rejected, plain_turns, turns_of
from accord.formats.rows import InputRow

_FIELDS = frozenset(("conversations", "system", "chosen", "rejected"))
# The first is what is written; the others are met in the wild.
_NAMES = {
    "user": ("human", "user", "prompter"),
    "assistant": ("gpt", "assistant", "chatgpt", "bing", "bard", "model"),
    "system": ("system",),
    "tool": ("observation", "tool"),
    "function_call": ("function_call",),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}


def _message(row: InputRow, field: str, value: Any) -> ChatTurn:
    turn = row.object(field, value)
    name, text = (row.string(f"{field}.{key}", turn.get(key)) for key in ("from", "value"))
    if name.lower() not in _ROLES:
        row.fail(f"{field}.from", f"is {name[:40]!r}", f"write one of {', '.join(_ROLES)}")
    others = {key: item for key, item in turn.items() if key not in ("from", "value")}
    return {"role": _ROLES[name.lower()], "content": text, **others}


def _conversation(row: InputRow) -> Turns:
    said = tuple(_message(row, f"conversations[{i}]", turn) for i, turn in enumerate(row.items("conversations")))
    if not said:
        row.fail("conversations", "is empty", "write turns, or remove the row")
    system = row.optional_text("system")
    return ({"role": "system", "content": system}, *said) if system else said


def _read(row: InputRow) -> Iterable[Item]:
    return [Item(prompt=None, completions=(_conversation(row),))]


def _read_preference(row: InputRow) -> Iterable[Item]:
    chosen, rejected = (_message(row, name, row.get(name)) for name in ("chosen", "rejected"))
    if chosen == rejected:
        row.fail("rejected", "is the same as chosen", "remove the row: it says nothing")
    return [Item(prompt=_conversation(row), completions=((chosen,), (rejected,)), ranks=(1, 2))]


def _turns(turns: Turns) -> Fields:
    """Return the fields that hold a conversation: what the system says first has a field of its own."""
    system = turns[0]["content"] if turns and turns[0]["role"] == "system" else ""
    said = turns[1:] if system else turns
    if not said:
        cannot("there is no turn but the system's")
    return {"conversations": list(map(_turn, said)), **({"system": system} if system else {})}


def _turn(message: ChatTurn) -> Fields:
    plain_turns((message,))
    names = _NAMES.get(message["role"]) or cannot(f"ShareGPT has no name for the role {message['role']!r}")
    others = {key: value for key, value in message.items() if key not in ("role", "content", "tool_calls")}
    return {"from": names[0], "value": message["content"], **others}


def _write(item: Item) -> Iterable[Fields]:
    if item.kind not in ("conversation", "demonstration"):
        cannot(f"a {item.kind} is no conversation to learn from")
    return [_turns((*turns_of(item.prompt), *turns_of(item.completions[0], "assistant")))]


def _write_preference(item: Item) -> Iterable[Fields]:
    for pair in chosen_rejected(item):
        sides = [turns_of(side, "assistant") for side in pair]
        if any(len(side) != 1 for side in sides):
            cannot("a completion is more than one message")
        chosen, rejected = (_turn(side[0]) for side in sides)
        yield {**_turns(turns_of(item.prompt)), "chosen": chosen, "rejected": rejected}


def _why(fields: Fields) -> str:
    found = all_messages(fields.get("conversations"), "from", "value") and "chosen" not in fields
    return '"conversations" of turns with "from" and "value"' if found else ""


def _preference_why(fields: Fields) -> str:
    found = all_messages(fields.get("conversations"), "from", "value") and "chosen" in fields
    return '"conversations" with "chosen" and "rejected" turns beside them' if found else ""


SHAREGPT_SFT = Format("sharegpt", "ShareGPT", _FIELDS, _why, row_by_row(_read, _FIELDS), item_by_item(_write, _FIELDS))
SHAREGPT_PREFERENCE = Format(
    "sharegpt-preference",
    "ShareGPT: preference",
    _FIELDS,
    _preference_why,
    row_by_row(_read_preference, _FIELDS),
    item_by_item(_write_preference, _FIELDS),
)
