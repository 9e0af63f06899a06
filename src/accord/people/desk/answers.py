"""What people may answer: one form for every kind of feedback; `accord.people.desk.kinds` says which part a kind uses.

An answer speaks of completions by position as shown, counted from 0: never by id or by the name of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from accord.errors import DataError
from accord.records import Strength

#: Flags of judgements that training reads in a way of its own: see `accord.people.views`.
ADJUDICATION, GOLD = "adjudication", "gold"
#: The flag of judgements that say which policy is better: they evaluate, and never train anything.
JUDGING = "judging"
#: Most characters of a note, and of a text that somebody writes or edits.
MOST_NOTE, MOST_TEXT = 4_000, 100_000
#: Most lists and mappings within each other, of an answer or its draft. Writers of JSON give up at some hundred.
MOST_DEPTH = 32


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
    values: dict[str, Any] | None = Field(None, description="What a kind of your own asks: its ``schema`` checks it.")
    flags: tuple[tuple[str, ...], ...] | None = Field(None, description="Per completion: what was ticked.")
    edit: Edit | None = Field(None, description="One completion, made better.")
    note: str = Field("", max_length=MOST_NOTE)
    # Bounds that only a broken clock passes: a sum over all answers must stay finite.
    seconds: float = Field(0.0, ge=0, le=1e6, description="Time with the task in view.")
    pauses_s: float = Field(0.0, ge=0, le=1e9, description="Time with the task out of view.")

    def plain(self) -> dict[str, Any]:
        """Return the fields that were given, as JSON has them."""
        return self.model_dump(mode="json", exclude_defaults=True)


def read_answer(values: Mapping[str, Any]) -> Answer:
    """Return the answer that a mapping holds. Raises DataError with the field that is wrong."""
    try:
        return Answer.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("answer", *first["loc"]))
        raise DataError(f"{first['msg'].lower()}, got {first['input']!r:.80}", where=where) from error


def is_deep(value: Any) -> bool:
    """Whether lists and mappings are nested more than `MOST_DEPTH` deep."""
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        inner = [one.values() if isinstance(one, Mapping) else one for one in level if isinstance(one, Mapping | list)]
        level = [item for items in inner for item in items]
        if not inner:
            return False
    return True


def wrong(field: str, what: str, hint: str = "") -> DataError:
    """Return the error that says which field of an answer is wrong."""
    return DataError(what, where=f"answer.{field}", hint=hint)
