"""The evaluation: samples of every policy on films that nothing was trained on, and what a judge says of them.

The judge chooses a snapshot on validation films among those that hold the floors; the chosen one is reported on test
films beside what it is compared with. Every random choice follows from the seed.

Shapes: P prompts, K samples a prompt, B = P*K samples, N counted tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from accord.algo.logprob import token_logp
from accord.config import EvalConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.evals.judge import load_judge
from accord.evals.metrics import distinct_n, distinct_share, mean_repetition, self_bleu, word_count
from accord.evals.results import (
    CurvePoint,
    EvalResults,
    PolicyRow,
    Selection,
    Snapshot,
    choose,
    plain,
    policy_floors,
    snapshot_floors,
)
from accord.files import write_json
from accord.formats.jsonl import PromptRow, read_prompts, write_jsonl
from accord.models.decoder import CausalLM
from accord.models.folder import load_policy
from accord.models.placement import AUTO, Placement
from accord.models.precision import tune_allocator
from accord.rollout.engine import Engine, Sampling
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import load_scorer
from accord.seeds import stream_seed
from accord.stats import (
    Interval,
    best_of_n_curve,
    best_of_n_kl_bound,
    bootstrap_by_cluster,
    length_controlled_win_rate,
    win_rate,
)
from accord.text.batches import Example, collate, example_buckets
from accord.text.tokenizer import Tokenizer, tokenizer_hash

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Log = Callable[[float, str], None]

ENGINE_ROWS = 256
BATCH_TOKENS = 8192
LENGTH_CONTROLLED_RESAMPLES = 500  # each one is a logistic fit


class TextJudge(Protocol):
    """What evaluates and trained nothing: texts in, (N,) scores out, higher = better."""

    def score(self, texts: Sequence[str]) -> FloatArray: ...


# ---- samples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PolicySamples:
    """K completions of each of P prompts. ``tokens_PK`` counts the end token.

    ``logp_PK`` and ``ref_logp_PK`` are log-probabilities of the whole completion in nats under the policy itself and
    under the reference, both recomputed by one and the same function, so that a policy's KL to itself is exactly 0.
    """

    texts: tuple[tuple[str, ...], ...]
    finished_PK: BoolArray
    tokens_PK: IntArray
    logp_PK: FloatArray
    ref_logp_PK: FloatArray

    @property
    def flat(self) -> list[str]:
        """The texts prompt by prompt."""
        return [text for row in self.texts for text in row]

    @property
    def kl_PK(self) -> FloatArray:
        """log pi - log ref of each completion: its mean estimates KL(pi || ref) without bias (k1)."""
        return self.logp_PK - self.ref_logp_PK

    def pick(self, index_PK: IntArray) -> PolicySamples:
        """For each prompt only the samples with these indices, in this order."""
        return PolicySamples(
            texts=tuple(tuple(row[k] for k in index) for row, index in zip(self.texts, index_PK, strict=True)),
            finished_PK=np.take_along_axis(self.finished_PK, index_PK, axis=1),
            tokens_PK=np.take_along_axis(self.tokens_PK, index_PK, axis=1),
            logp_PK=np.take_along_axis(self.logp_PK, index_PK, axis=1),
            ref_logp_PK=np.take_along_axis(self.ref_logp_PK, index_PK, axis=1),
        )


@dataclass(frozen=True, eq=False)
class Policy:
    """A policy in memory, and the folder it came from."""

    folder: Path
    model: CausalLM
    words: Tokenizer

    @classmethod
    def load(cls, folder: Path, placement: Placement = AUTO) -> Policy:
        model, words = load_policy(folder, placement)
        return cls(folder, model.eval().requires_grad_(False), words)


def sample_policy(
    folder: Path, prompts: Sequence[str], sampling: Sampling, *, reference: Path, seed: int, placement: Placement = AUTO
) -> PolicySamples:
    """Draw K completions a prompt from the policy in ``folder`` and find their log-probabilities there and in
    ``reference``, at the temperature they were drawn with.

    Raises:
        DataError: the two folders hold different tokenizers, so that their log-probabilities cannot be compared.
    """
    return draw_samples(Policy.load(folder, placement), Policy.load(reference, placement), prompts, sampling, seed=seed)


def draw_samples(
    policy: Policy, reference: Policy, prompts: Sequence[str], sampling: Sampling, *, seed: int
) -> PolicySamples:
    """`sample_policy` with both models in memory."""
    if policy is not reference and tokenizer_hash(policy.folder) != tokenizer_hash(reference.folder):
        raise DataError(
            "policy and reference have different tokenizers",
            where=str(policy.folder),
            why="KL and likelihood compare log-probabilities of the same tokens",
            hint=f"evaluate against the checkpoint the policy started from, not {reference.folder}",
        )
    engine = Engine(policy.model, policy.words.stop_ids, max_rows=ENGINE_ROWS)
    drawn = engine.generate([policy.words.encode(p) for p in prompts], sampling, seed=seed)
    examples = [Example(s.prompt, s.completion) for s in drawn]
    logp_B = completion_logps(policy.model, examples, policy.words.pad_id, sampling.temperature)
    ref_logp_B = logp_B
    if policy is not reference:
        ref_logp_B = completion_logps(reference.model, examples, policy.words.pad_id, sampling.temperature)
    K, shape = sampling.samples_per_prompt, (len(prompts), sampling.samples_per_prompt)
    texts = [policy.words.decode(s.completion) for s in drawn]
    return PolicySamples(
        texts=tuple(tuple(texts[p * K : (p + 1) * K]) for p in range(len(prompts))),
        finished_PK=np.array([s.finish == "stop" for s in drawn]).reshape(shape),
        tokens_PK=np.array([len(s.completion) for s in drawn], dtype=np.int64).reshape(shape),
        logp_PK=logp_B.reshape(shape),
        ref_logp_PK=ref_logp_B.reshape(shape),
    )


@torch.no_grad()
def completion_logps(model: CausalLM, examples: Sequence[Example], pad_id: int, temperature: float) -> FloatArray:
    """(B,) log-probability of each completion given its prompt, in nats, the end token among its tokens."""
    sum_B = torch.zeros(len(examples), dtype=torch.float64)
    for bucket in example_buckets(examples, BATCH_TOKENS):
        batch = collate([examples[i] for i in bucket], pad_id)
        logp_N = token_logp(*model.predictions(batch), temperature)[0].cpu()
        row_N = torch.tensor(bucket).repeat_interleave(batch.mask_BT.sum(1))
        sum_B.index_add_(0, row_N, logp_N.double())
    return np.asarray(sum_B.numpy(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Scored:
    """Samples with the judge's and the proxy's score of each, ``(P, K)``."""

    samples: PolicySamples
    judge_PK: FloatArray
    proxy_PK: FloatArray

    def pick(self, index_PK: IntArray) -> Scored:
        judge_PK, proxy_PK = (np.take_along_axis(s, index_PK, axis=1) for s in (self.judge_PK, self.proxy_PK))
        return Scored(self.samples.pick(index_PK), judge_PK, proxy_PK)

    def first(self, K: int) -> Scored:
        """The first K samples of each prompt."""
        return self.pick(np.tile(np.arange(K), (len(self.judge_PK), 1)))

    def best_by_proxy(self, n: int) -> Scored:
        """Of each n samples in turn the one with the highest proxy score: K*n samples a prompt become K."""
        grouped = self.proxy_PK.reshape(len(self.proxy_PK), -1, n)
        return self.pick(grouped.argmax(axis=2) + n * np.arange(grouped.shape[1]))


# ---- one split -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bench:
    """What all policies measured on one split share. ``films`` (P,) are the unit of resampling.

    ``name`` names the random streams: each policy has its own, so that no two policies' samples are coupled.
    """

    name: str
    prompts: tuple[str, ...]
    films: tuple[str, ...]
    reference: Policy
    scorer: Scorer
    judge: TextJudge
    sampling: Sampling
    seed: int
    resamples: int
    placement: Placement = AUTO

    def sample(self, name: str, folder: Path, K: int | None = None) -> Scored:
        """Draw and score; ``K`` instead of the bench's own number of samples a prompt."""
        policy = self.reference if folder == self.reference.folder else Policy.load(folder, self.placement)
        sampling = replace(self.sampling, samples_per_prompt=K) if K else self.sampling
        seed = stream_seed(self.seed, "eval", self.name, name)
        return self.scored(draw_samples(policy, self.reference, self.prompts, sampling, seed=seed))

    def scored(self, samples: PolicySamples) -> Scored:
        """The judge reads the bare text, the proxy the prompt and the completion as it was drawn."""
        shape = samples.tokens_PK.shape
        pairs = [(prompt, text) for prompt, row in zip(self.prompts, samples.texts, strict=True) for text in row]
        proxy_B = self.scorer.score(pairs).double().numpy()
        judge_B = self.judge.score([text.strip() for text in samples.flat])
        return Scored(samples, np.asarray(judge_B).reshape(shape), np.asarray(proxy_B).reshape(shape))

    def mean(self, value_PK: npt.ArrayLike, weight_PK: npt.ArrayLike | None = None) -> Interval:
        """(Weighted) mean over all samples, interval by film."""
        values = np.asarray(value_PK, dtype=np.float64)
        films = [film for film in self.films for _ in range(values.shape[1])]
        weights = None if weight_PK is None else np.asarray(weight_PK, dtype=np.float64).ravel()
        return bootstrap_by_cluster(values.ravel(), films, weights=weights, resamples=self.resamples, seed=self.seed)

    def row(self, name: str, scored: Scored, against: Scored, *, note: str = "", best_of: int = 1) -> PolicyRow:
        """Measure one policy's samples; ``against`` are the reference's (itself gives win rates of None)."""
        texts, tokens_PK = scored.samples.flat, scored.samples.tokens_PK
        nll = self.nll(scored)
        return PolicyRow(
            name=name,
            note=note,
            best_of=best_of,
            num_samples=len(texts),
            judge=self.mean(scored.judge_PK),
            proxy=self.mean(scored.proxy_PK),
            win_rate=None if scored is against else self.wins(scored, against),
            length_controlled=None if scored is against else self.wins_at_equal_length(scored, against),
            kl=self.mean(scored.samples.kl_PK) if best_of == 1 else self.bound(best_of, len(texts)),
            kl_is_bound=best_of > 1,
            tokens=self.mean(tokens_PK),
            words=float(np.mean([word_count(text) for text in texts])),
            length_ratio=float(tokens_PK.mean() / against.samples.tokens_PK.mean()),
            nll=nll,
            nll_excess=nll.value - self.nll(against).value,
            distinct_2=distinct_n(texts, 2),
            self_bleu=self_bleu(texts) if len(texts) > 1 else 0.0,
            distinct_share=distinct_share(texts),
            repetition=mean_repetition(texts),
            end_rate=float(scored.samples.finished_PK.mean()),
        )

    def nll(self, scored: Scored) -> Interval:
        """- sum ref_logp / sum tokens: nats per token under the reference, long completions counting more."""
        tokens_PK = scored.samples.tokens_PK
        return self.mean(-scored.samples.ref_logp_PK / tokens_PK, tokens_PK)

    def wins(self, scored: Scored, against: Scored) -> Interval:
        return win_rate(scored.judge_PK, against.judge_PK, self.films, resamples=self.resamples, seed=self.seed)

    def wins_at_equal_length(self, scored: Scored, against: Scored) -> Interval:
        return length_controlled_win_rate(
            scored.judge_PK,
            scored.samples.tokens_PK,
            against.judge_PK,
            against.samples.tokens_PK,
            self.films,
            resamples=min(self.resamples, LENGTH_CONTROLLED_RESAMPLES),
            seed=self.seed,
        )

    def bound(self, n: int, num_samples: int) -> Interval:
        return Interval(best_of_n_kl_bound(n), math.nan, math.nan, num_samples, len(set(self.films)))


