"""Sections about what users say of served completions, and what a new policy must show before it is served."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from accord.config.base import Section
from accord.config.rewards import ScorerConfig

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

    signal_judge: ScorerConfig | None = Field(
        None, description="Scores what users said next: AI feedback, which teaches only with task.ai besides."
    )

    @field_validator("recall")
    @classmethod
    def _names_sources(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for one in given:
            if not SOURCE.fullmatch(one):
                raise ValueError(f"{one!r} names no source: write user:NAME, key:NAME or model:VERSION")
        return given


class GatesConfig(Section):
    """What the candidate of `accord round` must show before it is served. Written before the data is seen."""

    win_delta: float = Field(
        0.0, ge=0, lt=0.5, description="Its win rate against prod, by the judge that decides: lower bound > .5 - this."
    )
    length_controlled: bool = Field(True, description="So must its win rate at equal lengths be, by the first judge.")
    held_out_floor: float = Field(
        0.5, ge=0, lt=1, description="The reward model orders more of the held-out pairs as people did: lower bound."
    )
    # Two reward models of nearly the same data differ by a few points by chance.
    held_out_drop: float = Field(
        0.05, ge=0, lt=1, description="It may order so many fewer of the old pairs than prod's did, and be shown to."
    )
    held_out_least: int = Field(
        20, ge=1, description="Topics (prompts) with pairs, below which a tranche is told and not counted."
    )
    refusal_rise: float = Field(0.05, ge=0, le=1, description="Share of answers that refuse, above prod's by at most.")
    repetition_rise: float = Field(
        0.05, ge=0, le=1, description="Share of word triples said before in one answer, above prod's by at most."
    )
    kl_budget: float = Field(
        30.0, gt=0, description="Nats from the fixed reference, the policy that the first round started from, at most."
    )
    attacks: bool = Field(
        True, description="Texts that say nothing must not reach what people preferred, by the new reward model."
    )
    # A policy that pleases its reward model nine times in ten and its judges every second time has found a hole.
    over_optimised: float = Field(
        0.35, gt=0, le=1, description="The reward model's win rate may exceed the judge's by so much."
    )
    shadow_prompts: int = Field(
        100, ge=0, description="Prompts of users that both answer unseen before the canary, newest first; 0 = none."
    )
    shadow_delta: float = Field(
        0.1, ge=0, lt=0.5, description="The win rate on them, by the first judge: lower bound > .5 - this."
    )


class CanaryConfig(Section):
    """A share of conversations is answered by the candidate before all are, and a sequential test looks on."""

    share: float = Field(0.0, ge=0, le=0.5, description="Share of conversations; 0 = promote without a canary.")
    # The chance that a canary as good as prod is ever paused, and that a worse one is ever promoted, each.
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Error rate of each decision, however often one looks.")
    delta: float = Field(
        0.05, ge=0, lt=0.5, description="Mean outcome, 0 to 1, that it may lie below prod's and still be promoted."
    )
    most: int = Field(
        2000, ge=10, description="Judged conversations of the canary after which it is refused as undecided."
    )
