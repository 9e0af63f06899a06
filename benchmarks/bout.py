"""Bouts: all sides of the rows asked for, started in turn, round after round; one failing side stops no other."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import venvs
from benchmarks.measure import Line, Reading, agreement_line, contenders, failed, lines_of, reading_of
from benchmarks.process import Failed, Ran, run
from benchmarks.rows import Agreement, Row, Side

HERE = Path(__file__).resolve().parent
# `transformers` loads these when the first model is made: they are imports all the same.
LATE = ("transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2")

LATER_ROUNDS = 0.7  # of the first round's time: slow sides drop out


class Runner:
    """Starts sides: ours with this Python, a peer's with that of its own environment, which is made on first use."""

    def __init__(self, peers: Path, pip_args: list[str]) -> None:
        self.peers, self.pip_args = peers, pip_args
        self._baselines: dict[str, float] = {}
        self._made: dict[str, venvs.Peer | venvs.NoPeer] = {}

    def words(self, side: Side, runs: int) -> list[str]:
        """The command of a side as it can be typed."""
        args = [arg.replace("{models}", str(venvs.HOME / "models")) for arg in side.command(runs)]
        env = [f"{key}={value}" for key, value in side.env.items()]
        if side.peer == "accord":
            return [*env, "python", "-m", "benchmarks.ours", *args]
        return [*env, "python", str(self.peers / args[0]), *args[1:]]

    def peer(self, name: str) -> venvs.Peer:
        """A peer's environment, made on first use; one that could not be made is not tried again. Raises NoPeer."""
        if name not in self._made:
            try:
                self._made[name] = venvs.peer(name, self.pip_args)
            except (venvs.NoPeer, OSError) as error:
                self._made[name] = venvs.NoPeer(f"peer could not be installed: {error}")
        found = self._made[name]
        if isinstance(found, venvs.NoPeer):
            raise found
        return found

    @cache  # noqa: B019 - one runner a process
    def models(self) -> Path:
        """The folder of the models; they are made by the peers' scripts, in the peers' environment."""
        return venvs.models(self.peers, self.peer("trl").python)

    def start(self, side: Side, runs: int) -> Reading:
        """One start of a side. Raises Failed."""
        self.models()
        words = self.words(side, runs)[len(side.env) :]
        ran = self._run(side.peer, words[1:], dict(side.env), side.name, limit_s=600 + 8 * side.about_s)
        if not ran.result:
            raise Failed("no RESULT line")
        above = ran.peak_mb - self._baseline(side.peer, words[1:])
        return reading_of(ran.result, side.items, above)

    def sums(self, row: Agreement, script: str, peer: str, folder: str) -> tuple[list[float], list[float]]:
        """Losses and gradient norms of one half of an agreement row. Raises Failed."""
        args = [row.kind, str(self.models() / "tiny"), row.precision, folder]
        words = ["-m", script, *args] if peer == "accord" else [str(HERE / script), *args]
        found = self._run(peer, words, {}, f"{row.name} {peer}", limit_s=1200).result
        return found["losses"], found["norms"]

    def _run(self, peer: str, words: list[str], env: dict[str, str], name: str, *, limit_s: int) -> Ran:
        if peer == "accord":
            python, path = Path(sys.executable), [venvs.ROOT, venvs.ROOT / "src"]
        else:
            known = self.peer(peer)
            python, path = known.python, list(known.path)
        log = venvs.HOME / "logs" / f"{name.replace(' ', '_')}.log"
        return run([str(python), *words], env=env, path=path, cwd=venvs.HOME, log=log, limit_s=limit_s)

    def _baseline(self, peer: str, words: list[str]) -> float:
        """Peak memory of a process that imports what the script imports, once a script."""
        script = str(HERE / "ours.py") if peer == "accord" else words[0]
        key = f"{peer} {Path(script).name}"
        if key not in self._baselines:
            late = () if peer == "accord" else LATE
            ran = self._run(peer, [str(HERE / "imports.py"), script, *late], {}, f"imports {key}", limit_s=300)
            self._baselines[key] = ran.peak_mb
        return self._baselines[key]


def measure(runner: Runner, rows: Sequence[Row]) -> Iterator[Line]:
    """Lines of the rows, bout by bout: rows of one bout share the starts of their sides."""
    bouts = [list(bout) for _, bout in groupby(rows, key=lambda row: row.bout)]
    total = sum(_estimate_s(bout) for bout in bouts)
    print(f"{len(rows)} rows in {len(bouts)} bouts, about {total / 60:.0f} minutes", flush=True)
    for bout in bouts:
        print(f"-- {bout[0].bout}: about {_estimate_s(bout) / 60:.0f} minutes", flush=True)
        yield from _bout(runner, bout)


def _sides(bout: Sequence[Row]) -> list[Side]:
    """Every side of a bout once."""
    return list({side.name: side for row in bout for side in (*row.ours, *row.theirs)}.values())


def _estimate_s(bout: Sequence[Row]) -> int:
    """A first round of every side, and later ones of those that are left."""
    once = sum(side.about_s for side in _sides(bout))
    return round(once * (1 + (bout[0].rounds - 1) * LATER_ROUNDS))


def _bout(runner: Runner, bout: Sequence[Row]) -> Iterator[Line]:
    try:
        runner.peer(bout[0].theirs[0].peer)
    except venvs.NoPeer as error:
        yield from (failed(row, str(error), venvs.VERSIONS) | {"no_peer": True} for row in bout)
        return
    readings: dict[str, list[Reading]] = {side.name: [] for side in _sides(bout)}
    broken: dict[str, str] = {}
    left = set(readings)
    for _ in range(bout[0].rounds):
        for side in (side for side in _sides(bout) if side.name in left):
            start = time.monotonic()
            try:
                reading = runner.start(side, bout[0].runs)
            except (Failed, venvs.NoPeer, OSError, KeyError, ValueError) as error:
                broken[side.name] = str(error)
                print(f"   {side.name}: failed: {error}", flush=True)
                continue
            readings[side.name].append(reading)
            said = f"{reading.median:,.4g}/s, {reading.memory_mb:,.0f} MB ({time.monotonic() - start:.0f} s)"
            print(f"   {side.name}: {said}", flush=True)
        left = contenders(bout, readings) - set(broken)
    for row in bout:
        why = {s.name: broken[s.name] for s in (*row.ours, *row.theirs) if s.name in broken}
        yield from (line | ({"failures": why} if why else {}) for line in lines_of(row, readings, venvs.VERSIONS))


#: The peer's half of an agreement, where it is not a row of losses over steps.
PEER_SCRIPTS = {"ppo": "peer_update.py", "grpo": "peer_group.py", "rloo": "peer_group.py"}


def agree(runner: Runner, rows: Sequence[Agreement]) -> Iterator[Line]:
    """Lines of the agreement rows: our half first, which writes what the peer repeats."""
    for row in rows:
        peer = "trl-ppo" if row.kind == "ppo" else "trl"
        named = (peer, venvs.VERSIONS[peer])
        try:
            runner.peer(peer)
            with TemporaryDirectory() as folder:
                ours = runner.sums(row, "benchmarks.agreement", "accord", folder)
                script = PEER_SCRIPTS.get(row.kind, "peer_losses.py")
                theirs = runner.sums(row, script, peer, folder)
            yield agreement_line(row, ours, theirs, named)
        except (Failed, venvs.NoPeer, OSError, KeyError, ValueError) as error:
            lone = agreement_line(row, ([], []), ([], []), named)
            yield lone | {"ratio": None, "failed": str(error), "no_peer": isinstance(error, venvs.NoPeer)}
