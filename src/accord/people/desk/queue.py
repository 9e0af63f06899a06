"""What waits to be judged and who has it: tasks with a number of slots, leases of one slot for one person.

A task has ``overlap`` slots; ``free`` says how many nobody has or has filled. An assignment is one person's part in
one task, in one of six states. It fills a slot (``counts``) while leased or submitted::

    leased ──> submitted | skipped | released | expired (its time is over: seen by whoever comes next)
    expired, released ──> leased, or submitted late: with a slot if one is free, else as an extra
    submitted, skipped ──> leased again (undone), with a slot if it has one or one is free
    barred: never theirs, for they wrote one of the texts

All of this happens in requests to the store's one writer, one after the other: no slot is given twice.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from random import SystemRandom
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    func,
    insert,
    select,
    update,
)

from accord.config import LabelConfig
from accord.errors import DataError
from accord.people.desk import directory
from accord.people.desk.answers import MOST_NOTE, MOST_TEXT, read_answer
from accord.people.desk.kinds import check, check_can_be_gold, kind_of
from accord.people.desk.rows import Gone, NewTask, Person
from accord.records import Completion, Prompt
from accord.store import add_facts, schema
from accord.store.database import LOOKUP_IDS, chunks
from accord.store.operations import HAS_FREE_SLOT, assignments, people, task_completions, tasks

_RANDOM = SystemRandom()
_MOST_DRAFT = 2 * MOST_TEXT
#: States in which a task is not given to a person (again).
_NOT_AGAIN = ("leased", "submitted", "skipped", "barred")
_NO_ASSIGNMENT = {
    "shown": "[]",
    "state": "barred",
    "counts": False,
    "revision": 1,
    "guideline_rev": 0,
    "given_at": 0.0,
    "until": 0.0,
    "draft": None,
    "reason": "",
    "note": "",
}


# ---- filling the queue -----------------------------------------------------------------------------------------------


def prepare(new: NewTask, settings: LabelConfig) -> NewTask:
    """A task with all said. Raises DataError where it cannot be asked."""
    row = kind_of(new.kind, settings)
    overlap = settings.overlap if new.overlap is None else new.overlap
    num = len(new.completions)
    if not row.fewest <= num <= row.most:
        raise DataError(f"a {new.kind} task of {num} completions", hint=f"give {row.fewest} to {row.most}")
    if len({completion.id for completion in new.completions}) < num:
        raise DataError("a completion stands twice in a task")
    if any(completion.prompt_id != new.prompt.id for completion in new.completions):
        raise DataError("a completion of the task answers another prompt")
    if not 1 <= overlap <= 1000 or not abs(new.priority) < 1e300:
        raise DataError(f"overlap {overlap}, priority {new.priority}", hint="give 1 to 1000, and a finite number")
    gold = None if new.gold is None else checked_gold(new.kind, settings, num, new.gold)
    return NewTask(**{**vars(new), "overlap": overlap, "gold": gold})


def checked_gold(kind: str, settings: LabelConfig, num_completions: int, values: dict[str, Any]) -> dict[str, Any]:
    check_can_be_gold(kind, settings)
    answer = read_answer(values)
    check(kind, settings, num_completions, answer)
    return answer.plain()


def add_tasks(connection: Connection, at: float, new: Sequence[NewTask]) -> int:
    """Store the facts of prepared tasks and queue them."""
    prompts = [task.prompt for task in new]
    completions = [completion for task in new for completion in task.completions]
    add_facts(connection, [*prompts, *completions])
    prompt_keys = _keys(connection, schema.prompts.c.content_id, schema.prompts.c.id, [p.id for p in prompts])
    ids = [secrets.token_urlsafe(12) for _ in new]
    _insert(connection, tasks, [_task_row(at, id_, task, prompt_keys) for id_, task in zip(ids, new, strict=True)])
    task_keys = _keys(connection, tasks.c.task_id, tasks.c.id, ids)
    keys = _keys(connection, schema.completions.c.content_id, schema.completions.c.id, [c.id for c in completions])
    items = [
        {"task_id": task_keys[id_], "position": position, "completion_id": keys[completion.id]}
        for id_, task in zip(ids, new, strict=True)
        for position, completion in enumerate(task.completions)
    ]
    _insert(connection, task_completions, items)
    _bar_writers(connection, list(task_keys.values()))
    return len(new)


def _bar_writers(connection: Connection, task_keys: Sequence[int]) -> None:
    """Nobody judges a text of their own: an edit, or a demonstration that came into the queue."""
    t, c, d = task_completions.c, schema.completions.c, schema.demonstrations.c
    written = (
        select(t.task_id, people.c.id)
        .select_from(task_completions.join(schema.completions))
        .join(schema.demonstrations, (d.prompt_id == c.prompt_id) & (d.text_id == c.text_id))
        .join(people, people.c.annotator_id == d.annotator_id)
        .distinct()
    )
    for some in chunks(task_keys, LOOKUP_IDS):
        found = connection.execute(written.where(t.task_id.in_(some))).all()
        rows = [_NO_ASSIGNMENT | {"task_id": task, "person_id": person} for task, person in found]
        _insert(connection, assignments, rows)


def _task_row(at: float, id_: str, task: NewTask, prompt_keys: Mapping[str, int]) -> dict[str, Any]:
    return {
        "task_id": id_,
        "kind": task.kind,
        "prompt_id": prompt_keys[task.prompt.id],
        "overlap": task.overlap,
        "free": task.overlap,
        "turn": -task.priority,
        "group_name": task.group,
        "gold": None if task.gold is None else json.dumps(task.gold),
        "origin": task.origin,
        "created_at": at,
    }


def _keys(connection: Connection, name: Column[str], key: Column[int], values: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for some in chunks(dict.fromkeys(values), LOOKUP_IDS):
        found.update((row[0], row[1]) for row in connection.execute(select(name, key).where(name.in_(some))))
    return found


def _insert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    for some in chunks(rows, LOOKUP_IDS):
        connection.execute(insert(table), some)


def group_tasks(
    prompt: Prompt, completions: Sequence[Completion], *, serve_as: str, num_pairs: int | None = None, **task: Any
) -> list[NewTask]:
    """The tasks of a group of completions: one of the kind ``serve_as``, or, as "pairs", pairs that share ``group``.

    The first pairs drawn form a random path through the group, so that K - 1 of them connect all K completions.

    Args:
        num_pairs: How many of the K (K - 1) / 2 pairs; all by default.
        **task: The other fields of `NewTask`.

    Raises:
        DataError: There are not so many pairs, or too few completions.
    """
    if serve_as != "pairs":
        return [NewTask(kind=serve_as, prompt=prompt, completions=tuple(completions), **task)]
    num, group = len(completions), task.pop("group", "") or secrets.token_urlsafe(9)
    most = num * (num - 1) // 2
    wanted = most if num_pairs is None else num_pairs
    if not 1 <= wanted <= most:
        raise DataError(f"{wanted} pairs of {num} completions", hint=f"there are {most}")
    pairs = _random_pairs(num, wanted)
    chosen = [(completions[i], completions[j]) for i, j in pairs]
    return [NewTask(kind="pair", prompt=prompt, completions=pair, group=group, **task) for pair in chosen]


def _random_pairs(num: int, wanted: int) -> list[tuple[int, int]]:
    path = _RANDOM.sample(range(num), num)
    along = list(pairwise(path))
    seen = {frozenset(pair) for pair in along}
    others = [pair for pair in combinations(path, 2) if frozenset(pair) not in seen]
    return [*along, *_RANDOM.sample(others, len(others))][:wanted]


# ---- leases ----------------------------------------------------------------------------------------------------------


_HELD: Select[Any] = select(
    assignments, tasks.c.free, tasks.c.kind, tasks.c.gold, tasks.c.task_id.label("task")
).join_from(assignments, tasks)

# What a person has, the latest first, before what the person had when the lease ran out and nobody took.
_OWN: Select[Any] = (
    _HELD.where(assignments.c.person_id == bindparam("me"))
    .where(assignments.c.state.in_(("leased", "expired")), (assignments.c.state == "leased") | (tasks.c.free > 0))
    .order_by(assignments.c.state.desc(), assignments.c.given_at.desc(), assignments.c.id.desc())
    .limit(1)
)
# The next task by turn and age that has a free slot and that the person may have.
_IN_TURN: Select[Any] = (
    select(
        tasks.c.id,
        tasks.c.task_id,
        select(func.count()).where(task_completions.c.task_id == tasks.c.id).scalar_subquery().label("size"),
        assignments.c.id.is_not(None).label("released"),
    )
    .outerjoin_from(
        tasks, assignments, (assignments.c.task_id == tasks.c.id) & (assignments.c.person_id == bindparam("me"))
    )
    .where(HAS_FREE_SLOT, assignments.c.id.is_(None) | assignments.c.state.not_in(_NOT_AGAIN))
    .order_by(tasks.c.turn, tasks.c.id)
    .limit(1)
)
_HELD_BY = _HELD.where(assignments.c.person_id == bindparam("me"), tasks.c.task_id == bindparam("wanted"))
_IS_OVER = (assignments.c.state == "leased") & (assignments.c.until <= bindparam("at"))
_OVER = select(assignments.c.task_id, assignments.c.counts).where(_IS_OVER)
_EXPIRE = update(assignments).where(_IS_OVER).values(state="expired", counts=False)
_FREE_MORE = update(tasks).where(tasks.c.id == bindparam("key")).values(free=tasks.c.free + bindparam("more"))
_TAKE_SLOT = update(tasks).where(tasks.c.id == bindparam("key"), tasks.c.free > 0).values(free=tasks.c.free - 1)
_GIVE = insert(assignments)
_CHANGE = update(assignments).where(assignments.c.id == bindparam("key"))
_LEAN = select(people.c.lean).where(people.c.id == bindparam("me"))
_LEAN_MORE = update(people).where(people.c.id == bindparam("me")).values(lean=people.c.lean + bindparam("more"))


def held(connection: Connection, person_id: int, task_id: str) -> Row[Any]:
    """A person's assignment of a task, whatever its state. Raises Gone where the person never had it."""
    row = connection.execute(_HELD_BY, {"me": person_id, "wanted": task_id}).first()
    if row is None:
        raise Gone(f"you do not have a task {task_id!r}", hint="claim the next one")
    return row


