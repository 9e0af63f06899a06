"""Values that fit model and data: by hand for made-up ones, never above what somebody gave, each with a reason."""

from __future__ import annotations

import json
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows
from test_files_task import own_rows, run_files

from accord.config import (
    FITTED,
    DataFacts,
    MachineFacts,
    ModelFacts,
    OptimConfig,
    Recipe,
    RlConfig,
    annotated_yaml,
    fit,
    is_fitted,
    load_recipe,
    read_layer,
)
from accord.errors import UsageError
from accord.loop.facts import check_adapters, data_facts, fitted_recipe, model_facts, percentile
from accord.loop.run import write_run_files
from accord.text.tokenizer import load_tokenizer

SMOLLM2 = ModelFacts(weights=134_515_008, width=576, layers=30, context=8192, vocabulary=49152)
MISTRAL = ModelFacts(weights=7_241_732_096, width=4096, layers=32, context=32768, vocabulary=32000)
GPT2 = ModelFacts(weights=124_439_808, width=768, layers=12, context=1024, vocabulary=50257)
TOY = ModelFacts(weights=12_000, width=16, layers=2, context=640, vocabulary=320)
FOREIGN = ModelFacts(weights=160_000_000, width=768, layers=12, context=2048, vocabulary=50304, decoder=False)
# Anthropic's harmless test file, as SmolLM2 reads it.
PAIRS = DataFacts(
    prompts=1403, judgements=1405, measured=200, usual_prompt=119, long_prompt=557, longest_prompt=880,
    long_completion=99, long_judgement=665,
)  # fmt: skip
FEW = DataFacts(
    prompts=72, judgements=100, demonstrations=300, measured=18, usual_prompt=20, long_prompt=40, longest_prompt=41,
    long_completion=30, long_judgement=80, usual_demonstration=50, long_demonstration=130,
)  # fmt: skip
CPU, GPU = MachineFacts(24 * 2**30), MachineFacts(80 * 2**30, gpu=True)
OWN = ["base.model=given", "task.judgements=pairs.jsonl"]


def fitted(model: ModelFacts, data: DataFacts, machine: MachineFacts = CPU, *overrides: str) -> Recipe:
    return fit(load_recipe(None, [*OWN, *overrides]), model, data, machine)


def value(recipe: Recipe, key: str) -> Any:
    return reduce(getattr, key.split("."), recipe)


def values(recipe: Recipe, expected: dict[str, Any]) -> dict[str, Any]:
    return {key: value(recipe, key) for key in expected}


