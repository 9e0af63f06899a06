"""How each row stands to the machine's bound: the matrix products its work needs, against the fastest ones measured.

Counted are the products with weight matrices, two operations a weight and token, forward; twice that again backward.
Attention, norms, softmax and the optimizer are left out: they are what keeps a row from its bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import Line

PROMPT, EPOCHS = 32, 4
FULL = 64.0
GEOMETRIC = sum((1 - 1 / 25) ** t for t in range(64))  # mean length where each token ends it with probability 1/25


@dataclass(frozen=True)
class Weights:
    """Millions of weights in matrices: the trunk's, and the vocabulary head's."""

    trunk: float
    head: float


MODELS = {
    "tiny": Weights(6 * (4 * 256 * 256 + 3 * 256 * 688) / 1e6, 256 * 8192 / 1e6),
    "small": Weights(12 * 12 * 768 * 768 / 1e6, 768 * 50257 / 1e6),
}


def gflop(work: str, model: str) -> float:
    """Billions of operations an item of the work: a new token, a row, a pair or an episode."""
    w, new = MODELS[model.removesuffix("-eos")], GEOMETRIC if model.endswith("-eos") else FULL
    tokens = PROMPT + new
    policy, scalar = 2e-3 * (w.trunk * tokens + w.head * new), 2e-3 * w.trunk * tokens  # one forward pass
    if work.startswith("sampling"):
        return policy / new
    if work.startswith("sft"):
        return 3 * 2e-3 * (w.trunk * tokens + w.head * (tokens - 1))
    if work.startswith("reward"):
        return 3 * 2 * scalar
    # rollout, old and reference log-probabilities; values and scores; the epochs of policy and critic
    return 3 * policy + 2 * scalar + EPOCHS * 3 * (policy + scalar)


def with_share(line: Line, gflops: dict[str, float]) -> Line:
    """The line with the share of the machine's fastest products that our side reaches, in its own precision."""
    if line["ratio"] is None or line["better"] == "lower":
        return line
    precision = "bf16" if " bf16" in line["ours_side"] else "f32"
    return line | {"share_of_bound": round(line["ours"] * gflop(line["work"], line["model"]) / gflops[precision], 3)}
