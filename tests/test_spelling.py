"""Tokens spelt alike learn together while training, and the table is plain weights afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from accord.models.spelling import fold_spellings, letter_runs, share_spellings, sharing_matrix
from accord.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def greats() -> Tokenizer:
    """Whole-word tokens in the three forms a word takes in a text."""
    return train_tokenizer(["Great great greatly. Greatest, great! dull dull"] * 9, 320)


def row_of(words: Tokenizer, text: str) -> int:
    (token,) = words.encode(text)
    return token


def test_letter_runs_by_hand() -> None:
    assert letter_runs(" Cat") == {"<ca", "cat", "<cat", "=cat"}  # the start of the word counts as a letter
    assert letter_runs("cat") == {"cat", "=cat"}
    assert letter_runs("s") == {"=s"}
    for token in ("", " ", "...", "42", " \u201c"):
        assert letter_runs(token) == set()


def test_tokens_share_what_at_least_two_of_them_hold(greats: Tokenizer) -> None:
    dense = sharing_matrix(greats, greats.vocab_size).to_dense()
    great, capital, dull = (row_of(greats, text) for text in (" great", "Great", " dull"))
    held = dense[great] > 0
    # Of "<gr gre rea eat <gre grea reat <grea great =great" other tokens hold all, and each of the ten weighs the same.
    assert held.sum() >= 8
    assert dense[great, held].tolist() == pytest.approx([1 / math.sqrt(int(held.sum()))] * int(held.sum()))
    assert ((dense[capital] > 0) & held).sum() >= 6
    assert not ((dense[dull] > 0) & held).any()
    assert ((dense > 0).sum(0) >= 2).all()
    assert (dense[row_of(greats, ".")] == 0).all()


def test_a_step_on_one_form_moves_the_others_and_no_stranger(greats: Tokenizer) -> None:
    embedding = nn.Embedding(greats.vocab_size, 4)
    before = embedding.weight.detach().clone()
    share_spellings(embedding, greats)
    assert torch.equal(embedding.weight, before)  # what is shared starts at zero
    great, capital, dull = (row_of(greats, text) for text in (" great", "Great", " dull"))
    optimiser = torch.optim.SGD(embedding.parameters(), lr=0.5)
    with parametrize.cached():
        loss = -embedding(torch.tensor([great])).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    # The n shared rows move by 0.5 / sqrt(n); a token of k runs, m of them among those n, by 0.5 m / sqrt(n k).
    dense = sharing_matrix(greats, greats.vocab_size).to_dense()
    moved = embedding.weight.detach() - before
    expected = 0.5 * dense @ dense[great]
    expected[great] += 0.5
    assert torch.allclose(moved, expected[:, None].expand_as(moved), atol=1e-6)
    assert expected[great] == pytest.approx(1.0)
    assert expected[capital] > 0.1
    assert expected[dull] == 0


def test_folding_keeps_the_values_and_leaves_plain_weights(greats: Tokenizer) -> None:
    embedding = nn.Embedding(greats.vocab_size + 3, 4)  # a table may be longer than its tokenizer
    share_spellings(embedding, greats)
    for parameter in embedding.parameters():
        nn.init.normal_(parameter)
    whole = embedding.weight.detach().clone()
    fold_spellings(embedding)
    fold_spellings(embedding)  # a plain table stays as it is
    assert [name for name, _ in embedding.named_parameters()] == ["weight"]
    assert list(embedding.state_dict()) == ["weight"]
    assert torch.equal(embedding.weight, whole)
