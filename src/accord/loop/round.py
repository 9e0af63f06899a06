"""One turn of the loop: sample, ask, learn what is liked, optimise, look whether it is better, promote."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accord.config import DpoConfig, Recipe, RlConfig
from accord.errors import DataError
from accord.evals.contestants import Contestant, EvalPrompts, best_of_n_of
from accord.evals.evaluate import EvalRun, evaluate_policies
from accord.evals.gate import gate_of
from accord.evals.judged_pairs import kept_apart
from accord.evals.judges import Judge, open_judges, recipe_judges
from accord.evals.results import plain, summarise, with_judge
from accord.evals.standings import write_standings
from accord.files import read_json, write_json
from accord.loop.asking import JUDGEMENTS, ask_stage, collect_stage, queue_stage
from accord.loop.cache import STAMP, Inputs, Stage
from accord.loop.choosing import samples_to_ask
from accord.loop.facts import fitted_home
from accord.loop.judging import judged_stages, verdict_of
from accord.loop.samples import SAMPLES
from accord.loop.stages import (
    SECOND,
    Home,
    data_stage,
    dpo_stage,
    in_order,
    json_of,
    judge_stage,
    publish,
    reward_stage,
    rl_stage,
    round_folder,
    sample_stage,
    sft_stage,
    start_of,
    start_stages,
    task_judges,
)
from accord.loop.waiting import ASKED, WaitingForPeople, late_answers
from accord.models.placement import Placement
from accord.people.watching import AnswersSoFar, Questions, Watcher, wait_for_people
from accord.progress import Log, Notice
from accord.report.run_folder import GATE
from accord.report.run_page import write_pages, write_report
from accord.rollout.engine import Sampling
from accord.scoring.weighted import load_scorer, scorer_inputs
from accord.train.training_run import snapshots_of

WITHOUT_SFT = "as the task has no demonstrations"


@dataclass(frozen=True)
class Champion:
    """The policy that the next round starts from, what pages call it, and what its reward model is built on.

    ``first`` is the policy that the first round started from: later rounds are measured from there too.
    """

    policy: Path
    start: Path
    name: str
    first: Path


@dataclass(frozen=True)
class Promotion:
    """What a round leads to: the champion from now on, what was published, and why not where nothing was promoted."""

    champion: Champion
    published: Path
    reasons: tuple[str, ...]


def play_round(home: Home, champion: Champion) -> Champion:
    """Sample, ask, learn what is liked, optimise, look whether it is better, and promote or say why not."""
    prompts = home.task.prompts("train")
    samples = sample_prompts(home, champion.policy, prompts)
    asked = ask(home, champion, samples)
    judgements = collect(home, asked)
    reward = fit_reward(home, judgements)
    pass_gate(home)
    candidate = candidate_of(home, champion, reward, judgements)
    controls = optimise_controls(home, champion, reward, judgements)
    verdict = evaluate_candidate(home, champion, candidate, controls, reward)
    promotion = promote(home, champion, candidate, verdict)
    queue(home, promotion.published)
    report(home, verdict, promotion)
    return promotion.champion


def prepare_home(home: Home) -> Home:
    """The task's files and a model; from then on the recipe has values that fit both, where it leaves them open."""
    begin(home)
    return fitted_home(home)


def begin(home: Home) -> None:
    """What stands before everything else: the task's files, and the model that all starts from."""
    home.do(data_stage(home))
    for stage in start_stages(home):
        home.do(stage)


def first_champion(home: Home) -> Champion:
    """What there is before the first round: the model of a home that is prepared, and its fine-tuning."""
    fine_tuning = sft_stage(home)
    if fine_tuning is None:
        home.runner.log(0.0, f"sft: left out, {WITHOUT_SFT}")
        return Champion(start_of(home), start_of(home), "base", start_of(home))
    home.do(fine_tuning)
    return Champion(home.path("sft/model"), start_of(home), "sft", home.path("sft/model"))


