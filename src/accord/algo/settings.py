"""The numbers that the rows of the table read; `accord.config.RlConfig` has them all."""

from __future__ import annotations

from typing import Protocol


class TrustSettings(Protocol):
    """Bounds of one update."""

    @property
    def clip_high(self) -> float | None: ...
    @property
    def dual_clip(self) -> float | None: ...


class ShapingSettings(Protocol):
    """What rewards go through."""

    @property
    def whiten(self) -> bool: ...


class PolicySettings(Protocol):
    """What advantages and surrogates may ask. KL in nats, lengths in tokens."""

    @property
    def discount(self) -> float: ...
    @property
    def gae_lambda(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def trust(self) -> TrustSettings: ...
    @property
    def shaping(self) -> ShapingSettings: ...
