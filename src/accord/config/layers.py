"""Partial configurations from YAML and overrides, put on top of each other; errors say file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from accord.config.base import S, Section, layered, nested, spelt_out
from accord.errors import UsageError

# ---- YAML ------------------------------------------------------------------------------------------------------


MOST_YAML = 1 << 20  # characters; the longest recipe has 20,000
MOST_NESTED = 40  # lists and mappings in each other


class _Yaml(yaml.SafeLoader):
    """PyYAML's safe loader, but ``1e-4`` is a number (as in YAML 1.2) and a key given twice is an error.

    Aliases are refused: nine lines of them stand for a billion values, and one may stand inside itself.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "a recipe has no aliases: write the value out", mark)
        self.depth += 1
        if self.depth > MOST_NESTED:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


# YAML 1.1 wants 1.0e-4: every recipe that copies a paper's 1e-4 would hold a text.
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, where: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """Return the value of a YAML text and the line of each of its keys."""
    if len(text) > MOST_YAML:
        raise UsageError(f"holds {len(text):,} characters, more than a recipe can have", where=where)
    try:
        loader = _Yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=where) from error
    try:
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UsageError(
            f"not valid YAML: {getattr(error, 'problem', None) or error}",
            where=f"{where}:{mark.line + 1}" if mark else where,
            hint="a recipe is `key: value` lines, indented by two spaces below each section",
        ) from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # PyYAML makes dates and tagged values by hand: 2026-13-45 is its "month must be in 1..12".
        raise UsageError(f"not valid YAML: a value cannot be read ({error})", where=where) from error
    finally:
        loader.dispose()
    return value, dict(_key_lines(node, ()))


