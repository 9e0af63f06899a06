"""Judges that compare two completions: people at the desk, and a chat model behind a URL.

They judge what the evaluation has drawn for test prompts: a completion of the champion, from which the round started,
beside one of the candidate. Neither knows which is which. What they say evaluates, and never trains anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.config import ChatConfig, LabelConfig, PeopleJudgeConfig
from accord.errors import DataError
from accord.evals.judged_pairs import JudgedPair, JudgingRun, chat_verdict, pair_verdict, read_pairs, write_pairs
from accord.evals.judges import comparing_judges
from accord.evals.trust import JudgeSaid
from accord.files import read_json, write_json
from accord.loop.cache import Inputs, Stage
from accord.loop.samples import prompt_fact
from accord.loop.stages import Home, policy_source
from accord.loop.waiting import WaitingForPeople
from accord.people.desk import Desk, QueuedTask
from accord.people.desk.rows import RESERVED
from accord.people.intake import Group, queue_groups, queued_tasks
from accord.people.watching import Questions
from accord.progress import Log
from accord.records import Completion, Prompt, Source
from accord.store import Store

PEOPLE = "people"  # the judge that people are
VERDICT = "verdict.json"
JUDGED_FIRST = 1.0  # a round waits for them; samples that were not needed any more wait too


def judged_stages(home: Home, champion: str) -> list[Stage]:
    """A stage for each judge that compares pairs, people last; ``champion`` is what pages call the reference."""
    chats = [_chat_stage(home, name, config) for name, config in comparing_judges(home.recipe.eval).items()]
    return [*chats, *([_people_stage(home, champion)] if home.recipe.eval.people.prompts else [])]


def verdict_of(home: Home, stage: Stage) -> JudgeSaid:
    """What a finished stage of these found."""
    return JudgeSaid.of_json(read_json(home.path(f"{stage.name}/{VERDICT}")))


def what_was_drawn(home: Home) -> dict[str, Path]:
    """What judges of pairs read: what the evaluation has drawn, and the prompts as they were asked."""
    evaluated = {"samples": home.path("eval/samples.jsonl"), "results": home.path("eval/results.json")}
    return {**evaluated, "test_prompts": home.task.prompts("test")}


def _chat_stage(home: Home, name: str, config: ChatConfig) -> Stage:
    """Let a chat model judge."""
    seed, resamples = home.seed, home.recipe.eval.bootstrap

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        verdict = chat_verdict(name, config, inputs, JudgingRun(folder, seed, resamples), log).to_json()
        write_json(folder / VERDICT, verdict)
        return verdict

    return home.stage(f"judged_{name}", {"chat": config.model_dump()}, what_was_drawn(home), work)


# ---- people ----------------------------------------------------------------------------------------------------------


def _people_stage(home: Home, champion: str) -> Stage:
    """Let people judge: raises WaitingForPeople until there are enough answers; later ones change nothing."""
    config, store, seed, resamples = home.recipe.eval.people, home.store, home.seed, home.recipe.eval.bootstrap
    sources, guideline = _sources(home, champion), home.task.guideline

    def work(inputs: Inputs, folder: Path, log: Log) -> Any:
        log(0.0, "people judge blind pairs")
        pairs = read_pairs(inputs, config.prompts, seed)
        tasks = _queue(config, pairs, sources, store, guideline)
        overlaps = {one.id: one.overlap for one in tasks.values()}
        queued_at = max((one.created_at for one in tasks.values()), default=0.0)
        asked = Questions(store, overlaps, config.enough, config.simulated, queued_at)
        standing = asked.standing()
        if not standing.ended:
            raise WaitingForPeople(standing, asked)
        said, people, simulated = _answers(tasks, store, config.simulated)
        outcomes = [said.get(number, []) for number in range(len(pairs))]
        kind = "simulated" if simulated else PEOPLE  # one simulated answer among them, and they are not people's
        note = f"{sum(map(len, outcomes)):,} answers by {people} {'person' if people == 1 else 'people'}"
        note += f", {simulated:,} of them by programs" if simulated else ""
        verdict = pair_verdict((kind, kind), pairs, outcomes, resamples, note)
        write_pairs(folder, pairs, outcomes)
        write_json(folder / VERDICT, verdict.to_json())
        counts = {"pairs": len(pairs), "alike": sum(pair.alike for pair in pairs), "skipped": standing.skipped}
        return {
            **counts,
            "ended": standing.why_ended(),
            "answers": sum(map(len, outcomes)),
            "people": people,
            "simulated_answers": simulated,
        }

    # When the waiting ends is no part of it: a deadline that is moved later opens no finished round.
    settings = config.model_dump(exclude={"enough"}) | {"enough": config.enough.amount()}
    settings["sources"] = [one.name for one in sources]
    return home.stage(f"judged_{PEOPLE}", settings, what_was_drawn(home), work)


def _sources(home: Home, champion: str) -> tuple[Source, Source]:
    """Who wrote the two sides of a pair, as facts say it: the champion, and what is the next one if it is liked."""
    rl = home.recipe.rl
    drawn = f"max_new_tokens {rl.max_new_tokens}, temperature {rl.temperature}"
    return policy_source(home, champion, drawn), policy_source(home, f"round_{home.number}", drawn)


def _queue(
    config: PeopleJudgeConfig, pairs: Sequence[JudgedPair], sources: tuple[Source, Source], store: str, guideline: str
) -> dict[int, QueuedTask]:
    """Queue what is not in the queue yet, and return the task of each pair that has one."""
    groups = {number: _group(pair, sources) for number, pair in enumerate(pairs) if not pair.alike}
    with Store.open(store) as facts:
        desk = Desk(facts, LabelConfig(overlap=config.overlap))
        if guideline and desk.directory.guideline().rev == 0:
            desk.directory.write_guideline(guideline, None)
        kept_for_judging = f"{RESERVED}{sources[1].name}"
        queue_groups(desk, groups.values(), serve_as="pair", origin=kept_for_judging, priority=JUDGED_FIRST)
        found = {_ids(task.completions): task for task in queued_tasks(desk, groups.values(), serve_as="pair")}
    tasks = {number: found[_ids(completions)] for number, (_, completions) in groups.items()}
    if not all(task.reserved for task in tasks.values()):
        raise DataError("a pair to be judged is asked for training already", hint="give the run a name of its own")
    return tasks


def _group(pair: JudgedPair, sources: tuple[Source, Source]) -> Group:
    prompt: Prompt = prompt_fact(pair.prompt, pair.topic)
    texts = zip((pair.champion, pair.candidate), sources, strict=True)
    return prompt, tuple(Completion(prompt_id=prompt.id, text=text, source=source) for text, source in texts)


def _ids(completions: Iterable[Completion]) -> tuple[str, ...]:
    return tuple(completion.id for completion in completions)


def _answers(tasks: Mapping[int, QueuedTask], store: str, simulated: bool) -> tuple[dict[int, list[float]], int, int]:
    """The outcomes of each pair, how many people gave them, and how many of the answers are simulated annotators'."""
    number_of = {task.id: number for number, task in tasks.items()}
    outcomes: dict[int, list[float]] = {}
    by: Counter[bool] = Counter()
    people: set[int] = set()
    with Store.open(store) as facts:
        desk = Desk(facts, LabelConfig())
        played = {person.id for person in desk.directory.people() if person.simulated}
        for one in desk.reading.submissions():
            is_simulated, left_out = one.person_id in played, one.undone or one.adjudication or one.gold
            if one.task_id in number_of and not left_out and (simulated or not is_simulated):
                rank_of = dict(zip(one.order, one.answer.ranks or (), strict=True))
                champion, candidate = rank_of[0], rank_of[1]  # as the task lists them, however they were shown
                outcome = 0.5 if champion == candidate else float(candidate < champion)
                outcomes.setdefault(number_of[one.task_id], []).append(outcome)
                by[is_simulated] += 1
                people |= set() if is_simulated else {one.person_id}
    return outcomes, len(people), by[True]