def measure_snapshots(
    config: EvalConfig, bench: Bench, name: str, snapshots: Mapping[int, Path], against: Scored, log: Log
) -> tuple[Snapshot, ...]:
    """A row and the floors of each snapshot (training step -> folder), in the order of their steps."""
    measured = []
    for done, (step, folder) in enumerate(sorted(snapshots.items())):
        log(done / len(snapshots), f"{bench.name} films: {name} at step {step}")
        row = bench.row(name, bench.sample(f"{name}-{step}", folder), against)
        measured.append(Snapshot(step, row, snapshot_floors(config, row)))
    return tuple(measured)


def select_snapshot(
    config: EvalConfig, bench: Bench, snapshots: Mapping[int, Path], against: Scored, log: Log = lambda *_: None
) -> Selection:
    """The snapshot the judge likes best on the bench's (validation) films among those that hold the floors there.

    Args:
        snapshots: training step -> policy folder.
        against: the reference's samples on the same films.
    """
    measured = measure_snapshots(config, bench, "ppo", snapshots, against, log)
    best, reason = choose(measured)
    return Selection(best.step, best.held, reason, bench.row("sft", against, against), measured)


def best_of_n_points(bench: Bench, pool: Scored) -> tuple[CurvePoint, ...]:
    """Judge and proxy of best-of-n by the proxy for n = 1, 2, 4 ... up to the pool's samples a prompt."""
    ns = [2**i for i in range(pool.judge_PK.shape[1].bit_length())]
    judge = best_of_n_curve(pool.judge_PK, pool.proxy_PK, ns, bench.films, seed=bench.seed)
    proxy = best_of_n_curve(pool.proxy_PK, pool.proxy_PK, ns, bench.films, seed=bench.seed)
    return tuple(CurvePoint(n, best_of_n_kl_bound(n), j, p) for n, j, p in zip(ns, judge, proxy, strict=True))