@pytest.mark.parametrize(
    ("model", "data", "machine", "expected"),
    [
        (
            SMOLLM2, PAIRS, CPU,
            {
                "rl.lora.rank": 16, "rl.lora.critic_rank": 16, "rl.actor.lr": 4e-4, "rl.critic.lr": 1e-3,
                "rl.max_new_tokens": 112,  # the next 16 above 99
                "sample.max_new_tokens": 112, "rl.temperature": 0.8,
                "rl.prompts_per_iteration": 16,  # 2048 / (119 + 112) = 8.9, 16 at least
                "rl.iterations": 16,  # 64 steps of 2 * 2
                "rl.ppo_epochs": 2, "rl.minibatches": 2, "rl.eval_every": 8,
                # 24 GB / 8 / (12 * 49152 + 136 * 30 * 576 = 2,939,904 B) = 1,095
                "rl.micro_batch_tokens": 1024, "reward.micro_batch_tokens": 1024,
                "reward.max_tokens": 672,  # 557 + 112 = 669 is above 665
                "reward.trunk_layers": 16, "reward.freeze_embeddings": True, "reward.lora.rank": 0,
                "reward.optim.lr": 1e-4, "reward.epochs": 1,  # 176 steps
                "dpo.optim.lr": 5e-5, "dpo.max_tokens": 672,
                "eval.samples_per_prompt": 1, "eval.curve_samples": 2,  # of 200 prompts
                "sft.epochs": 3.0, "ask.prompts": 150,  # defaults: no demonstrations, prompts enough
            },
        ),
        (
            MISTRAL, PAIRS, GPU,
            {
                "rl.actor.lr": 5.6e-5,  # 4e-4 * 576 / 4096 = 5.625e-5
                "rl.critic.lr": 1.4e-4, "rl.temperature": 1.0,
                "rl.iterations": 50,  # 16 * 4e-4 / 5.6e-5 = 114
                "reward.lora.rank": 16, "reward.lora.alpha": 32.0, "reward.optim.lr": 1e-4, "reward.trunk_layers": 0,
                "reward.freeze_embeddings": False,
                "rl.prompts_per_iteration": 32,  # 8192 / (119 + 112) = 35.5
                # 80 GB / 8 / (12 * 32000 + 136 * 32 * 4096 = 18,209,792 B) = 589
                "rl.micro_batch_tokens": 512,
            },
        ),
        (
            GPT2, FEW, CPU,
            {
                "rl.actor.lr": 3e-4,  # 4e-4 * 576 / 768
                "rl.max_new_tokens": 32, "reward.max_tokens": 96,  # the next 32 above 80
                "reward.trunk_layers": 6,  # 12 * 16 / 30 = 6.4
                "reward.epochs": 3,  # 100 / 8 = 13 steps a pass
                "rl.prompts_per_iteration": 32,  # 2048 / (20 + 32) = 39
                "sft.epochs": 3.0, "sft.max_tokens": 160, "sft.batch_tokens": 1024,  # 16 * 50 = 800
                "ask.prompts": 72, "ask.queue": 24, "eval.samples_per_prompt": 4,
                "eval.curve_samples": 7,  # 128 / 18
            },
        ),
        (
            TOY, PAIRS, CPU,  # as before this table, but for lengths and counts
            {
                "rl.lora.rank": 0, "rl.actor.lr": 1e-4, "rl.iterations": 60, "rl.temperature": 1.0,
                "reward.trunk_layers": 0, "rl.ppo_epochs": 4, "rl.max_new_tokens": 112, "reward.max_tokens": 640,
                "rl.prompts.max_tokens": 527,  # 640 - 112 - 1
            },
        ),
        (
            FOREIGN, PAIRS, CPU,  # no adapters in what `transformers` alone reads: all weights train, at a tenth
            {"rl.lora.rank": 0, "rl.actor.lr": 3e-5, "rl.lora.critic_rank": 0, "reward.trunk_layers": 0},
        ),
    ],
    ids=["smollm2", "mistral", "gpt2", "toy", "foreign"],
)  # fmt: skip
def test_values_by_hand(model: ModelFacts, data: DataFacts, machine: MachineFacts, expected: dict[str, Any]) -> None:
    assert values(fitted(model, data, machine), expected) == expected


def test_answers_of_unknown_length_are_shorter_where_they_cost_more() -> None:
    """Prompts alone: 64 tokens on a processor, 128 on a GPU, and the reason does not speak of answers in the data."""
    asked = DataFacts(prompts=44, measured=10, usual_prompt=40, long_prompt=45, longest_prompt=50)
    for machine, room in ((CPU, 64), (GPU, 128)):
        recipe = fitted(SMOLLM2, asked, machine)
        assert (recipe.sample.max_new_tokens, recipe.rl.max_new_tokens) == (room, room)
        assert "nothing in the data shows" in recipe.origins()["rl.max_new_tokens"]
    assert "end within 99 tokens" in fitted(SMOLLM2, PAIRS).origins()["rl.max_new_tokens"]


def test_what_somebody_gave_stands_and_others_follow_it() -> None:
    own = ["rl.actor.lr=1e-5", "rl.max_new_tokens=40", "rl.prompts_per_iteration=5", "reward.trunk_layers=0"]
    recipe = fitted(SMOLLM2, PAIRS, CPU, *own)
    wanted = {"rl.actor.lr": 1e-5, "rl.max_new_tokens": 40, "rl.prompts_per_iteration": 5, "reward.trunk_layers": 0}
    assert values(recipe, wanted) == wanted
    assert recipe.sample.max_new_tokens == 40 and recipe.dpo.max_new_tokens == 40
    assert recipe.rl.minibatches == 1  # 5 samples cannot be halved
    assert recipe.rl.iterations == 50  # at a fortieth of the measured rate
    assert recipe.rl.critic.lr == 1e-3 and recipe.rl.actor.schedule == "linear"
    every = fitted(SMOLLM2, PAIRS)
    for row in FITTED:
        default = json.dumps(value(Recipe(), row.key))
        kept = fitted(
            SMOLLM2, PAIRS, CPU, f"{row.key}={default}", *(["rl.lora.rank=16"] if "critic" in row.key else [])
        )
        assert json.dumps(value(kept, row.key)) == default and kept.origins()[row.key] == "command line", row.key
    assert every.rl.algorithm == "ppo"


def test_the_usual_values_of_a_named_row_stand() -> None:
    rl = fitted(SMOLLM2, PAIRS, CPU, "rl.algorithm=grpo").rl
    assert (rl.prompts_per_iteration, rl.samples_per_prompt, rl.ppo_epochs, rl.minibatches, rl.kl_coef) == (
        8,
        8,
        1,
        1,
        0.04,
    )
    assert rl.lora.critic_rank == 0 and rl.lora.rank == 16 and rl.iterations == 50  # 64 rounds of one step, 50 at most


