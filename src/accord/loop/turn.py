"""`accord round`: one turn of the loop with what users said, from quarantine to what is served, or to a refusal.

Admission, a reward model of old and new judgements, a policy with KL to the fixed reference, the gates that the recipe
has written, shadow, canary, promotion. Each step is a stage or a record on disk: killed anywhere, the same call goes
on.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from accord.config import AskConfig, GatesConfig, Recipe
from accord.errors import DataError, UsageError
from accord.evals.attacks import attacked_prompts, run_attacks
from accord.evals.contestants import Contestant
from accord.evals.pairs import accuracy_difference, pair_accuracy, ranked_pairs
from accord.evals.results import plain
from accord.files import read_json, read_rows, write_json
from accord.formats import Item, to_jsonl
from accord.formats.item import prompt_key
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import RankedRow, read_ranked_rows
from accord.lock import writes_alone
from accord.loop.cache import Inputs, Runner, Stage, given_inputs
from accord.loop.files_task import LIVE, ONLY_TEACH
from accord.loop.gates import GateEvidence, RoundGate, gates_of, refusals_of, shadow_gate
from accord.loop.round import (
    Champion,
    Promotion,
    candidate_name,
    candidate_of,
    collect,
    evaluate_candidate,
    fit_reward,
    measure,
    measured_inputs,
    measured_settings,
    report,
    unfit_reward,
)
from accord.loop.run import Where, check_recipe, open_home, prepare_run, time_shares
from accord.loop.stages import Home, Wait, publish, start_of
from accord.models.placement import AUTO, Placement
from accord.people.admission import asked_in, key_of_prompt, read_admission
from accord.people.scrub import scrubbed_item
from accord.people.signals import judge_signals, note_signals, read_served
from accord.progress import Log, Notice, quiet
from accord.report.run_folder import ROUND_GATES_FILE
from accord.scoring.reward_model import RewardModel
from accord.scoring.weighted import load_scorer
from accord.serve.aliases import CANARY, PROD, REFERENCE, AliasFile, ServedModel, aliases_of_rounds
from accord.serve.canary import CanaryWatch, look_in_words
from accord.serve.served import weights_version
from accord.store import Store

TurnState = Literal["working", "refused", "canary", "promoted", "nothing new"]
RECORD = "turn.json"
MIRRORED_LEAST = 20  # prompts; of fewer no interval is worth looking at


@dataclass(frozen=True)
class TurnRecord:
    """What is known of one round: what it was to show, written before its data was seen, and what it has shown.

    ``facts`` is the hash of what it learnt from; ``reward`` is prod's reward model, "" where none is known.
    """

    number: int
    state: TurnState
    began_at: float
    gates: Mapping[str, Any]
    canary: Mapping[str, Any]
    prod: Mapping[str, Any]
    reward: str = ""
    facts: str = ""
    admission: Mapping[str, Any] = field(default_factory=dict)
    found: tuple[Mapping[str, Any], ...] = ()
    reasons: tuple[str, ...] = ()
    candidate: Mapping[str, Any] | None = None
    decided_at: float = 0.0

    @property
    def sentences(self) -> list[str]:
        """What each gate found, in words."""
        return [RoundGate(**one).sentence for one in self.found]


@dataclass(frozen=True)
class Rounds:
    """The folder of a project's rounds: 0001, 0002 and so on, and the aliases of what is served."""

    folder: Path

    @property
    def aliases(self) -> AliasFile:
        return aliases_of_rounds(self.folder)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    def records(self) -> list[TurnRecord]:
        """Return the records of all rounds, the oldest first. Raises DataError for one that is damaged."""
        files = sorted(self.folder.glob(f"[0-9]*/{RECORD}"))
        return [_record_of(read_json(file)) for file in files]

    def write(self, record: TurnRecord) -> TurnRecord:
        write_json(self.path(record.number) / RECORD, asdict(record))
        return record


