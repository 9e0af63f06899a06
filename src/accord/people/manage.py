"""The manager's pages: how it goes, who does it, where people disagree, and what they are told."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from accord.people.api import Me, TaskId, TheDesk
from accord.people.desk import Desk, Submission
from accord.people.pages import LETTERS, page, said, show_task
from accord.people.security import Doors

doors = Doors()


def _page(request: Request, name: str, tab: str, **values: Any) -> Response:
    return page(request, f"manage/{name}.html.j2", here="manage", tab=tab, **values)


@doors("GET", "/manage", "manager", include_in_schema=False)
def overview(request: Request, desk: TheDesk) -> Response:
    return _page(request, "overview", "overview", counts=desk.counts(), rows=desk.progress())


@doors("GET", "/manage/people", "manager", include_in_schema=False)
def people(request: Request, desk: TheDesk) -> Response:
    return _page(request, "people", "people", people=desk.people())


@doors("GET", "/manage/guidelines", "manager", include_in_schema=False)
def guidelines(request: Request, desk: TheDesk) -> Response:
    return _page(request, "guidelines", "guidelines", guideline=desk.guideline())


@doors("GET", "/manage/export", "manager", include_in_schema=False)
def export(request: Request, desk: TheDesk) -> Response:
    return _page(request, "export", "export", counts=desk.counts())


@doors("GET", "/manage/task/{task_id}", "manager", include_in_schema=False)
def decide(request: Request, desk: TheDesk, me: Me, task_id: TaskId) -> Response:
    """A task with what everybody said of it, and the form that decides."""
    task = desk.task(task_id)
    answers = [_in_task_order(one) for one in desk.submissions(task_id=task_id) if not one.undone]
    given = {"mode": "adjudicate", "revision": len(answers), "draft": None, "lease_s": 0, "min_seconds": 0}
    return show_task(request, desk, task, task.completions, given, answers=answers, here="manage")


def _in_task_order(submission: Submission) -> dict[str, Any]:
    """What somebody said, by the letters under which the manager sees the completions."""
    places = sorted(range(len(submission.order)), key=lambda shown: submission.order[shown])
    told = [f"{LETTERS[i]}: {words}" for i, shown in enumerate(places) if (words := said(submission.answer, shown))]
    return {"submission": submission, "said": told or [submission.answer.text or ""]}
