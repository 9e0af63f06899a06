"""What the stages read of a file of any known format: prompts, demonstrations, judgements, texts.

A file is recognised by its rows, as by ``accord import`` (`accord.formats.table.FORMATS`). Who knows better names
the format, before the path as in ``my_formats:QA:rows.txt`` (`accord.formats.table.input_file`) or as ``format``.
Accord's own rows, one JSON object a line:

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
template; so are dialogues of other formats. Demonstrations may also be whole conversations, ``{"messages": [...]}``:
every turn of the assistant's counts.

``topic`` (unit of splitting), ``weight`` (> 0), ``origin`` and ``group`` may be added; other columns are ignored. Lines
of one group judge completions of one prompt, by several people or pair by pair: the reward stage scores each text once
and keeps them in one batch element. Empty lines are skipped. Every fault is a ``DataError`` that names file, line and
column: a stage leaves no row out.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from accord.errors import DataError
from accord.files import format_said
from accord.formats import own, samples
from accord.formats.format import Fields, row_by_row
from accord.formats.item import CannotSay, Item, TextOrTurns, Turns, reply_of, turns_of
from accord.formats.judging_columns import unused_judgements, unused_parts
from accord.formats.reading import Reading
from accord.formats.rows import InputRow, json_kind, refuse
from accord.formats.source import container_of, rows
from accord.formats.table import PLAIN_FILES, Detected, detect, format_named, sample_of
from accord.formats.unreadable import left_unread, proposed
from accord.records import JudgedGroup, RankedGroup

MessageList = list[dict[str, Any]]
#: The column in which `accord sample` keeps a prompt of messages as its model's template laid it out.
RENDERED = "rendered"
#: Columns that speak of one completion and who wrote it. Beside another completion of the prompt they would lie.
OF_COMPLETION = frozenset(
    ("completion", "model", "logp", "tokens", "finish", "score", "parts", "rank", "best_of", RENDERED)
)


class Chat(Protocol):
    """Makes texts of messages: a model's chat template (`accord.text.template.ChatTemplate`)."""

    def prompt(self, messages: MessageList) -> str: ...

    def reply(self, messages: MessageList, content: str) -> str: ...


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn from, and where it stands; the assistant's turns from ``counted_from`` on count."""

    messages: MessageList
    where: str
    counted_from: int = 0


@dataclass(frozen=True)
class PromptRow:
    """A prompt to complete; ``topic`` is the unit of splitting, "" where the file names none.

    ``weight`` says how often training draws it: twice as often as one of half the weight. ``asked`` is the prompt as
    the row has it, a text or messages, and ``besides`` holds the columns that nobody asked for.
    """

    text: str
    topic: str = ""
    weight: float = 1.0
    asked: TextOrTurns = field(default="", compare=False, repr=False)
    besides: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class CompletedRow:
    """A completion as a model reads it, ``prompt`` and ``completion``, and the row to write of it with what is added.

    ``row`` is the whole row where it holds one completion, else the prompt as it was asked, one completion, its topic
    and the columns that nobody asked for.
    """

    prompt: str
    completion: str
    row: Mapping[str, Any]

    @property
    def pair(self) -> tuple[str, str]:
        return self.prompt, self.completion


@dataclass(frozen=True)
class RankedRow:
    """A ranked group with what a report tells apart by.

    ``asked`` is the prompt as the row has it, a text or messages; ``annotator`` is "" where the row names nobody;
    ``besides`` holds the columns that nobody asked for.
    """

    group: RankedGroup
    asked: TextOrTurns = field(default="", repr=False)
    annotator: str = ""
    besides: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class JudgedRow:
    """Completions that somebody judged one by one, with what a report tells apart by: as a `RankedRow`."""

    group: JudgedGroup
    asked: TextOrTurns = field(default="", repr=False)
    annotator: str = ""
    besides: Mapping[str, Any] = field(default_factory=dict, repr=False)


@contextlib.contextmanager
def at_row(where: str) -> Iterator[None]:
    """Let a chat template's complaint inside name this row."""
    try:
        yield
    except DataError as error:
        why = f"{error.why} ({error.where})" if error.why else error.where
        raise DataError(error.what, where=where, why=why, hint=error.hint) from error


# -- what stages ask for -----------------------------------------------------------------------------------------------


