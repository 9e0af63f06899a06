"""The command that opens the annotation app. The web packages are loaded only inside it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.options import Json, Verbose
from accord.cli.project import Project, find_place
from accord.cli.taken import mark_queued, new_samples
from accord.cli.talk import Talk, path_text, talking, to_plain
from accord.config import load_label
from accord.errors import DataError, UsageError
from accord.people.running import announced
from accord.people.web.serving import Address, admin_entry, server_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from accord.people.desk import Desk
    from accord.people.desk.removing import Removed
    from accord.people.intake import Queued

Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Listen here; 0.0.0.0 for the whole network.")]
Port = Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Listen there; 0 takes a free one.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A name or address by which browsers may call this server; several times."),
]
Proxy = Annotated[
    list[str] | None,
    typer.Option(metavar="ADDRESS", help="Believe X-Forwarded-For of a proxy at this address; several times."),
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
    proxy: Proxy = None,
    guidelines: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Markdown: the newest guidelines, confirmed by all before they go on."),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Queue its completions, a task a prompt; what waits already is not added."),
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take the tasks that came from this file out of the queue; answers stay."),
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
      accord label reviews --remove samples.jsonl
      accord label --guidelines guidelines.md
      accord label --host 0.0.0.0 --allow-host labels.example.org
    """
    with talking(json, verbose) as talk:
        folder, overrides = _split(words or [])
        if pairs is not None and add is None:
            raise UsageError("--pairs has no effect without --add", hint="name a file of completions")
        project = find_place(folder)
        if remove is not None and add is None:
            removed, text = _removed(project, remove)
            talk.result(removed, text=text)
            return
        from accord.store import require_sound

        settings = load_label(overrides, defaults=project.label)
        require_sound(project.store)
        address = Address(host, port, tuple(allow_host or ()), tuple(proxy or ()))
        listening = address.bound()
        # After the checks and the port: a wrong key or a port in use is reported before the web packages load.
        from accord.people.desk import Desk
        from accord.store import Store

        with Store.open(project.store) as store, listening:
            desk = Desk(store, settings)
            if guidelines is not None:
                desk.directory.write_guideline(_read(guidelines), by=None)
            if remove is not None:
                _remove(desk, remove)
            added = None if add is None else _add(desk, add, pairs)
            if add is None and (samples := new_samples(project)) is not None:
                add, added = samples, _add_samples(talk, desk, samples)
            from accord.people.web.app import create_app

            app = create_app(desk, allowed_hosts=address.names(), pictures=project.root)
            listening.listen(1024)  # not before it can answer: who waits in line for its start would call it slow
            url = address.url(listening)
            entry = admin_entry(desk, url) if link else {}
            reported = {"url": url, "project": project.root, "hosts": address.names(), **entry}
            reported |= {} if added is None else to_plain(added)
            said = [] if added is None or add is None else added_lines(added, path_text(add))
            with announced(project.store, address.url_for_others(listening)):
                talk.result(reported, text="\n".join([*said, _text(project, url, entry, address)]))
                talk.out.flush()
                _serve(app, listening, address)


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


def _add(desk: Desk, file: Path, num_pairs: int | None) -> Queued:
    """Queue a file of completions as the settings' kind of task, and return what became of its prompts."""
    from accord import formats
    from accord.people.intake import AS_PAIRS, groups_of, queue_groups
    from accord.records import Source

    kind = desk.settings.kind
    if num_pairs is not None and kind != "pair":
        raise UsageError(f"--pairs has no effect where kind={kind}", hint="add kind=pair")
    written = Source(origin="policy", name=file.name)
    try:
        groups = groups_of(formats.read_items(file), written)
    except formats.CannotSay as reason:
        raise DataError(str(reason), where=str(file), hint="queue plain prompts and completions") from reason
    serve_as = AS_PAIRS if kind == "pair" else kind
    return queue_groups(desk, groups, serve_as=serve_as, num_pairs=num_pairs, origin=file.name, only_new=True)


def _add_samples(talk: Talk, desk: Desk, samples: Path) -> Queued | None:
    """Queue the project's own samples, once; where that is not possible it is told, and the page opens without them."""
    if desk.settings.kind == "demonstration":  # people write them
        return None
    try:
        added = _add(desk, samples, None)
    except DataError as error:
        talk.log.note(f"not queued: {error}")
        return None
    mark_queued(samples)
    return added


def added_lines(queued: Queued, file: str) -> list[str]:
    """What became of a file's prompts, in words: how many tasks, and why others made none."""
    lines = [f"{queued.added:,} tasks added from {file}"]
    lines += [f"  {queued.already:,} prompts wait in the queue already, or were answered"] if queued.already else []
    return lines + [f"  {count:,} prompts left out {reason}" for reason, count in queued.left_out.items()]


def _removed(project: Project, name: str) -> tuple[dict[str, int], str]:
    """Take tasks out of a project's queue; return what became of them, and that in words."""
    from accord.config import LabelConfig
    from accord.people.desk import Desk
    from accord.store import Store

    with Store.open(project.store) as store:
        removed = _remove(Desk(store, LabelConfig()), name)
    text = f"{removed.gone:,} tasks of {name} taken out of the queue"
    text += f", {removed.closed:,} closed with the answers they have" if removed.closed else ""
    text += f"; {removed.done:,} had all their answers and stay" if removed.done else ""
    return removed._asdict(), text


def _remove(desk: Desk, name: str) -> Removed:
    removed = desk.queue.remove(Path(name).name if Path(name).name in desk.queue.origins() else name)
    if not any(removed):
        waiting = ", ".join(f"{origin or 'a program'} ({count:,})" for origin, count in desk.queue.origins().items())
        raise UsageError(
            f"no task in the queue came from {name!r}", hint=f"waiting: {waiting}" if waiting else "nothing waits"
        )
    return removed


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


def _serve(app: FastAPI, listening: socket.socket, address: Address) -> None:
    """Serve until interrupted."""
    try:
        server_of(app, address).run(sockets=[listening])
    except KeyboardInterrupt:
        return
