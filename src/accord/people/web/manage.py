"""The manager's pages and interface: progress, people, disagreements, gold questions, guidelines, export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import FileResponse
from markupsafe import Markup
from pydantic import Field

from accord.errors import DataError
from accord.people.desk import Desk, Gone, Person, QueuedTask, Submission
from accord.people.desk.kinds import check_can_be_gold, kind_of
from accord.people.quality.evidence import gold_answer
from accord.people.web.api import Body, Me, TaskId, TheDesk
from accord.people.web.made_apart import Exports, Judged, QueueCounts, Reports
from accord.people.web.pages import LETTERS, page, said, show_task, tongue
from accord.people.web.security import Routes
from accord.people.web.tongues import Tongue
from accord.report.svg import Dot, bars, dots

if TYPE_CHECKING:
    from accord.people.quality.figures import PersonRow, Quality
    from accord.stats import Estimate

manage_routes = Routes()

_MOST_NAME = 26  # letters of a name in a picture
_LISTED = 30  # tasks on a page


def _quality(request: Request) -> Quality:
    reports: Reports = request.app.state.reports
    return reports.now()


def _counts(request: Request) -> dict[str, int]:
    counts: QueueCounts = request.app.state.counts
    return counts.now()


def _judged(request: Request) -> Judged:
    """The report as far as there is one: a page waits for none that takes long."""
    reports: Reports = request.app.state.reports
    return reports.soon()


# ---- JSON --------------------------------------------------------------------------------------------------------


@manage_routes("GET", "/api/progress", "manager")
def progress(desk: TheDesk) -> dict[str, Any]:
    """Return how the queue stands, and what each person has done of each kind of task."""
    return {"queue": desk.reading.counts(), "people": [row._asdict() for row in desk.reading.progress()]}


@manage_routes("GET", "/api/quality", "manager", lane="slow")
def quality(request: Request) -> dict[str, Any]:
    """Return agreement, accuracy, habits and alarms: every number with its interval, or why there is none."""
    return _quality(request).to_json()


@manage_routes("GET", "/api/disagreements", "manager", lane="slow")
def disagreements(request: Request) -> dict[str, Any]:
    """Return tasks on which people differ, the most disputed first. Answers are by position as listed."""
    found = _quality(request).to_json()
    return {"num_disputed": found["num_disputed"], "disputed": found["disputed"]}


# The name of a built-in format: one of one's own (``module:name``) would load code that a manager names.
FormatName = Annotated[str, Query(pattern=r"^[a-z0-9-]{1,40}$")]


@manage_routes("GET", "/api/export", "manager", lane="slow", response_class=FileResponse)
def export_file(request: Request, format: FormatName = "jsonl") -> FileResponse:
    """Return people's judgements as `accord export` writes them: a zip of the file and its manifest."""
    exports: Exports = request.app.state.exports
    made = exports.file(format)
    return FileResponse(made, media_type="application/zip", filename=made.name)


class Origin(Body):
    origin: Annotated[str, Field(max_length=1000)]


@manage_routes("POST", "/api/tasks/remove", "manager")
def remove_tasks_of(request: Request, desk: TheDesk, me: Me, given: Origin) -> dict[str, int]:
    """Take the tasks that came from an origin out of the queue: a file's name, "api", or "" for what names none."""
    removed = desk.queue.remove(given.origin, by=me)
    if not any(removed):
        raise Gone(f"no task in the queue came from {given.origin!r:.200}", hint="look which there are")
    request.app.state.reports.forget()
    return removed._asdict()


# ---- pages -------------------------------------------------------------------------------------------------------


def _page(request: Request, name: str, **values: Any) -> Response:
    return page(request, f"manage/{name}.html.j2", **{"here": "manage", "tab": name} | values)


