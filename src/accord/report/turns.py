"""Prompts as pages show them: the turns of a conversation in place of its markup, and long texts folded. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SPEAKERS = {"human": "user", "model": "assistant", "ai": "assistant"}
_ROLES = "system|user|assistant|tool"
#: How chat models' templates write a turn. A text is cut into turns only where all of it has this shape.
MARKUPS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        # ChatML: SmolLM2, Qwen, Yi, OpenChat
        r"<\|im_start\|>(?P<role>\w+)\n(?P<said>.*?)(?:<\|im_end\|>\s*|\Z)",
        # Llama 3
        r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n(?P<said>.*?)(?:<\|eot_id\|>\s*|\Z)",
        # Gemma
        r"<start_of_turn>(?P<role>\w+)\n(?P<said>.*?)(?:<end_of_turn>\s*|\Z)",
        # Zephyr, TinyLlama, Phi 3
        rf"<\|(?P<role>{_ROLES})\|>\n?(?P<said>.*?)(?:(?:<\|end\|>|</s>)\s*|(?=<\|(?:{_ROLES})\|>)|\Z)",
        # Anthropic's HH: no template, but a convention
        r"\s*(?P<role>Human|Assistant):(?P<said>.*?)(?:(?=\n\n(?:Human|Assistant):)|\Z)",
    )
)
_BEGINNING = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*")


@dataclass(frozen=True)
class FoldedText:
    """A text as a page shows it: its beginning, and the rest behind a click (empty where it is short)."""

    head: str
    rest: str = ""


@dataclass(frozen=True)
class ShownTurn:
    """Who said what in a conversation."""

    speaker: str
    said: FoldedText


def folded(text: str, most: int) -> FoldedText:
    """Fold a text after so many characters, between two words; a fifth more than that is shown whole."""
    text = text.strip()
    if len(text) <= most * 1.2:
        return FoldedText(text)
    cut = text.rfind(" ", 0, most) + 1 or most  # a text without spaces is cut anywhere
    return FoldedText(text[:cut].rstrip(), text[cut:].lstrip())


def shown_turns(prompt: Any, most: int) -> tuple[ShownTurn, ...]:
    """Return the turns of a conversation, each folded; none where a prompt is a plain text.

    Args:
        prompt: messages, or the text that a chat template made of them. The empty turn that the model is to fill is
            left out.
    """
    said = turns_in_text(prompt) if isinstance(prompt, str) else [_spoken(one) for one in prompt]
    if said and said[-1][0] == "assistant" and not said[-1][1].strip():
        said = said[:-1]
    return tuple(ShownTurn(speaker, folded(text, most)) for speaker, text in said)


def _spoken(message: Mapping[str, Any]) -> tuple[str, str]:
    return str(message["role"]), str(message["content"])


def last_said(text: str) -> str:
    """Return what was said last in a conversation's text; a plain text as it is."""
    turns = [said for _, said in turns_in_text(text) if said]
    return turns[-1] if turns else text


def turns_in_text(text: str) -> list[tuple[str, str]]:
    """Return (speaker, words) of each turn in a text; empty where it is not all turns of one markup."""
    beginning = _BEGINNING.match(text)
    start = beginning.end() if beginning else 0
    return next((found for markup in MARKUPS if (found := _cut_into_turns(markup, text, start))), [])


def _cut_into_turns(markup: re.Pattern[str], text: str, at: int) -> list[tuple[str, str]]:
    found = []
    while at < len(text):
        turn = markup.match(text, at)
        if turn is None or turn.end() == at:
            return []
        role = turn["role"].lower()
        found.append((SPEAKERS.get(role, role), turn["said"].strip()))
        at = turn.end()
    return found
