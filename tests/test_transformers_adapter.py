"""Architectures that only `transformers` knows, through the same door: its own numbers, folders and the whole loop."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.config import LoraConfig, OptimConfig, RewardConfig, RlConfig, SftConfig
from accord.errors import AccordError, DataError, UsageError
from accord.models.folder import RewardScale, load_policy, load_scalar, save_policy, save_scalar
from accord.models.lora import add_lora
from accord.models.placement import Placement
from accord.rollout.engine import Engine, Sampling
from accord.text.batches import Example, collate
from accord.text.tokenizer import Tokenizer
from accord.train.likelihood import logp_and_entropy
from accord.train.reward import reward
from accord.train.rl import rl
from accord.train.sft import sft

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}

#: Alibi without places; learned places with an offset, narrow embeddings and a projection; scaled embeddings and
#: windows; an untied head; experts, whose weights `transformers` packs otherwise than its files.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "opt": ("OPT", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 64}),
    "gemma3": ("Gemma3Text", GATED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "falcon": ("Falcon", SIZES | {"alibi": False, "max_position_embeddings": 64, "tie_word_embeddings": False}),
    "mixtral": ("Mixtral", GATED | {"num_local_experts": 4}),
}
each_case = pytest.mark.parametrize("case", CASES)
PROMPTS = [[5, 9, 3], [7], [11, 4, 8, 13, 2], [7, 7]]


def oracle_of(name: str, settings: dict[str, Any], words: Tokenizer) -> Any:
    """A random model of `transformers`, far from uniform."""
    import transformers

    ids = {"vocab_size": words.vocab_size, "pad_token_id": words.pad_id, "eos_token_id": words.end_id}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings, **ids))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    return model.eval()


def saved(oracle: Any, words: Tokenizer, folder: Path) -> Path:
    oracle.save_pretrained(folder)
    words.save(folder)
    return folder


def some_ids(rows: int, tokens: int, words: Tokenizer) -> Tensor:
    """Random ids without the padding token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, words.vocab_size, (rows, tokens), generator=generator)
    return ids.masked_fill(ids == words.pad_id, 5)


# -- the numbers -------------------------------------------------------------------------------------------------------


@each_case
@torch.no_grad()
def test_logits_equal_transformers_padded_or_not(case: str, words: Tokenizer, tmp_path: Path) -> None:
    oracle = oracle_of(*CASES[case], words)
    model = load_policy(saved(oracle, words, tmp_path))[0].eval()
    ids, length_B = some_ids(3, 20, words), torch.tensor([20, 3, 11])
    wanted = oracle(ids).logits
    assert float(wanted.std()) > 0.3
    torch.testing.assert_close(model(ids), wanted, rtol=0.0, atol=1e-4)
    hidden_ND = model.model(ids, length_B)
    alone = torch.cat([model.model(row[None, :length]) for row, length in zip(ids, length_B, strict=True)])
    torch.testing.assert_close(hidden_ND, alone, rtol=0.0, atol=1e-4)


@each_case
@torch.no_grad()
def test_decoding_equals_whole_passes_while_rows_come_and_go(case: str, words: Tokenizer, tmp_path: Path) -> None:
    oracle = oracle_of(*CASES[case], words)
    model = load_policy(saved(oracle, words, tmp_path))[0].eval()
    often = range(30)  # so that samples end at different times
    samples = Engine(model, often, max_rows=5).generate(PROMPTS, Sampling(14, 4, 0.9), seed=3)
    assert len({len(s.completion) for s in samples}) > 2
    for s in samples:
        ids = torch.tensor([*s.prompt, *s.completion])
        law = torch.log_softmax(oracle(ids[None, :-1]).logits[0, len(s.prompt) - 1 :] / 0.9, -1)
        wanted = law.gather(1, ids[len(s.prompt) :, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(s.behaviour_logp), wanted, rtol=0.0, atol=1e-4)
    batch = collate([Example(s.prompt, s.completion) for s in samples], pad_id=1)
    learner = logp_and_entropy(model, batch, 0.9, entropy=False)[0]
    sampler = torch.tensor([lp for s in samples for lp in s.behaviour_logp])
    assert float((learner - sampler).abs().max()) < 1e-4


@torch.no_grad()
def test_bf16_is_near(words: Tokenizer, tmp_path: Path) -> None:
    folder = saved(oracle_of(*CASES["bloom"], words), words, tmp_path)
    fp32, bf16 = (load_policy(folder, Placement(name, "cpu"))[0].eval() for name in ("fp32", "bf16"))
    ids = some_ids(2, 20, words)
    exact, near = fp32.model(ids), bf16.model(ids)
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).abs().mean()) < 0.03 * float(exact.abs().mean())


