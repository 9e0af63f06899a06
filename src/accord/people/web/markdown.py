"""Strangers' markdown as HTML that can do nothing: no scripts, no styles, links that open only when clicked.

Formulas are drawn (`accord.people.web.formulas`), code is coloured, images are those of the project's folder, and
characters that nobody sees are marked (`accord.people.web.marks`). Where it is in doubt that something is a formula,
it is text as it was written.

Two walls: markdown-it escapes raw HTML, and what it made is then cleaned against a short list of tags (nh3).
The browser's content security policy is the third.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup

from accord.people.remembered import Remembered
from accord.people.web.code import CODE_CLASSES, coloured
from accord.people.web.formulas import MATHML, MOST_LATEX, mathml
from accord.people.web.marks import marked, marked_html, spelled
from accord.people.web.pictures import PICTURES, picture_url

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
    *("s", "a", "table", "thead", "tbody", "tr", "th", "td", "span", "img"),
    *MATHML,
}


def _url(url: str) -> str | None:
    """Let through what `_picture` made: every other relative address is taken away."""
    return url if url.startswith(PICTURES) else None


def _attribute(tag: str, name: str, value: str) -> str | None:
    if name in ("title", "alt"):
        return spelled(value)
    own = value.startswith(PICTURES)
    return None if (tag == "img" and name == "src" and not own) or (tag == "a" and name == "href" and own) else value


_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes={
        "a": {"href", "title"},
        "ol": {"start"},
        "img": {"src", "alt"},
        **{tag: {*attributes} for tag, attributes in MATHML.items()},
    },
    tag_attribute_values={"span": {"class": {"no-image", "tex", *CODE_CLASSES}}, "pre": {"tabindex": {"0"}}},
    # Lists and quotes run as their first letters do, marks and rules too; lines within them by the style sheet.
    set_tag_attribute_values={
        "a": {"target": "_blank"},
        **{tag: {"dir": "auto"} for tag in ("ul", "ol", "blockquote", "table")},
    },
    attribute_filter=_attribute,
    url_schemes={"http", "https", "mailto"},
    url_relative=_url,
    link_rel="noopener noreferrer",
)


# ---- images ------------------------------------------------------------------------------------------------------


def _picture(self: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Show an image of the project's folder; of any other its description and address: it is never fetched."""
    alt, address = tokens[index].content, str(tokens[index].attrs.get("src", ""))
    if url := picture_url(env.get("folder"), address):
        return f'<img src="{escapeHtml(url)}" alt="{escapeHtml(alt)}">'
    described = ", ".join(part for part in (alt or "no description", address) if part)
    return f'<span class="no-image">[image: {escapeHtml(described)}]</span>'


# ---- formulas ----------------------------------------------------------------------------------------------------

_CLOSING = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_ARGUMENT = re.compile(
    r"\\(?:text|mathrm|operatorname\*?|textbf|textit|mbox)\s*\{[^{}]*\}|[_^]\s*\{[^{}]*\}|\\[a-zA-Z]+"
)
# What only a formula has, or hardly anything else.
_SIGN = re.compile(r"\\[a-zA-Z]{2,}|[\^_=<>+*/]|[-−]\s*\w|^\s*[A-Za-z]'?\s*$|^[A-Za-z]{1,2}\([A-Za-z]{1,2}\)$")
_WORD = re.compile(r"[^\W\d_]{3,}")


def _is_formula(inner: str, opening: str) -> bool:
    """Whether what stands between two delimiters is a formula rather than prose with dollars or escaped brackets."""
    if not inner.strip() or len(inner) > MOST_LATEX or "\n\n" in inner:
        return False
    has_command = re.search(r"\\[a-zA-Z]{2,}|[_^]\{", inner) is not None
    bare = _ARGUMENT.sub(" ", inner)
    if not has_command and (_WORD.search(bare) or (inner[0].isdigit() and re.search(r"[A-Za-z]{2}", bare))):
        return False  # "$5 now or 6$", "\[see below\]"
    if opening == "$" and inner.lstrip().startswith("{") and not has_command:
        return False  # ${HOME}
    return bool(_SIGN.search(inner)) or (opening in ("$", "$$") and inner.strip().isalnum())


def _formula_at(text: str, at: int) -> tuple[str, str] | None:
    """Return the delimiter that opens a formula here, and its inside; None where none does."""
    opening = text[at : at + 2] if text[at : at + 2] in ("$$", r"\(", r"\[") else text[at : at + 1]
    if opening not in _CLOSING or (at and (text[at - 1].isalnum() or text[at - 1] in "$\\")):
        return None
    start = at + len(opening)
    end = _end_of(text, start, _CLOSING[opening])
    if end < 0:
        return None
    inner, after = text[start:end], text[end + len(opening) : end + len(opening) + 1]
    if opening == "$" and (inner[:1].isspace() or inner[-1:].isspace() or after.isdigit() or after == "$"):
        return None  # "$5 and $6"
    return (opening, inner) if _is_formula(inner, opening) else None


