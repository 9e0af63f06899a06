"""Adapters against `peft` on `transformers` models: logits, gradients, merging, folders; and what stays frozen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, WriteRows, random_policy
from safetensors.torch import load_file
from test_families import each_family, oracle_of, saved, some_ids
from test_resume import Job, assert_the_same, run_until
from torch import Tensor, nn

from accord.algo.logprob import token_logp, token_nll
from accord.algo.table import POLICY_ALGORITHMS
from accord.config import LoraConfig, OptimConfig, RewardConfig, RlConfig, RlLoraConfig, SftConfig
from accord.errors import AccordError, DataError, UsageError
from accord.models import lora
from accord.models.decoder import CausalLM, Projections, ScalarModel
from accord.models.folder import load_policy, load_scalar, save_policy
from accord.models.lora import adapter_off, add_lora, merge_adapter, plain_weights, save_adapter
from accord.models.shape import DecoderConfig
from accord.rollout.engine import Engine, Sampling
from accord.text.batches import Example, collate
from accord.text.tokenizer import Tokenizer
from accord.train.learner import Learner
from accord.train.likelihood import completion_nll, logp_and_entropy
from accord.train.policy_models import load_policy_models
from accord.train.reward import reward
from accord.train.rl import rl
from accord.train.sft import sft

# peft asks transformers for an attribute that it has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PPO = POLICY_ALGORITHMS["ppo"]
CONFIG = LoraConfig(rank=4, alpha=12.0)
#: The second layer has another rank, the third another alpha.
PATTERNS = {"rank_pattern": {r"1\..*": 2}, "alpha_pattern": {r"2\..*": 9}}


def train_somewhere(model: nn.Module, seed: int = 5) -> None:
    """Give the adapter numbers that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0.0, 0.2, generator=generator)


def adapted(config: DecoderConfig, settings: LoraConfig = CONFIG) -> CausalLM:
    model = random_policy(config, 0)
    add_lora(model, settings, 1)
    train_somewhere(model)
    return model


def with_peft(base: Path, adapter: Path, **settings: Any) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    return PeftModel.from_pretrained(model, adapter, **settings).eval()


# -- against peft ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_family
@torch.no_grad()
def test_a_saved_adapter_gives_the_same_logits_under_peft(case: str, words: Tokenizer, tmp_path: Path) -> None:
    base = saved(oracle_of(case, words), words, tmp_path / "base")
    model, _ = load_policy(base)
    before = model(some_ids(2, 20, words))
    add_lora(model.eval(), CONFIG, 1)
    train_somewhere(model)
    save_adapter(tmp_path / "adapter", model, str(base))
    ids = some_ids(2, 20, words)
    wanted = with_peft(base, tmp_path / "adapter")(ids).logits
    assert (wanted - before).abs().max() > 0.5
    torch.testing.assert_close(model(ids), wanted, rtol=0.0, atol=1e-4)
    again, _ = load_policy(base)
    merge_adapter(again.eval(), tmp_path / "adapter")
    torch.testing.assert_close(again(ids), wanted, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_an_adapter_on_some_layers_only(case: str, words: Tokenizer, tmp_path: Path) -> None:
    base = saved(oracle_of(case, words), words, tmp_path / "base")
    model, _ = load_policy(base)
    add_lora(model.eval(), LoraConfig(rank=3, alpha=5.0, targets=("k_proj", "down_proj")), 1)
    train_somewhere(model)
    save_adapter(tmp_path / "adapter", model)
    ids = some_ids(2, 20, words)
    wanted = with_peft(base, tmp_path / "adapter")(ids).logits
    torch.testing.assert_close(model(ids), wanted, rtol=0.0, atol=1e-4)
    assert len(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "targets"),
    [
        ("llama", ["q_proj", "v_proj", "up_proj"]),
        ("qwen3", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("gpt2", ["c_attn", "c_fc"]),
        ("gpt_neox", ["query_key_value", "dense"]),
    ],
)
@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}, PATTERNS])
@torch.no_grad()
def test_an_adapter_that_peft_saved_is_read(
    case: str, targets: list[str], extra: dict[str, Any], words: Tokenizer, tmp_path: Path
) -> None:
    import peft

    oracle = oracle_of(case, words)
    base = saved(oracle, words, tmp_path / "base")
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(oracle, peft.LoraConfig(fan_in_fan_out=case == "gpt2", **settings, **extra)).eval()
    train_somewhere(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model, _ = load_policy(base)
    merge_adapter(model.eval(), tmp_path / "adapter")
    ids = some_ids(2, 20, words)
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0.0, atol=1e-4)