def sample_prompts(home: Home, policy: Path, prompts: Path) -> Path | None:
    """Completions of the policy for somebody to rank, of prompts as ``ask.choose`` says; none where nobody is asked."""
    return None if home.recipe.ask.who == "nobody" else samples_to_ask(home, policy, prompts)


def ask(home: Home, champion: Champion, samples: Path | None) -> Path | None:
    """Their judgements as a file; none where nobody is asked. Raises WaitingForPeople before people have answered."""
    stage = None if samples is None else ask_stage(home, samples, champion.name)
    if stage is None:
        return None
    result = patiently(home, stage)
    say_what_ended(home, stage, result)
    if home.recipe.ask.who == "people":
        say_what_came_late(home, result)
    return home.path(f"ask/{JUDGEMENTS}")


def patiently(home: Home, stage: Stage) -> dict[str, Any]:
    """Carry out a stage that asks; where the run may wait, wait until people have answered."""
    while True:
        try:
            return home.do(stage)
        except WaitingForPeople as waiting:
            if not home.wait:
                raise
            wait_for_people(waiting.questions, home.wait if callable(home.wait) else teller(home))


def teller(home: Home) -> Watcher:
    """What a run that waits tells its log."""

    def tell(questions: Questions, standing: AnswersSoFar) -> None:
        home.runner.say(f"waiting for people: {standing.line(time.time())}")

    return tell


def say_what_ended(home: Home, stage: Stage, result: Mapping[str, Any]) -> None:
    """Say what ended the waiting for people, and with how many answers; nothing where others were asked."""
    if "ended" in result:
        home.runner.say(Notice(f"{stage.name}: {result['ended']}"))


def say_what_came_late(home: Home, result: Mapping[str, Any]) -> None:
    """Say how many answers a finished round does not read."""
    late = late_answers(result, home.path(f"ask/{ASKED}"), home.store, home.recipe.ask)
    if late:
        home.runner.say(Notice(f"ask: {late} answers came after this round had enough; the next round reads them"))


def collect(home: Home, asked: Path | None) -> Path:
    """All judgements of the round: those that stood already and those just made."""
    home.do(collect_stage(home, asked))
    return home.path("rankings/rankings.jsonl")


def fit_reward(home: Home, judgements: Path) -> Path:
    """A reward model of the judgements."""
    home.do(reward_stage(home, judgements))
    return home.path("reward/model")


def pass_gate(home: Home) -> None:
    """Say what the gate finds of the reward model, where something was held out for it, and write it down.

    Raises DataError where the gate refuses, a policy would be optimised against it, and nobody overrules.
    """
    if reasons := unfit_reward(home):
        raise DataError(
            "the reward model is not fit to be optimised against",
            where=str(home.path("reward")),
            why="; ".join(reasons),
            hint="collect more judgements, or go on in spite of it: eval.gate_overrule=true",
        )


def unfit_reward(home: Home) -> list[str]:
    """The same, and why nothing may be optimised against the reward model; empty where it may."""
    if home.task.held_out is None:
        return []
    card = json_of(home, "reward/card.json")
    evaluation, config = home.recipe.eval, home.recipe.optimisation()
    gate = gate_of(card, overrule=evaluation.gate_overrule, attacks=evaluation.gate_attacks)
    told, found = home.path(GATE), plain(gate)
    is_known = told.is_file() and read_json(told) == found  # a run that goes on does not say it again
    write_json(told, found)
    if gate.says != "pass" and not is_known:
        home.runner.say(Notice(f"reward: {gate.sentence}"))
    stops = gate.stops and (isinstance(config, RlConfig) or config.online)
    return [one.reason for one in gate.findings if one.says == "refuse"] if stops else []


def optimise(
    home: Home, name: str, config: RlConfig | DpoConfig, champion: Champion, reward: Path, judgements: Path
) -> Path:
    """Snapshots of the policy while it is optimised against the reward model, or on the judgements."""
    if isinstance(config, RlConfig):
        home.do(rl_stage(home, name, config, champion.policy, reward, champion.first))
    else:
        home.do(dpo_stage(home, name, config, champion.policy, judgements, home.task.judgements("valid"), reward))
    return home.path(f"{name}/snapshots")


