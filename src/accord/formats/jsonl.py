"""A user's own data: one JSON object a line.

* demonstrations: ``{"prompt": "...", "completion": "..."}``
* prompts: ``{"prompt": "..."}``
* rankings: ``{"prompt": "...", "completions": ["...", "..."], "ranks": [1, 2]}``, 1 = best, equal = tie, null = not
  judged, as if the completion were not there; or pairs: ``{"prompt": "...", "chosen": "...", "rejected": "..."}``.
  Either of two completions may say how clear the choice was: ``"strength"`` (significantly or much, better, slightly,
  negligibly or barely), ``"margin"`` (a number) or ``"probability"`` (0.5 to 1, that the better one is better)
* labels: ``{"prompt": "...", "completion": "...", "label": true}``, true = good; or
  ``{"prompt": "...", "completions": ["...", "..."], "unacceptable": [false, true]}``
* ratings: ``{"prompt": "...", "completion": "...", "rating": 4}``
* texts: ``{"text": "..."}``

For chat models a prompt may be a list of messages, ``[{"role": "user", "content": "..."}]``, and a completion then a
text or a list with one message of the assistant's. Such a row is rendered to text as it is read, by the model's
template. Demonstrations may also be whole conversations, ``{"messages": [...]}``: every turn of the assistant's counts.

``topic`` (unit of splitting), ``weight`` (> 0), ``origin`` and ``group`` may be added; other fields are ignored. Lines
of one group judge completions of one prompt, by several people or pair by pair: the reward stage scores each text once
and keeps them in one batch element. The text is UTF-8, with or without BOM and CRLF, plain or gzip (told by content,
not by name). Empty lines are skipped. Every fault is a ``DataError`` that names file, line and field.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, TypeVar

from accord.errors import DataError
from accord.files import write_bytes
from accord.formats.rows import kind_of, parse_object
from accord.records import JudgedGroup, RankedGroup, Strength

T = TypeVar("T")

_GZIP_MAGIC = b"\x1f\x8b"


Messages = list[dict[str, Any]]


class Chat(Protocol):
    """What makes texts of messages: a model's chat template (`accord.text.template.ChatTemplate`)."""

    def prompt(self, messages: Messages) -> str: ...

    def reply(self, messages: Messages, content: str) -> str: ...


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn from, and where it stands; the assistant's turns from ``counted_from`` on count."""

    messages: Messages
    where: str
    counted_from: int = 0


@dataclass(frozen=True)
class PromptRow:
    """A prompt to complete; ``topic`` is the unit of splitting, "" where the file names none.

    ``weight`` says how often training draws it: twice as often as one of half the weight.
    """

    text: str
    topic: str = ""
    weight: float = 1.0


def read_demonstrations(path: Path | str, chat: Chat | None = None) -> list[tuple[str, str]]:
    """(prompt, completion) of every line. Spaces are kept: a completion after ``...:`` usually starts with one.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """

    def pair(row: _Row) -> tuple[str, str]:
        return row.prompt(chat), row.completion('"completion"', row.field("completion"), chat)

    return _read(path, pair, _DEMONSTRATION)


def read_lessons(path: Path | str) -> list[tuple[str, str] | Conversation]:
    """What a policy is to imitate: (prompt, completion) where both are texts, else the whole conversation.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(path, _lesson, _DEMONSTRATION)


def read_prompts(path: Path | str, chat: Chat | None = None) -> list[PromptRow]:
    """The prompts of a file; lines of demonstrations or rankings will do.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(path, lambda row: PromptRow(row.prompt(chat), row.label("topic"), _weight(row)), _PROMPT)


def read_texts(path: Path | str) -> list[str]:
    """The texts of a file.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(path, lambda row: row.text("text"), '{"text": "..."}')


def read_rankings(path: Path | str, chat: Chat | None = None) -> list[RankedGroup]:
    """The ranked groups of a file; a pair is a group of two. ``origin`` is the file's name where a line names none.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    return _read(path, lambda row: _ranked_group(row, chat), '{"prompt": "...", "chosen": "...", "rejected": "..."}')


