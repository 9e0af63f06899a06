"""What a run would do, found out without doing it: stages, counts, costs, and prompts as the model will read them.

The stages are those that the round itself would carry out (`accord.loop.round`), handed to a `Planner` in place of a
runner; the task's files are derived into a folder that is thrown away. No weights are loaded, and nothing is written.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from accord.config import Recipe, is_fitted
from accord.errors import DataError, UsageError
from accord.files import numbered, read_json
from accord.formats import read_items
from accord.formats.stage_rows import read_judged, read_lessons, read_prompts, read_rankings
from accord.loop.asking import JUDGEMENTS, ask_stage, reads_of
from accord.loop.cache import RUNNING, STAMP, Runner, Stage
from accord.loop.costs import UNSURE, Amounts, Estimator, ModelSize, measure_products
from accord.loop.facts import fitted_recipe
from accord.loop.files_task import SPLITS, TASKS
from accord.loop.judging import judged_stages
from accord.loop.kept import keeps_share
from accord.loop.layout import iteration_lines, layout_lines
from accord.loop.round import (
    WITHOUT_SFT,
    Champion,
    begin,
    candidate_of,
    collect,
    eval_stage,
    first_champion,
    fit_judges,
    fit_reward,
    optimise_controls,
    queue,
    sample_prompts,
)
from accord.loop.run import Where, check_run, open_home
from accord.loop.stages import Home, data_stage, round_folder, sft_stage, start_of
from accord.loop.task import Split
from accord.models.folder import shape_of
from accord.models.placement import Placement
from accord.models.weights import count_weights
from accord.progress import quiet
from accord.records import JudgedGroup, RankedGroup
from accord.stats import WORTH_SEEING, pairs_needed
from accord.text.batches import Example
from accord.text.tokenizer import Tokenizer, load_tokenizer
from accord.train.sft import lesson_example

KINDS = ("prompts", "demonstrations", "judgements", "texts")
SHOWN_PROMPTS = 3
LARGE_TEST_SHARE = 0.3  # of the prompts: with a fifth more to choose on, half are left to train on
DONE, BEGUN, TO_DO, LEFT_OUT = "done", "begun", "to do", "left out"


@dataclass(frozen=True)
class PlannedStage:
    """One stage: the round, what is to become of it, and why; and what it costs where that is known.

    ``state`` is done, begun (it goes on from where it stopped), to do, or left out.
    """

    round: int
    name: str
    state: str
    why: str = ""
    tokens: int | None = None
    seconds: float | None = None

    @property
    def is_left(self) -> bool:
        """Whether it is still to be done, or a part of it."""
        return self.state in (TO_DO, BEGUN)


@dataclass(frozen=True)
class PromptLengths:
    """Lengths of all prompts in tokens, and how many leave too little room for an ``answer`` at its longest.

    ``too_long``: by the name of a limit, the limit and the number of prompts.
    """

    count: int
    mean: float
    longest: int
    answer: int
    too_long: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class ReadText:
    """A text as the model reads it: its pieces in order, and which of them count in the loss."""

    tokens: int
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class CostEstimate:
    """What is left to do, in seconds (``low`` to ``high``) and bytes; ``basis`` says where the numbers come from."""

    seconds: float
    low: float
    high: float
    memory: float
    memory_stage: str
    disk: float
    disk_free: float
    tokens: int
    basis: str


@dataclass(frozen=True)
class RunPlan:
    """The whole plan. ``counts``: rows by kind and split, empty before the task can say; ``notes``: what to know.

    What hangs on the model is empty before its folder is there. ``layout``: where the work of several processes lies.
    """

    recipe: Recipe
    folder: Path
    counts: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, Any]
    stages: tuple[PlannedStage, ...]
    notes: tuple[str, ...]
    model: Path | None = None
    size: ModelSize | None = None
    lengths: PromptLengths | None = None
    prompts: tuple[ReadText, ...] = ()
    demonstration: ReadText | None = None
    cost: CostEstimate | None = None
    layout: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not any(stage.is_left for stage in self.stages)


def plan_run(
    recipe: Recipe,
    *,
    output_dir: Path,
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
) -> RunPlan:
    """Return what a run of the recipe in ``output_dir`` would do now; the arguments are those of `accord.loop.run.run`.

    Raises:
        UsageError, DataError: What the run would refuse.
    """
    check_run(recipe, output_dir=output_dir, store=store, from_dir=from_dir)
    home, planner = _planned_home(recipe, output_dir, Where(store, None, from_dir), resume)
    with task_files(home) as files:
        home = with_values(home, files)
        plan_stages(home, planner)
        return _put_together(home, planner.noted, files)


def planned_recipe(
    recipe: Recipe,
    *,
    output_dir: Path,
    store: str | None = None,
    from_dir: Path | None = None,
    resume: bool = True,
) -> Recipe:
    """The recipe with the values that a run would fit, as far as its files and its model are there already."""
    try:
        home, _ = _planned_home(recipe, output_dir, Where(store, None, from_dir), resume)
        with task_files(home) as files:
            return with_values(home, files).recipe
    except (UsageError, DataError):  # a recipe that cannot be run yet can be looked at
        return recipe


def _planned_home(recipe: Recipe, output_dir: Path, where: Where, resume: bool) -> tuple[Home, Planner]:
    """Where the run would live, and what plans it."""
    folder, store, from_dir = output_dir, where.store, where.from_dir
    if recipe.compare.methods:  # all seeds alike: the first one's stages, and where they keep what they share
        folder = output_dir / f"seed_{recipe.compare.seeds[0]}"
        where = Where(store or str(output_dir / "accord.db"), output_dir / "downloads", from_dir)
    planner = Planner(folder, {}, resume, quiet)
    return open_home(recipe, folder, where, planner), planner


def with_values(home: Home, files: TaskFiles) -> Home:
    """The home with values that fit the model and the task's files, where both are there."""
    model = start_of(home).absolute()
    if not (files.are_known and (model / "config.json").is_file()):
        return home
    return replace(home, recipe=fitted_recipe(home.recipe, model, files.path))