def _record_of(row: Mapping[str, Any]) -> TurnRecord:
    return TurnRecord(**{**row, "found": tuple(row["found"]), "reasons": tuple(row["reasons"])})


@writes_alone
def take_turn(
    recipe: Recipe,
    *,
    output_dir: Path,
    store: str,
    start: Path,
    from_dir: Path | None = None,
    force: bool = False,
    wait: Wait = False,
    log: Log = quiet,
) -> TurnRecord:
    """Take a turn, go on with one that was interrupted, or look at the canary of the last one.

    Args:
        output_dir: The folder of the project's rounds.
        store: Path or URL of the store, with users' feedback.
        start: What is served before any round has promoted a model.
        force: Also where the store holds nothing new.

    Raises:
        UsageError: The recipe does not learn from the store, or its gates are not those that a round has begun with.
        WaitingForPeople: people are to judge (eval.people), and have not yet.
    """
    rounds = Rounds(output_dir)
    check_turn(recipe)
    records = rounds.records()
    last = records[-1] if records else None
    if last is not None and last.state == "canary":
        return look_at_canary(rounds, last, store, recipe, log)
    record = last if last is not None and last.state == "working" else _begin(rounds, records, recipe, start)
    _require_same_gates(record, recipe)
    look_at_signals(store, recipe, log)
    where = Where(store, output_dir / "downloads", from_dir, _others(rounds, record), frozen=True)
    runner = Runner(rounds.path(record.number), time_shares(_own(recipe, record)), True, log, where.reuse_from)
    home = open_home(_own(recipe, record), runner.folder, where, runner, wait)
    record = replace(record, facts=str(home.task.settings.get("facts", "")))
    before = [one.facts for one in records if one.number < record.number]
    if before and before[-1] == record.facts and not force:
        shutil.rmtree(rounds.path(record.number))
        return replace(record, state="nothing new", decided_at=time.time())
    rounds.write(record)
    return _carry_out(rounds, record, prepare_run(home))


def check_turn(recipe: Recipe) -> None:
    """Refuse a recipe that `accord round` cannot learn by. Raises UsageError."""
    if recipe.task.use != "store":
        raise UsageError(
            f"a round learns from the project's store, and task.use is {recipe.task.use}",
            hint="write task: {use: store}, and bring files into the store: `accord import FILE`",
        )
    check_recipe(recipe, [recipe.rl, recipe.optimisation()])


def _own(recipe: Recipe, record: TurnRecord) -> Recipe:
    """The recipe of one round: nobody is asked, for users have spoken; its samples go by a name of its own."""
    changes: dict[str, Any] = {"ask": AskConfig(queue=0), "rounds": 1, "controls": {}}
    return recipe.model_copy(update={**changes, "name": f"{recipe.name}-round-{record.number}"})


def _others(rounds: Rounds, record: TurnRecord) -> list[Path]:
    """Earlier rounds, whose judges and downloads are taken over where nothing of theirs has changed."""
    return [rounds.path(number) for number in range(record.number - 1, 0, -1)]


def _begin(rounds: Rounds, records: list[TurnRecord], recipe: Recipe, start: Path) -> TurnRecord:
    """Write down what the round is to show, before anything of its data is looked at."""
    aliases = rounds.aliases
    models = aliases.all()
    if PROD not in models:
        first = ServedModel(start.resolve(), weights_version(start))
        aliases.move({PROD: first, REFERENCE: first}, "was served when the first round began")
        models = aliases.all()
    promoted = [one for one in records if one.state == "promoted" and one.candidate]
    rewards = [
        str(rounds.path(one.number) / "reward/model")
        for one in promoted
        if one.candidate and one.candidate["version"] == models[PROD].version
    ]
    record = TurnRecord(
        number=len(records) + 1,
        state="working",
        began_at=time.time(),
        gates=recipe.gates.model_dump(),
        canary=recipe.canary.model_dump(),
        prod=_row_of(models[PROD]),
        reward=rewards[-1] if rewards else "",
    )
    return rounds.write(record)


