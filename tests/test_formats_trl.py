"""TRL 1.16 itself on our exports: its trainers take a step, it finds the same prompts, `datasets` opens the files."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import dialogues, easy_item, rows_as_items, said, texts, two

from accord import formats
from accord.formats import FORMATS, Item
from accord.formats.item import turns_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_implicit_prompts_are_found_as_trl_finds_them(data: st.DataObject) -> None:
    from trl.data_utils import extract_prompt

    chat = data.draw(st.booleans())
    prompt = data.draw(dialogues() if chat else texts)
    chosen, rejected = two(data.draw)
    whole = [(*prompt, said("assistant", text)) if chat else prompt + text for text in (chosen, rejected)]
    shared = whole[0][: min(map(len, whole))] == whole[1][: min(map(len, whole))]
    if shared or (not chat and whole[0][0] != whole[1][0]):
        return  # TRL's function cuts at the wrong end here: one is the beginning of the other, or nothing is shared
    wanted = extract_prompt({"chosen": whole[0], "rejected": whole[1]})
    [item] = rows_as_items("trl-implicit", [{"chosen": plainly(whole[0]), "rejected": plainly(whole[1])}])
    assert item.prompt == (tuple(wanted["prompt"]) if chat else wanted["prompt"])
    assert [turns_of(side, "assistant") for side in item.completions] == [
        turns_of(wanted[name] if isinstance(wanted[name], str) else tuple(wanted[name]), "assistant")
        for name in ("chosen", "rejected")
    ]
    [row] = FORMATS["trl-implicit"].write([item], lambda reason: None)
    assert row == {"chosen": plainly(whole[0]), "rejected": plainly(whole[1])}


def plainly(text: Any) -> Any:
    return text if isinstance(text, str) else [dict(turn) for turn in text]


ITEMS = [
    Item(prompt="What colour is the sky?", completions=(" It is blue.", " It is green."), ranks=(1, 2), margin=0.5),
    Item(prompt="What swims?", completions=(" A kite.", " A fish.", " A fish or a duck."), ranks=(3, 2, 1)),
]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("name", sorted(name for name, format in FORMATS.items() if format.write))
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_datasets_opens_every_export(tmp_path: Path, name: str, kind: str) -> None:
    from datasets import load_dataset

    path = tmp_path / ("x.jsonl" if kind == "json" else "x.parquet")
    item = easy_item(name)
    manifest = formats.write_items(path, [item, item], name, kinds=["all"])
    opened = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.num_rows == manifest.rows and set(opened.column_names) == set(manifest.schema)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tokenizer of bytes with a chat template, and the config of a random Llama of width 16."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    words = Tokenizer(models.BPE(vocab, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=0,
    )
    return tokenizer, config


def exported(tmp_path: Path, name: str, chat: bool, kind: str) -> Any:
    from datasets import load_dataset

    path = tmp_path / ("x.jsonl" if kind == "json" else "x.parquet")
    formats.write_items(path, ITEMS, name, messages=chat)
    rows = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 1 + 3
    return rows.remove_columns("margin") if rows["margin"].count(None) else rows


def arguments(tmp_path: Path) -> dict[str, Any]:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "use_cpu": True}
    return {"output_dir": str(tmp_path), "max_steps": 1, "per_device_train_batch_size": 4, "bf16": False, **quiet}


@pytest.mark.slow
@pytest.mark.parametrize(("chat", "kind"), [(False, "json"), (True, "parquet")])
def test_its_dpo_trainer_takes_a_step(tmp_path: Path, tiny: tuple[Any, Any], chat: bool, kind: str) -> None:
    from transformers import LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    tokenizer, config = tiny
    rows = exported(tmp_path, "trl-preference", chat, kind)
    model = LlamaForCausalLM(config)
    trainer = DPOTrainer(
        model=model,
        ref_model=deepcopy(model),
        args=DPOConfig(**arguments(tmp_path)),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)  # log 2 before the first step


@pytest.mark.slow
@pytest.mark.parametrize(("chat", "kind"), [(False, "parquet"), (True, "json")])
def test_its_reward_trainer_takes_a_step(tmp_path: Path, tiny: tuple[Any, Any], chat: bool, kind: str) -> None:
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer, config = tiny
    rows = exported(tmp_path, "trl-implicit", chat, kind)
    config.num_labels = 1
    trainer = RewardTrainer(
        model=LlamaForSequenceClassification(config),
        args=RewardConfig(**arguments(tmp_path)),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    before = trainer.model.score.weight.detach().clone()
    result = trainer.train()
    assert result.global_step == 1 and 0 < result.training_loss < 5
    assert not bool((trainer.model.score.weight == before).all())
