"""The command that lets programs answer the queue, through the HTTP API that people's browsers use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from accord.cli.options import FromDir, Json, Seed, Verbose
from accord.cli.project import Project, find_place, find_project
from accord.cli.talk import talking
from accord.config import load_label
from accord.errors import UsageError
from accord.people.web.serving import Address, served

if TYPE_CHECKING:
    from accord.people.simulation.playing import ProjectAdmin


def simulate(
    target: Annotated[
        str, typer.Argument(metavar="[PROJECT|URL]", help="The folder of a project or run, or a running app.")
    ] = "",
    annotators: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="raters: real people's scores of film reviews, replayed. synthetic: a gold scorer with noise. "
            "readers: a written-down taste for any text. Or yours, module:NAME.",
        ),
    ] = "raters",
    count: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many annotators.")] = 15,
    tasks: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Tasks to add first; by default 30 on film reviews a block of raters."),
    ] = None,
    kind: Annotated[
        Literal["pair", "ranking", "rating", "label"], typer.Option(help="What those tasks ask.")
    ] = "ranking",
    size: Annotated[
        int | None, typer.Option(min=1, max=9, metavar="K", help="Texts in each; 4 by default, 2 of a pair.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Annotators a task: by default the block of raters, or 5."),
    ] = None,
    defects: Annotated[
        str, typer.Option(metavar="NAME=N,...", help="Synthetic annotators that do not judge, like position=1,tie=2.")
    ] = "",
    token: Annotated[
        str | None, typer.Option(envvar="ACCORD_TOKEN", metavar="TOKEN", help="An admin's, for a running app.")
    ] = None,
    from_dir: FromDir = None,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Let simulated annotators answer the queue.

    They answer over HTTP, as people's browsers do; without the URL of a running app, one is started for the time being.
    Raters are those of film reviews, replayed: what each said of a review is real, and so is the disagreement; but they
    rated single texts and never saw these tasks. Readers answer what waits, whatever it is about. All are recorded
    as simulated annotators. Synthetic ones first answer what waits. A function of yours, ``module:NAME``, makes others
    (docs/people.md). Ends with the agreement, alarms and weights that a manager sees.

    \b
    Examples:
      accord simulate reviews
      accord simulate reviews --annotators synthetic --count 12 --defects position=1,random=1,tie=1
      accord simulate support --annotators readers --count 8
      accord simulate --annotators mine:reviewers
      ACCORD_TOKEN=... accord simulate http://127.0.0.1:8765 --tasks 40 --kind pair
    """
    with talking(json, verbose) as talk:
        planted = parse_defects(defects)
        place = None if "://" in target else find_place(Path(target) if target else None)
        if place is None and not token:
            raise UsageError("a running app needs an admin's token", hint="set ACCORD_TOKEN, or give --token")
        from accord.people.simulation.annotators import AnnotatorRequest, make_annotators
        from accord.people.simulation.playing import play

        home = place or find_project(None)
        downloads = (home.root if home else Path.cwd()) / "downloads"
        request = AnnotatorRequest(count, seed, downloads, from_dir, planted, tasks, kind, size, overlap)
        # Over HTTP in both cases: what is simulated is what people's browsers do, locks and limits included.
        with _own_app(place) if place else _running_app(target, token or "") as (admin, url):
            groups = make_annotators(annotators, replace(request, waiting=admin.waiting()))
            added, played = 0, []
            for group in groups:
                added += admin.add_tasks(group.tasks)
                played.append(play(admin, url, group.annotators, talk.log))
            quality = admin.quality()
        answers = sum(sum(one.answered.values()) for one in played)
        result = {
            "annotators": annotators,
            "who": "; ".join(dict.fromkeys(group.who for group in groups)),
            "tasks_added": added,
            "answers": answers,
            "skipped": sum(sum(one.skipped.values()) for one in played),
            "left": [name for one in played for name in one.left],
            "quality": quality,
        }
        talk.result(result, text=summary(result))


def parse_defects(text: str) -> dict[str, int]:
    """Read ``"position=1,random=2"`` as a table, its names unchecked. Raises UsageError for anything else."""
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition("=")
        if not number.isascii() or not number.isdigit():
            raise UsageError(f"{part!r} is no defect", where="--defects", hint="write them like position=1,random=2")
        found[name.strip()] = int(number)
    return found


# ---- the app ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _running_app(url: str, token: str) -> Iterator[tuple[ProjectAdmin, str]]:
    from accord.people.simulation.client import Client

    with contextlib.closing(Client(url, token)) as client:
        yield client, url


@contextlib.contextmanager
def _own_app(place: Project) -> Iterator[tuple[ProjectAdmin, str]]:
    """Serve the app of a project on a free loopback port."""
    from accord.people.desk import Desk
    from accord.people.simulation.playing import DeskAdmin
    from accord.people.web.app import create_app
    from accord.store import Store

    with Store.open(place.store) as store:
        desk = Desk(store, load_label(defaults=place.label))
        free = Address(port=0)
        with free.bound() as listening, served(create_app(desk), listening):
            yield DeskAdmin(desk), free.url(listening)


# ---- the summary ----------------------------------------------------------------------------------------------------


def summary(result: Mapping[str, Any]) -> str:
    """Return agreement, alarms and weights in a few lines."""
    quality = result["quality"]
    lines = [
        f"{result['answers']} answers by simulated annotators ({result['who']}), {result['skipped']} skipped, "
        f"{quality['answers_left']} still wanted"
    ]
    for row in quality["agreement"]:
        numbers = (f"{name} {_number(row[name])}" for name in ("raw", "fleiss", "alpha"))
        lines.append(f"agreement, {row['measure']}: " + ", ".join(numbers))
    lines += [f"alarm: {alarm['who'] or 'all'}: {alarm['symptom']}: {alarm['cause']}" for alarm in quality["alarms"]]
    lines += [] if quality["alarms"] else ["no alarms"]
    stopped = [f"{row['name']} after {row['silent_after']}" for row in quality["people"] if row["silent_after"]]
    lines += [f"stopped with work left: {', '.join(stopped)}"] if stopped else []
    weights = sorted(quality["people"], key=lambda row: row["weight"])
    lines.append("weights: " + ", ".join(f"{row['name']} {row['weight']:.2f}" for row in weights))
    return "\n".join(lines)


def _number(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return f"unknown ({estimate['why']})"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
