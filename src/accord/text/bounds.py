"""Bounds for a program of somebody else's that writes a text: steps, time and length, so that none runs for ever.

A chat template comes with a model's folder, from anyone. Jinja's sandbox keeps it from the machine, but not from the
machine's time and memory: three nested loops, or a text doubled forty times, are enough.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import Environment, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_SOURCE = 1 << 17  # characters of a template; the longest known have 20,000. To compile one is not interrupted.
MOST_LENGTH = 1 << 22  # characters of a text it makes, as a list is written out too: a million tokens
MOST_NUMBER = 100_000  # a width, a count: no template pads further
MOST_STEPS = 1_000_000  # turns of loops and calls; a conversation of 500 messages takes some ten thousand
MOST_WRITTEN = 1 << 32  # what these steps may write together, at most a whole source each
MOST_MADE = 1 << 28  # characters that texts on the way may have together: all of them may be held at once
MOST_BITS = 20_000  # of a whole number: Python writes out no more than 4,300 digits
MOST_SECONDS = 5.0  # of the processor, in this thread: another program's work is no fault of a template
ENTRY = 8  # what an entry of a list or a number counts beside a character


class UnboundedTemplate(Exception):
    """A template went beyond its bounds."""


class _Spent:
    """What a rendering has used so far."""

    def __init__(self, source: str) -> None:
        self.steps, self.most = 0, max(20_000, min(MOST_STEPS, MOST_WRITTEN // max(1, len(source))))
        self.made = 0
        self.ends = time.thread_time() + MOST_SECONDS

    def spend(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps > self.most:
            raise UnboundedTemplate(f"it takes more than {self.most:,} steps")
        self.look_at_the_clock()

    def make(self, length: int) -> None:
        self.made += length
        if self.made > MOST_MADE:
            raise UnboundedTemplate(f"its texts have more than {MOST_MADE:,} characters together")

    def look_at_the_clock(self) -> None:
        if time.thread_time() > self.ends:
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
    concat = staticmethod(joined)  # what macros and blocks wrote

    def __init__(self, **settings: Any) -> None:
        super().__init__(finalize=_shown, **settings)
        self.filters = {name: guarded(name, work) for name, work in self.filters.items()}
        self.filters |= {"_counted": _counted, "_measured": _measured}
        self.globals.pop("lipsum")  # texts of any length; no template wants them
        for name in (
            "urlize",
            "wordwrap",
            "xmlattr",
            "pprint",
        ):  # slow or long beyond all bounds, and of no use in a prompt
            self.filters.pop(name)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _spend()
        _BINARY[operator](left, right)
        return _measure(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Jinja wraps the methods that format texts.
        bound = getattr(__obj, "__wrapped__", __obj)
        _require_small(getattr(bound, "__name__", ""), getattr(bound, "__self__", None), args, kwargs)
        return _measure(super().call(__context, __obj, *args, **kwargs))


class _Counting(NodeTransformer):
    """Puts a count around what loops run over, what texts are joined to, what is compared, and what holds others."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        # The parts too: to write out a list is to make a text.
        node.nodes = [_filtered(part, "_measured") for part in node.nodes]
        return _filtered(node, "_measured")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_measured") if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_measured")  # a long text within a longer one takes its time

    def _visit_holder(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        # Names that values are given to stand in a tuple as well.
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, "_measured")

    visit_List = visit_Tuple = visit_Dict = _visit_holder


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


# With the context, or Jinja would count a loop over constants once, when it compiles.
@pass_context
def _counted(context: Context, items: Iterable[Any]) -> list[Any]:
    found = _Turns(items)
    _spend(len(found))
    return found


@pass_context
def _measured(context: Context, value: Any) -> Any:
    _spend(0)
    return _measure(value)


class _Turns(list[Any]):
    """What a loop runs over: each turn looks at the clock, for its body may do slow things that nothing counts."""

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            _spend(0)
            yield item


