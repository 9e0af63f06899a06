"""What can be asked of people, what they may answer, and the facts that an answer makes.

An answer speaks of completions by position as shown, counted from 0: never by id or by the name of a model.
A kind of task is a row of `KINDS`: how many completions it shows, which fields an answer to it has, how they are
checked, which judgements they make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from accord.config import LabelConfig
from accord.errors import DataError
from accord.records import (
    Completion,
    Demonstration,
    Judgement,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Remark,
    Source,
    Strength,
)

#: Flags of judgements that training reads in a way of its own: see `accord.people.views`.
ADJUDICATION, GOLD = "adjudication", "gold"
#: Most characters of a note, and of a text that somebody writes or edits.
MOST_NOTE, MOST_TEXT = 4_000, 100_000


class Edit(BaseModel):
    """A better version of the completion shown at position ``of``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    of: StrictInt = Field(ge=0)
    text: str = Field(max_length=MOST_TEXT)


class Answer(BaseModel):
    """What a person says about a task. Which fields are given depends on its kind; `check` knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    ranks: tuple[StrictInt, ...] | None = Field(None, description="1 = best, equal = tie; one per completion shown.")
    unacceptable: tuple[StrictBool, ...] | None = Field(None, description="Not good enough, whatever the rank.")
    strength: Strength | None = Field(None, description="How clear the choice between two is; not with a tie.")
    ratings: tuple[dict[str, StrictInt], ...] | None = Field(None, description="Per completion: axis to value.")
    good: tuple[StrictBool, ...] | None = Field(None, description="Per completion.")
    text: str | None = Field(None, max_length=MOST_TEXT, description="A demonstration.")
    flags: tuple[tuple[str, ...], ...] | None = Field(None, description="Per completion: what was ticked.")
    edit: Edit | None = Field(None, description="One completion, made better.")
    note: str = Field("", max_length=MOST_NOTE)
    seconds: float = Field(0.0, ge=0, le=1e6, description="Time with the task in view.")
    pauses_s: float = Field(0.0, ge=0, le=1e9, description="Time with the task out of view.")

    def plain(self) -> dict[str, Any]:
        """The fields that say something, as JSON has them."""
        return self.model_dump(mode="json", exclude_defaults=True)


def read_answer(values: Mapping[str, Any]) -> Answer:
    """An answer from a mapping. Raises DataError with the field that is wrong."""
    try:
        return Answer.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("answer", *first["loc"]))
        raise DataError(f"{first['msg'].lower()}, got {first['input']!r:.80}", where=where) from error


Check = Callable[[LabelConfig, int, Answer], None]
Judge = Callable[[LabelConfig, Prompt, Sequence[Completion], Answer, Mapping[str, Any]], list[Judgement]]


@dataclass(frozen=True)
class TaskKind:
    """A row of the table: ``fields`` may be given, the first of them must. ``judge`` makes the main judgements."""

    fewest: int
    most: int
    fields: tuple[str, ...]
    check: Check
    judge: Judge


def check(kind: str, settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    """Raise DataError, naming the field, where an answer does not fit a task of this kind and size."""
    row = kind_of(kind)
    allowed = {*row.fields, *(("flags", "edit") if num_completions else ())}
    every = {name for name, field in Answer.model_fields.items() if field.default is None}
    for name in sorted(every - allowed):
        if getattr(answer, name) is not None:
            raise _wrong(name, f"a {kind} task has no {name}")
    if getattr(answer, row.fields[0]) is None:
        raise _wrong(row.fields[0], f"a {kind} task needs {row.fields[0]}")
    for name in ("ranks", "unacceptable", "ratings", "good", "flags"):
        given = getattr(answer, name)
        if given is not None and len(given) != num_completions:
            raise _wrong(name, f"{len(given)} values for {num_completions} completions")
    row.check(settings, num_completions, answer)
    _check_flags(settings, answer)
    if answer.edit is not None and answer.edit.of >= num_completions:
        raise _wrong("edit", f"there is no completion {answer.edit.of}")
    if answer.edit is not None and not answer.edit.text.strip():
        raise _wrong("edit", "the edited text is empty")


def check_can_be_gold(kind: str) -> None:
    """Raise DataError where tasks of this kind have no right answer."""
    if kind == "demonstration":
        raise DataError("a text that somebody writes has no right answer", hint="choose a task of another kind")


def kind_of(name: str) -> TaskKind:
    """The row of a kind. Raises DataError for an unknown one."""
    if name not in KINDS:
        raise DataError(f"there is no task of the kind {name!r}", hint="give one of " + ", ".join(KINDS))
    return KINDS[name]


def facts(
    kind: str,
    prompt: Prompt,
    shown: Sequence[Completion],
    answer: Answer,
    settings: LabelConfig,
    *,
    annotator_id: str,
    guideline: str,
    created_at: str,
    flags: tuple[str, ...] = (),
) -> list[Record]:
    """The facts of an answer that `check` has passed, the main judgements first.

    What is said of the answer as a whole, its time and its note, stands on the first of them. An edit is a completion
    of its own, a demonstration of the same text, and a ranking of the edit above what it improves.

    Args:
        shown: The completions in the order in which the annotator saw them.
        flags: "gold", "adjudication": on every judgement but remarks, whose flags are those ticked.

    Raises:
        DataError: The edit changes nothing.
    """
    by: dict[str, Any] = {"annotator_id": annotator_id, "guideline": guideline, "created_at": created_at}
    judgements = KINDS[kind].judge(settings, prompt, shown, answer, by | {"flags": flags})
    judgements[0] = replace(judgements[0], seconds=answer.seconds or None, note=answer.note)
    remarks = [
        Remark(completion_id=completion.id, flags=ticked, **by)
        for completion, ticked in zip(shown, answer.flags or (), strict=False)
        if ticked
    ]
    edited = [] if answer.edit is None else _edited(shown[answer.edit.of], answer.edit.text, by | {"flags": flags})
    return [*judgements, *remarks, *edited]


def _edited(original: Completion, text: str, by: Mapping[str, Any]) -> list[Record]:
    if text == original.text:
        raise _wrong("edit", "the edited text is the original", "leave the edit out, or change the text")
    source = Source(origin="human", name="edit", version=original.id)
    edit = Completion(prompt_id=original.prompt_id, text=text, source=source)
    ids = (edit.id, original.id)
    return [
        edit,
        Demonstration(prompt_id=original.prompt_id, text=text, **by),
        Ranking(prompt_id=original.prompt_id, completion_ids=ids, ranks=(1, 2), **by),
    ]


def _wrong(field: str, what: str, hint: str = "") -> DataError:
    return DataError(what, where=f"answer.{field}", hint=hint)


def _check_flags(settings: LabelConfig, answer: Answer) -> None:
    for ticked in answer.flags or ():
        if len(set(ticked)) < len(ticked):
            raise _wrong("flags", f"a flag stands twice: {', '.join(ticked)}")
        for flag in ticked:
            if flag not in settings.flags:
                raise _wrong("flags", f"there is no flag {flag!r}", "give one of " + ", ".join(settings.flags))


# ---- the kinds -------------------------------------------------------------------------------------------------------


def _check_ranks(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    ranks = cast(tuple[int, ...], answer.ranks)
    if min(ranks) != 1 or max(ranks) > num_completions:
        raise _wrong("ranks", f"{list(ranks)} are no ranks", f"give 1 (best) to {num_completions}; equal is a tie")


def _check_pair(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    _check_ranks(settings, num_completions, answer)
    tied = answer.ranks == (1, 1)
    if answer.strength is not None and tied:
        raise _wrong("strength", "a tie has no strength")
    if any(answer.unacceptable or ()) and not (tied and all(answer.unacceptable or ())):
        raise _wrong("unacceptable", "of a pair both are bad or none", "both bad is a tie of two unacceptable ones")


def _rank(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    ranks = cast(tuple[int, ...], answer.ranks)
    places = sorted(set(ranks))  # 1, 2, 2, 4 means 1, 2, 2, 3
    bad = answer.unacceptable or (False,) * len(shown)
    return [
        Ranking(
            prompt_id=prompt.id,
            completion_ids=tuple(completion.id for completion in shown),
            ranks=tuple(places.index(rank) + 1 for rank in ranks),
            unacceptable=tuple(completion.id for completion, is_bad in zip(shown, bad, strict=True) if is_bad),
            strength=answer.strength,
            **by,
        )
    ]


def _check_ratings(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    axes = {axis.name: axis for axis in settings.axes}
    for values in answer.ratings or ():
        if values.keys() != axes.keys():
            raise _wrong("ratings", f"axes {', '.join(values) or 'none'}", "rate each on " + ", ".join(axes))
        for name, value in values.items():
            if not axes[name].low <= value <= axes[name].high:
                raise _wrong("ratings", f"{name} {value} is outside {axes[name].low}..{axes[name].high}")


def _rate(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    made: list[Judgement] = []
    for completion, values in zip(shown, answer.ratings or (), strict=True):
        for axis in settings.axes:
            scale: dict[str, Any] = {"axis": axis.name, "value": values[axis.name], "low": axis.low, "high": axis.high}
            told = {"guideline": by["guideline"] or axis.question}
            made.append(Rating(completion_id=completion.id, **scale, **{**by, **told}))
    return made


def _check_nothing(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    """One value of the right type per completion is all there is to it."""


def _label(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    labelled = zip(shown, answer.good or (), strict=True)
    return [Label(completion_id=completion.id, good=good, **by) for completion, good in labelled]


def _check_text(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    if not (answer.text or "").strip():
        raise _wrong("text", "the demonstration is empty")


def _demonstrate(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    return [Demonstration(prompt_id=prompt.id, text=answer.text or "", **by)]


KINDS: Mapping[str, TaskKind] = {
    "pair": TaskKind(2, 2, ("ranks", "unacceptable", "strength"), _check_pair, _rank),
    "ranking": TaskKind(2, 9, ("ranks", "unacceptable"), _check_ranks, _rank),
    "rating": TaskKind(1, 9, ("ratings",), _check_ratings, _rate),
    "label": TaskKind(1, 9, ("good",), _check_nothing, _label),
    "demonstration": TaskKind(0, 0, ("text",), _check_text, _demonstrate),
}