def read_prompts(path: Path | str, chat: Chat | None = None, format: str | None = None) -> list[PromptRow]:
    """Return the prompts of a file, whatever else its rows hold.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    found = []
    for said in _said(path, "prompts", format):
        asked = said.prompt_alone
        found.append(PromptRow(said.asked(asked, chat), said.topic, said.item.weight, asked, said.item.extra))
    return found


def read_demonstrations(path: Path | str, chat: Chat | None = None, format: str | None = None) -> list[tuple[str, str]]:
    """Return (prompt, completion) of every demonstration. Spaces are kept: a completion often starts with one.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    found = []
    for said in _said(path, "demonstrations", format):
        prompt, completions = said.last_turn()
        found.append((said.asked(prompt, chat), said.reply(prompt, completions[0], chat)))
    return found


def read_completions(path: Path | str, chat: Chat | None = None, format: str | None = None) -> list[tuple[str, str]]:
    """Return (prompt, completion) of every completion in a file, whatever was said of it.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    return [row.pair for row in read_completed(path, chat, format)]


def read_completed(path: Path | str, chat: Chat | None = None, format: str | None = None) -> list[CompletedRow]:
    """Return every completion in a file with the row that it stands in.

    Where `accord sample` wrote down how a prompt of messages was laid out (``RENDERED``), that text is the prompt: the
    completion answers it, whatever template is at hand.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    found = []
    for said in _said(path, "completions", format):
        prompt, completions = said.last_turn()
        for text in completions:
            found.append(CompletedRow(*said.as_seen(prompt, text, chat), said.row_of(prompt, text)))
    return found


def read_lessons(path: Path | str, format: str | None = None) -> list[tuple[str, str] | Conversation]:
    """Return what a policy is to imitate: (prompt, completion) where both are texts, else the whole conversation.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    return [said.lesson() for said in _said(path, "lessons", format)]


def read_texts(path: Path | str, format: str | None = None) -> list[str]:
    """Return the texts of a file; a demonstration in plain text is one, from its prompt on.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    return [said.whole_text() for said in _said(path, "texts", format)]


def read_rankings(path: Path | str, chat: Chat | None = None, format: str | None = None) -> list[RankedGroup]:
    """Return the ranked groups of a file; a pair is a group of two. Without an ``origin`` it is the file's name.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    return [said.ranked_group(chat) for said in _said(path, "rankings", format)]


def read_ranked_rows(path: Path | str, chat: Chat | None = None, format: str | None = None) -> list[RankedRow]:
    """Return the ranked groups of a file as `read_rankings` does, each with who ranked it and its other columns.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    return [
        RankedRow(said.ranked_group(chat), said.prompt_alone, said.item.annotator, said.item.extra)
        for said in _said(path, "rankings", format)
    ]


def read_judgements(
    path: Path | str, chat: Chat | None = None, format: str | None = None
) -> list[RankedGroup | JudgedGroup]:
    """Return the rankings, pairs and labels of a file, which may be mixed.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    return [
        said.ranked_group(chat) if said.item.kind == "ranking" else said.judged_group(said.item.labels, chat)
        for said in _said(path, "judgements", format)
    ]


def read_judged(
    path: Path | str, what: Literal["label", "rating"], chat: Chat | None = None, format: str | None = None
) -> list[JudgedGroup]:
    """Return the completions that were judged one by one: labels as 1 (good) and 0 (bad), or ratings.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    found = _said(path, f"{what}s", format)
    return [said.judged_group(said.item.labels if what == "label" else said.item.ratings, chat) for said in found]


def read_judged_rows(
    path: Path | str, what: Literal["label", "rating"], chat: Chat | None = None, format: str | None = None
) -> list[JudgedRow]:
    """Return what `read_judged` does, each with who judged it and its other columns.

    Raises:
        DataError: The file or a row of it is not what it should be.
    """
    return [
        JudgedRow(
            said.judged_group(said.item.labels if what == "label" else said.item.ratings, chat),
            said.prompt_alone,
            said.item.annotator,
            said.item.extra,
        )
        for said in _said(path, f"{what}s", format)
    ]


# -- one item as a stage wants it --------------------------------------------------------------------------------------

_END = "end the prompt with what the assistant answers"
_EMPTY = "write a text there or remove the row; `accord import FILE -o ROWS` leaves such rows out and counts them"
_NO_TEMPLATE = "give a model folder that has a chat_template, or write the prompt as text"