def _shown(value: Any) -> Any:
    """Return what is written out, unless its text would be huge."""
    if not isinstance(value, str):
        weight(value)
    return value


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


# Filters that do something for each entry, or each character, of what they work on.
_WALKING = frozenset(
    (
        *("batch", "groupby", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "slice"),
        *("sort", "sum", "unique"),
    )
)
# Filters and methods that write a number or a text again for each line, tab or entry of what they work on.
_SPREADING = frozenset(["expandtabs", "indent", "tojson"])


def _require_small(name: str, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call whose arguments alone say that its result is huge; ``subject`` is what it works on."""
    _spend()
    given = [value for value in (*args, *kwargs.values()) if value is not subject]
    numbers = [abs(value) for value in given if type(value) is int]
    texts = [value for value in given if isinstance(value, str)]
    if name in _PADDING and any(number > MOST_NUMBER for number in numbers):
        raise UnboundedTemplate(f"{name} is given a number above {MOST_NUMBER:,}")
    if name in _WALKING and isinstance(subject, Sized):
        _spend(len(subject))
    if name in _SPREADING:
        _require(weight(subject) * max([1, *numbers, *map(len, texts)]))
    if isinstance(subject, str) and name.startswith("format"):
        _require_format(subject, args, kwargs)
    if isinstance(subject, str) and name == "replace":
        old, new, *_ = [*texts, "", ""]
        _require(len(subject) + subject.count(old) * len(new))
    if name == "join":  # of a text, or the filter of a list
        entries, between = (args[0] if args else (), subject) if isinstance(subject, str) else (subject, "".join(texts))
        if isinstance(entries, Sized):
            _require(weight(entries) + len(entries) * len(between))


def _require_format(text: str, *values: Any) -> None:
    """Refuse what a format would make: so many values, each of the longest one's length and the largest width."""
    if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*\{", text):
        raise UnboundedTemplate("a width that is a value")
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", text)]
    if max(widths, default=0) > MOST_NUMBER:
        raise UnboundedTemplate(f"a width above {MOST_NUMBER:,}")
    _require(len(text) + (text.count("%") + text.count("{")) * (weight(values) + max(widths, default=0)))


def _measure(value: Any) -> Any:
    """Return a value that a template has made, counted; what it writes out as has a bound."""
    if isinstance(value, str):
        _require(len(value))
        _make(len(value))
    elif isinstance(value, Collection):
        weight(value)
        _make(ENTRY * len(value))
    return value


def weight(value: Any, known: dict[int, int] | None = None) -> int:
    """Return about how many characters a value has, written out; the same list held many times counts each time.

    Raises:
        UnboundedTemplate: They are too many, or it holds itself.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Namespace):
        raise UnboundedTemplate("a namespace among values")  # nothing bounds what hangs on it
    if not isinstance(value, Collection):
        return ENTRY
    known = {} if known is None else known
    if id(value) not in known:
        inner = (*value.keys(), *value.values()) if isinstance(value, Mapping) else value
        known[id(value)] = MOST_LENGTH + 1  # until it is known: what holds itself has no end
        known[id(value)] = ENTRY + sum(ENTRY + weight(one, known) for one in inner)
    _require(known[id(value)])
    return known[id(value)]


def _require(length: int) -> None:
    if length > MOST_LENGTH:
        raise UnboundedTemplate(f"it makes a text or a list of more than {MOST_LENGTH:,}")


def _make(length: int) -> None:
    spent = _SPENT.get()
    if spent is not None:
        spent.make(length)


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
            _require(weight(held) * count)


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() * abs(right))


def _plus(left: Any, right: Any) -> None:
    if isinstance(left, Sized) and isinstance(right, Sized):
        _require(len(left) + len(right))


def _percent(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _require_format(left, right)


def _require_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise UnboundedTemplate(f"a number of more than {MOST_BITS:,} bits")


_BINARY: dict[str, Callable[[Any, Any], None]] = {"*": _times, "**": _power, "+": _plus, "%": _percent}
