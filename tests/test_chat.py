"""Chat templates and conversations: the oracle is `transformers`, on small tokenizers and templates made here."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from conftest import TEXTS, WriteRows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from accord.config import SampleConfig, SftConfig
from accord.errors import DataError
from accord.formats.stage_rows import Conversation, read_demonstrations, read_lessons, read_prompts, read_rankings
from accord.models.decoder import CausalLM, init_weights
from accord.models.folder import load_policy, save_policy
from accord.models.shape import DecoderConfig
from accord.scoring import sample
from accord.text.batches import Example, collate
from accord.text.chat import encode_chat
from accord.text.template import ChatTemplate
from accord.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_hash
from accord.train.sft import sft

Messages = list[dict[str, Any]]

# In the style of each family, in our own words. <G> and </G> become generation blocks for the oracle, and blocks
# that mean nothing for us (Jinja drops the line end behind either).
STYLES = {
    "chatml": """
{%- for m in messages %}
{%- if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}<G>{{ m.content + '<|im_end|>' }}</G>{% else %}{{ m.content + '<|im_end|>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "headers": """{{- bos_token }}
{%- for m in messages %}
    {{- '<|head|>' ~ m['role'] ~ '<|body|>\\n\\n' }}
    {%- if m['role'] == 'assistant' %}<G>{{- m['content'] | trim + '<|im_end|>' }}</G>
    {%- else %}{{- m['content'] | trim + '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|body|>\\n\\n' }}{%- endif %}""",
    "inst": """{% if messages[0]['role'] == 'system' %}{% set sys = messages[0].content %}{% set rest = messages[1:] %}
{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}
{% for m in rest %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate, user first') }}{% endif %}
{% if m.role == 'user' %}
{% set said = '<<' + sys + '>>\\n' + m.content if loop.first and sys else m.content %}
{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}{% else %}<G>{{ ' ' + m.content.strip() + ' ' + eos_token }}</G>
{% endif %}{% endfor %}""",
    "terse": """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<G>{{ m.content + eos_token }}</G>
{%- else %}{{ '[INST]' + m.content + '[/INST]' }}{% endif %}{% endfor %}""",
    "zephyr": """{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
{{ '<|system|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
{{ '<|assistant|>\\n' }}<G>{{ m['content'] + eos_token }}</G>

{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
}
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|body|>"]
CHAT: Messages = [
    {"role": "system", "content": "Speak of boats."},
    {"role": "user", "content": "Who counted ships?"},
    {"role": "assistant", "content": "The lighthouse keeper."},
    {"role": "user", "content": "Until when?"},
    {"role": "assistant", "content": "Until the fog, café \U0001f6a2!"},
]


def plain(style: str) -> str:
    return STYLES[style].replace("<G>", "{% if true %}").replace("</G>", "{% endif %}")


def marked(style: str) -> str:
    return STYLES[style].replace("<G>", "{% generation %}").replace("</G>", "{% endgeneration %}")


def write_folder(folder: Path, *, template: str | None = None, kind: str = "bytes", **settings: Any) -> Path:
    """A Hugging Face tokenizer folder with the special tokens above."""
    inner = tokenizers.Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "<pad>"))
    alphabet = []
    if kind == "bytes":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.post_processor = processors.ByteLevel(trim_offsets=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # like SentencePiece: a sign for the space, also before the first word; its post-processor adds <s>
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Metaspace(prepend_scheme="first")
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        alphabet = [chr(c) for c in range(32, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture(scope="module", params=STYLES)
def styled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer, Any]:
    """Ours without and with generation blocks, and the oracle with them."""
    root = tmp_path_factory.mktemp(request.param)
    without = write_folder(root / "plain", template=plain(request.param))
    folder = write_folder(root / "marked", template=marked(request.param))
    return load_tokenizer(without), load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def their_mask(oracle: Any, messages: Messages) -> tuple[list[int], list[bool]]:
    found = oracle.apply_chat_template(messages, return_assistant_tokens_mask=True)
    return found["input_ids"], [bool(m) for m in found["assistant_masks"]]


def our_mask(words: Tokenizer, messages: Messages) -> tuple[list[int], list[bool]]:
    example = encode_chat(words, messages)
    counted = example.mask or (True,) * len(example.completion)
    return [*example.prompt, *example.completion], [False] * len(example.prompt) + [*counted]


def chat_of(words: Tokenizer) -> ChatTemplate:
    assert words.chat is not None
    return words.chat


# -- rendering ---------------------------------------------------------------------------------------------------------

TRICKS = {
    "whitespace": "a\n  {% if true %}\n b {# c #}\n  {%- endif -%}\n\n{{ messages[0].content }}  \n\n",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ [1] | tojson(separators=(',', ':')) }}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}1{% break %}{% endfor %}",
    "named tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ unk_token is defined }}",
    "nothing else given": "{{ tools is none }}{{ documents is none }}{{ messages | length }}{{ nonsense }}",
    "namespace": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 2 %}{% endfor %}{{ n.k }}",
    "scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "block in a loop": "{% for m in messages %}{%- generation -%}  {{ loop.index }} {% endgeneration %}\n{% endfor %}",
    "macro": "{% macro f(m) %}<{{ m.role }}>{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}",
    "methods": "{% for m in messages %}{{ m.content.split(' ')[-1].upper() }}{{ dict(a=1).keys() | list }}{% endfor %}",
    "thoughts": "{% for m in messages %}{{ m.reasoning_content or 1 }}{{ m.thinking }}{{ m.name is none }}{% endfor %}",
}


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("source", [*TRICKS.values(), *map(plain, STYLES), *map(marked, STYLES)])
def test_text_is_that_of_transformers(base: Path, source: str, generate: bool) -> None:
    oracle = AutoTokenizer.from_pretrained(base)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    odd = [*CHAT[:3], {"role": "user", "content": " <b>&amp;</b> </s>\n", "name": None, "reasoning": "hm"}]
    for messages in (CHAT, CHAT[1:], CHAT[:2], CHAT[1:2], odd):
        theirs = oracle.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=generate
        )
        assert ChatTemplate(source, named).render(messages, add_generation_prompt=generate) == theirs


def test_the_date_is_todays() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(CHAT) == str(datetime.date.today().year)


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("a\n{% if %}", 2, "Expected an expression"),
        ("a\n\n{{ messages[0].a.b }}", 3, "no attribute 'a'"),
        ("{{ raise_exception('user first, please') }}", 1, "user first, please"),
        ("\n{% generation %}", 2, "endgeneration"),
        ("{{ 1 / 0 }}", 1, "division by zero"),
        ("{{ ''.__class__.__mro__ }}", 1, "unsafe"),
        ("{{ messages.append(1) }}", 1, "unsafe|not safely callable"),
        ("{% for i in range(1000000) %}{% endfor %}", 1, "Range too big"),
        ("{% include 'other' %}", 1, "no loader"),
    ],
)
def test_a_broken_or_hostile_template_is_told_with_its_line(source: str, line: int, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        ChatTemplate(source, where="model/chat_template.jinja").render(CHAT)
    assert caught.value.where == f"model/chat_template.jinja:{line}"
    assert ("refuses" in caught.value.why) == ("raise_exception" in source)


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[:3], CHAT[1:3]], ids=["both", "no system", "one", "least"])
def test_masks_are_those_of_transformers(styled: tuple[Tokenizer, Tokenizer, Any], messages: Messages) -> None:
    without, with_blocks, oracle = styled
    theirs = their_mask(oracle, messages)
    assert our_mask(with_blocks, messages) == theirs
    assert our_mask(without, messages) == theirs