def change(connection: Connection, row: Row[Any], **values: Any) -> None:
    """Set columns of an assignment that `held` has found."""
    connection.execute(_CHANGE, {"key": row.id, **values})


def expire(connection: Connection, at: float) -> None:
    """Take back the leases whose time is over."""
    rows = connection.execute(_OVER, {"at": at}).all()
    if not rows:
        return
    connection.execute(_EXPIRE, {"at": at})
    freed = Counter(row.task_id for row in rows if row.counts)
    if freed:
        connection.execute(_FREE_MORE, [{"key": key, "more": number} for key, number in freed.items()])


def claim(
    connection: Connection, at: float, settings: LabelConfig, person_id: int, kinds: Sequence[str] | None
) -> Row[Any] | None:
    """Lease one slot: of a task the person has already, else of one whose lease ran out, else of the next in turn."""
    who = directory.active(connection, person_id)
    rev = directory.confirmed_rev(connection, who)
    for kind in kinds or ():
        kind_of(kind, settings)
    expire(connection, at)
    own = connection.execute(_of_kinds(_OWN, kinds), {"me": person_id}).first()
    if own is not None:
        # Leased anew from now, and by the guidelines that were confirmed since.
        return _renew(connection, at, settings, own, guideline_rev=rev)
    next_one = connection.execute(_of_kinds(_IN_TURN, kinds), {"me": person_id}).first()
    return None if next_one is None else _lease(connection, at, settings, who, next_one, rev)


