"""Random streams by name, so that no stream depends on how work is batched, ordered or resumed."""

from __future__ import annotations

import hashlib


def hash_position(name: str) -> float:
    """Return where a name stands between 0 and 1: always there, whatever other names there are."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def stream_seed(*parts: int | str) -> int:
    """Return a 63-bit seed for one random stream.

    A hash of its names, for example ``stream_seed(seed, "order", epoch)``.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    # 63 bits: torch's generators take seeds as signed 64-bit numbers. A hash, so that neighbouring seeds have nothing
    # in common.
    return int.from_bytes(digest, "big") >> 1
