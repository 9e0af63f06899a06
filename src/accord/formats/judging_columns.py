"""Which columns of a file look like a judgement, or like a part of the prompt: none is dropped without a word."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

# Words in the names of columns that published sets and annotation tools keep judgements in.
_WORDS = frozenset(
    (
        *("label", "labels", "rating", "ratings", "rated", "score", "scores", "stars", "grade", "grades", "quality"),
        *("rank", "ranks", "ranking", "rankings", "winner", "loser", "choice", "preference", "preferences"),
        *("preferred", "dispreferred", "chosen", "rejected", "better", "worse", "best", "worst", "safer", "safe"),
        *("unsafe", "correct", "incorrect", "correctness", "helpful", "helpfulness", "harmless", "harmlessness"),
        *("honest", "honesty", "truthfulness", "good", "bad", "acceptable", "unacceptable", "accepted", "approved"),
        *("vote", "votes", "upvotes", "downvotes", "like", "likes", "liked", "thumb", "thumbs", "reward", "rewards"),
        *("verdict", "judgement", "judgements", "judgment", "judgments", "feedback", "annotation", "annotations"),
    )
)
# What stands beside a judgement and is none: chosen_model, rating_reason.
_ABOUT = frozenset(
    ("model", "models", "source", "sha256", "hash", "url", "reason", "rationale", "comment", "note", "critique")
)
_ABOUT_BY_ID = frozenset(("annotation", "feedback", "vote", "rating", "judgement", "judgment"))
_SECOND = re.compile(r"(response|answer|output|completion|reply|generation|candidate|conversation)s?[ _-]?(\d+|[a-d])$")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@lru_cache(4096)
def looks_like_judgement(name: str) -> bool:
    """Return whether a column of this name probably holds a judgement, or one of several answers to choose from."""
    words = [part.lower() for part in _PARTS.findall(name)]
    if not words or words[-1] in _ABOUT or (words[-1] == "id" and words[0] in _ABOUT_BY_ID):
        return False
    return not _WORDS.isdisjoint(words) or bool(_SECOND.search(name.lower()))


def unused_judgements(fields: Mapping[str, Any], used: Collection[str]) -> list[str]:
    """Return the columns of a row that say something, look like a judgement, and are not among those used."""
    return [
        name
        for name, value in fields.items()
        if name not in used and value not in (None, "", [], {}) and looks_like_judgement(name)
    ]


# Under these names files keep what belongs to the prompt beside the question itself.
_PARTS_OF_PROMPTS = frozenset(("system", "system_prompt", "input", "context", "instruction", "question", "query"))


def unused_parts(fields: Mapping[str, Any], used: Collection[str]) -> list[str]:
    """Return the columns of a row that look like a part of its prompt, are not used, and stand in none that is."""
    parts = [name for name in _PARTS_OF_PROMPTS & fields.keys() if name not in used]
    said = [name for name in parts if isinstance(fields[name], str | list) and fields[name]]
    # Parted by what no text has: a value that two of them make together, in some order, is in neither.
    shown = "\0".join(str(fields[name]) for name in used if name in fields) if said else ""
    return sorted(name for name in said if str(fields[name]) not in shown)


def looks_meant(name: str) -> bool:
    """Return whether a column of this name would be taken for a judgement or a part of the prompt."""
    return name in _PARTS_OF_PROMPTS or looks_like_judgement(name)