@manage_routes("GET", "/manage", "manager", lane="slow", include_in_schema=False)
def manage_overview(request: Request, desk: TheDesk) -> Response:
    """Show how the labelling goes: queue, agreement, people, alarms."""
    made = _judged(request)
    if made.quality is None:
        return _making(request, desk, "overview")
    found = made.quality
    people = [row for row in found.people if row.num_done or row.skipped]
    judged = [row for row in people if row.num_done]
    spoken = tongue(request)
    return _page(
        request,
        "overview",
        quality=found,
        old="" if made.is_current else made.made_at,
        counts=_counts(request),
        people=people,
        judged=judged,
        width="middle",
        kinds=sorted({kind for row in people for kind in row.done}),
        why_not=[*map(spoken.told, _why_not(judged))],
        percent=partial(percent_cell, spoken=spoken),
        number=partial(number_cell, spoken=spoken),
        pictures=_pictures(found, judged, spoken),
    )


def _making(request: Request, desk: Desk, tab: str) -> Response:
    """Show what the database itself can count while the first report is being made."""
    return _page(
        request, "making", tab=tab, counts=_counts(request), progress=desk.reading.answered_by(), width="middle"
    )


@manage_routes("GET", "/manage/disagreements", "manager", lane="slow", include_in_schema=False)
def manage_disagreements(request: Request, desk: TheDesk) -> Response:
    """Show the tasks on which people differ."""
    found = _judged(request).quality
    if found is None:
        return _making(request, desk, "disagreements")
    spoken = tongue(request)
    rows = [
        (row, desk.queue.task(row.task_id).prompt.turns()[-1]["content"], _split(row.split, spoken))
        for row in found.disputed
    ]
    return _page(request, "disagreements", rows=rows, left_out=found.num_disputed - len(rows))


def _split(split: Iterable[tuple[str, Any]], spoken: Tongue) -> list[tuple[str, list[str]]]:
    """Return the different answers, ``A > B = C`` or value by value, with who gave them, the commonest first."""
    said: dict[str, list[str]] = {}
    for name, answer in split:
        said.setdefault(_in_order(answer, spoken), []).append(name)
    return sorted(said.items(), key=lambda row: -len(row[1]))


def _in_order(answer: Sequence[Any], spoken: Tongue) -> str:
    if answer and isinstance(answer[0], bool):
        named = zip(LETTERS, (spoken.word("good" if good else "bad") for good in answer), strict=False)
        return ", ".join(f"{letter} {word}" for letter, word in named)
    if answer and isinstance(answer[0], dict):
        described = (" ".join(f"{spoken.word(axis)} {value}" for axis, value in axes.items()) for axes in answer)
        return "; ".join(f"{letter}: {words}" for letter, words in zip(LETTERS, described, strict=False))
    groups: dict[int, list[str]] = {}
    for letter, rank in zip(LETTERS, answer, strict=False):
        groups.setdefault(rank, []).append(letter)
    return " > ".join(" = ".join(groups[rank]) for rank in sorted(groups))


@manage_routes("GET", "/manage/people", "manager", include_in_schema=False)
def manage_people(request: Request, desk: TheDesk, me: Me) -> Response:
    """Show everybody, with the buttons that invite, disable and give roles; which links are open, and what was done."""
    directory = desk.directory
    return _page(
        request,
        "people",
        people=directory.people(),
        links=directory.links(me),
        log=directory.log(me, most=_LISTED) if me.role == "admin" else [],
    )


@manage_routes("GET", "/manage/tasks", "manager", include_in_schema=False)
def manage_tasks(request: Request, desk: TheDesk) -> Response:
    """Show where the tasks that wait came from, with the buttons that take them out."""
    return _page(request, "tasks", origins=desk.queue.origins())


@manage_routes("GET", "/manage/guidelines", "manager", include_in_schema=False)
def manage_guidelines(request: Request, desk: TheDesk) -> Response:
    """Show the form that writes new guidelines."""
    return _page(request, "guidelines", guideline=desk.directory.guideline())


