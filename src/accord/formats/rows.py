"""One row of a file: its fields, where it stands, and getters that name the field at fault."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from accord.errors import DataError
from accord.formats.item import TextOrTurns, Turns

# Characters of a row that its reject shows: enough to find it, little enough for a file of a million.
MAX_SHOWN = 2_000


class RowError(DataError):
    """A fault of one row. ``field`` is its name, "" where the row as a whole is at fault."""

    def __init__(self, problem: str, *, field: str = "", where: str = "", hint: str = "") -> None:
        self.field, self.problem = field, problem
        super().__init__(f'"{field}" {problem}' if field else problem, where=where, hint=hint)


@dataclass(frozen=True)
class Reject:
    """A row that was left out: where it stands, which field is at fault, what is wrong, how to mend it, and the row."""

    where: str
    field: str
    problem: str
    hint: str
    row: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.problem, self.hint) if part)


OnReject = Callable[[Reject], None]


def refuse(reject: Reject) -> NoReturn:
    """Stop at a bad row: what is done where nobody says otherwise."""
    raise RowError(reject.problem, field=reject.field, where=reject.where, hint=reject.hint)


def reject_of(error: DataError, where: str, raw: bytes = b"") -> Reject:
    """Return the reject of an error; ``where`` is the row's place, for errors that do not know it."""
    shown = raw[: 4 * MAX_SHOWN].decode("utf-8", "backslashreplace")
    row = (
        shown if len(shown) <= MAX_SHOWN and len(raw) <= 4 * MAX_SHOWN else f"{shown[:MAX_SHOWN]}... ({len(raw)} bytes)"
    )
    field, problem = (error.field, error.problem) if isinstance(error, RowError) else ("", error.what)
    return Reject(error.where or where, field, problem, error.hint, row)


