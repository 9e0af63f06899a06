"""The command that serves models. Torch and the web packages are loaded only inside it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.evaluating import folder_title, named
from accord.cli.options import Json, Verbose
from accord.cli.people import AllowHost
from accord.cli.project import FILE, Project, find_project
from accord.cli.taken import project_model
from accord.cli.talk import path_text, talking
from accord.config import AdmitConfig
from accord.errors import DataError, UsageError
from accord.files import read_json
from accord.people.web.serving import Address

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from accord.serve.feedback import FeedbackBook
    from accord.serve.keys import KeyRing
    from accord.serve.served import ServeSettings, Serving
    from accord.serve.switch import Switch

KEYS = "serve.keys.json"  # in a project's folder
SECRET = "serve.secret"  # beside it: signs the tokens of feedback
GRACE_S = 30  # what is being written at a stop may go on for so long

Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Listen here; 0.0.0.0 for the whole network.")]
Port = Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Listen there; 0 takes a free one.")]


def serve(
    place: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PROJECT | MODEL_DIR]", help="A project, a run, or a model's folder; by default the project here."
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]DIR", help="Serve this one too, or a reward model; repeatable.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_host: AllowHost = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Let pages of this site ask, as https://chat.example.org; repeatable."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Where keys are kept; a project's own {KEYS}.")
    ] = None,
    add_key: Annotated[str | None, typer.Option(metavar="NAME", help="Make a key, print it once, and end.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="With --add-key: it may read /metrics too.")] = False,
    per_minute: Annotated[
        int, typer.Option(min=0, metavar="N", help="With --add-key: requests a minute; 0 for any number.")
    ] = 600,
    revoke_key: Annotated[str | None, typer.Option(metavar="NAME", help="Let a key be worth nothing, and end.")] = None,
    need_key: Annotated[
        bool | None, typer.Option("--need-key/--no-key", help="Ask for keys; by default wherever others can reach it.")
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="With --add-key: its users are programs, never counted as people.")
    ] = False,
    feedback: Annotated[
        bool, typer.Option("--feedback/--no-feedback", help="Keep a project's completions and what users say of them.")
    ] = True,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Completions that are written at once.")] = 32,
    context: Annotated[
        int, typer.Option(min=0, metavar="N", help="Most tokens of a text; 0: what model and memory allow.")
    ] = 0,
    waiting: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that may wait; others get 429.")] = 256,
    precision: Annotated[str, typer.Option(metavar="TYPE", help="auto, bf16 or fp32.")] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Serve a model as OpenAI's interface does: whatever speaks to that speaks to yours.

    Of a project it is the model that its last run promoted, else the one that it starts from. On this machine alone no
    key is needed; where others can reach it each needs one, and without any the first is made and printed.

    \b
    Examples:
      accord serve ppo/model
      accord serve ppo/model --model score=reward/model
      accord serve support --add-key alice
      accord serve support --host 0.0.0.0 --allow-host llm.example.org
    """
    with talking(json, verbose) as talk:
        home = project_at(place)
        ring = _ring(keys, home, need_key if need_key is not None else not Address(host).is_local)
        new_key = {"operator": operator, "per_minute": per_minute, "users": "simulated" if simulated else "human"}
        if add_key is not None or revoke_key is not None:
            done = _change(ring, add_key, revoke_key, new_key)
            talk.result(done, text="\n".join(f"{name}: {value}" for name, value in done.items()))
            return
        folders = folders_of(place, home, model or ())
        address = Address(host, port, tuple(allow_host or ()))
        listening = address.bound()
        from accord.models.placement import Placement
        from accord.serve.served import ServeSettings

        settings = ServeSettings(rows, context, waiting, placement=Placement(precision, device))
        talk.log.note("loading " + ", ".join(map(path_text, folders.values())))
        doors = {"allowed_hosts": address.names(), "origins": allow_origin or ()}
        with listening, opened(home, folders, settings, ring, feedback=feedback, **doors) as app:
            served = app.state.served
            first = {"key": ring.add("first", operator=True)} if ring.required and not len(ring) else {}
            listening.listen(1024)
            url = f"{address.url(listening)}/v1"
            told = {"url": url, "models": [*served.policies, *served.scorers], "keys": ring.required, **first}
            talk.result(told, text=_text(served, url, first, ring.required, home.store if feedback and home else ""))
            talk.out.flush()
            run_server(app, listening)


@contextlib.contextmanager
def opened(
    home: Project | None,
    folders: Mapping[str, Path],
    settings: ServeSettings,
    ring: KeyRing,
    *,
    feedback: bool = True,
    **doors: Any,
) -> Iterator[FastAPI]:
    """Load models, and give the app that answers with them; of a project it keeps what is said."""
    from accord.serve.app import create_server
    from accord.serve.served import open_served

    with _book(home if feedback else None) as book:
        served = open_served(folders, settings)
        try:
            with _switch(home, served, book) as switch:
                yield create_server(served, ring, book=book, switch=switch, **doors)
        finally:
            served.close()


