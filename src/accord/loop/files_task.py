"""The tasks that are built in: files of any known format, and the facts of a project's store."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_args

from accord.config import TaskConfig
from accord.connected import Connected
from accord.errors import DataError, UsageError
from accord.evals.pairs import ranked_pairs
from accord.evals.reward_card import measure_reward_model
from accord.files import read_json, write_json
from accord.formats import Item, Reading, Reject, Rejects, from_facts, input_file, read_items, to_jsonl
from accord.formats.importing import MAX_REJECTS
from accord.formats.item import TextOrTurns, prompt_key, turns_of
from accord.formats.jsonl import write_jsonl
from accord.formats.rows import MAX_SHOWN, OnReject
from accord.formats.stage_rows import read_rankings
from accord.loop.cache import Inputs, given_inputs
from accord.loop.task import PlainTask, RewardCheck, Split, Task, TaskPlace
from accord.people.admission import LIVE_ORIGINS, THUMB_PAIRS, admitted_items, read_admission, text_key, thumb_pairs
from accord.people.quality import quality_weights
from accord.people.scrub import scrubbed_item
from accord.people.signals import SIGNAL_PAIRS, signal_pairs
from accord.people.views import training_view
from accord.progress import Log
from accord.scoring.scorer import Scorer
from accord.seeds import hash_position
from accord.store import Store

SPLITS: tuple[Split, ...] = get_args(Split)
FILE_KEYS = ("prompts", "demonstrations", "judgements", "texts")
#: Origins of what was made of thumbs and signals: it neither measures nor judges.
ONLY_TEACH = (THUMB_PAIRS, SIGNAL_PAIRS)
#: Origins of users' own word on what was served to them.
LIVE = tuple(LIVE_ORIGINS.values())
LONGEST_TOPIC = 60  # letters of a topic that is made of a prompt
Counts = Mapping[str, Mapping[Split, int]]


class SplitTask(PlainTask):
    """Items of any origin, split by their topic and by the prompt that their conversation begins with.

    ``prompts_of`` names the kinds of items whose prompts are used. The split is a hash: what is added to the data moves
    nothing that stood there from one split into another, unless it ties together what stood apart.
    """

    light = True
    prompts_of: tuple[str, ...] = ("prompts", "judgements", "demonstrations")
    judged: frozenset[str] = frozenset(SPLITS)  # the splits that may hold judgements

    def items(self, inputs: Inputs, left_out: LeftOut) -> Iterator[tuple[str, Item]]:
        """What there is, each with its kind: prompts, demonstrations, judgements or texts."""
        raise NotImplementedError

    def prepare(self, inputs: Inputs, folder: Path, log: Log) -> Any:
        """Write each split's files. Returns how many rows of each kind each split has, and what was left out."""
        log(0.0, "reading and splitting the data")
        most = self.place.config.max_characters
        with LeftOut(folder) as left_out:
            found = [one for one in self.items(inputs, left_out) if left_out.keeps(*one, most_characters=most)]
            files = self.split(found, left_out)
        counts = {kind: {split: len(files[kind, split]) for split in SPLITS} for kind in FILE_KEYS}
        self.refuse_empty(counts, left_out)
        for (kind, split), rows in files.items():
            write_jsonl(folder / f"{kind}_{split}.jsonl", rows)
        for line in left_out.lines():
            log(1.0, line)
        flat = {f"{kind}_{split}": n for kind, of in counts.items() if any(of.values()) for split, n in of.items()}
        manifest = {"counts": flat | left_out.numbers(), "left_out": left_out.to_json()}
        write_json(folder / "manifest.json", manifest)
        return manifest

    def split(
        self, found: Sequence[tuple[str, Item]], left_out: LeftOut
    ) -> dict[tuple[str, Split], list[Mapping[str, Any]]]:
        """The rows of each file. Prompts stand there once; of those that are only measured on, so many as are asked."""
        config = self.place.config
        items: dict[tuple[str, Split], list[Item]] = {(kind, split): [] for kind in FILE_KEYS for split in SPLITS}
        judged = any(kind == "judgements" and not is_live(item) for kind, item in found)
        for (kind, item), unit in zip(found, units_of([item for _, item in found], config), strict=True):
            split = split_of(unit, config)
            if split == "judge" and not judged:  # nothing there teaches a judge: its share is trained on
                split = "train"
            if kind == "judgements" and not left_out.keeps_judgement(item, split, config.judge_annotators):
                continue
            # Where topics are not kept apart, training still knows them; intervals resample what was.
            kept = split == "train" and config.split_by == "prompt" and bool(item.topic)
            items[kind, split].append(item if kept else replace(item, topic=unit))
        for split in SPLITS:
            most = config.measured_prompts if split in ("valid", "test") else None
            prompts = asked(item for kind in self.prompts_of for item in items[kind, split])
            items["prompts", split] = list(itertools.islice(prompts, most))
        return {place: list(to_jsonl(of)) for place, of in items.items()}

    def refuse_empty(self, counts: Counts, left_out: LeftOut) -> None:
        """Refuse data that leave a split without what it needs."""
        for kind in self.has:
            if not any(counts[kind].values()):
                left_out.refuse(kind)
        needs: list[tuple[str, Split]] = [("prompts", split) for split in ("train", "valid", "test")]
        measured: tuple[Split, Split] = ("train", "valid")
        needs += [("demonstrations", split) for split in measured if "demonstrations" in self.has]
        needs += [("judgements", split) for split in measured if self.judgements(split)]
        needs += [("judgements", "judge")] if self.judgements("judge") else []
        needs += [("judgements", "test")] if self.held_out else []
        for kind, split in needs:
            if not counts[kind][split]:
                total = sum(counts[kind].values())
                raise DataError(
                    f"of {total} {kind} none falls into the {split} split",
                    why="what shares a topic, or the prompt it begins with, stays together",
                    hint=self.more_units(split),
                )

    def more_units(self, split: Split) -> str:
        """What helps where nothing falls into a split."""
        told = ["give more topics"] if self.place.config.split_by == "topic" else ["give more prompts"]
        told += [f"raise task.{split}_share"] if split != "train" else []
        told += ["split by prompt: task.split_by=prompt"] if self.place.config.split_by == "topic" else []
        return ", or ".join(told)

    def judgements(self, split: Split) -> Path | None:
        """The judgements of a split; where no share is kept for a judge, there are none to fit one to."""
        kept = split in self.judged and (split != "judge" or self.place.config.judge_share > 0)
        return super().judgements(split) if kept else None


