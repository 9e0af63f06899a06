"""Every family of checkpoints against `transformers`: logits, scores, cached decoding, folders bit for bit."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from accord.errors import DataError
from accord.models.folder import load_policy, load_scalar, save_policy, save_scalar
from accord.text.tokenizer import Tokenizer

LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
NEOX = {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA_LIKE),
    "llama, tied": ("Llama", LLAMA_LIKE | {"tie_word_embeddings": True}),
    "llama, linear": ("Llama", LLAMA_LIKE | {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama, llama3": ("Llama", LLAMA_LIKE | {"rope_parameters": LLAMA3}),
    "llama, yarn": ("Llama", LLAMA_LIKE | {"rope_parameters": YARN}),
    "mistral": ("Mistral", LLAMA_LIKE | {"sliding_window": 7}),
    "mistral, long": ("Mistral", LLAMA_LIKE | {"sliding_window": 40, "max_position_embeddings": 320}),
    "mistral, no window": ("Mistral", LLAMA_LIKE | {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2", LLAMA_LIKE),
    "qwen2, windows": ("Qwen2", LLAMA_LIKE | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", LLAMA_LIKE | {"head_dim": 12, "tie_word_embeddings": True}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, n_inner, gelu": ("GPT2", GPT2 | {"n_inner": 40, "activation_function": "gelu"}),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox, in line": ("GPTNeoX", NEOX | {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "gpt_neox, all turned": ("GPTNeoX", NEOX | {"rotary_pct": 1.0, "rotary_emb_base": 500}),
}
each_family = pytest.mark.parametrize("case", CASES)


def oracle_of(case: str, words: Tokenizer, head: str = "ForCausalLM") -> Any:
    """A tiny `transformers` model whose weights are far from their start, norms and biases included."""
    classes, settings = CASES[case]
    library = importlib.import_module("transformers")
    ids = {
        "vocab_size": words.vocab_size,
        "eos_token_id": words.end_id,
        "pad_token_id": words.pad_id,
        "bos_token_id": 0,
    }
    labels = {"num_labels": 1} if head == "ForSequenceClassification" else {}
    config = getattr(library, f"{classes}Config")(**json.loads(json.dumps(settings)), **ids, **labels)
    config._attn_implementation = "eager"
    name = "GPT2LMHeadModel" if (classes, head) == ("GPT2", "ForCausalLM") else f"{classes}{head}"
    model = getattr(library, name)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.25, generator=generator)
    return model.eval()


def saved(model: Any, words: Tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    words.save(folder)
    return folder


def some_ids(B: int, T: int, words: Tokenizer) -> Tensor:
    return torch.randint(2, words.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))


@each_family
@torch.no_grad()
def test_logits_equal_transformers(case: str, words: Tokenizer, tmp_path: Path) -> None:
    oracle = oracle_of(case, words)
    model, _ = load_policy(saved(oracle, words, tmp_path))
    ids = some_ids(3, 50, words)
    wanted = oracle(ids).logits
    assert wanted.std() > 0.5
    torch.testing.assert_close(model.eval()(ids), wanted, rtol=0.0, atol=1e-4)


@torch.no_grad()
def test_windows_of_long_texts_equal_transformers(words: Tokenizer, tmp_path: Path) -> None:
    """Above 256 tokens attention takes the fused kernel, under a mask of its own."""
    model, _ = load_policy(saved(oracle_of("mistral, long", words), words, tmp_path))
    ids = some_ids(2, 300, words)
    wanted = oracle_of("mistral, long", words)(ids).logits
    torch.testing.assert_close(model.eval()(ids), wanted, rtol=0.0, atol=1e-4)


@each_family
@torch.no_grad()
def test_scores_equal_transformers_padded_or_not(case: str, words: Tokenizer, tmp_path: Path) -> None:
    oracle = oracle_of(case, words, "ForSequenceClassification")
    model, _, _ = load_scalar(saved(oracle, words, tmp_path))
    ids = some_ids(3, 30, words)
    padded = torch.cat([ids, torch.full((3, 7), words.pad_id)], 1)
    wanted = oracle(padded, attention_mask=(padded != words.pad_id).long()).logits.squeeze(1)
    torch.testing.assert_close(model.eval()(ids).view(3, -1)[:, -1], wanted, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(model(padded).view(3, -1)[:, 29], wanted, rtol=0.0, atol=1e-4)


@each_family
@torch.no_grad()
def test_a_folder_read_and_written_is_the_same_bit_for_bit(case: str, words: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    oracle = oracle_of(case, words)
    model, _ = load_policy(saved(oracle, words, tmp_path / "theirs"))
    save_policy(tmp_path / "ours", model, words)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    opened, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = some_ids(2, 40, words)
    assert torch.equal(opened.eval()(ids).logits, oracle(ids).logits)
    again, _ = load_policy(tmp_path / "ours")
    assert again.config == model.config


@each_family
@torch.no_grad()
def test_a_reward_model_opens_with_transformers(case: str, words: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = saved(oracle_of(case, words), words, tmp_path / "policy")
    model, _, _ = load_scalar(folder, head_seed=3)
    save_scalar(tmp_path / "reward", model, words)
    opened, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = some_ids(2, 20, words)
    torch.testing.assert_close(
        model.eval()(ids).view(2, -1)[:, -1], opened.eval()(ids).logits.squeeze(1), rtol=0.0, atol=1e-4
    )


@each_family
@torch.no_grad()
def test_decoding_with_a_cache_equals_the_full_pass(case: str, words: Tokenizer, tmp_path: Path) -> None:
    model, _ = load_policy(saved(oracle_of(case, words), words, tmp_path))
    model.eval()
    lengths, rows = torch.tensor([7, 3, 12]), torch.arange(3)
    ids = some_ids(3, 22, words)
    full = model.model(ids).view(3, 22, -1)
    cache = model.model.decoding(3, 22)
    with model.model.packed():
        model.model.prefill(cache, ids[:, :12], lengths)
        for step in range(10):
            hidden = model.model.step(cache, ids[rows, lengths + step])
            torch.testing.assert_close(hidden, full[rows, lengths + step], rtol=0.0, atol=1e-4)


def test_old_names_of_pythia_and_gpt2_are_read(words: Tokenizer, tmp_path: Path) -> None:
    """Published folders of both hold causal-mask buffers; GPT-2's lack the prefix; Pythia's have other rope keys."""
    from safetensors.torch import save_file

    for case, prefix, buffer in (
        ("gpt2", "transformer.", "h.0.attn.bias"),
        ("gpt_neox", "", "gpt_neox.x.attention.bias"),
    ):
        folder = saved(oracle_of(case, words), words, tmp_path / case)
        weights = load_file(folder / "model.safetensors")
        old = {name.removeprefix(prefix) if prefix else name: tensor for name, tensor in weights.items()}
        save_file(old | {buffer: torch.ones(1, 1, 64, 64)}, folder / "model.safetensors")
        raw = json.loads((folder / "config.json").read_text())
        if case == "gpt_neox":
            rope = raw.pop("rope_parameters")
            raw |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
        (folder / "config.json").write_text(json.dumps(raw))
        model, _ = load_policy(folder)
        ids = some_ids(2, 20, words)
        with torch.no_grad():
            wanted = oracle_of(case, words)(ids).logits
            torch.testing.assert_close(model.eval()(ids), wanted, rtol=0.0, atol=1e-4)


def test_weights_that_would_be_left_out_are_refused(words: Tokenizer, tmp_path: Path) -> None:
    """Scales of quantised weights, or biases that config.json does not announce."""
    from safetensors.torch import save_file

    folder = saved(oracle_of("llama", words), words, tmp_path)
    weights = load_file(folder / "model.safetensors")
    for extra in ("self_attn.q_proj.bias", "mlp.up_proj.weight_scale_inv"):
        save_file(weights | {f"model.layers.0.{extra}": torch.ones(32)}, folder / "model.safetensors")
        with pytest.raises(DataError, match=extra):
            load_policy(folder)
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    load_policy(folder)  # a buffer of old checkpoints, which says nothing


@pytest.mark.parametrize(
    ("case", "changes", "says"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_parameters": YARN | {"mscale": 0.7}}, "mscale"),
        ("llama", {"attention_bias": True}, "bias"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ("llama", {"rope_parameters": YARN | {"truncate": False}}, "truncation"),
        ("gpt_neox", {"num_attention_heads": 3}, "config.json"),
        ("gpt_neox", {"hidden_size": 64}, "config.json describes"),
        ("qwen3", {"attention_bias": True}, "bias"),
        ("qwen2", {"hidden_act": "relu"}, "relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "layer"),
        ("gpt_neox", {"attention_bias": False}, "bias"),
    ],
)
def test_what_would_give_wrong_numbers_is_refused(
    case: str, changes: dict[str, Any], says: str, words: Tokenizer, tmp_path: Path
) -> None:
    folder = saved(oracle_of(case, words), words, tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(DataError, match=says) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value)
