"""The facts: what people (and simulated annotators) said about which completion of which prompt.

Every record is frozen and content-addressed: its ``id`` is a hash of its canonical JSON, prefixed with the
hash's name so that it can change one day. Judgements are never edited; a correction is a new record that
names the one it ``supersedes``. Training data (pairs, ranked groups) are views of these facts.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, get_args

from accord.errors import DataError

AnnotatorKind = Literal["human", "simulated", "model"]
SourceKind = Literal["human", "policy", "user"]
PromptForm = Literal["text", "messages"]
Strength = Literal["significantly", "better", "slightly", "negligibly"]

# Sorted keys and no spaces: one fact has one text, and so one id.
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def content_id(kind: str, payload: Any) -> str:
    """Return the hash of a kind and its JSON-able payload: ``b2:`` and 32 hexadecimal digits."""
    text = _canonical([kind, payload])
    # 128 bits: among a billion facts two of one id come with a chance of 1e-21.
    return "b2:" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def now_utc() -> str:
    """Return the present moment as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _require(condition: bool, what: str, hint: str = "") -> None:
    if not condition:
        raise DataError(what, hint=hint)


def _one_of(field_name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{field_name} is {value!r}", f"give one of {', '.join(allowed)}")


def _real(value: float) -> float:
    return float(value) + 0.0  # the sum makes -0.0 a plain 0.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the facts. Subclasses add fields; ``id`` covers all of them but the free ``meta``.

    A field that came ``later`` than the first facts is hashed only where it says something, so that ids stay.
    """

    kind: ClassVar[str] = ""
    later: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in _text_fields(type(self)):
            if not isinstance(value := getattr(self, name), str):
                raise DataError(f"{name} of a {self.kind} is {value!r}", hint="give text")

    @cached_property
    def id(self) -> str:
        # Fields that came later count only where they say something: so ids of older facts stay.
        silent = {"meta"} | {name for name, value in _late(type(self)).items() if getattr(self, name) == value}
        payload = {name: _plain(value) for name, value in vars(self).items() if name not in silent}
        return content_id(self.kind, payload)

    def _settle(self, **values: Any) -> None:
        """Set fields to their one canonical form (3 and 3.0, a list and a tuple would hash or compare apart)."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


_TEXT_FIELDS: dict[type[Record], tuple[str, ...]] = {}


def _text_fields(record_type: type[Record]) -> tuple[str, ...]:
    """Return names of the fields that hold text, found once a type: a store reads hundreds of thousands of records."""
    if record_type not in _TEXT_FIELDS:
        _TEXT_FIELDS[record_type] = tuple(f.name for f in fields(record_type) if f.type in ("str", str))
    return _TEXT_FIELDS[record_type]


_LATE: dict[type[Record], Mapping[str, Any]] = {}


def _late(record_type: type[Record]) -> Mapping[str, Any]:
    """Return the fields that came later, with what they hold where they say nothing; found once a type."""
    if record_type not in _LATE:
        _LATE[record_type] = {f.name: f.default for f in fields(record_type) if f.name in record_type.later}
    return _LATE[record_type]


def _plain(value: Any) -> Any:
    return value.id if isinstance(value, Record) else value


def _require_meta(meta: dict[str, str]) -> None:
    texts = all(isinstance(key, str) and isinstance(value, str) for key, value in meta.items())
    _require(texts, f"meta {meta!r} is not a table of texts", "turn its values into text")


@dataclass(frozen=True, kw_only=True)
class Source(Record):
    """Where a completion came from: a person, or a policy version and how it was sampled."""

    kind: ClassVar[str] = "source"
    origin: SourceKind
    name: str
    version: str = ""
    sampling: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.name), "a source has no name", "give the corpus or the policy's name")
        _one_of("origin", self.origin, get_args(SourceKind))


