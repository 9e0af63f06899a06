"""The pages that people see, made on the server. What they change, they change through the JSON interface (`api`)."""

from __future__ import annotations

import datetime
import hashlib
import json
import string
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import HTTPException, Path, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from starlette.concurrency import run_in_threadpool

from accord.errors import DataError
from accord.extend import is_outside
from accord.people.desk import Assignment, Desk, Person, QueuedTask, Submission
from accord.people.desk.answers import MOST_TEXT, Answer
from accord.people.desk.directory import Directory
from accord.people.desk.keys import SESSION_S
from accord.people.desk.kinds import FeedbackKind, blaming_own, kind_of
from accord.people.desk.rows import Entered
from accord.people.web import markdown
from accord.people.web.api import Me, TaskId, TheDesk, settings_json
from accord.people.web.marks import marked, spelled
from accord.people.web.pictures import picture_file
from accord.people.web.security import (
    Limits,
    Routes,
    address,
    csrf_token,
    require_own_origin,
    sane_text,
    session_cookie,
)
from accord.people.web.tongues import Tongue, tongue_of
from accord.records import Completion

page_routes = Routes()

# The invitation waits here, not in the address bar, where it would stay in histories and on shared screens.
JOIN_COOKIE = "accord_join"
LETTERS = string.ascii_uppercase
_STRENGTHS = {
    "significantly": "much better",
    "better": "better",
    "slightly": "slightly better",
    "negligibly": "barely better",
}
_RAW = [("r", "raw characters, or drawn")]
_ON_COMPLETIONS = [("e", "edit the best one"), ("f", "flags")]
_LABELLING = [("s", "skip, with a reason"), ("u", "undo the last answer or skip")]
EVERY_KEY = "=JKbdefgjknorsuwx"  # what people may change: all that do something, but digits and ?
_SUBMIT = {"label": "Submit", "adjudicate": "Decide", "gold": "Set gold"}


# ---- how pages are made ------------------------------------------------------------------------------------------


@cache
def _assets() -> dict[str, tuple[str, bytes]]:
    """Return style, scripts and icon by name, with their types."""
    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    folder = files("accord.people.web") / "static"
    return {one.name: (types[one.name.rpartition(".")[2]], one.read_bytes()) for one in folder.iterdir()}


@cache
def _version() -> str:
    """Return a name that changes when any asset does, so that browsers may keep them for ever."""
    return hashlib.sha256(b"".join(content for _, (_, content) in sorted(_assets().items()))).hexdigest()[:12]


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("accord.people.web"),
        # Everything that people or models wrote passes through here: escaped unless `markdown` has cleaned it.
        autoescape=True,
        # A name misspelt in a template is an error in a test, not a blank on a page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = lambda name: f"/static/{_version()}/{name}"
    made.filters |= {"words": lambda name: name.replace("_", " "), "markdown": markdown.render}
    made.filters |= {"marked": marked, "spelled": spelled}
    return made


def tongue(request: Request) -> Tongue:
    """Return the language in which a page answers: the browser's, English where we do not speak it."""
    return tongue_of(request.headers.get("accept-language", ""))


