"""Which prompts the models that read them have room for: one that is met late would end work that is nearly done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accord.errors import DataError
from accord.formats.stage_rows import PromptRow
from accord.models.decoder import CausalLM
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import reward_models
from accord.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Room:
    """How many tokens a prompt may have for one of the models that will read it, by that model's own tokenizer."""

    whose: str
    encode: Callable[[str], Sequence[int]]
    most: int


def rooms_for(policy: CausalLM, tokenizer: Tokenizer, max_new_tokens: int, *scorers: Scorer) -> list[Room]:
    """Return the room of a policy that is to write so many tokens, and of the reward models that read them."""
    # The last token is never fed back.
    own = Room("policy", tokenizer.encode_prompt, policy.config.max_positions - max_new_tokens + 1)
    readers = [model for scorer in scorers for model in reward_models(scorer)]
    return [own, *(Room("reward model", one.tokenizer.encode_prompt, one.longest_prompt) for one in readers)]


def short_enough(rows: Sequence[PromptRow], rooms: Sequence[Room]) -> tuple[list[PromptRow], dict[str, int]]:
    """Return the prompts that every model has room for, and how many each had none for of those still there.

    Found before the first step: one that is drawn late would end a run that is nearly done.

    Raises DataError where none is left.
    """
    kept, longest = list(rows), ""
    dropped: dict[str, int] = {}
    for room in rooms:
        passed = [row for row in kept if len(room.encode(row.text)) <= room.most]
        if len(passed) < len(kept):
            longest = f"{room.whose} takes {room.most} tokens of a prompt at most"
            dropped[room.whose] = dropped.get(room.whose, 0) + len(kept) - len(passed)
        kept = passed
    if not kept:
        hint = "shorten the prompts, lower max_new_tokens or use a model with a longer context"
        raise DataError(f"none of {len(rows)} prompts is short enough", why=longest, hint=hint)
    return kept, dropped