def test_every_key_exists_once_and_has_a_reason_with_its_numbers() -> None:
    keys = [row.key for row in FITTED]
    assert len(set(keys)) == len(keys) and set(keys) <= Recipe().origins().keys()
    cases = [(SMOLLM2, PAIRS, CPU), (SMOLLM2, FEW, CPU), (MISTRAL, FEW, GPU), (TOY, PAIRS, CPU)]
    cases.append((SMOLLM2, DataFacts(prompts=20), CPU))
    told = [fitted(*case).origins() for case in cases]
    for key in keys:
        why = next((of[key] for of in told if of[key] != "default"), "in no case")
        assert why.startswith("fitted: ") and len(why) > 25 and "{" not in why, key
    assert "99 tokens" in fitted(SMOLLM2, PAIRS).origins()["rl.max_new_tokens"]


@pytest.mark.parametrize("name", ["demo", "smoke", "compare", "smollm2"])
def test_recipes_that_say_their_values_have_none_fitted(name: str) -> None:
    recipe = load_recipe(name)
    assert not is_fitted(recipe)

    def refuse(kind: str, split: str) -> None:
        pytest.fail("its files were read")

    assert fitted_recipe(recipe, Path("no such model"), refuse) is recipe
    assert not [where for where in recipe.origins().values() if where.startswith("fitted")]


def test_a_recipe_of_ones_own_task_or_without_a_model_has_none_fitted() -> None:
    assert is_fitted(load_recipe(None, OWN)) and is_fitted(load_recipe(None, ["base.model=x", "task.use=store"]))
    assert not is_fitted(load_recipe(None, ["task.texts=t.jsonl"]))
    assert not is_fitted(load_recipe(None, ["base.model=x", "task.use=mine:TASK"]))


# ---- where values come from ------------------------------------------------------------------------------------------


def test_each_value_says_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "accord.yaml").write_text("rl: {entropy_coef: 0.11, kl_coef: 0.11, ppo_epochs: 3}\n")
    (tmp_path / "base.yaml").write_text("rl:\n  kl_coef: 0.22\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nreward: {epochs: 1}\n")
    layer = read_layer(tmp_path / "accord.yaml")
    recipe = load_recipe(tmp_path / "mine.yaml", ["rl.algorithm=rloo", "rl.actor.lr=1e-5"], defaults=layer)
    said = recipe.origins()
    assert said["rl.entropy_coef"] == f"project {tmp_path}/accord.yaml:1"
    assert said["rl.kl_coef"] == f"recipe {tmp_path}/base.yaml:2"
    assert said["reward.epochs"] == f"recipe {tmp_path}/mine.yaml:2"
    assert said["rl.actor.lr"] == said["rl.algorithm"] == "command line"
    assert said["rl.samples_per_prompt"] == said["rl.ppo_epochs"] == "usual with rl.algorithm=rloo"
    assert said["rl.actor.eps"] == said["seed"] == "default" and recipe.rl.ppo_epochs == 1
    assert said.keys() == {key for key, _ in flat(recipe.resolved())}


