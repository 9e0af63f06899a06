"""The JSON interface under /api: what the pages' script, the simulated annotators and other programs talk to.

Answers speak in positions as shown, never in ids or names of models; nothing here tells an annotator either.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from accord.config import LabelConfig
from accord.people.desk import Assignment, Desk, NewTask, Person, Receipt, Role
from accord.people.desk.answers import Answer
from accord.people.web.diff import word_diff
from accord.people.web.security import Routes, csrf_token, session_cookie
from accord.records import Completion, Prompt, Source

api_routes = Routes()

Text = Annotated[str, Field(max_length=200_000)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Note = Annotated[str, Field(max_length=4000)]
TaskId = Annotated[str, Path(max_length=100)]
# Numbers that every reader of JSON holds exactly, and that fit the database.
PersonId = Annotated[int, Path(ge=1, lt=2**53)]
# Long enough that two answers do not share one by chance, printable so that every proxy passes it on unchanged.
Key = Annotated[str, Header(alias="Idempotency-Key", min_length=8, max_length=200, pattern=r"^[\x21-\x7e]+$")]


class Body(BaseModel):
    """A request's body: nothing unknown in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# async, though they wait for nothing: FastAPI would send each to a thread and back, 0.2 ms a time.
async def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _me(request: Request) -> Person:
    person: Person = request.state.person
    return person


TheDesk = Annotated[Desk, Depends(_desk)]
Me = Annotated[Person, Depends(_me)]


# ---- a task ------------------------------------------------------------------------------------------------------


def assignment_json(assignment: Assignment, desk: Desk) -> dict[str, Any]:
    """Return what an annotator may know of a task: texts in the order shown, no ids, names or lengths."""
    task, settings = assignment.task, desk.settings
    return {
        "task_id": task.id,
        "kind": task.kind,
        "group": None,
        "prompt": [{"role": turn["role"], "content": turn["content"]} for turn in task.prompt.turns()],
        "completions": [{"text": completion.text} for completion in assignment.shown],
        "until": assignment.until,
        "revision": assignment.revision,
        "draft": assignment.draft,
        "guideline_rev": assignment.guideline_rev,
        "settings": settings_json(settings),
    }


def settings_json(settings: LabelConfig) -> dict[str, Any]:
    """Return the settings that the page needs."""
    return settings.model_dump(mode="json", include={"axes", "flags", "skip_reasons", "min_seconds"})


class Wanted(Body):
    kinds: list[Name] | None = None


@api_routes("POST", "/api/claim", "annotator", responses={204: {"description": "Nothing to do"}})
def claim(desk: TheDesk, me: Me, wanted: Wanted) -> Response:
    """Lease the next task, or the one that is leased already."""
    assignment = desk.queue.claim(me.id, kinds=wanted.kinds)
    return Response(status_code=204) if assignment is None else JSONResponse(assignment_json(assignment, desk))


@api_routes("GET", "/api/tasks/{task_id}", "annotator")
def task(desk: TheDesk, me: Me, task_id: TaskId) -> dict[str, Any]:
    """Return a task that one has now."""
    return assignment_json(desk.queue.assignment(me.id, task_id), desk)


@api_routes("GET", "/api/tasks/{task_id}/diff", "annotator")
def diff(
    desk: TheDesk,
    me: Me,
    task_id: TaskId,
    a: Annotated[int, Query(ge=0, lt=100)] = 0,
    b: Annotated[int, Query(ge=0, lt=100)] = 1,
    listed: bool = False,
) -> dict[str, Any]:
    """Return two completions as HTML with differing words marked, as shown, or as a manager sees them ``listed``."""
    # In the listed order an annotator could undo the shuffle and know which side is which policy.
    if listed and me.role == "annotator":
        raise HTTPException(403, "this needs the role manager")
    shown = desk.queue.task(task_id).completions if listed else desk.queue.assignment(me.id, task_id).shown
    texts = [completion.text for completion in shown]
    if max(a, b) >= len(texts):
        raise HTTPException(422, f"there are {len(texts)} completions")
    found = word_diff(texts[a], texts[b])
    if found is None:
        raise HTTPException(422, "these texts are too long to compare word by word")
    return {"a": found.a, "b": found.b, "removed": found.removed, "added": found.added}