def read_judgements(path: Path | str, chat: Chat | None = None) -> list[RankedGroup | JudgedGroup]:
    """The rankings, pairs and labels of a file, which may be mixed.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """

    def judgement(row: _Row) -> RankedGroup | JudgedGroup:
        labelled = "label" in row.fields or ("unacceptable" in row.fields and "ranks" not in row.fields)
        return _judged_group(row, "label", chat) if labelled else _ranked_group(row, chat)

    return _read(path, judgement, '{"prompt": "...", "completion": "...", "label": true}')


def read_judged(path: Path | str, what: Literal["label", "rating"], chat: Chat | None = None) -> list[JudgedGroup]:
    """The completions of a file that were judged one by one: labels as 1 (good) and 0 (bad), or ratings.

    Raises:
        DataError: The file or a line of it is not what it should be.
    """
    value = "true" if what == "label" else "4"
    form = f'{{"prompt": "...", "completion": "...", "{what}": {value}}}'
    return _read(path, lambda row: _judged_group(row, what, chat), form)


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, gzipped where the name ends in ``.gz``. The file appears whole or not at all, and
    the same rows give the same bytes.

    Raises:
        DataError: A row is not JSON (not-a-number, half of a surrogate pair, an object of another kind).
        ResourceError: The disk does not take it.
    """
    target = Path(path)
    data = b"".join(_line(row, f"{target}:{number}") for number, row in enumerate(rows, 1))
    write_bytes(target, gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)


def _line(row: Mapping[str, Any], where: str) -> bytes:
    try:
        text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the row cannot be written as JSON: {error}", where=where) from error


@contextlib.contextmanager
def at_row(where: str) -> Iterator[None]:
    """A chat template's complaint inside names this row."""
    try:
        yield
    except DataError as error:
        why = f"{error.why} ({error.where})" if error.why else error.where
        raise DataError(error.what, where=where, why=why, hint=error.hint) from error


# -- lines -------------------------------------------------------------------------------------------------------------

_DEMONSTRATION = '{"prompt": "...", "completion": "..."}'
_PROMPT = '{"prompt": "..."}'


