"""The decoder against `transformers`' Llama as oracle, and its checkpoints: round trips, layouts, clear errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_policy
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accord.errors import AccordError, DataError, UsageError
from accord.models import precision
from accord.models.decoder import CausalLM, ScalarModel, init_score_head, init_weights
from accord.models.folder import RewardScale, load_policy, load_scalar, save_policy, save_scalar
from accord.models.forward import Layout, Whole
from accord.models.shape import DecoderConfig
from accord.text.batches import Batch, Example, collate
from accord.text.tokenizer import Tokenizer, load_tokenizer
from accord.train.likelihood import logp_and_entropy

SHAPES = [
    {"num_key_value_heads": 4, "tie_word_embeddings": False},
    {"num_key_value_heads": 2, "tie_word_embeddings": True},
    {"num_key_value_heads": 1, "tie_word_embeddings": False, "head_dim": 12, "rope_theta": 500.0},
]


def hf_config(words: Tokenizer, **changes: Any) -> Any:
    from transformers import LlamaConfig

    theta = changes.pop("rope_theta", 10_000.0)
    return LlamaConfig(
        vocab_size=words.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        eos_token_id=words.end_id,
        pad_token_id=words.pad_id,
        **changes,
    )


def scramble(model: torch.nn.Module, seed: int = 0) -> Any:
    """Weights far from their start, norms included, so that a mistake anywhere moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.normal_(centre, 0.25, generator=generator)
    return model.eval()