@dataclass(frozen=True)
class _Said:
    """One item of a file. What a stage cannot read of it is a DataError with its row and column."""

    item: Item
    path: Path

    @property
    def topic(self) -> str:
        """The unit of splitting: what the row calls so; of Open-Assistant the tree, whose prompts begin alike."""
        # A tree's prompts share their beginnings: apart, they would stand in train and test.
        named = (self.item.topic, self.item.extra.get("topic"), self.item.extra.get("message_tree_id"))
        return next((name for name in named if name and isinstance(name, str)), "")

    @property
    def prompt_alone(self) -> TextOrTurns:
        """The prompt; that of a whole conversation ends before the assistant's last words."""
        if self.item.prompt is not None:
            return self.item.prompt
        said = self.messages(self.item.completions[0])
        while len(said) > 1 and said[-1]["role"] == "assistant":
            said = said[:-1]
        return said

    def fail(self, what: str, hint: str) -> NoReturn:
        raise DataError(what, where=self.item.where or str(self.path), hint=hint)

    def column(self, text: object, otherwise: str = "a text") -> str:
        """Return the column that holds a text, in quotes."""
        for name, value in self.item.row.items():
            if value is text or value == text:
                return f'"{name}"'
            if isinstance(value, list) and text in value:
                return f'"{name}[{value.index(text)}]"'
        return otherwise

    def text(self, text: str) -> str:
        if not text.strip():
            self.fail(f"{self.column(text)} is empty", _EMPTY)
        return text

    def messages(self, messages: TextOrTurns) -> Turns:
        """Return messages that a template can render: all of text, none of them empty but a system prompt by choice."""
        for i, message in enumerate(turns_of(messages)):
            content, where = message.get("content"), f"message {i + 1} of {len(messages)}"
            if not isinstance(content, str):
                self.fail(
                    f"{where}: its content is {json_kind(content)}, not a string", "only texts can be learned from"
                )
            if not message["role"].strip():
                self.fail(f"{where}: its role is empty", "write user, assistant or system")
            if not content.strip() and (content or message["role"] == "assistant"):
                self.fail(f"{self.column(content, where)} is empty", _EMPTY)
        return turns_of(messages)

    def asked(self, prompt: TextOrTurns, chat: Chat | None) -> str:
        """Return a prompt as the model sees it."""
        if isinstance(prompt, str):
            return self.text(prompt)
        said = self.messages(prompt)
        if said[-1]["role"] == "assistant":
            self.fail(f"{self._prompt_column} ends with what the assistant said", _END)
        template = self.template(chat)
        with at_row(self.item.where):
            return template.prompt(_turns(said))

    def as_seen(self, prompt: TextOrTurns, completion: TextOrTurns, chat: Chat | None) -> tuple[str, str]:
        """Return prompt and completion as the model that wrote it saw them, where the row says so; else as this one."""
        rendered = self.item.extra.get(RENDERED)
        if isinstance(rendered, str) and not isinstance(prompt, str):
            with contextlib.suppress(CannotSay):
                return rendered, reply_of(completion)
        return self.asked(prompt, chat), self.reply(prompt, completion, chat)

    def row_of(self, prompt: TextOrTurns, completion: TextOrTurns) -> dict[str, Any]:
        """Return the row of one completion: as it stands in the file, or made of what a row of several says."""
        if {"prompt", "completion"} <= self.item.row.keys():
            return dict(self.item.row)
        topic = {"topic": self.topic} if self.topic else {}
        return {"prompt": plain_rows(prompt), "completion": plain_rows(completion), **topic, **self.item.extra}

    def reply(self, prompt: TextOrTurns, completion: TextOrTurns, chat: Chat | None) -> str:
        """Return a completion as the model writes it."""
        if isinstance(completion, str):
            return self.text(completion)
        said = self.messages(completion)
        if len(said) != 1 or said[0]["role"] != "assistant":
            column = self.column([dict(message) for message in completion], "a completion")
            self.fail(f"{column} is not one message of the assistant's", 'write a text or [{"role": "assistant", ...}]')
        template = self.template(chat)
        with at_row(self.item.where):
            return template.reply(_turns(prompt), said[0]["content"])

    def template(self, chat: Chat | None) -> Chat:
        if chat is None:
            what = f"{self._prompt_column} is a list of messages, but there is no chat template to render it"
            self.fail(what, _NO_TEMPLATE)
        return chat

    @property
    def _prompt_column(self) -> str:
        return next((f'"{name}"' for name in ("prompt", "messages") if name in self.item.row), "the prompt")

    def last_turn(self) -> tuple[TextOrTurns, Sequence[TextOrTurns]]:
        """Return the prompt and its completions.

        Of a whole conversation what the assistant says last, to all before.
        """
        if self.item.prompt is not None:
            return self.item.prompt, self.item.completions
        said = self.messages(self.item.completions[0])
        if len(said) < 2 or said[-1]["role"] != "assistant":
            self.fail("the conversation does not end with what the assistant answers", _END)
        return said[:-1], (said[-1:],)

    def lesson(self) -> tuple[str, str] | Conversation:
        prompt, completion = self.item.prompt, self.item.completions[0]
        if isinstance(prompt, str) and isinstance(completion, str):
            return self.text(prompt), self.text(completion)
        before = () if prompt is None else self.messages(prompt)
        learned = self.messages(completion)
        if not any(message["role"] == "assistant" for message in learned):
            self.fail("no message of the assistant's to learn from", 'its role must be "assistant"')
        return Conversation(_turns((*before, *learned)), self.item.where, len(before))

    def whole_text(self) -> str:
        prompt, text = self.item.prompt, self.item.completions[0]
        if not isinstance(text, str) or not isinstance(prompt, str | None):
            self.fail("a conversation is no plain text", 'write rows like {"text": "..."}')
        # Joined without a space: completions bring theirs.
        return self.text(text) if prompt is None else self.text(prompt) + self.text(text)

    def ranked_group(self, chat: Chat | None) -> RankedGroup:
        item, prompt = self.item, self.prompt_alone
        asked = self.asked(prompt, chat)
        # A rank of null: never judged. It is another thing than a tie at the end.
        judged = [(text, rank) for text, rank in zip(item.completions, item.ranks, strict=True) if rank is not None]
        return RankedGroup(
            prompt=asked,
            completions=tuple(self.reply(prompt, text, chat) for text, _ in judged),
            ranks=tuple(float(rank) for _, rank in judged),
            strength=item.strength,
            margin=item.margin,
            probability=item.probability,
            **self._besides(),
        )

    def judged_group(self, values: Sequence[float | bool | None], chat: Chat | None) -> JudgedGroup:
        prompt = self.prompt_alone
        judged = [(text, v) for text, v in zip(self.item.completions, values, strict=True) if v is not None]
        return JudgedGroup(
            prompt=self.asked(prompt, chat),
            completions=tuple(self.reply(prompt, text, chat) for text, _ in judged),
            values=tuple(float(value) for _, value in judged),
            **self._besides(),
        )

    def _besides(self) -> dict[str, Any]:
        item = self.item
        # So that a report can say how many judgements came from which file.
        origin = item.origin or self.path.name
        return {"origin": origin, "topic": self.topic, "weight": item.weight, "group": item.group}