def _key_lines(node: yaml.Node | None, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _key_lines(value, here)


# ---- layers of a recipe ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """Part of a configuration, and where each of its keys was given (for errors)."""

    values: dict[str, Any]
    name: str
    lines: Mapping[tuple[str, ...], int]
    kind: Literal["recipe", "project", "command line"] = "recipe"

    def origin(self, path: tuple[str, ...]) -> str:
        """Return ``recipe mine.yaml:12``: what the layer is, and where in it the key stands."""
        return self.kind if self.kind == "command line" else f"{self.kind} {self.where(path)}"

    def where(self, path: tuple[str, ...]) -> str:
        """Return ``recipes/demo.yaml:12`` for the key or the nearest section above it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}:{self.lines[path[:end]]}"
        return self.name

    def holds(self, path: tuple[str, ...]) -> bool:
        value: Any = self.values
        for key in path:
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        return True


def read_layer(path: Path) -> Layer:
    """Read a YAML mapping. Raises UsageError for a file that is missing, unreadable or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read ({error})", where=str(path)) from error
    value, lines = _parse_yaml(text, str(path))
    if not isinstance(value, dict | None):
        raise UsageError(
            f"holds {yaml_word(value)}, not a mapping",
            where=str(path),
            hint="write `key: value` lines",
        )
    return Layer(value or {}, str(path), lines)


def override_layer(override: str) -> Layer:
    """Return ``rl.kl_coef=0.02`` as a layer; the value is read as YAML."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UsageError(
            f"{override!r} is not key=value", where="overrides", hint="write it like rl.kl_coef=0.02, without spaces"
        )
    value, _ = _parse_yaml(text, f"override {override}")
    for part in reversed(path):
        value = {part: value}
    return Layer(value, f"override {override}", {}, "command line")


def names_row(kind: type[Section], values: Mapping[str, Any]) -> bool:
    """Return whether a row of a table is named.

    Overrides that name one go first, so that the others win over its values.
    """
    inner = [(section, values[key]) for key, section in nested(kind).items() if isinstance(values.get(key), dict)]
    return kind.usual[0] in values or any(names_row(section, value) for section, value in inner)


def build(kind: type[S], layers: Sequence[Layer]) -> S:
    """Return the section that the layers describe together, the later winning.

    Raises UsageError at the first bad key.
    """
    known = _dotted(kind)
    layers = [replace(layer, values=spelt_out(kind, layer.values)) for layer in layers]
    for layer in layers:
        _check_keys(kind, layer, layer.values, (), known)
    values: dict[str, Any] = {}
    for layer in layers:
        # Merged before they are checked: a layer alone may be half of something.
        values = layered(kind, values, layer.values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = "\n".join(_problem(detail, layers) for detail in details)
        raise UsageError(problems, hint=_meaning(kind, details[0]) if len(details) == 1 else "") from error


def _dotted(kind: type[Section]) -> list[str]:
    """Return every dotted key below a section."""
    sections = nested(kind)
    return [
        name
        for key in kind.model_fields
        for name in ([f"{key}.{inner}" for inner in _dotted(sections[key])] if key in sections else [key])
    ]


def _check_keys(kind: type[Section], layer: Layer, values: Any, path: tuple[str, ...], known: list[str]) -> None:
    """Refuse unknown keys (``known`` feeds the suggestion), and anything but a mapping where a section stands."""
    if not isinstance(values, dict):
        raise UsageError(
            f"{'.'.join(path)} is a section, got {yaml_word(values)}",
            where=layer.where(path),
            hint=f"set keys below it, for example {'.'.join(path)}.{next(iter(kind.model_fields))}",
        )
    sections = nested(kind)
    for key, value in values.items():
        here = (*path, str(key))
        if key in kind.refused:
            raise UsageError(f"{'.'.join(here)} is refused", where=layer.where(here), why=kind.refused[key])
        if key not in kind.model_fields:
            raise UsageError(
                f"unknown key {'.'.join(here)!r}",
                where=layer.where(here),
                hint=_suggestion(kind, path, str(key), known),
            )
        if key in sections:
            _check_keys(sections[key], layer, value, here, known)


def _suggestion(kind: type[Section], path: tuple[str, ...], key: str, known: list[str]) -> str:
    """Suggest the same key elsewhere, else a key of this section spelt nearly so, else one elsewhere."""
    leaves = {name.rsplit(".", 1)[-1] for name in known}
    # Nearly a key of the section that was named: max_tokens of sample is its max_new_tokens, not that of sft.
    if path and (meant := difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.8)):
        return f"did you mean {'.'.join((*path, meant[0]))!r}?"
    # Another section's key is more often meant whole than this one's misspelt.
    near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.6)
    if near and key not in leaves:
        return f"did you mean {'.'.join((*path, near[0]))!r}?"
    leaf = difflib.get_close_matches(key, leaves, n=1, cutoff=0.8)
    places = [name for name in known if leaf and name.rsplit(".", 1)[-1] == leaf[0]]
    places.sort(key=lambda name: not name.startswith(".".join(path)))
    if places:
        return "did you mean " + " or ".join(repr(place) for place in places[:4]) + "?"
    return "keys here: " + ", ".join(kind.model_fields)


def _problem(detail: ErrorDetails, layers: Sequence[Layer]) -> str:
    path = tuple(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {detail['input']!r}"
    for end in range(len(path), 0, -1):
        giver = next((layer for layer in reversed(layers) if layer.holds(path[:end])), None)
        if giver:
            return f"{giver.where(path[:end])}: {'.'.join(path)}: {message}"
    return f"{'.'.join(path) or layers[-1].name}: {message}"


def _meaning(kind: type[Section], detail: ErrorDetails) -> str:
    """Return what the offending key is for."""
    field: FieldInfo | None = None
    fields: Mapping[str, FieldInfo] = kind.model_fields
    for part in detail["loc"]:
        if str(part) not in fields:
            break
        field = fields[str(part)]
        inner = field.annotation
        fields = inner.model_fields if isinstance(inner, type) and issubclass(inner, Section) else {}
    return f"this key means: {field.description}" if field is not None and field.description else ""


def yaml_word(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: f"the text {value!r}", type(None): "nothing"}
    return names.get(type(value), repr(value))
