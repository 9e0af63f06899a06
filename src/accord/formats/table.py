"""The table of formats, and how a file's format is recognised by its rows."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accord import extend
from accord.errors import DataError, UsageError
from accord.files import InputFile, format_said
from accord.formats import alpaca, arena, columns, hh, oasst, openai, own, published, samples, sharegpt, tools, trl
from accord.formats.format import Fields, Format
from accord.formats.source import Container, container_of, rows
from accord.formats.unreadable import names_of, no_format_error

#: Every format, the more particular ones first: of those that fit a file equally well, the first is its name.
FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        hh.HH,
        hh.HH_RED_TEAM,
        oasst.OASST_TREES,
        oasst.OASST_MESSAGES,
        oasst.OASST_THREADS,
        samples.OWN_SAMPLES,
        *published.PUBLISHED,
        arena.ARENA,
        arena.ARENA_ONE_HOT,
        arena.FASTCHAT,
        arena.OPEN_WEBUI,
        *tools.TOOLS,
        openai.OPENAI_PREFERENCE,
        openai.OPENAI_SFT,
        sharegpt.SHAREGPT_PREFERENCE,
        sharegpt.SHAREGPT_KTO,
        sharegpt.SHAREGPT_SFT,
        alpaca.ALPACA_PREFERENCE,
        alpaca.ALPACA_KTO,
        alpaca.ALPACA_SFT,
        own.ACCORD,
        *trl.TRL_SHAPES,
        columns.PLAIN,
    )
}

#: Names for several formats: the first of them that fits is taken, by the first item (or row).
FORMAT_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "trl": tuple(shape.name for shape in trl.TRL_SHAPES),
    "openai": ("openai-preference", "openai-sft"),
    "sharegpt": ("sharegpt-preference", "sharegpt-kto", "sharegpt"),
    "alpaca": ("alpaca-preference", "alpaca-kto", "alpaca"),
    "oasst": ("oasst-trees", "oasst-messages", "oasst-threads"),
}
#: Accord's own rows by the file that holds them.
PLAIN_FILES = ("jsonl", "json", "csv", "parquet")

# Enough that a few odd rows do not decide, few enough for a file of long trees.
SAMPLE_ROWS = 64


@dataclass(frozen=True)
class Detected:
    """What a file is: the format's name, how it holds its rows, why, and the formats that it equally is."""

    format: str
    container: Container
    why: str
    also: tuple[str, ...] = ()


def format_named(name: str) -> Format:
    """Return a row of the table, or a `Format` of a user's own as ``module:name``.

    Raises UsageError where there is none.
    """
    if name in FORMATS:
        return FORMATS[name]
    found = extend.outside(name, hint=f"give one of {', '.join(sorted({*FORMATS, *FORMAT_FAMILIES}))}, or module:name")
    if not isinstance(found, Format):
        raise UsageError(f"{name!r} is {type(found).__name__}, not a Format", hint="see accord.formats.Format")
    return found


def members(name: str) -> tuple[Format, ...]:
    """Return the formats that a name means, several where it is a family's. Raises UsageError where there is none."""
    if name in PLAIN_FILES:
        return (own.ACCORD,)
    return tuple(format_named(member) for member in FORMAT_FAMILIES.get(name, (name,)))


def suffix_of(name: str) -> str:
    """Return how the name of a file ends that is written in a format and has no name yet."""
    return f".{name}" if name in PLAIN_FILES else ".jsonl"


def with_columns(path: Path, format: Format) -> Detected:
    """Return what a file is whose columns the user named: each of the format's must be in one of the first rows.

    Raises DataError where one is in none, and says which there are.
    """
    container = container_of(path)
    there = names_of(sample_of(path, container))
    for name in sorted(format.fields - set(there)):
        near = difflib.get_close_matches(name, there, n=1)
        raise DataError(
            f"no column is called {name!r}",
            where=str(path),
            why="its columns are " + ", ".join(f'"{column}"' for column in there),
            hint=f"did you mean {near[0]!r}?" if near else "name one of these",
        )
    return Detected(format.name, container, "you named its columns")


def detect(path: Path | str, format: str | None = None, ignored: Collection[str] = ()) -> Detected:
    """Return what a file is, by its first rows; among the formats that a name means, if one is given.

    A format fits a row only where it leaves no column unread that looks like a judgement or a part of the prompt.

    Args:
        path: The file.
        format: A name of `FORMATS` or of a family; any without it.
        ignored: Columns that mean nothing, as the user says.

    Raises:
        DataError: No format fits, or the file cannot be read.
        UsageError: There is no format of that name.
    """
    format = format_said(path) if format is None else format
    path = Path(path)
    among = tuple(FORMATS.values()) if format is None else members(format)
    container = container_of(path)
    if format is not None and len(among) == 1:
        return Detected(among[0].name if format in PLAIN_FILES else format, container, "you said so")
    sample = sample_of(path, container, ignored)
    found = _fitting(among, sample, container)
    if found is None and any(name != name.lower() for name in names_of(sample)):
        lower = replace(container, lower=True)
        found = _fitting(among, sample_of(path, lower, ignored), lower)
    if found is None:
        raise no_format_error(path, container, sample, among)
    return found


def _fitting(among: Sequence[Format], sample: Sequence[Fields], container: Container) -> Detected | None:
    fits = {
        c.name: {i: why for i, row in enumerate(sample) if (why := c.matches(row)) and not c.unused(row)} for c in among
    }
    for candidate in among:
        if own := fits[candidate.name]:
            own |= {i: why for name in candidate.reads_too for i, why in fits.get(name, {}).items() if i not in own}
    # Of equals the first of the table, which is the more particular one.
    best = max(fits, key=lambda name: len(fits[name]))
    # Half at least: a file of which most rows are something else is something else.
    if not sample or 2 * len(fits[best]) < len(sample):
        return None
    count = f"{len(fits[best])} of the first {len(sample)} rows: {next(iter(fits[best].values()))}"
    also = tuple(name for name, found in fits.items() if name != best and len(found) == len(fits[best]))
    return Detected(best, container, count, also)


def input_file(text: str) -> Path:
    """Return the file that ``PATH`` or ``FORMAT:PATH`` means: ``hh:pairs.jsonl``, ``my_formats:QA:rows.txt``.

    What stands before the path must name a format, and a file that bears the whole name is that file.
    """
    format, path = _format_and_path(text)
    if format is None:
        return Path(text)
    found = InputFile(path)
    found.format = format
    return found


def _format_and_path(text: str) -> tuple[str | None, str]:
    for parts in (1, 2):
        format, path = ":".join(text.split(":", parts)[:parts]), "".join(text.split(":", parts)[parts:])
        known = extend.is_outside(format) or format in {*FORMATS, *FORMAT_FAMILIES, *PLAIN_FILES}
        if path and known and not Path(text).exists():
            return format, path
    return None, text


def sample_of(path: Path, container: Container, ignored: Collection[str] = ()) -> list[Fields]:
    """Return the first good rows of a file, without columns that mean nothing."""
    found = (row.fields for row in itertools.islice(rows(path, container, lambda reject: None), SAMPLE_ROWS))
    return [without(fields, ignored) for fields in found]


def without(fields: Fields, ignored: Collection[str]) -> Fields:
    """Return the fields of a row but those that mean nothing."""
    return {name: value for name, value in fields.items() if name not in ignored} if ignored else fields
