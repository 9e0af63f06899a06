"""Plain tables under whatever names their columns have.

A question and an answer, a better and a worse one, or two and which of them is better (1, 2, or 0 for a tie).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accord.formats.format import Fields, Format, row_by_row
from accord.formats.item import Item
from accord.formats.rows import InputRow

_PROMPTS = ("prompt", "question", "instruction", "input", "query", "post")
_COMPLETIONS = ("completion", "response", "answer", "output", "reply")
_CHOSEN = (("chosen", "rejected"), ("preferred", "dispreferred"), ("better", "worse"))
_TWO = (("output_1", "output_2"), ("response_1", "response_2"), ("answer1", "answer2"), ("response_a", "response_b"))
_CHOICES = ("label", "preference", "choice", "winner")
_COLUMNS = frozenset((*_PROMPTS, *_COMPLETIONS, *(name for two in _CHOSEN + _TWO for name in two), *_CHOICES))
# 0 for a tie, as here and there 1.5: the mean of the ranks.
_WINNERS: Mapping[Any, tuple[int, int]] = {1: (1, 2), 2: (2, 1), 0: (1, 1), 1.5: (1, 1)}


def _first(fields: Fields, names: Iterable[str]) -> str:
    return next((name for name in names if isinstance(fields.get(name), str)), "")


def _two(fields: Fields, table: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    return next((two for two in table if all(isinstance(fields.get(name), str) for name in two)), None)


def _choice(fields: Fields) -> str:
    """Return the column that says 1, 2, or 0 (1.5) for a tie."""
    return next((name for name in _CHOICES if isinstance(fields.get(name), int | float) and name in fields), "")


def _plain_why(fields: Fields) -> str:
    prompt = _first(fields, _PROMPTS)
    if prompt and (two := _two(fields, _TWO)) and _choice(fields):
        return f'"{prompt}", "{two[0]}", "{two[1]}", and "{_choice(fields)}" says which is better'
    if prompt and (two := _two(fields, _CHOSEN)):
        return f'"{prompt}", "{two[0]}" and "{two[1]}"'
    completion = _first(fields, _COMPLETIONS)
    return f'"{prompt}" and "{completion}"' if prompt and completion and prompt != completion else ""


def _read_plain(row: InputRow) -> Iterable[Item]:
    fields = row.fields
    prompt = _first(fields, _PROMPTS)
    if not prompt:
        row.fail("prompt", "is missing", f"name a column one of {', '.join(_PROMPTS)}")
    used = {prompt}
    if two := _two(fields, _TWO):
        name = _choice(fields) or row.fail("label", "is missing", "write 1 or 2 for the better one, 0 for a tie")
        ranks = _WINNERS.get(fields[name])
        # True is 1 in Python; in a table of choices it is another column.
        if ranks is None or isinstance(fields[name], bool):
            row.fail(name, f"is {fields[name]!r}", "write 1 or 2 for the better one, 0 for a tie")
        judged: dict[str, Any] = {"ranks": ranks}
        used |= {*two, name}
    elif two := _two(fields, _CHOSEN):
        judged = {"ranks": (1, 2)}
        used |= set(two)
    else:
        only = _first(fields, _COMPLETIONS) or row.fail(
            "completion", "is missing", f"name it {', '.join(_COMPLETIONS)}"
        )
        return [_besides_plain(row, {prompt, only}, prompt, (fields[only],), {"demonstration": True})]
    texts = (fields[two[0]], fields[two[1]])
    if texts[0] == texts[1]:
        row.fail(two[1], f"is the same as {two[0]}", "remove the row: it says nothing")
    return [_besides_plain(row, used, prompt, texts, judged)]


def _besides_plain(row: InputRow, used: set[str], prompt: str, texts: tuple[str, ...], judged: dict[str, Any]) -> Item:
    extra = {name: value for name, value in row.fields.items() if name not in used and value is not None}
    return Item(prompt=row.fields[prompt], completions=texts, extra=extra, **judged)


def prompt_columns(prompt: str, topic: str = "") -> Format:
    """Return the format of a table of prompts alone, by the names of their column and of the topics'.

    All other columns, answers too, are kept beside the prompts and mean nothing.
    """

    def read(row: InputRow) -> Iterable[Item]:
        said = row.text_or_messages(prompt)
        if isinstance(said, str) and not said.strip():
            row.fail(prompt, "is empty", "write what was asked, or leave the row out")
        named = row.fields.get(topic) if topic else None
        # A number is a name too: categories are often counted.
        return [Item(prompt=said, topic="" if named is None else str(named))]

    own = frozenset(filter(None, (prompt, topic)))
    return Format("prompts", "a table of prompts", own, lambda fields: "", row_by_row(read, own), None, ("prompt",))


PLAIN = Format("plain", "a plain table", _COLUMNS, _plain_why, row_by_row(_read_plain, _COLUMNS), None)