# ---- the whole -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """A policy that is reported on test films; with ``best_of`` n the reward model picks the best of each n."""

    name: str
    folder: Path
    note: str = ""
    best_of: int = 1


def evaluate_policies(
    bench: Bench, contestants: Sequence[Contestant], log: Log = lambda *_: None
) -> tuple[tuple[PolicyRow, ...], dict[str, Scored]]:
    """A row of every contestant on the bench's films, all against the reference's samples, which come first ("sft").

    Returns:
        The rows in the order given after the reference, and the samples by name.
    """
    against = bench.sample("sft", bench.reference.folder)
    rows, samples = [bench.row("sft", against, against, note="the reference: where PPO started")], {"sft": against}
    for done, one in enumerate(contestants):
        log(done / len(contestants), f"{bench.name} films: {one.name}")
        scored = bench.sample(one.name, one.folder, bench.sampling.samples_per_prompt * one.best_of)
        samples[one.name] = scored.best_by_proxy(one.best_of)
        rows.append(bench.row(one.name, samples[one.name], against, note=one.note, best_of=one.best_of))
    return tuple(rows), samples


def evaluate(
    config: EvalConfig,
    *,
    base: Path,
    sft: Path,
    snapshots: Mapping[int, Path],
    reward_model: Path,
    judge: Path,
    valid_prompts: Path,
    test_prompts: Path,
    max_new_tokens: int,
    temperature: float = 1.0,
    uncured: Mapping[int, Path] | None = None,
    uncured_note: str = "",
    rewards: Sequence[ScorerConfig] = (),
    output_dir: Path,
    seed: int = 0,
    placement: Placement = AUTO,
    log: Log = lambda *_: None,
) -> EvalResults:
    """Choose a PPO snapshot on validation films, report it on test films beside base, SFT and best-of-n.

    Writes ``output_dir/results.json`` and ``samples.jsonl`` (every completion on test films with its scores).

    Args:
        snapshots: training step -> policy folder, as `accord.rl` returns them.
        judge: folder of a saved judge.
        valid_prompts, test_prompts: JSONL of ``{"prompt", "topic"}``; the topic (film) is the unit of resampling.
        uncured: snapshots of the same training without its cure; the last one is reported on test films.
        uncured_note: what was left out there, in words.
        rewards: what training added to the reward model's score: the proxy is what was optimised.
    """
    tune_allocator()
    uncured = uncured or {}
    reader, proxy = load_judge(judge), load_scorer(rewards, reward_model, placement)
    reference = Policy.load(sft, placement)
    sampling = Sampling(max_new_tokens, config.samples_per_prompt, temperature)

    def bench(name: str, path: Path) -> Bench:
        return Bench(name, *read_films(path), reference, proxy, reader, sampling, seed, config.bootstrap, placement)

    valid, test = bench("validation", valid_prompts), bench("test", test_prompts)
    pool = valid.sample("sft", sft, max(config.curve_samples, config.samples_per_prompt))
    against = pool.first(config.samples_per_prompt)
    selection = select_snapshot(config, valid, snapshots, against, part_of(log, 0.15, 0.45))
    without = measure_snapshots(config, valid, "ppo_uncured", uncured, against, part_of(log, 0.45, 0.65))
    policies = {"base": base, "best_of_n": sft, "ppo": snapshots[selection.step]}
    if uncured:
        policies["ppo_uncured"] = uncured[max(uncured)]
    contestants = _contestants(config, policies, selection.step, uncured_note)
    rows, samples = evaluate_policies(test, contestants, part_of(log, 0.65, 0.97))
    results = EvalResults(
        seed=seed,
        judge_hash=reader.hash,
        num_test_prompts=len(test.prompts),
        num_valid_prompts=len(valid.prompts),
        samples_per_prompt=config.samples_per_prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        policies=rows,
        floors=policy_floors(config, next(row for row in rows if row.name == "ppo")),
        selection=selection,
        uncured=without,
        best_of_n_curve=best_of_n_points(valid, pool),
    )
    write_jsonl(output_dir / "samples.jsonl", _sample_rows(test, samples))
    write_json(output_dir / "results.json", results.to_json())
    log(1.0, "evaluated")
    return results


