"""The first screen of a run's report: is it better, who says so, how surely, and what else matters. Torch-free.

Words come before jargon: what is measured stands in plain sentences, its term in brackets behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from accord.files import read_json
from accord.report.figures import ResultRow
from accord.report.matchup import Matchup, folder_of_round, matchup_of, own_matchup
from accord.report.names import policy_title, title_of
from accord.report.one_prompt import JudgedBy, one_prompt
from accord.report.parts import floors_of, gate_rows, number, percent, reason_of, row_of
from accord.report.run_folder import GATE, RunFolder
from accord.report.svg import Dot, dots
from accord.stats import WORTH_SEEING, pairs_needed

ALIKE = 0.05  # nats per token: a token is then 5 % less likely, which nobody sees
SMALLEST = 0.01  # a difference from one half below which it takes ten thousands of prompts, and nobody counts them
NARROW = 400  # of the picture beside the sentence: its letters stay readable on a phone

#: The first sentence, by what the interval allows to say.
SENTENCES = {
    "better": "{when}{after} is better: {prefers} its answer to that of {before} in {share} of comparisons on "
    "{prompts} (95% interval {range}).",
    "worse": "{when}{after} is worse: {prefers} its answer to that of {before} in only {share} of comparisons on "
    "{prompts} (95% interval {range}).",
    "open": "{when}{after} is not shown to be better: {prefers} its answer to that of {before} in {share} of "
    "comparisons on {prompts} (95% interval {range}).",
    "none": "{when}{after} is not shown to be better: {prefers} its answer to that of {before} in {share} of "
    "comparisons on {prompts}, too few topics for an interval.",
}


def headline(run: RunFolder) -> dict[str, Any]:
    """The first sentence of a page and what must be known beside it; of several rounds about the policy that stands."""
    return _headline(matchup_of(run))


def card_headline(run: RunFolder) -> dict[str, Any]:
    """The same of what the folder itself has trained, which is what its model card is about."""
    return _headline(own_matchup(run))


def _headline(match: Matchup) -> dict[str, Any]:
    """Return the sentence, notes, and what does not hold. ``tone``: good, mixed or bad."""
    floors = floors_of(match.run)
    broken = [floor for floor in floors if not floor["held"]]
    alarms = [
        *_overruled(match.run),
        *_gamed(match),
        *(_alarm(match, floor) for floor in broken if floor["name"] in GUARDS),
    ]
    if not match.results["selections"].get(match.policies[1], {"held": True})["held"]:
        alarms.append(f"No snapshot held every floor: {reason_of(match.results)}.")
    good = match.says == "better" and not broken and not match.is_own
    return {
        "tone": "bad" if alarms or match.says == "worse" else "good" if good else "mixed",
        "sentence": sentence_of(match),
        "notes": [*match.standing, *_needed(match), *_doubts(match), *_since_first(match), *_for_free(match)],
        "held": _held(len(floors), len(broken)),
        "held_tone": "bad" if broken else "good",
        "picture": _picture(match),
        "warning": "Do not trust this gain as it stands." if match.says == "better" else "What went wrong besides:",
        "alarms": alarms,
    }


def _overruled(run: RunFolder) -> list[str]:
    """Return what the recipe went on in spite of, if the gate of the reward model had refused."""
    refused = [one["reason"] for one in gate_rows(run.get(GATE)) if one["says"].startswith("refuse (")]
    return [f"The reward model was refused, and the recipe overruled that: {'; '.join(refused)}."] if refused else []


def example(run: RunFolder) -> dict[str, Any]:
    """One prompt with its answer before and after, and where the other texts stand."""
    match = matchup_of(run)
    judge = JudgedBy(str(match.judge["judge"]), str(match.judge["kind"]), match.prefers)
    page = "" if match.run is run else (match.run.path / "report.html").relative_to(run.path).as_posix()
    return {**one_prompt(match.run, match.policies, judge), "more": f"{page}#samples"}


def guards(run: RunFolder) -> dict[str, Any]:
    """What it cost, and what was guarded: each in plain words with its term."""
    match = matchup_of(run)
    floors = {floor["name"]: floor for floor in floors_of(match.run)}
    return {
        "cost": _cost(run, match),
        "guarded": [
            {"term": name, "held": floor["held"], **_guarded(match, floor)}
            for name, floor in floors.items()
            if name in GUARDS
        ],
        "moved": _moved(match),
    }


def _alarm(match: Matchup, floor: ResultRow) -> str:
    found = _guarded(match, floor)
    return f"{found['told']} ({found['name']} {found['bound']}): {GUARDS[floor['name']].means}."


def sentence_of(match: Matchup) -> str:
    """Return the first sentence: better or not, by whose judgement, how surely."""
    win, (before, after) = match.win, match.words
    told = SENTENCES[match.says].format(
        when=match.when,
        after=after,
        before=before,
        prefers=match.prefers,
        share=percent(win["value"]),
        prompts=_prompts(match),
        range="" if win["low"] is None else _range(win),
    )
    return capital(told)


def capital(text: str) -> str:
    """Return a sentence with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def _range(win: ResultRow) -> str:
    return f"{percent(win['low'])} to {percent(win['high'])}"


