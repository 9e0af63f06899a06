"""The numbers that the rows of the table read; `accord.config.RlConfig` has them all."""

from __future__ import annotations

from typing import Protocol


class PolicySettings(Protocol):
    """What advantages and surrogates may ask. KL in nats, lengths in tokens."""

    @property
    def discount(self) -> float: ...
    @property
    def gae_lambda(self) -> float: ...
    @property
    def whiten_rewards(self) -> bool: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def clip_high(self) -> float | None: ...
    @property
    def dual_clip(self) -> float | None: ...
    @property
    def max_new_tokens(self) -> int: ...
