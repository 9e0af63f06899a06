"""The facts on disk: an append-only, content-addressed store in SQLite or PostgreSQL."""

from __future__ import annotations

from accord.store.reading import MeanRating, Mismatch
from accord.store.store import Store

__all__ = ["MeanRating", "Mismatch", "Store"]
