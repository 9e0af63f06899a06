"""The dpo stage: judgements in, a policy that agrees with them near its reference out, without a reward model.

Where the judgements come from and which loss they enter are two choices: a file of them, or completions of the policy
itself that a scorer ranks (online); and any row of the table.

Shapes: P prompts of a step, K completions each, S completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from accord.algo.preference_loss import judged_ranks
from accord.algo.table import PREFERENCE_LOSSES, PreferenceAlgorithm
from accord.config import DpoConfig
from accord.errors import DataError, UsageError
from accord.extend import row as row_of
from accord.files import write_bytes
from accord.formats.stage_rows import read_judgements, read_prompts
from accord.lock import writes_alone
from accord.models.backbone import recompute_activations
from accord.models.decoder import CausalLM
from accord.models.folder import load_policy
from accord.models.lora import adapter_off, add_lora
from accord.models.placement import Placement
from accord.progress import Log, quiet
from accord.ranks import ONE_PROCESS, Ranks
from accord.records import JudgedGroup, RankedGroup
from accord.rollout.engine import Sampling
from accord.rollout.generator import EngineGenerator, Generated
from accord.scoring.room import rooms_for, short_enough
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import load_scorer, scorer_inputs
from accord.seeds import stream_seed
from accord.text.batches import Example
from accord.text.tokenizer import Tokenizer
from accord.train.alarms import PREFERENCE_ALARMS, raised_alarms
from accord.train.finished import identity_of
from accord.train.held_out import HeldOut, Measured, every_nth, hold_out, none_held_out, shared, was_held_out
from accord.train.judged import margin_of, require_margins, unread_margins
from accord.train.learner import Learner
from accord.train.preferences import (
    ComparedGroup,
    Objective,
    Reference,
    Tally,
    are_mostly_good,
    bucketed_logp,
    compared_labels,
    compared_ranking,
    guessed_shares,
    held_out,
    held_out_shares,
    mismatched,
    preference_losses,
    require_both_classes,
)
from accord.train.prompts import Prompts
from accord.train.rollouts import shared_samples, shared_scores
from accord.train.sft import demonstration_example
from accord.train.training_run import Steps, TrainingRun

MEASURED_GROUPS = 400  # measured with each snapshot: accuracy to 2.5 points
FEW_GROUPS = 50  # accuracy to 7 points: of fewer no gap to training is reported


@dataclass(frozen=True)
class DpoResult:
    """Where the policies are, the last and the snapshots a judge may choose among (step -> folder), and how it did.

    ``valid_accuracy`` is the share of held-out comparisons with the higher implicit reward on the better side, which
    ``held_out`` states with its interval and a baseline; ``valid_margin`` is the mean lead of it. Both are None where
    there are too few. ``num_completions`` counts those that were judged: by people, or online by the scorer.
    """

    model: Path
    snapshots: dict[int, Path]
    valid_accuracy: float | None
    valid_margin: float | None
    num_held_out: int
    num_groups: int
    num_completions: int
    num_steps: int
    held_out: HeldOut


@dataclass(frozen=True)
class DpoSetup:
    """What every step is given: settings, row of the table, the policy that trains, its tokenizer, the processes."""

    config: DpoConfig
    row: PreferenceAlgorithm
    policy: CausalLM
    tokenizer: Tokenizer
    seed: int
    ranks: Ranks = ONE_PROCESS

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and a completion that a file holds."""
        return min(self.config.max_tokens, self.policy.config.max_positions)


@dataclass(frozen=True)
class JudgementSource:
    """Where judgements come from.

    Attributes:
        num_groups: Prompts with judgements, each epoch.
        num_completions: Judged completions, each epoch.
        groups: The judgements of a step, made with the learner's policy or not, and what else there is to log of it.
        reference: What the policy said of their completions before its first step.
        valid: Judgements that never train, but for the first of very few, which serves for both.
        valid_names: What each of them shares with others.
        num_held_out: How many of them never train.
        mostly_good: Whether of the thumbs that train more are up.
        measured: Judgements that are measured during training, by the name they are logged under.
    """

    num_groups: int
    num_completions: int
    groups: Callable[[int, Learner], tuple[list[ComparedGroup], dict[str, float]]]
    reference: Reference
    valid: Sequence[ComparedGroup]
    valid_names: Sequence[set[tuple[str, str]]]
    num_held_out: int
    mostly_good: bool
    measured: Mapping[str, Sequence[ComparedGroup]]


