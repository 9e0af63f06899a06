"""The reward model as a scorer: one number a text, wherever its padding and its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TEXTS, WriteRows

from accord.errors import DataError
from accord.formats.stage_rows import read_completions
from accord.models.folder import load_scalar
from accord.models.placement import PLAIN
from accord.scoring import score
from accord.scoring.reward_model import RewardModel, encode_scored, raw_scores
from accord.text.tokenizer import Tokenizer

PAIRS = [
    ("The village:", " fog"),
    ("He:", " wrote a long letter, read it aloud, and burnt it."),
    ("He:", ""),
    ("A", " b"),
]


@pytest.fixture
def scorer(reward_folder: Path) -> RewardModel:
    return RewardModel.load(reward_folder, PLAIN)


def test_a_score_is_the_heads_number_at_the_end_token_offset_and_scaled(scorer: RewardModel, words: Tokenizer) -> None:
    got = scorer.score(PAIRS)
    for (prompt, completion), one in zip(PAIRS, got.tolist(), strict=True):
        ids = [*words.encode(prompt), *words.encode(completion), words.end_id]
        raw = float(scorer.model(torch.tensor([ids]))[-1])
        # the folder says offset .1, scale 2
        assert one == pytest.approx(2.0 * (raw - 0.1), abs=1e-5)
    assert len(set(got.tolist())) == len(PAIRS)


def test_neighbours_and_padding_do_not_move_a_score(scorer: RewardModel) -> None:
    together = scorer.score(PAIRS)
    alone = torch.cat([scorer.score([pair]) for pair in PAIRS])
    torch.testing.assert_close(together, alone, rtol=0.0, atol=1e-4)
    turned = scorer.score(PAIRS[::-1]).flip(0)
    torch.testing.assert_close(together, turned, rtol=0.0, atol=1e-4)
    small = raw_scores(scorer.model, scorer.tokenizer, PAIRS, 64, batch_tokens=1)
    torch.testing.assert_close(2.0 * (small - 0.1), together, rtol=0.0, atol=1e-4)


def test_a_long_completion_loses_its_end_but_not_the_end_token(words: Tokenizer) -> None:
    head, tail = words.encode("He:"), words.encode(TEXTS[0])
    example = encode_scored(words, "He:", TEXTS[0], len(head) + 5)
    assert example.prompt == tuple(head)
    assert example.completion == (*tail[:4], words.end_id)
    assert encode_scored(words, "He:", "", 64).completion == (words.end_id,)


def test_a_prompt_that_fills_the_model_is_refused(scorer: RewardModel, words: Tokenizer) -> None:
    """Cut to nothing, all its completions would get one score."""
    with pytest.raises(DataError, match="no room for a completion in 64") as caught:
        scorer.score([(" ".join(TEXTS), " good"), (" ".join(TEXTS), " bad")])
    assert "The old lighthouse" in str(caught.value)
    head = len(words.encode("He:"))
    assert len(encode_scored(words, "He:", TEXTS[0], head + 2)) == head + 2
    with pytest.raises(DataError, match="no room"):
        encode_scored(words, "He:", TEXTS[0], head + 1)


def test_a_scorer_is_frozen(reward_folder: Path) -> None:
    model, words, scale = load_scalar(reward_folder)
    model.train()
    model.model.dropout = 0.5
    frozen = RewardModel(model, words, scale)
    assert torch.equal(frozen.score(PAIRS), frozen.score(PAIRS))
    assert not any(p.requires_grad for p in frozen.model.parameters())


def test_scores_of_a_file(reward_folder: Path, scorer: RewardModel, write_rows: WriteRows, tmp_path: Path) -> None:
    pairs = [PAIRS[0], PAIRS[1], PAIRS[3]]
    rows = write_rows("rows.jsonl", [{"prompt": p, "completion": c} for p, c in pairs])
    result = score(reward_model=reward_folder, rows=rows, output=tmp_path / "scored.jsonl")
    assert read_completions(result.output) == pairs
    assert result.num_rows == 3
    assert result.mean_score == pytest.approx(float(scorer.score(pairs).mean()), abs=0.05)  # auto may mean bf16
