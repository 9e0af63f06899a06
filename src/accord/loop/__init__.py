"""Rounds of the whole system."""

from accord.loop.run import demo, run

__all__ = ["demo", "run"]
