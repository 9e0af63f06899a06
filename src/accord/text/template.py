"""Chat templates: messages in, the text a chat model was trained on out, character for character as `transformers`.

A template is a small Jinja program that comes with a model's folder, from anyone. It runs in Jinja's sandbox and sees
only the messages and the special tokens. Whatever goes wrong in it is a ``DataError`` that names its file and line.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from accord.errors import DataError
from accord.text.bounds import BoundedSandbox, UnboundedTemplate, bounded, guarded, joined

#: ``{"role": "user", "content": "..."}``; a template may read further fields.
Message = Mapping[str, Any]
#: First character of a piece of text, and the one behind its last.
Span = tuple[int, int]

# Characters without a meaning, which no template cuts or changes.
_OPEN, _CLOSE, _STAND_IN = "\ue0f0", "\ue0f1", "\ue0f2\ue0f3\ue0f2"
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplate:
    """A template and what it is rendered with.

    ``named`` are the special tokens it may write by name (``bos_token`` and so on), ``special`` the texts of all
    special tokens, ``where`` the file it comes from.
    """

    source: str
    named: Mapping[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    where: str = "chat template"

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation, as ``apply_chat_template(..., tokenize=False)`` gives it.

        Raises:
            DataError: The template is broken, or refuses these messages.
        """
        return self._run(messages, add_generation_prompt, marked=False)

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text up to where the assistant begins to write."""
        return self.render(messages, add_generation_prompt=True)

    def reply(self, messages: Sequence[Message], content: str) -> str:
        """Return what the assistant writes after `prompt` to say ``content``, without the token that ends its turn."""
        whole = [*messages, {"role": "assistant", "content": content}]
        text = self.render(whole)
        start, end = self._turn(whole, len(messages), text)
        return text[start:end].removesuffix(self.turn_end)

    def wrote(self, text: str) -> bool:
        """Whether a text looks like a prompt of this template's making, by what it writes around a first message."""
        head, tail = self._frame
        # Of some templates a prompt begins with the user's own words; then its end must do.
        return text.startswith(head) if head else bool(tail) and text.endswith(tail)

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """Return the first line that prompts begin with, of what they have in common, and what they end with."""
        user, heads, tail = {"role": "user", "content": _STAND_IN}, [], ""
        for before in ([], [{"role": "system", "content": _STAND_IN}]):
            try:
                parts = self.prompt([*before, user]).split(_STAND_IN)
            except DataError:  # many refuse a system's message
                continue
            heads.append(parts[0])
            tail = parts[-1]
        alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*heads, strict=False))
        # The first line alone: some write the day's date into a later one.
        return "".join(letters[0] for letters in alike).partition("\n")[0], tail

    @cached_property
    def closing(self) -> str:
        """What stands behind the assistant's last words in a whole conversation; "" where the template is broken."""
        try:
            return self._around([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], 1)[1]
        except DataError:
            return ""

    @cached_property
    def has_generation_blocks(self) -> bool:
        """Whether the template itself says which text is the assistant's."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    @cached_property
    def turn_end(self) -> str:
        """The special token that ends an assistant's turn; "" where turns end with none, or the template is broken."""
        found = [token for token in self.special if token and self.closing.lstrip().startswith(token)]
        return max(found, key=len, default="")

    def assistant_spans(self, messages: Sequence[Message], counted_from: int = 0) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and where in it the assistant wrote, the ends of its turns included.

        Messages before ``counted_from`` do not count.

        What stands in the template's ``{% generation %}`` blocks, if it has any. Otherwise a turn begins where the
        prompt before it ends, and ends behind its content and the token that follows it there.

        Raises:
            DataError: The template is broken, refuses these messages, or writes a turn in no one place.
        """
        text = self.render(messages)
        turns = [i for i, m in enumerate(messages) if m.get("role") == "assistant" and i >= counted_from]
        if not self.has_generation_blocks:
            return text, [self._turn(messages, i, text) for i in turns]
        spans = self._blocks(messages, text)
        if counted_from and turns:
            first, _ = self._turn(messages, turns[0], text)
            spans = [span for span in spans if span[1] > first]
        return text, spans

    def _blocks(self, messages: Sequence[Message], text: str) -> list[Span]:
        spans: list[Span] = []
        place = depth = start = 0
        # Marks in the rendered text, taken out again: counting what was rendered before would miss a block inside a
        # macro.
        pieces = re.split(f"([{_OPEN}{_CLOSE}])", self._run(messages, False, marked=True))
        for piece in pieces:
            if piece == _OPEN:
                start, depth = (start if depth else place), depth + 1
            elif piece == _CLOSE:
                depth -= 1
                spans += [(start, place)] if depth == 0 else []
            else:
                place += len(piece)
        # A template that measures or cuts its text writes another one around the marks.
        if "".join(piece for piece in pieces if piece not in (_OPEN, _CLOSE)) != text:
            self._fail("the text of its generation blocks cannot be found")
        return spans

    def _turn(self, messages: Sequence[Message], index: int, text: str) -> Span:
        """Return where the turn at ``index`` stands in the conversation's text."""
        header, tail = self._around(messages, index)
        start, end = self._start(messages[:index], header, text), len(text) - len(tail)
        if not text.endswith(tail) or not 0 <= start <= end:
            self._fail(f"it writes message {index + 1} in no one place")
        closing = re.match(r"\s*" + re.escape(self.turn_end), tail) if self.turn_end else None
        return start, end + (closing.end() if closing else 0)

    def _start(self, before: Sequence[Message], header: str, text: str) -> int:
        # What a template writes between the prompt and the content (an empty thought, say) the assistant must write.
        if before:
            try:
                prompt = self.prompt(before)
            except DataError:  # it refuses to be prompted here, though it renders the whole
                prompt = header
            if text.startswith(prompt):
                return len(prompt)
        return len(header) if text.startswith(header) else -1

    def _around(self, messages: Sequence[Message], index: int) -> tuple[str, str]:
        """Return the text before and after the content of one message."""
        other = [*messages]
        other[index] = {**messages[index], "content": _STAND_IN}
        parts = self.render(other).split(_STAND_IN)
        if len(parts) != 2:
            self._fail(f"it writes message {index + 1} {len(parts) - 1} times")
        return parts[0], parts[1]

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool, *, marked: bool) -> str:
        given = {"messages": _plain(messages), "tools": None, "documents": None}
        try:
            # Compiled once: a file has one template and a hundred thousand rows.
            with bounded(self.source):
                template = _compiled(self.source, marked)
                pieces = template.generate(**self.named, **given, add_generation_prompt=add_generation_prompt)
                return joined(pieces)
        except UnboundedTemplate as error:
            raise DataError(
                f"the chat template knows no bounds: {error}",
                where=self.where,
                hint="use the model's own template, or write one of plain loops over the messages",
            ) from error
        except Exception as error:  # a program of somebody else's may raise anything
            line = _line(error)
            raise DataError(
                str(error) or type(error).__name__,
                where=f"{self.where}:{line}" if line else self.where,
                why="the chat template refuses it" if isinstance(error, _Refusal) else "the chat template is broken",
                hint="compare the messages with what the template expects (roles, order, fields)",
            ) from error

    def _fail(self, what: str) -> NoReturn:
        raise DataError(
            what,
            where=self.where,
            why="the tokens of the assistant's turns cannot be distinguished from the others",
            hint="put {% generation %} and {% endgeneration %} around the assistant's text in the template",
        )


