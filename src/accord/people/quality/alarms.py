"""What a manager should look at: symptoms with their likely causes, found in the rows of the quality report.

A check is a row of `CHECKS`. It speaks only where the interval, not just the estimate, is beyond its bound: twenty
people with six habits each are looked at, and an alarm is an accusation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from accord.people.quality.figures import AgreementRow, Alarm, PersonRow
from accord.stats import Estimate, Interval

# Tasks, not pairs: of a ranking of five, ten orders stand or fall together. On fewer nobody is accused.
FEWEST_TASKS = 8
FASTEST_WORDS_PER_S = (
    15.0  # silent reading takes about 4 words a second (Brysbaert 2019); skimming twice to thrice that
)
BIAS, LONG = 0.6, 0.75  # share of wins by place, by length; length goes along with much that people like
SURE_Z = 3.3  # standard errors from one half: one honest person in a thousand
# Above what the others do on the same items: texts that are alike are tied by everybody, and rightly so.
TIE_EXCESS, LENGTH_EXCESS = 0.3, 0.25
SAME = 0.9  # share of one value
LEAST_OF_TEAM = 0.6  # of the team's median kappa
# On a short record the interval is too wide for that: a fraction of the team's kappa, if one typical person in a
# hundred or fewer would come out so low (one-sided; the upper half of a 95 % interval stretched to 99 %).
LITTLE_OF_TEAM, STRETCH = 0.3, 2.326 / 1.960
TASKS_FOR_LITTLE = 12  # on 8 to 10 tasks it accused 7 of 2,160 honest people
# By the upper end of the interval: the guidelines are blamed only where chance cannot be.
POOR_ALPHA = 0.2

Found = tuple[str, str]  # (symptom, likely cause)


class Team(NamedTuple):
    """The medians over the people: what is usual here."""

    kappa: float
    one_answer: float


AlarmCheck = Callable[[PersonRow, Team], Found | None]


def alarms(people: Sequence[PersonRow], agreement: Iterable[AgreementRow]) -> tuple[Alarm, ...]:
    """Return alarms about the team, then about each person; a habit that explains another silences it."""
    team = Team(_typical(row.kappa for row in people), _typical(row.one_answer for row in people))
    return (*_team_alarms(agreement), *(alarm for row in people for alarm in _of_person(row, team)))


def _typical(estimates: Iterable[Estimate]) -> float:
    values = [estimate.value for estimate in estimates if isinstance(estimate, Interval)]
    return median(values) if values else 0.0


def _of_person(row: PersonRow, team: Team) -> Iterator[Alarm]:
    found = {name: symptom for name, check in CHECKS.items() if (symptom := check(row, team))}
    for name, explained in EXPLAINS.items():
        if name in found:
            found = {other: symptom for other, symptom in found.items() if other not in explained}
    yield from (Alarm(name, row.name, *symptom) for name, symptom in found.items())


def _team_alarms(agreement: Iterable[AgreementRow]) -> Iterator[Alarm]:
    for row in agreement:
        if isinstance(row.alpha, Interval) and row.alpha.clusters >= FEWEST_TASKS and row.alpha.high < POOR_ALPHA:
            yield Alarm(
                "poor agreement",
                "",
                f"{row.measure}: alpha {row.alpha}",
                "the guidelines leave the question open, or the completions do not differ in what is asked",
            )


def _known(estimate: Estimate) -> Interval | None:
    """Return the interval where there are enough tasks to accuse anybody."""
    return estimate if isinstance(estimate, Interval) and estimate.clusters >= FEWEST_TASKS else None


def _position(row: PersonRow, team: Team) -> Found | None:
    share = _known(row.first_shown)
    sure = abs(share.value - 0.5) * 2 * share.clusters**0.5 > SURE_Z if share else False
    if share and sure and share.value > BIAS:
        return f"the completion shown first wins in {_percent(share)}", "takes the first, or reads only that one"
    if share and sure and share.value < 1 - BIAS:
        return f"the completion shown last wins in {_percent(1 - share.value)}", "takes the last one read"
    return None


def _length(row: PersonRow, team: Team) -> Found | None:
    more, share = _known(row.longer_excess), _known(row.longer)
    for what, sign in (("longer", 1.0), ("shorter", -1.0)):
        seen = share.value if share and sign > 0 else 1 - share.value if share else 0.0
        if more and seen > LONG and sign * more.value > LENGTH_EXCESS and not more.low <= 0 <= more.high:
            symptom = f"the {what} wins in {_percent(seen)}, {abs(more.value):.0%} more often than with others"
            return symptom, f"takes the {what} one without weighing what it says"
    return None


def _ties(row: PersonRow, team: Team) -> Found | None:
    more, share = _known(row.tied_excess), _known(row.tied)
    if more and share and more.value > TIE_EXCESS and more.low > 0 and share.low > 0.5:
        return f"{_percent(share)} of pairs are tied", "does not decide: avoids the work, or does not see a difference"
    return None


def _flipped(row: PersonRow, team: Team) -> Found | None:
    kappa, scale = _known(row.kappa), _known(row.scale)
    cause = "reads the scale the wrong way round (1 = best)"
    # Kappa by what the others said of the same; the scale also reaches whoever shares few items with them.
    if kappa and kappa.high < 0 and kappa.value < -0.1:
        return f"answers against everybody else: kappa {kappa}", cause
    if scale and scale.high < -0.25 and scale.value < -0.5:
        return f"orders against everybody else: scale {scale}, where 1 is typical", cause
    return None


def _random(row: PersonRow, team: Team) -> Found | None:
    kappa = _known(row.kappa)
    if not kappa or team.kappa <= 0:
        return None
    # Stretched from 97.5 to 99 % one-sided: see the constants.
    highest = kappa.value + STRETCH * (kappa.high - kappa.value)
    many = kappa.clusters >= TASKS_FOR_LITTLE
    little = many and kappa.value < LITTLE_OF_TEAM * team.kappa and highest < team.kappa
    if little or kappa.high < LEAST_OF_TEAM * team.kappa:
        symptom = f"agrees with the others little beyond chance: kappa {kappa}, the team's median is {team.kappa:.2f}"
        # Two who judge the same tasks with nobody else look alike: no rule can tell the honest one from the other.
        also = f"; or {row.partner} does: nobody else judged most of these tasks" if row.partner else ""
        return symptom, "clicks at random, or understood the guidelines differently" + also
    return None


def _too_fast(row: PersonRow, team: Team) -> Found | None:
    pace = _known(row.words_per_s)
    if pace and pace.low > FASTEST_WORDS_PER_S:
        return f"{pace.value:.0f} words shown per second of answer", "answers without reading"
    return None


def _same(row: PersonRow, team: Team) -> Found | None:
    share = _known(row.one_answer)
    if share and share.low > SAME > team.one_answer:
        return f"one and the same value in {_percent(share)} of labels or ratings", "does not use the scale"
    return None


def _misses_gold(row: PersonRow, team: Team) -> Found | None:
    if isinstance(row.gold, Interval) and row.gold.clusters >= 5 and row.gold.high < 0.6:
        return f"gold questions: {_percent(row.gold)} right", "understood the guidelines differently, or does not read"
    return None


def _unsteady(row: PersonRow, team: Team) -> Found | None:
    if isinstance(row.repeats, Interval) and row.repeats.clusters >= 5 and row.repeats.high < 0.6:
        return f"repeats its own answer in {_percent(row.repeats)} of repeats", "does not decide by what is shown"
    return None


def _percent(share: Interval | float) -> str:
    if isinstance(share, Interval):
        return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
    return f"{share:.0%}"


#: Habits that explain others: of who orders upside down, it is no news that the shorter one wins.
EXPLAINS: Mapping[str, frozenset[str]] = {
    "position-biased": frozenset({"random"}),
    "length-biased": frozenset({"random"}),
    "always-tie": frozenset({"random"}),
    "flipped": frozenset({"random", "length-biased"}),
    "one answer": frozenset({"random"}),
}

CHECKS: Mapping[str, AlarmCheck] = {
    "position-biased": _position,
    "length-biased": _length,
    "always-tie": _ties,
    "flipped": _flipped,
    "random": _random,
    "too fast": _too_fast,
    "one answer": _same,
    "misses gold": _misses_gold,
    "unsteady": _unsteady,
}
