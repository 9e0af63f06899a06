"""Rounds of the whole system."""

from accord.loop.compare import compare
from accord.loop.run import demo, run

__all__ = ["compare", "demo", "run"]