def candidate_of(home: Home, champion: Champion, reward: Path, judgements: Path) -> Path:
    """Snapshots of the policy that is to be better."""
    recipe = home.recipe
    return optimise(home, recipe.optimise, recipe.optimisation(), champion, reward, judgements)


def optimise_controls(home: Home, champion: Champion, reward: Path, judgements: Path) -> dict[str, Path]:
    """Snapshots of the same optimisation with the changes of each control."""
    recipe = home.recipe
    return {
        name: optimise(home, f"{recipe.optimise}_{name}", recipe.control(name), champion, reward, judgements)
        for name in recipe.controls
    }


def evaluate_candidate(
    home: Home, champion: Champion, candidate: Path, controls: Mapping[str, Path], reward: Path
) -> dict[str, Any]:
    """What the judges say of the candidate and its controls on prompts that nothing was trained on; people last.

    Raises WaitingForPeople before people have judged, where they are asked to.
    """
    fit_judges(home)
    home.do(eval_stage(home, champion, candidate, controls, reward))
    found: dict[str, Any] = json_of(home, "eval/results.json")
    for stage in judged_stages(home, champion.name):
        say_what_ended(home, stage, patiently(home, stage))
        found = with_judge(found, verdict_of(home, stage))
    write_standings(home.runner.folder, found)
    return found


def fit_judges(home: Home) -> None:
    """The judges of the task, each by a stage of its own."""
    for name in task_judges(home):
        home.do(judge_stage(home, name))


def promote(home: Home, champion: Champion, candidate: Path, verdict: Mapping[str, Any]) -> Promotion:
    """Make the snapshot that a judge chose the champion, where it holds all floors: that it is liked better is one.

    Who says so is the most trusted judge that has enough to say (`accord.evals.trust`), against the champion so far.

    What the first round chose is published in any case, as there is nothing before it.
    """
    step = verdict["selections"][verdict["candidate"]]["step"]
    reasons = tuple(broken_floors(summary_of(home, verdict)["floors"]))
    if reasons and home.number > 1:
        shutil.rmtree(home.path("model"), ignore_errors=True)  # of an earlier start with other settings
        return Promotion(champion, champion.policy, reasons)
    published = publish(home, candidate / f"step_{step:06d}")
    promoted = replace(champion, policy=published, name=f"round_{home.number}")
    return Promotion(champion if reasons else promoted, published, reasons)


def queue(home: Home, policy: Path) -> None:
    """After the last round samples of the published policy wait for people: `accord label` shows them."""
    count = home.recipe.ask.queue
    if not count or home.number < home.recipe.rounds:
        return
    prompts = home.task.prompts("train")
    home.do(sample_stage(home, "queued", policy, prompts, in_order(count), "queued samples"))
    home.do(queue_stage(home, home.path(f"queued/{SAMPLES}")))


def report(home: Home, verdict: Mapping[str, Any], promotion: Promotion) -> None:
    """The summary, the model card and the page of the round; and of the run, which lists its rounds."""
    summary = summary_of(home, verdict) | {"champion": champion_record(home, promotion)}
    if home.number > 1:
        write_json(home.path("data/manifest.json"), read_json(home.root / "data/manifest.json"))  # the page shows it
    write_json(home.path("summary.json"), summary)
    write_pages(home.runner.folder)
    if home.recipe.rounds > 1:
        rounds = [round_row(home.root, number) for number in range(1, home.number + 1)]
        write_json(home.root / "summary.json", read_json(home.root / "summary.json") | {"rounds": rounds})
        write_report(home.root)


