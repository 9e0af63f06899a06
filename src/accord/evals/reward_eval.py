"""The evaluation of a reward model on judgements that trained nothing: what `accord eval reward` does.

It works on any scorer (a folder, several folders as an ensemble, a function, a server) and any file of rankings or
pairs. What stands beside a folder that `accord reward` wrote says what it learnt from; nothing else is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accord.config import EvalConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.evals.attacks import attacked_prompts, order_matters, padding_rises, run_attacks
from accord.evals.drift import MOST_TEXTS, Drift, DriftSide, measure_drift
from accord.evals.facets import facets, first_preferred, human_ceiling, length_habit, member_agreement
from accord.evals.gate import gate_of
from accord.evals.judged_rows import Measurable, concordance, read_measured
from accord.evals.pair_baseline import fit_pair_baseline, length_scores
from accord.evals.pairs import HeldOutPairs, ranked_pairs, some_of
from accord.evals.results import plain
from accord.evals.reward_card import card_json, reward_card
from accord.evals.subsets import subset_table
from accord.files import read_json, write_json
from accord.formats.stage_rows import Chat, RankedRow, read_completions, read_rankings
from accord.lock import writes_alone
from accord.models.folder import RewardScale, load_scalar
from accord.models.placement import AUTO
from accord.progress import Log, quiet
from accord.records import RankedGroup
from accord.report.reward_page import CARD, write_reward_page
from accord.scoring.ensemble import Ensemble
from accord.scoring.reward_model import RewardModel
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import SCORER_KINDS, chat_of, reward_models
from accord.seeds import hash_position, stream_seed
from accord.stats import FloatArray, Interval, mending_temperature

# Of the judged texts a tenth of the prompts chooses the baseline's penalty: the evaluated file must not.
CHOOSES = 0.1
MOST_SCORED = (
    512  # texts of each side of the drift that are scored: a mean of so many is known to a tenth of a deviation
)


@dataclass(frozen=True)
class RewardSources:
    """What a reward model is measured with besides held-out judgements.

    Attributes:
        learnt: What it learnt from; found beside a folder that `accord reward` wrote.
        start: The model that its training started from; found there too.
        samples: Completions of the policy that is to be optimised.
        beside: Other scorers by name, measured on the same pairs.
    """

    learnt: Path | None = None
    start: Path | None = None
    samples: Path | None = None
    beside: Mapping[str, ScorerConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardEvalResult:
    """Where the page is, the verdict of the gate, and the few numbers that decide, each with its interval."""

    report: Path
    gate: str
    sentence: str
    findings: tuple[str, ...]
    accuracy: dict[str, Any]
    baselines: dict[str, Any]
    left_out: dict[str, str]


@writes_alone
def evaluate_reward(
    config: EvalConfig,
    *,
    model: ScorerConfig,
    data: Sequence[Path],
    output_dir: Path,
    sources: RewardSources | None = None,
    seed: int = 0,
    log: Log = quiet,
) -> RewardEvalResult:
    """Measure a reward model on held-out judgements, and say whether it is fit to be optimised against.

    Writes ``report.html`` and ``reward/card.json`` in ``output_dir``.

    Args:
        model: what gives the scores.
        data: rankings, pairs, labels or ratings that it did not learn from, one file or several of them.

    Raises:
        UsageError: ``output_dir`` holds the report of something else.
        DataError: a file is none of judgements, or holds no ordered pair.
    """
    if (output_dir / "resolved.json").exists() or (output_dir / "eval/results.json").exists():
        raise UsageError(
            "the folder holds another report", where=str(output_dir), hint="give a folder of its own with -o"
        )
    found = _with_found(sources or RewardSources(), model)
    measured = _Measured.of(model, data, found, seed)
    log(0.1, f"{len(measured.held_out.texts):,} texts to score")
    card, left_out = measured.card(log)
    gate = gate_of(card, overrule=config.gate_overrule)
    written = card | {"gate": plain(gate), "data": [str(path) for path in data], "left_out": left_out}
    write_json(output_dir / CARD, written)
    log(1.0, "measured")
    return RewardEvalResult(
        report=write_reward_page(output_dir),
        gate=gate.says,
        sentence=gate.sentence,
        findings=tuple(f"{one.says}: {one.reason}" for one in gate.findings),
        accuracy=card["model"]["all_pairs"],
        baselines={name: one["all_pairs"] for name, one in card["baselines"].items()},
        left_out=left_out,
    )


def _with_found(sources: RewardSources, model: ScorerConfig) -> RewardSources:
    """Return the sources with what stands beside the model's folder, where nobody has said another."""
    made = Path(model.model).resolve().parent / "finished.json" if model.model else None
    inputs = read_json(made).get("inputs", {}) if made and made.is_file() else {}
    there = {name: Path(path) for name, path in inputs.items() if isinstance(path, str) and Path(path).exists()}
    return RewardSources(
        sources.learnt or there.get("data"), sources.start or there.get("model"), sources.samples, sources.beside
    )