def test_a_round_trip_is_bit_equal(tiny_config: DecoderConfig, tmp_path: Path) -> None:
    model = adapted(tiny_config)
    save_adapter(tmp_path / "a", model)
    again = random_policy(tiny_config, 0)
    merge_adapter(again, tmp_path / "a")
    mine, read = plain_weights(model), again.state_dict()
    assert mine.keys() == read.keys() and all(torch.equal(mine[name], read[name]) for name in mine)


@pytest.mark.parametrize("case", ["llama", "qwen2"])
def test_gradients_equal_those_of_peft(case: str, words: Tokenizer, tmp_path: Path) -> None:
    base = saved(oracle_of(case, words), words, tmp_path / "base")
    model, _ = load_policy(base)
    add_lora(model, CONFIG, 1)
    train_somewhere(model)
    save_adapter(tmp_path / "adapter", model)
    theirs = with_peft(base, tmp_path / "adapter", is_trainable=True)
    ids = some_ids(2, 20, words)
    batch = collate([Example(tuple(row[:8]), tuple(row[8:])) for row in ids.tolist()], words.pad_id)
    completion_nll(model, batch).backward()
    logits = theirs(ids).logits[:, 7:-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 8:].flatten(), reduction="sum").backward()
    wanted = {
        name.removeprefix("base_model.model."): p.grad for name, p in theirs.named_parameters() if p.requires_grad
    }
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() and len(found) == 3 * 7 * 2
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3)


# -- the model itself --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_off_it_is_the_base_exactly_and_a_fresh_one_changes_nothing(
    tiny_config: DecoderConfig, words: Tokenizer
) -> None:
    ids = some_ids(3, 20, words)
    base = random_policy(tiny_config, 0)(ids)
    fresh = random_policy(tiny_config, 0)
    add_lora(fresh, CONFIG, 1)
    assert torch.equal(fresh(ids), base)
    model = adapted(tiny_config)
    on = model(ids)
    assert not torch.allclose(on, base, atol=0.1)
    with adapter_off(model):
        assert torch.equal(model(ids), base)
        with model.model.packed():
            torch.testing.assert_close(model(ids), base, rtol=0.0, atol=1e-5)
    assert torch.equal(model(ids), on)
    assert [p.requires_grad for n, p in model.named_parameters() if ".lora_" in n] == [True] * 28