def test_dropout_is_ours_alone_and_acts_in_training(words: Tokenizer, tmp_path: Path) -> None:
    oracle = oracle_of("OPT", CASES["opt"][1] | {"dropout": 0.5, "attention_dropout": 0.5}, words)
    model = load_policy(saved(oracle, words, tmp_path))[0].eval()
    ids = some_ids(2, 10, words)
    still = model.model(ids)
    model.train()
    assert torch.equal(model.model(ids), still)
    model.model.dropout = 0.3
    assert not torch.allclose(model.model(ids), still)
    model.eval()
    assert torch.equal(model.model(ids), still)


# -- folders -----------------------------------------------------------------------------------------------------------


@each_case
@torch.no_grad()
def test_folders_open_with_transformers_again(case: str, words: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    oracle = oracle_of(*CASES[case], words)
    policy, reader = load_policy(saved(oracle, words, tmp_path / "theirs"))
    save_policy(tmp_path / "p", policy, reader)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    assert type(again) is type(oracle)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in oracle.state_dict().items())

    scorer, _, _ = load_scalar(tmp_path / "p", head_seed=3)
    save_scalar(tmp_path / "r", scorer, words, RewardScale(0.5, 2.0))
    theirs, told = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    ids = some_ids(3, 12, words)
    padded = torch.cat([ids, torch.full((3, 4), words.pad_id)], 1)
    wanted = theirs.eval()(padded, attention_mask=(padded != words.pad_id).long()).logits.squeeze(1)
    read, _, scale = load_scalar(tmp_path / "r", head_seed=9)
    assert scale == RewardScale(0.5, 2.0)
    for length_B in (None, torch.full((3,), 12)):
        inputs = (ids,) if length_B is None else (padded, length_B)
        torch.testing.assert_close(read.eval()(*inputs).view(3, 12)[:, -1], wanted, rtol=0.0, atol=1e-4)
    with pytest.raises(DataError, match=r"no score\.weight"):
        load_scalar(tmp_path / "p")


# What is no plain causal model with one linear head, and how it is told.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "soft cap": ("Gemma2", GATED, "final_logit_softcapping"),
    "scaled logits": ("Cohere", SIZES | {"intermediate_size": 48}, "logit_scale"),
    "head with a bias": ("Phi", SIZES | {"intermediate_size": 48}, "without a bias"),
    "no causal model": ("Bert", SIZES | {"intermediate_size": 48}, "without a bias"),
    "no key-value cache": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2}, "cache|padding"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_give_wrong_numbers_is_refused(case: str, words: Tokenizer, tmp_path: Path) -> None:
    name, settings, says = REFUSED[case]
    folder = saved(oracle_of(name, settings, words), words, tmp_path)
    with pytest.raises(DataError, match=says) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value)


def test_spoilt_folders_are_refused(words: Tokenizer, tmp_path: Path) -> None:
    folder = saved(oracle_of(*CASES["bloom"], words), words, tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "transformer.h.1.mlp.dense_h_to_4h.weight"
    for spoilt, says in (
        ({n: t for n, t in weights.items() if n != name}, "dense_h_to_4h.weight is missing"),
        (weights | {name: weights[name][:5].clone()}, "another shape|mismatch"),
        (weights | {f"{name}_scale": torch.ones(3)}, "is not known"),
    ):
        save_file(spoilt, path, metadata={"format": "pt"})
        with pytest.raises(DataError, match=says):
            load_policy(folder)
    path.unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="pickled ones are refused"):
        load_policy(folder)