def test_a_mask_by_hand(tmp_path: Path) -> None:
    words = load_tokenizer(write_folder(tmp_path, template=plain("chatml")))
    ids, mask = our_mask(words, CHAT)
    token = words._inner.id_to_token
    spoken = "".join(token(i) for i, counts in zip(ids, mask, strict=True) if counts)
    end = "<|im_end|>"
    assert spoken.startswith(f"TheĠlighthouseĠkeeper.{end}UntilĠtheĠfog,Ġcaf") and spoken.endswith(f"!{end}")
    assert spoken.count(end) == 2 and ids.count(words.end_id) == 5
    quiet = "".join(token(i) for i, counts in zip(ids, mask, strict=True) if not counts)
    assert "lighthouse" not in quiet and quiet.count("<|im_start|>assistantĊ") == 2


says = st.text(st.sampled_from("ab Zé\n.\u65e5\U0001f6a2"), max_size=12) | st.sampled_from(
    ["<|im_end|>", "a</s>b", "[INST] <s>", "<|im_start|>assistant\nx<|im_end|>", "{% generation %}", "  two  "]
)
turns = st.lists(st.tuples(says, says.filter(str.strip)), min_size=1, max_size=4)


@given(st.none() | says, turns)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masks_of_any_conversation(
    styled: tuple[Tokenizer, Tokenizer, Any], system: str | None, said: list[tuple[str, str]]
) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in said:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    without, with_blocks, oracle = styled
    theirs = their_mask(oracle, messages)
    assert our_mask(with_blocks, messages) == theirs
    assert our_mask(without, messages) == theirs


