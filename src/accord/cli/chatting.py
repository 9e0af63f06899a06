"""The command that talks to a model, in the terminal or on the chat page. Torch is loaded only inside it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.options import Json, Verbose
from accord.cli.serving import folders_of, made_server, opened, project_at
from accord.cli.talk import Talk, path_text, talking
from accord.errors import AccordError, ResourceError, UsageError
from accord.people.web.serving import Address
from accord.progress import for_json, for_terminal

if TYPE_CHECKING:
    from accord.serve.chat_client import Dialogue

ROWS = 4  # one person talks here; two answers may be compared
START_S = 30.0
HELP = """\
/up [WHY], /down [WHY]  the last answer was good, or bad
/edit TEXT              what it should have been; the conversation goes on from that
/retry                  another answer
/new                    another conversation
/quit                   or Ctrl-D"""


def chat(
    place: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PROJECT | MODEL_DIR]", help="As `accord serve` takes it; by default the project here."
        ),
    ] = None,
    url: Annotated[str, typer.Option(metavar="URL", help="Talk to this server: http://127.0.0.1:8000/v1.")] = "",
    key: Annotated[str, typer.Option(metavar="KEY", envvar="ACCORD_KEY", help="The server's key for you.")] = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="With --url: the model; by default the first.")] = "",
    web: Annotated[bool, typer.Option("--web", help="Talk on a page, which a browser opens.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="With --web: its port; 0 = a free one.")] = 0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Talk to a model, and say what is good or bad of its answers; of a project that teaches the next one.

    \b
    Examples:
      accord chat support
      accord chat support --web
      accord chat --url http://127.0.0.1:8000/v1 --key ak-...
    """
    with talking(json, verbose) as talk:
        from accord.serve.chat_client import Dialogue

        if url:
            if web:
                raise UsageError("--web shows a model of yours", hint="a running server has its page at /chat")
            _talk(talk, Dialogue(url, key, model))
            return
        with _serving(talk, place, port if web else 0) as base:
            if not web:
                _talk(talk, Dialogue(f"{base}/v1"))
                return
            talk.result({"url": f"{base}/chat"}, text=f"Talk at {base}/chat\nCtrl-C ends it.")
            talk.out.flush()
            webbrowser.open(f"{base}/chat")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


@contextlib.contextmanager
def _serving(talk: Talk, place: Path | None, port: int) -> Iterator[str]:
    """Serve a model on this machine alone until the block ends; its address."""
    home = project_at(place)
    folders, address = folders_of(place, home, ()), Address("127.0.0.1", port)
    listening = address.bound()
    from accord.serve.keys import KeyRing
    from accord.serve.served import ServeSettings

    talk.log.note("loading " + ", ".join(map(path_text, folders.values())))
    ring = KeyRing(required=False)
    with listening, opened(home, folders, ServeSettings(ROWS), ring, allowed_hosts=address.names()) as app:
        listening.listen(64)
        server = made_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            end = time.monotonic() + START_S
            while not server.started:
                if not thread.is_alive() or time.monotonic() > end:
                    raise ResourceError("the server did not start", hint="accord serve says more")
                time.sleep(0.02)
            yield address.url(listening)
        finally:
            server.should_exit = True
            thread.join()


def _talk(talk: Talk, dialogue: Dialogue) -> None:
    """Read lines, and answer them, until there are none."""
    dialogue.model = dialogue.model or (dialogue.models() or [""])[0]
    _tell(talk, f"Talking to {dialogue.model}; /help says what else can be said.")
    while (line := _line(talk)) is not None and line.strip() != "/quit":
        try:
            _answer(talk, dialogue, line.strip())
        except AccordError as error:
            _tell(talk, str(error))


def _line(talk: Talk) -> str | None:
    """Return what is typed next; None at the end."""
    if sys.stdin.isatty() and not talk.as_json:
        talk.out.write("> ")
    talk.out.flush()
    return sys.stdin.readline() or None


def _answer(talk: Talk, dialogue: Dialogue, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word in ("/up", "/down"):
        dialogue.say("thumb", value=word[1:], reason=rest.strip())
        _tell(talk, "kept")
    elif word == "/edit":
        if not rest.strip():
            raise UsageError("write what it should have been behind /edit")
        dialogue.mend(rest.strip())
        _tell(talk, "kept; the conversation goes on from that")
    elif word == "/new":
        dialogue.turns.clear()
        dialogue.token = ""
    elif word == "/retry":
        _written(talk, dialogue.again())
    elif word.startswith("/"):
        _tell(talk, HELP)
    elif line:
        _written(talk, dialogue.ask(line))


def _tell(talk: Talk, text: str) -> None:
    """Say something that no model wrote; with --json an object a line."""
    shown = _object("note", text) if talk.as_json else _steering_nothing(text)
    talk.out.write(shown + "\n")


def _written(talk: Talk, pieces: Iterator[str]) -> None:
    """Write an answer as it comes; with --json whole, an object a line."""
    if talk.as_json:
        talk.out.write(_object("answer", "".join(pieces)) + "\n")
        return
    for piece in pieces:
        talk.out.write(_steering_nothing(piece))
        talk.out.flush()
    talk.out.write("\n")


def _object(name: str, text: str) -> str:
    return for_json(dumps({name: text}, ensure_ascii=False))


def _steering_nothing(text: str) -> str:
    return "\n".join(map(for_terminal, text.split("\n")))
