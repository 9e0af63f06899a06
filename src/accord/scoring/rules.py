"""Scores by rule: a function of a user's own, a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from accord.errors import UsageError
from accord.extend import blaming, outside
from accord.scoring.scorer import checked


class FunctionScorer:
    """``module:function`` of a user's own, called as ``function(prompts, completions)`` with two lists of texts.

    It gives one number for each completion, in their order. Raises UsageError where there is no such function.
    """

    def __init__(self, name: str) -> None:
        self.name, self.function = name, outside(name)
        if not callable(self.function):
            raise UsageError(f"{name!r} is a {type(self.function).__name__}, not a function")

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        with blaming(self.name):
            given = self.function([prompt for prompt, _ in pairs], [completion for _, completion in pairs])
            score_S = checked(self.name, given, pairs)  # inside: a generator may fail only as it is read
        return score_S


class RegexScorer:
    """1 where the pattern is found anywhere in the completion, else 0; with ``absent`` the other way round."""

    def __init__(self, pattern: str, *, absent: bool = False) -> None:
        self.pattern, self.absent = re.compile(pattern), absent

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        found = [self.pattern.search(completion) is not None for _, completion in pairs]
        return torch.tensor([float(one != self.absent) for one in found])