@writes_alone
def dpo(
    config: DpoConfig,
    *,
    model: Path,
    data: Path,
    output_dir: Path,
    valid_data: Path | None = None,
    reward_model: Path | None = None,
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
) -> DpoResult:
    """Improve a policy on rankings, pairs or (with a loss like kto) thumbs; online, on prompts ``{"prompt"}``.

    The reference is ``model`` itself: its log-probabilities are computed once, before the first step, and kept in
    ``output_dir/reference.safetensors``. Online they are those of completions that are drawn on the way; what ranks
    these is a reward model, or ``config.rewards``, or the sum of both. Without ``valid_data`` every twentieth judgement
    of a file is held out; online none is.

    Writes ``output_dir/model`` (the last policy), ``snapshots/step_N`` every ``eval_every`` steps for a judge to choose
    from, ``metrics.jsonl`` and ``events.jsonl`` (alarms). With an adapter the models are merged, and
    ``output_dir/adapter`` holds the last adapter alone.
    """
    run = TrainingRun(output_dir, seed, resume, log)
    setup = _open_setup(config, _checked_row(config, reward_model), model, seed, run.ranks)
    if config.online:
        scorer = load_scorer(config.rewards, reward_model, Placement.of(config))
        source = _online(setup, scorer, model, data, valid_data, log)
    else:
        source = _offline(setup, model, data, valid_data, output_dir, log)
    objective = Objective(config, setup.row, setup.policy, setup.tokenizer.pad_id, source.reference)
    # Rounded up: the last step of an epoch may be smaller, and no judgement is passed over.
    total = -(-source.num_groups // config.groups_per_step) * config.epochs
    learner = Learner({"policy": setup.policy}, {"policy": config.optim}, total)

    def step_fn(step: int) -> dict[str, float]:
        groups, reported = source.groups(step, learner)
        tally = Tally()
        stats = learner.update(preference_losses(objective, groups, tally, learner.ranks)) | reported
        stats |= tally.means()
        if (step + 1) % config.eval_every == 0 or step + 1 == total:
            run.save_snapshot(step, setup.policy, setup.tokenizer)
            stats |= _measure(objective, source.measured)
        for event in raised_alarms(stats, PREFERENCE_ALARMS):
            run.event(step, event, done=(step + 1) / total)
        return stats

    inputs = {"model": model, "data": data, **scorer_inputs(config.rewards, reward_model)}
    identity = run.identity(inputs, config=config)
    taken = run.train(
        learner, step_fn, Steps(total, config.checkpoint_every, on_alarm=config.on_alarm), identity=identity
    )
    if taken % config.eval_every and taken < total:  # stopped between two snapshots
        run.save_snapshot(taken - 1, setup.policy, setup.tokenizer)
    saved = run.save_result(setup.policy, setup.tokenizer, adapter_on=model if config.lora.rank else None)
    told = _held_out(objective, source) if source.num_held_out else none_held_out(ORDERED)
    return DpoResult(
        model=saved,
        snapshots=run.snapshots(),
        valid_accuracy=told.value,
        valid_margin=None if told.value is None else held_out(objective, source.valid).get("margin"),
        num_held_out=source.num_held_out,
        num_groups=source.num_groups,
        num_completions=source.num_completions * config.epochs * taken // total,
        num_steps=taken,
        held_out=told,
    )


ORDERED = "judgements whose better side has the higher implicit reward"


def _held_out(objective: Objective, source: JudgementSource) -> HeldOut:
    """Return how many of the judgements that trained nothing are ordered as they say."""
    shares, weights = held_out_shares(objective, source.valid)
    guesses, guess = guessed_shares(source.valid, mostly_good=source.mostly_good)
    return Measured(ORDERED, shares, weights, guesses, guess, source.valid_names).told()


def _checked_row(config: DpoConfig, reward_model: Path | None) -> PreferenceAlgorithm:
    """Return the row that the configuration names.

    Raises UsageError where it is none, or settings contradict each other.
    """
    row = row_of(PREFERENCE_LOSSES, config.loss)
    if not isinstance(row, PreferenceAlgorithm):
        raise UsageError(
            f"{config.loss!r} is no row of preference losses",
            hint="make it an accord.algo.table.PreferenceAlgorithm(function)",
        )
    scored = reward_model is not None or bool(config.rewards)
    if scored and not config.online:
        raise UsageError(
            "a reward model or dpo.rewards have no effect on judgements of a file",
            hint="leave them out, or add dpo.online=true and give prompts",
        )
    if config.online and not scored:
        raise UsageError(
            "dpo.online draws completions, and nothing says what they are worth",
            hint="give --reward-model DIR, or dpo.rewards",
        )
    # With one prompt there is no other's completion, and a zero point of 0 would make it another loss.
    if not row.paired and config.groups_per_step < 2:
        raise UsageError(
            f"dpo.loss {config.loss} needs steps of several prompts",
            why="its zero point is measured on completions under each other's prompts",
            hint="raise dpo.groups_per_step",
        )
    return row


def _open_setup(config: DpoConfig, row: PreferenceAlgorithm, model: Path, seed: int, ranks: Ranks) -> DpoSetup:
    """Return the policy before its first step. It stays in eval mode: dropout would part it from its reference."""
    policy, tokenizer = load_policy(model, Placement.of(config))
    if config.activation_checkpointing:
        recompute_activations(policy.model)
    add_lora(policy, config.lora, stream_seed(seed, "lora"))
    return DpoSetup(config, row, policy.eval(), tokenizer, seed, ranks)


def _measure(objective: Objective, measured: Mapping[str, Sequence[ComparedGroup]]) -> dict[str, float]:
    """Return loss, accuracy and margin of the policy as it is now on each set of judgements."""
    found = {name: held_out(objective, groups) for name, groups in measured.items()}
    return {
        f"{name}_{key}": stats[key]
        for name, stats in found.items()
        for key in ("loss", "accuracy", "margin")
        if key in stats
    }


# -- judgements of a file ----------------------------------------------------------------------------------------------


def _offline(
    setup: DpoSetup, model: Path, data: Path, valid_data: Path | None, output_dir: Path, log: Log
) -> JudgementSource:
    groups, names = _read_groups(setup, data, log)
    rows = list(zip(groups, names, strict=True))
    kept, apart = hold_out(rows, names)
    if valid_data is not None:
        kept, apart = rows, list(zip(*_read_groups(setup, valid_data, log), strict=True))
    train, valid = [group for group, _ in kept], [group for group, _ in apart]
    if not setup.row.paired:
        require_both_classes(train, str(data))
    # Nothing that was learnt is called valid.
    measured = {"valid": every_nth(valid, MEASURED_GROUPS)} if was_held_out(train, valid) else {}
    steps = _steps(setup, train)
    if len(valid) >= FEW_GROUPS:
        measured["train"] = every_nth(train, MEASURED_GROUPS)
    reference = _stored_reference(setup, model, _examples(setup, [*steps, valid, *measured.values()]), output_dir, log)
    return JudgementSource(
        num_groups=len(train),
        num_completions=sum(len(g.examples) for g in train),
        groups=lambda step, _: (steps[step], {}),
        reference=reference,
        valid=valid,
        valid_names=[shares for _, shares in apart],
        num_held_out=len(valid) if was_held_out(train, valid) else 0,
        mostly_good=are_mostly_good(train),
        measured=measured,
    )


def _steps(setup: DpoSetup, groups: Sequence[ComparedGroup]) -> list[list[ComparedGroup]]:
    """Return the judgements of every step: a fresh permutation each epoch, its last step maybe a smaller one."""
    found, size = [], setup.config.groups_per_step
    for epoch in range(setup.config.epochs):
        generator = torch.Generator().manual_seed(stream_seed(setup.seed, "order", epoch))
        order = torch.randperm(len(groups), generator=generator).tolist()
        found += [[groups[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
    return found


def _read_groups(setup: DpoSetup, path: Path, log: Log) -> tuple[list[ComparedGroup], list[set[tuple[str, str]]]]:
    """Return the judgements of a file as comparisons, and what each shares with others: its prompt, topic and group.

    The log says how many say nothing or are too long.
    """
    judged = read_judgements(path, setup.tokenizer.chat)
    if setup.row.paired and any(isinstance(j, JudgedGroup) for j in judged):
        raise DataError(
            f"thumbs (rows with a label), but dpo.loss {setup.config.loss} compares completions of one prompt",
            where=str(path),
            hint="use dpo.loss=kto, or give rankings or pairs",
        )
    ranked = [j for j in judged if isinstance(j, RankedGroup)]
    if ranked:
        require_margins(ranked, setup.config.margin, "dpo.margin", path)
    if unread := unread_margins(judged, setup.config.margin, "dpo.margin"):
        log(0.0, unread)
    groups = [(group, shared(j)) for j in judged if (group := _encoded(setup, j)) is not None]
    kept = [(group, names) for group, names in groups if group.shares]
    too_long, ties = len(judged) - len(groups), len(groups) - len(kept)
    reasons = f"{too_long} longer than {setup.max_tokens} tokens, {ties} one single tie"
    if not kept:
        raise DataError(
            f"no judgement of {len(judged)} can be learnt from: {reasons}",
            where=str(path),
            hint="give rankings with some order, or raise dpo.max_tokens",
        )
    if too_long or ties:
        log(0.0, f"{too_long + ties} of {len(judged)} judgements left out: {reasons}")
    return [group for group, _ in kept], [names for _, names in kept]


def _encoded(setup: DpoSetup, judged: RankedGroup | JudgedGroup) -> ComparedGroup | None:
    """Return a judgement as ids, without completions that are too long; None where too few are left."""
    examples = [demonstration_example(setup.tokenizer, judged.prompt, text) for text in judged.completions]
    short = [i for i, e in enumerate(examples) if len(e) <= setup.max_tokens]
    kept = [examples[i] for i in short]
    if isinstance(judged, JudgedGroup):
        return compared_labels(setup.config, kept, [judged.values[i] for i in short], judged.weight) if kept else None
    if len(kept) < 2:
        return None
    group = compared_ranking(setup.config, setup.row, kept, [judged.ranks[i] for i in short], judged.weight)
    sure = 1.0 if judged.probability is None else judged.probability
    # A margin is one of rewards, and a reward is beta times a strength.
    return replace(group, probability=sure, lead=margin_of(judged, setup.config.margin) / setup.config.dpo_beta)


def _examples(setup: DpoSetup, sets: Sequence[Sequence[ComparedGroup]]) -> list[Example]:
    """Return every completion that the reference will be asked for, once, in an order that no seed decides.

    Those under prompts of others are among them.
    """
    found = [e for groups in sets for g in groups for e in g.examples]
    if not setup.row.paired:
        found += [e for groups in sets for e in mismatched(groups, setup.policy.config.max_positions)]
    # In one order, so that another seed finds the same file of log-probabilities.
    return sorted(set(found), key=lambda e: (e.prompt, e.completion))


def _stored_reference(
    setup: DpoSetup, model: Path, examples: Sequence[Example], output_dir: Path, log: Log
) -> Reference:
    """Return the policy's log-probabilities before its first step.

    Computed now, or read if they stand there already.
    """
    if not setup.row.needs_reference:
        return None
    dtype, path = str(setup.policy.model.compute_dtype), output_dir / "reference.safetensors"
    identity = identity_of({"dtype": dtype, "ids": [(e.prompt, e.completion) for e in examples]}, {"model": model})
    logp_S = setup.ranks.said(_read_stored(path, identity))
    if logp_S is None:
        log(0.0, f"log-probabilities of {len(examples)} completions under the reference")
        # The policy itself before its first step, run once: a frozen copy would cost its memory again, and a pass in
        # every step.
        pad_id, size = setup.tokenizer.pad_id, setup.config.micro_batch_tokens
        logps = setup.ranks.by_row(examples, lambda mine: bucketed_logp(setup.policy, mine, pad_id, size).tolist())
        logp_S = torch.tensor(logps)
        if setup.ranks.first:
            write_bytes(path, save({"logp_S": logp_S}, {"identity": identity}))
    known = dict(zip(examples, logp_S.tolist(), strict=True))
    return lambda wanted: torch.tensor([known[e] for e in wanted])


def _read_stored(path: Path, identity: str) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            same = (file.metadata() or {}).get("identity") == identity
            return file.get_tensor("logp_S") if same else None
    except (OSError, SafetensorError):  # not there, or not whole
        return None


# -- judgements of a scorer on the policy's own completions ------------------------------------------------------------


class LiveReference:
    """The policy as it started, a frozen copy or the policy itself with its adapter off; asked once a completion."""

    def __init__(self, setup: DpoSetup, model: Path) -> None:
        self._setup, self._copy, self._known = setup, setup.policy, dict[Example, float]()
        if not setup.config.lora.rank:
            self._copy = load_policy(model, Placement.of(setup.config))[0].eval().requires_grad_(False)

    def __call__(self, examples: Sequence[Example]) -> Tensor:
        new = [e for e in examples if e not in self._known]
        if new:
            self._known |= zip(new, self._logp(new).tolist(), strict=True)
        return torch.tensor([self._known[e] for e in examples])

    def at(self, temperature: float, examples: Sequence[Example]) -> Tensor:
        """Return its log-probabilities as completions are drawn at this temperature, ``(S,)``."""
        # The loss is about the policy at 1: another temperature is one more pass, for the sake of a metric that is 0
        # where nothing has moved.
        return self(examples) if temperature == 1.0 else self._logp(examples, temperature)

    def _logp(self, examples: Sequence[Example], temperature: float = 1.0) -> Tensor:
        size, pad_id = self._setup.config.micro_batch_tokens, self._setup.tokenizer.pad_id
        with adapter_off(self._copy):
            return bucketed_logp(self._copy, examples, pad_id, size, temperature)

    def forget(self) -> None:
        """Let go of the completions of a step that is over."""
        self._known.clear()


def _online(
    setup: DpoSetup, scorer: Scorer, model: Path, data: Path, valid_data: Path | None, log: Log
) -> JudgementSource:
    config, generator = setup.config, EngineGenerator(setup.policy, setup.tokenizer)
    rooms = rooms_for(setup.policy, setup.tokenizer, config.max_new_tokens, scorer)
    rows, too_long = short_enough(read_prompts(data, setup.tokenizer.chat), rooms)
    for whose, count in too_long.items():
        log(0.0, f"{count} prompts left out: longer than the {whose} takes")
    prompts = Prompts([row.text for row in rows], [row.weight for row in rows])
    sampling = Sampling(config.max_new_tokens, config.samples_per_prompt, config.temperature)
    reference = LiveReference(setup, model) if setup.row.needs_reference else None

    def groups(step: int, learner: Learner) -> tuple[list[ComparedGroup], dict[str, float]]:
        chosen = prompts.pick(config.groups_per_step, step, setup.seed)
        drawn = shared_samples(generator, chosen, sampling, stream_seed(setup.seed, "rollout", step), learner)
        raw_S, _ = shared_scores(scorer, [one.pair for one in drawn], learner.ranks)
        examples = [Example(one.prompt_ids, one.completion_ids) for one in drawn]
        found, reported = _judged_samples(setup, raw_S, drawn, examples, stream_seed(setup.seed, "labels", step))
        # Of samples from the policy: the mean of log pi - log ref is its KL to the reference, both as they are sampled.
        if reference:
            # A step's completions never come again: kept, they would fill the memory.
            reference.forget()
            drawn_logp = sum(sum(one.behaviour_logp) for one in drawn) / len(drawn)
            reported["kl"] = drawn_logp - float(reference.at(config.temperature, examples).mean())
        return found, reported

    valid, names = ([], []) if valid_data is None else _read_groups(setup, valid_data, log)
    # Steps are always full online: a pass over the prompts goes on into the next.
    rounded = -(-len(rows) // config.groups_per_step) * config.groups_per_step
    return JudgementSource(
        num_groups=rounded,
        num_completions=rounded * config.samples_per_prompt,
        groups=groups,
        reference=reference,
        valid=valid,
        valid_names=names,
        num_held_out=len(valid),
        mostly_good=True,
        measured={"valid": every_nth(valid, MEASURED_GROUPS)} if valid else {},
    )


def _judged_samples(
    setup: DpoSetup, raw_S: Tensor, drawn: Sequence[Generated], examples: Sequence[Example], seed: int
) -> tuple[list[ComparedGroup], dict[str, float]]:
    """Return samples ranked by their scores, prompt by prompt, and what there is to log.

    Prompts that tie are left out.
    """
    config = setup.config
    cut_S = torch.tensor([not one.finished for one in drawn])
    # A cut completion loses against one that ends, or the policy would learn to run on.
    score_PK = (raw_S - config.missing_eos_penalty * cut_S).view(-1, config.samples_per_prompt)
    rank_PK = judged_ranks(score_PK, config.label_noise, torch.Generator().manual_seed(seed))
    groups = [
        compared_ranking(config, setup.row, examples[p * len(ranks) : (p + 1) * len(ranks)], ranks, 1.0)
        for p, ranks in enumerate(rank_PK.tolist())
    ]
    kept = [g for g in groups if g.shares]
    return kept, _sample_stats(raw_S, cut_S, drawn) | {"ties": 1 - len(kept) / len(groups)}


def _sample_stats(raw_S: Tensor, cut_S: Tensor, drawn: Sequence[Generated]) -> dict[str, float]:
    return {
        "score": float(raw_S.mean()),
        "score_std": float(raw_S.std(unbiased=False)),
        "length": sum(len(one.completion_ids) for one in drawn) / len(drawn),
        "eos_rate": 1 - float(cut_S.float().mean()),
        "distinct": len({" ".join(one.text.split()) for one in drawn}) / len(drawn),
    }