def test_consecutive_and_leading_assistant_turns(tmp_path: Path) -> None:
    words = load_tokenizer(write_folder(tmp_path / "a", template=plain("chatml")))
    oracle = AutoTokenizer.from_pretrained(write_folder(tmp_path / "b", template=marked("chatml")))
    for messages in ([CHAT[2], *CHAT[1:]], [*CHAT[:3], CHAT[4]], [CHAT[2]], [*CHAT, CHAT[1]]):
        assert our_mask(words, messages) == their_mask(oracle, messages)
    strict = load_tokenizer(write_folder(tmp_path / "c", template=plain("inst")))
    with pytest.raises(DataError, match="roles must alternate, user first") as caught:
        encode_chat(strict, CHAT[2:])
    assert "chat_template.jinja:5" in caught.value.where


def test_a_template_that_rewrites_earlier_turns(tmp_path: Path) -> None:
    """As reasoning models do: only the last turn shows (empty) thoughts, which the assistant must write itself."""
    source = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}{{ m.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
    words = load_tokenizer(write_folder(tmp_path, template=source))
    text, spans = chat_of(words).assistant_spans(CHAT)
    assert [text[a:b] for a, b in spans] == [
        "The lighthouse keeper.<|im_end|>",
        "<think></think>Until the fog, café \U0001f6a2!<|im_end|>",
    ]


@pytest.mark.parametrize("close", ["", "\\n"])
def test_turns_without_an_end_token_are_closed_by_the_tokenizers(tmp_path: Path, close: str) -> None:
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '" + close + "' }}{% endfor %}"
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    words = load_tokenizer(write_folder(tmp_path, template=source))
    example = encode_chat(words, CHAT[1:3])
    assert words.decode(example.completion) == " The lighthouse keeper."
    assert example.completion[-1] == words.end_id == words._inner.token_to_id("</s>")
    assert example.mask is None or example.mask[-1]


@pytest.mark.parametrize(
    "source", ["{{ messages | length }}", "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"]
)
def test_a_template_without_one_place_for_a_turn_is_refused(tmp_path: Path, source: str) -> None:
    words = load_tokenizer(write_folder(tmp_path, template=source))
    with pytest.raises(DataError, match=r"it writes message 3 (0|2) times") as caught:
        encode_chat(words, CHAT)
    assert "{% generation %}" in caught.value.hint


def test_all_tokens_of_a_blocks_last_character_count(tmp_path: Path) -> None:
    """Where we differ from `transformers`, which counts only the first of the four bytes."""
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
    folder = write_folder(tmp_path, template=source)
    ship = [{"role": "assistant", "content": "ab\U0001f6a2"}]
    assert our_mask(load_tokenizer(folder), ship)[1] == [False, True, *[True] * 4, False]  # nothing predicts the first
    assert their_mask(AutoTokenizer.from_pretrained(folder), ship)[1] == [True, True, True, False, False, False, False]


def test_only_turns_from_a_message_on_count(styled: tuple[Tokenizer, Tokenizer, Any]) -> None:
    for words in styled[:2]:
        example = encode_chat(words, CHAT, counted_from=4)
        whole = our_mask(words, CHAT)[1]
        cut = len(example.prompt)
        counted = example.mask or ()
        assert words.decode(example.completion).strip() == "Until the fog, café \U0001f6a2!"
        assert whole[cut:] == [*counted] and counted[0]


def test_a_prompt_and_a_reply_are_the_text_of_the_conversation(styled: tuple[Tokenizer, Tokenizer, Any]) -> None:
    for words in styled[:2]:
        chat = chat_of(words)
        prompt, reply = chat.prompt(CHAT[:4]), chat.reply(CHAT[:4], "Until dusk.")
        whole = chat.render([*CHAT[:4], {"role": "assistant", "content": "Until dusk."}])
        assert whole.rstrip() == prompt + reply + chat.turn_end
        assert reply.strip() == "Until dusk."


def test_masked_completion_tokens_do_not_count_in_a_batch() -> None:
    some, every = Example((5,), (6, 7, 8), (True, False, True)), Example((5, 6), (7,))
    batch = collate([some, every], pad_id=0)
    assert batch.mask_BT.int().tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    assert (some.num_counted, every.num_counted, batch.num_counted) == (2, 1, 3)


