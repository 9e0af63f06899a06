"""Secrets, e-mail addresses and phone numbers in users' texts, replaced by what they are.

A small set of rules, each bounded, so that no text makes them slow. What they find they name; what they cannot find:
names of people, postal addresses, dates of birth, numbers of passports and customers, phone numbers that are written
without a plus, brackets or separators (but for mobile numbers of mainland China), addresses that are disguised ("ada
at example dot org"), keys of makers that are not listed, and anything in a picture. A scrubbed text is not anonymous.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from accord.formats.item import Item, TextOrTurns

_KEYS = (
    r"sk-[A-Za-z0-9_-]{20,200}",  # OpenAI, Anthropic and their like
    r"gh[opsur]_[A-Za-z0-9]{30,255}",
    r"github_pat_[A-Za-z0-9_]{30,255}",
    r"glpat-[A-Za-z0-9_-]{20,100}",
    r"hf_[A-Za-z0-9]{30,60}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,200}",
    r"A(?:KIA|SIA)[A-Z0-9]{16}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}",  # a JSON web token
)
_ASSIGNED = r"(?:pass(?:word|wd|phrase)|api[_ -]?key|secret(?:[_ -]?key)?|access[_ -]?token|密码|口令)"


def _luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of a card's number (ISO/IEC 7812-1, annex B)."""
    doubled = [int(one) * (1 + place % 2) for place, one in enumerate(reversed(digits))]
    return sum(one - 9 * (one > 9) for one in doubled) % 10 == 0


def _is_card(found: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", found[0])
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and _luhn(digits)


def _is_phone(found: re.Match[str]) -> bool:
    return 8 <= len(re.sub(r"\D", "", found[0])) <= 15


def _always(found: re.Match[str]) -> bool:
    return True


#: What stands in place of it -> the pattern, which group of it goes, and what must be true of it besides.
_RULES: tuple[tuple[str, re.Pattern[str], int, Callable[[re.Match[str]], bool]], ...] = (
    (
        "secret",
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[A-Za-z0-9+/=\s:,.-]{0,20000}?"
            r"-----END [A-Z ]{0,40}PRIVATE KEY-----"
        ),
        0,
        _always,
    ),
    ("secret", re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(_KEYS)})(?![A-Za-z0-9_-])"), 0, _always),
    (
        "secret",
        re.compile(rf"{_ASSIGNED}\s{{0,3}}(?:[:=：]|is|是)\s{{0,3}}[\"'`]?([^\s\"'`,;，。]{{4,200}})", re.I),
        1,
        _always,
    ),
    ("secret", re.compile(r"[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,100}:([^\s/@]{1,200})@"), 1, _always),
    (
        "e-mail",
        re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
        0,
        _always,
    ),
    ("card number", re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]\d)"), 0, _is_card),
    ("phone", re.compile(r"(?<![\w+])(?:\+|00)\d(?:[ ()./-]{0,2}\d){7,14}(?!\d)"), 0, _is_phone),
    ("phone", re.compile(r"(?<![\w.])(?:\(\d{2,5}\)[ -]?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"), 0, _is_phone),
    ("phone", re.compile(r"(?<![\w.])\(?0\d{1,4}\)?[ /-]{1,3}\d{3,4}[ -]?\d{3,5}(?![\w-])"), 0, _is_phone),
    ("phone", re.compile(r"(?<!\d)1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)"), 0, _is_phone),
)


def scrubbed(text: str, found: Counter[str] | None = None) -> str:
    """Return a text with ``[e-mail]``, ``[phone]``, ``[card number]`` and ``[secret]`` in their places; count them."""
    counts = Counter[str]() if found is None else found
    for name, pattern, group, holds in _RULES:

        def put(match: re.Match[str], name: str = name, group: int = group, holds: Any = holds) -> str:
            if not holds(match):
                return match[0]
            counts[name] += 1
            start, end = match.span(group)
            return f"{match.string[match.start() : start]}[{name}]{match.string[end : match.end()]}"

        text = pattern.sub(put, text)
    return text


def scrubbed_item(item: Item, found: Counter[str]) -> Item:
    """Return an item with every text of its prompt and completions scrubbed."""
    prompt = None if item.prompt is None else _said(item.prompt, found)
    return replace(item, prompt=prompt, completions=tuple(_said(one, found) for one in item.completions))


def _said(said: TextOrTurns, found: Counter[str]) -> TextOrTurns:
    if isinstance(said, str):
        return scrubbed(said, found)
    return tuple(_turn(turn, found) for turn in said)


def _turn(turn: Mapping[str, Any], found: Counter[str]) -> Mapping[str, Any]:
    content = turn.get("content")
    return {**turn, "content": scrubbed(content, found)} if isinstance(content, str) else turn
