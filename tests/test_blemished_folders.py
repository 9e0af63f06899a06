"""Model folders as they come: each blemish gives the model that `transformers` reads, or is refused in words.

The truth is `transformers` on the same folder. Whatever is read is saved too, and opened again by both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_families
import test_transformers_adapter as foreign
import torch
from conftest import TEXTS
from safetensors.torch import load_file, save_file
from test_families import some_ids
from torch import Tensor

from accord.errors import DataError
from accord.models.folder import load_policy, save_policy
from accord.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

# peft asks transformers for an attribute that it has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Weights = dict[str, Tensor]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "init_lora_weights": False}


@dataclass(frozen=True)
class Blemish:
    """What is done to a healthy folder of a case of `test_families.CASES`; ``says``: a pattern of the refusal."""

    spoil: Callable[[Path], None]
    says: str = ""
    case: str = "llama"


# -- ways to spoil -----------------------------------------------------------------------------------------------------


def config(**changes: Any) -> Callable[[Path], None]:
    """Other entries in `config.json`; ... takes one away."""

    def spoil(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        write(folder / "config.json", {key: value for key, value in raw.items() if value is not ...})

    return spoil


def weights(change: Callable[[Weights], Mapping[str, Tensor]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        save_file(dict(change(load_file(folder / WEIGHTS))), folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for step in steps:
            step(folder)

    return spoil


def write(path: Path, content: object) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def file(name: str, content: object) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, content)


def split(folder: Path, *, stale: bool = False, whole: bool = False, **named: str) -> None:
    """Write two shards and their index. ``stale``: the second also holds an old copy of what the first has."""
    held = load_file(folder / WEIGHTS)
    names = sorted(held)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    files = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for part, name in zip(parts, files, strict=True):
        old = {one: held[one] + 1 for one in parts[0]} if stale and part is parts[1] else {}
        more = {one: held[one] + 1 for one in part} if whole else {one: held[one] for one in part}
        save_file(old | more, folder / name, metadata={"format": "pt"})
    where = {one: name for part, name in zip(parts, files, strict=True) for one in part}
    write(folder / INDEX, {"metadata": {}, "weight_map": where | named})
    if not whole:
        (folder / WEIGHTS).unlink()


def head(change: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    """A head beside an embedding that it is said to be."""
    return lambda held: held | {"lm_head.weight": change(held["model.embed_tokens.weight"])}


def adapter(folder: Path, **settings: Any) -> None:
    """An adapter of peft's, in the folder of its base."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(folder)
    chosen = ADAPTER | {"target_modules": ["q_proj", "up_proj"]} | settings
    peft.get_peft_model(base, peft.LoraConfig(**chosen)).save_pretrained(folder)


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    for name in (WEIGHTS, "config.json"):
        (folder / name).unlink()


def other_tokenizer(entries: int) -> Callable[[Path], None]:
    return lambda folder: train_tokenizer(TEXTS, entries).save(folder)