def project_at(place: Path | None) -> Project | None:
    """Return the project named or around; None where a run's or model's folder is named."""
    if place is not None and not (place / FILE).is_file():
        return None
    found = find_project(place)
    if found is None:
        raise UsageError("there is no project here", hint="name a model's folder, as in `accord serve ppo/model`")
    return found


def folders_of(place: Path | None, home: Project | None, more: Sequence[str]) -> Mapping[str, Path]:
    """Return what is served, by name: what the place holds first."""
    first = newest_model(home) if home else _model_in(place or Path())
    name = home.root.name if home else folder_title(str(first))
    others = {name: Path(folder) for name, folder in named("--model", more, unnamed=folder_title).items()}
    if name in others:
        raise UsageError(f"two models are called {name!r}", where="--model", hint="name it: --model NAME=DIR")
    return {name: first, **others}


def newest_model(home: Project) -> Path:
    """Return the model that rounds have made ``prod``, else the last finished run's, else the one to start from."""
    from accord.serve.aliases import PROD, aliases_of_rounds

    if (prod := aliases_of_rounds(home.rounds).get(PROD)) is not None:
        return prod.folder
    runs = sorted(home.runs.glob("*/summary.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for run in runs:
        if (found := _champion(run.parent)) is not None:
            return found
    return project_model(home)


def _champion(run: Path) -> Path | None:
    """Return the policy that a run ended with; None where its summary names none, or it is gone."""
    said = read_json(run / "summary.json").get("champion")
    policy = run / str(said["policy"]) if isinstance(said, dict) and said.get("policy") else run / "model"
    return policy if (policy / "config.json").is_file() else None


def _model_in(place: Path) -> Path:
    if (place / "config.json").is_file():
        return place
    found = _champion(place) if (place / "summary.json").is_file() else None
    inner = place / "model"
    if found is None and (inner / "config.json").is_file():
        return inner
    if found is None:
        raise DataError("no model here", where=str(place), hint="name a Hugging Face folder, a run, or a project")
    return found


def _ring(file: Path | None, home: Project | None, required: bool) -> KeyRing:
    from accord.serve.keys import KeyRing

    return KeyRing(file or (home.root / KEYS if home else None), required=required)


@contextlib.contextmanager
def _book(home: Project | None) -> Iterator[FeedbackBook | None]:
    """Open where a project's feedback is kept."""
    if home is None:
        yield None
        return
    from accord.serve.feedback import FeedbackBook, secret_in
    from accord.store import Store

    with Store.open(home.store) as store:
        yield FeedbackBook(store, secret_in(home.root / SECRET))


@contextlib.contextmanager
def _switch(home: Project | None, served: Serving, book: FeedbackBook | None) -> Iterator[Switch | None]:
    """Follow the aliases of a project's rounds; where there is no project, there is nothing to follow."""
    if home is None:
        yield None
        return
    from accord.serve.aliases import aliases_of_rounds
    from accord.serve.switch import Switch

    settings = home.recipe_with().admit if home.recipe.values else AdmitConfig()
    store = book.store if book is not None else None
    switch = Switch(aliases_of_rounds(home.rounds), served, home.root.name, store, settings).start()
    try:
        yield switch
    finally:
        switch.stop()


def _change(ring: KeyRing, add: str | None, revoke: str | None, new: Mapping[str, Any]) -> dict[str, Any]:
    if not ring.kept:
        raise UsageError("there is no file of keys", hint="name a project, or a file with --keys")
    if revoke is not None:
        ring.revoke(revoke)
    made = {"key": ring.add(add, **new)} if add is not None else {}
    return {**({"revoked": revoke} if revoke is not None else {}), **made}


def _text(served: Serving, url: str, first: Mapping[str, str], required: bool, store: str) -> str:
    lines = [f"Accord serves {', '.join([*served.policies, *served.scorers])} at {url}"]
    lines += [
        f"  {one.name}: version {one.version}, texts of {one.context:,} tokens, {served.settings.rows} at once"
        for one in served.policies.values()
    ]
    lines += [f"The first key, shown once: {first['key']}"] if first else []
    lines += [f"Completions and what users say of them are kept in {path_text(Path(store))}"] if store else []
    lines += ["Others can reach it: without HTTPS in front of it they may listen."] if required else []
    lines += [f"A page to talk to it: {url.removesuffix('/v1')}/chat"]
    return "\n".join([*lines, f"Ctrl-C stops it; what is being written then has {GRACE_S} s to end."])


def run_server(app: FastAPI, listening: socket.socket) -> None:
    """Serve until interrupted or terminated."""
    with contextlib.suppress(KeyboardInterrupt):
        made_server(app).run(sockets=[listening])


def made_server(app: FastAPI) -> uvicorn.Server:
    """Return what serves an app. There is no access log, and no prompt stands in any."""
    import uvicorn

    # Connections are kept a little longer than the minute that proxies keep theirs: who closes first loses no request.
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="off",
        timeout_keep_alive=65,
        timeout_graceful_shutdown=GRACE_S,
    )
    return uvicorn.Server(config)
