"""Counts over the items of a file, in memory that hardly grows: 8 bytes for each distinct text."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter

import numpy as np

from accord.formats.facts import ORIGINS
from accord.formats.item import Item

_FIRST_ROOM = 2**16
#: How judgements are counted of which a file does not say whose they are.
NOT_SAID = "people (the file does not say; --judged-by models says otherwise)"
_JUDGED = ("ranking", "label", "rating", "steps")


class Distinct:
    """How many different values were added, by 64-bit hashes (two of a million collide with chance 3e-8)."""

    def __init__(self) -> None:
        self._hashes, self._room = array("Q"), _FIRST_ROOM

    def add(self, *value: object) -> None:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._hashes.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
        if len(self._hashes) >= self._room:
            self._settle()
            self._room = max(_FIRST_ROOM, 2 * len(self._hashes))

    def __len__(self) -> int:
        return len(self._settle())

    def common(self, other: Distinct) -> int:
        """Return how many values both have."""
        return len(np.intersect1d(self._settle(), other._settle(), assume_unique=True))

    def _settle(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Return the hashes sorted, each once. Sorted in place: there may be many millions."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        hashes.sort()
        found: np.ndarray[tuple[int], np.dtype[np.uint64]] = hashes[
            np.concatenate([hashes[:1] == hashes[:1], hashes[1:] != hashes[:-1]])
        ]
        self._hashes = array("Q", found.tobytes())
        return found


class ItemTally:
    """What a stream of items holds: prompts and completions (each counted once), judgements and whose, pairs, kinds."""

    def __init__(self) -> None:
        self.prompts, self.completions = Distinct(), Distinct()
        self.judgements = self.pairs = self.items = 0
        self.kinds, self.judges = Counter[str](), Counter[str]()

    def add(self, item: Item) -> None:
        self.items += 1
        self.kinds[item.kind] += 1
        self.judgements += item.num_judgements
        if judged := item.num_judgements * (item.kind in _JUDGED):
            self.judges[item.origin if item.origin in ORIGINS.values() else NOT_SAID] += judged
        self.pairs += sum(1 for _ in item.pairs())
        if item.prompt is not None:
            self.prompts.add(item.prompt)
        for completion in item.completions:
            self.completions.add(item.prompt, completion)

    def counts(self) -> dict[str, int]:
        return {
            "prompts": len(self.prompts),
            "completions": len(self.completions),
            "judgements": self.judgements,
            "pairs": self.pairs,
        }
