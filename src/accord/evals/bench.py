"""All policies measured alike on the prompts of one split: their samples, the scores, a row of measures each.

Shapes: P prompts, K samples a prompt, B = P*K samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accord.evals.contestants import Contestant, read_once
from accord.evals.metrics import distinct_n, distinct_share, mean_repetition, self_bleu, word_count
from accord.evals.results import CurvePoint, FirstVerdict, JudgeVerdict, PolicyRow
from accord.evals.sample_cache import Drawing, kept_samples
from accord.evals.samples import LoadedPolicy, PolicySamples, draw_samples
from accord.models.placement import AUTO, Placement
from accord.progress import Log
from accord.rollout.engine import Sampling
from accord.scoring.room import rooms_for, short_enough
from accord.scoring.scorer import Scorer
from accord.seeds import stream_seed
from accord.stats import (
    FloatArray,
    IntArray,
    Interval,
    best_of_n_curve,
    best_of_n_kl_bound,
    bootstrap_by_cluster,
    length_controlled_win_rate,
    win_rate,
)

LENGTH_CONTROLLED_RESAMPLES = 500  # each one is a logistic fit


@dataclass(frozen=True, eq=False)
class ScoredSamples:
    """Samples with the scores of each, ``(P, K)``: the leading judge's, the proxy's, and the other judges' by name."""

    samples: PolicySamples
    judge_PK: FloatArray
    proxy_PK: FloatArray
    others: Mapping[str, FloatArray] = field(default_factory=dict)

    def pick(self, index_PK: IntArray) -> ScoredSamples:
        """For each prompt only the samples with these indices, in this order."""

        def taken(score_PK: FloatArray) -> FloatArray:
            return np.take_along_axis(score_PK, index_PK, axis=1)

        others = {name: taken(score_PK) for name, score_PK in self.others.items()}
        return ScoredSamples(self.samples.pick(index_PK), taken(self.judge_PK), taken(self.proxy_PK), others)

    def first(self, K: int) -> ScoredSamples:
        """Return the first K samples of each prompt."""
        return self.pick(np.tile(np.arange(K), (len(self.judge_PK), 1)))

    def best_by_proxy(self, n: int) -> ScoredSamples:
        """Of each n samples in turn the one with the highest proxy score: K*n samples a prompt become K."""
        grouped = self.proxy_PK.reshape(len(self.proxy_PK), -1, n)
        return self.pick(grouped.argmax(axis=2) + n * np.arange(grouped.shape[1]))