# ---- stages ----------------------------------------------------------------------------------------------------------


@dataclass
class Planner(Runner):
    """A runner that carries nothing out: it notes what would become of each stage.

    A stage after one that is to be done is to be done too: what it reads is not there yet.
    """

    noted: list[PlannedStage] = field(default_factory=list)
    number: int = 1

    def run(self, stage: Stage) -> dict[str, Any]:
        self.note(stage.name, *self._become(stage))
        return {}

    def note(self, name: str, state: str, why: str = "") -> None:
        """Note a stage of this round."""
        self.noted.append(PlannedStage(self.number, name, state, why))

    def later(self, number: int, root: Path) -> Planner:
        """Return the planner of a later round, which goes on with the same notes."""
        reuse = [root, *(round_folder(other, number) for other in self.reuse_from)]
        return replace(self, folder=round_folder(root, number), number=number, reuse_from=reuse)

    def _become(self, stage: Stage) -> tuple[str, str]:
        folder = self.folder / stage.name
        waits = next((one for one in self.noted if one.is_left), None)
        if waits is not None:
            stamped = self.resume and (folder / STAMP).exists()
            return TO_DO, f"unless {waits.name} comes out as before" if stamped else ""
        if not self.resume:
            return TO_DO, ""
        missing = [path for path in stage.inputs.values() if not path.exists()]
        if not missing and (found := self.find(stage.name, stage.identity())) is not None:
            return DONE, "" if found[0] == self.folder else f"taken over from {found[0]}"
        if (folder / RUNNING).exists() or (folder / "checkpoints").exists():
            steps = [path.name for path in numbered(folder / "checkpoints").values()]
            return BEGUN, f"goes on from {steps[-1]}" if steps else "goes on"
        return TO_DO, "again: its settings or what it reads have changed" if (folder / STAMP).exists() else ""


def plan_stages(home: Home, planner: Planner) -> None:
    """Let the home's planner note every stage of every round."""
    begin(home)
    champion = first_champion(home)
    if sft_stage(home) is None:
        planner.note("sft", LEFT_OUT, WITHOUT_SFT)
    if home.recipe.compare.methods:
        _plan_methods(home, planner, champion)
        return
    for number in range(1, home.recipe.rounds + 1):
        runner = planner if number == 1 else planner.later(number, home.root)
        champion = _plan_round(replace(home, runner=runner, number=number), runner, champion)


