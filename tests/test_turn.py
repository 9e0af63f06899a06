"""`accord round` on a tiny model: promoted, refused, gone on with after a kill, rolled back."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from killed import carry_out
from test_admission import Shop
from typer.testing import CliRunner

from accord.cli.main import app
from accord.errors import DataError
from accord.records import Annotator, Completion, Prompt, Ranking, Source
from accord.serve.aliases import PROD, AliasFile, ServedModel
from accord.store import Store

ROUND: dict[str, Any] = {
    "task": {"use": "store", "split_by": "prompt", "valid_share": 0.15, "test_share": 0.25, "measured_prompts": 60},
    "sample": {"max_new_tokens": 10},
    "reward": {"epochs": 6, "max_tokens": 40, "precision": "fp32", "dropout": 0.0, "optim": {"lr": 3e-3}},
    "rl": {
        "iterations": 8,
        "prompts_per_iteration": 32,
        "max_new_tokens": 10,
        "ppo_epochs": 2,
        "minibatches": 2,
        "kl_coef": 0.02,
        "eval_every": 4,
        "precision": "fp32",
        "actor": {"lr": 3e-3},
        "critic": {"lr": 3e-3},
    },
    "eval": {
        "judges": {"taste": {"function": "test_turn:likes_a"}},
        "samples_per_prompt": 4,
        "best_of": 2,
        "bootstrap": 400,
        "curve_samples": 1,
        "length_low": 0.3,
        "length_high": 3.0,
        "nll_excess": 50.0,
        "distinct_share": 0.0,
    },
    "gates": {"attacks": False, "repetition_rise": 1.0, "over_optimised": 1.0, "kl_budget": 60.0, "held_out_least": 10},
}


def share_of_a(text: str) -> float:
    """The hidden taste: letters a among the letters."""
    letters = [one for one in text.lower() if one.isalpha()]
    return sum(one == "a" for one in letters) / max(1, len(letters))


def likes_a(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A judge that no user has taught."""
    return [share_of_a(text) for text in completions]


def text_of(draw: random.Random) -> str:
    return " " + "".join(draw.choices("abcd", k=draw.randint(2, 6)))


def older_judgements(store: Store, count: int, taste: Callable[[str], float] = share_of_a) -> None:
    """What people ranked before anything was served."""
    draw, ada, source = (
        random.Random(5),
        Annotator(name="Ada", annotator_kind="human"),
        Source(origin="policy", name="old"),
    )
    facts: list[Any] = [ada, source]
    for n in range(count):
        prompt = Prompt(text=f"He wrote {n}:")
        texts = sorted({text_of(draw), text_of(draw), text_of(draw)}, key=taste, reverse=True)
        if len({taste(text) for text in texts}) < 2:
            continue
        made = [Completion(prompt_id=prompt.id, text=text, source=source) for text in texts]
        values = [taste(text) for text in texts]
        ranks = tuple(1 + sum(other > value for other in values) for value in values)
        ids = tuple(one.id for one in made)
        facts += [prompt, *made, Ranking(annotator_id=ada.id, prompt_id=prompt.id, completion_ids=ids, ranks=ranks)]
    store.add(facts)


def users_say(shop: Shop, count: int, taste: Callable[[str], float] = share_of_a, user: str = "web/u{}") -> None:
    """Users compare two answers each, at a human pace."""
    draw = random.Random(9)
    for n in range(count):
        prompt, who = f"Say {draw.randrange(10**6)} {n}:", user.format(n % 12)
        texts = [text_of(draw), text_of(draw)]
        tokens = [shop.served(prompt, text, who) for text in texts]
        values = [taste(text) for text in texts]
        if values[0] != values[1]:
            ranks = [1, 2] if values[0] > values[1] else [2, 1]
            shop.say(tokens[0], "ranking", ranks, others=[tokens[1]])


class Bench:
    """A project with a tiny model, older judgements, and users."""

    def __init__(self, folder: Path, model: Path, **changes: Any) -> None:
        self.folder, self.runner = folder, CliRunner()
        assert self.runner.invoke(app, ["init", str(folder)], prog_name="accord").exit_code == 0
        recipe = {**ROUND, **changes, "base": {"model": str(model)}, "store": "accord.db"}
        (folder / "accord.yaml").write_text(yaml.safe_dump(recipe))

    def turn(self, *words: str) -> tuple[int, dict[str, Any]]:
        done = self.runner.invoke(app, ["round", str(self.folder), *words, "--json"], prog_name="accord")
        assert done.exit_code in (0, 7), done.output
        return done.exit_code, json.loads(done.stdout)

    @property
    def aliases(self) -> AliasFile:
        return AliasFile(self.folder / "rounds/models")


@pytest.fixture
def bench(tmp_path: Path, letters_folder: Path) -> Bench:
    made = Bench(tmp_path / "shop", letters_folder)
    with Store.open(made.folder / "accord.db") as store:
        older_judgements(store, 160)
        users_say(Shop(store), 60)
    return made