def page(request: Request, name: str, /, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page from its template. Every page knows who is logged in, and the session's CSRF token."""
    me: Person | None = getattr(request.state, "person", None)
    session = request.cookies.get(session_cookie(request), "")
    known: dict[str, Any] = {"me": me, "csrf": csrf_token(session) if me and session else "", "here": "", "width": ""}
    spoken = tongue(request)
    known |= {"lang": spoken.code, "_": spoken.said, "word": spoken.word, "told": spoken.told, "moment": spoken.moment}
    known |= {"script_words": spoken.for_scripts()}
    return HTMLResponse(_templates().get_template(name).render(known | values), status)


def _go(path: str) -> RedirectResponse:
    # 303: the browser asks for the page by GET, and reloading it sends no form again.
    return RedirectResponse(path, 303)


@page_routes("GET", "/static/{version}/{name}", "public", include_in_schema=False)
def static(version: str, name: str) -> Response:
    """Return a style, script or icon."""
    if name not in _assets():
        raise HTTPException(404, "there is no such file")
    media_type, content = _assets()[name]
    # The version is a hash of the content, so what is under it never changes; any other may be asked for again.
    lasting = "public, max-age=31536000, immutable" if version == _version() else "no-cache"
    return Response(content, media_type=media_type, headers={"cache-control": lasting})


# ---- coming in ---------------------------------------------------------------------------------------------------


@page_routes("GET", "/login", "public", include_in_schema=False)
def login(request: Request) -> Response:
    """Show the form that takes a token."""
    return _go("/") if request.state.person else page(request, "login.html.j2", problem="")


@page_routes("POST", "/login", "public", include_in_schema=False)
async def log_in(request: Request) -> Response:
    """Log in by a token that an admin gave."""
    require_own_origin(request)
    token = (await _form(request)).get("token", "").strip()
    entered = await run_in_threadpool(_directory(request).enter_by_token, token)
    if entered is None:
        _attempt(request)
        return page(request, "login.html.j2", status=401, problem="This token is not known. Was it copied whole?")
    return _enter(request, entered)


def _directory(request: Request) -> Directory:
    desk: Desk = request.app.state.desk
    return desk.directory


@page_routes("GET", "/join/{token}", "public", include_in_schema=False)
def join_link(request: Request, token: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,200}$")]) -> Response:
    """Take an invitation. The token leaves the address bar at once, and merely opening the link uses nothing up."""
    answer = _go("/join")
    answer.set_cookie(JOIN_COOKIE, token, max_age=3600, path="/join", **_cookie(request))
    return answer


@page_routes("GET", "/join", "public", include_in_schema=False)
def join(request: Request) -> Response:
    """Show the form that takes the name of who was invited."""
    if JOIN_COOKIE not in request.cookies:
        return page(request, "login.html.j2", problem="")
    known = _directory(request).person_of_link(request.cookies[JOIN_COOKIE])
    return page(request, "join.html.j2", known=known, problem="", name="")


@page_routes("POST", "/join", "public", include_in_schema=False)
async def come_in(request: Request) -> Response:
    """Let in who was invited, or who holds a login link."""
    require_own_origin(request)
    name = (await _form(request)).get("name", "")
    token = request.cookies.get(JOIN_COOKIE, "")
    try:
        return _enter(request, await run_in_threadpool(_directory(request).enter_by_link, token, name))
    except DataError as error:
        _attempt(request)
        message = tongue(request).sentences((error.what, error.why))
        return page(request, "join.html.j2", status=422, known=None, problem=message, name=name)


def _enter(request: Request, entered: Entered) -> Response:
    answer = _go("/")
    answer.set_cookie(session_cookie(request), entered.session, max_age=int(SESSION_S), **_cookie(request))
    answer.delete_cookie(JOIN_COOKIE, path="/join")
    return answer


def _cookie(request: Request) -> dict[str, Any]:
    # No script reads it; other sites' forms do not send it; over HTTPS it never travels in the clear. Not "strict":
    # who follows a link from a chat would seem logged out.
    return {"httponly": True, "samesite": "lax", "secure": request.url.scheme == "https"}


async def _form(request: Request) -> dict[str, str]:
    """Read the fields of a plain form. Raises HTTPException for what no form sends."""
    try:
        # A form has a handful of fields: more is an attempt to keep the parser busy.
        fields = parse_qs((await request.body()).decode(), max_num_fields=20)
    except ValueError:
        raise HTTPException(422, "this is no form") from None
    form = {name: values[0] for name, values in fields.items()}
    if not all(map(sane_text, form.values())):
        raise HTTPException(422, "this is no text")
    return form


def _attempt(request: Request) -> None:
    limits: Limits = request.app.state.limits
    limits.attempt(address(request))


# ---- working -----------------------------------------------------------------------------------------------------


@page_routes("GET", "/", "annotator", include_in_schema=False)
def home(request: Request, desk: TheDesk, me: Me) -> Response:
    """Show one's own progress and the way to the next task."""
    return page(
        request,
        "home.html.j2",
        standing=desk.reading.standing(me.id, since=_midnight()),
        confirmed=desk.directory.confirmed(me.id),
    )


def _midnight() -> float:
    """Return the last midnight of the server's own clock: "today" is the day of the people who work here."""
    return datetime.datetime.combine(datetime.date.today(), datetime.time()).timestamp()


@page_routes("GET", "/task", "annotator", lane="write", include_in_schema=False)
def next_task(request: Request, desk: TheDesk, me: Me) -> Response:
    """Show the task at hand, or the next one."""
    if not desk.directory.confirmed(me.id):
        return _go("/guidelines")
    assignment = desk.queue.claim(me.id)
    if assignment is None:
        return page(request, "done.html.j2", standing=desk.reading.standing(me.id, since=_midnight()))
    return _task_page(request, desk, me, assignment)


@page_routes("GET", "/task/{task_id}", "annotator", include_in_schema=False)
def this_task(request: Request, desk: TheDesk, me: Me, task_id: TaskId) -> Response:
    """Show a task that one has already: after an undo."""
    return _task_page(request, desk, me, desk.queue.assignment(me.id, task_id))


def _task_page(request: Request, desk: Desk, me: Person, assignment: Assignment) -> Response:
    standing = desk.reading.standing(me.id, since=_midnight())
    given = {
        "mode": "label",
        "person": me.id,
        "revision": assignment.revision,
        "draft": assignment.draft,
        "lease_s": desk.settings.lease_minutes * 60,
        "min_seconds": desk.settings.min_seconds,
    }
    return show_task(
        request,
        desk,
        assignment.task,
        assignment.shown,
        given,
        progress={"done": standing.since, "left": standing.left},
    )


def show_task(
    request: Request, desk: Desk, task: QueuedTask, shown: Sequence[Completion], given: Mapping[str, Any], **values: Any
) -> Response:
    """Show a task as a page; the script gets ``given`` and finds everything else on the page."""
    row = kind_of(task.kind, desk.settings)
    known = {
        "progress": None,
        "width": row.width,
        "mode": given["mode"],
        "task_id": task.id,
        "title": row.title,
        "kind": task.kind,
        "middle": _compiled(row.template.read_text(encoding="utf-8")),
        "foot": row.bar and _compiled(row.bar.read_text(encoding="utf-8")),
    }
    folder: FilePath | None = request.app.state.pictures
    known |= {
        "prompt": [{"role": turn["role"], **_both(turn["content"], folder)} for turn in task.prompt.turns()],
        "completions": [
            {"letter": letter, **_both(one.text, folder)} for letter, one in zip(LETTERS, shown, strict=False)
        ],
        "settings": settings_json(desk.settings),
        "most_text": MOST_TEXT,
        "every_key": EVERY_KEY,
        "submit": _SUBMIT[given["mode"]],
        "keys": keys_of(row, len(shown), given["mode"]),
        "task_json": json.dumps(
            {"task_id": task.id, "kind": task.kind, "script": _script_url(task.kind, row), **given}
        ),
    }
    with blaming_own(task.kind):
        return page(request, "task.html.j2", **known | values)


def _both(text: str, folder: FilePath | None) -> dict[str, str]:
    """Return a text as it is stored, drawn as markdown, and as raw characters."""
    return {"text": text, "html": markdown.render(text, folder), "raw": marked(text)}


@page_routes("GET", "/pictures/{name:path}", "annotator", include_in_schema=False)
def picture(request: Request, name: Annotated[str, Path(max_length=1000)]) -> Response:
    """Return an image of the project's folder."""
    folder: FilePath | None = request.app.state.pictures
    found = folder and picture_file(folder, name)
    if not found:
        raise HTTPException(404, "there is no such image")
    return FileResponse(found[0], media_type=found[1], headers={"cache-control": "private, no-cache"})


@cache
def _compiled(text: str) -> Template:
    return _templates().from_string(text)


def _script_url(name: str, row: FeedbackKind) -> str:
    """Return where a page finds the script of a kind: among the assets, or under the address of one's own scripts."""
    if row.script.name in _assets() and not is_outside(name):
        return f"/static/{_version()}/{row.script.name}"
    return f"/kinds/{quote(name)}/script.js"


@page_routes("GET", "/kinds/{name}/script.js", "annotator", include_in_schema=False)
def own_script(desk: TheDesk, name: Annotated[str, Path(max_length=200)]) -> Response:
    """Return the script of a kind of one's own, as it is now."""
    content = kind_of(name, desk.settings).script.read_bytes()
    return Response(content, media_type="text/javascript", headers={"cache-control": "no-cache"})


def _title(kind: str, desk: Desk) -> str:
    """Return the title of a kind; its name where this project does not know it (any more)."""
    try:
        return kind_of(kind, desk.settings).title
    except DataError:
        return kind


def keys_of(row: FeedbackKind, count: int, mode: str) -> list[tuple[str, str]]:
    """Return the keys of a page and what they do, for who asks by ``?``."""
    return [
        *row.keys,
        *(_ON_COMPLETIONS if count and mode != "gold" else ()),
        *([("d", "compare words of two")] if count > 1 else ()),
        ("n", "note"),
        *_RAW,
        *(_LABELLING if mode == "label" else ()),
        ("↵", "submit"),
        ("?", "this"),
    ]


@page_routes("GET", "/guidelines", "annotator", include_in_schema=False)
def show_guidelines(request: Request, desk: TheDesk, me: Me) -> Response:
    """Show the newest guidelines, and the button that confirms them."""
    return page(
        request,
        "guidelines.html.j2",
        here="guidelines",
        guideline=desk.directory.guideline(),
        confirmed=desk.directory.confirmed(me.id),
    )


# ---- looking back ------------------------------------------------------------------------------------------------


@page_routes("GET", "/history", "annotator", include_in_schema=False)
def history(request: Request, desk: TheDesk, me: Me) -> Response:
    """Show one's own last answers. Sources and lengths of texts appear only here, when the answer stands.

    Who could still take an answer back, or has, must not know it when answering again.
    """
    spoken = tongue(request)
    rows = [
        _past(desk, one, spoken) for one in desk.reading.submissions(person_id=me.id, last=30) if not one.adjudication
    ]
    return page(request, "history.html.j2", here="history", rows=rows)


def _past(desk: Desk, submission: Submission, spoken: Tongue) -> dict[str, Any]:
    task = desk.queue.task(submission.task_id)
    shown = [task.completions[i] for i in submission.order]
    recent = time.time() - submission.created_at <= desk.settings.undo_minutes * 60
    return {
        "submission": submission,
        "title": _title(submission.kind, desk),
        "undoable": recent and not submission.undone,
        "stands": not recent and not submission.undone,
        "prompt": task.prompt.turns()[-1]["content"],
        "completions": [
            {
                "letter": LETTERS[i],
                "text": one.text,
                "said": said(submission.answer, i, spoken),
                "source": f"{one.source.name} {one.source.version}".strip()
                if one.source.origin != "human"
                else spoken.word("a person"),
                "words": len(one.text.split()),
            }
            for i, one in enumerate(shown)
        ],
    }


def said(answer: Answer, i: int, spoken: Tongue) -> str:
    """Return what an answer says of the completion at position ``i``, in a few words."""
    parts = []
    if answer.ranks is not None:
        parts.append(spoken.plain("rank {n}", n=answer.ranks[i]))
    if answer.strength is not None and answer.ranks is not None and answer.ranks[i] == 1:
        parts.append(spoken.word(_STRENGTHS[answer.strength]))
    if answer.unacceptable is not None and answer.unacceptable[i]:
        parts.append(spoken.word("unacceptable"))
    if answer.ratings is not None:
        parts += [f"{spoken.word(axis)} {value}" for axis, value in answer.ratings[i].items()]
    if answer.good is not None:
        parts.append(spoken.word("good" if answer.good[i] else "bad"))
    if answer.values is not None:
        parts += [f"{name} {value}" for name, value in answer.values.items()]
    if answer.flags is not None:
        parts += map(spoken.word, answer.flags[i])
    if answer.edit is not None and answer.edit.of == i:
        parts.append(spoken.word("edited"))
    return ", ".join(parts)