# ---- what belongs together -------------------------------------------------------------------------------------------


def asked(items: Iterable[Item]) -> Iterator[Item]:
    """The prompts of items, each once."""
    seen: set[str] = set()
    for item in items:
        prompt = prompt_of(item)
        name = " ".join(prompt_key(prompt).split())
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


def begins_with(item: Item) -> str:
    """The first thing that the user said: what one conversation shares with another that went on otherwise."""
    said = item.completions[0] if item.prompt is None else item.prompt
    if isinstance(said, str):
        return said
    users = [str(turn.get("content", "")) for turn in said if turn.get("role") == "user"]
    return users[0] if users else json.dumps([dict(turn) for turn in said])


def as_chat(item: Item, config: TaskConfig) -> Item:
    """The item as a chat model reads it where ``task.chat`` says so: a prompt of text is the user's turn."""
    said = item.prompt
    return replace(item, prompt=turns_of(said)) if config.chat and isinstance(said, str) and said.strip() else item


def units_of(items: Sequence[Item], config: TaskConfig) -> list[str]:
    """The unit of splitting of each item, as ``task.split_by`` says: its topic, or what the user said first."""
    return topics_of(items if config.split_by == "topic" else [replace(item, topic="") for item in items])


def topics_of(items: Sequence[Item]) -> list[str]:
    """The unit of splitting of each item: a topic, else the first thing the user said, shortened.

    Items that share either, directly or through others, are one unit; of several topics the first in the alphabet names
    it. Case and spacing make no difference.
    """
    together = Connected[str]()
    own = [[shortened(text) for text in (item.topic, begins_with(item)) if text] or [""] for item in items]
    for names in own:
        together.join(name.casefold() for name in names)
    units = [together.find(names[0].casefold()) for names in own]
    titles: dict[str, tuple[bool, str]] = {}
    for unit, item, (name, *_) in zip(units, items, own, strict=True):
        titles[unit] = min(titles.get(unit, (True, name)), (not item.topic, name))
    return [titles[unit][1] for unit in units]


