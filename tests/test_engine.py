"""The engine: the law it draws from, the log-probabilities it reports, and what a sample is.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteRows, random_policy
from scipy.stats import chisquare
from torch import Tensor

from accord.config import SampleConfig
from accord.errors import AccordError, DataError, UsageError
from accord.models import forward
from accord.models.decoder import CausalLM
from accord.models.forward import Step
from accord.models.shape import DecoderConfig
from accord.rollout.draw import draw_tokens, truncate
from accord.rollout.engine import Engine, Sample, Sampling, Token
from accord.scoring import sample
from accord.text.batches import Example, collate
from accord.train.likelihood import logp_and_entropy

END = 0
PROMPTS = [[5, 9, 3], [7], [11, 4, 8, 13, 2], [7, 7]]


@pytest.fixture
def small(tiny_config: DecoderConfig) -> DecoderConfig:
    """Twenty tokens only, so that the end token comes up often."""
    return replace(tiny_config, vocab_size=20)


@pytest.fixture
def policy(small: DecoderConfig) -> CausalLM:
    return random_policy(small, 0)


def engine(model: CausalLM, **settings: Any) -> Engine:
    return Engine(model, [END], **settings)


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


# -- the law -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("V", [3, 64, 65, 130, 200])
def test_draw_follows_the_softmax(V: int) -> None:
    """Chi-square over the tokens expected at least 5 times, the others pooled; 64 is the size of a block."""
    num = 100_000
    logits = 1.5 * torch.randn(V, generator=torch.Generator().manual_seed(V))
    token, logp = draw_tokens(logits.expand(num, V).clone(), uniforms(num))
    law = torch.softmax(logits.double(), 0)
    torch.testing.assert_close(logp.double(), law.log()[token], rtol=0.0, atol=1e-5)
    counts, often = torch.bincount(token, minlength=V).double(), law * num >= 5
    seen = torch.cat([counts[often], counts[~often].sum()[None]]) if (~often).any() else counts
    expected = torch.cat([law[often], law[~often].sum()[None]]) * num if (~often).any() else law * num
    assert chisquare(seen.numpy(), (expected * seen.sum() / expected.sum()).numpy()).pvalue > 1e-3


def test_draw_is_the_inverse_of_the_cumulated_law() -> None:
    # shares .5, .25, .25 in order: u = 0, .49, .51, .74, .76, .9999999
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(6, 3)
    token, _ = draw_tokens(logits, torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.9999999]))
    assert token.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("V", [5, 64, 70, 129])
def test_draw_never_takes_what_has_no_probability(V: int) -> None:
    logits = torch.full((4, V), float("-inf"))
    only = torch.tensor([0, V - 1, V // 2, 1])
    logits[torch.arange(4), only] = 3.0
    edge = 1 - 2.0**-24  # the largest uniform there is
    for u in (0.0, 0.5, edge):
        token, logp = draw_tokens(logits.clone(), torch.full((4,), u))
        assert token.tolist() == only.tolist()
        assert logp.tolist() == [0.0] * 4
    # the same at the ends of a law that leaves the last entries out
    half = torch.zeros(1, V)
    half[:, V - 2 :] = float("-inf")
    assert int(draw_tokens(half, torch.tensor([edge]))[0]) == V - 3


def test_draw_with_a_huge_spread_of_logits() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    token, logp = draw_tokens(logits, torch.tensor([0.3]))
    assert (int(token), float(logp)) == (0, 0.0)


@torch.no_grad()
def test_first_tokens_and_pairs_follow_the_model(tiny_config: DecoderConfig) -> None:
    """2000 samples of two tokens over a vocabulary of 5 against the exact joint law at temperature 1.3."""
    model, num = random_policy(replace(tiny_config, vocab_size=5), 4), 2000
    samples = engine(model, max_rows=1000).generate([[1, 2]], Sampling(2, num, temperature=1.3), seed=7)
    expected: dict[tuple[int, ...], float] = {}
    first = torch.softmax(model(torch.tensor([[1, 2]]))[0, -1] / 1.3, 0)
    for a in range(5):
        second = torch.softmax(model(torch.tensor([[1, 2, a]]))[0, -1] / 1.3, 0)
        pairs = {(a,): float(first[a])} if a == END else {(a, b): float(first[a] * second[b]) for b in range(5)}
        expected |= pairs
    counts = Counter(s.completion for s in samples)
    assert set(counts) <= set(expected)
    often = [key for key, share in expected.items() if share * num >= 5]
    seen = [*(counts[key] for key in often), num - sum(counts[key] for key in often)]
    wanted = [*(expected[key] * num for key in often), num * (1 - sum(expected[key] for key in often))]
    assert len(often) > 8
    assert chisquare(seen, wanted).pvalue > 1e-3


# -- the log-probabilities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_behaviour_logp_is_the_learners_own(temperature: float, tied: bool, small: DecoderConfig) -> None:
    model = random_policy(replace(small, tied=tied), 1)
    samples = engine(model).generate(PROMPTS, Sampling(20, 4, temperature), seed=3)
    assert len({len(s.completion) for s in samples}) > 3
    batch = collate([Example(s.prompt, s.completion) for s in samples], pad_id=1)
    learner = logp_and_entropy(model, batch, temperature, entropy=False)[0]
    sampler = torch.tensor([lp for s in samples for lp in s.behaviour_logp])
    assert float((learner - sampler).abs().max()) < 1e-4
    assert float(learner.std()) > 0.5


@torch.no_grad()
def test_behaviour_logp_in_bf16_is_near(policy: CausalLM) -> None:
    policy.model.compute_dtype = torch.bfloat16
    samples = engine(policy).generate(PROMPTS, Sampling(20, 8), seed=3)
    batch = collate([Example(s.prompt, s.completion) for s in samples], pad_id=1)
    gap = logp_and_entropy(policy, batch, entropy=False)[0] - torch.tensor(
        [lp for s in samples for lp in s.behaviour_logp]
    )
    assert float(gap.abs().mean()) < 0.05


def test_what_the_cache_is_kept_in_changes_nothing(policy: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 or fp32, or from the one into the other as a longer request comes in: the numbers themselves are bf16."""
    policy.model.compute_dtype = torch.bfloat16
    found = []
    for few, kinds in ((64, {torch.bfloat16}), (0, {torch.float32}), (16, {torch.bfloat16, torch.float32})):
        monkeypatch.setattr(forward, "FEW_SLOTS", few)
        samples, seen = [], set()
        with Engine(policy, []).session() as session:
            for index, limit in enumerate((6, 40)):
                session.submit(index, PROMPTS[index], Sampling(limit, 3), seed=5)
                for _ in range(2):
                    samples += session.step()
                    seen.add(session._cache.keys[0].dtype)
            while session.busy:
                samples += session.step()
        assert seen == kinds
        found.append([token.sample for token in samples if token.sample is not None])
    assert len(found[0]) == 6 and found[0] == found[1] == found[2]