@pytest.mark.slow
def test_a_better_candidate_is_promoted_and_taken_back(bench: Bench, letters_folder: Path) -> None:
    code, told = bench.turn()
    assert (code, told["state"]) == (0, "promoted"), "\n".join(told["sentences"])
    print("\n".join(told["sentences"]))
    assert told["admission"]["admitted"] > 30
    by_name = {one["name"]: one for one in told["found"]}
    assert by_name["win rate against prod"]["low"] > 0.5 and by_name["people's pairs held out"]["clusters"] >= 10
    page = unescape((bench.folder / "rounds/0001/report.html").read_text())
    assert all(f'<th scope="row">{name}</th>' in page for name in by_name)
    prod = bench.aliases.get(PROD)
    assert prod is not None and prod.folder == bench.folder / "rounds/0001/model"
    assert bench.turn()[1]["state"] == "nothing new" and not (bench.folder / "rounds/0002").exists()
    done = bench.runner.invoke(app, ["rollback", str(bench.folder), "--reason", "too many"], prog_name="accord")
    assert done.exit_code == 0 and str(letters_folder) in done.stdout.replace("\n", "")
    assert [(row["alias"], row["why"]) for row in bench.aliases.history()][-1] == (PROD, "too many")


def test_gates_cannot_be_moved_once_the_data_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.loop import turn

    def stop(*args: Any) -> None:
        raise DataError("stopped here")

    monkeypatch.setattr(turn, "fit_reward", stop)
    assert bench.runner.invoke(app, ["round", str(bench.folder)], prog_name="accord").exit_code == 3
    done = bench.runner.invoke(app, ["round", str(bench.folder), "gates.win_delta=0.4"], prog_name="accord")
    assert done.exit_code == 2 and "gates.win_delta of round 1 were written before its data was seen" in done.output


def test_nothing_is_learnt_from_files(tmp_path: Path, letters_folder: Path) -> None:
    made = Bench(tmp_path / "shop", letters_folder, task={"use": "files"})
    done = made.runner.invoke(app, ["round", str(made.folder)], prog_name="accord")
    assert done.exit_code == 2 and "learns from the project's store" in done.output


def test_aliases_move_in_one_step_and_tell_their_history(tmp_path: Path) -> None:
    aliases = AliasFile(tmp_path / "models")
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    one, two = (ServedModel(folder, folder.name) for folder in folders)
    with pytest.raises(DataError, match="no earlier model"):
        aliases.roll_back("x")
    aliases.move({PROD: one}, "first")
    aliases.move({PROD: one}, "nothing moves")
    aliases.move({PROD: two, "canary": ServedModel(folders[0], "one", 0.1)}, "second")
    assert [row["why"] for row in aliases.history()] == ["first", "second", "second"]
    assert aliases.roll_back("worse") == one and aliases.all() == {PROD: one}
    assert aliases.roll_back("back again") == two
    folders[0].joinpath("config.json").unlink()
    with pytest.raises(DataError, match="is gone"):
        aliases.roll_back("x")


def steps_of(rounds: Path) -> int:
    """How many stages and records stand, and where the alias is."""
    names = ("stage.json", "turn.json", "summary.json", "verdict.json")
    found = sum(1 for path in rounds.rglob("*.json") if path.name in names)
    # Every other one: each kill costs a start.
    return found // 2 + len(AliasFile(rounds / "models").history() if (rounds / "models/aliases.json").exists() else [])


#: As little work as a round can do, and gates that let anything pass: what is tested is that it goes on.
QUICK: dict[str, Any] = {
    "reward": {**ROUND["reward"], "epochs": 1},
    "rl": {**ROUND["rl"], "iterations": 2, "prompts_per_iteration": 8, "eval_every": 1},
    "eval": {**ROUND["eval"], "samples_per_prompt": 1, "bootstrap": 100, "gate_overrule": True},
    "gates": {
        **ROUND["gates"],
        "win_delta": 0.49,
        "shadow_delta": 0.49,
        "held_out_floor": 0.0,
        "length_controlled": False,
    },
}


@pytest.mark.slow
def test_a_round_that_is_killed_anywhere_goes_on(
    letters_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each step, it comes to the very same as one that nobody kills."""
    bench = Bench(tmp_path / "shop", letters_folder, **QUICK)
    with Store.open(bench.folder / "accord.db") as store:
        older_judgements(store, 80)
        users_say(Shop(store), 40)
    again = tmp_path / "there/shop"
    shutil.copytree(bench.folder, again)
    (again / "accord.yaml").write_text((bench.folder / "accord.yaml").read_text())
    log = tmp_path / "log.txt"
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
    code, kills = carry_out(["round"], bench.folder, log, lambda: steps_of(bench.folder / "rounds"))
    assert code == 0 and kills > 4, log.read_text()
    left_alone, _ = carry_out(["round"], again, log)
    assert left_alone == 0, log.read_text()
    told = [json.loads((home / "rounds/0001/turn.json").read_text()) for home in (bench.folder, again)]
    assert told[0]["state"] == told[1]["state"] == "promoted" and told[0]["found"] == told[1]["found"]
    assert told[0]["candidate"]["version"] == told[1]["candidate"]["version"]
    assert len(bench.aliases.history()) == 3  # reference and prod, and one promotion