class _Refusal(TemplateError):
    """What a template's own ``raise_exception`` raises."""


def _line(error: Exception) -> int:
    """Return the line of the template that raised, 0 where none is known."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
    return (frames[-1] or 0) if frames else 0


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return copies without empty fields, thoughts under each name that templates know, as `transformers` does."""
    found = []
    for message in messages:
        copy = {key: value for key, value in message.items() if value is not None}
        thought = next((copy[name] for name in _THOUGHTS if name in copy), None)
        if thought is not None:
            copy = {"thinking": thought, **copy, "reasoning_content": thought}
        found.append(copy)
    return found


# -- the sandbox -------------------------------------------------------------------------------------------------------


class _Generation(Extension):
    """``{% generation %}``: its body in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so
    marks: ClassVar[bool] = False

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        if self.marks:
            body = [_data(_OPEN), *body, _data(_CLOSE)]
        return nodes.Scope(body).set_lineno(line)


class _MarkedGeneration(_Generation):
    """The same, with a mark before and behind the body's text."""

    marks = True


def _data(text: str) -> nodes.Node:
    return nodes.Output([nodes.TemplateData(text)])


@lru_cache(maxsize=16)
def _compiled(source: str, marked: bool) -> Template:
    blocks = _MarkedGeneration if marked else _Generation
    # transformers' own settings, by which templates are written; immutable, so that a template cannot change the
    # messages.
    room = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[blocks, loopcontrols])
    room.filters["tojson"] = guarded("tojson", _to_json)
    room.globals |= {"raise_exception": _raise_exception, "strftime_now": _now}
    return room.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Iterable[str] | None = None,
    sort_keys: bool = False,
) -> str:
    pair = None if separators is None else (*separators,)
    # Unlike Jinja's own filter it leaves < and & as they are.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)  # type: ignore[arg-type]
