"""One neutral row: what any format says, without the format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NoReturn

from accord.errors import DataError
from accord.records import Source, Strength

#: ``{"role": "user", "content": "..."}``; a format may keep further fields in it (``weight``, ``tool_calls``).
ChatTurn = Mapping[str, Any]
Turns = tuple[ChatTurn, ...]
TextOrTurns = str | Turns
#: What an item can be.
ITEM_KINDS = ("ranking", "label", "rating", "demonstration", "sample", "prompt", "text", "conversation", "steps")


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many characters (or messages) two texts begin with in common."""
    # By halving: texts may be a million characters long.
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


class CannotSay(Exception):
    """A format has no words for an item. The message is the reason; equal reasons are counted together."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A prompt, its completions and what was said of them; or a text, or a whole conversation.

    A prompt is a text or messages; completions of messages are messages too, one of the assistant's as a rule. Without
    a prompt (None) the one completion is what to learn from: a plain text, or a conversation.

    ``ranks`` (1 = best, equal = tie, None = not judged), ``labels`` (True = good; beside ranks False = unacceptable)
    and ``ratings`` (on ``scale``) say one thing of each completion, or are empty. ``steps``: the completions are the
    steps of one solution, in order, and ``labels`` say which are right. ``demonstration``: the completion was written
    to show how. ``strength``, ``margin``, ``probability``, ``weight``, ``topic`` and ``origin`` mean what they mean in
    a `RankedGroup`. ``sources`` says who wrote each completion, where known. ``extra`` keeps what nobody asked for.
    ``where`` and ``row`` say which row of which file it was read from; they make no difference between items.

    Raises:
        DataError: The parts do not fit together.
    """

    prompt: TextOrTurns | None
    completions: tuple[TextOrTurns, ...] = ()
    ranks: tuple[float | None, ...] = ()
    labels: tuple[bool | None, ...] = ()
    ratings: tuple[float | None, ...] = ()
    scale: tuple[float, float] | None = None
    axis: str = ""
    steps: bool = False
    demonstration: bool = False
    strength: Strength | None = None
    margin: float | None = None
    probability: float | None = None
    weight: float = 1.0
    topic: str = ""
    origin: str = ""
    group: str = ""
    annotator: str = ""
    created_at: str = ""
    sources: tuple[Source | None, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False, repr=False)
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        as_messages = not isinstance(self.prompt, str | None)
        for name in ("completions", "ranks", "labels", "ratings", "sources"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if as_messages:
            object.__setattr__(self, "prompt", tuple(self.prompt or ()))
        texts = tuple(_said(text, as_messages) for text in self.completions)
        object.__setattr__(self, "completions", texts)
        if self.prompt is None and len(texts) != 1:
            raise DataError(f"{len(texts)} texts to learn from in one row", hint="give one")
        for name in ("ranks", "labels", "ratings", "sources"):
            if getattr(self, name) and len(getattr(self, name)) != len(texts):
                raise DataError(f"{len(getattr(self, name))} {name} for {len(texts)} completions", hint="one for each")

    @property
    def kind(self) -> str:
        """One of `ITEM_KINDS`; a sample is a completion that nobody judged."""
        if self.prompt is None:
            # Without a prompt the one completion is all there is.
            return "text" if isinstance(self.completions[0], str) else "conversation"
        if not self.completions:
            return "prompt"
        if self.steps:
            return "steps"
        said = {"ranking": self.ranks, "label": self.labels, "rating": self.ratings}
        # A ranking first: labels beside ranks say what is unacceptable, not another judgement.
        found = (kind for kind, values in said.items() if any(value is not None for value in values))
        return next(found, "demonstration" if self.demonstration else "sample")

    @property
    def num_judgements(self) -> int:
        """How many judgements the item holds: a ranking is one, and each label, rating and demonstration is one."""
        alone = self.kind in ("demonstration", "text", "conversation")
        labels = () if self.kind == "ranking" else self.labels
        if self.steps:  # a step may be labelled and rated at once, by one look at it
            return sum(any(value is not None for value in said) for said in zip_longest(labels, self.ratings))
        return alone + (self.kind == "ranking") + sum(value is not None for value in (*labels, *self.ratings))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Return (better, worse): all pairs of different rank by position, the best first."""
        ranked = sorted((rank, i) for i, rank in enumerate(self.ranks) if rank is not None)
        return ((i, j) for (r, i), (s, j) in itertools.combinations(ranked, 2) if r < s)


def _said(text: TextOrTurns, as_messages: bool) -> TextOrTurns:
    if isinstance(text, str):
        return ({"role": "assistant", "content": text},) if as_messages else text
    return tuple(text)


def cannot(reason: str) -> NoReturn:
    raise CannotSay(reason)


def turns_of(text: TextOrTurns | None, role: str = "user") -> Turns:
    """Return a prompt as messages: a text is one turn of the user's."""
    return ({"role": role, "content": text},) if isinstance(text, str) else tuple(text or ())


def beside(prompt: TextOrTurns, *completions: TextOrTurns) -> TextOrTurns:
    """Return a prompt as it stands beside completions: one of text is the user's turn where any of them is messages."""
    return prompt if all(isinstance(text, str) for text in completions) else turns_of(prompt)


def as_meta(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return columns as a fact keeps them: texts, and of all else its JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def prompt_key(prompt: Any) -> str:
    """Return one name for a prompt, a text or messages, however the keys of its messages stand."""
    return json.dumps(prompt, default=dict, sort_keys=True)


def reply_of(completion: TextOrTurns) -> str:
    """Return a completion as text. Raises CannotSay where it is more than one plain message of the assistant's."""
    if isinstance(completion, str):
        return completion
    if len(completion) != 1 or completion[0].get("role") != "assistant" or not is_plain(completion[0]):
        cannot("a completion is more than one plain message of the assistant's")
    content: str = completion[0]["content"]
    return content


def is_plain(message: ChatTurn) -> bool:
    """Return whether a message says its whole in text: no tool calls."""
    return isinstance(message.get("content"), str) and not message.get("tool_calls")


def plain_turns(turns: Turns) -> list[dict[str, str]]:
    """Return messages with role and content alone. Raises CannotSay where one calls tools."""
    if not all(map(is_plain, turns)):
        cannot("a message calls tools")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def chosen_rejected(item: Item) -> Iterator[tuple[TextOrTurns, TextOrTurns]]:
    """Return the pairs of a ranking as completions. Raises CannotSay where the item prefers nothing."""
    if item.kind != "ranking":
        cannot(f"a {item.kind} is no preference")
    found = [(item.completions[i], item.completions[j]) for i, j in item.pairs()]
    if not found:
        cannot("a tie is no preference")
    return iter(found)
