"""The commands of a round: learn from what users said, promote or refuse; and go back to the model before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.options import FromDir, Json, Verbose
from accord.cli.project import FILE, Project, find_project
from accord.cli.serving import newest_model
from accord.cli.talk import Talk, path_text, talking
from accord.config.enough import span_s
from accord.errors import AccordError, UsageError

if TYPE_CHECKING:
    from accord.loop.turn import TurnRecord

REFUSED = 7  # exit code: the gates have refused the candidate; nothing is broken
Place = Annotated[Path | None, typer.Argument(metavar="[PROJECT]", help="A project; by default the one here.")]


def round_(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROJECT] [KEY=VALUE]...", help="A project, by default the one here; and keys to change."
        ),
    ] = None,
    every: Annotated[
        str, typer.Option(metavar="SPAN", help="Again each time, as 12h or 1d; one round at a time, until Ctrl-C.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also where nothing new was said since the last round.")
    ] = False,
    from_dir: FromDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Learn from what users said, and promote what comes of it, or refuse it and say why.

    Feedback that is admitted, beside all older judgements, makes a reward model and a candidate, with KL to the model
    that the first round started from. Gates that stand in the recipe before (`gates:`) decide; then the candidate
    answers users' prompts unseen, then a share of conversations (`canary:`), then all. Killed anywhere, the same
    command goes on. Exit code 7: refused; each gate is told with its number, n and interval.

    \b
    Examples:
      accord round support
      accord round support gates.win_delta=0.02 canary.share=0.05
      accord round support --every 1d
    """
    with talking(json, verbose) as talk:
        span = _span(every)
        given = list(words or ())
        named = Path(given.pop(0)) if given and "=" not in given[0] else None
        home = project_of(named)
        while True:
            record = _turn(talk, home, given, force=force, from_dir=from_dir, goes_on=bool(span))
            if record is not None:
                talk.result(_told(record), text="\n".join(lines_of(record)), next_step="" if span else _next(record))
            if not span:
                break
            talk.log.note(f"the next round in {every}")
            time.sleep(span)
        if record is not None and record.state == "refused":
            raise typer.Exit(REFUSED)


def _span(every: str) -> float:
    if not every:
        return 0.0
    try:
        return span_s(every)
    except ValueError as error:
        raise UsageError(str(error), where="--every") from error


def project_of(place: Path | None) -> Project:
    """Return the project named, or the one around here. Raises UsageError where there is none."""
    found = find_project(place)
    if found is None:
        raise UsageError("there is no project here", hint=f"name a folder with an {FILE}; `accord init` makes one")
    return found


def _turn(
    talk: Talk, home: Project, overrides: Sequence[str], *, force: bool, from_dir: Path | None, goes_on: bool
) -> TurnRecord | None:
    """Take one turn; where it goes on every day, what one of them cannot do is told, and the next one tries again."""
    from accord.loop.turn import take_turn

    try:
        with home.entered():
            return take_turn(
                home.recipe_with(overrides),
                output_dir=home.rounds,
                store=home.store,
                start=newest_model(home),
                from_dir=from_dir,
                force=force,
                log=talk.log,
            )
    except AccordError as error:
        if not goes_on:
            raise
        talk.log.note(str(error))
        return None


def _told(record: TurnRecord) -> dict[str, Any]:
    from accord.cli.talk import to_plain

    told: dict[str, Any] = to_plain(record)
    return {**told, "sentences": record.sentences}


BECAME: Mapping[str, str] = {
    "promoted": "promoted: it is served as prod from now on",
    "refused": "refused",
    "canary": "in the canary",
    "nothing new": "nothing new was said since the round before",
}


def lines_of(record: TurnRecord) -> list[str]:
    """Return what became of a round, what it learnt from, and every gate, in words."""
    lines = [f"round {record.number}: {BECAME[record.state]}"]
    if admission := record.admission:
        lines.append(f"  users' feedback: {admission['admitted']:,} admitted, {admission['refused']:,} refused")
        lines += [f"    {count:,} refused: {why}" for why, count in admission["reasons"].items()]
    lines += [f"  {sentence}" for sentence in record.sentences]
    told = set(record.sentences)
    return [*lines, *(f"  {reason}" for reason in record.reasons if reason not in told)]


def _next(record: TurnRecord) -> str:
    if record.state == "promoted":
        return "accord rollback   (to go back to the model before)"
    if record.state == "canary":
        return "accord round   (looks at what users say of the canary)"
    return ""


def rollback(
    place: Place = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it stands in the history.")] = "",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Serve the model again that was served before the last promotion; a canary ends. One move, nothing is deleted.

    A second rollback takes the first one back.

    \b
    Examples:
      accord rollback support --reason "it answers in French"
    """
    with talking(json, verbose) as talk:
        from accord.serve.aliases import aliases_of_rounds

        home = project_of(place)
        aliases = aliases_of_rounds(home.rounds)
        model = aliases.roll_back(reason or "accord rollback")
        told = {"prod": str(model.folder), "version": model.version}
        talk.result(told, text=f"prod is {path_text(model.folder)}, version {model.version}")
