"""A live session: requests join and leave as they come, each draws what it would alone; what serving shapes and tells.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import random_policy
from torch import Tensor

from accord.models.decoder import CausalLM
from accord.models.lstm import LstmConfig
from accord.models.shape import DecoderConfig
from accord.rollout.draw import truncate
from accord.rollout.engine import Engine, Sample, Sampling, Session
from accord.rollout.prefix_cache import SHORTEST_KEPT, PrefixCache
from accord.rollout.shaping import Shaping, shape_logits, told_of

END = 0
GREEDY = Sampling(12, top_k=1)


@pytest.fixture
def small(tiny_config: DecoderConfig) -> DecoderConfig:
    return replace(tiny_config, vocab_size=40, max_positions=200)


def prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(1, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@torch.no_grad()
def laws(model: CausalLM, ids: Sequence[int]) -> Tensor:
    """The model's own log-probabilities behind each token, by one whole pass."""
    return torch.log_softmax(model(torch.tensor([ids]))[0], -1)


def drain(session: Session) -> dict[int, Sample]:
    found = {}
    while session.busy:
        found |= {token.prompt_index: token.sample for token in session.step() if token.sample is not None}
    return found


# -- who joins, draws what it would alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(12, temperature=0.8, top_p=0.9)], ids=["greedy", "drawn"])
def test_a_request_among_others_gets_what_it_would_get_alone(small: DecoderConfig, sampling: Sampling) -> None:
    """Twenty requests that join at every step, more than there are rows, some with beginnings that others had."""
    engine = Engine(random_policy(small, 0), [END], max_rows=6)
    prompts = [prompt(3 + 7 * i % 50, i % 7) for i in range(20)]
    alone = [engine.generate([one], sampling, seed=i)[0] for i, one in enumerate(prompts)]
    found: dict[int, Sample] = {}
    with engine.session(PrefixCache(300)) as session:
        for i, one in enumerate(prompts):
            session.submit(100 + i, one, sampling, seed=i, place=0)
            found |= {token.prompt_index: token.sample for token in session.step() if token.sample is not None}
        found |= drain(session)
    assert [found[100 + i].completion for i in range(20)] == [sample.completion for sample in alone]
    for i, sample in enumerate(alone):
        assert found[100 + i].behaviour_logp == pytest.approx(sample.behaviour_logp, abs=1e-4)


def test_free_counts_the_rows_that_nobody_has_or_waits_for(small: DecoderConfig) -> None:
    with Engine(random_policy(small, 0), [], max_rows=4).session(PrefixCache(0)) as session:
        assert session.free == 4
        session.submit(0, [1, 2], replace(GREEDY, samples_per_prompt=3), seed=0)
        assert session.free == 1
        session.step()
        session.submit(1, [1, 2], replace(GREEDY, samples_per_prompt=2), seed=0)
        assert session.free == -1
        session.cancel(0, 1)
        session.step()
        assert session.free == 0


def test_room_grows_with_what_is_written_not_with_what_might_be(small: DecoderConfig) -> None:
    engine = Engine(random_policy(small, 0), [], max_rows=2)
    sampling = Sampling(100, top_k=1)
    alone = engine.generate([prompt(5, 1)], sampling, seed=0)[0]
    slots = []
    with engine.session(PrefixCache(0)) as session:
        session.submit(0, prompt(5, 1), sampling, seed=0)
        while session.busy:
            found = session.step()
            slots.append(session._cache.keys[0].shape[2])
    assert found[0].sample is not None and found[0].sample.completion == alone.completion
    assert slots[0] < 80 and slots == sorted(slots) and 100 < slots[-1] < 200


