"""The command that opens the annotation app. The web packages are loaded only inside it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.options import Json, Verbose
from accord.cli.project import Project, find_place
from accord.cli.talk import talking
from accord.config import load_label
from accord.errors import DataError, UsageError
from accord.people.running import announced
from accord.people.web.serving import Address, admin_entry

if TYPE_CHECKING:
    from fastapi import FastAPI

    from accord.people.desk import Desk

Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Listen here; 0.0.0.0 for the whole network.")]
Port = Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Listen there; 0 takes a free one.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A name or address by which browsers may call this server; several times."),
]


def label(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROJECT] [KEY=VALUE]...", help="The folder of a project or run, and keys of `label:` to change."
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    allow_host: AllowHost = None,
    guidelines: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Markdown: the newest guidelines, confirmed by all before they go on."),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Queue its completions, a task a prompt; what waits already is not added."),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, metavar="M", help="With --add and kind=pair: M random pairs of each prompt's completions."),
    ] = None,
    link: Annotated[bool, typer.Option("--link/--no-link", help="Print a link that logs an admin in, once.")] = True,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Open the annotation app: a page where people rank, rate, edit and write.

    It prints an address and a link that lets one admin in, once. That person invites the others. Every page and every
    door of the app needs a login, on whatever address it listens.

    \b
    Examples:
      accord label
      accord label reviews --add samples.jsonl
      accord label reviews --add samples.jsonl --pairs 3 kind=pair overlap=2
      accord label --guidelines guidelines.md
      accord label --host 0.0.0.0 --allow-host labels.example.org
    """
    with talking(json, verbose) as talk:
        folder, overrides = _split(words or [])
        if pairs is not None and add is None:
            raise UsageError("--pairs has no effect without --add", hint="name a file of completions")
        project = find_place(folder)
        settings = load_label(overrides, defaults=project.label)
        address = Address(host, port, tuple(allow_host or ()))
        listening = address.bound()
        # After the checks and the port: a wrong key or a port in use is reported before the web packages load.
        from accord.people.desk import Desk
        from accord.store import Store

        with Store.open(project.store) as store, listening:
            desk = Desk(store, settings)
            if guidelines is not None:
                desk.directory.write_guideline(_read(guidelines), by=None)
            added = {} if add is None else {"added": _add(desk, add, pairs)}
            from accord.people.web.app import create_app

            app = create_app(desk, allowed_hosts=address.names())
            listening.listen(1024)  # not before it can answer: who waits in line for its start would call it slow
            url = address.url(listening)
            entry = admin_entry(desk, app, url) if link else {}
            reported = {"url": url, "project": project.root, "hosts": address.names(), **entry, **added}
            text = _text(project, url, entry, address)
            with announced(project.store, address.url_for_others(listening)):
                talk.result(reported, text=f"{added['added']} tasks added from {add}\n{text}" if added else text)
                talk.out.flush()
                _serve(app, listening)


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """Split off the project's folder, where the first word is not ``key=value``, and return the rest too."""
    if words and "=" not in words[0]:
        return Path(words[0]), words[1:]
    return None, words


def _read(guidelines: Path) -> str:
    try:
        return guidelines.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("cannot read the guidelines", where=str(guidelines), why=str(error)) from error


def _add(desk: Desk, file: Path, num_pairs: int | None) -> int:
    """Queue a file of completions as the settings' kind of task, and return how many tasks that made."""
    from accord import formats
    from accord.people.intake import groups_of, queue_groups
    from accord.records import Source

    kind = desk.settings.kind
    if num_pairs is not None and kind != "pair":
        raise UsageError(f"--pairs has no effect where kind={kind}", hint="add kind=pair")
    written = Source(origin="policy", name=file.name)
    try:
        groups = groups_of(formats.read_items(file), written)
        serve_as = "pairs" if kind == "pair" else kind
        return queue_groups(desk, groups, serve_as=serve_as, num_pairs=num_pairs, origin=file.name)
    except formats.CannotSay as reason:
        raise DataError(str(reason), where=str(file), hint="queue plain prompts and completions") from reason


def _text(project: Project, url: str, entry: Mapping[str, str], address: Address) -> str:
    lines = [f"Accord labels {project.root.name} at {url}"]
    if entry:
        lines.append(f"Open this once, as {entry['for']}: {entry['link']}")
    lines += network_lines(address)
    return "\n".join([*lines, "Ctrl-C stops it. Nothing that was submitted is lost."])


def network_lines(address: Address) -> list[str]:
    """What to know of an app that the network can reach."""
    if address.is_local:
        return []
    return [
        "The network can reach it. Every page needs a login; without HTTPS others may listen.",
        f"Browsers may call it {', '.join(address.names())}; --allow-host adds a name.",
    ]


def _serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until interrupted. There is no access log: addresses of invitations hold tokens."""
    import uvicorn

    # Connections are kept a little longer than the minute that proxies keep theirs: who closes first loses no request.
    config = uvicorn.Config(app, access_log=False, log_level="warning", server_header=False, timeout_keep_alive=65)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        return
