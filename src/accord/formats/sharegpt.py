"""ShareGPT: ``{"conversations": [{"from": "human", "value": ".."}, {"from": "gpt", ..}], "system"?, "tools"?}``.

A preference ends with the human's turn and has ``chosen`` and ``rejected`` turns beside it (axolotl and LLaMA-Factory
have them beside ``messages`` too); a judgement of the last answer has ``kto_tag`` or ``label``. In the wild the list,
the keys of a turn and the roles go by many names, and roles need not alternate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accord.formats.format import Fields, Format, all_messages, item_by_item, row_by_row
from accord.formats.item import ChatTurn, Item, Turns, cannot, chosen_rejected, plain_turns, turns_of
from accord.formats.rows import InputRow, truth_of

_FIELDS = frozenset(("conversations", "system", "chosen", "rejected"))
# The first is what is written; the others are met in the wild.
_LISTS = ("conversations", "messages", "conversation", "items")
_KEYS = (("from", "value"), ("role", "content"), ("sender", "text"))
# A turn of both, as Capybara has it.
_ROUND = ("input", "output")
_NAMES = {
    "user": ("human", "user", "prompter"),
    "assistant": ("gpt", "assistant", "chatgpt", "bing", "bard", "model", "ai", "bot"),
    "system": ("system",),
    "tool": ("observation", "tool"),
    "function_call": ("function_call",),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_LABELS = ("kto_tag", "label")


def _list_of(fields: Fields) -> str:
    """Return the name of the list that holds a row's turns, "" where there is none."""
    return next((name for name in _LISTS if _are_turns(fields.get(name))), "")


def _are_turns(value: Any) -> bool:
    return any(all_messages(value, *keys) for keys in (*_KEYS, _ROUND))


def _messages(row: InputRow, field: str, value: Any) -> Turns:
    turn = row.object(field, value)
    if set(_ROUND) <= turn.keys():
        asked, told = (row.string(f"{field}.{key}", turn[key]) for key in _ROUND)
        return ({"role": "user", "content": asked}, {"role": "assistant", "content": told})
    return (_message(row, field, turn),)


def _message(row: InputRow, field: str, value: Any) -> ChatTurn:
    turn = row.object(field, value)
    by, said = next((keys for keys in _KEYS if set(keys) <= turn.keys()), _KEYS[0])
    name, text = (row.string(f"{field}.{key}", turn.get(key)) for key in (by, said))
    if name.lower() not in _ROLES:
        row.fail(f"{field}.{by}", f"is {name[:40]!r}", f"write one of {', '.join(_ROLES)}")
    others = {key: item for key, item in turn.items() if key not in (by, said)}
    return {"role": _ROLES[name.lower()], "content": text, **others}


def _conversation(row: InputRow) -> Turns:
    name = _list_of(row.fields) or _LISTS[0]
    said = tuple(message for i, turn in enumerate(row.items(name)) for message in _messages(row, f"{name}[{i}]", turn))
    if not said:
        row.fail(name, "is empty", "write turns, or remove the row")
    system = row.optional_text("system")
    return ({"role": "system", "content": system}, *said) if system else said


def _read(row: InputRow) -> Iterable[Item]:
    return [Item(prompt=None, completions=(_conversation(row),))]


def _read_preference(row: InputRow) -> Iterable[Item]:
    chosen, rejected = (_message(row, name, row.get(name)) for name in ("chosen", "rejected"))
    if chosen == rejected:
        row.fail("rejected", "is the same as chosen", "remove the row: it says nothing")
    return [Item(prompt=_conversation(row), completions=((chosen,), (rejected,)), ranks=(1, 2))]


def _read_label(row: InputRow) -> Iterable[Item]:
    said, name = _conversation(row), next((name for name in _LABELS if name in row), _LABELS[0])
    if said[-1]["role"] != "assistant" or len(said) < 2:
        row.fail(name, "judges no answer: the conversation does not end with the assistant's", "end it with one")
    good = row.truth(name, row.get(name))
    return [Item(prompt=said[:-1], completions=(said[-1:],), labels=(good,))]


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


def _write_label(item: Item) -> Iterable[Fields]:
    if item.kind not in ("label", "ranking") or not any(label is not None for label in item.labels):
        cannot(f"a {item.kind} says of no completion by itself that it is good or bad")
    for text, label in zip(item.completions, item.labels, strict=True):
        if label is not None:
            yield {**_turns((*turns_of(item.prompt), *turns_of(text, "assistant"))), "kto_tag": label}


def _why(fields: Fields) -> str:
    name = _list_of(fields)
    # Messages with a role are OpenAI's and TRL's.
    found = name and "chosen" not in fields and not all_messages(fields.get("messages"))
    return f'"{name}" holds turns' if found else ""


def _preference_why(fields: Fields) -> str:
    name, sides = _list_of(fields), [fields.get("chosen"), fields.get("rejected")]
    found = name and all(isinstance(side, dict) for side in sides)
    return f'"{name}" with "chosen" and "rejected" turns beside it' if found else ""


def _label_why(fields: Fields) -> str:
    name = _list_of(fields)
    label = next((label for label in _LABELS if truth_of(fields.get(label)) is not None), "")
    return f'"{name}" with "{label}" for its last answer' if name and label else ""


_TURNS = frozenset((*_LISTS, "system"))
_PAIR, _JUDGED = _TURNS | {"chosen", "rejected"}, _TURNS | frozenset(_LABELS)
SHAREGPT_SFT = Format("sharegpt", "ShareGPT", _TURNS, _why, row_by_row(_read, _TURNS), item_by_item(_write, _FIELDS))
SHAREGPT_PREFERENCE = Format(
    "sharegpt-preference",
    "ShareGPT: preference",
    _PAIR,
    _preference_why,
    row_by_row(_read_preference, _PAIR),
    item_by_item(_write_preference, _FIELDS),
)
SHAREGPT_KTO = Format(
    "sharegpt-kto",
    "ShareGPT: KTO",
    _JUDGED,
    _label_why,
    row_by_row(_read_label, _JUDGED),
    item_by_item(_write_label, _FIELDS | {"kto_tag"}),
)
