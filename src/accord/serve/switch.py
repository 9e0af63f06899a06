"""Keeps a running server at what the aliases name; a canary that is worse ends by itself.

A thread looks at the file of aliases and at new feedback. A new model is loaded beside the old one and takes its place
in one step; the old one ends when the last of its requests has. Nothing is dropped, and nobody waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select

from accord.config import AdmitConfig, CanaryConfig
from accord.serve.aliases import CANARY, PROD, AliasFile, ServedModel
from accord.serve.canary import CanaryWatch, conversation_of, is_canarys, look_in_words
from accord.serve.served import ServedPolicy, Serving, open_policy
from accord.store import Store
from accord.store.operations import feedback

_log = logging.getLogger("accord.serve")
LOOKS_EVERY_S = 1.0
AGAIN_S = 10.0  # after what failed: a model that cannot be loaded is not tried every second
#: A request that has chosen its model hands it its work within a moment; so long an old model stays at least.
GRACE_S = 10.0


@dataclass
class Switch:
    """Watches the aliases for one server, which serves ``prod`` under ``name`` and a canary under "canary"."""

    aliases: AliasFile
    served: Serving
    name: str
    store: Store | None = None
    admit: AdmitConfig = field(default_factory=AdmitConfig)
    grace_s: float = GRACE_S
    every_s: float = LOOKS_EVERY_S
    again_s: float = AGAIN_S
    _share: float = 0.0
    _heard: int = -1
    _at: dict[str, str] = field(default_factory=dict)
    _leaving: list[tuple[float, ServedPolicy]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> Switch:
        """Serve what the aliases name, and from then on follow them."""
        self.follow()
        self._thread = threading.Thread(target=self._run, name="accord-switch", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the watching; models that were about to leave end too."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        for _, policy in self._leaving:
            policy.worker.stop()

    def variant(self, policy: ServedPolicy, user: str, turns: Sequence[Mapping[str, str]]) -> ServedPolicy:
        """Return who answers a conversation that has asked for ``prod``: its canary, or the policy itself."""
        canary = self.served.policies.get(CANARY)
        if canary is None or policy.name != self.name:
            return policy
        return canary if is_canarys(conversation_of(user, turns), canary.version, self._share) else policy

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = self.every_s
        while not self._ended.wait(pause):
            pause = self.every_s
            try:
                self.follow()
            except Exception:  # a folder that is gone, no memory beside the old model: what is served goes on
                pause = max(self.every_s, self.again_s)
                _log.exception("the aliases could not be followed; tried again in %g s", pause)

    def follow(self) -> None:
        """Look once: at the aliases, at what users said of a canary, at models that may leave."""
        models = self.aliases.all()
        if CANARY in models and self._said_something() and self._is_worse(models):
            models = self.aliases.all()
        self._serve(self.name, models.get(PROD))
        canary = models.get(CANARY)
        if canary is None:
            self._share = 0.0
            self._at.pop(CANARY, None)
            self._leave(self.served.policies.pop(CANARY, None))
        else:
            self._serve(CANARY, canary)
            self._share = canary.share
        self._let_go()

    def _serve(self, name: str, model: ServedModel | None) -> None:
        before = self.served.policies.get(name)
        if model is None or self._at.get(name) == model.version:
            return
        if before is not None and before.version == model.version:
            self._at[name] = model.version
            return
        new = open_policy(name, model.folder, self.served.settings, self.served.measures)
        self.served.policies[name], self._at[name] = new, model.version
        _log.warning("%s is version %s now", name, new.version)
        self._leave(before)

    def _leave(self, policy: ServedPolicy | None) -> None:
        if policy is not None:
            self._leaving.append((time.monotonic() + self.grace_s, policy))

    def _let_go(self) -> None:
        now = time.monotonic()
        for row in [row for row in self._leaving if row[0] <= now and row[1].worker.idle]:
            row[1].worker.stop()
            self._leaving.remove(row)

    # ---- the canary --------------------------------------------------------------------------------------------------

    def _said_something(self) -> bool:
        if self.store is None:
            return False
        with self.store.snapshot() as connection:
            newest = connection.execute(select(func.max(feedback.c.id))).scalar() or 0
        is_new, self._heard = newest != self._heard, newest
        return is_new

    def _is_worse(self, models: Mapping[str, ServedModel]) -> bool:
        assert self.store is not None
        canary = models[CANARY]
        began = [row["at"] for row in self.aliases.history() if row["alias"] == CANARY and row["to"]]
        config = CanaryConfig(share=canary.share, alpha=canary.alpha, delta=canary.delta)
        look = CanaryWatch(self.aliases, config, self.admit).pause_if_worse(self.store, began[-1])
        if look is None or look.decision != "worse":
            return False
        _log.warning("the canary is taken back: %s", look_in_words(look))
        return True