@dataclass(frozen=True)
class InputRow:
    """One parsed row. ``raw`` is its text in the file, for the rejects."""

    fields: Mapping[str, Any]
    where: str
    raw: bytes = b""

    def shown(self) -> bytes:
        """Return the row's text; of a table without texts (Parquet), its fields as JSON."""
        return self.raw or json.dumps(self.fields, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")

    def fail(self, field: str, problem: str, hint: str = "") -> NoReturn:
        raise RowError(problem, field=field, where=self.where, hint=hint)

    def get(self, field: str) -> Any:
        if field not in self.fields:
            near = difflib.get_close_matches(field, self.fields, n=1)
            there = f"the row has {', '.join(list(self.fields)[:12]) or 'no fields'}"
            self.fail(field, "is missing", f'did you mean "{near[0]}"? call it {field}' if near else f"add it; {there}")
        return self.fields[field]

    def __contains__(self, field: str) -> bool:
        return self.fields.get(field) is not None

    def text(self, field: str) -> str:
        return self.string(field, self.get(field))

    def optional_text(self, field: str) -> str:
        return self.text(field) if field in self else ""

    def string(self, field: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(field, f"is {json_kind(value)}, not a string", "write a text in quotes")
        return value

    def moment(self, field: str) -> str:
        """Return when something was, as ISO 8601 has it; "" where the row does not say. Seconds since 1970 are read."""
        value = self.fields.get(field)
        if value in (None, ""):
            return ""
        found = value if isinstance(value, str) and is_moment(value) else _since_1970(value)
        return found or self.fail(field, f"is {str(value)[:40]!r}, not a time", "write it like 2026-01-31T12:00:00Z")

    def name(self, field: str) -> str:
        """Return a name, "" where there is none; a number is a name too, as tools count their people."""
        value = self.fields.get(field)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.optional_text(field)

    def figure(self, field: str, value: Any) -> float:
        """Return a number that may stand in quotes, as some published sets write theirs."""
        try:
            return self.number(field, float(value) if isinstance(value, str) else value)
        except ValueError:
            return self.fail(field, f"is {str(value)[:40]!r}, not a number", "write a number")

    def parsed(self, field: str, value: Any = None) -> Any:
        """Return a value that a table or a published set may keep as the text of its JSON."""
        value = self.get(field) if value is None else value
        if not isinstance(value, str):
            return value
        try:
            return parse_json(value)
        except (ValueError, RecursionError):
            return self.fail(field, "is no JSON", "write a list or an object")

    def number(self, field: str, value: Any) -> float:
        # In Python true is a 1; in a file it is a slip.
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(field, f"is {json_kind(value)}, not a number", "write a number, without quotes")
        # `not <=`, so that NaN fails; larger than that, whole numbers lose their last digit in a float.
        if not abs(value) <= 1e15:
            self.fail(field, "is too large or not a number", "write a finite number")
        return float(value)

    def optional_number(self, field: str) -> float | None:
        return self.number(field, self.fields[field]) if field in self else None

    def truth(self, field: str, value: Any) -> bool:
        """Return whether something is so: true or false, 1 or 0 (or -1), and those words."""
        found = truth_of(value)
        if found is None:
            shown = repr(value[:40]) if isinstance(value, str) else json_kind(value)
            self.fail(field, f"is {shown}, not true or false", "write true or false, without quotes")
        return found

    def items(self, field: str) -> list[Any]:
        return self.listed(field, self.get(field))

    def listed(self, field: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            self.fail(field, f"is {json_kind(value)}, not a list", "write a list")
        return value

    def object(self, field: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.fail(field, f"is {json_kind(value)}, not an object", "write an object")
        return value

    def text_or_messages(self, field: str) -> TextOrTurns:
        value = self.get(field)
        return self.string(field, value) if not isinstance(value, list) else self.messages(field, value)

    def messages(self, field: str, value: Any = None) -> Turns:
        """Return messages with a role and a content each; contents in parts are joined where all parts are texts."""
        found = self.listed(field, self.get(field) if value is None else value)
        if not found:
            self.fail(field, "holds no messages", _MESSAGE)
        return tuple(self._message(f"{field}[{i}]", message) for i, message in enumerate(found))

    def _message(self, field: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(field, f"is {json_kind(value)}, not a message", _MESSAGE)
        message = dict(value)
        self.string(f"{field}.role", message.get("role"))
        content = message.get("content")
        if isinstance(content, list):
            # OpenAI's parts: only texts, since an image left out would leave a question without its object.
            message["content"] = "".join(self._part(f"{field}.content", part) for part in content)
        elif not (content is None and message.get("tool_calls")):
            self.string(f"{field}.content", content)
        return message

    def _part(self, field: str, part: Any) -> str:
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            self.fail(field, "holds a part that is no text", "only texts can be read; remove images and sounds")
        return self.string(field, part.get("text"))


_MESSAGE = 'write messages like {"role": "user", "content": "..."}'


# 1 and 0 are what tables and published sets write for true and false, 1 and -1 what thumbs are.
_TRUTHS: Mapping[Any, bool] = {
    **dict.fromkeys((1, "1", "1.0", "true", "good", "up"), True),
    **dict.fromkeys((0, -1, "0", "0.0", "-1", "false", "bad", "down"), False),
}


def truth_of(value: Any) -> bool | None:
    """Return whether a value says true or false, None where it says neither."""
    known = isinstance(value, bool | int | float | str)
    return _TRUTHS.get(value.strip().lower() if isinstance(value, str) else value) if known else None


# Seconds, milli- and microseconds since 1970, told apart by their size: all lie between 1980 and 2100.
_EPOCHS = (1, 1e3, 1e6)


def _since_1970(value: Any) -> str:
    """Return a number of seconds (or of their thousandths) since 1970 as a time; "" where it is none."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except ValueError:
        return ""
    seconds = next((number / unit for unit in _EPOCHS if 3.1e8 <= number / unit <= 4.2e9), None)
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def is_moment(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def json_kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
    }
    return names.get(type(value), "null")


MOST_VALUES = 2_000_000  # of a row, each some hundred bytes of memory; commas of texts count with them


def require_few(line: bytes, between: bytes, where: str = "") -> None:
    """Refuse a row of so many values that they would fill the memory. Raises RowError."""
    if len(line) > MOST_VALUES and (count := line.count(between)) > MOST_VALUES:
        what = f"{count:,} values in one row, more than {MOST_VALUES:,}"
        raise RowError(what, where=where, hint="split it or remove it")


def parse_object(line: bytes, where: str, hint: str = "write one JSON object a line") -> dict[str, Any]:
    """Return the object of a line of JSON.

    Raises:
        RowError: Not UTF-8, not JSON, not an object, a key twice, a number that is none, half of a surrogate pair, or
            too many values.
    """
    require_few(line, b",", where)
    try:
        value = parse_json(line.decode("utf-8"))
        # Half of a surrogate pair is JSON, but no text that can be encoded or stored; looked for only where an escape
        # stands.
        if rb"\u" in line:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"byte {error.start + 1} of the line is not UTF-8", where=where, hint="save as UTF-8") from error
    except UnicodeEncodeError as error:
        raise RowError("a text holds half of a surrogate pair", where=where, hint="write the file as UTF-8") from error
    except RecursionError as error:
        raise RowError("not JSON that can be read: nested too deeply", where=where, hint=hint) from error
    except ValueError as error:
        raise RowError(f"not JSON: {error}", where=where, hint=hint) from error
    if not isinstance(value, dict):
        raise RowError(f"the line is {json_kind(value)}, not an object", where=where, hint=hint)
    return value


def parse_json(text: str) -> Any:
    """Return a JSON value. Raises ValueError for what is none, a key that stands twice, and numbers that are none."""
    # Stricter than Python's JSON: it takes Infinity and the last of two equal keys, each a row that means something
    # else. NaN is what Python's tools write for want of a value.
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_unknown, parse_float=_finite)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'the key "{key[:80]}" stands twice in one object')
        found[key] = value
    return found


def _unknown(name: str) -> None:
    if name == "NaN":
        return
    raise ValueError(f"{name} is not a number that JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value