def _row_of(model: ServedModel) -> dict[str, Any]:
    return {"folder": str(model.folder), "version": model.version}


def _require_same_gates(record: TurnRecord, recipe: Recipe) -> None:
    now = {"gates": recipe.gates.model_dump(), "canary": recipe.canary.model_dump()}
    then = {"gates": dict(record.gates), "canary": dict(record.canary)}
    changed = [f"{part}.{key}" for part, of in now.items() for key in of if of[key] != then[part].get(key)]
    if changed:
        raise UsageError(
            f"{', '.join(changed)} of round {record.number} were written before its data was seen, and differ now",
            hint="let this round end by them, or remove its folder; the next round takes the new ones",
        )


def look_at_signals(store: str, recipe: Recipe, log: Log) -> None:
    """Write down what users did, and let a judge score it where the recipe names one."""
    judge = recipe.admit.signal_judge
    with Store.open(store) as facts:
        new = note_signals(facts)
        if judge is not None:
            scorer = load_scorer([judge], placement=AUTO)
            scored = judge_signals(facts, judge.label, lambda pairs: scorer.score(pairs).tolist())
            log(0.0, f"signals: {scored:,} scored by {judge.label}: AI feedback")
    log(0.0, f"signals: {new:,} new ones")


# ---- the work of a round ---------------------------------------------------------------------------------------------


def _carry_out(rounds: Rounds, record: TurnRecord, home: Home) -> TurnRecord:
    told = read_json(home.path("data/standing.json"))
    record = rounds.write(replace(record, admission=told.get("admission", {})))
    reference = rounds.aliases.get(REFERENCE)
    assert reference is not None  # `_begin` has set it
    champion = Champion(Path(record.prod["folder"]), start_of(home), PROD, reference.folder)
    judgements = collect(home, None)
    reward = fit_reward(home, judgements)
    if unfit := unfit_reward(home):
        why = "; ".join(unfit)
        return _refuse(rounds, record, [RoundGate("reward model", False, "fit to be optimised against", why=why)])
    candidate = candidate_of(home, champion, reward, judgements)
    verdict = evaluate_candidate(home, champion, candidate, {}, reward)
    write_json(home.path("verdict.json"), verdict)
    snapshot = candidate / f"step_{verdict['selections'][verdict['candidate']]['step']:06d}"
    home.do(gates_stage(home, record, reward))
    found = [RoundGate(**row) for row in read_json(home.path("gates/gates.json"))]
    if not refusals_of(found) and home.recipe.gates.shadow_prompts:
        found.append(_in_shadow(home, champion, snapshot, reward))
    write_json(home.path(ROUND_GATES_FILE), {"gates": [plain(gate) for gate in found]})
    reasons = tuple(refusals_of(found))
    published = champion.policy if reasons else publish(home, snapshot)
    report(home, verdict, Promotion(champion if reasons else replace(champion, policy=published), published, reasons))
    if reasons:
        return _refuse(rounds, record, found)
    model = ServedModel(published.resolve(), weights_version(published))
    record = replace(record, found=tuple(map(asdict, found)), candidate=_row_of(model))
    if home.recipe.canary.share:
        config = home.recipe.canary
        canary = replace(model, share=config.share, alpha=config.alpha, delta=config.delta)
        rounds.aliases.move({CANARY: canary}, _why(record, "canary"))
        return rounds.write(replace(record, state="canary", decided_at=time.time()))
    return _promote(rounds, record, "all gates passed")


def _refuse(rounds: Rounds, record: TurnRecord, found: list[RoundGate]) -> TurnRecord:
    reasons = tuple(refusals_of(found))
    refused = replace(record, state="refused", found=tuple(map(asdict, found)), reasons=reasons, decided_at=time.time())
    return rounds.write(refused)


def _why(record: TurnRecord, what: str) -> str:
    return f"round {record.number}: {what}"


