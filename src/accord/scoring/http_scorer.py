"""Scores over HTTP: a model on another machine, in another language, or behind somebody else's door."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from accord.errors import DataError, ResourceError
from accord.scoring.scorer import checked

#: Tries of one request in all; the pause before each further one is twice the one before.
MAX_TRIES = 5
PASSING = (408, 425, 429)  # refusals that a later try may lift, besides all of 500 and above


class HttpScorer:
    """A scorer behind a URL, asked in batches, one request at a time.

    It is sent ``{"prompts": [...], "completions": [...]}`` and answers ``{"scores": [...]}``.

    A server that does not answer in ``timeout_s`` seconds, breaks off, or says that it is busy (408, 425, 429, 5xx) is
    asked again, ``MAX_TRIES`` times in all, ``pause_s``, 2 ``pause_s``, 4 ``pause_s`` ... seconds apart.
    Environment variables for proxies (``no_proxy`` among them) hold.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, batch_size: int = 64, pause_s: float = 0.5) -> None:
        self.url, self.timeout_s, self.batch_size, self.pause_s = url, timeout_s, batch_size, pause_s

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return the scores of (prompt, completion) pairs, ``(S,)``.

        Raises:
            ResourceError: the server cannot be reached, or is busy, at the last try too.
            DataError: it refuses the texts, or what it gives is not one finite number for each.
        """
        batches = [pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size)]
        return torch.cat([torch.zeros(0), *(self._batch(batch) for batch in batches)])

    def _batch(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        body = {"prompts": [prompt for prompt, _ in pairs], "completions": [completion for _, completion in pairs]}
        answer = self._parsed(self._ask(json.dumps(body).encode()))
        return checked(self.url, answer, pairs)

    def _ask(self, body: bytes) -> bytes:
        """Return the answer's body, after as many tries as it takes."""
        # The standard library, one request after the other: beside a local model, scoring is a small part of an
        # iteration.
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        for left in reversed(range(MAX_TRIES)):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    answer: bytes = response.read()
                    return answer
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(200).decode("utf-8", "replace")
                # Texts that are refused now will be refused again: better to stop with the server's own words.
                if error.code < 500 and error.code not in PASSING:
                    raise DataError(f"refused with {error.code}: {said}", where=self.url) from error
                failure: Exception = error
            except (OSError, http.client.HTTPException) as error:
                failure = error
            if left:
                time.sleep(self.pause_s * 2 ** (MAX_TRIES - 1 - left))
        raise ResourceError(
            f"no scores after {MAX_TRIES} tries ({failure})",
            where=self.url,
            hint="start the server; raise timeout_s or lower batch_size if it is slow",
        ) from failure

    def _parsed(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)["scores"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"answered {answer[:80]!r}", where=self.url, why='JSON like {"scores": [0.5, 1.5]} is wanted'
            ) from error
