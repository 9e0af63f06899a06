"""LaTeX as MathML, which browsers draw by themselves: only what is certain to say the same as its source.

Where a formula is found in a text is said by `accord.people.web.markdown`. What cannot be converted whole is None, and
its source is shown instead: people judge what is written, so a command that nobody knows, a letter that would be lost
or text that would be hidden is worse than a formula that is not drawn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING
from unicodedata import normalize

from accord.people.remembered import Remembered
from accord.people.web.marks import has_no_unseen

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MOST_LATEX = 2_000  # characters of a formula; the converter takes time that grows faster than they do
# They hide, overlay or colour what is written, make words anew, or lead elsewhere.
_REFUSED = re.compile(
    r"\\(?:re|provide)?newcommand|\\(?:[gex]?def|let|DeclareMathOperator|includegraphics|href|url|style|class|id|cssId"
    r"|[hv]?phantom|smash|[rlc]lap|color|textcolor|f?colorbox|rule|unicode|char|skew|raise|lower|kern|[bcx]?cancel)(?![a-zA-Z])|&\#"
)
_NUMBER = r"-?\d{0,2}(\.\d{1,4})?"
_BOOLEAN = "true|false"
#: Elements that stand in a formula, and the values that their attributes may have; others are left away.
MATHML: dict[str, dict[str, str]] = {
    "math": {"display": "inline|block"},
    "mrow": {},
    "mi": {"mathvariant": "[a-z-]{1,30}"},
    "mn": {"mathvariant": "[a-z-]{1,30}"},
    "mtext": {"mathvariant": "[a-z-]{1,30}"},
    "mo": {
        **dict.fromkeys(("stretchy", "fence", "movablelimits", "separator"), _BOOLEAN),
        "form": "prefix|infix|postfix",
        **dict.fromkeys(("minsize", "maxsize"), rf"{_NUMBER}em"),
    },
    "mspace": {"width": r"[0-3]?(\.\d{1,4})?em"},
    "mfrac": {"linethickness": "0"},
    "msqrt": {},
    "mroot": {},
    "msub": {},
    "msup": {},
    "msubsup": {},
    "munder": {},
    "mover": {},
    "munderover": {},
    "mtable": {},
    "mtr": {},
    "mtd": {"columnalign": "left|center|right"},
    "mstyle": {"displaystyle": _BOOLEAN, "scriptlevel": "[01]"},
    "mpadded": {"width": "0"},
    "menclose": {"notation": "box"},
}
# Environments under a name that the converter knows. "align" alone would number lines, and no number is in the text.
_ENVIRONMENTS = {"align": "align*", "aligned": "align*", "gathered": "matrix", "gather": "matrix", "gather*": "matrix"}
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(align|aligned|gathered|gather\*?)\}")
# Parts that an element must have: of half a command the converter makes half a fraction.
_PARTS = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2, "munderover": 3}
_REFERENCE = re.compile(r"&#x([0-9A-Fa-f]{1,6});")
# What the converter puts into a formula by itself, and what names no letter of it.
_NO_LETTERS = re.compile(r"\\(?:begin|end)\{[a-zA-Z]+\*?\}(?:\{[lcr|\s]*\})?|\\[a-zA-Z]+|\\.", re.S)
_COUNTED = re.compile(r"[\w+=<>!;]")


def mathml(latex: str, *, is_block: bool) -> str | None:
    """Return a formula as MathML; None where it cannot be converted whole."""
    return _KNOWN((latex, is_block))


def _converted(given: tuple[str, bool]) -> str | None:
    latex, is_block = given
    if len(latex) > MOST_LATEX or not has_no_unseen(latex) or _REFUSED.search(latex) or not _is_balanced(latex):
        return None
    from latex2mathml.converter import convert_to_element  # 0.1 s: not needed to start

    known = _ENVIRONMENT.sub(lambda found: f"\\{found[1]}{{{_ENVIRONMENTS[found[2]]}}}", latex)
    try:
        tree = convert_to_element(known, display="block" if is_block else "inline")
        made = "".join(_written(tree))
    except Exception:  # whatever stops a converter at a stranger's text: the source is shown
        return None
    return made if _says_all(latex, tree) else None


def _is_balanced(latex: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", latex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


class _Unknown(Exception):
    """Something that has no place in a formula."""


def _written(element: Element) -> Iterator[str]:
    tag, allowed = element.tag, MATHML.get(element.tag)
    text = _text(element)
    if allowed is None or not _is_drawn(element, text):
        raise _Unknown(tag)
    kept = {name: value for name, value in element.attrib.items() if re.fullmatch(allowed.get(name, "(?!)"), value)}
    yield "".join((f"<{tag}", *(f' {name}="{value}"' for name, value in kept.items()), ">"))
    yield escape(text)
    for child in element:
        yield from _written(child)
    yield f"</{tag}>"


def _is_drawn(element: Element, text: str) -> bool:
    # A command that the converter does not know comes back as it was; a line broken outside of a table is drawn by no
    # browser, and of frames only the box is.
    is_other_frame = element.tag == "menclose" and element.get("notation") != "box"
    is_whole = len(element) == _PARTS.get(element.tag, len(element))
    return is_whole and "\\" not in text and not element.get("linebreak") and not is_other_frame


def _text(element: Element) -> str:
    """Return the text of an element. The converter writes signs as references; the source holds none (`_REFUSED`)."""
    return _REFERENCE.sub(lambda found: chr(int(found[1], 16)), element.text or "")


def _says_all(latex: str, tree: Element) -> bool:
    """Whether each letter, digit and plain sign of the source stands in the formula as often, in whatever alphabet."""
    made = normalize("NFKC", "".join(_text(element) for element in tree.iter()))
    source = normalize("NFKC", _NO_LETTERS.sub(" ", latex)).replace("_", " ")
    return not Counter(_COUNTED.findall(source)) - Counter(_COUNTED.findall(made))


_KNOWN: Remembered[tuple[str, bool], str | None] = Remembered(
    _converted, lambda given, made: len(given[0]) + len(made or ""), most=4_000_000
)