@dataclass(frozen=True)
class _Row:
    """One parsed line and where it stands. Its getters check one field each."""

    fields: Mapping[str, Any]
    path: Path
    number: int
    form: str

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"

    def fail(self, what: str, hint: str = "") -> NoReturn:
        raise DataError(what, where=self.where, hint=hint or f"write lines like {self.form}")

    def field(self, name: str) -> Any:
        if name not in self.fields:
            self.fail(f'"{name}" is missing')
        return self.fields[name]

    def text(self, name: str) -> str:
        return self.string(f'"{name}"', self.field(name))

    def prompt(self, chat: Chat | None) -> str:
        """The prompt as text; that of a whole conversation ends before the assistant's last words."""
        if "prompt" not in self.fields and "messages" in self.fields:
            said = self.messages("messages")
            while len(said) > 1 and said[-1]["role"] == "assistant":
                said = said[:-1]
            return self.asked("messages", said, chat)
        if not isinstance(self.field("prompt"), list):
            return self.text("prompt")
        return self.asked("prompt", self.messages("prompt"), chat)

    def asked(self, name: str, said: Messages, chat: Chat | None) -> str:
        """Messages that somebody is to answer, as text."""
        if said[-1]["role"] == "assistant":
            self.fail(f'"{name}" ends with what the assistant said', "end the prompt with what the assistant answers")
        return self.rendered(said, chat)

    def completion(self, shown: str, value: Any, chat: Chat | None) -> str:
        """A completion as text; to a prompt of messages it is what the assistant writes to say it."""
        if not isinstance(self.field("prompt"), list):
            return self.string(shown, value)
        said = self.turns(shown, value)
        if len(said) != 1 or said[0]["role"] != "assistant":
            self.fail(f"{shown} is not one message of the assistant's", 'write a text or [{"role": "assistant", ...}]')
        asked, template = self.messages("prompt"), self.template(chat)
        with at_row(self.where):
            return template.reply(asked, said[0]["content"])

    def rendered(self, asked: Messages, chat: Chat | None) -> str:
        template = self.template(chat)
        with at_row(self.where):
            return template.prompt(asked)

    def template(self, chat: Chat | None) -> Chat:
        if chat is None:
            self.fail(
                "the prompt is a list of messages, but there is no chat template to render it",
                "give a model folder that has a chat_template, or write the prompt as text",
            )
        return chat

    def messages(self, name: str) -> Messages:
        return self.turns(f'"{name}"', self.items(name))

    def turns(self, shown: str, value: Any) -> Messages:
        """Messages with role and content; a text is what the assistant said."""
        found = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
        if not found:
            self.fail(f"{shown} holds no messages")
        for i, message in enumerate(found):
            if not isinstance(message, dict):
                self.fail(f"{shown}[{i}] is {kind_of(message)}, not a message", _MESSAGE)
            role = self.string(f'"role" of {shown}[{i}]', message.get("role"))
            if role == "assistant" or message.get("content") != "":  # an empty system prompt is a choice
                self.string(f'"content" of {shown}[{i}]' if value is found else shown, message.get("content"))
        return found

    def label(self, name: str, default: str = "") -> str:
        value = self.fields.get(name)
        return default if value is None or value == "" else self.string(f'"{name}"', value)

    def string(self, shown: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(f"{shown} is {kind_of(value)}, not a string")
        if not value.strip():
            self.fail(f"{shown} is empty", "write a text there or remove the line")
        if any("\ud800" <= char <= "\udfff" for char in value):
            self.fail(f"{shown} holds half of a surrogate pair", "write the file again as UTF-8")
        return value

    def number_at(self, shown: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{shown} is {kind_of(value)}, not a number", "write numbers without quotes; of ranks 1 is best")
        if not abs(value) <= 1e15:
            self.fail(f"{shown} is too large or not a number", "write a finite number; of ranks 1 is best")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        value = self.fields.get(name)
        return None if value is None else self.number_at(f'"{name}"', value)

    def truth(self, shown: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.fail(f"{shown} is {kind_of(value)}, not true or false", "write true or false, without quotes")
        return value

    def items(self, name: str) -> list[Any]:
        if name not in self.fields:
            self.fail(f'"{name}" is missing', 'a ranking needs "prompt", "completions" and "ranks"')
        value = self.fields[name]
        if not isinstance(value, list):
            self.fail(f'"{name}" is {kind_of(value)}, not a list')
        return value


_MESSAGE = 'write messages like {"role": "user", "content": "..."}'


def _lesson(row: _Row) -> tuple[str, str] | Conversation:
    if "messages" in row.fields:
        found = Conversation(row.messages("messages"), row.where)
    elif isinstance(row.field("prompt"), list):
        prompt = row.messages("prompt")
        found = Conversation(prompt + row.turns('"completion"', row.field("completion")), row.where, len(prompt))
    else:
        return row.text("prompt"), row.text("completion")
    if not any(message["role"] == "assistant" for message in found.messages[found.counted_from :]):
        row.fail("no message of the assistant's to learn from", 'its role must be "assistant"')
    return found


def _ranked_group(row: _Row, chat: Chat | None) -> RankedGroup:
    if "completions" in row.fields or "ranks" in row.fields:
        completions, ranks = _group(row, chat)
    elif "chosen" in row.fields or "rejected" in row.fields:
        completions, ranks = _pair(row, chat)
    else:
        row.fail(
            'neither "completions" and "ranks" nor "chosen" and "rejected" are there',
            f'write lines like {row.form} or {{"prompt": "...", "completions": ["...", "..."], "ranks": [1, 2]}}',
        )
    clear = len(ranks) == 2 and ranks[0] != ranks[1]
    return RankedGroup(
        prompt=row.prompt(chat),
        completions=completions,
        ranks=ranks,
        origin=row.label("origin", row.path.name),
        topic=row.label("topic"),
        weight=_weight(row),
        group=row.label("group"),
        strength=_strength(row) if clear else None,
        margin=row.optional_number("margin") if clear else None,
        probability=_probability(row) if clear else None,
    )


def _pair(row: _Row, chat: Chat | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    chosen, rejected = (row.completion(f'"{name}"', row.field(name), chat) for name in ("chosen", "rejected"))
    if chosen == rejected:
        row.fail('"chosen" and "rejected" are the same text', "remove the line: it says nothing")
    return (chosen, rejected), (1.0, 2.0)


def _group(row: _Row, chat: Chat | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    texts = enumerate(row.items("completions"))
    completions = tuple(row.completion(f'"completions"[{i}]', text, chat) for i, text in texts)
    given = row.items("ranks")
    ranks = tuple(row.number_at(f'"ranks"[{i}]', rank) for i, rank in enumerate(given) if rank is not None)
    if len(completions) < 2:
        row.fail(f'"completions" has {len(completions)} texts', "a ranking needs at least 2")
    if len(given) != len(completions):
        row.fail(f"{len(given)} ranks for {len(completions)} completions", "give one rank per completion, 1 = best")
    if len(ranks) < 2:
        row.fail(f'"ranks" ranks {len(ranks)} of {len(given)} completions', "a ranking needs at least 2")
    if min(ranks) < 1:
        row.fail(f'"ranks" holds {min(ranks):g}', "ranks start at 1 = best; equal ranks are a tie")
    return tuple(text for text, rank in zip(completions, given, strict=True) if rank is not None), ranks


def _judged_group(row: _Row, what: str, chat: Chat | None) -> JudgedGroup:
    if what == "label" and "unacceptable" in row.fields:
        texts, flags = row.items("completions"), row.items("unacceptable")
        completions = tuple(row.completion(f'"completions"[{i}]', text, chat) for i, text in enumerate(texts))
        values = tuple(1.0 - row.truth(f'"unacceptable"[{i}]', flag) for i, flag in enumerate(flags))
        if not completions or len(values) != len(completions):
            row.fail(f'{len(values)} "unacceptable" for {len(completions)} completions', "give one per completion")
    else:
        completions = (row.completion('"completion"', row.field("completion"), chat),)
        value = row.field(what)
        values = (float(row.truth('"label"', value)) if what == "label" else row.number_at(f'"{what}"', value),)
    return JudgedGroup(
        prompt=row.prompt(chat),
        completions=completions,
        values=values,
        origin=row.label("origin", row.path.name),
        topic=row.label("topic"),
        weight=_weight(row),
        group=row.label("group"),
    )


_STRENGTHS: Mapping[str, Strength] = {
    "significantly": "significantly",
    "much": "significantly",
    "better": "better",
    "slightly": "slightly",
    "negligibly": "negligibly",
    "barely": "negligibly",
}


def _strength(row: _Row) -> Strength | None:
    said = row.label("strength")
    if said and said not in _STRENGTHS:
        row.fail(f'"strength" is {said!r}', "write one of " + ", ".join(_STRENGTHS))
    return _STRENGTHS.get(said)


def _probability(row: _Row) -> float | None:
    value = row.optional_number("probability")
    if value is not None and not 0.5 <= value <= 1:
        row.fail(f'"probability" is {value:g}', "write 0.5 to 1: how sure it is that the better completion is better")
    return value


def _weight(row: _Row) -> float:
    weight = row.optional_number("weight")
    if weight is None:
        return 1.0
    if weight <= 0:
        row.fail(f'"weight" is {weight:g}', "write a number above 0, or remove the line")
    return weight


# -- files -------------------------------------------------------------------------------------------------------------


def _read(path: Path | str, parse: Callable[[_Row], T], form: str) -> list[T]:
    found = [parse(row) for row in _rows(Path(path), form)]
    if not found:
        raise DataError("the file has no lines", where=str(path), hint=f"write lines like {form}")
    return found


def _rows(path: Path, form: str) -> Iterator[_Row]:
    # Lines end at \n alone: str.splitlines would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if line.strip():
            yield _Row(_object(line, f"{path}:{number}", form), path, number, form)


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), hint="check the path") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path), hint="check the file") from error
    return data.removeprefix(b"\xef\xbb\xbf")


def _object(line: bytes, where: str, form: str) -> dict[str, Any]:
    hint = "the file looks like one JSON array; " if line.lstrip().startswith(b"[") else ""
    return parse_object(line, where, f"{hint}write one object a line, like {form}")