def _promote(rounds: Rounds, record: TurnRecord, what: str) -> TurnRecord:
    """Move the alias, then write down that it was moved: killed in between, the same is done again."""
    assert record.candidate is not None
    model = ServedModel.of_json(record.candidate)
    rounds.aliases.move({PROD: model, CANARY: None}, _why(record, what))
    return rounds.write(replace(record, state="promoted", decided_at=time.time()))


def gates_stage(home: Home, record: TurnRecord, reward: Path) -> Stage:
    """What the gates find before any user sees the candidate: ``gates.json``."""
    config, seed, placement = home.recipe.gates, home.seed, Placement.of(home.recipe.reward)
    before = Path(record.reward) if record.reward else None
    inputs: dict[str, Path | None] = {
        "verdict": home.path("verdict.json"),
        "samples": home.path("eval/samples.jsonl"),
        "reward": reward,
        "prods_reward": before if before is not None and before.is_dir() else None,
        "judgements": home.task.judgements("test"),
    }

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, "gates")
        known = pair_evidence(inputs, config, placement, seed) if "judgements" in inputs else {}
        evidence = GateEvidence(read_json(inputs["verdict"]), read_rows(inputs["samples"]), **known)
        found = gates_of(evidence, config)
        write_json(folder / "gates.json", [plain(gate) for gate in found])
        return {"refused": refusals_of(found)}

    return home.stage("gates", {"gates": dict(record.gates)}, given_inputs(inputs), work)


def pair_evidence(inputs: Inputs, config: GatesConfig, placement: Placement, seed: int) -> dict[str, Any]:
    """What the reward model, and prod's, make of held-out pairs of both tranches, and of texts that say nothing."""
    model = RewardModel.load(inputs["reward"], placement)
    rows = read_ranked_rows(inputs["judgements"], model.tokenizer.chat)
    tranches: dict[str, list[RankedRow]] = {"old": [], "new": []}
    for row in rows:
        if row.group.origin not in ONLY_TEACH:
            tranches["new" if row.group.origin in LIVE else "old"].append(row)
    found: dict[str, Any] = {"held_out": {}}
    for tranche, own in tranches.items():
        pairs = _pairs_of(own, config.held_out_least)
        if pairs is None:
            continue
        scores = model.score(pairs.texts).numpy()
        found["held_out"][tranche] = pair_accuracy(scores, pairs.pairs, seed=seed).to_json()
        if tranche == "old" and "prods_reward" in inputs:
            before = RewardModel.load(inputs["prods_reward"], placement).score(pairs.texts).numpy()
            found["change"] = accuracy_difference(scores, before, pairs.pairs, seed=seed).to_json()
    if config.attacks and (attacked := attacked_prompts(tranches["old"] or rows, seed=seed)):
        done = run_attacks(lambda pairs: model.score(pairs).numpy(), attacked, seed=seed)
        found["attacks"] = {"attacks": [plain(one) for one in done]}
    return found


def _pairs_of(rows: list[RankedRow], least: int) -> Any:
    """Ordered pairs of rows, None where there are none, or of too few topics."""
    try:
        found = ranked_pairs([row.group for row in rows])
    except DataError:
        return None
    return found if len(set(found.pairs.topics.tolist())) >= least else None


# ---- shadow ----------------------------------------------------------------------------------------------------------


def _in_shadow(home: Home, champion: Champion, snapshot: Path, reward: Path) -> RoundGate:
    """Let candidate and prod answer prompts of users, unseen by anybody, and the judges look."""
    counted = home.do(mirrored_stage(home))["prompts"]
    config = home.recipe.gates
    if counted < min(MIRRORED_LEAST, config.shadow_prompts):
        home.runner.say(Notice(f"shadow: {counted} prompts of users taught nothing, too few to look at"))
        return shadow_gate(None, config)
    home.do(shadow_stage(home, champion, snapshot, reward))
    return shadow_gate(read_json(home.path("shadow/results.json")), config)


