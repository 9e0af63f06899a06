"""The command that talks to a model, in the terminal or on the chat page. Torch is loaded only inside it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.options import Verbose
from accord.cli.serving import folders_of, made_server, opened, project_at
from accord.cli.talk import Talk, path_text, talking
from accord.errors import AccordError, ResourceError, UsageError
from accord.people.web.serving import Address
from accord.progress import for_terminal

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
    verbose: Verbose = False,
) -> None:
    """Talk to a model, and say what is good or bad of its answers; of a project that teaches the next one.

    \b
    Examples:
      accord chat support
      accord chat support --web
      accord chat --url http://127.0.0.1:8000/v1 --key ak-...
    """
    with talking(False, verbose) as talk:
        from accord.serve.chat_client import Dialogue

        if url:
            if web:
                raise UsageError("--web shows a model of yours", hint="a running server has its page at /chat")
            _talk(talk, Dialogue(url, key, model))
            return
        if web:
            with _serving(talk, place, port) as base:
                talk.result({"url": f"{base}/chat"}, text=f"Talk at {base}/chat\nCtrl-C ends it.")
                talk.out.flush()
                webbrowser.open(f"{base}/chat")
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
            return
        with _serving(talk, place, 0) as base:
            _talk(talk, Dialogue(f"{base}/v1"))


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


def _talk(talk: Talk, conversation: Dialogue) -> None:
    """Read lines, and answer them, until there are none."""
    conversation.model = conversation.model or (conversation.models() or [""])[0]
    talk.out.write(f"Talking to {for_terminal(conversation.model)}; /help says what else can be said.\n")
    while (line := _line(talk)) is not None and line.strip() != "/quit":
        try:
            _answer(talk, conversation, line.strip())
        except AccordError as error:
            talk.out.write(for_terminal(str(error)) + "\n")


def _line(talk: Talk) -> str | None:
    """Return what is typed next; None at the end."""
    if sys.stdin.isatty():
        talk.out.write("> ")
    talk.out.flush()
    return sys.stdin.readline() or None


def _answer(talk: Talk, conversation: Dialogue, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word in ("/up", "/down"):
        conversation.say("thumb", value=word[1:], reason=rest.strip())
        talk.out.write("kept\n")
    elif word == "/edit":
        if not rest.strip():
            raise UsageError("write what it should have been behind /edit")
        conversation.mend(rest.strip())
        talk.out.write("kept; the conversation goes on from that\n")
    elif word == "/new":
        conversation.turns.clear()
        conversation.token = ""
    elif word == "/retry":
        _written(talk, conversation.again())
    elif word.startswith("/"):
        talk.out.write(HELP + "\n")
    elif line:
        _written(talk, conversation.ask(line))


def _written(talk: Talk, pieces: Iterator[str]) -> None:
    """Write an answer as it comes; Ctrl-C ends it, and the server writes no further."""
    for piece in pieces:
        talk.out.write("\n".join(for_terminal(part) for part in piece.split("\n")))
        talk.out.flush()
    talk.out.write("\n")