@each_family
@torch.no_grad()
def test_a_saved_policy_is_merged(case: str, words: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, _ = load_policy(saved(oracle_of(case, words), words, tmp_path / "base"))
    add_lora(model.eval(), CONFIG, 1)
    train_somewhere(model)
    save_policy(tmp_path / "merged", model, words)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert before.keys() == after.keys()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    ids = some_ids(2, 20, words)
    torch.testing.assert_close(opened(ids).logits, model(ids), rtol=0.0, atol=1e-4)


def test_samples_are_drawn_with_the_learners_law(tiny_config: DecoderConfig, words: Tokenizer) -> None:
    model = adapted(tiny_config)
    prompts = [tuple(words.encode(text)[:5]) for text in TEXTS[:4]]
    samples = Engine(model, words.stop_ids).generate(prompts, Sampling(12, 3), seed=0)
    batch = collate([Example(s.prompt, s.completion) for s in samples], words.pad_id)
    logp, _ = logp_and_entropy(model, batch, entropy=False)
    behaviour = torch.tensor([lp for s in samples for lp in s.behaviour_logp])
    torch.testing.assert_close(behaviour, logp.detach(), rtol=0.0, atol=1e-4)
    with adapter_off(model):
        base = Engine(model, words.stop_ids).generate(prompts, Sampling(12, 3), seed=0)
    assert base == Engine(random_policy(tiny_config, 0), words.stop_ids).generate(prompts, Sampling(12, 3), seed=0)
    assert base != samples


def test_while_decoding_no_low_rank_product_is_made(
    tiny_config: DecoderConfig, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = adapted(tiny_config), []
    original = lora._low_rank
    monkeypatch.setattr(lora, "_low_rank", lambda layer, x: calls.append(layer) or original(layer, x))
    with model.model.packed():
        model.model(some_ids(1, 5, words))
    assert not calls
    model.model(some_ids(1, 5, words))
    assert len(calls) == 2 * 7
    assert all(module._held for module in model.modules() if isinstance(module, Projections))  # the base, cast once


def test_bf16_is_close_to_fp32_and_masters_stay_fp32(tiny_config: DecoderConfig, words: Tokenizer) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = random_policy(tiny_config, 0, std=0.1)
        model.model.compute_dtype = dtype
        add_lora(model, CONFIG, 1)
        train_somewhere(model)
        batch = collate([Example(tuple(row[:8]), tuple(row[8:])) for row in some_ids(2, 20, words).tolist()], 1)
        completion_nll(model, batch).backward()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float(torch.cosine_similarity(found[0], found[1], dim=0)) > 0.99


def test_dropout_falls_on_what_the_adapter_reads_and_only_while_training(
    tiny_config: DecoderConfig, words: Tokenizer
) -> None:
    model, ids = adapted(tiny_config, CONFIG.model_copy(update={"dropout": 0.5})), some_ids(2, 10, words)
    still = model(ids)
    assert torch.equal(model(ids), still)
    assert torch.equal(adapted(tiny_config)(ids), still)
    model.train()
    assert not torch.equal(model(ids), model(ids))
    with adapter_off(model):
        assert torch.equal(model(ids), random_policy(tiny_config, 0)(ids))


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_adapter_has_gradients_moments_and_a_place_in_checkpoints(
    tied: bool, tiny_config: DecoderConfig, words: Tokenizer
) -> None:
    model = adapted(replace(tiny_config, tied=tied))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner = Learner({"policy": model}, {"policy": OptimConfig(lr=1e-2)}, 1)
    batch = collate([Example(tuple(row[:8]), tuple(row[8:])) for row in some_ids(2, 20, words).tolist()], 1)
    learner.update([completion_nll(model, batch)])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    tensors = learner.tensors()
    assert {name for name in tensors if ".weights." in name} == {f"policy.weights.{name}" for name in changed}
    assert len([name for name in tensors if name.endswith(".exp_avg")]) == len(changed) == 28


@pytest.mark.parametrize("loss", [lambda *a: token_logp(*a)[0].sum(), token_nll])
def test_a_frozen_head_gets_no_gradient_and_changes_no_other(loss: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, target = torch.randn(50, 8, generator=generator), torch.randint(50, (30,), generator=generator)
    start, found = torch.randn(30, 8, generator=generator), []
    for trains in (True, False):
        hidden, head = start.clone().requires_grad_(), weight.clone().requires_grad_(trains)
        loss(hidden, head, target).backward()
        assert (head.grad is not None) == trains
        found.append(hidden.grad)
    assert torch.equal(found[0], found[1])


# -- errors ------------------------------------------------------------------------------------------------------------


def test_without_peft_the_extra_is_named(tiny_config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match=r"accord\[lora\]"):
        add_lora(random_policy(tiny_config, 0), CONFIG, 0)


def test_what_cannot_be_saved_or_read_is_refused(tiny_config: DecoderConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter"):
        save_adapter(tmp_path / "x", random_policy(tiny_config, 0))
    gpt2 = replace(tiny_config, gated=False, num_kv_heads=4)
    with pytest.raises(UsageError, match="targets"):
        add_lora(random_policy(gpt2, 0), LoraConfig(rank=2, targets=("gate_proj",)), 0)
    save_adapter(tmp_path / "a", adapted(tiny_config))
    with pytest.raises(DataError, match=r"does not fit.*another shape"):
        merge_adapter(random_policy(replace(tiny_config, width=40), 0), tmp_path / "a")
    with pytest.raises(DataError, match="does not fit"):
        merge_adapter(random_policy(replace(tiny_config, num_layers=1), 0), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    raw = json.loads(path.read_text())
    for changes, says in (
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "LoRA"),
    ):
        path.write_text(json.dumps(raw | changes))
        with pytest.raises(DataError, match=says):
            merge_adapter(random_policy(tiny_config, 0), tmp_path / "a")
    with pytest.raises(AccordError):
        merge_adapter(random_policy(tiny_config, 0), tmp_path)


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="share_spellings"):
        RewardConfig(share_spellings=True, lora=LoraConfig(rank=2))
    with pytest.raises(ValueError, match="share_spellings"):
        RewardConfig(share_spellings=True, freeze_embeddings=True)
    with pytest.raises(ValueError, match="dropout"):
        RlLoraConfig(rank=2, dropout=0.1)


# -- stages ------------------------------------------------------------------------------------------------------------


def rl_config(**changes: Any) -> RlConfig:
    settings: dict[str, Any] = {
        "precision": "fp32",
        "iterations": 6,
        "prompts_per_iteration": 6,
        "max_new_tokens": 10,
        "ppo_epochs": 2,
        "minibatches": 2,
        "eval_every": 3,
        "checkpoint_every": 2,
        "lora": RlLoraConfig(rank=4, critic_rank=2),
        "actor": OptimConfig(lr=1e-2, eps=1e-5),
        "critic": OptimConfig(lr=1e-2, eps=1e-5),
    }
    return RlConfig(**settings | changes)


@pytest.fixture
def inputs(policy_folder: Path, reward_folder: Path, write_rows: WriteRows) -> dict[str, Path]:
    prompts = write_rows("prompts.jsonl", [{"prompt": t.split()[0]} for t in TEXTS])
    return {"model": policy_folder, "reward_model": reward_folder, "data": prompts}


@pytest.mark.slow
def test_rl_trains_an_adapter_and_starts_at_its_reference(
    inputs: dict[str, Path], words: Tokenizer, tmp_path: Path
) -> None:
    result = rl(rl_config(), **inputs, output_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (rows[0]["kl"], rows[0]["kl_k3"]) == (0.0, 0.0)
    assert rows[0]["first_ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert all(row["behaviour_gap_max"] < 1e-4 for row in rows)
    assert rows[-1]["kl_k3"] > 0
    before = load_file(inputs["model"] / "model.safetensors")
    ids = some_ids(2, 20, words)
    for folder in (result.model, result.snapshots[6]):
        after = load_file(folder / "model.safetensors")
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all(name.split(".")[-2] in LoraConfig().targets for name in changed)
        with torch.no_grad():
            merged, wanted = load_policy(folder)[0](ids), with_peft(inputs["model"], tmp_path / "adapter")(ids).logits
        torch.testing.assert_close(merged, wanted, rtol=0.0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [*({"algorithm": name} for name in POLICY_ALGORITHMS), {"values": {"shared": True}}], ids=str
)
def test_every_row_trains_an_adapter(settings: dict[str, Any], inputs: dict[str, Path], tmp_path: Path) -> None:
    passes = {} if POLICY_ALGORITHMS[settings.get("algorithm", "ppo")].has_ratio else {"ppo_epochs": 1}
    config = rl_config(**{"iterations": 2, "samples_per_prompt": 2, "prompts_per_iteration": 4, **settings, **passes})
    result = rl(config, **inputs, output_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (rows[0]["kl"], rows[0]["kl_k3"]) == (0.0, 0.0)
    assert all(row["first_ratio_max"] == pytest.approx(1.0, abs=1e-5) for row in rows)
    assert rows[1]["kl_k3"] > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (inputs["model"], result.model))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.split(".")[-2] in LoraConfig().targets for name in changed)


@pytest.mark.slow
def test_the_reference_is_the_policy_itself_and_nothing_frozen_moves(inputs: dict[str, Path]) -> None:
    def trunks() -> int:
        import gc

        return sum(type(found) is CausalLM for found in gc.get_objects())

    count = trunks()
    models = load_policy_models(rl_config(), PPO, inputs["model"], inputs["reward_model"])
    assert trunks() == count + 1
    full = load_policy_models(rl_config(lora=RlLoraConfig()), PPO, inputs["model"], inputs["reward_model"])
    assert trunks() == count + 3
    assert models.reference is models.policy and full.reference is not full.policy
    train_somewhere(models.policy)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad(), models.as_reference() as reference, full.as_reference() as copied:
        assert torch.equal(reference.eval()(ids), copied(ids))
    names = {name for name, p in models.critic.named_parameters() if p.requires_grad}
    assert "score.weight" in names and all(".lora_" in name for name in names - {"score.weight"})


@pytest.mark.slow
def test_sft_trains_an_adapter_on_weights_that_stand_still(
    tiny_config: DecoderConfig, words: Tokenizer, write_rows: WriteRows, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    save_policy(base, random_policy(tiny_config, 0), words)
    data = write_rows("d.jsonl", [{"prompt": t.split()[0], "completion": t[len(t.split()[0]) :]} for t in TEXTS])
    config = SftConfig(
        precision="fp32", epochs=12, batch_tokens=60, dropout=0.0, lora=CONFIG, optim=OptimConfig(lr=2e-2)
    )
    result = sft(config, model=base, data=data, output_dir=tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    start, end = load_policy(base)[0], load_policy(result.model)[0].state_dict()
    merge_adapter(start, tmp_path / "out" / "adapter")
    for name, tensor in start.state_dict().items():
        assert torch.equal(tensor, end[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "rl"])
def test_a_stage_with_an_adapter_killed_midway_ends_the_same(
    stage: str, inputs: dict[str, Path], write_rows: WriteRows, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"precision": "fp32", "epochs": 2, "dropout": 0.2, "checkpoint_every": 2}
    adapter = LoraConfig(rank=3, dropout=0.2)
    if stage == "rl":
        job = Job("rl", (rl_config(),), inputs, total=6)
    elif stage == "sft":
        demos = [{"prompt": t.split()[0], "completion": " " + " ".join(t.split()[1:4])} for t in TEXTS]
        given = {"model": inputs["model"], "data": write_rows("demos.jsonl", demos)}
        job = Job("sft", (SftConfig(batch_tokens=30, lora=adapter, **small),), given, total=8)
    else:
        pairs = [{"prompt": "A", "chosen": f" {t.split()[-1]}", "rejected": f" {t.split()[1]}"} for t in TEXTS]
        given = {"model": inputs["model"], "data": write_rows("pairs.jsonl", pairs)}
        config = RewardConfig(groups_per_step=2, trunk_layers=1, lora=adapter, **small)
        job = Job("reward", (config,), given, total=8)
    run_until(job, tmp_path / "whole", "end")
    total = len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    run_until(job, tmp_path / "killed", "update", 13 if stage == "rl" else 5)
    (checkpoint, *_) = sorted((tmp_path / "killed" / "checkpoints").glob("step_*"), reverse=True)
    kept = load_file(checkpoint / "learner.safetensors")
    assert all(".lora_" in n or n.endswith("score.weight") for n in kept if ".weights." in n)
    run_until(job, tmp_path / "killed", "end")
    assert_the_same(tmp_path / "whole", tmp_path / "killed", total)


# -- the first layers as a reward model's trunk ------------------------------------------------------------------------


@each_family
@torch.no_grad()
def test_the_first_layers_score_as_transformers_scores(case: str, words: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from accord.models.folder import save_scalar

    folder = saved(oracle_of(case, words), words, tmp_path / "policy")
    model, _, _ = load_scalar(folder, head_seed=3, trunk_layers=2)
    save_scalar(tmp_path / "reward", model, words)
    opened, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = some_ids(2, 20, words)
    torch.testing.assert_close(
        model.eval()(ids).view(len(ids), -1)[:, -1], opened.eval()(ids).logits.squeeze(1), rtol=0.0, atol=1e-4
    )
    policy = oracle_of(case, words)
    states = policy(ids, output_hidden_states=True).hidden_states[2]  # of the whole model, after two layers
    ours = load_policy(folder)[0]
    wanted = (ours.model.norm(states) @ model.score.weight[0]).flatten()
    torch.testing.assert_close(model(ids), wanted, rtol=0.0, atol=1e-4)


def test_more_layers_than_there_are(policy_folder: Path) -> None:
    with pytest.raises(UsageError, match="3 layers"):
        load_scalar(policy_folder, head_seed=0, trunk_layers=3)


def test_a_head_of_the_whole_trunk_does_not_sit_on_a_part(reward_folder: Path) -> None:
    whole, part = (load_scalar(reward_folder, head_seed=0, trunk_layers=n)[0] for n in (2, 1))
    assert torch.equal(whole.score.weight, load_file(reward_folder / "model.safetensors")["score.weight"])
    assert not torch.equal(part.score.weight, whole.score.weight)
    with pytest.raises(DataError, match=r"score\.weight"):
        load_scalar(reward_folder, trunk_layers=1)


@pytest.mark.parametrize("adapter", [LoraConfig(), LoraConfig(rank=4)])
def test_a_reward_model_of_fewer_layers_and_frozen_embeddings(
    adapter: LoraConfig, policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    rows = [{"prompt": "A", "chosen": f" {t.split()[-1]}", "rejected": f" {t.split()[1]}"} for t in TEXTS]
    config = RewardConfig(
        precision="fp32",
        epochs=8,
        groups_per_step=4,
        trunk_layers=1,
        freeze_embeddings=True,
        lora=adapter,
        optim=OptimConfig(lr=2e-2),
    )
    data = write_rows("r.jsonl", rows)
    apart = write_rows("v.jsonl", rows * 3)
    result = reward(config, model=policy_folder, data=data, valid_data=apart, output_dir=tmp_path)
    assert result.valid_accuracy == 1.0
    before, after = (load_file(folder / "model.safetensors") for folder in (policy_folder, result.model))
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert not any(name.startswith("model.layers.1.") for name in after)
    assert isinstance(load_scalar(result.model)[0], ScalarModel)
