"""Strangers' markdown as HTML that can do nothing: no scripts, no images, no styles, links that open only when clicked.

Two walls: markdown-it escapes raw HTML, and what it made is then cleaned against a short list of tags (nh3).
The browser's content security policy is the third.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markupsafe import Markup, escape

TAGS = {
    *(
        "p",
        "br",
        "hr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "blockquote",
        "ul",
        "ol",
        "li",
        "pre",
        "code",
        "em",
        "strong",
    ),
    *("s", "a", "table", "thead", "tbody", "tr", "th", "td", "span"),
}
_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes={"a": {"href", "title"}, "ol": {"start"}},
    tag_attribute_values={"span": {"class": {"no-image"}}, "pre": {"tabindex": {"0"}}},
    set_tag_attribute_values={"a": {"target": "_blank"}},
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer",
)


def _no_image(self: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Put an image's description in its place: no image is ever fetched."""
    description = "image: " + (tokens[index].content or "no description")
    return f'<span class="no-image">[{escapeHtml(description)}]</span>'


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True})
    parser.enable(["table", "strikethrough"])
    parser.add_render_rule("image", _no_image)
    return parser


_PARSER = _parser()


#: Most marks of a text that is read as markdown. Honest texts have a few in a hundred characters.
MOST_MARKS = 10_000
# Every short row of a table is filled up to the width of the first: a small text could make a huge page.
MOST_CELLS = 10_000
# Where the parser stops and tries its rules: what a text costs goes with their number, not with its length.
_MARK = re.compile(r"[\n!#$%&*+\-:<=>@\[\\\]^_`{}~|]")


@lru_cache(maxsize=2048)
def render(text: str) -> Markup:
    """Return markdown as safe HTML. A block of code can be scrolled by keyboard.

    A text of more than `MOST_MARKS` marks stands as it is written: 100,000 brackets would take seconds. So does what
    could be a table of more than `MOST_CELLS` cells: every short row of one is filled up to the width of the first.
    """
    lines = text.split("\n")
    cells = len(lines) * max(line.count("|") for line in lines)
    if cells > MOST_CELLS or sum(1 for _ in _MARK.finditer(text)) > MOST_MARKS:
        return Markup("<p>") + escape(text).replace("\n", Markup("<br>\n")) + Markup("</p>")
    made = _PARSER.render(text).replace("<pre><code", '<pre tabindex="0"><code')
    return Markup(_CLEANER.clean(made))
