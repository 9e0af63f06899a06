"""The command that copies a store while others write to it: ``accord backup``."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from accord.cli.options import Json, Verbose
from accord.cli.project import ProjectDir, find_place
from accord.cli.talk import path_text, talking
from accord.errors import UsageError


def backup(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The copy; by default in backups/."),
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of backups/ keep the newest N.")] = None,
    project: ProjectDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Copy the store of a project, or of a run, whole and checked, while people go on answering.

    The copy is read by its owner alone. To restore one, end `accord label` and put it in the store's place. A damaged
    store is refused (exit code 3), and no older copy is removed then: what cron mails says that something is wrong.

    \b
    Examples:
      accord backup
      accord backup --project /srv/reviews --keep 14
      15 3 * * *  accord backup --project /srv/reviews --keep 14 --json >> /var/log/accord-backup.log   (in a crontab)
    """
    with talking(json, verbose) as talk:
        from accord.store import back_up

        if keep is not None and output is not None:
            raise UsageError("--keep has no effect with -o", hint="it is about the folder backups/ of the project")
        home = find_place(project)
        stem, folder = "accord" if "://" in home.store else Path(home.store).stem, home.root / "backups"
        made = back_up(home.store, output or folder / f"{stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.db")
        removed = _older(folder, stem, keep) if keep is not None else []
        for path in removed:
            path.unlink()
        told = {"backup": made, "bytes": made.stat().st_size, "removed": removed}
        talk.result(told, text=f"{path_text(made)}: {made.stat().st_size / 1e6:,.1f} MB, whole")


def _older(folder: Path, stem: str, keep: int) -> list[Path]:
    """The copies that this command has made, but the newest."""
    name = re.compile(rf"{re.escape(stem)}-\d{{8}}-\d{{6}}\.db")
    made = sorted(path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_file())
    return made[:-keep]
