"""Bounds for a program of somebody else's that writes a text: steps, time and length, so that none runs for ever.

A chat template comes with a model's folder, from anyone. Jinja's sandbox keeps it from the machine, but not from the
machine's time and memory: three nested loops, or a text doubled forty times, are enough.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import Environment, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_SOURCE = 1 << 20  # characters of a template; the longest known have 20,000
MOST_LENGTH = 1 << 24  # characters of a text it makes, or entries of a list: four million tokens
MOST_NUMBER = 100_000  # a width, a count: no template pads further
MOST_STEPS = 1_000_000  # turns of loops and calls; a conversation of 500 messages takes some ten thousand
MOST_WRITTEN = 1 << 32  # what these steps may write together, at most a whole source each
MOST_BITS = 1_000_000  # of a whole number
MOST_SECONDS = 10.0


class UnboundedTemplate(Exception):
    """A template went beyond its bounds."""


class _Spent:
    """What a rendering has used so far."""

    def __init__(self, source: str) -> None:
        self.steps, self.most = 0, max(20_000, min(MOST_STEPS, MOST_WRITTEN // max(1, len(source))))
        self.ends = time.monotonic() + MOST_SECONDS

    def spend(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps > self.most:
            raise UnboundedTemplate(f"it takes more than {self.most:,} steps")
        if time.monotonic() > self.ends:
            raise UnboundedTemplate(f"it takes more than {MOST_SECONDS:.0f} seconds")


_SPENT: ContextVar[_Spent | None] = ContextVar("spent by a template", default=None)


@contextmanager
def bounded(source: str) -> Iterator[None]:
    """Inside, what templates of `BoundedSandbox` do is counted against one set of bounds."""
    if len(source) > MOST_SOURCE:
        raise UnboundedTemplate(f"it has {len(source):,} characters")
    token = _SPENT.set(_Spent(source))
    try:
        yield
    finally:
        _SPENT.reset(token)


def joined(pieces: Iterable[str]) -> str:
    """Return a text that comes in pieces, as long as it is no longer than a template may write."""
    found: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        _require(length)
        found.append(piece)
    return "".join(found)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which loops, calls, filters, and what makes texts and numbers grow are counted."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.filters = {name: guarded(name, work) for name, work in self.filters.items()}
        self.filters |= {"_counted": _counted, "_measured": _measured}
        self.globals.pop("lipsum")  # texts of any length; no template wants them

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _spend()
        _BINARY[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Jinja wraps the methods that format texts.
        bound = getattr(__obj, "__wrapped__", __obj)
        _require_small(getattr(bound, "__name__", ""), getattr(bound, "__self__", None), args, kwargs)
        return _measure(super().call(__context, __obj, *args, **kwargs))


class _Counting(NodeTransformer):
    """Puts a count around what loops run over and what texts are joined to."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_measured")


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


# With the context, or Jinja would count a loop over constants once, when it compiles.
@pass_context
def _counted(context: Context, items: Iterable[Any]) -> list[Any]:
    found = list(items)
    _spend(len(found))
    return found


@pass_context
def _measured(context: Context, text: Any) -> Any:
    return _measure(text)


def guarded(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts, and refuses to make what is huge."""

    @wraps(work)
    def counting(*args: Any, **kwargs: Any) -> Any:
        # What Jinja passes by itself may stand before it.
        values = [value for value in args if not isinstance(value, Context | nodes.EvalContext | Environment)]
        _require_small(name, values[0] if values else None, tuple(values[1:]), kwargs)
        return _measure(work(*args, **kwargs))

    return counting


# Filters of Jinja and methods of texts whose result is as long as a number they are given says.
_PADDING = frozenset(
    [
        "batch",
        "center",
        "expandtabs",
        "indent",
        "ljust",
        "rjust",
        "round",
        "slice",
        "tojson",
        "truncate",
        "wordwrap",
        "zfill",
    ]
)


def _require_small(name: str, text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call whose arguments alone say that its result is huge; ``text`` is what it works on."""
    _spend()
    given = [value for value in (*args, *kwargs.values()) if value is not text]
    if name in _PADDING and any(type(value) is int and abs(value) > MOST_NUMBER for value in given):
        raise UnboundedTemplate(f"{name} is given a number above {MOST_NUMBER:,}")
    if isinstance(text, str) and name.startswith("format"):
        _require_widths(text)
    old, new, *_ = [*(value for value in given if isinstance(value, str)), "", ""]
    if isinstance(text, str) and name == "replace":
        _require(len(text) + text.count(old) * len(new))


def _require_widths(text: str) -> None:
    if re.search(r"\d{6}", text):
        raise UnboundedTemplate(f"a width above {MOST_NUMBER:,}")


def _measure(value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        _require(len(value))
    return value


def _require(length: int) -> None:
    if length > MOST_LENGTH:
        raise UnboundedTemplate(f"it makes a text or a list of more than {MOST_LENGTH:,}")


def _spend(steps: int = 1) -> None:
    spent = _SPENT.get()
    if spent is not None:
        spent.spend(steps)


# -- operations --------------------------------------------------------------------------------------------------------


def _times(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() + right.bit_length())
        return
    for held, count in ((left, right), (right, left)):
        if isinstance(held, Sized) and isinstance(count, int):
            _require(len(held) * count)


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() * abs(right))


def _plus(left: Any, right: Any) -> None:
    if isinstance(left, Sized) and isinstance(right, Sized):
        _require(len(left) + len(right))


def _percent(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _require_widths(left)
        if "*" in left:  # a width that stands among the values
            raise UnboundedTemplate("a width that is a value")


def _require_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise UnboundedTemplate(f"a number of more than {MOST_BITS:,} bits")


_BINARY: dict[str, Callable[[Any, Any], None]] = {"*": _times, "**": _power, "+": _plus, "%": _percent}