def _contestants(config: EvalConfig, policies: Mapping[str, Path], step: int, uncured_note: str) -> list[Contestant]:
    """Policies by name with what the report says of each."""
    notes = {
        "base": "before fine-tuning",
        "best_of_n": f"the reward model picks one of {config.best_of} SFT samples",
        "ppo": f"step {step}, chosen by the judge on validation films",
        "ppo_uncured": uncured_note,
    }
    best_of = {"best_of_n": config.best_of}
    return [Contestant(name, folder, notes[name], best_of.get(name, 1)) for name, folder in policies.items()]


def read_films(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts of a file and their films; a prompt without a topic is a film of its own."""
    rows: list[PromptRow] = read_prompts(path)
    if len({row.text for row in rows}) < len(rows):
        raise UsageError("a prompt stands twice", where=str(path), hint="evaluate on each prompt once")
    return tuple(row.text for row in rows), tuple(row.topic or row.text for row in rows)


def part_of(log: Log, start: float, end: float) -> Log:
    """A reporter for the part of the work between two fractions of the whole."""
    return lambda fraction, text: log(start + fraction * (end - start), text)


def _sample_rows(bench: Bench, samples: Mapping[str, Scored]) -> list[dict[str, Any]]:
    return [
        {
            "policy": name,
            "film": bench.films[p],
            "prompt": bench.prompts[p],
            "sample": k,
            "completion": text,
            "judge": plain(scored.judge_PK[p, k]),
            "proxy": plain(scored.proxy_PK[p, k]),
            "tokens": int(scored.samples.tokens_PK[p, k]),
            "finished": bool(scored.samples.finished_PK[p, k]),
        }
        for name, scored in samples.items()
        for p, row in enumerate(scored.samples.texts)
        for k, text in enumerate(row)
    ]