def _of_kinds(statement: Select[Any], kinds: Sequence[str] | None) -> Select[Any]:
    return statement if kinds is None else statement.where(tasks.c.kind.in_(kinds))


def num_left(connection: Connection, person_id: int) -> int:
    """How many tasks a person could still be given, or has: counted without a look at each task of the queue."""
    a = assignments.c
    free = connection.execute(select(func.count()).select_from(tasks).where(HAS_FREE_SLOT)).scalar_one()
    mine = select(func.count()).select_from(assignments.join(tasks)).where(a.person_id == person_id)
    had = connection.execute(mine.where(a.state.in_(_NOT_AGAIN), HAS_FREE_SLOT)).scalar_one()
    return free - had + connection.execute(mine.where(a.state == "leased")).scalar_one()


def _lease(connection: Connection, at: float, settings: LabelConfig, who: Person, task: Row[Any], rev: int) -> Row[Any]:
    if task.released:
        return _renew(connection, at, settings, held(connection, who.id, task.task_id), guideline_rev=rev)
    row = {
        "shown": json.dumps(_draw_order(connection, who, task.size)),
        "state": "leased",
        "counts": take_slot(connection, task.id),
        "guideline_rev": rev,
        "given_at": at,
        "until": at + lease_s(settings),
    }
    connection.execute(_GIVE, _NO_ASSIGNMENT | row | {"task_id": task.id, "person_id": who.id})
    return held(connection, who.id, task.task_id)


def _renew(connection: Connection, at: float, settings: LabelConfig, row: Row[Any], **more: Any) -> Row[Any]:
    """Lease it again to who had it, in the order drawn then; without a slot where none is free."""
    values = {
        "state": "leased",
        "counts": row.counts or take_slot(connection, row.task_id),
        "given_at": at,
        "until": at + lease_s(settings),
    }
    change(connection, row, **values, **more)
    return held(connection, row.person_id, row.task)


def lease_s(settings: LabelConfig) -> float:
    return settings.lease_minutes * 60


def take_slot(connection: Connection, task_key: int) -> bool:
    """Take a free slot of a task, if there is one."""
    return connection.execute(_TAKE_SLOT, {"key": task_key}).rowcount == 1


def _give_slot(connection: Connection, row: Row[Any]) -> None:
    if row.counts:
        connection.execute(_FREE_MORE, {"key": row.task_id, "more": 1})


