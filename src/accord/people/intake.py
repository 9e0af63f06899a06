"""Files of completions into the queue: what a policy sampled, what another tool exported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from accord.formats import Item
from accord.formats.item import plain_turns, reply_of
from accord.people.desk import Desk, NewTask, QueuedTask, group_tasks
from accord.people.desk.kinds import kind_of
from accord.records import Completion, Prompt, Source, content_id

Group = tuple[Prompt, tuple[Completion, ...]]


def queue_groups(
    desk: Desk,
    groups: Iterable[Group],
    *,
    serve_as: str,
    num_pairs: int | None = None,
    origin: str = "",
    priority: float = 0.0,
) -> int:
    """Queue each prompt's completions, and return how many tasks that made.

    Equal texts are shown once. A group that was queued so before is left alone: the same file, or a run that goes on,
    queues nothing twice.

    Args:
        serve_as: A kind of task; or "pairs": ``num_pairs`` random pairs of each group (all by default).
        priority: Tasks of a higher one come first.

    Raises:
        DataError: A group has too few completions for so many pairs, or too many to rank; nothing was queued.
    """
    # By content, not by file name: a run that goes on writes the same groups into a new file.
    known = {(task.kind, task.group or _name(task.prompt, task.completions)) for task in desk.queue.tasks()}
    tasks: list[NewTask] = []
    for prompt, completions in groups:
        shown = tuple({completion.text: completion for completion in completions}.values())
        name = _name(prompt, shown)
        kind, group = ("pair", name) if serve_as == "pairs" else (serve_as, "")
        if (kind, name) in known or len(shown) < 2 <= kind_of(kind, desk.settings).fewest:
            continue
        known.add((kind, name))
        tasks += group_tasks(
            prompt, shown, serve_as=serve_as, num_pairs=num_pairs, origin=origin, group=group, priority=priority
        )
    return desk.queue.add_tasks(tasks)


def queued_tasks(desk: Desk, groups: Iterable[Group], *, serve_as: str) -> Iterator[QueuedTask]:
    """The tasks that `queue_groups` has made of these groups, now or before, oldest first."""
    kind = "pair" if serve_as == "pairs" else serve_as
    shown = ((prompt, {one.text: one for one in completions}.values()) for prompt, completions in groups)
    names = {_name(prompt, completions) for prompt, completions in shown}
    for task in desk.queue.tasks():
        if task.kind == kind and (task.group or _name(task.prompt, task.completions)) in names:
            yield task


def _name(prompt: Prompt, completions: Iterable[Completion]) -> str:
    return content_id("group", [prompt.id, *sorted(completion.id for completion in completions)])


def groups_of(items: Iterable[Item], source: Source) -> Iterator[Group]:
    """Yield each prompt with the completions that stand one after another in the items; judgements are not read.

    Completions that do not say who wrote them are ``source``'s. Raises CannotSay for tool calls and steps.
    """
    asked = (item for item in items if item.prompt is not None)
    for prompt, same in groupby(asked, key=_prompt):
        written = [
            Completion(prompt_id=prompt.id, text=reply_of(text), source=known or source)
            for item in same
            for text, known in zip(item.completions, item.sources or (None,) * len(item.completions), strict=True)
        ]
        yield prompt, tuple(written)


def _prompt(item: Item) -> Prompt:
    topic = item.topic or str(item.extra.get("topic", ""))  # other formats have no word for it
    if isinstance(item.prompt, str):
        return Prompt(text=item.prompt, topic=topic)
    return Prompt.of_messages(plain_turns(item.prompt or ()), topic=topic)
