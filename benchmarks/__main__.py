"""Run rows of the table: ``python -m benchmarks [--rows a,b] [--peers DIR] [--quick] [--list]``, or ``make bench``.

Exit code 1 when a floor is missed or a row failed. A peer that cannot be installed leaves its rows without numbers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from benchmarks import machine, venvs
from benchmarks.bound import with_share
from benchmarks.bout import Runner, agree, measure
from benchmarks.measure import Line, falls_short, merged
from benchmarks.rows import AGREEMENTS, ROWS, Agreement, Row
from benchmarks.table import between_markers, markdown, plain

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results.json", venvs.ROOT / "docs" / "performance.md"
NAMES = [row.name for row in (*ROWS, *AGREEMENTS)]


def chosen(wanted: str) -> tuple[list[Row], list[Agreement]]:
    """The rows named, by name or by the start of a name ("ppo-full"); all where nothing is named."""
    starts = [word for word in wanted.split(",") if word]
    unknown = [start for start in starts if not any(name.startswith(start) for name in NAMES)]
    if unknown:
        raise SystemExit(f"no row is called {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    picked = [name for name in NAMES if not starts or name.startswith(tuple(starts))]
    return [row for row in ROWS if row.name in picked], [row for row in AGREEMENTS if row.name in picked]


def save(lines: Sequence[Line], block: machine.Block) -> None:
    """Put the lines into `results.json`, and the table of all lines into the docs."""
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    stamp = {"date": block["date"], "cpu": block["cpu"]}
    every = merged(old, [with_share(line, block["gflops"]["square 2048"]) | stamp for line in lines], NAMES)
    RESULTS.write_text(json.dumps(every, indent=1) + "\n")
    (HERE / "machine.json").write_text(json.dumps(block, indent=1) + "\n")
    PAGE.write_text(between_markers(PAGE.read_text(), f"{machine.sentence(block)}\n\n{markdown(every)}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default="", help="names, or starts of names, with commas between; default: all")
    parser.add_argument("--peers", type=Path, default=venvs.ROOT.parent / "shared" / "peers")
    parser.add_argument("--quick", action="store_true", help="one timed run a side; saves nothing")
    parser.add_argument("--list", action="store_true", help="print the rows and the commands of both sides")
    parser.add_argument("--pip-args", default="", help="passed on to pip")
    given = parser.parse_args(argv)
    rows, agreements = chosen(given.rows)
    if given.quick:
        rows = [replace(row, rounds=1, runs=1) for row in rows]
    runner = Runner(given.peers.resolve(), shlex.split(given.pip_args))
    if given.list:
        for row in rows:
            print(f"{row.name}: {row.work}, {row.model}, floor {row.floor}, goal {row.goal}, {row.rounds} rounds")
            for side in (*row.ours, *row.theirs):
                print(f"    {side.name}:  {' '.join(runner.words(side, row.runs))}")
        return 0
    if not (given.peers / "common.py").is_file():
        raise SystemExit(f"the peers' scripts are not in {given.peers}: give their folder, make bench PEERS=...")
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(name, signal.default_int_handler)
    lines: list[Line] = []
    block = {} if given.quick else machine.block()
    try:
        for line in chain(agree(runner, agreements), measure(runner, rows)):
            lines.append(line)
            print(plain([line]).splitlines()[1], flush=True)
            if block:
                save(lines, block)
    except KeyboardInterrupt:
        print("stopped; the rows that were done are kept", flush=True)
        return 130
    print("\n" + plain(merged([], lines, NAMES)))
    return int(any(falls_short(line) for line in lines))


if __name__ == "__main__":
    sys.exit(main())