# -- folders -----------------------------------------------------------------------------------------------------------

PROBES = (*TEXTS, " café — naïve\n\tx", "<s>a</s> <|im_end|><|im_start|>user\n", "日本語 😀 [INST]", "")


def same_for_transformers(old: Path, new: Path) -> None:
    a, b = AutoTokenizer.from_pretrained(old), AutoTokenizer.from_pretrained(new)
    assert type(a) is type(b)
    assert a.special_tokens_map == b.special_tokens_map and a.all_special_tokens == b.all_special_tokens
    assert a.chat_template == b.chat_template
    assert (a.model_max_length, a.padding_side, len(a)) == (b.model_max_length, b.padding_side, len(b))
    for text in PROBES:
        assert a(text)["input_ids"] == b(text)["input_ids"]
        ids = a(text, add_special_tokens=False)["input_ids"]
        assert load_tokenizer(new).encode(text) == load_tokenizer(old).encode(text) == ids
        assert a.decode(ids) == b.decode(ids)


FOLDERS: dict[str, dict[str, Any]] = {
    "template in a file": {"template": plain("zephyr")},
    "template in the settings": {"chat_template": plain("headers")},
    "named templates": {
        "chat_template": [
            {"name": "tool_use", "template": "{{ tools }}"},
            {"name": "default", "template": plain("headers")},
        ]
    },
    "further special tokens": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "padding_side": "left"},
    "tokens of the model's own": {"extra_special_tokens": {"image_token": "<|head|>"}, "image_token": "<|head|>"},
    "special by the settings alone": {"additional_special_tokens": ["ed"], "mask_token": "er"},
    "like SentencePiece": {"kind": "spaces", "template": plain("inst")},
    "tokens as objects": {
        "eos_token": {"content": "</s>", "lstrip": False, "normalized": False, "__type": "AddedToken"}
    },
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_written_as_it_was_read(tmp_path: Path, name: str) -> None:
    old, new = write_folder(tmp_path / "old", **FOLDERS[name]), tmp_path / "new"
    new.mkdir()
    load_tokenizer(old).save(new)
    same_for_transformers(old, new)
    assert tokenizer_hash(old) == tokenizer_hash(new)