# -- prefixes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"windowed": (True, False), "window": 8}, {"qk_norm": True}], ids=str)
@pytest.mark.parametrize("suffix", [1, 2, 7])
def test_a_turn_behind_a_remembered_one_is_the_same_as_read_anew(
    small: DecoderConfig, shape: dict[str, object], suffix: int
) -> None:
    model = random_policy(replace(small, **shape), 3)  # type: ignore[arg-type]
    engine, memory = Engine(model, []), PrefixCache(1000)
    with engine.session(memory) as session:
        session.submit(0, prompt(40, 0), GREEDY, seed=0)
        first = drain(session)[0]
        turn = (*first.prompt, *first.completion[:-1], *prompt(suffix, 9))
        session.submit(1, turn, GREEDY, seed=0)
        again = drain(session)[1]
    anew = engine.generate([turn], GREEDY, seed=0)[0]
    assert memory.reused == 40 + 11 and memory.read == 40 + len(turn)
    assert again.completion == anew.completion
    law = laws(model, [*turn, *again.completion])[len(turn) - 1 : -1]
    assert law.argmax(-1).tolist() == list(again.completion)


def test_the_memory_is_bounded_and_the_oldest_leave_first(small: DecoderConfig) -> None:
    engine, memory = Engine(random_policy(small, 0), [], max_rows=1), PrefixCache(130)
    one = Sampling(1, top_k=1)
    with engine.session(memory) as session:
        for i, length in enumerate([40, 50, 30, 40, 131, SHORTEST_KEPT - 1]):
            session.submit(i, prompt(length, i), one, seed=0)
            drain(session)
            assert memory.tokens <= 130
        reused = memory.reused
        session.submit(9, prompt(50, 1), one, seed=0)  # still there: 50 + 30 + 40
        drain(session)
        assert memory.reused == reused + 49
        session.submit(10, prompt(40, 0), one, seed=0)  # the oldest has left
        drain(session)
        assert memory.reused == reused + 49


def test_a_conversation_takes_the_room_of_its_longest_turn_alone(small: DecoderConfig) -> None:
    engine, memory = Engine(random_policy(small, 0), []), PrefixCache(1000)
    with engine.session(memory) as session:
        for i, length in enumerate([20, 35, 50, 35]):
            session.submit(i, prompt(50, 0)[:length], Sampling(1, top_k=1), seed=0)
            drain(session)
    assert memory.tokens == 50


def test_other_backbones_read_every_prompt_anew() -> None:
    model = random_policy(LstmConfig(vocab_size=40, width=16, num_layers=1, max_positions=200), 0)  # type: ignore[arg-type]
    engine, memory = Engine(model, []), PrefixCache(1000)
    with engine.session(memory) as session:
        for i in range(2):
            session.submit(i, prompt(40, 0), GREEDY, seed=0)
            found = drain(session)
    assert memory.reused == 0
    assert found[1].completion == engine.generate([prompt(40, 0)], GREEDY, seed=0)[0].completion


# -- what serving does to a distribution -------------------------------------------------------------------------------


def shaped(
    shaping: Shaping, logits: Sequence[float], prompt: Sequence[int] = (), drawn: Sequence[int] = ()
) -> list[float]:
    found: list[float] = shape_logits(torch.tensor(logits), shaping, prompt, drawn).tolist()
    return found


def test_penalties_and_biases_by_hand() -> None:
    logits = [2.0, -1.0, 0.5, 3.0]
    assert shaped(Shaping(presence=0.5), logits, [3], [0, 0, 1]) == [1.5, -1.5, 0.5, 3.0]
    assert shaped(Shaping(frequency=0.5), logits, [3], [0, 0, 1]) == [1.0, -1.5, 0.5, 3.0]
    assert shaped(Shaping(presence=0.25, frequency=0.5), logits, [], [0, 0]) == [0.75, -1.0, 0.5, 3.0]
    assert shaped(Shaping(repetition=2.0), logits, [3, 1], [0]) == [1.0, -2.0, 0.5, 1.5]  # the prompt counts too
    assert shaped(Shaping(logit_bias=((1, 5.0), (3, -100.0))), logits) == [2.0, 4.0, 0.5, -97.0]
    assert shaped(Shaping(presence=1.0), logits) == logits  # nothing drawn yet


def test_min_p_leaves_what_is_likely_enough_beside_the_likeliest() -> None:
    # shares .5, .3, .15, .05 of the likeliest: 1, .6, .3, .1
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    left = [value > float("-inf") for value in shaped(Shaping(min_p=0.29), logits)]
    assert left == [True, True, True, False]


