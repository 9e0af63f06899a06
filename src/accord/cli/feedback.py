"""The command that shows what users said of served completions, and whose words count no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.options import Json, Verbose
from accord.cli.project import Project, find_place
from accord.cli.talk import talking
from accord.config import AdmitConfig

if TYPE_CHECKING:
    from accord.people.signals import UserSignal
    from accord.store import Store

MOST_USERS = 20  # shown: those of whom most was refused


def feedback(
    place: Annotated[
        Path | None, typer.Argument(metavar="[PROJECT]", help="A project or a run; by default the project here.")
    ] = None,
    recall: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Let user:NAME, key:NAME or model:VERSION count no more; repeatable."),
    ] = None,
    opt_out: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="The same, as the user wishes it: prompts are left out too; repeatable."),
    ] = None,
    readmit: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Take a recall or an opt-out back; repeatable.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, with --recall or --opt-out.")] = "",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what users said of served completions: what a round would learn from, what not, and why.

    Feedback is in quarantine until it is admitted by the recipe's rules (`admit:`). Recalled sources stay in the store
    and teach nothing from the next round on; the models that learnt from them before are told.

    \b
    Examples:
      accord feedback support
      accord feedback support --recall user:web/mallory --reason "a script"
      accord feedback support --readmit user:web/mallory
    """
    with talking(json, verbose) as talk:
        from accord.people.admission import read_admission, read_recalled
        from accord.people.signals import note_signals, read_signals
        from accord.store import Store

        home = find_place(place)
        settings = home.recipe_with().admit if home.recipe.values else AdmitConfig()
        with Store.open(home.store) as store:
            done = _changed(store, recall or (), opt_out or (), readmit or (), reason)
            found = read_admission(store, settings).to_json()
            note_signals(store)
            with store.snapshot() as connection:
                found |= {"signals": dict(Counter(_called(one) for one in read_signals(connection)).most_common())}
                gone = [f"{one.source}: {one.told}" for one in read_recalled(connection)]
        told = {**found, "recalled": gone, **({"done": done} if done else {})}
        talk.result(told, text="\n".join(_lines(told)), next_step=_next(home, told))


def _called(signal: UserSignal) -> str:
    return f"AI feedback by {signal.judge}" if signal.judge else signal.kind.replace("_", " ")


def _changed(store: Store, recalled: Any, opted_out: Any, readmitted: Any, reason: str) -> list[str]:
    from accord.people.admission import readmit, recall

    done = [f"{one}: {'recalled' if recall(store, one, 'recall', reason) else 'was recalled'}" for one in recalled]
    done += [f"{one}: {'opted out' if recall(store, one, 'opt_out', reason) else 'had opted out'}" for one in opted_out]
    return done + [f"{one}: {'counts again' if readmit(store, one) else 'was not recalled'}" for one in readmitted]


def _lines(told: Mapping[str, Any]) -> list[str]:
    lines = [*told.get("done", ())]
    lines += [f"{told['admitted']:,} pieces of feedback admitted, {told['refused']:,} refused"]
    lines += [f"  {count:,} refused: {why}" for why, count in told["reasons"].items()]
    lines += [f"{told['teaches_nothing']:,} teach nothing: comments, flags, retries, copies"]
    did = ", ".join(f"{count:,} {name}" for name, count in told["signals"].items())
    lines += [f"signals: {did}"] if did else []
    users = [(name, one) for name, one in told["users"].items() if one["refused"]]
    lines += [f"  {name}: {one['admitted']:,} admitted, {one['refused']:,} refused" for name, one in users[:MOST_USERS]]
    lines += [f"  and {len(users) - MOST_USERS:,} users more"] if len(users) > MOST_USERS else []
    return lines + [f"left out: {one}" for one in told["recalled"]]


def _next(home: Project, told: Mapping[str, Any]) -> str:
    return "" if told["admitted"] or told["refused"] else f"accord serve {home.root}   (and press a thumb)"