def some_ids(B: int, T: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randint(2, vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_logits_equal_transformers_llama(changes: dict[str, Any], words: Tokenizer, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    oracle = scramble(LlamaForCausalLM(hf_config(words, **changes)))
    oracle.save_pretrained(tmp_path)
    words.save(tmp_path)
    model, _ = load_policy(tmp_path)
    ids = some_ids(3, 50, words.vocab_size)
    wanted = oracle(ids).logits
    assert wanted.std() > 1.0
    torch.testing.assert_close(model.eval()(ids), wanted, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_saved_policy_opens_with_transformers(
    tied: bool, tiny_config: DecoderConfig, words: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = random_policy(replace(tiny_config, tied=tied, rope_theta=700.0, head_width=10), 3)
    save_policy(tmp_path / "m", model, words, card="# A card")
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = some_ids(2, 40, words.vocab_size)
    torch.testing.assert_close(opened.eval()(ids).logits, model(ids), rtol=0.0, atol=1e-4)
    assert opened.generation_config.eos_token_id == words.end_id
    reader = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert (reader.eos_token_id, reader.pad_token_id) == (words.end_id, words.pad_id)
    assert (tmp_path / "m" / "README.md").read_text() == "# A card"


@torch.no_grad()
def test_scores_equal_sequence_classification_padded_or_not(
    tiny_config: DecoderConfig, words: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = ScalarModel(tiny_config)
    scramble(model)
    save_scalar(tmp_path / "m", model, words, RewardScale(0.3, 2.0))
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert opened.config.num_labels == 1
    ids = some_ids(3, 30, words.vocab_size)
    wanted = opened(ids).logits.squeeze(1)
    torch.testing.assert_close(model(ids).view(3, 30)[:, -1], wanted, rtol=0.0, atol=1e-4)
    padded = torch.cat([ids, torch.full((3, 7), words.pad_id)], 1)
    hf_padded = opened(padded, attention_mask=(padded != words.pad_id).long()).logits.squeeze(1)
    torch.testing.assert_close(hf_padded, wanted, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(model(padded).view(3, 37)[:, 29], wanted, rtol=0.0, atol=1e-4)


@torch.no_grad()
def test_scores_at_the_end_token_where_it_was_the_padding_too(
    tiny_config: DecoderConfig, words: Tokenizer, tmp_path: Path
) -> None:
    """As in most chat models. `transformers` reads the last token that is not padding: not the one before the end."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    words.save(tmp_path / "t")
    settings = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(settings))
    one = load_tokenizer(tmp_path / "t")
    assert one.pad_id == one.end_id
    model = ScalarModel(tiny_config)
    scramble(model)
    save_scalar(tmp_path / "m", model, one)
    folder = tmp_path / "m"
    opened, reader = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["a slow film", "a slow, warm film that earns its last scene", "no"]
    given = reader([text + reader.eos_token for text in texts], padding=True, return_tensors="pt")
    theirs = opened.eval()(given.input_ids, attention_mask=given.attention_mask).logits.squeeze(1)
    examples = [Example((), (*one.encode(text), one.end_id)) for text in texts]
    batch = collate(examples, one.pad_id)
    torch.testing.assert_close(model(batch.ids_BT, batch.length_B, batch.last_B), theirs, rtol=0.0, atol=1e-4)


@torch.no_grad()
def test_reads_a_reward_model_that_transformers_saved(words: Tokenizer, tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    oracle = scramble(LlamaForSequenceClassification(hf_config(words, num_key_value_heads=2, num_labels=1)))
    oracle.save_pretrained(tmp_path)
    words.save(tmp_path)
    model, _, scale = load_scalar(tmp_path)
    ids = some_ids(2, 20, words.vocab_size)
    torch.testing.assert_close(model.eval()(ids).view(2, -1)[:, -1], oracle(ids).logits.squeeze(1), rtol=0.0, atol=1e-4)
    assert scale == RewardScale(0.0, 1.0)


@torch.no_grad()
def test_reads_shards(words: Tokenizer, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    oracle = scramble(LlamaForCausalLM(hf_config(words, num_key_value_heads=2, tie_word_embeddings=False)))
    oracle.save_pretrained(tmp_path, max_shard_size="40KB")
    words.save(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    model, _ = load_policy(tmp_path)
    ids = some_ids(2, 20, words.vocab_size)
    torch.testing.assert_close(model.eval()(ids), oracle(ids).logits, rtol=0.0, atol=1e-4)
    shards[0].unlink()
    with pytest.raises(DataError, match=shards[0].name):
        load_policy(tmp_path)


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_policy_round_trip_is_bit_equal(
    tied: bool, tiny_config: DecoderConfig, words: Tokenizer, tmp_path: Path
) -> None:
    model = random_policy(replace(tiny_config, tied=tied), 1)
    save_policy(tmp_path / "m", model, words)
    again, reader = load_policy(tmp_path / "m")
    assert again.config == model.config
    assert reader.encode("a warm corner") == words.encode("a warm corner")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_saving_again_replaces_the_folder(tiny_config: DecoderConfig, words: Tokenizer, tmp_path: Path) -> None:
    save_scalar(tmp_path / "m", ScalarModel(tiny_config), words, RewardScale(1.0, 2.0))
    second = random_policy(tiny_config, 2)
    save_policy(tmp_path / "m", second, words)
    assert not (tmp_path / "m" / "reward.json").exists()
    assert torch.equal(load_policy(tmp_path / "m")[0].head_weight_VD, second.head_weight_VD)


def test_reward_model_round_trip_is_bit_equal(tiny_config: DecoderConfig, words: Tokenizer, tmp_path: Path) -> None:
    model = ScalarModel(tiny_config)
    init_weights(model, 0)
    init_score_head(model, 0)
    save_scalar(tmp_path / "m", model, words, RewardScale(offset=-0.125, scale=3.0))
    again, _, scale = load_scalar(tmp_path / "m")
    assert scale == RewardScale(-0.125, 3.0)
    before, after = model.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_policy_becomes_a_reward_model_under_a_fresh_head(policy_folder: Path, tiny_config: DecoderConfig) -> None:
    policy, _ = load_policy(policy_folder)
    first, second, other = (load_scalar(policy_folder, head_seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.model.embed_tokens.weight, policy.model.embed_tokens.weight)
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)


def test_a_reward_model_keeps_its_head_whatever_the_seed(reward_folder: Path) -> None:
    kept, _, _ = load_scalar(reward_folder, head_seed=5)
    assert torch.equal(kept.score.weight, load_file(reward_folder / "model.safetensors")["score.weight"])


def test_half_precision_checkpoints_become_fp32_masters(policy_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(policy_folder, tmp_path / "m")
    weights = load_file(policy_folder / "model.safetensors")
    save_file({name: t.bfloat16() for name, t in weights.items()}, tmp_path / "m" / "model.safetensors")
    model, _ = load_policy(tmp_path / "m")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.head_weight_VD, weights["model.embed_tokens.weight"].bfloat16().float())


# -- clear errors ------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(policy_folder: Path, tmp_path: Path) -> Path:
    """A good folder for a test to spoil."""
    return Path(shutil.copytree(policy_folder, tmp_path / "model"))


def spoil_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "gpt2"}, "n_embd"),
        ({"model_type": None}, "model_type is None"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "rope scaling"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope scaling"),
        ({"hidden_act": "relu"}, "relu"),
        ({"attention_bias": True}, "bias"),
        ({"mlp_bias": True}, "bias"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"intermediate_size": 50}, r"\(48, 32\), not \(50, 32\)"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(broken: Path, changes: dict[str, Any], says: str) -> None:
    spoil_config(broken, **changes)
    with pytest.raises(DataError, match=says) as caught:
        load_policy(broken)
    assert str(broken) in str(caught.value)


def test_config_that_is_no_object(broken: Path) -> None:
    (broken / "config.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"config\.json"):
        load_policy(broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json"):
        load_policy(broken)
    (broken / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json"):
        load_policy(broken)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": 3}'])
def test_a_malformed_index_of_shards(broken: Path, content: str) -> None:
    (broken / "model.safetensors.index.json").write_text(content)
    (broken / "model.safetensors").unlink()  # beside the whole file no index is read
    with pytest.raises(DataError, match=r"no weight_map.*"):
        load_policy(broken)


@pytest.mark.parametrize("content", ["{}", "[]", '{"offset": "far", "scale": 1}', "nan"])
def test_a_malformed_reward_scale(reward_folder: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(reward_folder, tmp_path / "m"))
    (folder / "reward.json").write_text(content)
    with pytest.raises(DataError, match=r"reward\.json"):
        load_scalar(folder)


def test_no_folder(tmp_path: Path) -> None:
    for load in (load_policy, load_scalar):
        with pytest.raises(DataError, match="no such model folder"):
            load(tmp_path / "nowhere")


def test_pickled_weights_are_refused(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    torch.save(weights, broken / "pytorch_model.bin")
    with pytest.raises(DataError, match="pickled ones are refused"):
        load_policy(broken)


@pytest.mark.parametrize("content", [b"", b"no tensors here, only a sentence", None])
def test_corrupt_weights(broken: Path, content: bytes | None) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(DataError, match=r"cannot be read.*|model\.safetensors") as caught:
        load_policy(broken)
    assert "model.safetensors" in str(caught.value)


def test_missing_weights_are_named(broken: Path) -> None:
    path = broken / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path)
    with pytest.raises(DataError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_policy(broken)


def test_a_policy_is_no_reward_model(policy_folder: Path) -> None:
    with pytest.raises(DataError, match=r"no score\.weight"):
        load_scalar(policy_folder)


def test_tokenizer_is_part_of_the_folder(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_policy(broken)


def test_a_tokenizer_larger_than_the_embedding_is_refused(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:100].clone()
    save_file(weights, broken / "model.safetensors")
    spoil_config(broken, vocab_size=100)
    with pytest.raises(DataError, match="vocab"):
        load_policy(broken)


def test_too_long_a_sequence(policy: CausalLM) -> None:
    with pytest.raises(AccordError, match="65 tokens but the model has 64 positions"):
        policy(torch.zeros(1, 65, dtype=torch.long))


# -- numerics ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(policy: CausalLM) -> None:
    ids = some_ids(2, 20, policy.config.vocab_size)
    padded = torch.cat([ids, torch.full((2, 9), 1)], 1)
    torch.testing.assert_close(policy(padded)[:, :20], policy(ids), rtol=0.0, atol=1e-4)


@torch.no_grad()
def test_decoding_with_a_cache_equals_the_full_pass(policy: CausalLM) -> None:
    lengths, steps = torch.tensor([7, 3, 12]), 6
    ids = some_ids(3, 18, policy.config.vocab_size)
    full = policy.model(ids).view(3, 18, -1)
    cache = policy.model.decoding(3, 18)
    rows = torch.arange(3)
    with policy.model.packed():
        prefill = policy.model.prefill(cache, ids[:, :12], lengths)
        torch.testing.assert_close(prefill, full[rows, lengths - 1], rtol=0.0, atol=1e-4)
        for step in range(steps):
            hidden = policy.model.step(cache, ids[rows, lengths + step])
            torch.testing.assert_close(hidden, full[rows, lengths + step], rtol=0.0, atol=1e-4)


@torch.no_grad()
def test_rows_enter_repeat_and_leave_while_others_are_decoded(policy: CausalLM) -> None:
    """Texts 1, 0, 1 enter, one step; row 0 leaves and row 2 takes its place; text 2 enters; two steps of all."""
    lengths = torch.tensor([4, 6, 9])
    ids = some_ids(3, 16, policy.config.vocab_size)
    full = policy.model(ids).view(3, 16, -1)
    cache = policy.model.decoding(2, 3)  # too small: it has to grow
    cache.reserve(3, 9)
    entered = policy.model.prefill(cache, ids[:2, :6], lengths[:2], torch.tensor([1, 0, 1]))
    torch.testing.assert_close(entered, full[[1, 0, 1], [5, 3, 5]], rtol=0.0, atol=1e-4)
    text, place = torch.tensor([1, 0, 1]), lengths[[1, 0, 1]]
    hidden = policy.model.step(cache, ids[text, place])
    torch.testing.assert_close(hidden, full[text, place], rtol=0.0, atol=1e-4)
    cache.keep([2, 1])
    cache.reserve(3, 12)
    policy.model.prefill(cache, ids[2:, :9], lengths[2:])
    text, place = torch.tensor([1, 0, 2]), torch.tensor([7, 5, 9])
    for _ in range(2):
        hidden = policy.model.step(cache, ids[text, place])
        torch.testing.assert_close(hidden, full[text, place], rtol=0.0, atol=1e-4)
        place = place + 1
    assert cache.num_rows == 3
    cache.keep([])
    assert (cache.num_rows, cache.longest) == (0, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[9, 9, 9], [3, 9, 5]])
def test_the_last_block_computes_what_is_read(lengths: list[int], dropout: float, policy: CausalLM) -> None:
    """Hidden states and gradients are those of the same tokens in a pass that computes all."""
    model, ids = policy.model, some_ids(3, 9, policy.config.vocab_size)
    model.dropout = dropout
    model.train()
    read = torch.tensor([0, 2, 4, 16])
    found = []
    for chosen in (None, read):
        torch.manual_seed(0)
        hidden = model(ids, torch.tensor(lengths), chosen)
        hidden = hidden[read] if chosen is None else hidden
        assert hidden.shape == (4, policy.config.width)
        hidden.pow(3).sum().backward()
        found.append((hidden.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    (whole, gradients), (part, same) = found
    torch.testing.assert_close(part, whole, rtol=0.0, atol=1e-5)
    for ours, wanted in zip(same, gradients, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_the_last_block_computes_nothing_else(policy: CausalLM) -> None:
    seen = []
    handle = policy.model.layers[-1].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    policy.model(some_ids(3, 9, policy.config.vocab_size), None, torch.tensor([8, 17, 26]))
    handle.remove()
    assert seen == [3]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_padding_is_not_computed(dropout: float, policy: CausalLM) -> None:
    """Rows of 3, 9 and 5 tokens in one rectangle: hidden states and gradients of each row alone, 17 rows in all."""
    lengths, model = [3, 9, 5], policy.model
    model.dropout = dropout
    model.train()
    ids = some_ids(3, 9, policy.config.vocab_size)

    def gradients() -> dict[str, Tensor]:
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    torch.manual_seed(0)
    together = model(ids, torch.tensor(lengths))
    assert together.shape == (17, policy.config.width)
    together.pow(2).sum().backward()
    padded_away = gradients()
    torch.manual_seed(0)
    whole = model(ids).view(3, 9, -1)
    alone = torch.cat([row[:length] for row, length in zip(whole, lengths, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0.0, atol=1e-5)
    alone.pow(2).sum().backward()
    for name, gradient in gradients().items():
        torch.testing.assert_close(padded_away[name], gradient, rtol=1e-4, atol=1e-4)


def test_checkpointing_changes_memory_and_nothing_else(policy: CausalLM) -> None:
    ids, kept = some_ids(4, 20, policy.config.vocab_size), []
    for checkpointing in (False, True):
        policy.model.checkpointing = checkpointing
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            hidden = policy.model(ids)
        hidden.pow(2).sum().backward()
        kept.append((saved, [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]))
        policy.zero_grad()
    (many, plain), (few, again) = kept
    assert few < many / 3
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_packed_weights_are_let_go(policy: CausalLM) -> None:
    ids = some_ids(1, 5, policy.config.vocab_size)
    with pytest.raises(ZeroDivisionError), policy.model.packed():
        _ = 1 / 0
    before = policy(ids)
    with torch.no_grad():
        policy.model.layers[0].self_attn.q_proj.weight.mul_(3.0)
    assert not torch.equal(policy(ids), before)


@pytest.mark.parametrize("T", [40, 300])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_bf16_is_close_to_fp32(T: int, kv_heads: int, tiny_config: DecoderConfig) -> None:
    """Both attention paths (plain products up to 256 tokens, the fused kernel above), forward and backward."""
    model = random_policy(replace(tiny_config, num_kv_heads=kv_heads, max_positions=512), 0, std=0.1)
    ids = some_ids(2, T, model.config.vocab_size)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    batch = Batch(ids, mask, torch.full((2,), T))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.model.compute_dtype = dtype
        model.zero_grad()
        logp = logp_and_entropy(model, batch, entropy=False)[0]
        logp.mean().backward()
        found[dtype] = logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    (exact, exact_grad), (rough, rough_grad) = found[torch.float32], found[torch.bfloat16]
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert float((exact - rough).abs().mean()) < 0.02
    assert float(torch.cosine_similarity(exact_grad, rough_grad, dim=0)) > 0.995


def test_dropout_keeps_the_mean_and_one_mask_a_sequence() -> None:
    torch.manual_seed(0)
    x, nothing = torch.ones(1200, 50), torch.empty(0)
    run = Whole(nothing, nothing, nothing, torch.float32, B=400, T=3, run=Layout(), read=Layout(), cache=None)
    got = run.drop(x, 0.25)
    rows = got.view(400, 3, 50)
    assert torch.equal(rows[:, 0], rows[:, 1])
    # 20000 draws of 0 or 4/3: standard error 4/3 * sqrt(.1875 / 20000) = .004
    assert float(got.mean()) == pytest.approx(1.0, abs=0.02)
    assert got.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert run.drop(x, 0.0) is x


def test_dropout_is_off_in_eval_mode(policy: CausalLM) -> None:
    policy.model.dropout = 0.5
    ids = some_ids(1, 6, policy.config.vocab_size)
    assert torch.equal(policy(ids), policy(ids))
    policy.train()
    assert not torch.equal(policy(ids), policy(ids))


def test_start_weights_follow_the_seed_and_the_depth(tiny_config: DecoderConfig) -> None:
    config = replace(tiny_config, width=128, ffn=256, head_width=32, num_layers=8)
    first, second, other = CausalLM(config), CausalLM(config), CausalLM(config)
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        init_weights(model, seed)
    assert torch.equal(first.head_weight_VD, second.head_weight_VD)
    assert not torch.equal(first.head_weight_VD, other.head_weight_VD)
    weights = first.state_dict()
    assert float(weights["model.layers.0.mlp.up_proj.weight"].std()) == pytest.approx(0.02, rel=0.05)
    # .02 / sqrt(2 * 8)
    assert float(weights["model.layers.3.mlp.down_proj.weight"].std()) == pytest.approx(0.005, rel=0.05)
    assert bool((weights["model.norm.weight"] == 1).all())


def test_score_head_starts_at_one_over_root_width(tiny_config: DecoderConfig) -> None:
    # 1 / sqrt(768 + 1) = .036061, as in the table of ALGORITHMS check 20; 768 draws: within 8 %
    model = ScalarModel(replace(tiny_config, width=768, num_layers=1))
    init_score_head(model, 0)
    assert float(model.score.weight.detach().std()) == pytest.approx(0.036061, rel=0.08)


class Largest(TorchDispatchMode):
    """Remembers the most entries of any tensor made while it is on, forward or backward."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self.entries = max(self.entries, tensor.numel())
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def test_no_tensor_holds_all_logits(tiny_config: DecoderConfig) -> None:
    B, T, V = 12, 64, 40_000
    model = CausalLM(replace(tiny_config, vocab_size=V, max_positions=T))
    init_weights(model, 0)
    ids = some_ids(B, T, V)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    with Largest() as largest:
        batch = Batch(ids, mask, torch.full((B,), T))
        loss = -logp_and_entropy(model, batch, entropy=False)[0].mean()
        loss.backward()
    # all logits would be 12 * 63 * 40 000 = 30 million; one chunk is 256 rows, 10 million, the embedding 1.3
    assert V * 32 <= largest.entries <= 256 * V
    with Largest() as all_at_once, torch.no_grad():
        model(ids)
    assert all_at_once.entries == B * T * V  # the watcher does see such a tensor


def test_precision_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.compute_dtype("fp32") == torch.float32
    assert precision.compute_dtype("bf16") == torch.bfloat16
    for flags, wanted in (({"avx512_bf16"}, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16), ({"avx2"}, torch.float32)):
        monkeypatch.setattr(precision, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert precision.compute_dtype("auto") == wanted
    with pytest.raises(UsageError, match="fp17"):
        precision.compute_dtype("fp17")
