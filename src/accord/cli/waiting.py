"""What a run that asks people shows at the shell: the app and its links, and how far people are."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

import accord
from accord.cli.people import network_lines
from accord.cli.project import STORE, Project
from accord.cli.talk import Talk, path_text
from accord.config import LabelConfig, Recipe, load_label
from accord.errors import ResourceError, UsageError
from accord.extend import is_outside
from accord.people.running import announced, running_app
from accord.people.web.serving import Address, admin_entry, served

if TYPE_CHECKING:
    import socket

    from accord.loop.stages import Wait
    from accord.people.desk import Desk, Person
    from accord.people.watching import AnswersSoFar, Questions

# As long as an invitation lasts: colleagues open their link after the weekend too.
LINK_HOURS = 72.0

WaitForPeople = Annotated[
    bool, typer.Option("--wait", help="Where people are asked, wait for their answers and go on by itself.")
]
Serve = Annotated[
    bool, typer.Option("--serve", help="Open the annotation app while people are asked, print links, and --wait.")
]
Invite = Annotated[
    str,
    typer.Option(metavar="N|NAME,...", help="A link for each of N colleagues, or of these; each lets one person in."),
]


@dataclass(frozen=True)
class Door:
    """How people get to a run's questions: by an app of its own (``serve``), and who is given a link."""

    serve: bool = False
    invite: str = ""
    address: Address = field(default_factory=Address)


class JoinLink(NamedTuple):
    """A link that lets one person in, once."""

    who: str
    url: str


@dataclass
class Reception:
    """What people find while a run asks them. It is opened at the first question, and closed when the run ends."""

    talk: Talk
    store: str
    settings: LabelConfig
    door: Door
    listening: socket.socket | None
    waits: bool
    pictures: Path | None = None  # the folder of images that texts name
    elsewhere: str = ""
    links: list[JoinLink] = field(default_factory=list)
    _open: bool = False
    _thread: threading.Thread | None = None
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def wait(self) -> Wait:
        """What the run is given as ``wait``."""
        return self.tell if self.waits else False

    def tell(self, questions: Questions, standing: AnswersSoFar) -> None:
        """Say how far people are; before the first time, where they answer. Raises ResourceError where they cannot."""
        self.open()
        if self._thread is not None and not self._thread.is_alive():  # nobody would come, and it would wait for ever
            raise ResourceError("the annotation app has ended", hint="the same command again opens it, and goes on")
        self.talk.log.waiting(f"waiting for people: {standing.line(time.time())}")

    def open(self) -> None:
        """Open the app, or find the one that runs, and say what people need to know of it; once."""
        if self._open:
            return
        self._open = True
        for line in self._serve(self.listening) if self.listening is not None else self._use_the_one_that_runs():
            self.talk.log.note(line)

    def close(self) -> None:
        """Stop the app of this run."""
        self._closing.close()

    def _serve(self, listening: socket.socket) -> list[str]:
        from accord.people.desk import Desk
        from accord.people.web.app import create_app
        from accord.store import Store, require_sound

        require_sound(self.store)
        address, stay = self.door.address, self._closing.enter_context
        desk = Desk(stay(Store.open(self.store)), self.settings)
        app = create_app(desk, allowed_hosts=address.names(), pictures=self.pictures)
        listening.listen(1024)
        url, others = address.url(listening), address.url_for_others(listening)
        stay(announced(self.store, others))
        self._thread = stay(served(app, listening, address))
        admin = admin_entry(desk, url)
        self.links = join_links(desk, self.door.invite, others)
        told = [
            f"people answer at {others}, until this run ends",
            f"open this once, as {admin['for']}: {admin['link']}",
        ]
        near = ["Only this machine can open these: --host 0.0.0.0 --allow-host NAME lets other machines."]
        return [*told, *link_lines(self.links), *(near if address.is_local and self.links else network_lines(address))]

    def _use_the_one_that_runs(self) -> list[str]:
        from accord.people.desk import Desk
        from accord.store import Store

        self.elsewhere = running_app(self.store)
        if not self.elsewhere:
            return []
        if self.door.invite:
            with Store.open(self.store) as store:
                self.links = join_links(Desk(store, self.settings), self.door.invite, self.elsewhere)
        return [f"people answer at {self.elsewhere}, where the app runs", *link_lines(self.links)]


