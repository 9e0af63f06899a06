"""Who draws the samples of policy optimisation, and what they count."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from accord.config.base import Section
from accord.config.training import CorrectionName


class RolloutConfig(Section):
    """Who draws the samples: the policy itself, or a copy of it elsewhere, whose distribution may differ a little."""

    use: Literal["engine", "vllm"] = Field("engine", description="engine: Accord's own; vllm: a process of its own.")
    correction: CorrectionName = Field(
        "auto", description="What a sample counts by its ratio of policy to sampler; auto: token where a copy draws."
    )
    # TRL's cap is 3, AReaL's and slime's 2 to 5.
    cap: float = Field(2.0, gt=1, description="Largest ratio that counts.")
    # AReaL: at 4 without correction a task fell from 42 to 23.
    max_staleness: int = Field(
        0, ge=0, le=1, description="1: samples are drawn while the policy learns from those before, by a copy."
    )
