"""Rounds of the whole system."""

from accord.loop.compare import compare
from accord.loop.run import run, run_seeds
from accord.loop.sweep import sweep, sweep_stage

__all__ = ["compare", "run", "run_seeds", "sweep", "sweep_stage"]
