"""When people have answered enough: so many answers, agreement that is known well, or a moment in time."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any, ClassVar

from pydantic import Field, GetJsonSchemaHandler, field_validator
from pydantic_core import CoreSchema

from accord.config.base import Section

#: What a span of time may be counted in, in seconds.
UNITS_S = {"m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?) ?(m|min|h|d)")


def span_s(text: str) -> float:
    """Return the seconds of a span like 90m, 48h or 2d. Raises ValueError for anything else."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no span of time: write it like 90m, 48h or 2d")
    return float(found[1]) * UNITS_S[found[2]]


class EnoughConfig(Section):
    """What ends the waiting for people: the first of these that is met. A plain number is ``answers``."""

    plain: ClassVar[str] = "answers"
    answers: int = Field(0, ge=0, description="So many answers; 0 = each task by all of ask.overlap.")
    agreement: float = Field(
        0.0, ge=0, lt=1, description="The 95 % interval of people's agreement (0 to 1) is narrower than this; 0 = any."
    )
    deadline: str = Field("", description="A moment like 2026-12-24T18:00, by this machine's clock unless it says Z.")
    within: str = Field("", description="A span like 90m, 48h or 2d, from when the round's questions were queued.")

    @field_validator("deadline", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        """YAML reads a moment with seconds as one."""
        return given.isoformat() if isinstance(given, date) else given

    @field_validator("deadline")
    @classmethod
    def _is_a_moment(cls, text: str) -> str:
        try:
            found = datetime.fromisoformat(text) if text else None
        except ValueError:
            found = None
        # Of a day alone nobody knows whether it ends with its first hour or its last.
        if text and (found is None or len(text) <= len("2026-12-24")):
            raise ValueError(f"{text!r} is no moment: write it like 2026-12-24T18:00")
        return text

    @field_validator("within")
    @classmethod
    def _is_a_span(cls, text: str) -> str:
        if text and not span_s(text):
            raise ValueError(f"{text!r}: give a span that is longer than nothing")
        return text

    def amount(self) -> dict[str, Any] | int:
        """Return what says how much is enough, not when: a moment that is moved later opens no finished round."""
        return {"answers": self.answers, "agreement": self.agreement} if self.agreement else self.answers

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "integer", "minimum": 0}]}