def test_older_folders_and_folders_of_templates(tmp_path: Path) -> None:
    old, new = write_folder(tmp_path / "old", template=plain("terse"), bos_token=None), tmp_path / "new"
    (old / "special_tokens_map.json").write_text('{"bos_token": "<s>", "cls_token": "<|head|>"}')
    (old / "chat_templates").mkdir()
    (old / "chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    new.mkdir()
    words = load_tokenizer(old)
    words.save(new)
    same_for_transformers(old, new)
    assert chat_of(words).named["bos_token"] == "<s>"
    oracle = AutoTokenizer.from_pretrained(old)
    assert chat_of(words).render(CHAT) == oracle.apply_chat_template(CHAT, tokenize=False)


def test_special_tokens_in_rendered_text_are_single_and_not_doubled(styled: tuple[Tokenizer, Tokenizer, Any]) -> None:
    words, _, oracle = styled
    ids = words.encode(chat_of(words).prompt(CHAT[:2]))
    assert ids == oracle.apply_chat_template(CHAT[:2], add_generation_prompt=True)["input_ids"]
    assert ids.count(words._inner.token_to_id("<s>")) <= 1


def id_of(words: Tokenizer, text: str) -> int:
    found: int = words._inner.token_to_id(text)
    return found


@pytest.mark.parametrize(
    ("template", "listed", "stops"),
    [
        (None, None, ["</s>"]),
        (None, "</s>", ["</s>"]),
        (None, ["</s>", "<|im_end|>"], ["</s>", "<|im_end|>"]),
        ("chatml", ["</s>"], ["<|im_end|>", "</s>"]),
        ("chatml", ["<|im_end|>", "<|head|>"], ["<|im_end|>", "</s>", "<|head|>"]),
        ("zephyr", None, ["</s>"]),
    ],
)
def test_all_end_tokens_are_known_and_kept(
    base: Path, tmp_path: Path, template: str | None, listed: str | list[str] | None, stops: list[str]
) -> None:
    folder, names = write_folder(tmp_path / "a", template=plain(template) if template else None), load_tokenizer(base)
    if listed is not None:
        ids = [id_of(names, t) for t in listed] if isinstance(listed, list) else id_of(names, listed)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    words = load_tokenizer(folder)
    assert words.stop_ids == tuple(id_of(names, t) for t in stops) and words.end_id == words.stop_ids[0]
    save_policy(tmp_path / "b", tiny_policy(words), words)
    again = load_tokenizer(tmp_path / "b")
    assert (again.stop_ids, again.pad_id) == (words.stop_ids, words.pad_id)
    written = json.loads((tmp_path / "b" / "generation_config.json").read_text())["eos_token_id"]
    assert written == (list(words.stop_ids) if len(stops) > 1 else words.end_id)
    assert AutoTokenizer.from_pretrained(tmp_path / "b").eos_token == "</s>"


@pytest.mark.parametrize("value", ['"</s>"', "[1, -1]", "[true]", "{}"])
def test_end_ids_that_are_none_are_refused(tmp_path: Path, value: str) -> None:
    folder = write_folder(tmp_path)
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
    with pytest.raises(DataError, match="eos_token_id is"):
        load_tokenizer(folder)


def test_a_template_that_is_no_text_is_refused_and_a_broken_one_only_when_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a text"):
        load_tokenizer(write_folder(tmp_path / "a", chat_template=3))
    words = load_tokenizer(write_folder(tmp_path / "b", template="{% if %}"))
    assert words.end_id == id_of(words, "</s>")
    with pytest.raises(DataError, match="Expected an expression"):
        encode_chat(words, CHAT)


# -- rows --------------------------------------------------------------------------------------------------------------


def tiny_policy(words: Tokenizer) -> CausalLM:
    shape = DecoderConfig(
        vocab_size=words.vocab_size,
        width=32,
        ffn=48,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_width=8,
        max_positions=128,
    )
    model = CausalLM(shape)
    init_weights(model, 0)
    return model


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat_model")
    words = load_tokenizer(write_folder(folder / "words", template=plain("chatml")))
    save_policy(folder / "model", tiny_policy(words), words)
    return folder / "model"


def test_rows_of_messages_become_texts(chat_model: Path, write_rows: WriteRows) -> None:
    chat = chat_of(load_tokenizer(chat_model))
    prompt, asked = CHAT[:2], chat.prompt(CHAT[:2])
    answer = {"role": "assistant", "content": "A."}
    path = write_rows(
        "rows", [{"prompt": prompt, "completion": c} for c in ("A.", [answer])] + [{"prompt": "p", "completion": "c"}]
    )
    assert read_demonstrations(path, chat) == [(asked, "A."), (asked, "A."), ("p", "c")]
    assert [row.text for row in read_prompts(path, chat)] == [asked, asked, "p"]
    assert [row.text for row in read_prompts(write_rows("m", [{"messages": CHAT[:3]}]), chat)] == [asked]
    pairs = write_rows("pairs", [{"prompt": prompt, "chosen": [answer], "rejected": "B."}])
    (group,) = read_rankings(pairs, chat)
    assert (group.prompt, group.completions) == (asked, ("A.", "B."))
    ranked = write_rows(
        "ranked", [{"prompt": prompt, "completions": ["A.", [answer | {"content": "C"}]], "ranks": [2, 1]}]
    )
    assert read_rankings(ranked, chat)[0].completions == ("A.", "C")
    talk, told, plain_row = read_lessons(
        write_rows(
            "l", [{"messages": CHAT}, {"prompt": prompt, "completion": "A."}, {"prompt": "p", "completion": "c"}]
        )
    )
    assert isinstance(talk, Conversation) and (talk.messages, talk.counted_from) == (CHAT, 0)
    assert isinstance(told, Conversation) and (told.messages, told.counted_from) == ([*prompt, answer], 2)
    assert plain_row == ("p", "c")


READERS: dict[str, Callable[[Path, Any], Any]] = {
    "prompts": read_prompts,
    "pairs": read_demonstrations,
    "rankings": read_rankings,
    "lessons": lambda path, chat: read_lessons(path),
}


@pytest.mark.parametrize(
    ("reader", "row", "says"),
    [
        ("prompts", {"prompt": []}, "holds no messages"),
        ("prompts", {"prompt": ["hi"]}, r'"prompt\[0\]" is a string, not a message'),
        ("prompts", {"prompt": [{"content": "hi"}]}, r'"prompt\[0\].role" is null'),
        (
            "prompts",
            {"prompt": [{"role": "user", "content": ["hi"]}]},
            r'"prompt\[0\].content" holds a part that is no text',
        ),
        ("pairs", {"prompt": "p", "completion": [CHAT[1]]}, "not one message of the assistant"),
        ("pairs", {"prompt": "p", "completion": {"role": "assistant"}}, '"completion" is an object, not a string'),
        ("pairs", {"prompt": CHAT[:2], "completion": [CHAT[1]]}, "not one message of the assistant"),
        ("pairs", {"prompt": CHAT[:2], "completion": ""}, '"completion" is empty'),
        ("rankings", {"prompt": CHAT[:2], "chosen": "A", "rejected": 3}, '"rejected" is a number'),
        ("rankings", {"prompt": CHAT[:2], "chosen": "A", "rejected": " A"[1:]}, "same text"),
        ("lessons", {"messages": CHAT[:2]}, "no message of the assistant"),
        ("lessons", {"messages": "hello"}, '"messages" is a string, not a list'),
    ],
)
def test_faults_of_rows_name_their_line(
    chat_model: Path, write_rows: WriteRows, reader: str, row: Mapping[str, Any], says: str
) -> None:
    path = write_rows("rows.jsonl", [row])
    with pytest.raises(DataError, match=says) as caught:
        READERS[reader](path, chat_of(load_tokenizer(chat_model)))
    assert caught.value.where == f"{path}:1"


def test_messages_need_a_template_and_its_complaints_name_the_line(base: Path, write_rows: WriteRows) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "p"}, {"prompt": [CHAT[1], CHAT[1]]}])
    with pytest.raises(DataError, match="no chat template") as caught:
        read_prompts(path, load_tokenizer(base).chat)
    assert caught.value.where == f"{path}:2"
    with pytest.raises(DataError, match="roles must alternate") as caught:
        read_prompts(path, ChatTemplate(plain("inst"), {"bos_token": "<s>"}))
    assert caught.value.where == f"{path}:2" and "chat template:5" in caught.value.why


