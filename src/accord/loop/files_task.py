"""The tasks that are built in: files of any known format, and the facts of a project's store."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from accord.config import TaskConfig
from accord.errors import DataError, UsageError
from accord.files import write_json
from accord.formats import Item, Reading, from_facts, read_items, to_jsonl
from accord.formats.jsonl import write_jsonl
from accord.loop.cache import Inputs
from accord.loop.task import PlainTask, Split, Task, TaskPlace
from accord.people.quality import quality_weights
from accord.people.views import training_view
from accord.progress import Log
from accord.store import Store

SPLITS: tuple[Split, ...] = get_args(Split)
FILE_KEYS = ("prompts", "demonstrations", "judgements", "texts")
LONGEST_TOPIC = 60  # letters of a topic that is made of a prompt


class SplitTask(PlainTask):
    """Items of any origin, split by their topic, or by the prompt that their conversation begins with.

    ``prompts_of`` names the kinds of items whose prompts are used. The split is a hash: what is added to
    the data moves nothing that stood there from one split into another.
    """

    prompts_of: tuple[str, ...] = ("prompts", "judgements", "demonstrations")

    def items(self, inputs: Inputs) -> Iterator[tuple[str, Item]]:
        """What there is, each with its kind: prompts, demonstrations, judgements or texts."""
        raise NotImplementedError

    def prepare(self, inputs: Inputs, folder: Path, log: Log) -> Any:
        """Write each split's files. Returns how many rows of each kind each split has."""
        log(0.0, "reading and splitting the data")
        found: dict[tuple[str, Split], list[Item]] = {(kind, split): [] for kind in FILE_KEYS for split in SPLITS}
        for kind, item in self.items(inputs):
            topic = topic_of(item)
            found[kind, split_of(topic, self.place.config)].append(replace(item, topic=shortened(topic)))
        for split in SPLITS:
            found["prompts", split] = list(asked([item for kind in self.prompts_of for item in found[kind, split]]))
        counts: dict[str, dict[str, int]] = {}
        for (kind, split), items in found.items():
            rows = list(to_jsonl(items))
            counts.setdefault(kind, {})[split] = len(rows)
            if kind == "prompts" and split in ("valid", "test"):
                rows = rows[: self.place.config.measured_prompts]
            write_jsonl(folder / f"{kind}_{split}.jsonl", rows)
        self.refuse_empty(counts)
        manifest = {"counts": {f"{kind}_{split}": n for kind, of in counts.items() for split, n in of.items()}}
        write_json(folder / "manifest.json", manifest)
        return manifest

    def refuse_empty(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Refuse data that leave a split without what it needs."""
        needs = [("prompts", split) for split in ("train", "valid", "test")]
        learnt = [kind for kind in ("demonstrations", "judgements") if kind in self.has]
        needs += [(kind, split) for kind in learnt for split in ("train", "valid")]
        for kind, split in needs:
            if not counts[kind][split]:
                total = sum(counts[kind].values())
                raise DataError(
                    f"of {total} {kind} none falls into the {split} split",
                    why="what shares a topic, or the prompt it begins with, stays together",
                    hint=f"give more topics, or raise task.{split}_share" if split != "train" else "give more topics",
                )


def asked(items: Iterable[Item]) -> Iterator[Item]:
    """The prompts of items, each once."""
    seen: set[str] = set()
    for item in items:
        prompt = prompt_of(item)
        name = json.dumps(prompt, default=dict)
        if prompt and name not in seen:
            seen.add(name)
            yield Item(prompt=prompt, topic=item.topic)


def prompt_of(item: Item) -> Any:
    """What is to be answered: of a whole conversation its turns up to the first answer."""
    if item.prompt is not None or isinstance(item.completions[0], str):
        return item.prompt
    turns = item.completions[0]
    answers = [i for i, turn in enumerate(turns) if turn.get("role") == "assistant"]
    return turns[: answers[0]] if answers else turns


def topic_of(item: Item) -> str:
    """The unit of splitting: the item's topic, else the first thing the user said."""
    if item.topic:
        return item.topic
    said = item.completions[0] if item.prompt is None else item.prompt
    if isinstance(said, str):
        return said
    users = [str(turn.get("content", "")) for turn in said if turn.get("role") == "user"]
    return users[0] if users else json.dumps([dict(turn) for turn in said])


def shortened(topic: str) -> str:
    """A topic as a name: a long one is cut, and told apart from its like by a hash."""
    if len(topic) <= LONGEST_TOPIC:
        return topic
    return f"{topic[: LONGEST_TOPIC - 12]}... {_digest(topic).hex()[:8]}"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def split_of(topic: str, config: TaskConfig) -> Split:
    """Which split a topic belongs to, by its hash (case and spacing do not matter)."""
    position = int.from_bytes(_digest(" ".join(topic.casefold().split())), "big") / 2**64
    shares: tuple[tuple[Split, float], ...] = (
        ("judge", config.judge_share), ("valid", config.valid_share), ("test", config.test_share),
    )  # fmt: skip
    for name, share in shares:
        if position < share:
            return name
        position -= share
    return "train"


# ---- files -----------------------------------------------------------------------------------------------------------


class FilesTask(SplitTask):
    """The files that a recipe names."""

    def __init__(self, place: TaskPlace) -> None:
        super().__init__(place)
        config = place.config
        self.inputs = {kind: Path(given) for kind in FILE_KEYS if (given := getattr(config, kind))}
        if not self.inputs.keys() & {"prompts", "demonstrations", "judgements"}:
            raise UsageError(
                "the recipe names no data",
                why="a run of task files learns from files",
                hint="name them: task.judgements, task.demonstrations, task.prompts; or choose another with task.use",
            )
        for kind, path in self.inputs.items():
            if not path.is_file():
                raise DataError("there is no such file", where=str(path), why=f"task.{kind} names it")
        self.has = frozenset(self.inputs) - {"prompts"}
        self.prompts_of = ("prompts",) if config.prompts else ("judgements", "demonstrations")
        self.settings = {"task": config.model_dump(exclude={*FILE_KEYS}), "reads": place.reads}

    def items(self, inputs: Inputs) -> Iterator[tuple[str, Item]]:
        wanted = kinds_read(self.place.reads)
        for kind, path in inputs.items():
            reading, taken = read_items(path), 0
            for item in reading:
                if item.kind in wanted[kind]:
                    taken += 1
                    yield kind, item
            if not taken:
                raise unreadable(kind, reading, wanted[kind])


def kinds_read(judgement: str) -> Mapping[str, Collection[str]]:
    """The kinds of items that each file of a recipe is read for, where the reward model reads such judgements."""
    return {
        "prompts": ("prompt", "demonstration", "ranking", "label", "rating", "sample"),
        "demonstrations": ("demonstration", "conversation"),
        "judgements": (judgement,),
        "texts": ("text",),
    }


def unreadable(kind: str, reading: Reading, wanted: Iterable[str]) -> DataError:
    """The error of a file that holds nothing of what it was named for; it names the file's columns."""
    columns = ", ".join(repr(name) for name in reading.fields) or "no columns"
    why = f"it was read as {reading.detected.format} ({reading.detected.why}); its columns are {columns}"
    hint = {
        "judgements": "give rankings or pairs, or choose the reward.loss that reads what these are (binary: labels, "
        "regression: ratings)",
    }.get(kind, f"give rows that hold a {' or a '.join(wanted)}")
    return DataError(f"task.{kind} holds no {' or '.join(wanted)}", where=str(reading.path), why=why, hint=hint)


# ---- a project's store -----------------------------------------------------------------------------------------------


class StoreTask(SplitTask):
    """What people said in a project's store, weighed as `accord export` weighs it; simulated annotators are left out.

    The facts are read when the task is made: its settings hold their hash, so that new judgements make a new run.
    """

    def __init__(self, place: TaskPlace) -> None:
        super().__init__(place)
        self.found = list(_facts(place.store, kinds_read(place.reads)))
        kinds = Counter(kind for kind, _ in self.found)
        if not kinds:
            raise DataError("the store holds nothing to learn from", where=place.store, hint="`accord import FILE`")
        self.has = frozenset(kinds) - {"prompts"}
        rows = json.dumps([(kind, list(to_jsonl([item]))) for kind, item in self.found])
        facts = hashlib.sha256(rows.encode()).hexdigest()
        self.settings = {"task": place.config.model_dump(), "reads": place.reads, "facts": facts}

    def items(self, inputs: Inputs) -> Iterator[tuple[str, Item]]:
        yield from self.found


def _facts(place: str, wanted: Mapping[str, Collection[str]]) -> Iterator[tuple[str, Item]]:
    with Store.open(place) as store:
        view = training_view(store, weights=quality_weights(store))
        for item in from_facts(store, view):
            kinds = [kind for kind in ("demonstrations", "judgements", "texts") if item.kind in wanted[kind]]
            if kinds or item.kind in wanted["prompts"]:
                yield (kinds[0] if kinds else "prompts"), item


#: The tasks that a recipe may use by a plain name.
TASKS: Mapping[str, Callable[[TaskPlace], Task]] = {"files": FilesTask, "store": StoreTask}
