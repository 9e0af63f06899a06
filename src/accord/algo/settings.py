"""The settings that functions of the table may read, also those of a user's own.

`accord.config.RlConfig` has them all and more; these Protocols keep `algo` free of the configuration.
"""

from __future__ import annotations

from typing import Protocol


class TrustSettings(Protocol):
    """How far one update may go: the upper clip (None: as the lower one) and the bound of bad tokens' loss."""

    @property
    def clip_high(self) -> float | None: ...
    @property
    def dual_clip(self) -> float | None: ...


class ShapingSettings(Protocol):
    """How rewards are shaped before advantages: whether their spread is set to 1."""

    @property
    def whiten(self) -> bool: ...


class PolicySettings(Protocol):
    """The settings that advantages, surrogates and aggregates may read. KL in nats, lengths in tokens."""

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
