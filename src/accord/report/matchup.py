"""What a run's first screen is about: two policies, and the judge that decides between them. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accord.report.figures import ResultRow
from accord.report.names import policy_title, style_of
from accord.report.parts import candidate_row, judged_of, row_of
from accord.report.run_folder import RunFolder, read_run, score_key

FIRST_POLICY = "first"  # in results of later rounds: where round 1 started
PREFERS = "the judge prefers"  # of results that do not say what their judges are
OWN = "the reward model that it was trained to please prefers"
ENOUGH_SCORES = 8  # fewer different scores than these may lie in one order by chance


@dataclass(frozen=True)
class Matchup:
    """What the first screen is about: two policies, and the judge that decides between them.

    Attributes:
        run: the folder in which they were measured; that of a later round where its policy stands.
        policies: their names in its results, the earlier first.
        words: how sentences call them, the earlier first.
        judge: the row of the judge that decides: name, kind, how it prefers, how many prompts it needs.
        win: the win rate of the later one by that judge, with its interval.
        when: what stands before the first sentence.
        standing: what became of the rounds, in sentences.
        start: the folder in which best of n of the earlier one was drawn, where that is not ``run``.
    """

    run: RunFolder
    policies: tuple[str, str]
    words: tuple[str, str]
    judge: ResultRow
    win: ResultRow
    when: str = ""
    standing: tuple[str, ...] = ()
    start: RunFolder | None = None

    @property
    def results(self) -> ResultRow:
        found: ResultRow = self.run.need("eval/results.json")
        return found

    @property
    def row(self) -> ResultRow:
        """The measures of the later policy."""
        return row_of(self.results, self.policies[1])

    @property
    def since_first(self) -> bool:
        """Whether it is against where round 1 started, and not against the policy that its own round started from."""
        return self.policies[0] == FIRST_POLICY

    @property
    def reference(self) -> str:
        """How sentences call the policy that floors and KL of these results are measured from."""
        return "the model its round began with" if self.since_first else self.words[0]

    @property
    def drawn(self) -> ResultRow:
        """The results that hold best of n of the earlier policy."""
        found: ResultRow = (self.start or self.run).need("eval/results.json")
        return found

    @property
    def best_of_n(self) -> ResultRow | None:
        """The measures of best of n of the earlier policy, where it was drawn."""
        return next((row for row in self.drawn["policies"] if style_of(row) == "best_of_n"), None)

    @property
    def says(self) -> str:
        """What the interval allows to say: better, worse, open (it holds one half) or none (there is no interval)."""
        low, high = self.win["low"], self.win["high"]
        if low is None or high is None:
            return "none"
        return "better" if low > 0.5 else "worse" if high < 0.5 else "open"

    @cached_property
    def is_own(self) -> bool:
        """Whether the judge is the reward model that was optimised: it puts all texts in the same order."""
        return same_order(self.run, str(self.judge["judge"]))

    @property
    def prefers(self) -> str:
        return OWN if self.is_own else str(self.judge["prefers"])


def matchup_of(run: RunFolder) -> Matchup:
    """Return what the first screen of a run is about: of several rounds the policy that stands, against the first."""
    rounds = run.get("summary.json").get("rounds")
    return _of_rounds(run, rounds) if rounds else own_matchup(run)


def own_matchup(run: RunFolder) -> Matchup:
    """Return the candidate of a folder against the policy that it started from, whatever rounds there are besides."""
    results = run.need("eval/results.json")
    row = candidate_row(results)
    judge = _deciding(run, row)
    return Matchup(run, (results["reference"], row["name"]), _words(run, row), judge, judge["win_rate"])


def _deciding(run: RunFolder, row: ResultRow) -> ResultRow:
    """Return the judge that decides; of results that do not say which, the first."""
    first = next(iter(run.get("eval/results.json")["judges"]), "")
    unsaid = {"judge": first, "kind": "", "prefers": PREFERS, "win_rate": row["win_rate"]}
    return next((one for one in judged_of(run) if one["decides"]), unsaid)


def _words(run: RunFolder, row: ResultRow) -> tuple[str, str]:
    """Return how sentences call the two policies: by what they are where a run made them, else by their names."""
    if not run.get("resolved.json") or row["best_of"] > 1:
        return run.names.reference, policy_title(row)
    return f"the model {'this round' if run.number > 1 else 'it'} began with", "the trained model"


def _of_rounds(run: RunFolder, rounds: Sequence[ResultRow]) -> Matchup:
    """Return the policy promoted last against where round 1 started; where none was, what the last round made."""
    found = [one for one in rounds if folder_of_round(run, one).is_dir()]
    shown = next((one for one in reversed(found) if one["promoted"]), found[-1])
    match = own_matchup(run if folder_of_round(run, shown) == run.path else read_run(folder_of_round(run, shown)))
    if match.row.get("first"):
        match = replace(_against_first(match, shown), start=run)
    done = f"after {len(rounds)} round{'s' if len(rounds) > 1 else ''} "
    words = ("the model that round 1 began with", match.words[1])
    return replace(match, words=words, when=done, standing=_standing(rounds, shown))


def folder_of_round(run: RunFolder, row: ResultRow) -> Path:
    """Return where a round of a run lies, by its row in the summary."""
    return (run.path / str(row["report"])).parent


def _against_first(match: Matchup, row: ResultRow) -> Matchup:
    """Return a later round's match as it stands against where round 1 started."""
    judge = next((one for one in judged_of(match.run) if one["judge"] == row["first"]["judge"]), match.judge)
    return replace(match, policies=(FIRST_POLICY, match.policies[1]), judge=judge, win=row["first"]["win_rate"])


def _standing(rounds: Sequence[ResultRow], shown: ResultRow) -> tuple[str, ...]:
    """Return what stands after the rounds where that is not what the last one made."""
    if not shown["promoted"]:
        return (
            f"No round’s model was promoted: what round 1 began with still stands. This is round {shown['round']}’s.",
        )
    if shown is not rounds[-1]:
        return (f"This is the model of round {shown['round']}: what was made after it was not promoted.",)
    return ()


# ---- is the judge what was optimised? --------------------------------------------------------------------------------


def same_order(run: RunFolder, judge: str) -> bool:
    """Return whether a judge puts all texts in the order of the score that was optimised: then it is that score.

    Where nothing says what was optimised, the judge's own score stands in its place: that says nothing.
    """
    results = run.get("eval/results.json")
    if not any(style_of(row) == "best_of_n" for row in results["policies"]):
        return False
    key = score_key(judge, results["judges"])
    scores = sorted({(row[key], row["proxy"]) for row in run.samples if _is_number(row.get(key), row.get("proxy"))})
    if len({judged for judged, _ in scores}) < ENOUGH_SCORES:
        return False
    proxies = [proxy for _, proxy in scores]
    return len(set(proxies)) == len(scores) and proxies == sorted(proxies)


def _is_number(*found: Any) -> bool:
    return all(isinstance(value, int | float) for value in found)
