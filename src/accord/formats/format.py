"""What a format is: how its rows are recognised, read as items, and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accord.errors import DataError
from accord.formats.item import CannotSay, Item, turns_of
from accord.formats.judging_columns import looks_meant, unused_judgements, unused_parts
from accord.formats.rows import InputRow, OnReject, reject_of

Fields = Mapping[str, Any]
#: Called with the reason for each item that a format has no words for.
OnLeftOut = Callable[[str], None]
ItemReader = Callable[[Iterable[InputRow], OnReject], Iterator[Item]]
ItemWriter = Callable[[Iterable[Item], OnLeftOut], Iterator[Fields]]


@dataclass(frozen=True)
class Format:
    """A row of the table of formats.

    ``fields`` are the format's own; others of a row are kept in ``extra``. ``matches`` says in words why a row looks
    like this format, "" where it does not. ``read`` and ``write`` are made by `row_by_row` and `item_by_item`, unless
    rows hang together; None where one way makes no sense. ``main`` names the kinds of items that people come to the
    format for, where it also holds others. ``optional``: texts that may be empty or missing alike. ``reads_too``:
    formats whose rows it reads as well, for files that mix them with its own. ``joined``: several rows make an item,
    and none of them can be left out. ``used``: the columns of a row that are read, where that depends on the row; by
    default ``fields``. ``understood``: columns that look like a judgement and add none to what is read, kept in
    ``extra``. ``settled`` looks at the first rows and raises DataError where they can be read in two ways.
    ``part_by_part``: its rows may hold the prompt in several columns, and no such column may be left unread.
    """

    name: str
    title: str
    fields: frozenset[str]
    matches: Callable[[Fields], str]
    read: ItemReader | None
    write: ItemWriter | None
    main: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    reads_too: tuple[str, ...] = ()
    joined: bool = False
    used: Callable[[Fields], Collection[str]] | None = None
    understood: frozenset[str] = frozenset()
    settled: Callable[[Sequence[Fields]], None] | None = None
    part_by_part: bool = False

    def unused(self, fields: Fields) -> list[str]:
        """Return the columns of a row that would be lost and look like a judgement, or like a part of its prompt."""
        used = self.fields if self.used is None else self.used(fields)
        judged = [name for name in unused_judgements(fields, used) if name not in self.understood]
        return judged + (unused_parts(fields, used) if self.part_by_part else [])


def row_by_row(
    read: Callable[[InputRow], Iterable[Item]], fields: Iterable[str] | Callable[[Fields], Collection[str]]
) -> ItemReader:
    """Return a reader of rows that stand each for itself. What is not among ``fields`` goes into ``extra``."""
    fixed = frozenset[str]() if callable(fields) else frozenset(fields)

    def reader(rows: Iterable[InputRow], on_reject: OnReject) -> Iterator[Item]:
        for row in rows:
            try:
                found = list(read(row))
            except DataError as error:
                on_reject(reject_of(error, row.where, row.shown()))
                continue
            known = fields(row.fields) if callable(fields) else fixed
            # Kept, so that a file which goes through Accord loses no column.
            extra = {name: value for name, value in row.fields.items() if name not in known and value is not None}
            if isinstance(extra.get(FOLDED), dict):
                extra |= extra.pop(FOLDED)
            besides = _taken(row, extra)
            for item in found:
                said: dict[str, Any] = {name: value for name, value in besides.items() if not getattr(item, name)}
                kept = {**{name: value for name, value in extra.items() if name not in besides}, **item.extra}
                yield replace(item, **said, extra=kept, where=row.where, row=row.fields)

    return reader


#: The column that holds as one object what would be taken for a judgement under its own name, and is none here.
FOLDED = "extra"


def fold_meant(extra: Fields) -> Fields:
    """Return further columns, with those in one object that would be taken for a judgement when they are read."""
    meant = {name: value for name, value in extra.items() if looks_meant(name)}
    others = {name: value for name, value in extra.items() if name not in meant}
    return {**others, FOLDED: meant} if meant else others


#: What stands beside a judgement under one name in every format that takes further fields: who, when, about what.
BESIDES = ("topic", "origin", "annotator", "created_at")


def _taken(row: InputRow, extra: Fields) -> dict[str, str]:
    """Return what stands beside a judgement in a row whose format has no word for it."""
    found = {name: extra[name] for name in BESIDES[:2] if isinstance(extra.get(name), str)}
    try:
        named = {
            name: read(name) for name, read in (("annotator", row.name), ("created_at", row.moment)) if name in extra
        }
    except DataError:
        return found  # under that name the file has something else
    return found | named


def _besides(item: Item, row: Fields) -> Fields:
    """Return what a written row would lose of an item: who said it and when, and what the one completion was rated."""
    said: dict[str, Any] = {name: getattr(item, name) for name in BESIDES if getattr(item, name) and name not in row}
    if len(item.completions) == 1 and item.ratings and "rating" not in row:
        said |= {"rating": item.ratings[0]} | ({"scale": list(item.scale)} if item.scale else {})
    return said | ({"axis": item.axis} if item.axis and "axis" not in row else {})


def item_by_item(
    write: Callable[[Item], Iterable[Fields]], fields: Iterable[str] = (), *, uniform: bool = False
) -> ItemWriter:
    """Return a writer of items that stand each for itself.

    Args:
        write: The rows of an item. Raises `CannotSay` where the format has no words for it.
        fields: The format's own fields; others are added from ``extra``. None: nothing is added.
        uniform: Prompts are all texts or all messages, as the first one is. Texts become messages; the other way no.
    """
    known = frozenset(fields)

    def writer(items: Iterable[Item], on_left_out: OnLeftOut) -> Iterator[Fields]:
        is_text: bool | None = None
        for item in items:
            try:
                formed = item if is_text is None else _formed(item, is_text)
                found = list(write(formed))
            except CannotSay as reason:
                on_left_out(str(reason))
                continue
            is_text = _is_text(formed) if uniform else None
            extra = fold_meant({name: value for name, value in item.extra.items() if name not in known})
            for row in found:
                yield {**row, **_besides(item, row), **extra} if known else row

    return writer


def _is_text(item: Item) -> bool:
    return isinstance(item.completions[0] if item.prompt is None else item.prompt, str)


def _formed(item: Item, is_text: bool) -> Item:
    if _is_text(item) == is_text:
        return item
    if is_text or item.prompt is None:
        raise CannotSay("texts and messages cannot stand in one file, and its first row is text (--messages mends it)")
    return replace(item, prompt=turns_of(item.prompt))


def uniform(items: Iterable[Item], on_left_out: OnLeftOut) -> Iterator[Item]:
    """Yield items whose prompts are all texts or all messages, as that of the first one: texts become messages."""
    is_text: bool | None = None
    for item in items:
        is_text = _is_text(item) if is_text is None else is_text
        try:
            yield _formed(item, is_text)
        except CannotSay as reason:
            on_left_out(str(reason))


def has(fields: Fields, /, **types: type | tuple[type, ...]) -> bool:
    """Return whether the fields are there and of these types."""
    return all(isinstance(fields.get(name), kind) for name, kind in types.items())


def all_messages(value: Any, role: str = "role", content: str = "content") -> bool:
    """Return whether a value is a list of messages, by the first of them."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and {role, content} <= value[0].keys()
