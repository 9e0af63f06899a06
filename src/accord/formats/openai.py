"""OpenAI's fine-tuning files.

* supervised: ``{"messages": [..], "tools"?, "parallel_tool_calls"?}``, the last message the assistant's; an assistant's
  message may have a ``weight`` of 0 or 1
* preference: ``{"input": {"messages", "tools"?, ..}, "preferred_output": [message], "non_preferred_output":
  [message]}``
"""

from __future__ import annotations

from collections.abc import Iterable

from accord.formats.format import Fields, Format, all_messages, has, item_by_item, row_by_row
from accord.formats.item import Item, Turns, cannot, chosen_rejected, turns_of
from accord.formats.rows import InputRow

_BESIDES = ("tools", "parallel_tool_calls")


def _read_sft(row: InputRow) -> Iterable[Item]:
    messages = row.messages("messages")
    if messages[-1]["role"] != "assistant":
        row.fail("messages", "do not end with the assistant's words", "end with the message to learn from")
    return [Item(prompt=None, completions=(messages,))]


def _write_sft(item: Item) -> Iterable[Fields]:
    kinds = ("conversation", "demonstration")
    if item.kind not in kinds:
        cannot(f"a {item.kind} is no conversation to learn from")
    messages = (*turns_of(item.prompt), *turns_of(item.completions[0], "assistant"))
    if messages[-1]["role"] != "assistant":
        cannot("the conversation does not end with the assistant's words")
    return [{"messages": [dict(message) for message in messages], **_besides(item.extra)}]


def _read_preference(row: InputRow) -> Iterable[Item]:
    asked = InputRow(row.object("input", row.get("input")), row.where)
    prompt = asked.messages("messages")
    chosen, rejected = (_reply(row, name) for name in ("preferred_output", "non_preferred_output"))
    if chosen == rejected:
        row.fail("non_preferred_output", "is the same as preferred_output", "remove the row: it says nothing")
    return [Item(prompt=prompt, completions=(chosen, rejected), ranks=(1, 2), extra=_besides(asked.fields))]


def _reply(row: InputRow, name: str) -> Turns:
    found = row.messages(name)
    if len(found) != 1 or found[0]["role"] != "assistant":
        row.fail(
            name, "is not exactly one message of the assistant's", 'write [{"role": "assistant", "content": ".."}]'
        )
    return found


def _write_preference(item: Item) -> Iterable[Fields]:
    for pair in chosen_rejected(item):
        asked = {"messages": [dict(turn) for turn in turns_of(item.prompt)], **_besides(item.extra)}
        sides = [turns_of(side, "assistant") for side in pair]
        if any(len(side) != 1 or side[0]["role"] != "assistant" for side in sides):
            cannot("a completion is more than one message of the assistant's")
        chosen, rejected = ([dict(side[0])] for side in sides)
        yield {"input": asked, "preferred_output": chosen, "non_preferred_output": rejected}


def _besides(fields: Fields) -> Fields:
    return {name: fields[name] for name in _BESIDES if name in fields}


def _sft_why(fields: Fields) -> str:
    # Nothing else: rows of messages with a topic or a label are TRL's or ours.
    found = all_messages(fields.get("messages")) and set(fields) <= {"messages", *_BESIDES}
    return '"messages" holds a conversation, and nothing but tools stands beside it' if found else ""


def _preference_why(fields: Fields) -> str:
    three = has(fields, input=dict, preferred_output=list, non_preferred_output=list)
    return '"input", "preferred_output" and "non_preferred_output"' if three else ""


_MESSAGES = frozenset(("messages",))
_PAIR = frozenset(("input", "preferred_output", "non_preferred_output"))
OPENAI_SFT = Format(
    "openai-sft",
    "OpenAI: supervised fine-tuning",
    _MESSAGES,
    _sft_why,
    row_by_row(_read_sft, _MESSAGES),
    item_by_item(_write_sft),
)
OPENAI_PREFERENCE = Format(
    "openai-preference",
    "OpenAI: preference",
    _PAIR,
    _preference_why,
    row_by_row(_read_preference, _PAIR),
    item_by_item(_write_preference),
)
