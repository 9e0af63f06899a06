"""The gates of a round on numbers by hand: each refuses what it is for, and says so with number, n and interval."""

from __future__ import annotations

from typing import Any

import pytest

from accord.config import GatesConfig
from accord.loop.gates import GateEvidence, RoundGate, gates_of, ranged_gate, refusals_of, shadow_gate

TOPICS = 40


def ranged(value: float, low: float, high: float, n: int = TOPICS) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, "clusters": n}


def floor(name: str, value: float, held: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "held": held, "bound": "0.8 to 1.25", "low": 0.8, "high": 1.25}


def evidence(
    *,
    win: tuple[float, float, float] = (0.7, 0.6, 0.8),
    even: tuple[float, float, float] = (0.65, 0.55, 0.75),
    kl: float = 3.0,
    length: float = 1.0,
    text: str = "A fine answer to all of it.",
    proxy: float = 1.0,
    judge: float = 1.0,
    **more: Any,
) -> GateEvidence:
    """A candidate that passes every gate, but for what is given. Scores are by how much it is above prod."""
    judged = [{"judge": "j", "called": "a judge", "decides": True, "win_rate": ranged(*win)}]
    row = {"name": "ppo", "length_controlled": ranged(*even), "kl": ranged(kl, kl, kl), "first": None}
    results = {
        "candidate": "ppo",
        "reference": "prod",
        "policies": [{"name": "prod"}, row],
        "judged": {"ppo": judged},
        "floors": {
            "ppo": [floor("judge_win_rate_low", 0.6, True), floor("length_ratio", length, 0.8 <= length <= 1.25)]
        },
    }
    rows = [
        {
            "policy": name,
            "prompt": f"p{i}",
            "topic": f"t{i}",
            "completion": text if name == "ppo" else "A plain answer.",
            "proxy": (proxy if name == "ppo" else 0.0) * (1 if i % 10 else -1),
            "judge": (judge if name == "ppo" else 0.0) * (1 if i % 10 else -1),
        }
        for name in ("prod", "ppo")
        for i in range(TOPICS)
    ]
    known = {"held_out": {"old": ranged(0.8, 0.7, 0.9), "new": ranged(0.7, 0.6, 0.8)}}
    return GateEvidence(results, rows, **{**known, "attacks": {"attacks": [attack("very long", 0.1)]}, **more})


def attack(name: str, low: float) -> dict[str, Any]:
    return {"name": name, "reaches": ranged(low + 0.1, low, low + 0.2)}


def refused(of: GateEvidence, **settings: Any) -> list[str]:
    return [gate.name for gate in gates_of(of, GatesConfig(**settings)) if gate.refuses]


def test_what_is_better_in_every_way_passes() -> None:
    found = gates_of(evidence(), GatesConfig())
    assert refusals_of(found) == [] and all(gate.passed for gate in found)
    assert len({gate.name for gate in found}) == len(found) == 10


@pytest.mark.parametrize(
    ("more", "gate"),
    [
        ({"win": (0.55, 0.49, 0.61)}, "win rate against prod"),
        ({"even": (0.5, 0.4, 0.6)}, "win rate at equal lengths"),
        ({"length": 1.6}, "length ratio"),
        ({"kl": 31.0}, "KL to the fixed reference"),
        ({"text": "I'm sorry, but I cannot help with that."}, "rise of refusals"),
        ({"text": "good film good film good film good film"}, "rise of repetition"),
        ({"proxy": 1.0, "judge": -1.0}, "over-optimisation: reward model above judge"),
        ({"held_out": {"old": ranged(0.55, 0.48, 0.62), "new": None}}, "people's pairs held out"),
        ({"held_out": {"old": None, "new": ranged(0.55, 0.48, 0.62)}}, "users' pairs held out"),
        ({"change": ranged(-0.2, -0.3, -0.1)}, "change on people's pairs"),
        ({"attacks": {"attacks": [attack("very long", 0.6)]}}, "texts that say nothing reach what people preferred"),
    ],
)
def test_each_gate_refuses_what_it_is_for(more: dict[str, Any], gate: str) -> None:
    assert refused(evidence(**more)) == [gate]


def test_bounds_stand_in_the_recipe() -> None:
    close = evidence(win=(0.52, 0.47, 0.57), even=(0.52, 0.47, 0.57))
    assert refused(close) == ["win rate against prod", "win rate at equal lengths"]
    assert refused(close, win_delta=0.05) == [] and refused(close, win_delta=0.02, length_controlled=False) != []
    assert refused(evidence(change=ranged(-0.2, -0.3, -0.1)), held_out_drop=0.15) == []  # it may be -.1
    # Refusals rightly win where harm is asked for; what was not measured passes nothing, and refuses nothing by itself.
    assert refused(evidence(attacks={"attacks": [attack("I cannot help", 0.9)]})) == []


def test_the_first_start_is_what_kl_is_measured_from() -> None:
    far = evidence(kl=3.0)
    far.results["policies"][1]["first"] = {"kl": ranged(40.0, 38.0, 42.0)}
    assert refused(far) == ["KL to the fixed reference"]


def test_a_needed_gate_that_is_not_measured_refuses() -> None:
    of = evidence()
    of.results["judged"].clear()
    (told,) = refusals_of(gates_of(of, GatesConfig()))
    assert told == "win rate against prod not measured; must be lower bound above 0.5 (nobody judged)"
    assert ranged_gate("g", ranged(0.5, float("nan"), 1.0), "b", lambda one: True).passed is None


def test_sentences_hold_number_n_and_interval() -> None:
    gate = RoundGate("win rate", False, "lower bound above 0.5", 0.55, 0.49, 0.61, n=160, clusters=40, why="by j")
    assert (
        gate.sentence
        == "win rate refused: 0.550 [0.490, 0.610], n 160 on 40 topics; must be lower bound above 0.5 (by j)"
    )


def test_the_shadow() -> None:
    results = {"candidate": "ppo", "policies": [{"name": "prod"}, {"name": "ppo", "win_rate": ranged(0.5, 0.38, 0.6)}]}
    assert (
        shadow_gate(results, GatesConfig()).refuses and not shadow_gate(results, GatesConfig(shadow_delta=0.2)).refuses
    )
    few = shadow_gate(None, GatesConfig())
    assert (few.passed, few.refuses) == (None, False) and "too few prompts" in few.sentence
