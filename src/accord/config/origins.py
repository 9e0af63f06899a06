"""Where each value of a configuration came from: a default, a layer, the row of a table it names, or a rule."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import yaml
from pydantic import PrivateAttr

from accord.config.base import Section, describe, layered, merged, nested, spelt_out
from accord.config.layers import Layer

DEFAULT, RECIPE, FITTED_WHY = "default", "recipe", "fitted: "


def leaves(kind: type[Section], values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each dotted key that partial values of a section set, and its value; sections in it are opened."""
    sections = nested(kind)
    for key, value in values.items():
        if key in sections and isinstance(value, Mapping):
            yield from leaves(sections[key], value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def origins_of(kind: type[Section], layers: Sequence[Layer]) -> dict[str, str]:
    """Return where each key that the layers set came from: the last that names it, or the row of a table it names."""
    values: dict[str, Any] = {}
    found: dict[str, str] = {}
    for layer in layers:
        given = spelt_out(kind, layer.values)
        above = layered(kind, values, given)
        own, before, after = (dict(leaves(kind, each)) for each in (given, values, above))
        brought = [key for key in after if key not in own and (key not in before or before[key] != after[key])]
        found |= {key: f"usual with {row_above(kind, after, key)}" for key in brought}
        found |= {key: layer.origin(tuple(key.split("."))) for key in own}
        found, values = {key: where for key, where in found.items() if key in after}, above
    return found


def row_above(kind: type[Section], values: Mapping[str, Any], key: str) -> str:
    """Return ``rl.algorithm=grpo``: the row of a table that brought a key along."""
    named, path, section = "", "", kind
    for part in key.split("."):
        if section.usual[0]:
            named = f"{path}{section.usual[0]}={values.get(f'{path}{section.usual[0]}', '')}"
        path, section = f"{path}{part}.", nested(section).get(part, Section)
    return named


def unfolded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested mappings."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = key.split(".")
        inner: dict[str, Any] = {last: value}
        for part in reversed(above):
            inner = {part: inner}
        made = merged(made, inner)
    return made


class Traced(Section):
    """A section that knows where its values came from."""

    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)  # where keys were given, as far as layers said it

    def __eq__(self, other: object) -> bool:
        """Whether all values are the same, wherever they came from."""
        return isinstance(other, type(self)) and dict(self) == dict(other)

    def given(self) -> dict[str, str]:
        """Return the dotted keys that somebody gave a value, and who; made in Python it says recipe."""
        own = dict(leaves(type(self), self.model_dump(exclude_unset=True)))
        if not self._origins:
            return dict.fromkeys(own, RECIPE)
        usual = dict(leaves(type(self), type(self)().model_dump()))
        # What was changed in Python since, by `model_copy`; nested defaults count as set, and are as usual.
        changed = [key for key, value in own.items() if value != usual.get(key)]
        return dict.fromkeys(changed, RECIPE) | dict(self._origins)

    def origins(self) -> dict[str, str]:
        """Return where the value of every dotted key came from."""
        return {key: DEFAULT for key, _, _ in describe(self)} | self.given()

    def from_layers(self, layers: Sequence[Layer]) -> Self:
        """Return itself, which now knows where its layers gave each key."""
        self._origins = origins_of(type(self), layers)
        return self

    def with_fitted(self, values: Mapping[str, Any], reasons: Mapping[str, str]) -> Self:
        """Return the same with values that were fitted, by dotted key, and why each is what it is."""
        made = self.model_validate(merged(self.model_dump(exclude_unset=True), unfolded(values)))
        made._origins = self.given() | {key: f"{FITTED_WHY}{why}" for key, why in reasons.items()}
        return made


def annotated_yaml(section: Section, origins: Mapping[str, str]) -> str:
    """Return every key of a section as YAML, with a comment that says where each value came from but for defaults."""
    return "\n".join(_annotated(section, section.model_dump(mode="json"), origins, "", ""))


def _annotated(
    section: Section, plain: Mapping[str, Any], origins: Mapping[str, str], above: str, indent: str
) -> Iterator[str]:
    for key, value in plain.items():
        inner = getattr(section, key)
        if isinstance(inner, Section):
            yield f"{indent}{key}:"
            yield from _annotated(inner, value, origins, f"{above}{key}.", f"{indent}  ")
            continue
        # One line a key, however long: the comment belongs to it.
        line = yaml.safe_dump({key: value}, default_flow_style=True, width=sys.maxsize, allow_unicode=True).strip()[
            1:-1
        ]
        where = origins.get(f"{above}{key}", DEFAULT)
        yield f"{indent}{line}" + ("" if where == DEFAULT else f"  # {where}")