# ---- one evaluation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Measured:
    """A scorer, the judgements it is measured on, and what is known besides."""

    scorer: Scorer
    rows: Sequence[RankedRow]
    held_out: HeldOutPairs
    sources: RewardSources
    seed: int
    num_too_long: int = 0
    found: Measurable = field(default_factory=lambda: Measurable(()))

    @classmethod
    def of(cls, model: ScorerConfig, data: Sequence[Path], sources: RewardSources, seed: int) -> _Measured:
        if not data:
            raise UsageError("no judgements to measure it on", hint="name a file: --data FILE")
        scorer = SCORER_KINDS[model.kind](model, AUTO)
        found = read_measured(data, chat_of(scorer))
        rows = [row for row in found.rows if has_room(scorer, row.group.prompt)]
        if not rows:
            raise DataError(
                "no prompt leaves room for a completion", hint="measure a model with a longer context on it"
            )
        pairs = ranked_pairs([row.group for row in rows], seed=seed)
        return cls(scorer, rows, pairs, sources, seed, len(found.rows) - len(rows), found)

    @property
    def chat(self) -> Chat | None:
        return chat_of(self.scorer)

    def score(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        return np.asarray(self.scorer.score(pairs).double().cpu().numpy())

    @functools.cached_property
    def member_score(self) -> Callable[[Sequence[tuple[str, str]]], FloatArray] | None:
        """The members' scores of texts, (S, members); None for what has fewer than two."""
        scorer = self.scorer
        if not isinstance(scorer, RewardModel | Ensemble) or scorer.member_scores([("a", "b")]).shape[1] < 2:
            return None
        return lambda pairs: np.asarray(scorer.member_scores(pairs).double().cpu().numpy())

    def card(self, log: Log) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the card as JSON, and what it leaves out with the reason."""
        held_out, seed = self.held_out, self.seed
        scores = self.score(held_out.texts)
        beside, left_out = self._beside()
        if self.num_too_long:
            of = f"{self.num_too_long} of {self.num_too_long + len(self.rows)} judgements"
            left_out["long_prompts"] = f"{of}, whose prompts leave no room for a completion in the model's context"
        if self.found.alone:
            of = f"{self.found.alone:,} of {len(self.found.judged):,} judged completions"
            left_out["judged_alone"] = f"{of}, which nothing orders: alone under their prompt or judged alike"
        log(0.6, "baselines scored")
        base = card_json(reward_card(scores, held_out, beside, seed=seed), {})
        prompts = attacked_prompts(self.rows, seed=seed)
        drift = self._drift(left_out)
        log(0.9, "attacks and drift")
        members = self.member_score and member_agreement(self.member_score(held_out.texts), held_out, seed=seed)
        habit = length_habit(scores, held_out, seed=seed)
        more: dict[str, Any] = {
            "scale": self._scale(),
            "mended": mending_temperature(held_out.pairs.margins(scores), held_out.pairs.topics, seed=seed),
            "facets": facets(scores, held_out, self.rows, seed=seed),
            "ceiling": human_ceiling(scores, held_out, self.rows, seed=seed),
            "subsets": subset_table({"model": scores, **beside}, held_out, self.rows, seed=seed),
            "attacks": run_attacks(self.score, prompts, seed=seed),
            "attacked": len(prompts),
            "length_habit": habit,
            "padding_rises": padding_rises(self.score, prompts, seed=seed),
            "first_preferred": first_preferred(held_out, self.rows, seed=seed),
            "order_matters": order_matters(self.score, held_out.texts),
            "members": members,
            "drift": drift,
            "seen": self._seen(),
            "concordance": self._concordance(),
        }
        return base | plain(more), left_out

    def _concordance(self) -> Interval | None:
        """Return how well scores tell better from worse across prompts, where completions were judged one by one."""
        judged = [one for one in self.found.judged if has_room(self.scorer, one[0])]
        if len({value for *_, value in judged}) < 2:
            return None
        texts = [(prompt, text) for prompt, text, _, _ in judged]
        return concordance(dict(zip(texts, self.score(texts), strict=True)), judged, seed=self.seed)

    def _scale(self) -> dict[str, Any]:
        """Return how the model's scores are scaled: margins are in these units."""
        scale = getattr(self.scorer, "scale", None)
        return {"offset": scale.offset, "scale": scale.scale} if isinstance(scale, RewardScale) else {}

    # -- what stands beside it

    def _beside(self) -> tuple[dict[str, npt.ArrayLike], dict[str, str]]:
        """Return the scores of baselines and others on the held-out texts, and what could not be had."""
        texts, left_out = self.held_out.completions, dict[str, str]()
        found: dict[str, npt.ArrayLike] = {
            "longer_wins": length_scores(texts),
            "random": random_scores(texts, self.seed),
        }
        for name, make in {"tfidf_bradley_terry": self._tfidf, "untrained_trunk": self._untrained}.items():
            try:
                found[name] = make()
            except DataError as gap:
                left_out[name] = str(gap).splitlines()[0]
        for name, config in self.sources.beside.items():
            scored = SCORER_KINDS[config.kind](config, AUTO).score(self.held_out.texts)
            found[name] = np.asarray(scored.double().cpu().numpy())
        return found, left_out

    def _tfidf(self) -> FloatArray:
        """Return the scores of Bradley-Terry on TF-IDF, taught by what the model was taught by."""
        if self.sources.learnt is None:
            raise DataError("what it learnt from is not known: name it with --learnt FILE")
        groups = read_rankings(self.sources.learnt, self.chat)
        chooses = [group for group in groups if hash_position(group.topic or group.prompt) < CHOOSES]
        teaches = [group for group in groups if hash_position(group.topic or group.prompt) >= CHOOSES]
        if not _has_pair(chooses) or not _has_pair(teaches):
            chooses = teaches = groups  # too few prompts to split: the baseline may flatter itself, never the model
        fitted = fit_pair_baseline(teaches, ranked_pairs(chooses), seed=self.seed)
        return fitted.score(self.held_out.completions)

    def _untrained(self) -> FloatArray:
        """Return the scores of the model before its first step: the trunk under a random head."""
        if self.sources.start is None:
            raise DataError("what it started from is not known: name it with --start DIR")
        seed = stream_seed(self.seed, "untrained")
        trunk, tokenizer, _ = load_scalar(self.sources.start, AUTO, head_seed=seed)
        scored = RewardModel(trunk, tokenizer, RewardScale()).score(self.held_out.texts)
        return np.asarray(scored.double().cpu().numpy())

    # -- what it was taught by

    @functools.cached_property
    def _learnt(self) -> list[tuple[str, str]]:
        return self._completions(self.sources.learnt) if self.sources.learnt else []

    def _completions(self, path: Path) -> list[tuple[str, str]]:
        """Return the completions of a file whose prompts leave room for one."""
        return [pair for pair in read_completions(path, self.chat) if has_room(self.scorer, pair[0])]

    def _seen(self) -> dict[str, int]:
        """Return how many of the held-out prompts stand in what the model learnt from; empty where that is unknown."""
        prompts, learnt = {prompt for prompt, _ in self.held_out.texts}, {prompt for prompt, _ in self._learnt}
        return {"prompts": len(prompts & learnt), "of": len(prompts)} if learnt else {}

    def _drift(self, left_out: dict[str, str]) -> Drift | None:
        if self.sources.samples is None:
            left_out["drift"] = "no samples of the policy were given: name them with --samples FILE"
            return None
        samples = self._completions(self.sources.samples)
        try:
            return measure_drift(
                self._side(self._learnt or list(self.held_out.texts)), self._side(samples), seed=self.seed
            )
        except DataError as gap:
            left_out["drift"] = str(gap).splitlines()[0]
            return None

    def _side(self, texts: Sequence[tuple[str, str]]) -> DriftSide:
        chosen = some_of(texts, MOST_TEXTS, stream_seed(self.seed, "drift texts"))
        scored = some_of(chosen, MOST_SCORED, stream_seed(self.seed, "drift scores"))
        members = self.member_score and self.member_score(scored)
        return DriftSide(
            [text for _, text in chosen],
            [prompt for prompt, _ in chosen],
            self.score(scored),
            [prompt for prompt, _ in scored],
            members,
        )


def has_room(scorer: Scorer, prompt: str) -> bool:
    """Return whether a prompt leaves room for a completion in every reward model among the scorer's parts."""
    return all(len(one.tokenizer.encode(prompt)) <= one.longest_prompt for one in reward_models(scorer))


def random_scores(texts: Sequence[str], seed: int) -> FloatArray:
    """Return a scorer that knows nothing: a number drawn for each text by its content and the seed."""
    return np.array([hash_position(f"{seed} {text}") for text in texts])


def _has_pair(groups: Sequence[RankedGroup]) -> bool:
    return any(len(set(group.ranks)) > 1 for group in groups)
