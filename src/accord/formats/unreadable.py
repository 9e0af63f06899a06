"""What is said of a file that no format reads: what stands in the way, and what the user can say to mend it."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from accord.errors import DataError
from accord.formats.format import Fields, Format
from accord.formats.judging_columns import looks_like_judgement
from accord.formats.rows import Reject
from accord.formats.source import Container, rows

# How columns are called that hold what a flag of `accord import` names, in the order in which they are proposed.
_LIKELY: Mapping[str, re.Pattern[str]] = {
    "prompt": re.compile(r"prompt|question|query|ask|instruction|user|input|message|request|text", re.I),
    "chosen": re.compile(r"chosen|better|prefer|winn|accept|^good|positive", re.I),
    "rejected": re.compile(r"reject|worse|los(er|ing)|^bad|negative", re.I),
    "completion": re.compile(r"completion|response|answer|reply|output|assistant|bot", re.I),
    "topic": re.compile(r"topic|category|intent|subject|domain", re.I),
}


def no_format_error(path: Path, container: Container, sample: Sequence[Fields], among: Iterable[Format]) -> DataError:
    """Return the error of a file that no format reads: its names, the column in the way, and what to say of it."""
    if not sample:
        found: list[Reject] = []
        next(iter(rows(path, container, found.append)), None)
        why = f"{found[0].where}: {found[0].problem}" if found else ""
        hint = found[0].hint if found else "see what it holds"
        return DataError(f"no row of the file can be read as {container}", where=str(path), why=why, hint=hint)
    lost = _lost(sample, among)
    if lost:
        name, columns = lost
        return left_unread(str(path), columns, name, sample[0])
    known = next((why for test, why in _KNOWN if test(sample[0])), "") or _half(sample[0])
    names = ", ".join(f'"{name}"' for name in names_of(sample))
    flags = proposed(sample) or "--prompt-field NAME"
    return DataError(
        "no format is known that has these rows",
        where=str(path),
        why=known or f"its rows have {names}",
        hint=f"say which column is what: {flags}; or name a --format (docs/formats.md, or your own)",
    )


def left_unread(where: str, columns: Sequence[str], format: str, fields: Fields) -> DataError:
    """Return the refusal of a column that looks like a judgement, or a part of the prompt, and that nothing reads."""
    named = ", ".join(f'"{name}"' for name in columns)
    judged = any(map(looks_like_judgement, columns))
    what = _LOOKS[judged, len(columns) > 1]
    flag, nothing = _flag(columns[0], judged, fields), " ".join(f"--ignore {name}" for name in columns)
    return DataError(
        f"{named} {what}, and would be lost",
        where=where,
        why=f"the rows would be read as {format}, which has no such column",
        hint=f"`accord import` takes what it is ({flag}), or that it means nothing: {nothing}",
    )


# By whether columns look like judgements, and whether there are several.
_LOOKS = {
    (True, True): "look like judgements",
    (True, False): "looks like a judgement",
    (False, True): "look like parts of the prompt",
    (False, False): "looks like a part of the prompt",
}


def _flag(name: str, judged: bool, fields: Fields) -> str:
    """Return the flag of `accord import` that would name a column."""
    if not judged:
        return f"--system-field {name}" if "system" in name else f"--prompt-field {name}"
    value = fields.get(name)
    if isinstance(value, bool) or value in (0, 1, "0", "1", "true", "false", "True", "False"):
        return f"--label-field {name}"
    return f"--rating-field {name}" if isinstance(value, int | float) else f"--chosen-field or --choice-field {name}"


def proposed(sample: Sequence[Fields]) -> str:
    """Return the flags that probably name the columns of a file, "" where none looks like one."""
    names, taken = names_of(sample), set[str]()
    flags = []
    for role, pattern in _LIKELY.items():
        texts = (name for name in names if name not in taken and any(isinstance(row.get(name), str) for row in sample))
        if name := next(filter(pattern.search, texts), ""):
            taken.add(name)
            flags.append(f"--{role}-field {name}")
    paired = {flag.split()[0] for flag in flags} >= {"--chosen-field", "--rejected-field"}
    # One without the other names no pair.
    kept = [flag for flag in flags if paired or not flag.startswith(("--chosen", "--rejected"))]
    return " ".join(kept)


def _lost(sample: Sequence[Fields], among: Iterable[Format]) -> tuple[str, list[str]] | None:
    """Return the format that fits most rows but for columns it would not read, and those columns."""
    best: tuple[int, str, list[str]] = (0, "", [])
    for format in among:
        fitting = [row for row in sample if format.matches(row)]
        columns, count = Counter(name for row in fitting for name in format.unused(row)), len(fitting)
        # Of equals the one that loses least.
        if columns and 2 * count >= len(sample) and (count, -len(columns)) > (best[0], -len(best[2] or columns)):
            best = (count, format.name, [name for name, _ in columns.most_common()])
    return best[1:] if best[0] else None


def _is_potato(fields: Fields) -> bool:
    return "label_annotations" in fields


def _is_doccano(fields: Fields) -> bool:
    return isinstance(fields.get("text"), str) and isinstance(fields.get("label"), list) and "prompt" not in fields


_KNOWN = (
    (
        _is_potato,
        "Potato writes annotations apart from the texts: join them with the file that was annotated, one row an answer",
    ),
    (
        _is_doccano,
        "doccano's texts that people wrote and its classes look alike: where they wrote them, give --format doccano",
    ),
)


# Columns of which one alone says nothing.
_HALVES = {
    "chosen": "rejected",
    "rejected": "chosen",
    "completions": "ranks",
    "label": "completion",
    "ranks": "completions",
}


def _half(fields: Fields) -> str:
    """Return what is missing beside a column that makes no sense alone, "" where nothing is."""
    lone = next((name for name, other in _HALVES.items() if name in fields and other not in fields), "")
    if not lone:
        return ""
    near = difflib.get_close_matches(_HALVES[lone], fields, n=1)
    meant = f'; did you mean "{near[0]}"?' if near and near[0] != lone else ""
    return f'"{lone}" has no "{_HALVES[lone]}" beside it{meant}'


def names_of(sample: Iterable[Fields]) -> list[str]:
    """Return the first names of columns in some rows, cut short, for a person to read."""
    return list(dict.fromkeys(name[:40] for fields in sample for name in fields))[:20]