@dataclass(frozen=True, eq=False)
class Bench:
    """What all policies measured on one split share. ``topics`` (P,) are the unit of resampling.

    ``name`` names the random streams: each policy has its own, so that no two policies' samples are coupled. The first
    of ``judges`` leads: it decides win rates and the choice of snapshots. ``first`` is where the first of several
    rounds started, where policies are measured from there too. ``cache`` is a folder that keeps what was drawn.
    ``left_out`` counts the prompts that were too long, by the model that has no room for them.
    """

    name: str
    prompts: tuple[str, ...]
    topics: tuple[str, ...]
    reference: LoadedPolicy
    proxy: Scorer
    judges: Mapping[str, Scorer]
    sampling: Sampling
    seed: int
    resamples: int
    placement: Placement = AUTO
    first: LoadedPolicy | None = None
    cache: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def on(self, name: str, path: Path, judges: Mapping[str, Scorer]) -> Bench:
        """Return the same bench with the prompts of another file and these judges.

        Prompts that one of the models has no room for are left out and counted.
        """
        policy, tokenizer = self.reference.model, self.reference.tokenizer
        rooms = rooms_for(policy, tokenizer, self.sampling.max_new_tokens, self.proxy, *judges.values())
        rows, left_out = short_enough(read_once(path, tokenizer.chat), rooms)
        topics = tuple(row.topic or row.text for row in rows)
        prompts = tuple(row.text for row in rows)
        return replace(self, name=name, prompts=prompts, topics=topics, judges=judges, left_out=left_out)

    def tell_left_out(self, log: Log) -> None:
        """Say how many prompts were too long, and for whom."""
        for whose, count in self.left_out.items():
            log(0.0, f"{count} {self.name} prompts left out: longer than the {whose} takes")

    def sample(self, stream: str, folder: Path, K: int | None = None) -> ScoredSamples:
        """Draw and score; ``K`` instead of the bench's own number of samples a prompt."""
        sampling = replace(self.sampling, samples_per_prompt=K) if K else self.sampling
        seed = stream_seed(self.seed, "eval", self.name, stream)

        def drawn() -> PolicySamples:
            policy = self.reference if folder == self.reference.folder else LoadedPolicy.load(folder, self.placement)
            return draw_samples(policy, self.reference, self.prompts, sampling, seed=seed, first=self.first)

        first = None if self.first is None else self.first.folder
        what = Drawing(folder, self.reference.folder, self.prompts, sampling, seed, self.placement, first)
        return self.scored(kept_samples(self.cache, what, drawn))

    def scored(self, samples: PolicySamples) -> ScoredSamples:
        """Judges and proxy read the prompt and the completion as it was drawn."""
        shape = samples.tokens_PK.shape
        pairs = [(prompt, text) for prompt, row in zip(self.prompts, samples.texts, strict=True) for text in row]

        def score(scorer: Scorer) -> FloatArray:
            return np.asarray(scorer.score(pairs).double().cpu().numpy()).reshape(shape)

        leading, *others = self.judges
        proxy_PK = score(self.proxy)
        rest = {name: score(self.judges[name]) for name in others}
        return ScoredSamples(samples, score(self.judges[leading]), proxy_PK, rest)

    def mean(self, value_PK: npt.ArrayLike, weight_PK: npt.ArrayLike | None = None) -> Interval:
        """(Weighted) mean over all samples, interval by topic."""
        values = np.asarray(value_PK, dtype=np.float64)
        topics = [topic for topic in self.topics for _ in range(values.shape[1])]
        weights = None if weight_PK is None else np.asarray(weight_PK, dtype=np.float64).ravel()
        return bootstrap_by_cluster(values.ravel(), topics, weights=weights, resamples=self.resamples, seed=self.seed)

    def row(self, one: Contestant, scored: ScoredSamples, against: ScoredSamples, *, note: str = "") -> PolicyRow:
        """Measure one policy's samples; ``against`` are the reference's (itself gives win rates of None)."""
        texts, tokens_PK = scored.samples.flat, scored.samples.tokens_PK
        nll = self.nll(scored)
        verdict = self.verdict(scored, scored.judge_PK, against, against.judge_PK)
        return PolicyRow(
            name=one.name,
            role=one.role,
            note=note or one.note,
            best_of=one.best_of,
            num_samples=len(texts),
            judge=verdict.score,
            proxy=self.mean(scored.proxy_PK),
            win_rate=verdict.win_rate,
            length_controlled=verdict.length_controlled,
            other_judges=self.other_verdicts(scored, against),
            kl=self.mean(scored.samples.kl_PK) if one.best_of == 1 else self.bound(one.best_of, len(texts)),
            kl_is_bound=one.best_of > 1,
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
            entropy=self.entropy(scored) if one.best_of == 1 else None,
        )

    def nll(self, scored: ScoredSamples) -> Interval:
        """- sum ref_logp / sum tokens: nats per token under the reference, long completions counting more."""
        tokens_PK = scored.samples.tokens_PK
        return self.mean(-scored.samples.ref_logp_PK / tokens_PK, tokens_PK)

    def entropy(self, scored: ScoredSamples) -> Interval | None:
        """Nats per token of the policy's own distributions, long completions counting more."""
        entropy_PK, tokens_PK = scored.samples.entropy_PK, scored.samples.tokens_PK
        return None if entropy_PK is None else self.mean(entropy_PK / tokens_PK, tokens_PK)

    def verdict(
        self, scored: ScoredSamples, score_PK: FloatArray, against: ScoredSamples, against_PK: FloatArray
    ) -> JudgeVerdict:
        """Return what one judge says of a policy: its mean score, and how often it wins against the reference."""
        if scored is against:
            return JudgeVerdict(self.mean(score_PK), None, None)
        win = win_rate(score_PK, against_PK, self.topics, resamples=self.resamples, seed=self.seed)
        even = length_controlled_win_rate(
            score_PK,
            scored.samples.tokens_PK,
            against_PK,
            against.samples.tokens_PK,
            self.topics,
            resamples=min(self.resamples, LENGTH_CONTROLLED_RESAMPLES),
            seed=self.seed,
        )
        return JudgeVerdict(self.mean(score_PK), win, even)

    def other_verdicts(self, scored: ScoredSamples, against: ScoredSamples) -> dict[str, JudgeVerdict]:
        """Return what every judge but the leading one says, by its name."""
        return {
            name: self.verdict(scored, score_PK, against, against.others[name])
            for name, score_PK in scored.others.items()
        }

    def against_first(self, scored: ScoredSamples, first: ScoredSamples) -> FirstVerdict:
        """Return KL and win rates by every judge against where the first of several rounds started."""
        leading = next(iter(self.judges))
        pairs = {leading: (scored.judge_PK, first.judge_PK)}
        pairs |= {name: (score_PK, first.others[name]) for name, score_PK in scored.others.items()}
        wins = {
            name: win_rate(*both, self.topics, resamples=self.resamples, seed=self.seed) for name, both in pairs.items()
        }
        return FirstVerdict(self.mean(scored.samples.first_kl_PK), wins)

    def bound(self, n: int, num_samples: int) -> Interval:
        """Return the KL of best-of-n from above: log n - (n - 1) / n."""
        return Interval(best_of_n_kl_bound(n), math.nan, math.nan, num_samples, len(set(self.topics)))


def best_of_n_points(bench: Bench, pool: ScoredSamples) -> tuple[CurvePoint, ...]:
    """Judge and proxy of best-of-n by the proxy for n = 1, 2, 4 ... up to the pool's samples a prompt."""
    ns = [2**i for i in range(pool.judge_PK.shape[1].bit_length())]
    judge = best_of_n_curve(pool.judge_PK, pool.proxy_PK, ns, bench.topics, seed=bench.seed)
    proxy = best_of_n_curve(pool.proxy_PK, pool.proxy_PK, ns, bench.topics, seed=bench.seed)
    return tuple(CurvePoint(n, best_of_n_kl_bound(n), j, p) for n, j, p in zip(ns, judge, proxy, strict=True))
