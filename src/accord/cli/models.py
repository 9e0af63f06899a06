"""The command that shows which models are served under which names, and moves a name by hand."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from accord.cli.options import Json, Verbose
from accord.cli.rounds import Place, project_of
from accord.cli.talk import path_text, talking
from accord.errors import DataError, UsageError

MOST_MOVES = 20  # shown; --json has all


def models(
    place: Place = None,
    move: Annotated[
        str, typer.Option("--set", metavar="prod=MODEL_DIR", help="Let prod name this model, past the gates.")
    ] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, with --set; it stands in the history.")] = "",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show which model is served under which name (prod, canary), its version, and every move with its reason.

    A running `accord serve` follows a move between two requests. What `accord round` promotes has passed its gates;
    what is set by hand has not, and the history says so. `accord rollback` goes back.

    \b
    Examples:
      accord models support
      accord models support --set prod=runs/first/rl/model --reason "the first round is to beat this"
    """
    with talking(json, verbose) as talk:
        from accord.serve.aliases import aliases_of_rounds

        home = project_of(place)
        aliases = aliases_of_rounds(home.rounds)
        if move:
            _moved(aliases, move, reason)
        told = {
            "models": {
                name: {"folder": str(one.folder), "version": one.version, **({"share": one.share} if one.share else {})}
                for name, one in aliases.all().items()
            },
            "history": aliases.history(),
        }
        talk.result(told, text="\n".join(_lines(told)), next_step="" if told["models"] else f"accord round {home.root}")


def _moved(aliases: Any, move: str, reason: str) -> None:
    from accord.serve.aliases import PROD, ServedModel
    from accord.serve.served import weights_version

    name, equals, folder = move.partition("=")
    # A canary has a share and a test, which a round gives it; the reference of KL is what the first round started from.
    if name != PROD or not equals:
        raise UsageError(f"{move!r} moves nothing", where="--set", hint="as prod=MODEL_DIR; rounds move the others")
    path = Path(folder).resolve()
    if not (path / "config.json").is_file():
        raise DataError("no model here", where=str(path), hint="name a Hugging Face folder, as a run's rl/model")
    aliases.move(
        {name: ServedModel(path, weights_version(path))}, f"by hand, no gate was asked: {reason or 'no reason given'}"
    )


def _lines(told: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{name}: version {one['version']}, {path_text(Path(one['folder']))}"
        + (f", {one['share']:.0%} of conversations" if "share" in one else "")
        for name, one in told["models"].items()
    ] or ["no round has named a model yet"]
    moves = told["history"]
    lines += [f"{len(moves)} moves, the last {min(MOST_MOVES, len(moves))}:"] if moves else []
    return lines + [_move(row) for row in moves[-MOST_MOVES:]]


def _move(row: Mapping[str, Any]) -> str:
    at = datetime.datetime.fromtimestamp(row["at"], datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    before, after = ((row[side] or {}).get("version", "none") for side in ("from", "to"))
    return f"  {at}  {row['alias']}: {before} -> {after}; {row['why']}"
