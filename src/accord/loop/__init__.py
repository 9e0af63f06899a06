"""Rounds of the whole system."""

from accord.loop.compare import compare
from accord.loop.run import demo, run
from accord.loop.sweep import sweep, sweep_stage

__all__ = ["compare", "demo", "run", "sweep", "sweep_stage"]