@api_routes(
    "POST", "/api/tasks/{task_id}/submit", "annotator", status_code=201, responses={200: {"description": "Again"}}
)
def submit(desk: TheDesk, me: Me, task_id: TaskId, key: Key, answer: Answer) -> JSONResponse:
    """Answer a task. The same key again returns the same receipt (200) and changes nothing."""
    return _receipt(desk.answers.submit(me.id, task_id, answer, key=key))


def _receipt(receipt: Receipt) -> JSONResponse:
    content = {
        "submission_id": receipt.submission_id,
        "task_id": receipt.task_id,
        "revision": receipt.revision,
        "extra": receipt.extra,
        "repeated": receipt.repeated,
    }
    return JSONResponse(content, 200 if receipt.repeated else 201)


@api_routes("PUT", "/api/tasks/{task_id}/draft", "annotator", status_code=204)
def draft(desk: TheDesk, me: Me, task_id: TaskId, draft: dict[str, Any]) -> None:
    """Keep what is not sent yet."""
    desk.queue.save_draft(me.id, task_id, draft)


class SkipBody(Body):
    reason: Annotated[str, Field(min_length=1, max_length=200)]
    note: Note = ""


@api_routes("POST", "/api/tasks/{task_id}/skip", "annotator", status_code=204)
def skip(desk: TheDesk, me: Me, task_id: TaskId, skip: SkipBody) -> None:
    """Give a task back for good, with a reason."""
    desk.queue.skip(me.id, task_id, skip.reason, skip.note)


@api_routes("POST", "/api/tasks/{task_id}/unskip", "annotator")
def unskip(desk: TheDesk, me: Me, task_id: TaskId) -> dict[str, Any]:
    """Take a skipped task again."""
    return assignment_json(desk.queue.unskip(me.id, task_id), desk)


@api_routes("POST", "/api/tasks/{task_id}/release", "annotator", status_code=204)
def release(desk: TheDesk, me: Me, task_id: TaskId) -> None:
    """Give a task back to the queue."""
    desk.queue.release(me.id, task_id)


@api_routes("POST", "/api/tasks/{task_id}/heartbeat", "annotator")
def heartbeat(desk: TheDesk, me: Me, task_id: TaskId) -> dict[str, float]:
    """Keep the lease; returns until when it holds (seconds since 1970)."""
    return {"until": desk.queue.heartbeat(me.id, task_id)}


@api_routes("POST", "/api/submissions/{submission_id}/undo", "annotator")
def undo(desk: TheDesk, me: Me, submission_id: TaskId) -> dict[str, Any]:
    """Take back an answer of one's own. The task comes back with the answer as its draft."""
    return assignment_json(desk.answers.undo(me.id, submission_id), desk)


# ---- oneself -----------------------------------------------------------------------------------------------------


@api_routes("GET", "/api/me", "annotator")
def myself(request: Request, desk: TheDesk, me: Me) -> dict[str, Any]:
    """Return who one is, what one has done, and how many tasks wait."""
    session = request.cookies.get(session_cookie(request))
    standing = desk.reading.standing(me.id)
    return {
        "name": me.name,
        "role": me.role,
        "done": standing.done,
        "left": standing.left,
        "csrf": csrf_token(session) if session else None,
    }


@api_routes("POST", "/api/logout", "annotator")
def logout(request: Request, desk: TheDesk) -> JSONResponse:
    """End the session of the browser."""
    if session := request.cookies.get(session_cookie(request)):
        desk.directory.close_session(session)
    return _logged_out(request)


@api_routes("POST", "/api/logout/everywhere", "annotator")
def logout_everywhere(request: Request, desk: TheDesk, me: Me) -> JSONResponse:
    """End all of one's own sessions, and the login links that would open new ones. Tokens of programs stay."""
    desk.directory.log_out_everywhere(me.id, by=me)
    return _logged_out(request)


def _logged_out(request: Request) -> JSONResponse:
    answer = JSONResponse({})
    answer.delete_cookie(session_cookie(request))
    return answer


class Confirm(Body):
    rev: Annotated[int, Field(ge=0, lt=2**53)]


