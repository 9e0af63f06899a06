"""A reward model as a scorer: reached by text, so that its tokenizer and size are its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from accord.algo.table import ENSEMBLE_RULES
from accord.config import CombineConfig
from accord.errors import DataError
from accord.models.decoder import ScalarModel
from accord.models.folder import REWARD, RewardScale, load_scalar
from accord.models.placement import AUTO, Placement
from accord.scoring.scorer import checked
from accord.text.batches import Example, collate, example_buckets
from accord.text.tokenizer import Tokenizer


def encode_scored(tokenizer: Tokenizer, prompt: str, completion: str, max_tokens: int, closing: str = "") -> Example:
    """Encode prompt, completion and end token; the score is read at the end token, the last real one.

    Where a reward model of somebody else's learned whole conversations, ``closing`` is what its template writes behind
    the completion, in place of the end token. A text longer than ``max_tokens`` loses the end of its completion; the
    end token stays.
    Raises DataError where the prompt alone fills them: all its completions would get the same score.
    """
    head, tail = tokenizer.encode_pair(prompt, completion)
    rendered = bool(closing) and tokenizer.chat is not None and tokenizer.chat.wrote(prompt)
    end = tokenizer.encode(closing) if rendered else [tokenizer.end_id]
    room = max_tokens - len(end) - len(head)
    if room < 1:
        raise DataError(
            f"a prompt of {len(head)} tokens leaves no room for a completion in {max_tokens}",
            where=f"prompt {prompt[:40]!r}",
            hint="shorten the prompt, raise max_tokens or use a model with a longer context",
        )
    # The end token stays when the text is cut: it is what the model was taught to read the score at.
    return Example(tuple(head), (*tail[:room], *end))


@torch.no_grad()
def raw_scores(
    model: ScalarModel,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    max_tokens: int,
    batch_tokens: int = 8192,
    closing: str = "",
) -> Tensor:
    """Return the head's number at the last real token of each (prompt, completion), ``(S,)``, before offset and scale.

    In fp32. Of several heads one each, ``(S, heads)``.
    """
    examples = [encode_scored(tokenizer, prompt, completion, max_tokens, closing) for prompt, completion in pairs]
    # In buckets of like length, put back where they belong: padding is what a batch of mixed texts mostly runs.
    score_SM = torch.empty(len(examples), model.score.out_features)
    for bucket in example_buckets(examples, batch_tokens):
        batch = collate([examples[i] for i in bucket], tokenizer.pad_id)
        score_SM[bucket] = model(batch.ids_BT, batch.length_B, batch.last_B).reshape(len(bucket), -1)
    return score_SM.squeeze(1)


def combined(score_SM: Tensor, combine: CombineConfig) -> Tensor:
    """Return one score out of those of M members, ``(S,)``."""
    # One alone is its own mean and minimum, and its variance is 0: every rule leaves it as it is.
    if score_SM.shape[1] == 1:
        return score_SM[:, 0]
    return ENSEMBLE_RULES[combine.rule].combine(score_SM, combine.variance_coef)


class RewardModel:
    """A frozen reward model: texts in, calibrated scores out. Several heads are an ensemble: see `RewardScale`.

    ``closing``: what a conversation ends with where it was trained elsewhere; see `encode_scored`.
    """

    def __init__(self, model: ScalarModel, tokenizer: Tokenizer, scale: RewardScale, closing: str = "") -> None:
        self.closing = closing
        # dropout would give a text two scores
        self.model, self.tokenizer, self.scale = model.eval().requires_grad_(False), tokenizer, scale

    @classmethod
    def load(cls, folder: Path, placement: Placement = AUTO) -> RewardModel:
        """Read a reward model from its Hugging Face folder."""
        model, tokenizer, scale = load_scalar(folder, placement)
        # Others train on conversations as the template renders them, whatever it writes behind the last turn's end.
        chat = None if (folder / REWARD).exists() else tokenizer.chat
        return cls(model, tokenizer, scale, "" if chat is None else chat.closing)

    @property
    def longest_prompt(self) -> int:
        """The most tokens of a prompt that leave room for a token of a completion and for the end token."""
        return self.max_tokens - 1 - max(1, len(self.tokenizer.encode(self.closing)))

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text that it reads: as many as it was taught to, within its context."""
        return min(self.scale.max_tokens or self.model.config.max_positions, self.model.config.max_positions)

    def cut(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Return of which completions it does not read the end."""
        # A token is a byte or more: most texts need no second look.
        return [self._is_cut(prompt, text + self.closing) for prompt, text in pairs]

    def _is_cut(self, prompt: str, text: str) -> bool:
        if len(prompt.encode()) + len(text.encode()) + 2 <= self.max_tokens:
            return False
        head, tail = self.tokenizer.encode_pair(prompt, text)
        return len(head) + len(tail) + 1 > self.max_tokens

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return the scores of (prompt, completion) pairs, ``(S,)``: human completions have mean 0 and deviation 1.

        Those of an ensemble do so head by head; scores of `transform` "probability" lie between 0 and 1.
        """
        return checked("the reward model", combined(self.member_scores(pairs), self.scale.combine), pairs)

    def member_scores(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return what each head says, on its own scale, ``(S, heads)``."""
        raw = raw_scores(self.model, self.tokenizer, pairs, self.max_tokens, closing=self.closing)
        return self.scale.apply(raw).reshape(len(pairs), self.model.score.out_features)
