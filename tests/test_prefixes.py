"""Shared beginnings run once: against each row run alone, and tokens counted as distinct prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.config import LoraConfig
from accord.models.decoder import CausalLM, Trunk
from accord.models.lora import add_lora
from accord.models.prefixes import LEAST_SHARE, shared_prefixes
from accord.models.shape import DecoderConfig
from tests.conftest import random_policy

# Three letters: most rows begin like another one, many are its beginning or its twin.
rows_of_letters = st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=7), min_size=1, max_size=8)


def padded(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    ids_BT = torch.full((len(rows), max(map(len, rows))), pad)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row)] = torch.tensor(row)
    return ids_BT, torch.tensor([len(row) for row in rows])


def alone(trunk: Trunk, rows: Sequence[Sequence[int]]) -> Tensor:
    """Each row by itself, end to end."""
    return torch.cat([trunk(torch.tensor([row])) for row in rows])


def prefixes(rows: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    return {tuple(row[: t + 1]) for row in rows for t in range(len(row))}


def counted(trunk: Trunk) -> list[int]:
    """How many tokens each pass embeds."""
    seen: list[int] = []
    trunk.embed_tokens.register_forward_hook(lambda _module, ids, _out: seen.append(ids[0].numel()))
    return seen


@settings(deadline=None, max_examples=150)
@given(rows_of_letters, st.integers(0, 5))
def test_every_place_shows_its_own_prefix_and_each_runs_once(rows: list[list[int]], pad: int) -> None:
    ids_BT, length_B = padded(rows, pad)
    layout = shared_prefixes(ids_BT, length_B)
    distinct, total = prefixes(rows), sum(map(len, rows))
    if layout is None:
        assert len(rows) == 1 or total - len(distinct) < LEAST_SHARE * total
        return
    T = ids_BT.shape[1]
    assert layout.place_N is not None and layout.token_P is not None
    runs = [tuple(rows[place // T][: place % T + 1]) for place in layout.place_N.tolist()]
    assert len(runs) == len(distinct) and set(runs) == distinct
    for b, row in enumerate(rows):
        for t in range(len(row)):
            assert runs[int(layout.token_P[b * T + t])] == tuple(row[: t + 1])


FAMILIES = {
    "grouped heads": {},
    "window": {"window": 3, "windowed": (True, False)},
    "learned positions": {"learned_positions": True, "layer_norm": True, "rotary_width": 0, "gated": False},
    "norms of queries": {"qk_norm": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
@settings(deadline=None, max_examples=25)
@given(rows=rows_of_letters, data=st.data())
def test_states_and_gradients_are_those_of_each_row_alone(
    tiny_config: DecoderConfig, kind: str, rows: list[list[int]], data: st.DataObject
) -> None:
    trunk = random_policy(replace(tiny_config, **FAMILIES[kind]), 0).model
    assert isinstance(trunk, Trunk)
    trunk.checkpointing = data.draw(st.booleans())
    total = sum(map(len, rows))
    read = data.draw(
        st.none() | st.lists(st.integers(0, total - 1), min_size=1, max_size=total, unique=True).map(sorted)
    )
    read_M = None if read is None else torch.tensor(read)
    pull_ND = torch.randn(total, tiny_config.width, generator=torch.Generator().manual_seed(1))
    want_ND = alone(trunk, rows)
    want_MD, pull_MD = (x if read_M is None else x[read_M] for x in (want_ND, pull_ND))
    weights = list(trunk.parameters())
    want = torch.autograd.grad((want_MD * pull_MD).sum(), weights)
    got_MD = trunk(*padded(rows), read_M)
    torch.testing.assert_close(got_MD, want_MD, atol=2e-5, rtol=1e-4)
    got = torch.autograd.grad((got_MD * pull_MD).sum(), weights)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


def test_completions_of_a_prompt_share_it(policy: CausalLM) -> None:
    trunk = policy.model
    assert isinstance(trunk, Trunk)
    seen, prompt = counted(trunk), [3, 4, 5, 6, 7, 8]
    rows = [[*prompt, 9, 10], [*prompt, 11], [*prompt, 9, 12, 13]]
    trunk(*padded(rows))
    assert seen == [6 + 2 + 1 + 2]  # the last row shares its 9 with the first
    trunk(*padded([rows[0], [4, *prompt], rows[1]]))  # another prompt between them
    assert seen[1:] == [8 + 7 + 1]


def test_what_differs_at_once_runs_as_it_is(policy: CausalLM) -> None:
    trunk = policy.model
    assert isinstance(trunk, Trunk)
    seen = counted(trunk)
    trunk(*padded([[1, *range(3, 15)], [1, *range(4, 16)], [1, *range(5, 17)]]))  # a first token in common: 2 of 39
    assert seen == [39]


def test_under_dropout_rows_differ_and_nothing_is_shared(policy: CausalLM) -> None:
    trunk = policy.model
    assert isinstance(trunk, Trunk)
    trunk.dropout, seen = 0.5, counted(trunk)
    ids_BT = torch.tensor([[3, 4, 5, 6]] * 2)
    policy.train()
    first, second = trunk(ids_BT).view(2, 4, -1)
    assert seen == [8] and not torch.equal(first, second)
    policy.eval()
    first, second = trunk(ids_BT).view(2, 4, -1)
    assert seen == [8, 4] and torch.equal(first, second)


def test_with_an_adapter_too(policy: CausalLM) -> None:
    add_lora(policy, LoraConfig(rank=2), 0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    trunk = policy.model
    assert isinstance(trunk, Trunk)
    rows = [[3, 4, 5, 6, 7], [3, 4, 5, 8], [3, 4, 5, 9, 10, 11]]
    torch.testing.assert_close(trunk(*padded(rows)), alone(trunk, rows), atol=1e-5, rtol=1e-4)
