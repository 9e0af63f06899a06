"""The facts on disk: an append-only, content-addressed store in SQLite or PostgreSQL, and the tables of the work."""

from __future__ import annotations

from accord.store import operations
from accord.store.reading import MeanRating, Mismatch, RankedSource, find
from accord.store.store import Store
from accord.store.writing import add_facts

__all__ = ["MeanRating", "Mismatch", "RankedSource", "Store", "add_facts", "find", "operations"]