def plain_rows(said: TextOrTurns) -> str | MessageList:
    """Return a text or messages as JSON has them."""
    return said if isinstance(said, str) else _turns(said)


def _turns(messages: TextOrTurns) -> MessageList:
    return [dict(message) for message in turns_of(messages)]


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """What a stage asks of each row: the kinds of items that will do, and the columns of Accord's own that say it.

    ``marks``: a row with a prompt and any of these is meant as such a row. ``whole``: or with this column alone.
    ``imitates``: what is read is learned as it stands, so nothing that somebody judged may be among it.
    """

    kinds: tuple[str, ...]
    form: str
    marks: frozenset[str] = frozenset()
    whole: str = ""
    imitates: bool = False

    def lost(self, fields: Fields) -> list[str]:
        """Return the columns that are a part of the prompt, or judge what would be imitated, and would not be read."""
        if self.whole == "text":
            return []
        # The scores of a row's own sample judge nothing: who fine-tunes on samples has chosen them.
        known = own.ACCORD_FIELDS - _JUDGING | (samples.SCORED if samples.is_sample(fields) else frozenset())
        return unused_parts(fields, known) + (unused_judgements(fields, known) if self.imitates else [])

    def has(self, fields: Fields) -> bool:
        prompted = isinstance(fields.get("prompt"), str | list) and (not self.marks or bool(self.marks & fields.keys()))
        alone = isinstance(fields.get(self.whole), str | list)
        return (prompted and self.whole != "text") or alone