def flat(found: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Dotted keys as they stand in the JSON; what is free-form (options, controls, methods, judges) is one key."""
    free = {"task.options", "controls", "compare.methods", "eval.judges"}
    rows: list[tuple[str, Any]] = []
    for key, one in found.items():
        opened = isinstance(one, dict) and f"{above}{key}" not in free
        rows += flat(one, f"{above}{key}.") if opened else [(f"{above}{key}", one)]
    return rows


def test_a_recipe_made_in_python_knows_what_it_was_given() -> None:
    recipe = Recipe(rl=RlConfig(iterations=7, actor=OptimConfig(lr=1e-5)))
    said = recipe.origins()
    assert said["rl.iterations"] == said["rl.actor.lr"] == "recipe" and said["rl.clip"] == "default"
    assert fit(recipe, SMOLLM2, PAIRS, CPU).rl.iterations == 7
    read = load_recipe(None, OWN)
    changed = read.model_copy(update={"rl": RlConfig(iterations=9)})
    assert changed.origins()["rl.iterations"] == "recipe" and changed.origins()["base.model"] == "command line"
    assert fit(changed, SMOLLM2, PAIRS, CPU).rl.iterations == 9 and fit(read, SMOLLM2, PAIRS, CPU).rl.iterations == 16


def test_origins_make_no_two_recipes_different_and_follow_a_seed() -> None:
    one, other = load_recipe(None, ["rl.clip=0.2"]), Recipe()
    assert one == other and one.model_copy(update={"seed": 3}).origins()["rl.clip"] == "command line"
    assert one != load_recipe(None, ["rl.clip=0.3"])


def test_the_fitted_recipe_is_left_whole_and_the_yaml_says_why(tmp_path: Path) -> None:
    recipe = fitted(SMOLLM2, PAIRS)
    write_run_files(recipe, tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    origins = json.loads((tmp_path / "origins.json").read_text())
    assert origins["rl.actor.lr"].startswith("fitted: 4e-4 was measured at width 576")
    text = annotated_yaml(recipe, recipe.origins())
    assert "  actor:\n    lr: 0.0004  # fitted: 4e-4 was measured" in text and "  clip: 0.2\n" in text
    (tmp_path / "again.yaml").write_text(text)
    assert load_recipe(tmp_path / "again.yaml") == recipe


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_percentiles_by_hand() -> None:
    lengths = list(range(1, 11))
    assert [percentile(lengths, share) for share in (50, 90, 99, 100)] == [5, 9, 10, 10]
    assert percentile([7], 50) == 7 and percentile([], 99) == 0


def test_facts_of_a_folder_and_of_files(chat_model: Path, tmp_path: Path, write_rows: WriteRows) -> None:
    facts, tokenizer = model_facts(chat_model), load_tokenizer(chat_model)
    # 2 layers of width 16: q 16*16, k and v 8*16 each, o 16*16, three of 16*24, two norms; embeddings and a last norm
    layer = 256 + 2 * 128 + 256 + 3 * 384 + 32
    assert facts == ModelFacts(2 * layer + 16 * tokenizer.vocab_size + 16, 16, 2, 640, tokenizer.vocab_size)
    rows = [{"prompt": "Bread?", "chosen": "Warm corner.", "rejected": "No."}] * 3
    files = {
        ("prompts", "train"): write_rows("p.jsonl", [{"prompt": f"Fox {i}?"} for i in range(4)]),
        ("prompts", "test"): write_rows("t.jsonl", [{"prompt": "Kite?"}]),
        ("judgements", "train"): write_rows("j.jsonl", rows),
        ("demonstrations", "train"): write_rows(
            "d.jsonl", [{"messages": [{"role": "user", "content": "Soup?"}, {"role": "assistant", "content": "Yes."}]}]
        ),
    }
    data = data_facts(lambda kind, split: files.get((kind, split)), tokenizer)
    count = {text: len(tokenizer.encode(text)) for text in ("Bread?", "Warm corner.", "No.", "Yes.")}
    assert (data.prompts, data.measured, data.judgements, data.demonstrations) == (4, 1, 3, 1)
    assert data.long_completion == count["Warm corner."] + 1
    assert data.long_judgement == count["Bread?"] + count["Warm corner."] + 1
    asked = tokenizer.encode("[user] Soup?\n[assistant] ")
    assert data.usual_demonstration == data.long_demonstration == len(asked) + count["Yes."] + 1


def test_a_run_fits_what_its_recipe_leaves_open(chat_model: Path, tmp_path: Path, write_rows: WriteRows) -> None:
    out = tmp_path / "run"
    run_files(out, chat_model, write_rows("pairs.jsonl", own_rows()), "rl.iterations=1")
    resolved, origins = (json.loads((out / name).read_text()) for name in ("resolved.json", "origins.json"))
    assert origins["dpo.max_new_tokens"].startswith("fitted: ") and resolved["dpo"]["max_new_tokens"] == 5
    assert origins["rl.iterations"] == "command line" and origins["rl.clip"] == "default"
    page = (out / "report.html").read_text()
    assert "nine of ten answers" in page and "Where from" in page
    stamp = json.loads((out / "eval/stage.json").read_text())["identity"]
    run_files(out, chat_model, tmp_path / "pairs.jsonl", "rl.iterations=1")
    assert json.loads((out / "eval/stage.json").read_text())["identity"] == stamp


def test_adapters_without_their_package_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    check_adapters(load_recipe(None, []))
    for stage in ("sft", "reward", "rl"):
        with pytest.raises(UsageError, match="LoRA needs the package peft"):
            check_adapters(load_recipe(None, [f"{stage}.lora.rank=4"]))
    check_adapters(load_recipe(None, ["dpo.lora.rank=4"]))  # nothing is optimised by dpo
    with pytest.raises(UsageError, match="LoRA needs the package peft"):
        check_adapters(load_recipe(None, ["optimise=dpo", "dpo.lora.rank=4"]))