@api_routes("POST", "/api/guideline/confirm", "annotator", status_code=204)
def confirm(desk: TheDesk, me: Me, confirm: Confirm) -> None:
    """Confirm that one has read a version of the guidelines."""
    desk.directory.confirm(me.id, confirm.rev)


@api_routes("GET", "/api/openapi.json", "annotator", include_in_schema=False)
def openapi(request: Request) -> dict[str, Any]:
    """Return the description of this interface, for programs that make clients."""
    schema: dict[str, Any] = request.app.openapi()
    return schema


# ---- managers ----------------------------------------------------------------------------------------------------


class GivenSource(Body):
    origin: Literal["human", "policy", "user"] = "policy"
    name: Name = "unknown"
    version: Note = ""
    sampling: Note = ""


class GivenCompletion(Body):
    text: Text
    source: GivenSource = GivenSource()


class Turn(Body):
    role: Name
    content: Text


class GivenTask(Body):
    """A task to be: the prompt is a text, or a conversation whose last turn is to be answered."""

    kind: Name
    prompt: Text | Annotated[list[Turn], Field(min_length=1, max_length=200)]
    completions: Annotated[list[GivenCompletion], Field(max_length=9)] = []
    overlap: Annotated[int, Field(ge=1, le=1000)] | None = None
    priority: float = 0
    group: Annotated[str, Field(max_length=200)] = ""
    gold: dict[str, Any] | None = None

    def made(self) -> NewTask:
        """Return the task for the queue."""
        prompt = (
            Prompt(text=self.prompt)
            if isinstance(self.prompt, str)
            else Prompt.of_messages([turn.model_dump() for turn in self.prompt])
        )
        completions = tuple(
            Completion(prompt_id=prompt.id, text=one.text, source=Source(**one.source.model_dump()))
            for one in self.completions
        )
        return NewTask(
            kind=self.kind,
            prompt=prompt,
            completions=completions,
            overlap=self.overlap,
            priority=self.priority,
            group=self.group,
            gold=self.gold,
            origin="api",
        )


@api_routes("POST", "/api/tasks", "manager", status_code=201)
def add_tasks(desk: TheDesk, tasks: Annotated[list[GivenTask], Field(max_length=10_000)]) -> dict[str, int]:
    """Queue tasks: all of them, or none and an error that names one."""
    return {"added": desk.queue.add_tasks([task.made() for task in tasks])}


@api_routes("POST", "/api/tasks/{task_id}/adjudicate", "manager", status_code=201)
def adjudicate(desk: TheDesk, me: Me, task_id: TaskId, key: Key, answer: Answer) -> JSONResponse:
    """Decide a disputed task: a new judgement beside the others. Positions are those of the task as listed."""
    return _receipt(desk.answers.adjudicate(me.id, task_id, answer, key=key))


class Gold(Body):
    answer: Answer | None
    overlap: Annotated[int, Field(ge=1, le=1000)] | None = None


@api_routes("PUT", "/api/tasks/{task_id}/gold", "manager", status_code=204)
def set_gold(request: Request, desk: TheDesk, me: Me, task_id: TaskId, gold: Gold) -> None:
    """Make a task a gold question by its right answer (positions as listed), or an ordinary one."""
    desk.queue.set_gold(task_id, gold.answer, by=me, overlap=gold.overlap)
    request.app.state.reports.forget()
    request.app.state.exports.forget()


class NewInvite(Body):
    role: Role = "annotator"


@api_routes("POST", "/api/invites", "manager", status_code=201)
def invite(request: Request, desk: TheDesk, me: Me, invite: NewInvite) -> dict[str, str]:
    """Return a link that lets one person in, once."""
    if invite.role != "annotator" and me.role != "admin":
        raise HTTPException(403, "only an admin invites managers and admins")
    return {"url": _join_url(request, desk.directory.invite(invite.role, by=me))}


@api_routes("GET", "/api/links", "manager")
def links(desk: TheDesk, me: Me) -> list[dict[str, Any]]:
    """Return the links that let somebody in now: one's own, or all of them for an admin. Never their tokens."""
    return [link._asdict() for link in desk.directory.links(me)]


