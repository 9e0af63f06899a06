"""The model of a page that compares: named policies or runs down, measures across, figures, a verdict. Torch-free.

`write_compared` renders it as HTML and as Markdown. The page of one run has sections of its own and shares the rest:
styles, pictures, glossary. Pages load nothing: styles and pictures are inside, there is no script.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import accord
from accord.files import write_text
from accord.report.figures import Figure
from accord.report.glossary import glossary_of
from accord.report.names import Names


@dataclass(frozen=True)
class Measure:
    """A column: its heading, its term in the glossary (may be empty), the key of its numbers, and their decimals."""

    heading: str
    term: str
    key: str
    digits: int = 3


@dataclass(frozen=True)
class ComparedRow:
    """One policy or run. ``cells`` are as `parts.interval` makes them, one a measure.

    ``labels`` name it, ``link`` leads to its own page. With ``absent`` it has no cells and says why. ``broken`` marks
    one of its cells by number; a ``total`` sums up the others.
    """

    labels: tuple[str, ...]
    cells: tuple[Mapping[str, str], ...] = ()
    link: str = ""
    absent: str = ""
    broken: int | None = None
    total: bool = False


@dataclass(frozen=True)
class ComparedPage:
    """A page that compares. ``tone`` (good, mixed, bad) colours the ``pill`` beneath the verdict, if there is one."""

    title: str
    kind: str
    verdict: str
    caption: str
    headings: tuple[str, ...]
    measures: tuple[Measure, ...]
    rows: tuple[ComparedRow, ...]
    figures: tuple[Figure, ...]
    section: str
    tone: str = "mixed"
    pill: str = ""
    names: Names = field(default_factory=Names)


def text_cell(value: str) -> dict[str, str]:
    """A cell of words."""
    return {"prefix": "", "value": value, "range": ""}


def write_compared(page: ComparedPage, html: Path, markdown: Path | None = None) -> Path:
    """Write a page that compares, and its table as Markdown where a path is given; the page's path."""
    if markdown:
        write_page(markdown, "compared.md.j2", {"page": page}, page.names)
    return write_page(html, "compared.html.j2", {"page": page}, page.names)


def write_page(path: Path, template: str, context: Mapping[str, Any], names: Names) -> Path:
    """Fill a template, and write the page."""
    write_text(path, filled(template, context, names))
    return path


def filled(template: str, context: Mapping[str, Any], names: Names | None = None) -> str:
    """Fill a template; everything in it is escaped but the pictures, which are escaped where they are drawn."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=not template.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    called = names or Names()
    glossary = glossary_of(called)
    terms = {one.key: one for one in glossary}
    environment.globals |= {"version": accord.__version__, "glossary": glossary, "terms": terms, "names": called}
    return environment.get_template(template).render(context)
