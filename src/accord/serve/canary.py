"""A canary: which conversations it answers, and what their users' words say of it. Torch-free.

A conversation keeps its variant: it is told by who asks and by what they said first. Its outcome is the first thumb or
rating on it that was admitted, 0 to 1; later words change nothing, so that looking again never rewrites the past.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accord.config import AdmitConfig, CanaryConfig
from accord.people.admission import admit, read_recalled, read_said, turns_in
from accord.serve.aliases import CANARY, PROD, AliasFile, ServedModel
from accord.stats import SequentialLook, arms_in_order, sequential_look
from accord.store import Store


def conversation_of(user: str, turns: Sequence[Mapping[str, str]]) -> str:
    """Return the name of a conversation: of who asks, and of all up to the first thing that they said."""
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), len(turns) - 1)
    said = "\x00".join(f"{turn['role']}\x01{turn['content']}" for turn in turns[: first + 1])
    return hashlib.sha256(f"{user}\x02{said}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_canarys(conversation: str, version: str, share: float) -> bool:
    """Return whether a conversation is the canary's; another version has other conversations."""
    drawn = int(hashlib.sha256(f"{version} {conversation}".encode()).hexdigest()[:13], 16) / 16**13
    return drawn < share


@dataclass(frozen=True)
class CanaryWatch:
    """What decides about a canary, as the recipe had it when the canary began."""

    aliases: AliasFile
    config: CanaryConfig
    admit: AdmitConfig

    def look(self, store: Store, canary: ServedModel, prod: ServedModel, since: float) -> SequentialLook:
        """Return what users' words since a moment say of the canary beside prod."""
        with store.snapshot() as connection:
            said = [one for one in read_said(connection) if one.at >= since]
            gone = read_recalled(connection)
        refused = admit(said, gone, self.admit).refused
        arms: dict[str, dict[str, tuple[float, float]]] = {canary.version: {}, prod.version: {}}
        for one in said:
            if one.liking is None or one.version not in arms or any(id_ in refused for id_ in one.judgements):
                continue
            turns = turns_in(one.prompt, one.form)
            arms[one.version].setdefault(conversation_of(one.user, turns), (one.at, one.liking))
        rows = arms_in_order([*arms[canary.version].values()], [*arms[prod.version].values()])
        return sequential_look(rows, alpha=self.config.alpha, delta=self.config.delta)

    def pause_if_worse(self, store: Store, since: float) -> SequentialLook | None:
        """Take the canary back where it is shown to be worse; the look that decided, None where there is no canary."""
        models = self.aliases.all()
        if CANARY not in models or PROD not in models:
            return None
        look = self.look(store, models[CANARY], models[PROD], since)
        if look.decision == "worse":
            self.aliases.move({CANARY: None}, f"paused by itself: {look_in_words(look)}")
        return look


def look_in_words(look: SequentialLook) -> str:
    """Return a look in words, with its numbers."""
    arms = f"canary {look.canary:.3f} of {look.num_canary:,} conversations, prod {look.other:.3f} of {look.num_other:,}"
    bets = f"bets: worse {look.against:.3g}, not worse {look.for_it:.3g}"
    return f"{look.decision}; {arms}; {bets}"