@api_routes("POST", "/api/links/{link_id}/revoke", "manager", status_code=204)
def revoke_link(desk: TheDesk, me: Me, link_id: Annotated[int, Path(ge=1, lt=2**53)]) -> None:
    """Take a link back: one's own, or, for an admin, anybody's."""
    desk.directory.revoke_link(link_id, by=me)


def _join_url(request: Request, token: str) -> str:
    return str(request.url_for("join_link", token=token))


@api_routes("GET", "/api/guideline", "annotator")
def guideline(desk: TheDesk) -> dict[str, Any]:
    """Return the newest guidelines."""
    now = desk.directory.guideline()
    return {"rev": now.rev, "text": now.text, "created_at": now.created_at}


class NewGuideline(Body):
    text: Text


@api_routes("PUT", "/api/guideline", "manager")
def write_guideline(desk: TheDesk, me: Me, new: NewGuideline) -> dict[str, Any]:
    """Write a new version of the guidelines; everybody confirms it before the next task."""
    desk.directory.write_guideline(new.text, by=me)
    return guideline(desk)


# ---- admins ------------------------------------------------------------------------------------------------------


class NewPerson(Body):
    name: Name
    role: Role = "annotator"
    simulated: bool = False


@api_routes("POST", "/api/people", "admin", status_code=201)
def add_person(desk: TheDesk, me: Me, new: NewPerson) -> dict[str, Any]:
    """Add somebody who comes with a token: a program, a simulated annotator. The token is shown once."""
    person = desk.directory.add_person(new.name, new.role, simulated=new.simulated, by=me)
    return {"id": person.id, "token": desk.directory.make_token(person.id, "made by an admin", by=me)}


@api_routes("POST", "/api/people/{person_id}/disable", "admin", status_code=204)
def disable(desk: TheDesk, me: Me, person_id: PersonId) -> None:
    """Shut somebody out; what the person said stays."""
    if person_id == me.id:
        raise HTTPException(422, "you cannot disable yourself")
    desk.directory.disable(person_id, by=me)


class NewRole(Body):
    role: Role


@api_routes("POST", "/api/people/{person_id}/role", "admin", status_code=204)
def set_role(desk: TheDesk, me: Me, person_id: PersonId, new: NewRole) -> None:
    """Give somebody another role."""
    if person_id == me.id:
        raise HTTPException(422, "you cannot change your own role")
    desk.directory.set_role(person_id, new.role, by=me)


@api_routes("POST", "/api/people/{person_id}/link", "admin", status_code=201)
def login_link(request: Request, desk: TheDesk, me: Me, person_id: PersonId) -> dict[str, str]:
    """Return a link that logs a person in who lost the browser: once, within a day."""
    return {"url": _join_url(request, desk.directory.login_link(person_id, by=me))}


@api_routes("POST", "/api/people/{person_id}/logout", "admin", status_code=204)
def log_out_somebody(desk: TheDesk, me: Me, person_id: PersonId) -> None:
    """End all sessions of a person, and the login links that would open new ones."""
    desk.directory.log_out_everywhere(person_id, by=me)


@api_routes("POST", "/api/people/{person_id}/token", "admin", status_code=201)
def new_token(desk: TheDesk, me: Me, person_id: PersonId) -> dict[str, str]:
    """Make one more token for a person's programs, shown once."""
    return {"token": desk.directory.make_token(desk.directory.person(person_id).id, "made by an admin", by=me)}


@api_routes("POST", "/api/people/{person_id}/revoke", "admin", status_code=204)
def revoke_tokens(desk: TheDesk, me: Me, person_id: PersonId) -> None:
    """End all tokens of a person's programs."""
    for token in desk.directory.tokens(desk.directory.person(person_id).id):
        desk.directory.revoke_token(token.id, by=me)


@api_routes("GET", "/api/log", "admin")
def whole_log(desk: TheDesk, me: Me, most: Annotated[int, Query(ge=1, le=10_000)] = 100) -> list[dict[str, Any]]:
    """Return what was done about access: who let in, shut out or changed whom, the newest first."""
    return [row._asdict() for row in desk.directory.log(me, most=most)]