@dataclass(frozen=True, kw_only=True)
class Prompt(Record):
    """What a completion answers. ``topic`` is the unit of splitting and resampling (here: the film).

    A prompt of the form "messages" is a conversation: its ``text`` is the canonical JSON of `of_messages`.
    """

    kind: ClassVar[str] = "prompt"
    later: ClassVar[tuple[str, ...]] = ("form",)
    text: str
    topic: str = ""
    meta: dict[str, str] = field(default_factory=dict, compare=False)
    form: PromptForm = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_meta(self.meta)
        _one_of("form", self.form, get_args(PromptForm))
        if self.form == "messages":
            turns = _messages(self.text)
            _require(turns is not None, "the text of a prompt of messages is no list of them", _MESSAGES)
            self._settle(text=_canonical(turns))

    @classmethod
    def of_messages(
        cls, messages: Sequence[Mapping[str, str]], *, topic: str = "", meta: Mapping[str, str] | None = None
    ) -> Self:
        """Return a prompt that is a conversation.

        Messages with ``role`` and ``content``, the last one to be answered.
        """
        return cls(text=_canonical(list(map(dict, messages))), topic=topic, meta=dict(meta or {}), form="messages")

    def turns(self) -> list[dict[str, str]]:
        """Return the conversation; a prompt of plain text is one turn of the user's."""
        if self.form == "text":
            return [{"role": "user", "content": self.text}]
        turns: list[dict[str, str]] = json.loads(self.text)
        return turns


_MESSAGES = 'write [{"role": "user", "content": "..."}]'