def round_row(root: Path, number: int) -> dict[str, Any]:
    """What the run says of one of its rounds: its numbers, who was asked, and what became of its candidate."""
    folder = round_folder(root, number)
    summary, told = read_json(folder / "summary.json"), asked_of(folder)
    wins = ("judge_win_rate", "judge_win_rate_low", "judge_win_rate_high", "decided_by", "first")
    keys = ("candidate", "reward_accuracy", *wins, "kl")
    keep = ("called", "answers", "people", "judgements", "of_them_simulated", "enough")
    counts = {key: told[key] for key in keep if key in told}
    summary["first"] = summary["first"] or _as_first(summary)
    report = (folder / "report.html").relative_to(root).as_posix()
    return {"round": number, **{key: summary[key] for key in keys}, **counts, **summary["champion"], "report": report}


def _as_first(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says against the first start, where that was still the champion."""
    win = {key: summary[f"judge_win_rate{end}"] for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))}
    return {"kl": summary["kl"], "judge": summary["decided_by"], "win_rate": win}


def summary_of(home: Home, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers that decide, out of what the stages wrote."""
    told = read_json(home.root / f"data/{STAMP}")["result"]
    counts = {**told.get("counts", {}), **{key: told[key] for key in ("human_rankings",) if key in told}}
    seconds, held_out = round(sum(home.runner.seconds.values()), 1), home.task.held_out
    card = json_of(home, "reward/card.json") if held_out else None
    baseline = held_out.baseline if held_out else ""
    found = summarise(verdict, card, baseline=baseline, seconds=seconds, counts=counts)
    return found | {"left_out": {} if sft_stage(home) else {"sft": WITHOUT_SFT}, "asked": asked_of(home.runner.folder)}


def asked_of(folder: Path) -> dict[str, Any]:
    """Who ranked a round's samples, what they are called, and their counts; empty where nobody was asked."""
    stamp = folder / f"ask/{STAMP}"
    told = read_json(stamp)["result"] if stamp.exists() else {}
    keep = ("called", "answers", "people", "judgements", "annotators", "of_them_simulated")
    return {key: told[key] for key in keep if key in told}


def broken_floors(floors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The floors that a candidate broke, in words."""
    return [
        f"{name} is {floor['value']:.3g}, not {floor['bound']}" for name, floor in floors.items() if not floor["held"]
    ]


def champion_record(home: Home, promotion: Promotion) -> dict[str, Any]:
    """Which policy is the champion now, and whether that is this round's candidate, or why not."""
    policy, root = promotion.champion.policy, home.root
    place = policy.relative_to(root).as_posix() if policy.is_relative_to(root) else str(policy)
    return {"policy": place, "promoted": not promotion.reasons, "reasons": list(promotion.reasons)}


# ---- the evaluation as a stage ---------------------------------------------------------------------------------------


def control_note(recipe: Recipe, name: str) -> str:
    """What a control does otherwise, in words."""
    own, other = _flat(recipe.optimisation().model_dump()), _flat(recipe.control(name).model_dump())
    said = [f"{key} {new} instead of {own[key]}" for key, new in other.items() if new != own[key]]
    return ", ".join(said) or "nothing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def eval_stage(home: Home, champion: Champion, candidate: Path, controls: Mapping[str, Path], reward: Path) -> Stage:
    """Measure the candidate beside its controls, the policy it started from and best-of-n."""
    recipe, name = home.recipe, candidate_name(home.recipe)
    inputs = measured_inputs(home, champion, reward)
    inputs |= {"candidate": candidate, **{f"{recipe.optimise}_{one}": folder for one, folder in controls.items()}}

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        contestants = [*baselines(home, inputs), Contestant(name, snapshots_of(inputs["candidate"]))]
        for one in recipe.controls:
            told, snapshots = control_note(recipe, one), snapshots_of(inputs[f"{recipe.optimise}_{one}"])
            contestants.append(Contestant(f"{name}_{one}", snapshots, "control", told))
        measure(home, champion.name, contestants, inputs, folder, log)
        return {}

    return home.stage("eval", {**measured_settings(home), "controls": dict(recipe.controls)}, inputs, work)


def candidate_name(recipe: Recipe) -> str:
    """What pages call the policy in question: by the algorithm or the loss that made it."""
    return plain_name(recipe.rl.algorithm if recipe.optimise == "rl" else recipe.dpo.loss)


def plain_name(row: str) -> str:
    """The name of a row of a table; a user's own goes by its function's name."""
    return row.rsplit(":", 1)[-1]


def measured_inputs(home: Home, champion: Champion, reward: Path) -> dict[str, Path]:
    """What every evaluation of a run reads besides the policies in question."""
    task, recipe = home.task, home.recipe
    return {
        "base": champion.start,
        "reference": champion.policy,
        "reward_model": reward,
        "valid_prompts": task.prompts("valid"),
        "test_prompts": task.prompts("test"),
        **({} if champion.first == champion.policy else {"first": champion.first}),
        **{f"judge_{name}": home.path(f"judge_{name}") for name in task_judges(home)},
        **what_taught_judges(home),
        **scorer_inputs(recipe.rl.rewards),
        **{f"eval.{key}": path for key, path in scorer_inputs(recipe_judges(recipe.eval)).items()},
    }


def what_taught_judges(home: Home) -> dict[str, Path]:
    """What the second reward model learnt from, where there is one, and what the first did."""
    data = task_judges(home)[SECOND].inputs["data"] if SECOND in task_judges(home) else None
    return {} if data is None else {"judge_data": data, "taught": home.path("rankings/rankings.jsonl")}


def measured_settings(home: Home) -> dict[str, Any]:
    """The settings that every evaluation of a run depends on."""
    recipe = home.recipe
    sampling = recipe.rl.model_dump(include={"max_new_tokens", "temperature"})
    return {
        "config": recipe.eval.model_dump(
            exclude={"people", "judges", "gate_overrule", "gate_attacks"}
        ),  # they judge what the evaluation has drawn
        "judges": {judge.name: judge.model_dump() for judge in recipe_judges(recipe.eval)},
        "sampling": sampling,
        "rewards": [one.model_dump() for one in recipe.rl.rewards],
    }


def baselines(home: Home, inputs: Inputs) -> list[Contestant]:
    """The model before fine-tuning, where there was some, where round 1 started, and best-of-n of the reference."""
    reference, base, first = inputs["reference"], inputs["base"], inputs.get("first")
    found = [] if base in (reference, first) else [Contestant("base", {0: base}, "baseline", "before fine-tuning")]
    if first is not None:
        found.append(Contestant("first", {0: first}, "baseline", "where round 1 started", is_first=True))
    return [*found, best_of_n_of(reference, home.recipe.eval.best_of)]


def measure(
    home: Home, reference: str, contestants: Sequence[Contestant], inputs: Inputs, folder: Path, log: Log
) -> None:
    """Evaluate contestants against the policy that they started from, which pages call ``reference``."""
    recipe, placement = home.recipe, Placement.of(home.recipe.rl)
    sampling = Sampling(recipe.rl.max_new_tokens, temperature=recipe.rl.temperature)
    evaluate_policies(
        recipe.eval,
        contestants,
        reference=Contestant(reference, {0: inputs["reference"]}),
        proxy=load_scorer(recipe.rl.rewards, inputs["reward_model"], placement),
        judges=open_all_judges(home, inputs, placement),
        prompts=EvalPrompts(inputs["valid_prompts"], inputs["test_prompts"]),
        run=EvalRun(folder, sampling, recipe.seed, placement, log),
    )


def open_all_judges(home: Home, inputs: Inputs, placement: Placement) -> dict[str, Judge]:
    """The judges of the task, then those of the recipe; one of the recipe's replaces one of the same name."""
    apart = kept_apart(inputs["judge_data"], inputs["taught"]) if "judge_data" in inputs else ""
    fitted = {
        name: Judge(one.load(inputs[f"judge_{name}"], placement), one.kind, apart if name == SECOND else "")
        for name, one in task_judges(home).items()
    }
    named = recipe_judges(home.recipe.eval)
    return {**fitted, **(open_judges(named, placement) if named else {})}