def _plan_methods(home: Home, planner: Planner, champion: Champion) -> None:
    """Note what a comparison does on one of its seeds."""
    samples = sample_prompts(home, champion.policy, home.task.prompts("train"))
    fit_reward(home, collect(home, _plan_asking(home, planner, champion, samples)))
    for name in (*home.recipe.compare.methods, "eval"):
        done = planner.resume and (home.path(name) / STAMP).exists() and not any(one.is_left for one in planner.noted)
        planner.note(name, DONE if done else TO_DO, "unless its settings have changed" if done else "")


def _plan_round(home: Home, planner: Planner, champion: Champion) -> Champion:
    """Note the stages of a round, and return the champion after it: as it was found, or the candidate for now."""
    samples = sample_prompts(home, champion.policy, home.task.prompts("train"))
    judgements = collect(home, _plan_asking(home, planner, champion, samples))
    reward = fit_reward(home, judgements)
    candidate = candidate_of(home, champion, reward, judgements)
    controls = optimise_controls(home, champion, reward, judgements)
    fit_judges(home)
    home.do(eval_stage(home, champion, candidate, controls, reward))
    for stage in judged_stages(home, champion.name):
        home.do(stage)
    after = _champion_after(home, champion)
    queue(home, home.path("model") if home.number == 1 else after.policy)  # what the first round chose is published
    return after


def _plan_asking(home: Home, planner: Planner, champion: Champion, samples: Path | None) -> Path | None:
    stage = None if samples is None else ask_stage(home, samples, champion.name)
    if stage is None:
        return None
    home.do(stage)
    if home.recipe.ask.who == "people" and planner.noted[-1].is_left:
        planner.noted[-1] = replace(planner.noted[-1], why=f"waits for people: up to {_answers(home.recipe):,} answers")
    return home.path(f"ask/{JUDGEMENTS}")


def _answers(recipe: Recipe) -> int:
    """How many answers a round asks people for; fewer where samples are alike."""
    tasks = math.comb(recipe.sample.samples_per_prompt, 2) if recipe.ask.kind == "pair" else 1
    return recipe.ask.prompts * tasks * recipe.ask.overlap


def _champion_after(home: Home, champion: Champion) -> Champion:
    summary = home.path("summary.json")
    told = read_json(summary)["champion"] if summary.exists() else {"promoted": True}
    return replace(champion, policy=home.path("model"), name=f"round_{home.number}") if told["promoted"] else champion