def mirrored_stage(home: Home) -> Stage:
    """Prompts of users, the newest first, that are in no file of the round; kept as they were when it began."""
    most, store, admit = home.recipe.gates.shadow_prompts, home.store, home.recipe.admit

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        known = set(_prompts_in(inputs["data"]))
        with Store.open(store) as facts:
            users = read_admission(facts, admit)
            with facts.snapshot() as connection:
                served = read_served(connection)
        found: dict[str, Item] = {}
        for one in reversed(served):
            name = key_of_prompt(one.prompt, one.form)
            if name in known or name in users.withheld or users.is_gone(one.user) or len(found) >= most:
                continue
            item = Item(prompt=asked_in(one.prompt, one.form))
            found.setdefault(name, scrubbed_item(item, Counter()) if admit.scrub else item)
        write_jsonl(folder / "mirrored.jsonl", to_jsonl(found.values()))
        return {"prompts": len(found)}

    return home.stage("mirrored", {"most": most}, {"data": home.path("data/prompts_train.jsonl").parent}, work)


def _prompts_in(folder: Path) -> Iterator[str]:
    for file in folder.glob("prompts_*.jsonl"):
        yield from (prompt_key(row["prompt"]) for row in read_rows(file))


def shadow_stage(home: Home, champion: Champion, snapshot: Path, reward: Path) -> Stage:
    """Both answer those prompts, drawn alike, and the judges of the round score them."""
    name = candidate_name(home.recipe)
    prompts = home.path("mirrored/mirrored.jsonl")
    inputs = {**measured_inputs(home, champion, reward), "valid_prompts": prompts, "test_prompts": prompts}
    # Nothing is chosen here, and best of n of strangers' prompts is nobody's question.
    quick = home.recipe.eval.model_copy(update={"curve_samples": 1})
    plain_home = replace(home, recipe=home.recipe.model_copy(update={"eval": quick}))

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        measure(plain_home, PROD, [Contestant(name, {0: inputs["candidate"]})], inputs, folder, log)
        return {}

    return home.stage("shadow", measured_settings(plain_home), {**inputs, "candidate": snapshot}, work)


# ---- canary ----------------------------------------------------------------------------------------------------------


def look_at_canary(rounds: Rounds, record: TurnRecord, store: str, recipe: Recipe, log: Log) -> TurnRecord:
    """Promote a canary that is shown not to be worse, refuse one that is worse or stays undecided, else wait on."""
    config = type(recipe.canary)(**record.canary)
    models = rounds.aliases.all()
    if record.candidate is not None and models[PROD].version == record.candidate["version"]:
        return _promote(rounds, record, "canary")  # killed between the move and the record of it
    if CANARY not in models:  # the server has taken it back by itself, or somebody has
        moved = [row for row in rounds.aliases.history() if row["alias"] == CANARY]
        return rounds.write(replace(record, state="refused", reasons=(moved[-1]["why"],), decided_at=time.time()))
    watch = CanaryWatch(rounds.aliases, config, recipe.admit)
    with Store.open(store) as facts:
        look = watch.look(facts, models[CANARY], models[PROD], record.decided_at)
    log(1.0, f"canary: {look_in_words(look)}")
    gate = RoundGate(
        "canary, sequential",
        {"worse": False, "not worse": True, "undecided": None}[look.decision],
        f"shown to lie less than {config.delta:g} below prod, wrong at most {config.alpha:g} of the time",
        look.canary - look.other,
        n=look.num_canary,
        why=look_in_words(look),
        needed=look.num_canary >= config.most,
    )
    record = replace(record, found=(*record.found, asdict(gate)))
    if gate.passed:
        return _promote(rounds, record, f"canary {look_in_words(look)}")
    if gate.refuses:
        rounds.aliases.move({CANARY: None}, _why(record, look_in_words(look)))
        return rounds.write(replace(record, state="refused", reasons=(gate.sentence,), decided_at=time.time()))
    return replace(record, reasons=(gate.sentence,))
