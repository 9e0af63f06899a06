"""What the gates of a round found, as a table of the page. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.report.parts import number
from accord.report.run_folder import ROUND_GATES_FILE, Absent, RunFolder

SAYS = {True: "passed", False: "refused", None: "not measured"}


def round_gates(run: RunFolder) -> dict[str, Any]:
    """The gates, in their order: number, interval, how many it is of, and the bound that the recipe had written."""
    found = run.get(ROUND_GATES_FILE).get("gates")
    if not found:
        raise Absent("this is no round with users")
    return {"rows": [_gate_row(row) for row in found], "refused": any(row["passed"] is False for row in found)}


def _gate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    interval = "" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]"
    clusters = f" on {row['clusters']:,} topics" if row["clusters"] not in (0, row["n"]) else ""
    return {
        "name": row["name"],
        "says": SAYS[row["passed"]],
        "refuses": row["passed"] is False or (row["passed"] is None and row["needed"]),
        "value": "–" if row["value"] is None else number(row["value"]) + interval,
        "of": f"{row['n']:,}{clusters}" if row["n"] else "–",
        "bound": row["bound"],
        "why": row["why"],
    }
