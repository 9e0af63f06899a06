"""Stages read what they declare and nothing else, and run again where any of it changes: whole runs, watched.

A run's stages are those of the real round. Each works in a folder that holds its declared inputs alone, so that
native code too finds nothing else, while an audit hook notes every file and folder that Python opens.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS, WriteRows
from test_loop import TOY, given, reviews  # noqa: F401 - fixtures

from accord.config import Recipe, load_recipe
from accord.files import partial_name, read_json
from accord.loop.cache import Inputs, Runner, Stage
from accord.loop.compare import compare
from accord.loop.round import first_champion, play_round, prepare_home
from accord.loop.run import Where, open_home
from accord.progress import Log, quiet


class Opened:
    """The files and folders that Python opens while a folder is watched."""

    def __init__(self) -> None:
        self.below: Path | None = None
        self.paths: set[Path] = set()
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.below is None or event not in ("open", "os.listdir", "os.scandir", "sqlite3.connect"):
            return
        if isinstance(args[0], str | os.PathLike):
            path = Path(os.path.abspath(args[0]))
            if path.is_relative_to(self.below):
                self.paths.add(path)


@functools.cache
def opened() -> Opened:
    """The one there is: a hook stays for good, so none is made before it is needed."""
    return Opened()


@dataclass
class Alone(Runner):
    """A runner whose stages work in a run's folder that holds their declared inputs and nothing else.

    ``open_to_all`` are places that belong to no stage: the store, downloads.
    """

    open_to_all: tuple[Path, ...] = ()
    stages: list[Stage] = field(default_factory=list)
    undeclared: dict[str, list[Path]] = field(default_factory=dict)

    def run(self, stage: Stage) -> dict[str, Any]:
        self.stages.append(stage)
        return super().run(replace(stage, work=functools.partial(self._alone, stage)))

    def _alone(self, stage: Stage, inputs: Inputs, folder: Path, log: Log) -> Any:
        aside = self.folder.with_name("aside")
        self.folder.rename(aside)
        for path in inputs.values():
            if path.is_relative_to(self.folder):
                copy_to(aside / path.relative_to(self.folder), path)
        watch = opened()
        watch.below, watch.paths = self.folder.parent, set()
        try:
            result = stage.work(inputs, folder, log)
        finally:
            watch.below = None
        aside_of_its_own = partial_name(folder)  # a folder that is written whole or not at all, and its parent
        allowed = (folder, aside_of_its_own, *inputs.values(), *self.open_to_all)
        paths = watch.paths - {self.folder}
        self.undeclared[stage.name] = [p for p in paths if not any(p.is_relative_to(a) for a in allowed)]
        shutil.rmtree(aside / stage.name, ignore_errors=True)
        if folder.exists():
            folder.rename(aside / stage.name)
        shutil.rmtree(self.folder)
        aside.rename(self.folder)
        return result


def copy_to(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def played(recipe: Recipe, folder: Path, from_dir: Path | None = None) -> Alone:
    """A whole run in ``folder / "run"``, each stage alone with its inputs; modules lie in ``folder / "site"``."""
    run, store, cache = folder / "run", folder / "facts" / "accord.db", folder / "downloads"
    store.parent.mkdir()
    run.mkdir()
    free = (store.parent, cache, folder / "site", *([from_dir] if from_dir else []))
    runner = Alone(run, {}, True, quiet, open_to_all=free)
    home = open_home(recipe, run, Where(str(store), cache, from_dir), runner)
    home = prepare_home(home)
    play_round(home, first_champion(home))
    return runner


def started(runner: Alone) -> list[str]:
    """The stages that the cache would carry out now, in their order; their work leaves everything as it stands."""
    said: list[str] = []
    asked = Runner(runner.folder, {}, True, lambda _, text: said.append(text))
    for stage in runner.stages:
        result = read_json(runner.folder / stage.name / "stage.json")["result"]
        asked.run(replace(stage, work=lambda inputs, folder, log, result=result: result))
    return [text.removesuffix(": starting") for text in said if text.endswith(": starting")]


def input_files(stage: Stage) -> Iterator[Path]:
    for path in stage.inputs.values():
        yield from (each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def changes(runner: Alone, code: Iterable[Path]) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Each way to change an input, and the file: a byte more of each file, and a file more in each folder."""
    for path in sorted({path for stage in runner.stages for path in input_files(stage)} | set(code)):
        yield path, functools.partial(path.write_bytes, path.read_bytes() + b"\n")
    for folder in sorted({path for stage in runner.stages for path in stage.inputs.values() if path.is_dir()}):
        yield folder / "new", functools.partial((folder / "new").write_text, "new")


def check_every_input(runner: Alone, code: Mapping[Path, list[str]]) -> None:
    """Change whatever a stage reads, one thing after the other: those that declare it run again, and no other.

    ``code`` are modules of a user's own, each with the stages whose settings name it.
    """
    assert not any(runner.undeclared.values()), runner.undeclared
    assert started(runner) == []
    stamps = {path: path.read_bytes() for path in runner.folder.glob("*/stage.json")}
    for path, change in changes(runner, code):
        before = path.read_bytes() if path.exists() else None
        change()
        readers = code.get(path) or [stage.name for stage in runner.stages if reads(stage, path)]
        assert started(runner) == readers, path
        path.unlink() if before is None else path.write_bytes(before)
        for stamp, content in stamps.items():
            stamp.write_bytes(content)