def hole(folder: Path) -> None:
    """The number of entries fits, the highest id does not."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    last = max((token for token in vocab), key=vocab.__getitem__)
    vocab[last] = 5000
    raw["model"]["merges"] = [merge for merge in raw["model"]["merges"] if "".join(merge) != last]
    write(folder / "tokenizer.json", raw)


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


LAYER_TYPES = ["full_attention", "sliding_attention", "full_attention"]
OLD_ROPE = {"type": "linear", "factor": 3.0}
JOINED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}

BLEMISHES: dict[str, Blemish] = {
    # which file holds the weights
    "stale shards beside the whole": Blemish(lambda folder: split(folder, whole=True)),
    "a shard with stale copies": Blemish(lambda folder: split(folder, stale=True), "stands in two files"),
    "a shard that is gone": Blemish(lambda f: split(f, **{"model.norm.weight": "model-3.safetensors"}), "no model-3"),
    "a tensor in the other shard": Blemish(
        lambda folder: split(folder, **{"model.norm.weight": "model-00001-of-00002.safetensors"})
    ),
    "an index that leads out": Blemish(lambda f: split(f, **{"x": "../secret.safetensors"}), "no file of this folder"),
    "an index with an absolute path": Blemish(lambda f: split(f, **{"x": "/etc/passwd"}), "no file of this folder"),
    "half of the weights": Blemish(cut, "cannot be read"),
    "pickled weights alone": Blemish(pickled, "pickled ones are"),
    # what the weights are
    "tied beside another head": Blemish(weights(head(lambda e: e.flip(0).contiguous())), case="llama, tied"),
    "tied beside its own head": Blemish(weights(head(Tensor.clone)), case="llama, tied"),
    "untied without a head": Blemish(config(tie_word_embeddings=False), "lm_head.weight is missing", "llama, tied"),
    "tied, of a foreign family": Blemish(weights(head(lambda e: e.flip(0).contiguous())), case="gemma3"),
    "weights in bf16": Blemish(weights(lambda held: {name: tensor.bfloat16() for name, tensor in held.items()})),
    "bf16 named, fp32 stored": Blemish(config(torch_dtype="bfloat16", dtype=...)),
    "a value head of another program": Blemish(
        weights(lambda held: held | {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)})
    ),
    "buffers of old checkpoints": Blemish(
        weights(lambda held: held | {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}), case="gpt2"
    ),
    "names without the prefix": Blemish(
        weights(lambda held: {name.removeprefix("transformer."): tensor for name, tensor in held.items()}), case="gpt2"
    ),
    "quantised, as it says": Blemish(config(quantization_config={"quant_method": "gptq"}), "quantised"),
    "whole numbers": Blemish(
        weights(lambda held: held | {"model.layers.0.self_attn.q_proj.weight": torch.ones(32, 32, dtype=torch.int8)}),
        "quantised",
    ),
    "one layer too few": Blemish(config(num_hidden_layers=2), "does not know"),
    "one layer too many": Blemish(config(num_hidden_layers=4), r"layers\.3.* is missing"),
    "an embedding that has grown": Blemish(config(vocab_size=300), "shape"),
    # what config.json says of the shape
    "rope_scaling in a new config": Blemish(config(rope_scaling=OLD_ROPE)),
    "rope_scaling of transformers 4": Blemish(config(rope_scaling=OLD_ROPE, rope_theta=500.0, rope_parameters=...)),
    "rope_theta apart": Blemish(config(rope_parameters=..., rope_theta=77.0)),
    "two scalings": Blemish(config(rope_scaling=OLD_ROPE, rope_parameters=JOINED)),
    "rope by kind of layer": Blemish(config(rope_parameters={"full_attention": JOINED}), "differ by layer"),
    "rope that follows the length": Blemish(config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
    "heads turned in part": Blemish(
        config(rope_parameters={"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5}), "in part"
    ),
    "rotary_pct and its new name": Blemish(config(rotary_pct=1.0), case="gpt_neox"),
    "mixed layers": Blemish(config(layer_types=LAYER_TYPES), case="mistral"),
    "mixed layers, one too few": Blemish(config(layer_types=LAYER_TYPES[:2]), "2 kinds of layers", "mistral"),
    "layers in chunks": Blemish(config(layer_types=3 * ["chunked_attention"]), "chunked_attention", "mistral"),
    "no word of a window": Blemish(config(sliding_window=...), case="mistral"),
    "mixed layers of qwen": Blemish(config(layer_types=LAYER_TYPES), case="qwen2, windows"),
    "no width of a head": Blemish(config(head_dim=None)),
    "as many keys as heads": Blemish(config(num_key_value_heads=..., head_dim=8), "shape"),
    "projections with a bias": Blemish(config(attention_bias=True), "bias"),
    "an activation of its own": Blemish(config(hidden_act="laplace"), "laplace"),
    "a billion layers": Blemish(config(num_hidden_layers=10**9), "no model has more"),
    "a billion layers of a foreign family": Blemish(config(num_hidden_layers=10**9), "no model has more", "gemma3"),
    "a huge vocabulary": Blemish(config(vocab_size=2**30), "shape"),
    "a huge vocabulary of a foreign family": Blemish(config(vocab_size=2**30), "far larger", "gemma3"),
    "a billion positions": Blemish(config(max_position_embeddings=10**9), "positions is"),
    "a size that is no number": Blemish(config(hidden_size=1e400), "malformed"),
    "no heads": Blemish(config(num_attention_heads=0, num_key_value_heads=None), "num_heads is 0"),
    "fewer than no layers": Blemish(config(num_hidden_layers=-1), "num_layers is -1"),
    "a list for a config": Blemish(file("config.json", [1]), "malformed"),
    "a config nested deeply": Blemish(file("config.json", "[" * 100_000 + "]" * 100_000), "nested too deeply"),
    # what lies beside it
    "an adapter beside the whole": Blemish(adapter),
    "an adapter by itself": Blemish(adapter_alone, "an adapter, not a whole model"),
    "an adapter of another kind": Blemish(lambda folder: adapter(folder, use_dora=True), "use_dora"),
    "an adapter beside a foreign family": Blemish(adapter, "an adapter lies beside", "gemma3"),
    # ids
    "ends in config.json alone": Blemish(both(config(eos_token_id=[0, 7]), file("generation_config.json", {}))),
    "an end beyond the vocabulary": Blemish(file("generation_config.json", {"eos_token_id": 99_999}), "99999"),
    "an end that is a word": Blemish(file("generation_config.json", {"eos_token_id": "</s>"}), "eos_token_id is"),
    "a beginning beyond the vocabulary": Blemish(config(bos_token_id=50_256)),
    "a hole in the vocabulary": Blemish(hole, "highest id is 5000"),
    "a tokenizer of another model": Blemish(other_tokenizer(340), "highest id is 33"),
    "a generation config of nothing": Blemish(file("generation_config.json", "[]"), "not a JSON object"),
}


def spoilt(blemish: Blemish, words: Tokenizer, folder: Path) -> Path:
    if blemish.case in foreign.CASES:
        foreign.saved(foreign.oracle_of(*foreign.CASES[blemish.case], words), words, folder)
    else:
        test_families.saved(test_families.oracle_of(blemish.case, words), words, folder)
    blemish.spoil(folder)
    return folder


@torch.no_grad()
def logits_of(folder: Path, ids: Tensor) -> Tensor:
    import transformers

    transformers.logging.set_verbosity_error()
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits: Tensor = whole.eval()(ids).logits
    return logits


@pytest.mark.parametrize("name", [name for name, blemish in BLEMISHES.items() if not blemish.says])
@torch.no_grad()
def test_it_is_the_model_that_transformers_reads(name: str, words: Tokenizer, tmp_path: Path) -> None:
    folder, ids = spoilt(BLEMISHES[name], words, tmp_path / "as it comes"), some_ids(2, 40, words)
    wanted = logits_of(folder, ids)
    model, tokenizer = load_policy(folder)
    assert wanted.std() > 0.3 and float((model.eval()(ids) - wanted).abs().max()) < 1e-3
    save_policy(tmp_path / "saved", model, tokenizer)
    assert float((logits_of(tmp_path / "saved", ids) - wanted).abs().max()) < 1e-3
    assert float((load_policy(tmp_path / "saved")[0].eval()(ids) - wanted).abs().max()) < 1e-3


@pytest.mark.parametrize("name", [name for name, blemish in BLEMISHES.items() if blemish.says])
def test_it_is_refused_in_words(name: str, words: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=BLEMISHES[name].says) as caught:
        load_policy(spoilt(BLEMISHES[name], words, tmp_path / "as it comes"))
    assert caught.value.exit_code == 3 and str(tmp_path) in str(caught.value)


# -- what a save keeps -------------------------------------------------------------------------------------------------


def llama(words: Tokenizer, folder: Path) -> Path:
    return test_families.saved(test_families.oracle_of("llama", words), words, folder)


@pytest.mark.parametrize("said", [{"eos_token_id": [0, 7]}, {"eos_token_id": 7}, {"eos_token_id": None}])
def test_sampling_stops_where_transformers_stops(said: dict[str, Any], words: Tokenizer, tmp_path: Path) -> None:
    """An end that config.json alone names ends a sample, and a saved model still names it."""
    from transformers import AutoModelForCausalLM

    folder = llama(words, tmp_path / "m")
    (folder / "generation_config.json").unlink()
    config(**said)(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    model, tokenizer = load_policy(folder)
    named = {theirs} if isinstance(theirs, int) else set(theirs or [])
    assert named | {words.end_id} == set(tokenizer.stop_ids)
    save_policy(tmp_path / "saved", model, tokenizer)
    assert load_tokenizer(tmp_path / "saved").stop_ids == tokenizer.stop_ids
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id
    assert ({again} if isinstance(again, int) else set(again)) == set(tokenizer.stop_ids)


def test_bos_and_sampling_settings_survive_a_save(words: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    folder = llama(words, tmp_path / "m")
    config(bos_token_id=5)(folder)
    said = {"top_p": 0.8, "repetition_penalty": 1.1, "temperature": 0.6, "top_k": 20, "do_sample": True}
    write(folder / "generation_config.json", {"bos_token_id": 5, "eos_token_id": [words.end_id, 9], **said})
    for step in ("once", "twice"):
        save_policy(tmp_path / step, *load_policy(folder))
        folder = tmp_path / step
    assert AutoConfig.from_pretrained(folder).bos_token_id == 5
    kept = GenerationConfig.from_pretrained(folder)
    assert {name: getattr(kept, name) for name in said} == said
    assert (kept.bos_token_id, kept.eos_token_id, kept.pad_token_id) == (5, [words.end_id, 9], words.pad_id)


def test_a_model_without_bos_gets_none_by_a_save(words: Tokenizer, tmp_path: Path) -> None:
    """Left out, `transformers` would take its architecture's usual one: here that is somebody's word."""
    from transformers import AutoConfig

    folder = llama(words, tmp_path / "m")
    config(bos_token_id=...)(folder)
    (folder / "generation_config.json").unlink()
    save_policy(tmp_path / "saved", *load_policy(folder))
    assert AutoConfig.from_pretrained(tmp_path / "saved").bos_token_id is None
