"""Shapes checked at the door, by the suffixes of names: ``logp_BT`` is a matrix, and every ``B`` of one call is equal.

Without it a column ``(N, 1)`` against a row ``(N,)`` broadcasts to ``(N, N)``, and a loss over it is a number like any
other. A check compares a few tuples of ints on the host: it reads no tensor, and costs about as
much as three additions of small tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache, wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

P = ParamSpec("P")
_R = TypeVar("_R")

_SUFFIX = re.compile(r"_([A-Z]+)$")


@cache
def dims_of(name: str) -> str | None:
    """Return the dimensions that a name promises, a letter each; None where it promises nothing."""
    found = _SUFFIX.search(name)
    return found.group(1) if found else None


def shaped(function: Callable[P, _R]) -> Callable[P, _R]:
    """Refuse calls whose tensors are not shaped as the names of the parameters say."""
    names = list(signature(function).parameters)
    # Found once, when the function is defined: a call then compares a few ints.
    wanted = [(place, name, dims) for place, name in enumerate(names) if (dims := dims_of(name))]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> _R:
        here = [(name, dims, args[i] if i < len(args) else kwargs.get(name)) for i, name, dims in wanted]
        _check(function.__name__, here)
        return function(*args, **kwargs)

    return checked


def elementwise(function: Callable[P, _R]) -> Callable[P, _R]:
    """Refuse calls whose tensors, whatever their rank, are not all of one shape."""
    names = list(signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> _R:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        shapes = {name: tuple(value.shape) for name, value in given.items() if isinstance(value, Tensor)}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{function.__name__} wants tensors of one shape: {_listed(shapes.items())}")
        return function(*args, **kwargs)

    return checked


def check_fields(held: Any) -> None:
    """Refuse an instance of a dataclass whose tensors are not shaped as the names of its fields say."""
    kind: type = type(held)
    _check(kind.__name__, [(name, dims, getattr(held, name)) for name, dims in _fields(kind)])


@cache
def _fields(kind: type) -> list[tuple[str, str]]:
    return [(field.name, dims) for field in fields(kind) if (dims := dims_of(field.name))]


def _check(where: str, given: list[tuple[str, str, Any]]) -> None:
    sizes: dict[str, int] = {}
    for _, dims, value in given:
        if not isinstance(value, Tensor):  # an argument left out, or a plain number for all
            continue
        shape = value.shape
        fits = len(shape) == len(dims)
        for letter, size in zip(dims, shape, strict=False):
            fits = fits and sizes.setdefault(letter, size) == size
        if not fits:
            shapes = [(name, tuple(x.shape)) for name, _, x in given if isinstance(x, Tensor)]
            raise ValueError(f"{where} wants the shapes that its names say: {_listed(shapes)}")


def _listed(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} is {shape}" for name, shape in shapes)
