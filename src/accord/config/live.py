"""Sections about what users say of served completions, and what a new policy must show before it is served."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from accord.config.base import Section

#: How a source is named that is recalled: whose judgements it is about.
SOURCE = re.compile(r"(user|key|model):.+", re.DOTALL)


class AdmitConfig(Section):
    """What of users' feedback a run may learn from. What is refused is counted, with its reason; nothing is deleted."""

    feedback: bool = Field(True, description="Learn from what users said where it passes; false = from none of it.")
    # People press a thumb after reading; sixty in an hour is one a minute without a pause.
    most_per_hour: int = Field(
        60, ge=0, description="Who says more within an hour is taken for a program: that hour is left out; 0 = any."
    )
    most_per_day: int = Field(100, ge=0, description="Judgements of one user that count in a day; 0 = all.")
    # Of a hundred users with a few words each nobody is cut; a single one is never a tenth of them.
    user_weight: float = Field(
        20.0, ge=0, description="All judgements of one user weigh together at most as much as so many; 0 = any."
    )
    # Two who read on their own do not ask the same dozen things in the same order and say the same of each.
    same_run: int = Field(
        12,
        ge=0,
        description="Accounts that say the same of the same prompts so many times in a row; 0 = not looked at.",
    )
    same_words: int = Field(
        3, ge=0, description="Accounts that send one long text word for word are left out from so many on; 0 = never."
    )
    scrub: bool = Field(True, description="Replace e-mail addresses, phone numbers and secrets in users' texts.")
    recall: tuple[str, ...] = Field(
        (), strict=False, description="user:NAME, key:NAME or model:VERSION, left out; `accord feedback` keeps more."
    )
    # Half: a thumb compares nothing, and who presses it has not seen the other text.
    thumb_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of a pair made of a thumb up and one down on one prompt; 0 = no pairs."
    )

    signal_weight: float = Field(
        0.0, ge=0, le=0.5, description="Weight of a pair made of what users did (next message, retry, copy); 0 = none."
    )

    @field_validator("recall")
    @classmethod
    def _names_sources(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for one in given:
            if not SOURCE.fullmatch(one):
                raise ValueError(f"{one!r} names no source: write user:NAME, key:NAME or model:VERSION")
        return given
