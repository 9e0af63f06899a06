"""Lines of `results.json` as a table: for the terminal, and between the markers of `docs/performance.md`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import Line, reaches

HEAD = ("row", "model", "precision", "ours", "peer", "ratio", "floor", "goal", "stands", "of bound")
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def verdict(line: Line) -> str:
    """In a word, how a line stands."""
    if line["ratio"] is None:
        return line["failed"]
    if not reaches(line, line["floor"]):
        return "FLOOR MISSED"
    if line["goal"] is not None:
        return "goal" if reaches(line, line["goal"]) else "goal open"
    return "floor" if line["floor"] is not None else "reported"


def cells(line: Line) -> tuple[str, ...]:
    """A line of the table, a text a column."""
    peer = f"{line['peer']} {line['peer_version']}".strip()
    start = (line["name"], line["model"], line["precision"])
    bounds = tuple(_bound(line, key) for key in ("floor", "goal"))
    end = (*bounds, verdict(line), _share(line))
    if line["ratio"] is None:
        return (*start, "-", peer, "-", *end)
    if isinstance(line["ours"], list):
        return (*start, f"{len(line['ours'])} numbers", peer, f"{line['ratio']:.1e}", *end)
    unit = line["unit"]
    ours = f"{_span(line, 'ours')} {unit}"
    tuned = line.get("sides", {}).get(f"{line.get('theirs_side')} allocator")
    theirs = _span(line, "theirs") + (f"; tuned {_number(tuned)}" if tuned else "")
    return (*start, ours, f"{theirs} ({peer})", f"{line['ratio']:.2f}x", *end)


def _share(line: Line) -> str:
    """``55% (3.8x)``: how near our side is to the machine's bound, and the ratio if it were there."""
    if "share_of_bound" not in line:
        return ""
    share = line["share_of_bound"]
    return f"{share:.0%} ({line['ratio'] / share:.1f}x)"


def _bound(line: Line, key: str) -> str:
    if line[key] is None:
        return ""
    return f"{'>=' if line['better'] == 'higher' else '<='} {line[key]:g}"


def _span(line: Line, side: str) -> str:
    """``1,234 (1,200-1,300)``: median with smallest and largest."""
    middle = _number(line[side])
    if f"{side}_min" not in line:
        return middle
    return f"{middle} ({_number(line[f'{side}_min'])}-{_number(line[f'{side}_max'])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plain(lines: Sequence[Line]) -> str:
    """For the terminal, in columns."""
    rows = [HEAD, *(cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(lines: Sequence[Line]) -> str:
    """For the docs."""
    rows = [HEAD, ("---",) * len(HEAD), *(cells(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def between_markers(page: str, text: str) -> str:
    """The page with what stands between its markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page lacks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