def shortened(text: str) -> str:
    """A text as a name: a long one is cut, and told apart from its like by a hash. That of a name is the name."""
    name = " ".join(text.split())
    if len(name) <= LONGEST_TOPIC:
        return name
    digest = hashlib.blake2b(name.casefold().encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{name[: LONGEST_TOPIC - 12]}... {digest.hexdigest()[:8]}"


def split_of(topic: str, config: TaskConfig) -> Split:
    """Which split a topic belongs to, by its hash."""
    position = hash_position(topic.casefold())
    shares: tuple[tuple[Split, float], ...] = (
        ("judge", config.judge_share), ("valid", config.valid_share), ("test", config.test_share),
    )  # fmt: skip
    for name, share in shares:
        if position < share:
            return name
        position -= share
    return "train"


def judges_alone(annotator: str, share: float) -> bool:
    """Whether an annotator is one of those who teach the judge alone; one without a name is not."""
    return bool(annotator) and hash_position(f"annotator {annotator}") < share


def is_live(item: Item) -> bool:
    """Whether a judgement is users' own word on what was served to them."""
    return item.origin in (*LIVE, *ONLY_TEACH)


def may_stand(item: Item, split: Split) -> bool:
    """Whether a judgement may stand in a split: users teach no judge, and what is made of thumbs measures nothing."""
    return split == "train" or (split != "judge" and item.origin not in ONLY_TEACH) or not is_live(item)


# ---- what cannot be used ---------------------------------------------------------------------------------------------


class LeftOut(contextlib.ExitStack):
    """Rows that are not used, counted by kind and reason; those that are no good are in ``rejects_KIND.jsonl``.

    Open, it removes what an earlier run has left there. More than `MAX_REJECTS` of a kind are a wrong file: DataError.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.reasons: dict[str, Counter[str]] = {kind: Counter() for kind in FILE_KEYS}
        self.first: dict[str, str] = {}
        self.others: dict[str, Counter[str]] = {kind: Counter() for kind in FILE_KEYS}
        files = {kind: Rejects(folder / f"rejects_{kind}.jsonl", sys.maxsize) for kind in FILE_KEYS}
        self._files = {kind: self.enter_context(file) for kind, file in files.items()}

    def rejecting(self, kind: str) -> OnReject:
        """What takes the rejects of one kind."""

        def reject(one: Reject) -> None:
            self._files[kind](one)
            self._count(kind, f'"{one.field}" {one.problem}' if one.field else one.problem, one.where)
            if self._files[kind].count > MAX_REJECTS:
                raise DataError(
                    f"more than {MAX_REJECTS:,} rows of the {kind} are no good, the last because: {one.problem}",
                    where=one.where,
                    hint=f"see {self._files[kind].path}; is it the right format? FORMAT:PATH names another",
                )

        return reject

    def keeps(self, kind: str, item: Item, most_characters: int) -> bool:
        """Whether stages can read an item, and it is no longer than that (0: whatever its length)."""
        faults: list[str] = []
        if list(to_jsonl([item], faults.append)):
            if not most_characters or length_of(item) <= most_characters:
                return True
            self._count(kind, f"longer than {most_characters:,} characters", item.where)
            return False
        row = json.dumps(item.row, ensure_ascii=False, default=str)
        problem = faults[0] if faults else "nothing of it can be written"
        self.rejecting(kind)(Reject(item.where, "", problem, "mend the row, or leave it out", row[:MAX_SHOWN]))
        return False

    def keeps_judgement(self, item: Item, split: Split, share: float) -> bool:
        """Whether a judgement may stand in a split: what users said in passing teaches no judge, thumbs only train."""
        if not may_stand(item, split):
            told = (
                "on prompts that measure: thumbs only teach" if item.origin == THUMB_PAIRS else "of the judge's prompts"
            )
            self._count("judgements", f"{item.origin}, {told}", item.where)
            return False
        return self.keeps_annotator(item, split, share)

    def keeps_annotator(self, item: Item, split: Split, share: float) -> bool:
        """Whether a judgement may stand in a split: those who teach the judge teach nothing else, and nobody else it.

        Which of the annotators that are is said by a hash of the name; nothing is kept apart where the share is 0.
        """
        if not share or split == "test" or judges_alone(item.annotator, share) == (split == "judge"):
            return True
        self._count("judgements", "by an annotator kept apart from this split", item.where)
        return False

    def _count(self, kind: str, reason: str, where: str) -> None:
        self.reasons[kind][reason] += 1
        self.first.setdefault(kind, where)

    def refuse(self, kind: str) -> NoReturn:
        """Refuse a kind of which nothing can be used."""
        hint = "mend the rows, or name their format: FORMAT:PATH"
        where, why = self.first.get(kind, ""), self.told(kind)
        raise DataError(f"nothing of the {kind} can be used", where=where, why=why, hint=hint)

    def told(self, kind: str) -> str:
        """Why rows of a kind are left out, and how often, in words."""
        return ", ".join(f"{why} ({count:,})" for why, count in self.reasons[kind].most_common(3))

    def numbers(self) -> dict[str, int]:
        """How many were left out, by kind, where there are some."""
        return {f"{kind}_left_out": of.total() for kind, of in self.reasons.items() if of}

    def to_json(self) -> dict[str, Any]:
        """By kind: how many and why, the first of them, and rows of other kinds that the file holds besides."""
        return {
            kind: {"why": dict(of.most_common(20)), "first": self.first.get(kind, ""), "of other kinds": dict(others)}
            for kind, of in self.reasons.items()
            if (others := self.others[kind]) or of
        }

    def lines(self) -> Iterator[str]:
        """The same, in words."""
        for kind, of in self.reasons.items():
            if of:
                first = f"; the first at {where}" if (where := self.first.get(kind)) else ""
                yield f"{of.total():,} rows of the {kind} are left out: {self.told(kind)}{first}"
            if others := self.others[kind]:
                told = ", ".join(f"{count:,} of kind {name}" for name, count in others.most_common())
                yield f"the {kind} hold besides: {told}"


def length_of(item: Item) -> int:
    """Characters of the prompt and its longest completion."""
    return _characters(item.prompt) + max(map(_characters, item.completions), default=0)


def _characters(said: TextOrTurns | None) -> int:
    return len(said) if isinstance(said, str) else sum(len(str(turn.get("content", ""))) for turn in said or ())


# ---- files -----------------------------------------------------------------------------------------------------------


class FilesTask(SplitTask):
    """The files that a recipe names, each as PATH or FORMAT:PATH."""

    def __init__(self, place: TaskPlace) -> None:
        super().__init__(place)
        config = place.config
        self.inputs = {kind: input_file(given) for kind in FILE_KEYS if (given := getattr(config, kind))}
        if not self.inputs.keys() & {"prompts", "demonstrations", "judgements"}:
            raise UsageError(
                "the recipe names no data",
                why="a run of task files learns from files",
                hint="name them: task.judgements=FILE, task.demonstrations=FILE, task.prompts=FILE (and your model: "
                "base.model=FOLDER); or choose another task with task.use",
            )
        for kind, path in self.inputs.items():
            if not path.is_file():
                raise DataError("there is no such file", where=str(path), why=f"task.{kind} names it")
        self.has = frozenset(self.inputs) - {"prompts"}
        self.held_out = ranking_check(self)
        self.prompts_of = ("prompts",) if config.prompts else ("judgements", "demonstrations")
        self.settings = {"task": config.model_dump(exclude={*FILE_KEYS}), "reads": place.reads}

    def items(self, inputs: Inputs, left_out: LeftOut) -> Iterator[tuple[str, Item]]:
        wanted = kinds_read(self.place.reads)
        for kind, path in inputs.items():
            reading, taken = read_items(path, on_reject=left_out.rejecting(kind)), 0
            for item in reading:
                if item.kind in wanted[kind]:
                    taken += 1
                    yield kind, as_chat(item, self.place.config)
                else:
                    left_out.others[kind][item.kind] += 1
            if not taken:
                raise unreadable(kind, reading, wanted[kind], left_out.told(kind))


def kinds_read(judgement: str) -> Mapping[str, Collection[str]]:
    """The kinds of items that each file of a recipe is read for, where the reward model reads such judgements."""
    return {
        "prompts": ("prompt", "demonstration", "ranking", "label", "rating", "sample"),
        "demonstrations": ("demonstration", "conversation"),
        "judgements": (judgement,),
        "texts": ("text",),
    }


def unreadable(kind: str, reading: Reading, wanted: Iterable[str], left_out: str) -> DataError:
    """The error of a file that holds nothing of what it was named for; it names the file's columns."""
    columns = ", ".join(repr(name) for name in reading.fields) or "no columns"
    why = f"it was read as {reading.detected.format} ({reading.detected.why}); its columns are {columns}"
    hint = {
        "judgements": "give rankings or pairs, or choose the reward.loss that reads what these are (binary: labels, "
        "regression: ratings)",
    }.get(kind, f"give rows that hold a {' or a '.join(wanted)}")
    why += f"; {reading.num_rejected:,} rows are no good: {left_out}" if left_out else ""
    return DataError(f"task.{kind} holds no {' or '.join(wanted)}", where=str(reading.path), why=why, hint=hint)


# ---- a project's store -----------------------------------------------------------------------------------------------


class StoreTask(SplitTask):
    """What people said in a project's store, weighed as `accord export` weighs it.

    The facts are read when the task is made: its settings hold their hash, so that new judgements make a new run. A run
    that asks people goes on with what stood when it began: its own answers come into the same store.
    """

    def __init__(self, place: TaskPlace) -> None:
        super().__init__(place)
        self.not_taken: dict[str, int] = {}
        self.admitted: dict[str, Any] = {}
        written = {"task": place.config, "admit": place.admit}  # as JSON has them, to be equal to what was kept
        config = {name: part.model_dump(mode="json") for name, part in written.items()} | {"reads": place.reads}
        kept, asked_of = place.folder / "standing.json", {**config, "store": place.store}
        goes_on = (place.asks or place.frozen) and place.resume and kept.exists()
        known = read_json(kept) if goes_on else {}
        self.standing = known if known.get("asked_of") == asked_of else {"asked_of": asked_of, **self.facts()}
        self.has = frozenset(self.standing["kinds"]) - {"prompts"}
        self.judged = frozenset(self.standing.get("judged", SPLITS))
        self.held_out = ranking_check(self)
        self.settings = {**config, "facts": self.standing["facts"], "not taken": self.standing["not_taken"]}

    def facts(self) -> dict[str, Any]:
        """The kinds of what stands in the store, its hash, what is not taken. Raises DataError where it is empty."""
        kinds = sorted({kind for kind, _ in self.found})
        if not kinds:
            where = self.place.store
            raise DataError("the store holds nothing to learn from", where=where, hint="`accord import FILE`")
        rows = sorted({json.dumps([kind, *to_jsonl([item])], sort_keys=True) for kind, item in self.found})
        facts = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        told = {"not_taken": dict(self.not_taken), "admission": self.admitted}
        return {"kinds": kinds, "judged": self.splits_judged(), "facts": facts, **told}

    def splits_judged(self) -> list[Split]:
        """The splits that judgements fall into: what an earlier run asked was about prompts to train on, all of it."""
        config = self.place.config
        units = zip(self.found, units_of([item for _, item in self.found], config), strict=True)
        judged = [(split_of(unit, config), item) for (kind, item), unit in units if kind == "judgements"]
        found = {split for split, item in judged if may_stand(item, split)}
        # Where users alone have spoken no judge is taught: its prompts are trained on.
        return sorted(found | ({"train"} if judged else set()))

    @functools.cached_property
    def found(self) -> list[tuple[str, Item]]:
        """What there is, read at most once; what is not taken is counted on the way."""
        return list(self._facts(kinds_read(self.place.reads)))

    def items(self, inputs: Inputs, left_out: LeftOut) -> Iterator[tuple[str, Item]]:
        yield from self.found
        for reason, count in self.standing["not_taken"].items():
            left_out.reasons["judgements"][reason] = count

    def prepare(self, inputs: Inputs, folder: Path, log: Log) -> Any:
        made = super().prepare(inputs, folder, log)
        write_json(folder / "standing.json", self.standing)
        return {**made, "admission": self.standing.get("admission", {})}

    def _facts(self, wanted: Mapping[str, Collection[str]]) -> Iterator[tuple[str, Item]]:
        """Judgements, then all other prompts: once each, in an order that a run's own samples do not change.

        What people say of samples that the run asks about is no judgement that stands.
        """
        place, config = self.place.store, self.place.config
        if "://" not in place and not Path(place).is_file():
            raise DataError("there is no store", where=place, hint="`accord init DIR`, then `accord import FILE` there")
        judged: set[str] = set()
        others: dict[str, Item] = {}
        thumbs: list[Item] = []
        with Store.open(place) as store:
            users = read_admission(store, self.place.admit)
            self.admitted = users.to_json() if users.live else {}
            wanted_of: dict[str, Any] = {"simulated": config.simulated, "ai": config.ai, "admission": users}
            view = training_view(store, weights=quality_weights(store), left_out=self.not_taken, **wanted_of)
            items = admitted_items(
                from_facts(store, view), users, scrub=self.place.admit.scrub, left_out=self.not_taken
            )
            for item in (as_chat(item, config) for item in items):
                kinds = [kind for kind in ("demonstrations", "judgements", "texts") if item.kind in wanted[kind]]
                prompt = prompt_key(item.prompt)
                own = any(source is not None and source.name in self.place.asks for source in item.sources)
                if kinds and not own:
                    judged.add(prompt)
                    yield kinds[0], item
                elif own or item.kind in wanted["prompts"]:
                    thumbs += [item] if item.kind == "label" and is_live(item) else []
                    alone = Item(prompt=item.prompt, topic=item.topic)
                    others[prompt] = min(others.get(prompt, alone), alone, key=lambda one: one.topic)
            done = signal_pairs(store, users, self.place.admit.signal_weight, ai=config.ai)
        for pair in (as_chat(pair, config) for pair in [*self._of_thumbs(thumbs), *self._of_signals(done)]):
            judged.add(prompt_key(pair.prompt))
            yield "judgements", pair
        yield from (("prompts", others[prompt]) for prompt in sorted(others.keys() - judged))

    def _of_signals(self, done: Sequence[Item]) -> Iterator[Item]:
        """What users did, where the reward model reads rankings and the recipe gives it a weight."""
        admit, found = self.place.admit, Counter[str]()
        if self.place.reads == "ranking" and admit.signal_weight:
            yield from (scrubbed_item(pair, found) if admit.scrub else pair for pair in done)

    def _of_thumbs(self, thumbs: Sequence[Item]) -> list[Item]:
        """What thumbs say where the reward model reads rankings: a pair where one prompt has one up and one down."""
        weight = self.place.admit.thumb_weight
        if self.place.reads != "ranking" or not thumbs or not weight:
            return []
        made = thumb_pairs(thumbs, weight)
        used = {(prompt_key(pair.prompt), text_key(pair, place)) for pair in made for place in (0, 1)}
        lone = sum((prompt_key(one.prompt), text_key(one)) not in used for one in thumbs)
        if lone:
            self.not_taken["thumbs without an opposite one on the same prompt"] = lone
        return made


# ---- how the reward model fares --------------------------------------------------------------------------------------


def ranking_check(task: PlainTask) -> RewardCheck | None:
    """The check of a reward model on the test split's rankings; None where the task has no rankings."""
    given = given_inputs({f"{split}_judgements": task.judgements(split) for split in ("valid", "test")})
    return (
        RewardCheck(given, ranking_card, "longer_wins") if len(given) == 2 and task.place.reads == "ranking" else None
    )


def ranking_card(inputs: Inputs, scorer: Scorer, rankings: Path, seed: int) -> dict[str, Any]:
    """Accuracy on the rankings of the test split, beside baselines taught by the same rankings."""
    chat = getattr(getattr(scorer, "tokenizer", None), "chat", None)
    valid, test, taught = (
        read_rankings(path, chat) for path in (inputs["valid_judgements"], inputs["test_judgements"], rankings)
    )
    return measure_reward_model(
        scorer, ranked_pairs(test), taught={"tfidf_bradley_terry": taught}, valid=ranked_pairs(valid), seed=seed
    )


#: The tasks that a recipe may use by a plain name.
TASKS: Mapping[str, Callable[[TaskPlace], Task]] = {"files": FilesTask, "store": StoreTask}
