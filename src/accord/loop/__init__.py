"""Rounds of the whole system."""

from accord.loop.compare import compare
from accord.loop.run import run, run_seeds
from accord.loop.sweep import sweep, sweep_stage
from accord.loop.waiting import WaitingForPeople

__all__ = ["WaitingForPeople", "compare", "run", "run_seeds", "sweep", "sweep_stage"]