@manage_routes("GET", "/manage/export", "manager", include_in_schema=False)
def manage_export(request: Request, desk: TheDesk) -> Response:
    """Show what can be exported, and in which formats."""
    return _page(request, "export", counts=_counts(request))


@manage_routes("GET", "/manage/task/{task_id}", "manager", include_in_schema=False)
def decision_form(request: Request, desk: TheDesk, me: Me, task_id: TaskId) -> Response:
    """Show a task with everybody's answers to it, and the form that decides."""
    return _form(request, desk, me, desk.queue.task(task_id), "adjudicate")


@manage_routes("GET", "/manage/task/{task_id}/gold", "manager", include_in_schema=False)
def gold_form(request: Request, desk: TheDesk, me: Me, task_id: TaskId) -> Response:
    """Show a task and the form that says its right answer: filled with the one it has, or with what was decided."""
    task = desk.queue.task(task_id)
    check_can_be_gold(task.kind, desk.settings)
    decided = [one for one in desk.reading.submissions(task_id=task_id) if one.adjudication and not one.undone]
    fields = {*kind_of(task.kind, desk.settings).fields}
    draft = task.gold or (decided[-1].answer.model_dump(include=fields) if decided else None)
    team = sum(1 for one in desk.directory.people() if one.role == "annotator" and not one.disabled)
    return _form(request, desk, me, task, "gold", draft=draft, overlap=max(task.overlap, team))


def _form(
    request: Request, desk: Desk, me: Person, task: QueuedTask, mode: str, *, draft: Any = None, **values: Any
) -> Response:
    """Show a task as the manager answers it: its completions as listed, and everybody's answers."""
    spoken = tongue(request)
    answers = [_in_task_order(one, spoken) for one in desk.reading.submissions(task_id=task.id) if not one.undone]
    known = {"person": me.id, "revision": len(answers), "lease_s": 0, "min_seconds": 0}
    given = known | {"mode": mode, "draft": draft}
    return show_task(request, desk, task, task.completions, given, answers=answers, here="manage", **values)


@manage_routes("GET", "/manage/gold", "manager", lane="slow", include_in_schema=False)
def manage_gold(request: Request, desk: TheDesk, after: Annotated[str, Query(max_length=100)] = "") -> Response:
    """Show the gold questions, and a page of the tasks that could be."""
    from accord.people.quality.gold import gold_report  # numpy and scipy: not needed to start

    spoken = tongue(request)
    questions, people = gold_report(desk)
    ordinary = (task for task in desk.queue.tasks(after=after) if task.gold is None and can_be_gold(task, desk))
    found = list(islice(ordinary, _LISTED + 1))
    return _page(
        request,
        "gold",
        questions=[(row, _in_order(right_of(row.task), spoken)) for row in questions],
        people=people,
        tasks=found[:_LISTED],
        after=found[_LISTED - 1].id if len(found) > _LISTED else "",
        paged=bool(after),
        percent=partial(percent_cell, spoken=spoken),
    )


def can_be_gold(task: QueuedTask, desk: Desk) -> bool:
    """Whether a task has a right answer, as far as this project knows its kind."""
    try:
        return kind_of(task.kind, desk.settings).has_right_answer
    except DataError:
        return False


def right_of(task: QueuedTask) -> Sequence[Any]:
    """Return ranks, ratings or labels of a gold question, by place in ``task.completions``."""
    answer = gold_answer(task)
    return answer.ranks or answer.ratings or answer.good or ()


def _in_task_order(submission: Submission, spoken: Tongue) -> dict[str, Any]:
    """Return somebody's answer by the letters under which the manager sees the completions."""
    places = sorted(range(len(submission.order)), key=lambda shown: submission.order[shown])
    parts = [
        f"{LETTERS[i]}: {words}" for i, shown in enumerate(places) if (words := said(submission.answer, shown, spoken))
    ]
    return {"submission": submission, "said": parts or [submission.answer.text or ""]}


