"""Files of completions into the queue: what a policy sampled, what another tool exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accord.formats import Item
from accord.formats.item import TextOrTurns, as_meta, cannot, plain_turns, reply_of
from accord.formats.stage_rows import OF_COMPLETION
from accord.people.desk import Desk, NewTask, QueuedTask, group_tasks
from accord.people.desk.kinds import kind_of
from accord.records import Completion, Prompt, Source, content_id

Group = tuple[Prompt, tuple[Completion, ...]]
AS_PAIRS = "pairs"  # a way to serve a group: as tasks of the kind pair, each of two of its completions

#: Why a prompt's completions make no task, and what would make one; ``{kind}`` and ``{fewest}`` are filled in.
ALONE = (
    "without a completion: `accord sample --model DIR --data FILE -o samples.jsonl` draws some, "
    "and kind=demonstration lets people write them"
)
TOO_FEW = (
    "with fewer completions than the {fewest} that a {kind} compares: sample.samples_per_prompt=4 draws more, "
    "and kind=rating or kind=label judges one by one"
)
SAME_TEXT = "whose completions are all the same text: nothing to choose between"


@dataclass(frozen=True)
class Queued:
    """What became of groups: tasks added, prompts that wait already, and by reason how many prompts made no task."""

    added: int = 0
    already: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


class _Filling:
    """One filling of the queue: what it asks already, the tasks made so far, and what made none."""

    def __init__(self, desk: Desk, serve_as: str, num_pairs: int | None, only_new: bool) -> None:
        self.kind = "pair" if serve_as == AS_PAIRS else serve_as
        self.fewest = kind_of(self.kind, desk.settings).fewest
        self._serve_as, self._num_pairs, self._only_new = serve_as, num_pairs, only_new
        self._groups: set[str] = set()
        self._together: set[tuple[str, frozenset[str]]] = set()
        self._shown: set[tuple[str, str]] = set()
        self.tasks: list[NewTask] = []
        self.already, self.left_out = 0, Counter[str]()
        for task in desk.queue.tasks():
            if task.kind == self.kind:
                self._know(task, task.group or _name(task.prompt, task.completions))

    def add(self, prompt: Prompt, completions: Sequence[Completion], **task: Any) -> None:
        """Make the tasks of a group, or count why there is none."""
        unique = tuple({completion.text: completion for completion in completions}.values())
        name, shown = _name(prompt, unique), self._to_show(unique)
        if name in self._groups or (unique and not shown):
            self.already += 1
        elif len(shown) < self.fewest:
            self.left_out[self._why_not(completions, shown)] += 1
        else:
            self._make(prompt, shown, name, task)

    def _make(self, prompt: Prompt, shown: Sequence[Completion], name: str, task: Mapping[str, Any]) -> None:
        group = name if self._serve_as == AS_PAIRS else ""
        made = group_tasks(prompt, shown, serve_as=self._serve_as, num_pairs=self._num_pairs, group=group, **task)
        new = [one for one in made if not (self._only_new and (prompt.id, _texts(one)) in self._together)]
        self.already += not new
        for one in new:
            self._know(one, name)
        self.tasks += new

    def _to_show(self, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        if not self._only_new or self.fewest != 1:
            return completions
        return tuple(one for one in completions if (one.prompt_id, one.text) not in self._shown)

    def _why_not(self, completions: Sequence[Completion], shown: Sequence[Completion]) -> str:
        reason = ALONE if not shown else SAME_TEXT if len(shown) < len(completions) and len(shown) == 1 else TOO_FEW
        return reason.format(kind=self.kind, fewest=self.fewest)

    def _know(self, task: NewTask | QueuedTask, name: str) -> None:
        texts = _texts(task)
        self._groups.add(name)
        self._together.add((task.prompt.id, texts))
        self._shown |= {(task.prompt.id, text) for text in texts}


def _texts(task: NewTask | QueuedTask) -> frozenset[str]:
    """The texts that a task shows, whoever wrote them."""
    return frozenset(completion.text for completion in task.completions)


def queue_groups(
    desk: Desk,
    groups: Iterable[Group],
    *,
    serve_as: str,
    num_pairs: int | None = None,
    origin: str = "",
    priority: float = 0.0,
    only_new: bool = False,
) -> Queued:
    """Queue each prompt's completions, and return what became of them.

    Equal texts are shown once. A group that was queued so before is left alone: the same file, or a run that goes on,
    queues nothing twice.

    Args:
        serve_as: A kind of task; or "pairs": ``num_pairs`` random pairs of each group (all by default).
        priority: Tasks of a higher one come first.
        only_new: Of a group that has grown, ask only what no task asks yet: pairs that were not shown together, or
            completions that nobody is shown, of kinds that judge one by one. A run asks its own groups whole.

    Raises:
        DataError: A group has too few completions for so many pairs, or too many to rank; nothing was queued.
    """
    # By content, not by file name: a run that goes on writes the same groups into a new file.
    filling = _Filling(desk, serve_as, num_pairs, only_new)
    for prompt, completions in groups:
        filling.add(prompt, completions, origin=origin, priority=priority)
    return Queued(desk.queue.add_tasks(filling.tasks), filling.already, dict(filling.left_out))


def queued_tasks(desk: Desk, groups: Iterable[Group], *, serve_as: str) -> Iterator[QueuedTask]:
    """The tasks that `queue_groups` has made of these groups, now or before, oldest first."""
    kind = "pair" if serve_as == AS_PAIRS else serve_as
    shown = ((prompt, {one.text: one for one in completions}.values()) for prompt, completions in groups)
    names = {_name(prompt, completions) for prompt, completions in shown}
    for task in desk.queue.tasks():
        if task.kind == kind and (task.group or _name(task.prompt, task.completions)) in names:
            yield task


def _name(prompt: Prompt, completions: Iterable[Completion]) -> str:
    return content_id("group", [prompt.id, *sorted(completion.id for completion in completions)])


# ---- rows of a file --------------------------------------------------------------------------------------------------


def groups_of(items: Iterable[Item], source: Source) -> list[Group]:
    """Return each prompt with all its completions, wherever in the file they stand; judgements are not read.

    A conversation is a prompt with what the assistant says last. A row may say who wrote its completion: ``model`` or
    ``source``, one name or one for each completion; others are ``source``'s. What else a row holds is kept with the
    prompt. Raises CannotSay for tool calls, steps and plain texts.
    """
    found: dict[str, tuple[Prompt, list[Completion]]] = {}
    for item in items:
        asked, completions = _parts(item)
        prompt = _prompt(asked, item)
        written = [
            Completion(prompt_id=prompt.id, text=reply_of(text), source=known or named or source)
            for text, known, named in zip(completions, *_writers(item, len(completions)), strict=True)
        ]
        found.setdefault(prompt.id, (prompt, []))[1].extend(written)
    return [(prompt, tuple(completions)) for prompt, completions in found.values()]


def _parts(item: Item) -> tuple[TextOrTurns, Sequence[TextOrTurns]]:
    if item.prompt is not None:
        return item.prompt, item.completions
    said = item.completions[0]
    if isinstance(said, str):
        cannot("a plain text has no prompt that it answers")
    last = bool(said) and said[-1].get("role") == "assistant"
    return (said[:-1], (said[-1:],)) if last else (said, ())


def _writers(item: Item, count: int) -> tuple[Sequence[Source | None], Sequence[Source | None]]:
    """Who wrote each completion: as the format says, and as the row's own columns name them."""
    named = item.extra.get("model") or item.extra.get("source")
    names = named if isinstance(named, list) and len(named) == count else [named] * count
    said = [Source(origin="policy", name=name) if name and isinstance(name, str) else None for name in names]
    return item.sources or (None,) * count, said


def _prompt(asked: TextOrTurns, item: Item) -> Prompt:
    topic = item.topic or str(item.extra.get("topic", ""))  # other formats have no word for it
    besides = {name: value for name, value in item.extra.items() if name not in OF_COMPLETION and name != "topic"}
    meta = as_meta(besides)
    if isinstance(asked, str):
        return Prompt(text=asked, topic=topic, meta=meta)
    return Prompt.of_messages(plain_turns(tuple(asked)), topic=topic, meta=meta)
