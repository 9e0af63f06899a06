"""Code in colours: the words of a block by what they are, as spans with one of five classes."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygments.lexer import Lexer
    from pygments.token import _TokenType

# What is coloured: a lexer is many patterns, and strangers choose the text. Java's takes three seconds for 5,000 empty
# lines, or for one line of 2,500 words; within these bounds the worst of 70 patterns takes less than one.
MOST_CODE = 4_000  # characters
_TOO_LONG = re.compile(r"[^\n]{401}|\s{100}")
#: Languages by the names that a fence gives them; what is named otherwise is shown plain.
LANGUAGES = {
    **{name: name for name in ("python", "json", "html", "css", "bash", "sql", "java", "c", "cpp", "rust", "go")},
    **{name: name for name in ("yaml", "toml", "diff", "xml", "r", "ruby", "php", "javascript", "typescript")},
    **{name: name for name in ("kotlin", "swift", "csharp", "scala", "lua", "haskell", "julia")},
    "py": "python", "python3": "python", "js": "javascript", "jsx": "javascript", "ts": "typescript",
    "tsx": "typescript", "sh": "bash", "shell": "bash", "zsh": "bash", "c++": "cpp", "cs": "csharp", "c#": "csharp",
    "rs": "rust", "golang": "go", "yml": "yaml", "rb": "ruby", "kt": "kotlin", "hs": "haskell", "jl": "julia",
    "patch": "diff",
}  # fmt: skip
# Branches of Pygments' tree of tokens, the finest first, and the class that colours each.
_CLASSES = (
    ("Comment", "c"),
    ("Literal.String", "s"),
    ("Literal.Number", "n"),
    ("Keyword", "k"),
    ("Operator.Word", "k"),
    ("Name.Tag", "k"),
    ("Name.Function", "f"),
    ("Name.Class", "f"),
    ("Name.Attribute", "f"),
    ("Generic.Inserted", "s"),
    ("Generic.Deleted", "c"),
)
CODE_CLASSES = frozenset(name for _, name in _CLASSES)


def coloured(code: str, language: str, _attributes: str = "") -> str:
    """Return code as HTML with its words in spans, no character changed; "" where it is to be shown plain."""
    name = LANGUAGES.get(language.strip().lower())
    if name is None or len(code) > MOST_CODE or _TOO_LONG.search(code):
        return ""
    pieces = [(_class_of(kind), text) for _, kind, text in _lexer(name).get_tokens_unprocessed(code)]
    if "".join(text for _, text in pieces) != code:
        return ""
    return "".join(f'<span class="{name}">{escape(text)}</span>' if name else escape(text) for name, text in pieces)


@cache
def _lexer(name: str) -> Lexer:
    from pygments.lexers import get_lexer_by_name  # each language is a module of its own

    return get_lexer_by_name(name)


@cache
def _class_of(kind: _TokenType) -> str:
    path = ".".join(kind)
    return next((name for branch, name in _CLASSES if path == branch or path.startswith(branch + ".")), "")