def reads(stage: Stage, path: Path) -> bool:
    """Whether a stage declares a file, itself or a folder that it lies in; stamps are the runner's own."""
    return path.name != "stage.json" and any(path.is_relative_to(one) for one in stage.inputs.values())


OWN = """
def vowels(prompts, completions):
    return [sum(letter in "aeiou" for letter in text) for text in completions]
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's own, where Python finds it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "own_score.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "own_score", raising=False)  # that of another test
    return tmp_path / "site" / "own_score.py"


@pytest.mark.slow
def test_a_run_from_plain_texts(tmp_path: Path, reviews: Path, own_code: Path) -> None:  # noqa: F811 - the fixture
    """The film demo: it pretrains, asks simulated annotators, has a control, a judge and a card of its own."""
    toy = [one for one in TOY if not one.startswith(("sft.lora", "rl.lora", "reward.trunk", "reward.freeze"))]
    own = [
        *("tokenizer.vocab_size=300", "model={width: 32, layers: 1, heads: 2, kv_heads: 2, ffn: 64}"),
        *("pretrain={epochs: 1, batch_blocks: 4, block_tokens: 64}", "rl.ptx={coef: 0.1, block_tokens: 16}"),
        *("controls={free: {rl: {kl_coef: 0}}}", "rl.rewards=[{function: 'own_score:vowels'}]", "ask.queue=2"),
    ]
    runner = played(load_recipe(None, [*toy, *own]), tmp_path, reviews)
    names = "data tokenizer pretrain sft sample ask rankings reward rl rl_free judge_ratings eval queued queue"
    assert [stage.name for stage in runner.stages] == names.split()
    check_every_input(runner, {own_code: ["rl", "rl_free", "eval"]})


@pytest.mark.slow
def test_a_run_of_files(
    tmp_path: Path,
    given: Path,  # noqa: F811 - the fixture
    reward_folder: Path,
    own_code: Path,
    write_rows: WriteRows,
) -> None:
    """Files and a model of the user's, a scorer asked about chosen prompts, dpo, and judges beside their own."""
    scorer = tmp_path / "scorer"
    shutil.copytree(reward_folder, scorer)
    asked = [
        (f"Question {i} of {topic}?", TEXTS[i], TEXTS[-1 - i], str(topic)) for i in range(4) for topic in range(40)
    ]
    pairs = [{"prompt": p, "chosen": good, "rejected": bad, "topic": topic} for p, good, bad, topic in asked]
    shown = [{"prompt": p, "completion": good, "topic": topic} for p, good, _, topic in asked]
    files = {"judgements": write_rows("pairs.jsonl", pairs), "demonstrations": write_rows("shown.jsonl", shown)}
    toy = [one for one in TOY if not one.startswith(("task.", "ask.who"))]
    judges = f"{{model: {{model: {scorer}}}, own: {{function: 'own_score:vowels'}}}}"
    own = [
        *(f"task.{kind}={path}" for kind, path in files.items()),
        *(f"base.model={given}", "task.measured_prompts=6", "optimise=dpo", "dpo.groups_per_step=8", "ask.queue=0"),
        *("ask.who=scorer", f"ask.scorer={{ensemble: [{scorer}]}}", f"eval.judges={judges}"),
        *("ask.choose=uncertain", "ask.pool=2"),
    ]
    runner = played(load_recipe(None, [*toy, *own]), tmp_path)
    names = "data sft candidates sample ask rankings reward dpo judge_second_reward_model eval"
    assert [stage.name for stage in runner.stages] == names.split()
    check_every_input(runner, {own_code: ["eval"]})


@pytest.mark.slow
def test_a_comparison(
    tmp_path: Path,
    reviews: Path,  # noqa: F811 - the fixture
    given: Path,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stages that a comparison has besides those of a run: samples labelled by the reward model, each method."""
    (tmp_path / "compare" / "facts").mkdir(parents=True)
    free, made = (tmp_path / "compare" / "facts", tmp_path / "compare" / "downloads", reviews), []

    def runner(folder: Path, *rest: Any) -> Alone:
        folder.mkdir()
        made.append(Alone(folder, *rest, open_to_all=free))
        return made[0]

    monkeypatch.setattr(sys.modules["accord.loop.compare"], "Runner", runner)  # the name is that of the function too
    toy = ["sft.epochs=8", "sft.lora.rank=0", "sft.optim.lr=0.01", "rl.max_new_tokens=48", "dpo.groups_per_step=3"]
    methods = "{PPO: {rl: {iterations: 1}}, DPO: {dpo: {epochs: 1}}, best-of-2: {best_of: 2}}"
    own = ["compare.labelled_prompts=6", "compare.seeds=[3]", f"compare.methods={methods}", f"base.model={given}"]
    place = {"output_dir": tmp_path / "compare", "store": str(free[0] / "accord.db"), "from_dir": reviews}
    compare(load_recipe(None, [*TOY, *toy, *own]), **place)
    names = "data sft sample ask rankings reward PPO labelled DPO judge_ratings eval"
    assert [stage.name for stage in made[0].stages] == names.split()
    check_every_input(made[0], {})
