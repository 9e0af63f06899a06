"""PPO from beginning to end on one page: a policy learns to recite the alphabet, in under a minute on one core.

    python examples/ppo.py

The policy is an LSTM with random weights. A prompt is a letter; the completion should go on from there, each letter
after the one before it, as long as it may. Nobody tells the policy so: it is only given a score. Everything that
`accord rl` does around this (files, resuming, micro-batches, adapters, alarms, reports) is left out; what an iteration
is made of is the same, and so are the functions of `accord.algo`:

    sample -> score -> price of KL -> values -> advantages -> update policy and critic

Shapes: B completions, T tokens of the longest prompt and completion, V letters and the end. `mask` True = counts.
Position t of a row holds what chooses token t + 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from accord.algo.advantages import gae, token_rewards
from accord.algo.policy_loss import Tokens, clipped, clipped_value_loss
from accord.algo.reductions import masked_mean, masked_whiten
from accord.config import RlConfig
from accord.models.decoder import CausalLM, init_weights
from accord.models.lstm import LstmConfig
from accord.rollout.engine import Engine, Sample, Sampling

LETTERS = "abcdefghijkl"
END = len(LETTERS)  # the token that ends a completion
MAX_TOKENS = 10
PROMPTS = 16  # a batch
SAMPLES = 8  # completions of each prompt
KL_COEF = 0.02  # score that one nat away from the reference costs; at 0.3 the policy stays where it was
DISCOUNT, LAMBDA = 1.0, 0.95  # the end is near: what comes later counts in full
EPOCHS = 4  # steps on one batch
VALUE_CLIP = 0.2
SETTINGS = RlConfig(clip=0.2)  # what losses read of a recipe: how far the ratio of new to old probability may pay


class Critic(nn.Module):
    """How much reward is still to come, at every position: an LSTM of its own and one number from its state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(END + 1, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)  # it begins by expecting nothing, instead of something at random

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.value(self.lstm(self.embed(ids_BT))[0]).squeeze(-1)  # (B, T)


@dataclass(frozen=True)
class Rollout:
    """One batch of completions and all that is known before the update."""

    ids_BT: Tensor
    mask_BT: Tensor  # where a token of a completion is chosen
    logp_BT: Tensor  # of the policy that sampled
    ref_logp_BT: Tensor
    value_BT: Tensor
    score_B: Tensor


def score(sample: Sample) -> float:
    """Return the share of all the letters there could be that follow the one before them, 0 to 1."""
    tokens = [*sample.prompt, *(token for token in sample.completion if token != END)]
    return sum(after == (before + 1) % len(LETTERS) for before, after in pairwise(tokens)) / MAX_TOKENS


def token_logp(model: CausalLM, ids_BT: Tensor) -> Tensor:
    """Return the log-probability of each next token, ``(B, T)``; the last position chooses nothing and has 0."""
    logp_BTV = model(ids_BT[:, :-1]).log_softmax(-1)
    chosen_BT = logp_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    return nn.functional.pad(chosen_BT, (0, 1))


def batch(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Return prompts with their completions, padded to one length, and where completions' tokens are chosen."""
    rows = [torch.tensor([*sample.prompt, *sample.completion]) for sample in samples]
    ids_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=END)
    place_T = torch.arange(ids_BT.shape[1])
    prompt_B1 = torch.tensor([[len(sample.prompt)] for sample in samples])
    length_B1 = torch.tensor([[len(row)] for row in rows])
    return ids_BT, (place_T >= prompt_B1 - 1) & (place_T < length_B1 - 1)


@torch.no_grad()
def collect(policy: CausalLM, reference: CausalLM, critic: Critic, seed: int) -> Rollout:
    """Sample completions of random prompts, score them, and look at them with all three models."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(len(LETTERS), (PROMPTS, 1), generator=generator).tolist()
    samples = Engine(policy, [END]).generate(prompts, Sampling(MAX_TOKENS, SAMPLES), seed=seed)
    ids_BT, mask_BT = batch(samples)
    score_B = torch.tensor([score(sample) for sample in samples])
    logp_BT, ref_logp_BT = token_logp(policy, ids_BT), token_logp(reference, ids_BT)
    return Rollout(ids_BT, mask_BT, logp_BT, ref_logp_BT, critic(ids_BT), score_B)


def advantages(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Return how much better each token was than expected, whitened, and the returns that the critic learns.

    A token's reward is its price of KL, and the last token's is the score too. All rows have prompts of one letter, so
    that position 0 chooses the first token of each, as `gae` wants it: what counts comes first.
    """
    mask_BT = rollout.mask_BT
    reward_BT = token_rewards(rollout.score_B, rollout.logp_BT, rollout.ref_logp_BT, mask_BT, KL_COEF)
    advantage_BT, return_BT = gae(reward_BT, rollout.value_BT, mask_BT, DISCOUNT, LAMBDA)
    return masked_whiten(advantage_BT, mask_BT), return_BT


def update(policy: CausalLM, critic: Critic, optimiser: torch.optim.Optimizer, rollout: Rollout) -> None:
    """Take a few steps on one batch; the clip keeps the policy near the one that sampled it."""
    advantage_BT, return_BT = advantages(rollout)
    mask_BT, row_B1 = rollout.mask_BT, torch.arange(len(rollout.ids_BT))[:, None]
    row_N, old_logp_N = row_B1.expand_as(mask_BT)[mask_BT], rollout.logp_BT[mask_BT]
    for _ in range(EPOCHS):
        tokens = Tokens(token_logp(policy, rollout.ids_BT)[mask_BT], old_logp_N, advantage_BT[mask_BT], row_N)
        value_N, old_value_N = critic(rollout.ids_BT)[mask_BT], rollout.value_BT[mask_BT]
        value_loss = clipped_value_loss(value_N, old_value_N, return_BT[mask_BT], VALUE_CLIP, denominator=len(value_N))
        loss = clipped(tokens, SETTINGS).mean() + value_loss  # two models: the losses do not compete
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*policy.parameters(), *critic.parameters()], 1.0)
        optimiser.step()


def train(iterations: int = 60, seed: int = 0) -> list[float]:
    """Run the loop and return the mean score of each iteration's batch."""
    torch.manual_seed(seed)
    policy = CausalLM(LstmConfig(vocab_size=END + 1, width=64, num_layers=1, max_positions=1 + MAX_TOKENS))
    init_weights(policy, seed)
    reference, critic = copy.deepcopy(policy), Critic(64)
    optimiser = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=3e-3, eps=1e-5)
    scores = []
    for step in range(iterations):
        rollout = collect(policy, reference, critic, seed=1000 * seed + step)
        update(policy, critic, optimiser, rollout)
        scores.append(rollout.score_B.mean().item())
        if step % 5 == 0 or step == iterations - 1:
            kl = masked_mean(rollout.logp_BT - rollout.ref_logp_BT, rollout.mask_BT)
            tokens = rollout.mask_BT.sum(1).float().mean()
            print(f"iteration {step:3}  score {scores[-1]:.2f}  kl {kl:.2f} nats a token  {tokens:4.1f} tokens")
    return scores


if __name__ == "__main__":
    train()