def _messages(text: str) -> list[dict[str, str]] | None:
    """Return the messages that a text is, None where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, list) and bool(found) and all(map(_is_message, found))
    return found if whole else None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"role", "content"} and all(map(_is_text, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True, kw_only=True)
class Completion(Record):
    """One text that answers a prompt, with its provenance."""

    kind: ClassVar[str] = "completion"
    prompt_id: str
    text: str
    source: Source
    meta: dict[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_meta(self.meta)


@dataclass(frozen=True, kw_only=True)
class Annotator(Record):
    """Who judges. Simulated annotators are a kind of their own and are called so everywhere."""

    kind: ClassVar[str] = "annotator"
    name: str
    annotator_kind: AnnotatorKind
    note: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.name), "an annotator has no name")
        _one_of("annotator_kind", self.annotator_kind, get_args(AnnotatorKind))


@dataclass(frozen=True, kw_only=True)
class Judgement(Record):
    """What all judgements share. ``seconds`` is how long it took; None where nobody measured."""

    annotator_id: str
    created_at: str = field(default_factory=now_utc)
    seconds: float | None = None
    guideline: str = ""
    note: str = ""
    flags: tuple[str, ...] = ()
    supersedes: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(flags=tuple(self.flags))
        if self.seconds is not None:
            self._settle(seconds=_real(self.seconds))
            _require(math.isfinite(self.seconds) and self.seconds >= 0, f"a judgement took {self.seconds} seconds")


@dataclass(frozen=True, kw_only=True)
class Ranking(Judgement):
    """An order among K completions of one prompt, ties allowed.

    ``completion_ids`` stand in the order shown; ``ranks[i]`` is the rank of completion i, 1 = best; equal
    ranks are a tie. ``(1, 2, 2, 3)`` and ``(1, 2, 2, 4)`` mean the same order. ``unacceptable`` names the completions
    that are not good enough whatever their rank; ``strength`` says how clear the choice between two was; ``axis`` which
    question the order answers (helpfulness, safety; "" where there is one only).
    """

    kind: ClassVar[str] = "ranking"
    later: ClassVar[tuple[str, ...]] = ("unacceptable", "strength", "axis")
    prompt_id: str
    completion_ids: tuple[str, ...]
    ranks: tuple[int, ...]
    unacceptable: tuple[str, ...] = ()
    strength: Strength | None = None
    axis: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(all(hasattr(rank, "__index__") for rank in self.ranks), f"ranks {self.ranks} are not whole numbers")
        self._settle(completion_ids=tuple(self.completion_ids), ranks=tuple(map(operator.index, self.ranks)))
        _require(len(self.completion_ids) >= 2, f"a ranking needs 2 completions, got {len(self.completion_ids)}")
        _require(
            len(self.ranks) == len(self.completion_ids),
            f"{len(self.ranks)} ranks for {len(self.completion_ids)} completions",
            "give one rank per completion, 1 = best",
        )
        _require(min(self.ranks) >= 1, f"rank {min(self.ranks)} is below 1", "ranks start at 1 = best")
        _require(len(set(self.completion_ids)) == len(self.completion_ids), "a completion stands twice in a ranking")
        named = set(self.unacceptable)
        _require(named <= set(self.completion_ids), "an unacceptable completion does not stand in the ranking")
        self._settle(unacceptable=tuple(id_ for id_ in self.completion_ids if id_ in named))
        if self.strength is not None:
            _one_of("strength", self.strength, get_args(Strength))
            # How clear a choice was is asked of two; of a ranking it would be a number for each pair.
            choice = len(self.ranks) == 2 and self.ranks[0] != self.ranks[1]
            _require(choice, "a strength stands beside no choice between two", "leave it out of ties and rankings")


@dataclass(frozen=True, kw_only=True)
class Rating(Judgement):
    """A number on a closed scale for one completion, of one ``axis`` (helpfulness, ...; "" where there is one only)."""

    kind: ClassVar[str] = "rating"
    later: ClassVar[tuple[str, ...]] = ("axis",)
    completion_id: str
    value: float
    low: float
    high: float
    axis: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(value=_real(self.value), low=_real(self.low), high=_real(self.high))
        _require(
            math.isfinite(self.value) and self.low <= self.value <= self.high,
            f"rating {self.value} is outside {self.low}..{self.high}",
        )


@dataclass(frozen=True, kw_only=True)
class Label(Judgement):
    """Good or bad: a thumb, of one ``axis`` (safety, ...; "" where there is one only)."""

    kind: ClassVar[str] = "label"
    later: ClassVar[tuple[str, ...]] = ("axis",)
    completion_id: str
    good: bool
    axis: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(isinstance(self.good, bool), f"good is {self.good!r}", "give True or False")


@dataclass(frozen=True, kw_only=True)
class Demonstration(Judgement):
    """A completion that a person wrote to show how it should be done."""

    kind: ClassVar[str] = "demonstration"
    prompt_id: str
    text: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.text.strip()), "a demonstration is empty")


@dataclass(frozen=True, kw_only=True)
class Remark(Judgement):
    """What an annotator noted on one completion: flags, a note, or both."""

    kind: ClassVar[str] = "remark"
    completion_id: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.flags or self.note.strip()), "a remark says nothing", "give it a flag or a note")


@dataclass(frozen=True, kw_only=True)
class Withdrawal(Record):
    """A judgement of any kind that is taken back. The judgement stays on record; readers leave it out."""

    # Not a judgement that supersedes: an answer is several facts of several kinds, and the next answer may lack some of
    # them.
    kind: ClassVar[str] = "withdrawal"
    annotator_id: str
    judgement_id: str
    created_at: str = field(default_factory=now_utc)
    note: str = ""


def ranks_by_value(values: Sequence[float]) -> tuple[int, ...]:
    """Return the rank of each value, 1 = the highest; equal ones share the better rank, and the next is left out."""
    return tuple(1 + sum(other > value for other in values) for value in values)


@dataclass(frozen=True, kw_only=True)
class RankedGroup:
    """A view for reward training: K completions of one prompt with ranks (1 = best, equal = tie).

    ``origin`` says whose judgement it is ("human ratings", "simulated annotators", a file), ``weight`` how much
    the group counts in the loss, ``topic`` the unit of splitting. Of a pair may be known how clear the choice was
    (``strength``), how much more the better one should score (``margin``), and how sure it is that it is better.
    What several people said of completions of one prompt, or one person pair by pair, bears one ``group``: such
    views make one batch element together.
    """

    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[float, ...]
    origin: str = "file"
    topic: str = ""
    weight: float = 1.0
    group: str = ""
    strength: Strength | None = None
    margin: float | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        _require(len(self.completions) >= 2, f"a ranked group needs 2 completions, got {len(self.completions)}")
        _require(
            len(self.ranks) == len(self.completions),
            f"{len(self.ranks)} ranks for {len(self.completions)} completions",
            "give one rank per completion, 1 = best",
        )

    def to_json(self) -> dict[str, Any]:
        said = {k: v for k, v in asdict(self).items() if v is not None and (k, v) != ("group", "")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}


@dataclass(frozen=True, kw_only=True)
class JudgedGroup:
    """A view for reward training: completions of one prompt, each judged by itself.

    ``values`` are labels (1 good, 0 bad) or ratings; the other fields are those of a `RankedGroup`.
    """

    prompt: str
    completions: tuple[str, ...]
    values: tuple[float, ...]
    origin: str = "file"
    topic: str = ""
    weight: float = 1.0
    group: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.completions), "a judged group has no completion")
        _require(
            len(self.values) == len(self.completions),
            f"{len(self.values)} values for {len(self.completions)} completions",
            "give one value per completion",
        )
