"""What every section is made of: names of rows, merging of partial values, the base class. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

from accord.extend import is_outside

S = TypeVar("S", bound="Section")


class Rows:
    """Mark of a key that names a row of a table or, where ``own``, ``module:name`` of a user's own."""

    def __init__(self, names: Iterable[str], *, own: bool = True) -> None:
        self.names, self.own = tuple(names), own

    def check(self, name: str) -> str:
        if name in self.names or (self.own and is_outside(name)):
            return name
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        own = "; your own is module:name" if self.own else ""
        raise ValueError(f"{name!r} is not known: {hint}rows are {', '.join(self.names)}{own}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        known: dict[str, Any] = {"enum": list(self.names)}
        return {"anyOf": [known, {"type": "string", "pattern": "^[^:]+:[^:]+$"}]} if self.own else known


def exact_div(total: int, parts: int, total_name: str, parts_name: str) -> int:
    """Return ``total / parts``, refused with both names where it leaves a remainder."""
    if total % parts:
        raise ValueError(f"{total_name} {total} is not a multiple of {parts_name} {parts}")
    return total // parts


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with what ``over`` names replaced; mappings merge key by key, everything else as a whole."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def layered(kind: type[Section], base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` on top, both partial values of a section.

    Where ``over`` names another row of a table, the row's usual values come with the name: they win over ``base``, and
    those of the row that ``base`` had go. What stands beside the name wins over both.
    """
    row, values = kind.usual
    if row in over and over[row] != (old := base.get(row, kind.model_fields[row].default)):
        # The old row's values go only where they still stand as the row set them: what a user gave stays.
        base = merged(_without(base, values.get(str(old), {})), values.get(str(over[row]), {}))
    out = merged(base, over)
    for key, section in nested(kind).items():
        if isinstance(over.get(key), dict):
            out[key] = layered(section, base.get(key, {}), over[key])
    return out


def _without(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given, less what it says just as ``values`` do."""
    kept = {key: value for key, value in given.items() if key not in values or value != values[key]}
    inner = {key: value for key, value in values.items() if isinstance(value, dict) and isinstance(kept.get(key), dict)}
    return kept | {key: _without(kept[key], value) for key, value in inner.items()}


def nested(section: type[Section]) -> dict[str, type[Section]]:
    """Return the keys of a section that are sections themselves."""
    found = {key: field.annotation for key, field in section.model_fields.items()}
    return {key: kind for key, kind in found.items() if isinstance(kind, type) and issubclass(kind, Section)}


def spelt_out(kind: type[Section], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given with each plain value that may stand for a section (``Section.plain``) as that section."""
    out, sections = dict(given), nested(kind)
    for key in out.keys() & sections.keys():
        section, value = sections[key], out[key]
        if isinstance(value, dict):
            out[key] = spelt_out(section, value)
        elif section.plain and isinstance(value, int | float | str) and not isinstance(value, bool):
            out[key] = {section.plain: value}
    return out


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversion of types, no NaN."""

    # strict: `true` for a number or 3.0 for a whole one is a slip, and what it is taken for would be a guess.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
    refused: ClassVar[Mapping[str, str]] = {}  # keys that users of other tools look for, and why they are not here
    usual: ClassVar[tuple[str, Mapping[str, Mapping[str, Any]]]] = ("", {})  # a key that names a row; what rows set
    plain: ClassVar[str] = ""  # the key that a plain value in place of the section stands for; "": none may

    @model_validator(mode="before")
    @classmethod
    def _onto_defaults(cls, given: Any) -> Any:
        """A partial nested section changes only what it names; the rest stays what *this* section defaults to."""
        if not isinstance(given, dict):
            return given
        given = spelt_out(cls, given)
        row, values = cls.usual
        given = merged(values.get(str(given.get(row)), {}), given)
        defaults = {key: cls.model_fields[key].get_default(call_default_factory=True) for key in nested(cls)}
        return {
            key: merged(defaults[key].model_dump(exclude_unset=True), value)
            if key in defaults and isinstance(value, dict)
            else value
            for key, value in given.items()
        }


def changed(section: Section, keys: Iterable[str]) -> list[str]:
    """Return those dotted keys below a section whose values are not what the section starts with."""
    return [key for key in keys if _at(section, key) != _start(type(section), key)]


def _at(section: Section, key: str) -> Any:
    return reduce(getattr, key.split("."), section)


def _start(kind: type[Section], key: str) -> Any:
    first, _, rest = key.partition(".")
    value = kind.model_fields[first].get_default(call_default_factory=True)
    return _at(value, rest) if rest else value


def refuse_unread(section: Section, keys: Iterable[str], why: str) -> None:
    """Refuse keys that are given and that nothing will read. Raises ValueError."""
    given = changed(section, keys)
    if given:
        have = "has" if len(given) == 1 else "have"
        raise ValueError(
            f"{' and '.join(given)} {have} no effect: {why}; leave {'it' if have == 'has' else 'them'} out"
        )


def describe(section: Section) -> list[tuple[str, Any, str]]:
    """Return every dotted key below a section with its value and its meaning: what --help and the docs show."""
    rows: list[tuple[str, Any, str]] = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            rows += [(f"{key}.{inner}", *rest) for inner, *rest in describe(value)]
        else:
            rows.append((key, value, field.description or ""))
    return rows


def without_device(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, nested as they are, without what does not make two runs different.

    That is any key ``device``, and an ``on_alarm`` that does not end a run before its last step.
    """
    return {
        key: without_device(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key != "device" and (key, value) not in (("on_alarm", "warn"), ("on_alarm", "pause"))
    }
