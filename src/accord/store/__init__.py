"""The facts on disk: an append-only, content-addressed store in SQLite or PostgreSQL, and the tables of the work."""

from __future__ import annotations

from accord.store import operations
from accord.store.reading import MeanRating, Mismatch, RankedSource, find
from accord.store.store import Store
from accord.store.upkeep import Repaired, back_up, problems_of, repair, require_sound
from accord.store.writing import add_facts

__all__ = [
    "MeanRating",
    "Mismatch",
    "RankedSource",
    "Repaired",
    "Store",
    "add_facts",
    "back_up",
    "find",
    "operations",
    "problems_of",
    "repair",
    "require_sound",
]
