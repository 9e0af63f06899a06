"""A user's own data through the whole loop: files of judgements in, a report out, with a tiny random chat model."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS, WriteRows, random_policy

from accord.config import load_recipe
from accord.loop.run import run
from accord.models.folder import save_policy
from accord.models.shape import DecoderConfig
from accord.text.tokenizer import train_tokenizer

DATA = next((up / "shared/data" for up in Path(__file__).parents if (up / "shared/data").is_dir()), Path("shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the files of shared/data are not here")
HH, OASST = DATA / "hh-harmless-base-test.jsonl.gz", DATA / "oasst-en_100_tree.jsonl"

TEMPLATE = """{% for m in messages %}[{{ m.role }}] {{ m.content }}
{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""

TOY = [
    *("reward.epochs=1", "reward.max_tokens=512", "reward.precision=fp32"),
    *("rl.iterations=1", "rl.prompts_per_iteration=4", "rl.max_new_tokens=5", "rl.ppo_epochs=1", "rl.eval_every=1"),
    *("dpo.max_tokens=512", "dpo.groups_per_step=16", "dpo.eval_every=2"),
    *("eval.samples_per_prompt=1", "eval.best_of=2", "eval.bootstrap=100", "eval.curve_samples=1"),
    *("sample.max_new_tokens=5", "sample.samples_per_prompt=2", "ask.queue=2", "task.measured_prompts=6"),
]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random chat model with a template, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("chat")
    words = train_tokenizer(TEXTS, 320)
    shape = DecoderConfig(
        vocab_size=words.vocab_size, width=16, ffn=24, num_layers=2, num_heads=2, num_kv_heads=1, head_width=8,
        max_positions=640,
    )  # fmt: skip
    save_policy(folder / "model", random_policy(shape, 0, 0.1), words)
    (folder / "model/chat_template.jinja").write_text(TEMPLATE)
    return folder / "model"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def first_said(prompt: Any) -> str:
    """Of a row's prompt what the user says first."""
    text = prompt if isinstance(prompt, str) else next(turn["content"] for turn in prompt if turn["role"] == "user")
    return " ".join(text.casefold().split())


def check_splits(data: Path) -> Counter[str]:
    """No topic and no first prompt stands in two splits. Returns how many rows each split has."""
    found: Counter[str] = Counter()
    seen: dict[tuple[str, str], str] = {}
    for path in sorted(data.glob("*_*.jsonl")):
        kind, split = path.stem.rsplit("_", 1)
        for row in rows_of(path) if kind != "rejects" else []:
            found[split] += 1
            for name in (("topic", row["topic"].casefold()), ("said", first_said(row["prompt"]))):
                assert seen.setdefault(name, split) == split, name
    return found


def own_rows(count: int = 90) -> list[dict[str, Any]]:
    """Pairs about a few dozen things; some ask the same, some are no good."""
    draw, things = random.Random(0), ("bread", "fox", "kite", "soup", "rain", "clock")
    rows: list[dict[str, Any]] = []
    for i in range(count):
        asked = f"Say something of the {draw.choice(things)} of house {i // 2}."
        rows.append({"prompt": [{"role": "user", "content": asked}], "chosen": f"It is warm {i}.", "rejected": "No."})
    rows[7]["chosen"] = "  "
    rows[11]["rejected"] = 4
    return rows


def run_files(folder: Path, model: Path, judgements: str | Path, *more: str) -> tuple[dict[str, Any], list[str]]:
    """The summary of a run on judgements, and what it said."""
    said: list[str] = []
    recipe = load_recipe(None, [f"base.model={model}", f"task.judgements={judgements}", *TOY, *more])
    return run(recipe, output_dir=folder, log=lambda _, text: said.append(text)), said


def test_pairs_of_ones_own_run_from_file_to_report(chat_model: Path, tmp_path: Path, write_rows: WriteRows) -> None:
    pairs, out = write_rows("pairs.jsonl", own_rows()), tmp_path / "run"
    summary, said = run_files(out, chat_model, pairs)
    assert (out / "report.html").is_file() and (out / "model/config.json").is_file()
    assert not (out / "sft").exists() and summary["left_out"] == {"sft": "as the task has no demonstrations"}
    assert "sft: left out, as the task has no demonstrations" in said
    assert summary["candidate"] == "ppo" and 0 <= summary["judge_win_rate"] <= 1

    told = json.loads((out / "data/stage.json").read_text())["result"]
    assert told["left_out"]["judgements"]["why"] == {"a text is empty": 1, '"rejected" is a number, not a string': 1}
    assert summary["counts"]["judgements_left_out"] == 2
    (line,) = (text for text in said if "left out" in text and text.startswith("data"))
    assert "2 rows of the judgements are left out" in line and f"{pairs}:8" in line
    assert [row["where"] for row in rows_of(out / "data/rejects_judgements.jsonl")] == [f"{pairs}:8", f"{pairs}:12"]
    assert sum(told["counts"][f"judgements_{split}"] for split in ("train", "judge", "valid", "test")) == 88

    assert set(check_splits(out / "data")) == {"train", "judge", "valid", "test"}
    again, said = run_files(out, chat_model, pairs)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert [text for text in said if not text.endswith("already done")] == [
        "sft: left out, as the task has no demonstrations"
    ]