@contextlib.contextmanager
def reception(
    talk: Talk, recipe: Recipe, folder: Path, home: Project | None, door: Door | None = None, wait: bool = False
) -> Iterator[Reception]:
    """Receive people while a run works; a run that waits for them says so, how to go on, and ends with exit code 5.

    ``door`` is None for a command that opens none.
    """
    can_serve, door = door is not None, door or Door()
    store = home.store if home else str(folder / STORE)
    elsewhere = running_app(store)
    _check(door, recipe, elsewhere)
    settings = load_label(defaults=home.label if home else None)
    if is_outside(recipe.ask.kind):  # the page shows no kind that its settings do not name
        settings = settings.model_copy(update={"own_kinds": (*settings.own_kinds, recipe.ask.kind)})
    with contextlib.ExitStack() as stack:
        # Before any work: a port in use is reported at once, and not after an hour of training.
        listening = stack.enter_context(door.address.bound()) if door.serve and not elsewhere else None
        pictures = home.root if home else folder
        made = Reception(talk, store, settings, door, listening, wait or door.serve, pictures)
        stack.callback(made.close)
        try:
            yield made
        except accord.WaitingForPeople as stop:
            made.open()
            place = path_text(home.root if home else Path(stop.place))
            talk.result(_told(stop, place, made), text=_said(stop), next_step=_next(place, made, can_serve))
            raise typer.Exit(stop.exit_code) from None


def _check(door: Door, recipe: Recipe, elsewhere: str) -> None:
    """Refuse a door that leads nowhere. Raises UsageError."""
    flag = "--serve" if door.serve else "--invite" if door.invite else ""
    if flag and recipe.ask.who != "people" and not recipe.eval.people.prompts:
        hint = "give ask.who=people, or let people judge: eval.people.prompts=40"
        raise UsageError(f"{flag} has no effect where ask.who is {recipe.ask.who}", hint=hint)
    if door.address != Address() and not door.serve:
        raise UsageError("--host, --port, --allow-host and --proxy have no effect without --serve", hint="add --serve")
    if door.invite and not door.serve and not elsewhere:
        raise UsageError("--invite needs an app that lets people in", hint="add --serve, or start `accord label` first")
    invited(door.invite)


def _told(stop: accord.WaitingForPeople, place: str, made: Reception) -> dict[str, Any]:
    standing = stop.standing
    told = {"waiting_for": "people", "answered": stop.answered, "missing": stop.missing, "needed": standing.needed}
    told |= {"people": standing.people, "simulated": standing.simulated, "deadline": standing.deadline}
    app: Mapping[str, Any] = {"app": made.elsewhere or None, "links": [link._asdict() for link in made.links]}
    return {**told, **app, "command": f"accord label {place}", "exit_code": stop.exit_code}


def _said(stop: accord.WaitingForPeople) -> str:
    return f"waiting for people: {stop.standing.line(time.time())}"


def _next(place: str, made: Reception, can_serve: bool) -> str:
    if made.elsewhere:
        return "let them answer, then the same command again, or with --wait"
    label = f"accord label {place}   (prints a link: let them answer), then the same command again"
    serve = "the same command with --serve --invite 3   (prints a link a colleague, and waits for them); or\n      "
    return serve + label if can_serve else label


# ---- who is invited --------------------------------------------------------------------------------------------------


def invited(text: str) -> int | list[str]:
    """``"3"`` as a number, ``"Ada,Ben"`` as names. Raises UsageError for what is neither."""
    names = [" ".join(name.split()) for name in text.split(",")] if text else []
    if len(names) == 1 and names[0].isascii() and names[0].isdigit():
        return int(names[0])
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{text!r} names nobody, or one twice", where="--invite", hint="write it like 3, or Ada,Ben")
    return names


def join_links(desk: Desk, invite: str, url: str) -> list[JoinLink]:
    """A link for each colleague: who is in already gets one that logs that person in, others an invitation."""
    people = [person for person in desk.directory.people() if not person.simulated]
    wanted = invited(invite)
    if isinstance(wanted, int):
        known = [person for person in people if person.role == "annotator" and not person.disabled][:wanted]
        links = [_link_for(desk, person, url) for person in known]
        return links + [_invitation(desk, url, f"colleague {n}") for n in range(len(known) + 1, wanted + 1)]
    by_name = {person.name.casefold(): person for person in people}
    return [_named_link(desk, name, by_name.get(name.casefold()), url) for name in wanted]


def _named_link(desk: Desk, name: str, known: Person | None, url: str) -> JoinLink:
    return _link_for(desk, known or desk.directory.add_person(name, "annotator"), url)


def _link_for(desk: Desk, person: Person, url: str) -> JoinLink:
    if person.disabled:
        raise UsageError(f"{person.name} is disabled", where="--invite", hint="invite somebody else")
    return JoinLink(person.name, f"{url}/join/{desk.directory.login_link(person.id, by=None, hours=LINK_HOURS)}")


def _invitation(desk: Desk, url: str, who: str) -> JoinLink:
    return JoinLink(who, f"{url}/join/{desk.directory.invite('annotator', by=None)}")


def link_lines(links: Sequence[JoinLink]) -> list[str]:
    """A line a link: each lets one person in, once."""
    return [f"for {link.who}, once: {link.url}" for link in links]