def test_a_bias_decides_what_is_drawn_and_told_is_what_the_model_itself_says(small: DecoderConfig) -> None:
    model = random_policy(small, 2)
    sampling = Sampling(3, top_k=1, shaping=Shaping(logit_bias=((7, 100.0),)), told=2)
    with Engine(model, []).session(PrefixCache(0)) as session:
        session.submit(0, [3, 5], sampling, seed=0)
        tokens = [session.step()[0] for _ in range(3)]
    assert [token.token for token in tokens] == [7, 7, 7]
    assert [token.logp for token in tokens] == [0.0, 0.0, 0.0]  # of what it was drawn from
    own = laws(model, [3, 5, 7, 7])[1:]
    for token, law in zip(tokens, own, strict=True):
        assert token.told is not None
        assert token.told.logp == pytest.approx(float(law[7]), abs=1e-5)
        values, ids = law.topk(2)
        assert [one for one, _ in token.told.top] == ids.tolist()
        assert [logp for _, logp in token.told.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_only_who_asks_is_told_and_as_much_as_asked(small: DecoderConfig) -> None:
    with Engine(random_policy(small, 2), []).session(PrefixCache(0)) as session:
        for place, told in enumerate([None, 0, 5]):
            session.submit(place, [3, 5], replace(GREEDY, told=told), seed=0)
        found = {token.prompt_index: token.told for token in session.step()}
    assert found[0] is None
    assert found[1] is not None and found[1].top == ()
    assert found[2] is not None and len(found[2].top) == 5


@pytest.mark.parametrize("length", [1, 2, 60, 190])
def test_a_prompt_is_read_as_the_model_says_it(
    small: DecoderConfig, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accord.rollout.engine.READ_TOKENS", 50)
    model, ids = random_policy(small, 1), prompt(length, 4)
    with Engine(model, []).session(PrefixCache(0)) as session:
        told = session.read(ids, 3)
    law = laws(model, ids)
    assert [one.logp for one in told] == pytest.approx([float(law[i, ids[i + 1]]) for i in range(length - 1)], abs=1e-5)
    assert [one.top[0][0] for one in told] == law.argmax(-1).tolist()[:-1]


def test_reading_beside_running_rows_leaves_them_alone(small: DecoderConfig) -> None:
    engine = Engine(random_policy(small, 1), [])
    with engine.session(PrefixCache(0)) as session:
        session.submit(0, [3, 5], GREEDY, seed=0)
        session.step()
        session.read(prompt(30, 1), 0)
        found = drain(session)[0]
    assert found.completion == engine.generate([[3, 5]], GREEDY, seed=0)[0].completion


def test_the_likeliest_token_is_what_sorting_finds() -> None:
    """Against the rule of all other ``top_k``: a stable sort, so of equal logits the first."""
    logits = torch.randint(0, 4, (200, 70), generator=torch.Generator().manual_seed(0)).float()

    def by_sorting(logits: Tensor) -> Tensor:
        order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :1]
        return torch.full_like(logits, float("-inf")).scatter(1, order, logits.gather(1, order))

    assert torch.equal(truncate(logits, 1, 1.0), by_sorting(logits))
    assert torch.equal(truncate(logits, 1, 0.5), by_sorting(logits))


def test_told_of_one_row_by_hand() -> None:
    told = told_of(torch.tensor([[1.0, 2.0, 1.0]]).log(), torch.tensor([0]), 1)
    assert told[0].logp == pytest.approx(-1.386294, abs=1e-5)
    assert told[0].top[0] == (1, pytest.approx(-0.693147, abs=1e-5))


def test_models_keep_their_weights_apart(small: DecoderConfig) -> None:
    """A memory belongs to the model it was made with: two servers, two memories."""
    first, second = PrefixCache(100), PrefixCache(100)
    for seed, memory in ((0, first), (1, second)):
        model: CausalLM = random_policy(small, seed)
        with Engine(model, []).session(memory) as session:
            session.submit(0, prompt(40, 0), GREEDY, seed=0)
            found = drain(session)[0]
        assert found.completion == Engine(model, []).generate([prompt(40, 0)], GREEDY, seed=0)[0].completion