# ---- the task's files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskFiles:
    """Where the rows of each kind and split stand now, if anywhere, and what was left out of them."""

    home: Home
    aside: Path | None = None
    left_out: Mapping[str, Any] = field(default_factory=dict)
    are_known: bool = True

    def path(self, kind: str, split: Split) -> Path | None:
        """The file of a kind and split; None where the task has none, or it is not there."""
        given: Path | None = getattr(self.home.task, kind)(split)
        found = given if self.aside is None or given is None else self.aside / given.name
        return found if self.are_known and found is not None and found.is_file() else None

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by kind and split, of the kinds that there are."""
        found: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        for kind, split in itertools.product(KINDS, SPLITS):
            if path := self.path(kind, split):
                found[kind][split] = _count(path)
        return {kind: of for kind, of in found.items() if any(of.values())}


def _count(path: Path) -> int:
    """Rows of a file; one without any has no format either."""
    return sum(1 for _ in read_items(path)) if path.stat().st_size else 0


@contextlib.contextmanager
def task_files(home: Home) -> Iterator[TaskFiles]:
    """The task's files: those of the run where its first stage is done, else derived into a folder thrown away.

    A task that does not say that it is ``light`` may download for minutes as it prepares: its files are not known
    before the run.
    """
    stage = data_stage(home)
    there = all(path.exists() for path in stage.inputs.values())
    if there and home.runner.resume and (found := home.runner.find(stage.name, stage.identity())) is not None:
        yield TaskFiles(home, left_out=found[1]["result"].get("left_out", {}))
    elif not getattr(home.task, "light", False):
        yield TaskFiles(home, are_known=False)
    else:
        with tempfile.TemporaryDirectory(prefix="accord-plan-") as aside:
            told = home.task.prepare(home.task.inputs, Path(aside), quiet)
            yield TaskFiles(home, Path(aside), told.get("left_out", {}))


# ---- lengths, texts and costs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preview:
    """What the folder of the model and the task's files say already; ``tokenizer`` is that of ``model``."""

    home: Home
    files: TaskFiles
    model: Path
    tokenizer: Tokenizer

    @cached_property
    def size(self) -> ModelSize:
        shape = shape_of(self.model)
        return ModelSize(count_weights(self.model), shape.width, shape.num_layers, shape.max_positions)

    @cached_property
    def prompts(self) -> list[str]:
        """All prompts as the model reads them, those of training first."""
        splits: tuple[Split, ...] = ("train", "valid", "test")
        paths = [path for split in splits if (path := self.files.path("prompts", split))]
        return [row.text for path in paths for row in read_prompts(path, self.tokenizer.chat)]

    @cached_property
    def lengths(self) -> PromptLengths | None:
        """How long they are, and which leave no room for an answer."""
        if not self.prompts:
            return None
        recipe, lengths = self.home.recipe, [len(ids) for ids in self.tokenizer.encode_prompts(self.prompts)]
        new = max(recipe.sample.max_new_tokens, recipe.rl.max_new_tokens)
        limits = {"the model's positions": self.size.positions, "reward.max_tokens": recipe.reward.max_tokens}
        over = {name: (limit, sum(length + new > limit for length in lengths)) for name, limit in limits.items()}
        return PromptLengths(len(lengths), sum(lengths) / len(lengths), max(lengths), new, over)

    def shown(self) -> tuple[ReadText, ...]:
        """The first prompts."""
        texts = self.prompts[:SHOWN_PROMPTS]
        return tuple(ReadText(len(self.tokenizer.encode_prompt(text)), ((text, False),)) for text in texts)

    def demonstration(self) -> ReadText | None:
        """The first demonstration that trains, cut where the loss mask changes."""
        if not self._lessons:
            return None
        example = self._lessons[0]
        mask = (True,) * len(example.completion) if example.mask is None else example.mask
        tokens = zip((*example.prompt, *example.completion), (*(False for _ in example.prompt), *mask), strict=True)
        pieces = itertools.groupby(tokens, key=itemgetter(1))
        read = tuple((self.tokenizer.spelled(token for token, _ in some), counts) for counts, some in pieces)
        return ReadText(len(example), read)

    @cached_property
    def _lessons(self) -> list[Example]:
        path = self.files.path("demonstrations", "train")
        return [] if path is None else [lesson_example(self.tokenizer, lesson) for lesson in read_lessons(path)]

    def amounts(self, counts: Mapping[str, Mapping[str, int]]) -> Amounts:
        """How much there is to work on."""
        prompts = counts.get("prompts", {})
        return Amounts(
            prompt=self.lengths.mean if self.lengths else 0.0,
            train_prompts=prompts.get("train", 0),
            valid_prompts=prompts.get("valid", 0),
            test_prompts=prompts.get("test", 0),
            demonstrations=sum(map(len, self._lessons)),
            judged=self._judged_tokens("train"),
            judge_judged=self._judged_tokens("judge"),
        )

    def _judged_tokens(self, split: Split) -> int:
        """Tokens of all judged completions of a split, each with its prompt."""
        path = self.files.path("judgements", split)
        if path is None:
            return 0
        groups = _JUDGED[reads_of(self.home.recipe)](path, self.tokenizer.chat)
        texts = [group.prompt + text for group in groups for text in group.completions]
        return sum(map(len, self.tokenizer.encode_prompts(texts)))


_JUDGED: Mapping[str, Callable[[Path, Any], Sequence[RankedGroup | JudgedGroup]]] = {
    "ranking": read_rankings,
    "label": lambda path, chat: read_judged(path, "label", chat),
    "rating": lambda path, chat: read_judged(path, "rating", chat),
}


def preview(home: Home, files: TaskFiles) -> Preview | None:
    """What can be read of the model that all starts from; None before it is there."""
    start = start_of(home).absolute()
    return Preview(home, files, start, load_tokenizer(start)) if (start / "config.json").is_file() else None


def _put_together(home: Home, stages: Sequence[PlannedStage], files: TaskFiles) -> RunPlan:
    """The plan, with all that the model's folder and the task's files say already."""
    counts, seen = files.counts(), preview(home, files)
    plan = RunPlan(home.recipe, home.root, counts, files.left_out, tuple(stages), tuple(notes(home, counts, seen)))
    plan = replace(plan, layout=tuple(layout_lines(home.recipe, seen.size if seen else None)))
    if seen is None:
        return plan
    plan = replace(plan, model=seen.model, size=seen.size, lengths=seen.lengths)
    plan = replace(plan, prompts=seen.shown(), demonstration=seen.demonstration())
    if seen.lengths is None:
        return plan
    costed, cost = cost_of(home, stages, Estimator(home.recipe, seen.size, seen.amounts(counts)))
    seconds = next((one.seconds for one in costed if one.name == "rl"), None)
    layout = (*plan.layout, *iteration_lines(home.recipe, seconds))
    return replace(plan, stages=costed, cost=cost, layout=layout)