@pytest.mark.parametrize("row", [{"prompt": CHAT[:3]}, {"messages": CHAT[2:3]}])
def test_a_prompt_that_ends_with_the_assistant_is_refused(
    base: Path, write_rows: WriteRows, row: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="ends with what the assistant said") as caught:
        read_prompts(write_rows("rows.jsonl", [row]), load_tokenizer(base).chat)
    assert caught.value.where.endswith(":1")


def test_a_chat_model_learns_its_turns_and_samples_end_there(
    chat_model: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Loss on the assistant's turns alone: after a few steps it answers, stops, and never learnt to ask."""
    answer = {"role": "assistant", "content": "fog"}
    lesson = [{"role": "user", "content": "Who?"}, answer, {"role": "user", "content": "Why?"}, answer]
    data = write_rows("lessons.jsonl", [{"messages": lesson}] * 8)
    config = SftConfig.model_validate({"epochs": 30, "batch_tokens": 512, "dropout": 0.0, "optim": {"lr": 1e-2}})
    made = sft(config, model=chat_model, data=data, output_dir=tmp_path / "sft")
    assert made.train_nll < 0.1
    policy, words = load_policy(made.model)
    example = encode_chat(words, lesson)
    assert made.num_tokens == 30 * 8 * example.num_counted
    batch = collate([example], words.pad_id)
    with torch.no_grad():
        logits_TV = policy(batch.ids_BT)[0]
    nll_T = -torch.log_softmax(logits_TV.float(), -1)[:-1].gather(1, batch.ids_BT[0, 1:, None])[:, 0]
    counts_T = batch.mask_BT[0, 1:]
    assert float(nll_T[counts_T].max()) < 0.5 and float(nll_T[~counts_T].mean()) > 2.0
    prompts = write_rows("prompts.jsonl", [{"prompt": lesson[:1]}])
    sample(SampleConfig(max_new_tokens=8, samples_per_prompt=8), model=made.model, data=prompts, output=tmp_path / "s")
    drawn = [json.loads(line) for line in (tmp_path / "s").read_text().splitlines()]
    # The row says what was asked as it was asked, and beside it what the model saw.
    assert all(row["prompt"] == lesson[:1] for row in drawn)
    assert {row["rendered"] for row in drawn} == {chat_of(words).prompt(lesson[:1])}
    assert sum(row["completion"] == "fog" and row["finish"] == "stop" for row in drawn) >= 7


def test_conversations_need_a_template_in_sft(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("lessons.jsonl", [{"messages": CHAT}])
    with pytest.raises(DataError, match="no chat template") as caught:
        sft(SftConfig(), model=policy_folder, data=data, output_dir=tmp_path / "sft")
    assert caught.value.where == f"{data}:1"
