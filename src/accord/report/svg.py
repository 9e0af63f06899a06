"""Small pictures as inline SVG: lines with intervals, dots with intervals, gauges, bars. Torch-free, no library.

Colours, dashes and fonts come from the page's style sheet by class name, so one picture serves light, dark and print.
Every picture says in words what it shows (``aria-label``), every mark its numbers (``title``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDE = 960
MARKS = {"candidate": "circle", "control": "triangle", "best_of_n": "square", "reference": "diamond"}
MARKS |= {f"m{i}": ("circle", "triangle", "square", "diamond")[i % 4] for i in range(10)}


@dataclass(frozen=True)
class Point:
    """One value with the interval around it (None = none stated); ``label`` tells it in words."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    size: float = 4.0


@dataclass(frozen=True)
class Series:
    """Points of one kind. ``style`` is a class of the page; with ``band`` intervals are an area, else whiskers."""

    name: str
    style: str
    points: tuple[Point, ...]
    line: bool = True
    marks: bool = True
    band: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis measures. ``ticks`` (position, text) and ``span`` are found from the data where not given."""

    label: str
    span: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] | None = None


@dataclass(frozen=True)
class Dot:
    """A row of `dots`: a value with its interval."""

    name: str
    style: str
    value: float
    low: float | None
    high: float | None


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside the span, about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """Short: 1500 as 1.5k, -0 as 0."""
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value + 0.0:.4g}"


def _span(values: Iterable[float], pad: float) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    room = (high - low) * pad or abs(high) * 0.1 or 1.0
    return low - room, high + room


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


# ---- lines ---------------------------------------------------------------------------------------------------------


def chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    allowed: tuple[float | None, float | None] | None = None,
    size: tuple[int, int] = (440, 270),
) -> Markup:
    """Lines over an x axis. ``allowed`` shades the y values that hold a bound."""
    width, height = size
    points = [point for one in series for point in one.points]
    if not points:
        return Markup("")
    edges = [p.y for p in points] + [e for p in points for e in (p.low, p.high) if e is not None]
    edges += [bound for bound in allowed or () if bound is not None]
    x_low, x_high = x.span or _span([p.x for p in points], 0.03)
    y_low, y_high = y.span or _span(edges, 0.07)
    to_x, to_y = _Scale(x_low, x_high, 46, width - 14), _Scale(y_low, y_high, height - 40, 26 if y.label else 10)
    parts = [_allowed(allowed, to_x, to_y)] if allowed else []
    parts += [_grid(x, y, to_x, to_y)]
    parts += [_series(one, to_x, to_y) for one in series]
    return _svg(width, height, f"{title}. {_in_words(series, x, y)}", parts)


def _svg(width: int, height: int, words: str, parts: Iterable[str]) -> Markup:
    wide = ' class="wide"' if width == WIDE else ""
    head = f'<svg viewBox="0 0 {width} {height}"{wide} role="img" aria-label="{escape(words)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "tick") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{style}"/>'


def _grid(x: Axis, y: Axis, to_x: _Scale, to_y: _Scale) -> str:
    found_x = x.ticks or tuple((t, tick_text(t)) for t in nice_ticks(to_x.low, to_x.high))
    found_y = y.ticks or tuple((t, tick_text(t)) for t in nice_ticks(to_y.low, to_y.high, 4))
    parts = [_line(to_x.start, to_y(t), to_x.end, to_y(t), "grid") for t, _ in found_y]
    parts += [_text(to_x.start - 6, to_y(t) + 4, text, "end") for t, text in found_y]
    parts += [_line(to_x(t), to_y.start, to_x(t), to_y.start + 4, "axis") for t, _ in found_x]
    parts += [_text(to_x(t), to_y.start + 17, text, "middle") for t, text in found_x]
    parts.append(_line(to_x.start, to_y.start, to_x.end, to_y.start, "axis"))
    parts += [_text(6, 14, y.label, style="name"), _text(to_x.end, to_y.start + 34, x.label, "end", "name")]
    return "".join(parts)


def _allowed(allowed: tuple[float | None, float | None], to_x: _Scale, to_y: _Scale) -> str:
    low, high = allowed
    bottom = to_y.start if low is None else to_y(low)
    top = to_y.end if high is None else to_y(high)
    box = f'x="{to_x.start:g}" y="{top:g}" width="{to_x.end - to_x.start:g}" height="{max(0.0, bottom - top):g}"'
    return f'<rect {box} class="allowed"><title>the floor is held here</title></rect>'


def _series(one: Series, to_x: _Scale, to_y: _Scale) -> str:
    places = [(to_x(p.x), to_y(p.y)) for p in one.points]
    parts = [_band(one, to_x, to_y) if one.band else _whiskers(one, to_x, to_y)]
    if one.line and len(places) > 1:
        path = " ".join(f"{x:g},{y:g}" for x, y in places)
        parts.append(f'<polyline points="{path}" class="line"/>')
    if one.marks:
        kind = MARKS.get(one.style, "circle")
        parts += [_mark(kind, x, y, p.size, p.label) for (x, y), p in zip(places, one.points, strict=True)]
    return f'<g class="s-{escape(one.style)}">' + "".join(parts) + "</g>"


def _whiskers(one: Series, to_x: _Scale, to_y: _Scale) -> str:
    return "".join(
        _line(to_x(p.x), to_y(p.low), to_x(p.x), to_y(p.high), "whisker")
        for p in one.points
        if p.low is not None and p.high is not None
    )


def _band(one: Series, to_x: _Scale, to_y: _Scale) -> str:
    held = [(to_x(p.x), to_y(p.low), to_y(p.high)) for p in one.points if p.low is not None and p.high is not None]
    edge = [(x, high) for x, _, high in held] + [(x, low) for x, low, _ in reversed(held)]
    path = " ".join(f"{x:g},{y:g}" for x, y in edge)
    return f'<polygon points="{path}" class="band"/>' if len(held) > 1 else ""


def _mark(kind: str, x: float, y: float, size: float, label: str) -> str:
    title = f"<title>{escape(label)}</title>" if label else ""
    if kind == "circle":
        return f'<circle cx="{x:g}" cy="{y:g}" r="{size:g}" class="mark">{title}</circle>'
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "triangle": [(0, -1.2), (1.15, 0.95), (-1.15, 0.95)],
    }[kind]
    path = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" class="mark">{title}</polygon>'


def _in_words(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """First and last point of each series, for those who cannot see the picture."""
    told = [
        f"{one.name} from {one.points[0].y:.3g} to {one.points[-1].y:.3g}"
        if len(one.points) > 1
        else f"{one.name} {one.points[0].y:.3g}"
        for one in series
        if one.points
    ]
    return f"{y.label or 'Value'} over {x.label}: " + "; ".join(told)


def swatch(one: Series) -> Markup:
    """A piece of a series for a legend."""
    parts = [_line(0, 7, 26, 7, "line")] if one.line else []
    if one.marks:
        parts.append(_mark(MARKS.get(one.style, "circle"), 13, 7, 4, ""))
    inner = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 26 14" class="swatch" aria-hidden="true"><g class="s-{escape(one.style)}">{inner}</g></svg>'
    )


# ---- rows ----------------------------------------------------------------------------------------------------------


def dots(
    rows: Sequence[Dot],
    *,
    title: str,
    axis: str,
    rule: float | None = None,
    span: tuple[float, float] | None = None,
    width: int = WIDE,
) -> Markup:
    """One row each: name, dot with its interval, and the numbers. ``rule`` draws a vertical line, e.g. at one half.

    A picture that is not wide has no room for the numbers: they are told where a reader points.
    """
    if not rows:
        return Markup("")
    step, right = 29, 170 if width >= WIDE else 14
    left = 30 + 7 * max(len(row.name) for row in rows)
    height = step * len(rows) + 44
    found = [e for r in rows for e in (r.value, r.low, r.high) if e is not None]
    low, high = span or _span([*found, *([rule] if rule is not None else [])], 0.06)
    to_x = _Scale(low, high, left, width - right)
    bottom = step * len(rows) + 8
    parts = [_line(to_x(t), 4, to_x(t), bottom, "grid") for t in nice_ticks(low, high)]
    parts += [_text(to_x(t), bottom + 16, tick_text(t), "middle") for t in nice_ticks(low, high)]
    parts.append(_text(to_x.end, bottom + 32, axis, "end", "name"))
    if rule is not None:
        parts.append(_line(to_x(rule), 0, to_x(rule), bottom, "rule"))
    parts += [_dot_row(row, step * i + 20, to_x, width if width >= WIDE else None) for i, row in enumerate(rows)]
    told = "; ".join(f"{row.name}: {_numbers(row)}" for row in rows)
    return _svg(width, height, f"{title}. {axis}. {told}", parts)


def _numbers(row: Dot) -> str:
    if row.low is None or row.high is None:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _dot_row(row: Dot, y: float, to_x: _Scale, numbers_at: float | None) -> str:
    whisker = ""
    if row.low is not None and row.high is not None:
        whisker = _line(to_x(row.low), y, to_x(row.high), y, "whisker thick")
    mark = _mark(MARKS.get(row.style, "circle"), to_x(row.value), y, 5.5, f"{row.name}: {_numbers(row)}")
    label = _text(to_x.start - 12, y + 4, row.name, "end", "row-name")
    numbers = "" if numbers_at is None else _text(numbers_at, y + 4, _numbers(row), "end")
    return label + f'<g class="s-{escape(row.style)}">{whisker}{mark}</g>' + numbers


def gauge(value: float, low: float | None, high: float | None, *, held: bool, words: str) -> Markup:
    """Where a value lies against its bounds: the allowed stretch of a line is drawn strong."""
    bounds = [b for b in (low, high) if b is not None]
    centre = sum(bounds) / len(bounds)
    reach = 1.25 * max([abs(value - centre), *(abs(b - centre) for b in bounds), abs(centre) * 0.35, 0.05])
    to_x = _Scale(centre - reach, centre + reach, 8, 212)
    start = to_x.start if low is None else to_x(low)
    end = to_x.end if high is None else to_x(high)
    parts = [_line(to_x.start, 10, to_x.end, 10, "track"), _line(start, 10, end, 10, "track good")]
    parts += [_line(to_x(b), 4, to_x(b), 16, "bound") for b in bounds]
    mark = _mark("circle", to_x(value), 10, 6, words)
    return _svg(220, 20, words, [*parts, f'<g class="{"held" if held else "broken"}">{mark}</g>'])


def bars(rows: Sequence[tuple[str, float, str]], *, title: str) -> Markup:
    """Horizontal bars: name, length, and what to write behind it."""
    if not rows:
        return Markup("")
    width, step, left = WIDE, 25, 120
    longest = max(value for _, value, _ in rows) or 1.0
    parts = []
    for i, (name, value, text) in enumerate(rows):
        y, length = step * i + 4, max(1.0, value / longest * (width - left - 110))
        parts.append(_text(left - 10, y + 13, name, "end", "row-name"))
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{step - 9}" rx="2" class="bar"/>')
        parts.append(_text(left + length + 8, y + 13, text))
    told = "; ".join(f"{name}: {text}" for name, _, text in rows)
    return _svg(width, step * len(rows) + 4, f"{title}. {told}", parts)
