"""Scores over HTTP: a model on another machine, in another language, or behind somebody else's door."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from accord.errors import DataError
from accord.scoring.posting import SHOWN, Endpoint
from accord.scoring.scorer import checked

#: Tries of one request in all; the pause before each further one is twice the one before.
MAX_TRIES = 5


class HttpScorer:
    """A scorer behind a URL, asked in batches, one request at a time.

    It is sent ``{"prompts": [...], "completions": [...]}`` and answers ``{"scores": [...]}``. A busy server is asked
    again, ``MAX_TRIES`` times in all, as `accord.scoring.posting.Endpoint` says.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, batch_size: int = 64, pause_s: float = 0.5) -> None:
        hint = "start the server; raise timeout_s or lower batch_size if it is slow"
        self.batch_size = batch_size
        self._endpoint = Endpoint(url, timeout_s, pause_s, MAX_TRIES, "scores", hint)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return the scores of (prompt, completion) pairs, ``(S,)``.

        Raises:
            ResourceError: the server cannot be reached, or is busy, at the last try too.
            DataError: it refuses the texts, or what it gives is not one finite number for each.
        """
        # One request after the other: beside a local model, scoring is a small part of an iteration.
        batches = [pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size)]
        return torch.cat([torch.zeros(0), *(self._batch(batch) for batch in batches)])

    def _batch(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        body = {"prompts": [prompt for prompt, _ in pairs], "completions": [completion for _, completion in pairs]}
        return checked(self._endpoint.place, self._parsed(self._endpoint.post(body)), pairs)

    def _parsed(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)["scores"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            why = 'JSON like {"scores": [0.5, 1.5]} is wanted'
            raise DataError(
                f"answered {self._endpoint.said(repr(answer[:SHOWN]))}", where=self._endpoint.place, why=why
            ) from error