# ---- numbers and pictures ----------------------------------------------------------------------------------------


def percent_cell(estimate: Estimate, spoken: Tongue) -> Markup:
    return _estimate_cell(estimate, spoken, lambda value: f"{100 * value:.0f}", " %")


def number_cell(estimate: Estimate, spoken: Tongue) -> Markup:
    return _estimate_cell(estimate, spoken, _short_number)


def _short_number(value: float) -> str:
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def _estimate_cell(estimate: Estimate, spoken: Tongue, text: Callable[[float], str], unit: str = "") -> Markup:
    """Return a value with its interval; a dash, with the reason for who asks, where there is none."""
    if (reason := getattr(estimate, "why", None)) is not None:
        why = spoken.told(reason)
        return Markup('<span class="soft" title="{}">–<span class="unseen"> {}</span></span>').format(why, why)
    value, low, high = estimate.value, estimate.low, estimate.high  # type: ignore[union-attr]
    between = f" [{text(low)}, {text(high)}]" if low == low and high == high else ""
    return Markup('<b>{}{}</b><span class="soft">{}</span>').format(text(value), unit, between)


def _why_not(people: Iterable[PersonRow]) -> list[str]:
    """Return the reasons for the dashes in the table of people, each once."""
    shown = ("gold", "agrees", "first_shown", "longer", "skip_rate", "flag_rate", "median_seconds", "per_hour")
    reasons = (getattr(getattr(row, name), "why", None) for row in people for name in shown)
    return [str(why) for why in dict.fromkeys(reasons) if why]


def _pictures(found: Quality, people: Sequence[PersonRow], spoken: Tongue) -> dict[str, Markup]:
    """Return figures by name; an empty one where nothing can be drawn."""
    say = spoken.told
    worth = [(_short(row.name), row.weight, f"{row.weight:.2f}") for row in people]
    done = [(_short(row.name), float(row.num_done), str(row.num_done)) for row in people]
    measures = [(say(row.measure), row.alpha) for row in found.agreement]
    lenience = [(_short(row.name), row.lenience) for row in people]
    first, longer = "share in which the one shown first wins", "share in which the longer one wins"
    scale, points = "Krippendorff's alpha: 0 = chance, 1 = all agree", "points of the scale above what others give"
    return {
        "done": bars(done, title=say("Answers")),
        "alpha": _dots(measures, say("Agreement"), say(scale), rule=0.0),
        "gold": _by_person(people, "gold", say("Gold questions answered right"), say("share right"), rule=None),
        "first": _by_person(people, "first_shown", say("Position"), say(first)),
        "longer": _by_person(people, "longer", say("Length"), say(longer)),
        "lenience": _dots(lenience, say("Lenience"), say(points), rule=0.0),
        "weights": bars(worth, title=say("Weight in training")),
    }


def _by_person(people: Sequence[PersonRow], name: str, title: str, axis: str, rule: float | None = 0.5) -> Markup:
    return _dots([(_short(row.name), getattr(row, name)) for row in people], title, axis, rule=rule, span=(0.0, 1.0))


def _dots(
    rows: Iterable[tuple[str, Estimate]],
    title: str,
    axis: str,
    *,
    rule: float | None,
    span: tuple[float, float] | None = None,
) -> Markup:
    known = [(name, one) for name, one in rows if getattr(one, "why", None) is None]
    drawn = [Dot(name, "people", one.value, *_bounds(one)) for name, one in known]  # type: ignore[union-attr]
    return dots(drawn, title=title, axis=axis, rule=rule, span=span)


def _bounds(estimate: Any) -> tuple[float | None, float | None]:
    known = estimate.low == estimate.low and estimate.high == estimate.high
    return (estimate.low, estimate.high) if known else (None, None)


def _short(name: str) -> str:
    return name if len(name) <= _MOST_NAME else name[: _MOST_NAME - 1] + "…"