def cost_of(
    home: Home, stages: Sequence[PlannedStage], estimator: Estimator
) -> tuple[tuple[PlannedStage, ...], CostEstimate]:
    """Put tokens and seconds to the stages that are left, and sum them up."""
    placement = Placement.of(home.recipe.rl)
    rate, size = measure_products(placement), estimator.size
    left = [(one, estimator.work(one.name, one.round)) for one in stages if one.is_left]
    seconds = {one: work.seconds(size, rate) for one, work in left if work.tokens}
    tokens = {one: work.tokens for one, work in left}
    costed = tuple(replace(one, tokens=tokens[one], seconds=seconds[one]) if one in seconds else one for one in stages)
    memory, stage = max(((work.memory, one.name) for one, work in left), default=(0.0, ""))
    published = home.recipe.rounds * estimator.work("model", 1).disk if left else 0.0
    basis = (
        f"{size.weights / 1e6:,.1f} million weights times tokens, each completion at its full length; products at "
        f"{rate / 1e9:,.0f} GFLOP/s ({placement.facts()['precision']}) were measured just now, of which stages reach a "
        "quarter to a half"
    )
    return costed, CostEstimate(
        seconds=sum(seconds.values()),
        low=sum(seconds.values()) / UNSURE,
        high=sum(seconds.values()) * UNSURE,
        memory=memory,
        memory_stage=stage,
        disk=sum(work.disk for _, work in left) + published,
        disk_free=float(shutil.disk_usage(_there(home.root)).free),
        tokens=sum(tokens.values()),
        basis=basis,
    )


def _there(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def too_few_measured(recipe: Recipe, prompts: Mapping[str, int]) -> Iterator[str]:
    """What to know where so few prompts are measured on that a good win rate would not show."""
    test, needed = prompts.get("test", 0), pairs_needed(WORTH_SEEING)
    if not 0 < test < needed:
        return
    more = min(round(LARGE_TEST_SHARE * sum(prompts.values())), recipe.task.measured_prompts)
    told = (
        f"; task.test_share={LARGE_TEST_SHARE} would leave about {more}"
        if more > test and recipe.task.use in TASKS
        else ""
    )
    yield f"{test} test prompts are too few to be sure of a win rate of {WORTH_SEEING}, which takes {needed}{told}"


def notes(home: Home, counts: Mapping[str, Mapping[str, int]], seen: Preview | None) -> Iterator[str]:
    """What somebody should know before the run begins."""
    recipe, train = home.recipe, counts.get("prompts", {}).get("train", 0)
    if not counts:
        yield f"counts and costs are known once the task {recipe.task.use} has prepared its data"
    if seen is None:
        fitted = "values that fit, " if is_fitted(recipe) else ""
        yield f"{fitted}lengths and costs are known once the model is there"
    if recipe.ask.who != "nobody" and 0 < train < recipe.ask.prompts:
        yield f"ask.prompts {recipe.ask.prompts} is above {train} train prompts: some are asked again, with new samples"
    yield from too_few_measured(recipe, counts.get("prompts", {}))
    if seen is not None and seen.tokenizer.chat and not recipe.task.chat and recipe.task.use in TASKS:
        yield "the model is a chat model: prompts of plain text are read without its template, unless task.chat is true"
    if recipe.ask.scorer is not None and recipe.ask.scorer.chat is not None:
        model, k = recipe.ask.scorer.chat.model, recipe.sample.samples_per_prompt
        times = recipe.ask.prompts * k * (k - 1)
        yield f"{model} is asked up to {times:,} times a round: about every two samples, in both orders"
    if told := [key for key, why in recipe.origins().items() if why.startswith("fitted")]:
        yield f"{len(told)} values are fitted to the model and the data: --show-recipe in place of --dry-run says why"
    if keeps_share(recipe, home.task):
        share = f"{recipe.task.judge_share:.0%} of the prompts that are asked about"
        yield f"{share} teach the judge alone, as nobody else judges (eval.judges)"