def _end_of(text: str, start: int, closing: str) -> int:
    """Return where the first closing delimiter stands that no backslash escapes; -1 where there is none nearby."""
    end = start - len(closing)
    while (end := text.find(closing, end + len(closing), start + MOST_LATEX + 2)) >= 0:
        before = text[max(start, end - 20) : end]
        if closing[0] == "\\" or (len(before) - len(before.rstrip("\\"))) % 2 == 0:
            return end
    return -1


def _inline_formula(state: StateInline, silent: bool) -> bool:
    found = _formula_at(state.src, state.pos) if state.src[state.pos] in "$\\" else None
    if found is None:
        return False
    opening, inner = found
    end = state.pos + 2 * len(opening) + len(inner)
    if not silent:
        token = state.push("formula", "", 0)
        token.content, token.info, token.markup = state.src[state.pos : end], inner, opening
    state.pos = end
    return True


# Lines of a formula that stands by itself.
_MOST_LINES = 60


def _block_formula(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula on lines of its own: what stands in it is no list, heading or escape."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    if first[:2] not in ("$$", r"\[") or state.is_code_block(start):
        return False
    last = _last_line(state, start, end, _CLOSING[first[:2]])
    if last is None:
        return False
    text = state.getLines(start, last + 1, state.blkIndent, False).strip()
    if not _is_formula(text[2:-2], first[:2]):
        return False
    if not silent:
        token = state.push("formula_block", "", 0)
        token.content, token.info, token.markup, token.map = text, text[2:-2], text[:2], [start, last + 1]
        state.line = last + 1
    return True


def _last_line(state: StateBlock, start: int, end: int, closing: str) -> int | None:
    for line in range(start, min(end, start + _MOST_LINES)):
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
        if not text or (line > start and state.sCount[line] < state.blkIndent):
            return None
        at = text.find(closing, 2 if line == start else 0)
        if at >= 0:
            return line if at == len(text) - 2 else None  # text goes on after it: a paragraph
    return None


# Formulas drawn in one text: each costs as much as a page of prose.
_MOST_FORMULAS = 400


def _drawn(self: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    env["formulas"] = env.get("formulas", 0) + 1
    made = None
    if env["formulas"] <= _MOST_FORMULAS:
        made = mathml(token.info.strip(), is_block=token.markup in ("$$", r"\["))
    shown = made or f'<span class="tex">{escapeHtml(token.content)}</span>'
    return f"<p>{shown}</p>\n" if token.type == "formula_block" else shown


# ---- the whole ---------------------------------------------------------------------------------------------------


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True, "highlight": coloured})
    parser.enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "formula", _inline_formula)
    ends = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "formula_block", _block_formula, {"alt": ends})
    for name, rule in (("image", _picture), ("formula", _drawn), ("formula_block", _drawn)):
        parser.add_render_rule(name, rule)
    return parser


_PARSER = _parser()


#: Most marks of a text that is read as markdown. Honest texts have a few in a hundred characters.
MOST_MARKS = 10_000
# Every short row of a table is filled up to the width of the first: a small text could make a huge page.
MOST_CELLS = 10_000
# Where the parser stops and tries its rules: what a text costs goes with their number, not with its length.
_MARK = re.compile(r"[\n!#$%&*+\-:<=>@\[\\\]^_`{}~|]")


def render(text: str, folder: Path | None = None) -> Markup:
    """Return markdown as safe HTML. A block of code can be scrolled by keyboard.

    A text of more than `MOST_MARKS` marks stands as it is written: 100,000 brackets would take seconds. So does what
    could be a table of more than `MOST_CELLS` cells: every short row of one is filled up to the width of the first.

    Args:
        folder: Where images with a relative address lie; None: none is shown.
    """
    # A picture may come or go while the page is open; all else is made once.
    return _rendered(text, folder) if folder and "![" in text else _KNOWN(text)


def _rendered(text: str, folder: Path | None = None) -> Markup:
    lines = text.split("\n")
    cells = len(lines) * max(line.count("|") for line in lines)
    if cells > MOST_CELLS or sum(1 for _ in _MARK.finditer(text)) > MOST_MARKS:
        return Markup("<p>") + marked(text).replace("\n", Markup("<br>\n")) + Markup("</p>")
    made = _PARSER.render(text, {"folder": folder}).replace("<pre><code", '<pre tabindex="0"><code')
    return marked_html(_CLEANER.clean(made))


# Characters of texts and their HTML: 2,000 usual ones, or twenty of the longest. By their number alone they would be
# gigabytes, if somebody wanted that.
_MOST_KNOWN = 16_000_000
_KNOWN: Remembered[str, Markup] = Remembered(_rendered, lambda text, html: len(text) + len(html), most=_MOST_KNOWN)
