"""How each row stands to the machine's bound: the matrix products that our side does, against the fastest measured.

Counted are the products with weight matrices, two operations a weight and token, forward; twice that again backward.
The last block computes queries, output and feed-forward only for tokens that are read. Attention, norms, softmax and
the optimizer are left out: they are what keeps a row from its bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import Line

PROMPT, EPOCHS = 32, 4
FULL = 64.0
GEOMETRIC = sum((1 - 1 / 25) ** t for t in range(64))  # mean length where each token ends it with probability 1/25


@dataclass(frozen=True)
class Weights:
    """Weights in matrices, in millions: a block's keys and values, the rest of a block, and the vocabulary head."""

    layers: int
    kv: float
    rest: float
    head: float

    def forward(self, tokens: float, read: float, predicted: float) -> float:
        """Billions of operations of a forward pass, of whose tokens some are read and some predict."""
        whole, last = (self.layers - 1) * (self.kv + self.rest) * tokens, self.kv * tokens + self.rest * read
        return 2e-3 * (whole + last + self.head * predicted)


MODELS = {
    "tiny": Weights(6, 2 * 256 * 256 / 1e6, (2 * 256 * 256 + 3 * 256 * 688) / 1e6, 256 * 8192 / 1e6),
    "small": Weights(12, 2 * 768 * 768 / 1e6, (2 + 8) * 768 * 768 / 1e6, 768 * 50257 / 1e6),
}


def gflop(work: str, model: str) -> float:
    """Billions of operations an item of the work: a new token, a row, a pair or an episode."""
    w, new = MODELS[model.removesuffix("-eos")], GEOMETRIC if model.endswith("-eos") else FULL
    tokens = PROMPT + new
    rollout = w.forward(PROMPT, 1, 1) + w.forward(new - 1, new - 1, new - 1)
    policy, critic, score = w.forward(tokens, new, new), w.forward(tokens, new, 0), w.forward(tokens, 1, 0)
    if work.startswith("sampling"):
        return rollout / new
    if work.startswith("sft"):
        return 3 * w.forward(tokens - 1, tokens - 1, tokens - 1)
    if work.startswith("reward"):
        return 3 * 2 * score
    if work.startswith("dpo"):
        return (3 + 1) * 2 * policy  # the reference runs forward alone
    if work.startswith(("GRPO", "RLOO")):  # four completions share a prompt; the rollout's own pass is the update's
        shared = w.forward(PROMPT, 1, 1) / 4 + w.forward(new - 1, new - 1, new - 1)
        return shared + policy + 3 * policy
    # the rollout's own pass of policy and critic is the first epoch's
    return rollout + policy + score + EPOCHS * 3 * (policy + critic)


def with_share(line: Line, gflops: dict[str, float]) -> Line:
    """The line with the share of the machine's fastest products that our side reaches, in its own precision."""
    if line["ratio"] is None or line["better"] == "lower":
        return line
    precision = "bf16" if " bf16" in line["ours_side"] else "f32"
    return line | {"share_of_bound": round(line["ours"] * gflop(line["work"], line["model"]) / gflops[precision], 3)}