def _prompts(match: Matchup) -> str:
    """Return how many prompts, and of how many topics where several share one: the interval is by topic."""
    prompts = match.win.get("n") or match.results["num_test_prompts"]
    topics = match.win.get("clusters") or prompts
    return f"{prompts:,} held-out prompts" + (f" of {topics:,} topics" if topics < prompts else "")


def _held(total: int, broken: int) -> str:
    return f"{broken} of {total} floors are not held." if broken else f"All {total} floors are held."


# ---- what must be known beside it ----------------------------------------------------------------------------------


def _needed(match: Matchup) -> list[str]:
    """Return how many more prompts would be needed where nothing was shown."""
    if match.says in ("better", "worse"):
        return []
    have, share = match.win.get("clusters") or match.results["num_test_prompts"], percent(WORTH_SEEING)
    missing = (match.judge.get("needed") or pairs_needed(WORTH_SEEING)) - have
    if missing > 0:
        why = "there is no interval" if match.says == "none" else "the interval holds one half"
        return [
            f"Nothing was shown, as {why}: {missing:,} more prompts would be needed to show a true share of {share}."
        ]
    enough = f"Nothing was shown, as the interval holds one half. A true share of {share} would have been seen."
    return [" ".join([enough, *_needed_for_what_was_seen(match, have)])]


def _needed_for_what_was_seen(match: Matchup, have: int) -> list[str]:
    """Return how many more prompts would show the share that was seen, if that is the true one and they can be had."""
    value, ties = match.win["value"], match.judge.get("ties") or 0.0
    if abs(value - 0.5) < SMALLEST or ties > 2 * min(value, 1 - value):
        return []
    more = max(1, pairs_needed(value, ties=ties) - have)
    return [f"To show the {percent(value)} seen, if that is the true share, would take about {more:,} more."]


def _doubts(match: Matchup) -> list[str]:
    """Return what weakens the first sentence: a judge that taught, a gain that only the reward model sees."""
    found = []
    if match.is_own:
        found.append("Nothing else has judged it: that shows what training did, and not that the answers are better.")
    if match.says in ("open", "none") and _reward_rose(match):
        found.append(f"The reward model does like its answers more ({_reward(match)}); the judge does not confirm it.")
    return found


def _since_first(match: Matchup) -> list[str]:
    """Return how a later round's policy stands against where round 1 started, on that round's own page."""
    first = match.row.get("first")
    judge = str(match.judge["judge"])
    if not first or match.since_first or judge not in first["win_rates"]:
        return []
    win = first["win_rates"][judge]
    ranged = "" if win["low"] is None else f" ({_range(win)})"
    return [f"Against the model that round 1 began with it wins {percent(win['value'])} of comparisons{ranged}."]


def _for_free(match: Matchup) -> list[str]:
    """Return whether best of n does the same without training, judged by one and the same judge."""
    best = match.best_of_n
    wins = _wins_by_one_judge(match, best) if best and match.row["best_of"] == 1 else None
    if best is None or wins is None or None in (wins[0]["low"], wins[1]["low"]):
        return []
    mine, theirs, by = wins
    n, reached = best["best_of"], f"wins {percent(theirs['value'])} of comparisons ({_range(theirs)}{by})"
    how = f"drawing {n} answers from {match.words[0]} and keeping the one that the reward model likes best {reached}"
    cost = f"at {n} times the cost of each answer"
    if theirs["low"] > mine["high"]:
        return [f"It is beaten without any training: {how}, {cost}."]
    if theirs["high"] >= mine["low"]:
        return [f"It is not shown to beat what comes without training: {how}, {cost}."]
    return [f"It is ahead of what comes without training: {how}, {cost}."]


def _wins_by_one_judge(match: Matchup, best: ResultRow) -> tuple[ResultRow, ResultRow, str] | None:
    """Return the win rates of the policy and of best of n by one judge, named if it is not the one that decides.

    Judges that compare pairs look at no best of n: then the judge that chose among snapshots speaks of both. None where
    no judge has seen both.
    """
    leading, judge = str(next(iter(match.drawn["judges"]), "")), str(match.judge["judge"])
    if judge == leading:
        return match.win, best["win_rate"], ""
    if judge in best["other_judges"]:
        return match.win, best["other_judges"][judge]["win_rate"], ""
    mine = match.row["first"]["win_rates"].get(leading) if match.since_first else match.row["win_rate"]
    if mine is None or mine["low"] is None:
        return None
    told = f"; by the same judge, {title_of(leading)}, {match.words[1]} wins {percent(mine['value'])}, {_range(mine)}"
    return mine, best["win_rate"], told


def _picture(match: Matchup) -> Markup:
    """Return the win rate with its interval beside one half, and that of best of n where the same judge has one."""
    rows, best = [(policy_title(match.row), "candidate", match.win)], match.best_of_n
    wins = _wins_by_one_judge(match, best) if best else None
    if best and wins and not wins[2]:
        rows.append((policy_title(best), "best_of_n", wins[1]))
    shown = [Dot(name, style, *(_hundred(win[end]) for end in ("value", "low", "high"))) for name, style, win in rows]
    title = f"Share of comparisons with {match.words[0]} that are won; one half is dashed"
    return dots(shown, title=title, axis="% of comparisons won", rule=50, span=(0, 100), width=NARROW)


