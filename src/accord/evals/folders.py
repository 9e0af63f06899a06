"""The evaluation of policies that lie in folders, whatever made them: what `accord eval` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import EvalConfig, SampleConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.evals.behaviour import PolicyBehaviour, behaviour_of
from accord.evals.contestants import Contestant, EvalPrompts, best_of_n_of, policy_name
from accord.evals.evaluate import EvalRun, evaluate_policies
from accord.evals.judged_pairs import JudgingRun, chat_verdict
from accord.evals.judges import comparing_judges, open_judges, recipe_judges
from accord.evals.results import EvalResults, PolicyRow, plain, with_judge
from accord.evals.samples import LoadedPolicy
from accord.evals.standings import write_standings
from accord.files import write_json
from accord.lock import writes_alone
from accord.progress import Log, quiet
from accord.report.run_page import write_report
from accord.rollout.engine import Sampling
from accord.scoring.weighted import load_scorer

#: What the tables say of the reference where nothing says what the policies were optimised for.
NO_PROXY = "the reference; no reward model is named, and the judge's score stands as the proxy too"


@dataclass(frozen=True)
class Beside:
    """What is looked at beside win rates: ``probes`` of each policy, and plain ``texts`` that it may have forgotten.

    ``cache`` is a folder that keeps samples by what decides them: a second judge costs no second generation.
    """

    probes: bool = True
    texts: Path | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class EvaluateResult:
    """Where the page is, and the few numbers of each policy that decide, by its name.

    ``win_rate`` has an interval for each judge; ``kl`` is in nats per completion, from the reference. ``judged`` is
    what each judge says of the first policy, the most trusted first, and which of them decides.
    """

    report: Path
    reference: str
    policies: dict[str, dict[str, Any]]
    judged: list[dict[str, Any]]


@writes_alone
def evaluate(
    config: EvalConfig,
    *,
    policies: Mapping[str, Path],
    reference: Path,
    data: Path,
    output_dir: Path,
    reward_model: Path | None = None,
    rewards: Sequence[ScorerConfig] = (),
    sampling: SampleConfig | None = None,
    beside: Beside | None = None,
    seed: int = 0,
    log: Log = quiet,
) -> EvaluateResult:
    """Let the judges of ``config`` compare policies, by name, with a reference on the prompts of a file.

    Writes ``report.html``, ``eval/results.json`` and ``eval/samples.jsonl`` (every completion with its scores) in
    ``output_dir``. The first policy is the one that the page is about.

    Args:
        reference: what they are compared with, and KL and likelihood are measured from: it shares their tokenizer.
        data: rows of prompts that nothing was trained on; intervals resample their topics.
        reward_model, rewards: what the policies were optimised for, beside the judges, and best-of-n of the reference
            by it. Without either the first judge stands there too.
        sampling: the longest completion and the temperature.
        beside: what is looked at besides, and where samples are kept.

    Raises:
        UsageError: there is no policy or no judge, two policies share a name, or sampling cuts the distribution.
    """
    if not policies:
        raise UsageError("there is no policy to evaluate", hint="name a folder: --policy ppo=runs/ppo/model")
    judges, scored, besides = open_judges(recipe_judges(config)), bool(reward_model or rewards), beside or Beside()
    chats = comparing_judges(config)
    results = evaluate_policies(
        config if scored else config.model_copy(update={"curve_samples": 1}),
        [*_candidates(policies), *([best_of_n_of(reference, config.best_of)] if scored else [])],
        reference=Contestant(policy_name(reference), {0: reference}, note="" if scored else NO_PROXY),
        proxy=load_scorer(rewards, reward_model) if scored else next(iter(judges.values())).scorer,
        judges=judges,
        prompts=EvalPrompts(data, data),  # of each policy there is one snapshot: nothing is chosen on the first
        run=EvalRun(output_dir / "eval", own_sampling(sampling), seed, log=log, cache=besides.cache),
    )
    folder, found = output_dir / "eval", results.to_json()
    inputs = {"samples": folder / "samples.jsonl", "results": folder / "results.json", "test_prompts": data}
    for name, chat in chats.items():
        judged = output_dir / f"judged_{name}"
        for policy in policies:
            other = "" if policy == results.candidate else policy
            run = JudgingRun(judged, seed, config.bootstrap, other)
            said = chat_verdict(name, chat, inputs, run, log)
            found = with_judge(found, said, other)
    if chats:
        write_json(inputs["results"], found)
    behaviour, left_out = _behaviour({results.reference: reference, **policies}, besides, seed)
    write_standings(output_dir, found, behaviour, left_out)
    return _told(results, found["judged"][results.candidate], write_report(output_dir))


def _behaviour(
    folders: Mapping[str, Path], besides: Beside, seed: int
) -> tuple[dict[str, PolicyBehaviour], dict[str, str]]:
    """Return the habits of each policy, and why some have none."""
    found, left_out = {}, {}
    for name, folder in folders.items() if besides.probes else ():
        try:
            found[name] = behaviour_of(LoadedPolicy.load(folder), besides.texts, seed=seed)
        except DataError as gap:
            left_out[name] = str(gap).splitlines()[0]
    return found, left_out


def _candidates(policies: Mapping[str, Path]) -> list[Contestant]:
    return [Contestant(name, {0: folder}) for name, folder in policies.items()]


def own_sampling(given: SampleConfig | None) -> Sampling:
    """Return how a policy is sampled to be measured: on its own distribution. Raises UsageError for a cut one."""
    config = given or SampleConfig()
    if config.top_k or config.top_p < 1:
        raise UsageError(
            "policies are compared on their own distribution",
            why="with top_k or top_p KL and likelihood would be those of another",
            hint="leave sample.top_k and sample.top_p as they are",
        )
    return Sampling(config.max_new_tokens, temperature=config.temperature)


def _told(results: EvalResults, judged: list[dict[str, Any]], report: Path) -> EvaluateResult:
    leading = next(iter(results.judges))
    rows = [row for row in results.policies if row.name != results.reference]
    return EvaluateResult(report, results.reference, {row.name: _numbers(row, leading) for row in rows}, judged)


def _numbers(row: PolicyRow, leading: str) -> dict[str, Any]:
    wins = {leading: row.win_rate, **{name: said.win_rate for name, said in row.other_judges.items()}}
    numbers = {"win_rate": wins, "kl": row.kl.value, "length_ratio": row.length_ratio, "nll_excess": row.nll_excess}
    return {key: plain(value) for key, value in numbers.items()}
