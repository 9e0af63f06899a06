"""The one prompt that a report begins with, its answer before and after: chosen by a rule, never by taste. Torch-free.

The rule is the median: of all held-out prompts the one whose judged difference stands in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accord.report.matchup import FIRST_POLICY
from accord.report.names import policy_title, title_of
from accord.report.run_folder import Absent, RunFolder, score_key
from accord.report.turns import folded, shown_turns

MOST_ASKED, MOST_ANSWERED = 220, 330  # characters before a text is folded: both answers fit on a laptop's screen
BY_PAIRS = ("people", "simulated")  # kinds of judges whose answers lie in one folder, `judged_people`


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt (text or messages) with an answer of each side. ``change``: how much the judge likes the later more.

    ``evidence`` tells that in numbers.
    """

    prompt: Any
    before: str
    after: str
    change: float
    evidence: str


@dataclass(frozen=True)
class JudgedBy:
    """The judge of a run's first screen: its name, its kind, and how a sentence begins in which it prefers one."""

    name: str
    kind: str
    prefers: str


def one_prompt(run: RunFolder, policies: tuple[str, str], judge: JudgedBy) -> dict[str, Any]:
    """The median prompt as the page shows it, with the judge's verdict and the rule that chose it.

    Args:
        policies: names of the two sides in ``eval/results.json``, the earlier first.

    Raises:
        Absent: no answers of both sides were kept.
    """
    pairs = run.pairs.get("people" if judge.kind in BY_PAIRS else judge.name, [])
    judge = judge if pairs else scoring_judge(run, judge)
    judged = judged_in_pairs(pairs) if pairs else judged_by_scores(run, policies, judge.name)
    if not judged:
        raise Absent("no judged answers of both models were kept")
    place = median_place([one.change for one in judged])
    shown = judged[place.index]
    turns = shown_turns(shown.prompt, MOST_ASKED)
    order = "what was said of their pairs" if pairs else "how much the judge’s score of the first answer changes"
    return {
        "turns": turns,
        "prompt": None if turns else folded(str(shown.prompt), MOST_ASKED),
        "before": folded(shown.before, MOST_ANSWERED),
        "after": folded(shown.after, MOST_ANSWERED),
        "titles": [_title(run, name) for name in policies],
        "says": _says(shown, judge),
        "rule": f"Chosen by a rule, not by hand: {place.of:,} held-out prompts in the order of {order}, from the worst "
        f"to the best for the later model; this is number {place.number:,}, the one in the middle.",
    }


def _title(run: RunFolder, name: str) -> str:
    """Return how a policy is called above its answer."""
    if name == FIRST_POLICY:
        return "where round 1 began"
    rows = run.get("eval/results.json")["policies"]
    return next(policy_title(row) for row in rows if row["name"] == name)


def _says(shown: JudgedPrompt, judge: JudgedBy) -> str:
    """Return what the judge says of this prompt."""
    evidence = f" ({shown.evidence})" if shown.evidence else ""
    if shown.change == 0:
        return f"On this prompt it is a tie{evidence}."
    return f"On this prompt {judge.prefers} the answer {'after' if shown.change > 0 else 'before'}{evidence}."


# ---- the rule ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The place of one among many: its index as they were given, and its number in their order, from 1."""

    index: int
    number: int
    of: int


def median_place(changes: Sequence[float]) -> Place:
    """Return the median of changes; of two in the middle the lower, of equal ones by where they stand."""
    order = sorted(range(len(changes)), key=lambda index: (changes[index], index))
    middle = (len(changes) - 1) // 2  # the lower of two: the less flattering one
    return Place(order[middle], middle + 1, len(changes))


# ---- what was judged -----------------------------------------------------------------------------------------------


def judged_in_pairs(rows: Sequence[Mapping[str, Any]]) -> list[JudgedPrompt]:
    """Return the pairs that people or a chat model compared and had a word on, in the order of the file."""
    return [_in_pairs(row) for row in rows if row["candidate_wins"] or row["alike"]]


def _in_pairs(row: Mapping[str, Any]) -> JudgedPrompt:
    wins = row["candidate_wins"] or [0.5]
    told = f"{wins.count(1.0)} for it, {wins.count(0.0)} against, {wins.count(0.5)} undecided"
    evidence = "the two are alike" if row["alike"] else f"of {len(wins)} answers: {told}" if len(wins) > 1 else ""
    change = sum(wins) / len(wins) - 0.5
    return JudgedPrompt(row["prompt"], row["champion"], row["candidate"], change, evidence)


def scoring_judge(run: RunFolder, judge: JudgedBy) -> JudgedBy:
    """Return the judge where it has scored single answers; else the first of the run, which always has."""
    if any(_score_key(run, judge.name) in row for row in run.samples):
        return judge
    first = _first_judge(run)
    return JudgedBy(first, "", f"{title_of(first)}, a judge that scores single answers, prefers")


def _first_judge(run: RunFolder) -> str:
    return str(next(iter(run.get("eval/results.json").get("judges", ())), ""))


def _score_key(run: RunFolder, judge: str) -> str:
    """Return under which key rows of samples hold a judge's score."""
    return score_key(judge, run.get("eval/results.json").get("judges", ()))


def judged_by_scores(run: RunFolder, policies: tuple[str, str], judge: str) -> list[JudgedPrompt]:
    """Return the first answers of both sides to each prompt that a judge has scored, in the order of the file."""
    first, key = [first_answers(run, name) for name in policies], _score_key(run, judge)
    both = [(first[0][prompt], first[1][prompt]) for prompt in first[0] if prompt in first[1]]
    return [_by_scores(*rows, key) for rows in both if all(isinstance(row.get(key), int | float) for row in rows)]


def first_answers(run: RunFolder, policy: str) -> dict[str, Mapping[str, Any]]:
    """Return the row of a policy's first sample of each prompt."""
    rows = sorted((row for row in run.samples if row["policy"] == policy), key=lambda row: int(row["sample"]))
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        found.setdefault(row["prompt"], row)
    return found


def _by_scores(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> JudgedPrompt:
    change = after[key] - before[key]
    evidence = f"its score: {before[key]:+.2f} before, {after[key]:+.2f} after"
    return JudgedPrompt(before["prompt"], before["completion"], after["completion"], change, evidence)