def test_an_architecture_that_nobody_knows(words: Tokenizer, tmp_path: Path) -> None:
    """Code that lies in the folder is not run."""
    folder = saved(oracle_of(*CASES["bloom"], words), words, tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    for extra in ({}, {"auto_map": code}):
        (folder / "config.json").write_text(json.dumps(raw | extra | {"model_type": "mine"}))
        with pytest.raises(DataError, match="'mine'"):
            load_policy(folder)


def test_without_transformers_the_extra_is_named(
    words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(oracle_of(*CASES["bloom"], words), words, tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"accord\[transformers\]"):
        load_policy(folder)


def test_what_is_the_decoders_alone_is_refused(words: Tokenizer, tmp_path: Path) -> None:
    folder = saved(oracle_of(*CASES["opt"], words), words, tmp_path)
    policy, _ = load_policy(folder)
    with pytest.raises(UsageError, match="opt"):
        add_lora(policy, LoraConfig(rank=2), 0)
    with pytest.raises(UsageError, match="first layers"):
        load_scalar(folder, head_seed=0, trunk_layers=1)
    with pytest.raises(AccordError, match="64 positions"):
        policy.model(torch.zeros(1, 65, dtype=torch.long))


# -- the loop ----------------------------------------------------------------------------------------------------------

FAST = OptimConfig(lr=5e-3, weight_decay=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bloom", "opt"])
def test_the_whole_loop_raises_the_share_of_a_letter(case: str, words: Tokenizer, tmp_path: Path) -> None:
    """SFT, rankings of its own samples by their last letter, reward model, PPO, and what its samples then end with."""
    from transformers import AutoModelForCausalLM

    oracle = oracle_of(*CASES[case], words)
    oracle.init_weights()
    with torch.no_grad():  # what a fresh model looks like
        for parameter in oracle.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2)
    start, draw = saved(oracle, words, tmp_path / "start"), random.Random(0)
    prompts = [t.split()[0] for t in TEXTS]

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    def completion() -> str:
        return " " + "".join(draw.choices("abcd", k=draw.randint(2, 6)))

    def split(name: str, rows: list[dict[str, Any]]) -> dict[str, Path]:
        """Four prompts hang together, and by itself a stage would hold none of them out."""
        train = [row for i, row in enumerate(rows) if i % 20]
        return {"data": write(name, train), "valid_data": write(f"valid_{name}", rows[::20])}

    demos = split("demos.jsonl", [{"prompt": p, "completion": completion()} for p in prompts * 20])
    tuned = sft(
        SftConfig(precision="fp32", epochs=8, batch_tokens=400, dropout=0.05, optim=FAST),
        model=start,
        **demos,
        output_dir=tmp_path / "sft",
    )

    def samples_of(folder: Path, seed: int) -> list[tuple[str, str]]:
        model, reader = load_policy(folder)
        ids = [reader.encode(p) for p in prompts]
        found = Engine(model, reader.stop_ids).generate(ids, Sampling(12, 25), seed=seed)
        return [(prompts[s.prompt_index], reader.decode(s.completion)) for s in found]

    own = [row for row in dict.fromkeys(samples_of(tuned.model, 1)) if row[1].strip()]
    rankings = []
    for prompt in prompts:
        texts = [text for asked, text in own if asked == prompt]
        for group in (texts[first : first + 4] for first in range(0, len(texts) - 1, 4)):
            ranks = [1 if text.endswith("a") else 2 for text in group]
            rankings.append({"prompt": prompt, "completions": group, "ranks": ranks})
    taught = reward(
        RewardConfig(precision="fp32", epochs=10, pooled_coef=0.3, bag_coef=0.3, dropout=0.05, optim=FAST),
        model=tuned.model,
        **split("rankings.jsonl", rankings),
        output_dir=tmp_path / "reward",
    )
    config = RlConfig(
        precision="fp32",
        iterations=12,
        prompts_per_iteration=48,
        max_new_tokens=12,
        ppo_epochs=2,
        minibatches=2,
        kl_coef=0.02,
        eval_every=6,
        actor=OptimConfig(lr=2e-3, schedule="constant", eps=1e-5),
        critic=OptimConfig(lr=2e-3, schedule="constant", eps=1e-5),
    )
    made = rl(
        config,
        model=tuned.model,
        reward_model=taught.model,
        data=write("prompts.jsonl", [{"prompt": p} for p in prompts]),
        output_dir=tmp_path / "rl",
    )
    before, after = (
        sum(text.endswith("a") for _, text in samples_of(folder, 9)) / 200 for folder in (tuned.model, made.model)
    )
    print(before, after, taught.valid_accuracy)
    assert before < 0.45 and after > before + 0.3
    rows = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["behaviour_gap_max"] for row in rows) < 1e-3
    assert type(AutoModelForCausalLM.from_pretrained(made.snapshots[6])) is type(oracle)