def _draw_order(connection: Connection, who: Person, num: int) -> list[int]:
    """A random order. Of two completions each order comes once in every two draws, so that a person sees both alike."""
    order = _RANDOM.sample(range(num), num)
    if num == 2:
        lean = connection.execute(_LEAN, {"me": who.id}).scalar_one()
        order = order if lean == 0 else [1, 0] if lean > 0 else [0, 1]
        connection.execute(_LEAN_MORE, {"me": who.id, "more": 1 if order == [0, 1] else -1})
    return order


def begun(connection: Connection, at: float, person_id: int, task_id: str) -> Row[Any]:
    """An assignment that its person still works on, on time or late. Raises Gone for any other."""
    directory.active(connection, person_id)
    expire(connection, at)
    row = held(connection, person_id, task_id)
    if row.state not in ("leased", "expired"):
        raise Gone(f"you do not have this task now: it is {row.state}", hint="claim the next one")
    return row


def heartbeat(connection: Connection, at: float, settings: LabelConfig, person_id: int, task_id: str) -> float:
    row = begun(connection, at, person_id, task_id)
    counts = row.counts or (row.state == "expired" and take_slot(connection, row.task_id))
    if row.state == "expired" and not counts:
        raise Gone("the task has gone to somebody else", hint="an answer is still kept, beside theirs")
    until = at + lease_s(settings)
    change(connection, row, state="leased", counts=counts, until=until)
    return until


def _leave(connection: Connection, row: Row[Any], **values: Any) -> None:
    change(connection, row, counts=False, **values)
    _give_slot(connection, row)


def release(connection: Connection, at: float, person_id: int, task_id: str) -> None:
    _leave(connection, begun(connection, at, person_id, task_id), state="released")


def release_all(connection: Connection, person_id: int) -> None:
    mine = (assignments.c.person_id == person_id) & (assignments.c.state == "leased")
    for row in connection.execute(_HELD.where(mine)).all():
        _leave(connection, row, state="released")


def skip(
    connection: Connection, at: float, settings: LabelConfig, person_id: int, task_id: str, reason: str, note: str
) -> None:
    if reason not in settings.skip_reasons:
        raise DataError(
            f"there is no reason {reason!r}", where="reason", hint="one of " + ", ".join(settings.skip_reasons)
        )
    if len(note) > MOST_NOTE:
        raise DataError(f"a note of {len(note)} characters", where="note", hint=f"write at most {MOST_NOTE}")
    row = begun(connection, at, person_id, task_id)
    _leave(connection, row, state="skipped", reason=reason, note=note)


def unskip(connection: Connection, at: float, settings: LabelConfig, person_id: int, task_id: str) -> Row[Any]:
    directory.active(connection, person_id)
    expire(connection, at)
    row = held(connection, person_id, task_id)
    if row.state != "skipped":
        raise Gone("you have not skipped this task")
    return _renew(connection, at, settings, row, reason="", note="")


def give_back(connection: Connection, at: float, settings: LabelConfig, row: Row[Any], draft: str) -> Row[Any]:
    """After an undo: the lease again, with what was answered as the draft."""
    return _renew(connection, at, settings, row, revision=row.revision + 1, draft=draft)


def save_draft(connection: Connection, at: float, person_id: int, task_id: str, draft: dict[str, Any]) -> None:
    text = json.dumps(draft, ensure_ascii=False)  # as long in any alphabet
    if len(text) > _MOST_DRAFT:
        raise DataError(f"a draft of {len(text)} characters", hint=f"at most {_MOST_DRAFT} are kept")
    row = begun(connection, at, person_id, task_id)
    change(connection, row, draft=text)


def set_gold(
    connection: Connection,
    settings: LabelConfig,
    task_id: str,
    values: dict[str, Any] | None,
    by: Person,
    overlap: int | None,
) -> None:
    """``overlap`` people are asked in all from now on, or as many as have the task already; None: as many as before."""
    directory.require(by, "admin", "manager")
    columns = select(tasks.c.id, tasks.c.kind, tasks.c.overlap, tasks.c.free)
    row = connection.execute(columns.where(tasks.c.task_id == task_id)).first()
    if row is None:
        raise Gone(f"there is no task {task_id!r}")
    size = select(func.count()).select_from(task_completions).where(task_completions.c.task_id == row.id)
    num = connection.execute(size).scalar_one()
    gold = None if values is None else json.dumps(checked_gold(row.kind, settings, num, values))
    taken = row.overlap - row.free
    places = row.overlap if overlap is None else max(1, taken, overlap)
    connection.execute(update(tasks).where(tasks.c.id == row.id).values(gold=gold, overlap=places, free=places - taken))
