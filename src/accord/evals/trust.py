"""Who says that it is better: kinds of judges in the order of trust, and whose win rate decides. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accord.errors import UsageError
from accord.stats import WORTH_SEEING, Interval, pairs_needed

Says = Literal["better", "worse", "no better", "too few to say"]


@dataclass(frozen=True)
class JudgeKind:
    """A kind of judge: what pages call it, how a sentence begins in which it prefers something, what it never is."""

    called: str
    prefers: str
    never: tuple[str, ...] = ()


_PROGRAM = ("people", "human", "annotators")
#: The most trusted first.
JUDGE_KINDS: Mapping[str, JudgeKind] = {
    "people": JudgeKind("people, in blind pairs", "people prefer"),
    "second_reward_model": JudgeKind(
        "a second reward model, of judgements that taught nothing else",
        "the judge, a second reward model, prefers",
        _PROGRAM,
    ),
    "chat": JudgeKind("a chat model: AI feedback", "the judge, a chat model (AI feedback), prefers", _PROGRAM),
    "function": JudgeKind("a function of yours", "the judge, a function of yours, prefers", _PROGRAM),
    "simulated": JudgeKind(
        "simulated annotators: programs",
        "the judges, simulated annotators (programs), prefer",
        ("people", "human"),
    ),
}
#: What a judge is by the kind of scorer that a recipe names for it.
KIND_OF_SCORER = {
    "model": "second_reward_model",
    "ensemble": "second_reward_model",
    "chat": "chat",
    "function": "function",
    "regex": "function",
    "http": "function",
}


@dataclass(frozen=True)
class JudgeSaid:
    """What one judge says of the candidate against the reference.

    ``needed`` independent prompts show a win rate of `WORTH_SEEING`; ``missing`` of them are not there yet. ``ties``:
    the share of pairs that tied, where pairs were compared. ``note``: what a reader must know besides.
    """

    judge: str
    kind: str
    win_rate: Interval | None
    needed: int
    ties: float | None = None
    note: str = ""

    @property
    def missing(self) -> int:
        return max(0, self.needed - (self.win_rate.clusters if self.win_rate else 0))

    @property
    def says(self) -> Says:
        """Whether the candidate is better; too few where the interval holds one half and more pairs might move it."""
        win = self.win_rate
        if win is None or math.isnan(win.low):
            return "too few to say"
        if win.low > 0.5:
            return "better"
        if win.high < 0.5:
            return "worse"
        return "too few to say" if self.missing else "no better"

    def to_json(self) -> dict[str, Any]:
        words = JUDGE_KINDS[self.kind]
        return {
            **{"judge": self.judge, "kind": self.kind, "called": words.called, "prefers": words.prefers},
            "win_rate": self.win_rate and self.win_rate.to_json(),
            **{"ties": self.ties, "says": self.says, "needed": self.needed, "missing": self.missing},
            "note": self.note,
        }

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> JudgeSaid:
        """Return what `to_json` has written."""
        found = row["win_rate"]
        bounds = {key: math.nan if found[key] is None else found[key] for key in ("low", "high")} if found else {}
        win_rate = Interval(**{**found, **bounds}) if found else None
        return cls(row["judge"], row["kind"], win_rate, row["needed"], row["ties"], row["note"])


def judge_said(
    judge: str, kind: str, win_rate: Interval | None, *, ties: float | None = None, note: str = ""
) -> JudgeSaid:
    """Return what a judge says, with how many prompts it would need: fewer where many pairs tie."""
    # So many ties that .65 cannot be reached: then even the pairs that are not tied would all have to be won.
    share = min(ties or 0.0, 2 * (1 - WORTH_SEEING))
    return JudgeSaid(judge, kind, win_rate, pairs_needed(WORTH_SEEING, ties=share), ties, note)


def in_order_of_trust(said: Sequence[JudgeSaid]) -> tuple[JudgeSaid, ...]:
    """Return the judges with the most trusted first; of one kind in the order given."""
    order = list(JUDGE_KINDS)
    return tuple(sorted(said, key=lambda one: order.index(one.kind)))


def deciding(said: Sequence[JudgeSaid]) -> JudgeSaid:
    """Return the most trusted judge that has enough to say; where none has, the most trusted that has looked at all."""
    ordered = in_order_of_trust(said)
    looked = [one for one in ordered if one.win_rate is not None]
    return next((one for one in looked if one.says != "too few to say"), (looked or ordered)[0])


def told_in_order(said: Sequence[JudgeSaid]) -> list[dict[str, Any]]:
    """Return the judges as JSON, the most trusted first; the one whose win rate decides says so."""
    decides = deciding(said)
    return [{**one.to_json(), "decides": one is decides} for one in in_order_of_trust(said)]


def check_judge_name(name: str, kind: str) -> None:
    """Refuse a judge that would be called what its kind never is. Raises UsageError."""
    words = set(name.lower().replace("-", "_").split("_"))
    wrong = words & set(JUDGE_KINDS[kind].never)
    if wrong:
        raise UsageError(
            f"a judge is called {name!r}, and it is {JUDGE_KINDS[kind].called}",
            why=f"pages would say {wrong.pop()!r} of a program",
            hint="give it another name; people judge where eval.people.prompts says on how many prompts",
        )