def watched_passes(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens run through the layers in each pass; of a prefill with a minus sign."""
    seen: list[int] = []
    layers = model.model._layers

    def watched(ids_N: Tensor, run: Any, *read: Any) -> Tensor:
        seen.append(len(ids_N) if isinstance(run, Step) else -len(ids_N))
        return layers(ids_N, run, *read)

    monkeypatch.setattr(model.model, "_layers", watched)
    return seen


# -- samples -----------------------------------------------------------------------------------------------------------


def by_name(samples: list[Sample]) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(s.prompt_index, s.sample_index): s.completion for s in samples}


def test_samples_come_in_order_with_their_prompts(policy: CausalLM) -> None:
    samples = engine(policy).generate(PROMPTS, Sampling(6, 3), seed=0)
    assert [(s.prompt_index, s.sample_index) for s in samples] == [(i, k) for i in range(4) for k in range(3)]
    assert all(s.prompt == tuple(PROMPTS[s.prompt_index]) for s in samples)
    assert all(len(s.completion) == len(s.behaviour_logp) for s in samples)
    assert len(set(by_name(samples).values())) > 6  # one stream a sample


@pytest.mark.parametrize("max_rows", [1, 3, 7])
def test_the_same_samples_whatever_the_number_of_rows(policy: CausalLM, max_rows: int) -> None:
    sampling = Sampling(24, 3, temperature=0.9)
    many = engine(policy, max_rows=128).generate(PROMPTS, sampling, seed=5)
    few = engine(policy, max_rows=max_rows).generate(PROMPTS, sampling, seed=5)
    assert by_name(many) == by_name(few)
    assert by_name(many) != by_name(engine(policy).generate(PROMPTS, sampling, seed=6))


def test_a_sample_does_not_depend_on_the_other_prompts(policy: CausalLM) -> None:
    alone = engine(policy).generate(PROMPTS[:1], Sampling(12, 2), seed=1)
    among = engine(policy).generate(PROMPTS, Sampling(12, 5), seed=1)
    assert [by_name(alone)[0, k] for k in range(2)] == [by_name(among)[0, k] for k in range(2)]


def test_samples_stop_at_the_end_token_or_at_the_limit(policy: CausalLM) -> None:
    samples = engine(policy).generate(PROMPTS, Sampling(15, 30), seed=2)
    finishes = Counter(s.finish for s in samples)
    assert finishes["stop"] > 5
    assert finishes["length"] > 5
    for s in samples:
        assert END not in s.completion[:-1]
        if s.finish == "stop":
            assert s.completion[-1] == END
        else:
            assert len(s.completion) == 15
            assert s.completion[-1] != END


def test_end_on_the_very_last_token_is_a_stop(policy: CausalLM) -> None:
    with torch.no_grad():
        policy.model.norm.weight.zero_()  # all logits equal: END is one of 20
    samples = engine(policy).generate([[3]], Sampling(1, 400), seed=0)
    assert {s.finish for s in samples if s.completion == (END,)} == {"stop"}
    assert {s.finish for s in samples if s.completion != (END,)} == {"length"}
    # -log 20
    assert [s.behaviour_logp[0] for s in samples] == pytest.approx([-2.995732] * 400, abs=1e-5)


def test_samples_of_a_prompt_share_its_prefill(policy: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched_passes(policy, monkeypatch)
    engine(policy).generate(PROMPTS, Sampling(3, 8), seed=0)
    # one prefill of the prompts' 2 + 3 + 5 tokens, [7] being the beginning of [7, 7]; then at most 2 passes
    assert seen[0] == -10
    assert 2 <= len(seen) <= 3
    assert all(0 < rows <= 32 for rows in seen[1:])


def test_finished_rows_leave_the_batch(policy: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = watched_passes(policy, monkeypatch)
    samples = engine(policy).generate(PROMPTS, Sampling(15, 8), seed=2)
    # before token t + 1 the rows that go on are those longer than t
    assert rows[1:] == [n for t in range(1, 15) if (n := sum(len(s.completion) > t for s in samples))]


def test_waiting_prompts_take_the_rows_of_finished_ones(policy: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 prompts of one token through 8 rows: no pass has more rows, and passes are nearly full until few are left."""
    passes = watched_passes(policy, monkeypatch)
    samples = engine(policy, max_rows=8).generate([[7]] * 40, Sampling(60), seed=2)
    fed = sum(len(s.completion) - 1 for s in samples)  # the last token of a sample is never fed back
    decoding, prefills = ([n for n in passes if (n > 0) == later] for later in (True, False))
    assert sum(decoding) == fed
    assert set(prefills) == {-1}  # one and the same prompt
    assert max(decoding) == 8
    # in waves of 8, each as long as its longest, it would be more passes
    waves = sum(max(len(s.completion) for s in samples[w : w + 8]) - 1 for w in range(0, 40, 8))
    assert fed / 8 <= len(decoding) < 0.8 * waves


def test_samples_of_a_prompt_may_outnumber_the_rows(policy: CausalLM) -> None:
    many = engine(policy, max_rows=3).generate(PROMPTS, Sampling(9, 7), seed=4)
    assert by_name(many) == by_name(engine(policy).generate(PROMPTS, Sampling(9, 7), seed=4))


def test_a_stream_is_the_same_samples_token_by_token(policy: CausalLM) -> None:
    sampling = Sampling(15, 3)
    drawn: dict[tuple[int, int], list[Token]] = {}
    for token in engine(policy, max_rows=5).stream(PROMPTS, sampling, seed=2):
        drawn.setdefault((token.prompt_index, token.sample_index), []).append(token)
    whole = engine(policy).generate(PROMPTS, sampling, seed=2)
    assert {name: tuple(t.token for t in tokens) for name, tokens in drawn.items()} == by_name(whole)
    for s in whole:
        tokens = drawn[s.prompt_index, s.sample_index]
        assert tokens[-1].sample is not None and tokens[-1].sample.completion == s.completion
        assert all(t.sample is None for t in tokens[:-1])
        assert [t.logp for t in tokens] == pytest.approx(s.behaviour_logp, abs=1e-4)


def test_a_stream_may_be_left_early(policy: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = watched_passes(policy, monkeypatch)
    policy.train()
    stream = engine(policy).stream(PROMPTS, Sampling(15, 3), seed=2)
    next(stream)
    stream.close()
    assert len(passes) <= 2
    assert policy.training
    before = policy(torch.tensor([[1, 2]]))
    with torch.no_grad():
        policy.model.layers[0].mlp.up_proj.weight.mul_(3.0)  # packed weights were let go
    assert not torch.equal(before, policy(torch.tensor([[1, 2]])))


def test_cancelled_samples_leave_and_the_others_do_not_notice(policy: CausalLM) -> None:
    whole = by_name(engine(policy).generate(PROMPTS, Sampling(15, 3), seed=2))
    running = next(name for name, tokens in whole.items() if len(tokens) > 4)
    ended: dict[tuple[int, int], Sample] = {}
    with engine(policy, max_rows=6).session() as session:
        for index, prompt in enumerate(PROMPTS):
            session.submit(index, prompt, Sampling(15, 3), seed=2)
        for step in range(100):
            if step == 3:
                session.cancel(*running)
                session.cancel(3, 1)  # still waiting, or on its way
                session.cancel(9, 9)  # nobody
            ended |= {(t.prompt_index, t.sample_index): t.sample for t in session.step() if t.sample is not None}
            if not session.busy:
                break
    assert set(ended) == set(whole)
    assert ended[running].finish == "cancelled"
    assert ended[running].completion == whole[running][:3]
    assert ended[3, 1].finish == "cancelled"
    rest = {name: s.completion for name, s in ended.items() if s.finish != "cancelled"}
    assert rest == {name: tokens for name, tokens in whole.items() if name not in (running, (3, 1))}


def test_requests_of_different_settings_share_a_session(policy: CausalLM) -> None:
    """A greedy request beside a hot one, submitted while the first runs: each as if alone."""
    requests = [(0, PROMPTS[0], Sampling(12, 1, top_k=1)), (1, PROMPTS[1], Sampling(15, 2, temperature=1.7))]
    ended: dict[tuple[int, int], Sample] = {}
    with engine(policy).session() as session:
        for index, prompt, sampling in requests:
            session.submit(index, prompt, sampling, seed=1)
            for _ in range(2):
                ended |= {(t.prompt_index, t.sample_index): t.sample for t in session.step() if t.sample is not None}
        while session.busy:
            ended |= {(t.prompt_index, t.sample_index): t.sample for t in session.step() if t.sample is not None}
    alone = engine(policy).generate([PROMPTS[0], PROMPTS[1]], Sampling(15, 2, temperature=1.7), seed=1)
    assert ended[1, 0].completion == by_name(alone)[1, 0]
    ids = list(PROMPTS[0])
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(policy(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] == END:
                break
    assert list(ended[0, 0].completion) == ids[len(PROMPTS[0]) :]
    assert ended[0, 0].behaviour_logp == (0.0,) * len(ended[0, 0].completion)


def test_stop_tokens_end_a_completion_as_the_end_token_does(policy: CausalLM) -> None:
    samples = engine(policy).generate(PROMPTS, Sampling(30, 10, stop_ids=(4, 9)), seed=2)
    ends = Counter(s.completion[-1] for s in samples if s.finish == "stop")
    assert set(ends) == {END, 4, 9}
    assert all(not {END, 4, 9} & set(s.completion[:-1]) for s in samples)


def test_truncation_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    kept = {
        (0, 1.0): [0, 1, 2, 3],
        (2, 1.0): [1, 3],
        (9, 1.0): [0, 1, 2, 3],
        (0, 0.39): [1],
        (0, 0.41): [1, 3],  # .4 does not reach .41, .4 + .3 does
        (0, 0.75): [1, 2, 3],
        (3, 0.5): [1, 3],  # of .4 .3 .2, normed .44 .33 .22
        (1, 0.01): [1],
    }
    for (top_k, top_p), wanted in kept.items():
        found = truncate(logits, top_k, top_p)
        assert found.isfinite()[0].nonzero().squeeze(1).tolist() == wanted, (top_k, top_p)
        assert torch.equal(found[found.isfinite()], logits[found.isfinite()])


def test_a_truncated_law_reports_its_own_probabilities(policy: CausalLM) -> None:
    samples = engine(policy).generate([[3]], Sampling(1, 500, top_k=3), seed=0)
    with torch.no_grad():
        top = torch.softmax(policy(torch.tensor([[3]]))[0, -1], 0).topk(3)
    law = dict(zip(top.indices.tolist(), (top.values / top.values.sum()).log().tolist(), strict=True))
    assert {s.completion[0] for s in samples} == set(law)
    for s in samples:
        assert s.behaviour_logp[0] == pytest.approx(law[s.completion[0]], abs=1e-5)


def test_the_model_is_left_as_it_was(policy: CausalLM) -> None:
    policy.model.dropout = 0.5
    policy.train()
    first = engine(policy).generate(PROMPTS, Sampling(8, 2), seed=0)
    assert policy.training
    assert first == engine(policy).generate(PROMPTS, Sampling(8, 2), seed=0)  # dropout was off
    policy.eval()
    engine(policy).generate(PROMPTS, Sampling(2), seed=0)
    assert not policy.training


def test_new_weights_count_at_once(policy: CausalLM) -> None:
    sampler, sampling = engine(policy), Sampling(10, 4)
    before = by_name(sampler.generate(PROMPTS, sampling, seed=0))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    after = by_name(sampler.generate(PROMPTS, sampling, seed=0))
    assert before != after
    assert after == by_name(engine(policy).generate(PROMPTS, sampling, seed=0))


# -- a file of prompts -------------------------------------------------------------------------------------------------


def test_samples_of_a_files_prompts(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("prompts.jsonl", [{"prompt": "The village:"}, {"prompt": "Bread"}])
    config = SampleConfig(samples_per_prompt=3, max_new_tokens=5, temperature=1.0)
    result = sample(config, model=policy_folder, data=data, output=tmp_path / "samples.jsonl", seed=4)
    rows = [json.loads(line) for line in result.output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["The village:"] * 3 + ["Bread"] * 3
    assert result.num_samples == 6
    assert result.mean_tokens == pytest.approx(sum(row["tokens"] for row in rows) / 6)
    assert result.finished == sum(row["finish"] == "stop" for row in rows) / 6
    for row in rows:
        # the policy is nearly uniform over 320 tokens: about -log 320 = -5.77 a token
        assert row["logp"] == pytest.approx(-5.77 * row["tokens"], abs=0.5 * row["tokens"])
        assert row["tokens"] == 5 or row["finish"] == "stop"


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"samples_per_prompt": 0}, "at least 1"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.5}, "top_p 1.5"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Sampling(**{"max_new_tokens": 4, **settings})


@pytest.mark.parametrize(("prompts", "says"), [([], "no prompts"), ([[1], []], "empty prompt")])
def test_no_prompt(policy: CausalLM, prompts: list[list[int]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        engine(policy).generate(prompts, Sampling(2), seed=0)


def test_an_empty_prompt_is_refused_by_a_session_too(policy: CausalLM) -> None:
    with engine(policy).session() as session, pytest.raises(UsageError, match="empty prompt"):
        session.submit(0, [], Sampling(2), seed=0)


def test_no_room_for_any_sample(policy: CausalLM) -> None:
    with pytest.raises(UsageError, match="max_rows 0"):
        engine(policy, max_rows=0)


def test_one_session_at_a_time_on_a_model(policy: CausalLM) -> None:
    """The first to close would take the laid-out weights from the other, and let its dropout act."""
    with engine(policy).session(), pytest.raises(UsageError, match="another session"), engine(policy).session():
        pass
    assert len(engine(policy).generate(PROMPTS, Sampling(2), seed=0)) == len(PROMPTS)


def test_weights_that_are_no_numbers(policy: CausalLM) -> None:
    with torch.no_grad():
        policy.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(DataError, match="not numbers"):
        engine(policy).generate(PROMPTS, Sampling(2), seed=0)


def test_many_samples_of_one_prompt_leave_no_rows_idle(policy: CausalLM) -> None:
    """Prompts of as many samples as there are rows: the next prompt's enter while the last of this one's still run.

    With waves each prompt takes as long as its longest completion, nearly the limit; an eighth of the rows is idle at
    most between refills, and the last of all run out.
    """
    steps, drawn, rows = 0, 0, 16
    with Engine(policy, [END, 1, 2], max_rows=rows).session() as session:
        for index in range(8):
            session.submit(index, [5, 9, 3], Sampling(40, rows), seed=0)
        while session.busy:
            drawn += len(session.step())
            steps += 1
    assert drawn / (steps * rows) > 0.6


def test_completions_that_cannot_fit_are_refused_before_the_work(policy: CausalLM) -> None:
    # 64 positions: a prompt of 50 leaves room for 14 and, as the last token is never fed back, one more
    long = [3] * 50
    assert len(engine(policy).generate([long], Sampling(15), seed=0)) == 1
    with pytest.raises(AccordError, match="64 positions"):
        engine(policy).generate([long], Sampling(40), seed=0)
    with pytest.raises(AccordError, match="64 positions"):
        engine(policy).generate([[3] * 65], Sampling(1), seed=0)
