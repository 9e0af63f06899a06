"""Tokenizer and batches: any text comes back, no token is lost, nothing but padding is added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accord.errors import DataError
from accord.text.batches import Example, collate, example_buckets, length_buckets, pack_blocks
from accord.text.tokenizer import END, PAD, Tokenizer, load_tokenizer, tokenizer_hash, train_tokenizer

ids = st.lists(st.integers(2, 99), min_size=1, max_size=8).map(tuple)


# -- tokenizer ---------------------------------------------------------------------------------------------------------


@given(st.text())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(words: Tokenizer, text: str) -> None:
    found = words.encode(text)
    if END not in text and PAD not in text:
        assert words.decode(found) == text
    assert all(0 <= i < words.vocab_size for i in found)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "a\u0301\u200d\U0001f469\u200d\U0001f680", "\x00\x7f", "ﬁ Ω"])
def test_odd_texts_come_back(words: Tokenizer, text: str) -> None:
    assert words.decode(words.encode(text)) == text
    assert words.encode_batch([text, text]) == [words.encode(text)] * 2


def test_end_and_pad_are_two_tokens_that_no_text_decodes_to(words: Tokenizer) -> None:
    assert words.end_id != words.pad_id
    text = words.encode("fog")
    assert words.decode([*text, words.end_id, words.pad_id, words.pad_id]) == "fog"
    assert not {words.end_id, words.pad_id} & {i for t in TEXTS for i in words.encode(t)}


def test_merges_shorten_the_texts_they_were_learnt_from(words: Tokenizer) -> None:
    assert words.vocab_size == 320
    num_bytes = sum(len(t.encode()) for t in TEXTS)
    assert sum(len(words.encode(t)) for t in TEXTS) < 0.8 * num_bytes


def test_training_is_the_same_twice() -> None:
    assert train_tokenizer(TEXTS, 300).encode(TEXTS[3]) == train_tokenizer(TEXTS, 300).encode(TEXTS[3])


def test_saved_tokenizer_is_the_same_for_us_and_for_transformers(words: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words.save(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.end_id, ours.pad_id, ours.vocab_size) == (words.end_id, words.pad_id, words.vocab_size)
    assert (theirs.eos_token, theirs.pad_token, len(theirs)) == (END, PAD, words.vocab_size)
    for text in (*TEXTS, " café — naïve\n\tx", "日本語 😀", ""):
        assert ours.encode(text) == words.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert theirs.decode(words.encode(text)) == text


def test_hash_tells_tokenizers_apart(words: Tokenizer, tmp_path: Path) -> None:
    for name, tokenizer in (("a", words), ("b", words), ("c", train_tokenizer(TEXTS[:4], 300))):
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
    a, b, c = (tokenizer_hash(tmp_path / name) for name in "abc")
    assert a == b != c


@pytest.fixture
def folder(words: Tokenizer, tmp_path: Path) -> Path:
    words.save(tmp_path)
    return tmp_path


def settings_of(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_end_token_given_as_an_object(folder: Path, words: Tokenizer) -> None:
    settings_of(folder, eos_token={"content": END, "lstrip": False})
    assert load_tokenizer(folder).end_id == words.end_id


def test_without_a_pad_token_the_end_token_fills(folder: Path, words: Tokenizer) -> None:
    settings_of(folder, pad_token=None)
    assert load_tokenizer(folder).pad_id == words.end_id


@pytest.mark.parametrize("end", [None, "<not there>"])
def test_no_end_token(folder: Path, end: str | None) -> None:
    settings_of(folder, eos_token=end)
    with pytest.raises(DataError, match="no end-of-sequence token") as caught:
        load_tokenizer(folder)
    assert "tokenizer_config.json" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "Sorcery"}}'])
def test_a_spoilt_tokenizer_is_a_data_error(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_collate_by_hand() -> None:
    batch = collate([Example((5, 6), (7, 1)), Example((8,), (9, 10, 11, 1)), Example((4,), (1,))], pad_id=0)
    assert batch.ids_BT.tolist() == [[5, 6, 7, 1, 0], [8, 9, 10, 11, 1], [4, 1, 0, 0, 0]]
    assert batch.mask_BT.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.length_B.tolist() == [4, 5, 2]
    assert batch.num_counted == 7
    where, target = batch.predicting()
    # inputs 5 6 7 | 8 9 10 11 | 4 stand at 0-2, 3-6 and 7: 5 alone predicts nothing that counts
    assert where.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert [row[:n].tolist() for row, n in zip(*batch.inputs(), strict=True)] == [[5, 6, 7], [8, 9, 10, 11], [4]]
    assert batch.last_B.tolist() == [3, 8, 10]
    assert target.tolist() == [7, 1, 9, 10, 11, 1, 1]


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6))
@settings(deadline=None)
def test_collate_keeps_every_token_and_counts_completions_only(rows: list[tuple[tuple[int, ...], ...]]) -> None:
    batch = collate([Example(p, c) for p, c in rows], pad_id=0)
    for row, (prompt, completion) in enumerate(rows):
        kept = batch.ids_BT[row, : batch.length_B[row]].tolist()
        assert tuple(kept) == prompt + completion
        assert (batch.ids_BT[row, batch.length_B[row] :] == 0).all()
        assert tuple(batch.ids_BT[row][batch.mask_BT[row]].tolist()) == completion
    _, target = batch.predicting()
    assert target.tolist() == [token for _, completion in rows for token in completion]


def test_completion_means_by_hand() -> None:
    batch = collate([Example((5, 6), (7, 1)), Example((4,), (1,))], pad_id=0)
    # real tokens 5 6 7 1 | 4 1 with the numbers 1..6: (3 + 4) / 2, and 6
    assert batch.completion_means(torch.arange(1.0, 7.0)).tolist() == [3.5, 6.0]


def test_pack_blocks_by_hand() -> None:
    # stream 5 6 0 7 0 8 9 10 0: blocks of 3 + the next token; the last token has no target after it
    assert pack_blocks([[5, 6], [7], [8, 9, 10]], end_id=0, block_tokens=3).tolist() == [[5, 6, 0, 7], [7, 0, 8, 9]]
    assert len(pack_blocks([[5, 6]], end_id=0, block_tokens=3)) == 0


@given(st.lists(st.lists(st.integers(1, 50), max_size=9), max_size=12), st.integers(1, 7))
@settings(deadline=None)
def test_every_token_of_the_stream_is_predicted_once_from_the_one_before(texts: list[list[int]], size: int) -> None:
    stream = [token for text in texts for token in (*text, 0)]
    blocks = pack_blocks(texts, end_id=0, block_tokens=size)
    targets = [token for block in blocks.tolist() for token in block[1:]]
    inputs = [token for block in blocks.tolist() for token in block[:-1]]
    assert targets == stream[1 : 1 + len(targets)]
    assert inputs == stream[: len(inputs)]
    assert 0 <= len(stream) - 1 - len(targets) < size or not stream


@pytest.mark.slow
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60), st.integers(0, 99))
@settings(deadline=None)
def test_buckets_hold_every_item_once_within_the_limit(lengths: list[int], limit: int, seed: int) -> None:
    buckets = length_buckets(lengths, limit, seed)
    assert sorted(i for b in buckets for i in b) == list(range(len(lengths)))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(lengths[i] for i in bucket) <= limit
    assert buckets == length_buckets(lengths, limit, seed)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=40), st.integers(1, 90))
@settings(deadline=None)
def test_completions_of_a_prompt_are_batched_together(kinds: list[tuple[int, int]], limit: int) -> None:
    """Prompts of 12 tokens: what most examples begin with stands in one batch if it fits."""
    examples = [Example((kind,) * 12, (9,) * length) for kind, length in kinds]
    buckets = example_buckets(examples, limit)
    assert sorted(i for b in buckets for i in b) == list(range(len(kinds)))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(len(examples[i]) for i in bucket) <= limit
    for kind in range(4):
        rows = [i for i, (k, _) in enumerate(kinds) if k == kind]
        if rows and len(rows) * max(len(examples[i]) for i in rows) <= limit and len(rows) > len(kinds) / 2:
            assert sum(any(i in b for i in rows) for b in buckets) == 1


def test_a_long_completion_pads_none_of_its_sisters() -> None:
    """16 prompts of 100 tokens with seven completions of 20 and one of 500: the short stay with their prompt."""
    examples = [Example((p,) * 100, (9,) * (500 if k == 3 else 20)) for p in range(16) for k in range(8)]
    buckets = example_buckets(examples, 4096)
    assert {max(len(examples[i]) for i in b) - min(len(examples[i]) for i in b) for b in buckets} <= {0, 480}
    padded = sum(len(b) * max(len(examples[i]) for i in b) for b in buckets)
    assert padded < 1.1 * sum(map(len, examples))
    for p in range(16):
        short = {i for i in range(8 * p, 8 * p + 8) if i % 8 != 3}
        assert any(short <= set(b) for b in buckets)


def test_examples_without_tokens_are_batched_too() -> None:
    assert example_buckets([Example((), ()), Example((1, 2), (3,)), Example((1, 2), (4,))], 9) != []


def test_without_repeated_prompts_only_length_counts() -> None:
    examples = [Example((i,), (9,) * (1 + i % 20)) for i in range(200)]
    assert example_buckets(examples, 100) == length_buckets([len(e) for e in examples], 100, 0)


def test_buckets_hold_like_lengths_and_the_seed_shuffles_them() -> None:
    lengths = [1 + i % 20 for i in range(400)]
    buckets = length_buckets(lengths, 100, 1)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in buckets)
    assert padded < 1.15 * sum(lengths)
    other = length_buckets(lengths, 100, 2)
    assert buckets != other
    assert {frozenset(b) for b in buckets} != {frozenset(b) for b in other}
    # neither by length: the first and the last third of the batches have about the same mean
    means = torch.tensor([sum(lengths[i] for i in b) / len(b) for b in buckets])
    third = len(means) // 3
    assert abs(float(means[:third].mean() - means[-third:].mean())) < 4.0