_JUDGING = frozenset(("ranks", "unacceptable", "label", "rating", "chosen", "rejected"))
_ALL = ("ranking", "label", "rating", "demonstration", "sample", "prompt", "conversation", "steps")
_COMPLETED = ("ranking", "label", "rating", "demonstration", "sample", "conversation")
_RANKED = frozenset(("completions", "ranks", "chosen", "rejected"))
_ANSWERED = frozenset(("completion", "completions"))
_PAIR = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
_ANSWER = '{"prompt": "...", "completion": "..."}'
_WANTED: Mapping[str, _Wanted] = {
    "prompts": _Wanted(_ALL, '{"prompt": "..."}', whole="messages"),
    "lessons": _Wanted(("demonstration", "conversation"), _ANSWER, frozenset(("completion",)), "messages", True),
    "demonstrations": _Wanted(("demonstration", "conversation"), _ANSWER, frozenset(("completion",)), imitates=True),
    "completions": _Wanted(_COMPLETED, _ANSWER, frozenset(("completion",))),
    "texts": _Wanted(("text", "demonstration"), '{"text": "..."}', whole="text"),
    "rankings": _Wanted(("ranking",), _PAIR, _RANKED),
    "judgements": _Wanted(("ranking", "label"), _PAIR, _RANKED | {"label", "unacceptable"}),
    "labels": _Wanted(("label",), '{"prompt": "...", "completion": "...", "label": true}', _ANSWERED),
    "ratings": _Wanted(("rating",), '{"prompt": "...", "completion": "...", "rating": 4}', _ANSWERED),
}


def _said(path: Path | str, view: str, format: str | None) -> list[_Said]:
    """Return the items of a file that a stage asks for. Raises DataError for the first row that is something else."""
    format = format_said(path) if format is None else format
    path = Path(path)
    found = [_Said(item, path) for item in _items(path, view, format)]
    _require_one_axis(found, view, path)
    if not found:
        raise DataError(f"the file holds no {view}", where=str(path), hint=f"write rows like {_WANTED[view].form}")
    return found


def _require_one_axis(found: Sequence[_Said], view: str, path: Path) -> None:
    """Refuse judgements of several questions at once: whether the helpful or the safe answer is better, say."""
    axes = Counter(said.item.axis or "(none)" for said in found if said.item.num_judgements)
    if view in ("rankings", "judgements", "labels", "ratings") and len(axes) > 1:
        shown = ", ".join(f"{axis} ({count})" for axis, count in axes.most_common())
        hint = f"take one: accord import {path} -o ONE.jsonl --axis {axes.most_common(1)[0][0]}"
        raise DataError(f"the {view} answer several questions: {shown}", where=str(path), hint=hint)


def _items(path: Path, view: str, format: str | None) -> Iterator[Item]:
    wanted, detected = _WANTED[view], _detected(path, view, format)
    if detected is None:
        read = row_by_row(lambda row: (own.VIEWS[view](row),), own.ACCORD_FIELDS)
        yield from read(map(partial(_require_all_read, view), rows(path, container_of(path), refuse)), refuse)
        return
    main = format_named(detected.format).main
    for item in Reading(path, detected, refuse, None):
        if item.kind in wanted.kinds:
            yield item
        elif not main or item.kind in main:  # others are not what people come to the format for
            _refuse_kind(item, view, detected.format, str(path))


def _require_all_read(view: str, row: InputRow) -> InputRow:
    if lost := _WANTED[view].lost(row.fields):
        raise left_unread(row.where, lost, view, row.fields)
    return row


def _refuse_kind(item: Item, view: str, format: str, path: str) -> NoReturn:
    if format in (own.ACCORD.name, *own.ACCORD.reads_too):
        own.VIEWS[view](InputRow(item.row, item.where))  # names the column that is missing
    raise DataError(
        f"a {item.kind} is not among {view}",
        where=item.where or path,
        why=f"its row has {', '.join(map(_quoted, item.row)) or 'no columns'}, read as {format}",
        hint=f"write rows like {_WANTED[view].form}, or name the format that the file has",
    )


def _quoted(name: str) -> str:
    return f'"{name[:40]}"'


def _detected(path: Path, view: str, format: str | None) -> Detected | None:
    """Return what a file is; None where its rows are Accord's own for this view, whatever other columns look like."""
    if format is not None and format not in (own.ACCORD.name, *PLAIN_FILES):
        return detect(path, format)
    wanted, sample = _WANTED[view], sample_of(path, container_of(path))
    # Own rows first: a file that says what the stage asks is not taken for another format by a column beside it.
    is_own = 2 * sum(map(wanted.has, sample)) >= len(sample)
    if is_own and not any(map(wanted.lost, sample)):
        return None
    try:
        return detect(path, format)
    except DataError:
        ours = any({"prompt", "text", "messages"} & fields.keys() for fields in sample)
        if sample and not ours and proposed(sample):
            raise  # it says which flags would read the file
        return None  # reading on names the row and the column at fault