def _hundred(share: float | None) -> Any:
    return None if share is None else 100 * share


# ---- is it being gamed? --------------------------------------------------------------------------------------------


def _gamed(match: Matchup) -> list[str]:
    """Return the plainest sign of it: the reward model likes the answers more, and the judge likes them less."""
    if match.says != "worse" or not _reward_rose(match):
        return []
    return [
        f"The reward model likes its answers more ({_reward(match)}) while the judge likes them less: it has learnt to "
        "please the reward model (reward hacking)."
    ]


def _reward_rose(match: Matchup) -> bool:
    """Whether the score that was optimised has risen by more than its error."""
    before, after = (row_of(match.results, name)["proxy"] for name in match.policies)
    if before["high"] is None or after["low"] is None:
        return bool(after["value"] > before["value"])
    return bool(after["low"] > before["high"])


def _reward(match: Matchup) -> str:
    before, after = (row_of(match.results, name)["proxy"]["value"] for name in match.policies)
    return f"mean score {number(before, 2)} before, {number(after, 2)} after"


# ---- what it cost and what was guarded -----------------------------------------------------------------------------


def _length(match: Matchup, value: float) -> str:
    before = "before its round" if match.since_first else "before"
    if abs(value - 1) < 0.005:
        return f"its answers are as long as {before}"
    return f"its answers are {percent(abs(value - 1))} {'longer' if value > 1 else 'shorter'} than {before}"


def _strange(match: Matchup, value: float) -> str:
    how = "as likely as" if abs(value) < ALIKE else "likelier than" if value < 0 else "less likely than"
    return f"to {match.reference} its answers are {how} its own"


def _distinct(match: Matchup, value: float) -> str:
    return f"{percent(value)} of its answers differ from all others"


def _orders(match: Matchup, value: float) -> str:
    return f"the reward model puts {percent(value)} of held-out pairs in the order that they were judged in"


@dataclass(frozen=True)
class Guard:
    """A floor in plain words: what it found, the term for it, and what it means where it is broken."""

    says: Callable[[Matchup, float], str]
    term: str
    means: str


#: Floors by their names. That it is liked better is one too; the first sentence says it.
GUARDS: Mapping[str, Guard] = {
    "length_ratio": Guard(_length, "length ratio", "what length alone wins is no gain"),
    "nll_excess": Guard(_strange, "NLL above", "text like that pleases a reward model and few others"),
    "distinct_share": Guard(_distinct, "distinct", "it repeats itself"),
    "reward_accuracy": Guard(_orders, "reward accuracy", "a baseline without a network does as well"),
}


def _guarded(match: Matchup, floor: ResultRow) -> dict[str, str]:
    """Return what a floor found in plain words, its term, and its number with its bound."""
    guard = GUARDS[floor["name"]]
    bound = f"{number(floor['value'], 2)}, must be {floor['bound']}"
    return {"told": capital(guard.says(match, floor["value"])), "name": guard.term, "bound": bound}


def _moved(match: Matchup) -> str:
    """Return how far the policy is from the reference of its round."""
    kl = match.row["kl"]
    most = "at most " if match.row["kl_is_bound"] else ""
    return f"It is {most}{number(max(0.0, kl['value']), 1)} nats an answer away from {match.reference}"


def _cost(run: RunFolder, match: Matchup) -> list[str]:
    """Return what it took, as far as the run says it: of several rounds all of them."""
    summary, row = run.get("summary.json"), match.row
    rounds = summary.get("rounds") or [summary.get("asked") or {}]
    others = [folder_of_round(run, one) / "summary.json" for one in rounds[1:]]
    seconds = sum([summary.get("seconds") or 0.0, *(read_json(path)["seconds"] for path in others if path.exists())])
    asked = [_asked_for(one) for one in rounds]
    told = [_time(seconds)] if seconds else []
    told += [f"{text} in round {i}" if others else text for i, text in enumerate(asked, 1) if text]
    return [*told, f"{row['best_of']} answers drawn for every one that is given"] if row["best_of"] > 1 else told


def _asked_for(row: ResultRow) -> str:
    """Return how many judgements a round asked for, and of whom; programs are called so."""
    if "called" in row:
        return f"{row['judgements']:,} judgements by {row['called']}"
    if "answers" not in row:
        return ""
    among = f" ({row['of_them_simulated']:,} of them by programs)" if row.get("of_them_simulated") else ""
    who = "person" if row["people"] == 1 else "people"
    return f"{row['answers']:,} answers by {row['people']:,} {who}{among}"


def _time(seconds: float) -> str:
    """Return a time in words."""
    minutes = seconds / 60
    if minutes >= 90:
        return f"{minutes / 60:.1f} hours of computing"
    return f"{round(minutes)} minutes of computing" if minutes >= 1.5 else "a minute of computing"
