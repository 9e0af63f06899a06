"""What many policies and judges say together, out of the samples that an evaluation has scored. Torch-free.

All policies on one scale by each judge, how far judges agree, how many topics would show a difference of five points,
and how often a policy refuses.

Shapes: P prompts, K samples a prompt, N policies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from accord.errors import DataError
from accord.evals.judged_pairs import compared_in
from accord.evals.results import plain
from accord.files import read_rows, write_json
from accord.report.run_folder import BESIDE, score_key
from accord.stats import (
    FloatArray,
    Interval,
    Ranked,
    bootstrap_by_cluster,
    clusters_needed,
    prompt_wins,
    ranked_policies,
    share_by_cluster,
)

SEEN = 0.05  # the difference that advice is about
# How answers begin that refuse, in words of models of many makers. It counts words, not what is refused.
REFUSAL = re.compile(
    r"\b(i('m| am) (sorry|unable|not able)|i (can('|no)?t|cannot|won('|)t|will not|must decline)|i apologi[sz]e"
    r"|as an ai|not (appropriate|comfortable)|against my)\b",
    re.IGNORECASE,
)
_LOOKED_AT = 200  # characters: a refusal stands at the beginning

SampleRows = Sequence[Mapping[str, Any]]
JudgedRows = Mapping[str, SampleRows]  # candidate -> the pairs that a judge compared, as `judged_pairs` writes them
PairKey = tuple[str, str, str, str]  # candidate, the prompt as it was read, its completion and the reference's


@dataclass(frozen=True)
class JudgesAgree:
    """How often two judges prefer the same of a policy's and the reference's samples; one tie counts half."""

    judges: tuple[str, str]
    alike: Interval


@dataclass(frozen=True)
class Standings:
    """What all policies and judges say together.

    Attributes:
        rankings: Of each judge, all policies, the strongest first.
        agreement: Of every two judges.
        needed: Of each policy, how many topics like these show a win rate of 55 % by the first judge; None where
            nothing varies.
        have: How many topics there are.
        refusals: Of each policy, the share of completions that begin with a refusal.
    """

    rankings: Mapping[str, tuple[Ranked, ...]]
    agreement: tuple[JudgesAgree, ...]
    needed: Mapping[str, int | None]
    have: int
    refusals: Mapping[str, Interval]


def standings_of(
    rows: SampleRows, judges: Sequence[str], compared: Mapping[str, JudgedRows] | None = None, *, seed: int = 0
) -> Standings:
    """Return the standings out of ``samples.jsonl``; the first policy there is the reference.

    Args:
        rows: every completion with its scores, as an evaluation writes them.
        judges: their names, the leading one first, whose score has no name in the rows.
        compared: what judges that score nothing (people, chat models) said of pairs with the reference, by their names.
    """
    names = tuple(dict.fromkeys(row["policy"] for row in rows))
    if len(names) < 2:
        raise DataError("there is one policy: it has no place among others")
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    topic_of = {row["prompt"]: row["topic"] for row in rows}
    topics = [topic_of[prompt] for prompt in prompts]
    keys = {name: score_key(name, judges) for name in judges}
    scores = {name: _scores(rows, names, prompts, key) for name, key in keys.items()}
    wins = {name: prompt_wins(of) for name, of in scores.items()}
    leading, pairs = wins[judges[0]], _pairs_of(compared or {})
    scorers = {name: _scored_pairs(rows, key, names[0], pairs) for name, key in keys.items()} if pairs else {}
    rankings = {name: ranked_policies(names, win_PNN, topics, seed=seed) for name, win_PNN in wins.items()}
    rankings |= {name: ranked for name, of in pairs.items() if (ranked := _ranked_by_pairs(of, names, seed))}
    alike = [
        JudgesAgree((a, b), judges_alike(scores[a], scores[b], topics, seed=seed)) for a, b in combinations(judges, 2)
    ]
    told = {**scorers, **pairs}
    apart = [(a, b) for a, b in combinations(told, 2) if a in pairs or b in pairs]
    alike += [one for a, b in apart if (one := _alike_on_pairs((a, b), told[a], told[b], seed))]
    return Standings(
        rankings=rankings,
        agreement=tuple(alike),
        needed={name: clusters_needed(leading[:, i, 0], topics, difference=SEEN) for i, name in enumerate(names) if i},
        have=len(set(topics)),
        refusals={name: refusal_share([row for row in rows if row["policy"] == name], seed=seed) for name in names},
    )


def write_standings(
    folder: Path,
    results: Mapping[str, Any],
    behaviour: Mapping[str, Any] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write what stands beside the win rates of an evaluation in ``folder``, out of its samples and judged pairs."""
    rows = read_rows(folder / "eval/samples.jsonl")
    standings = standings_of(rows, list(results["judges"]), compared_in(folder, results), seed=results["seed"])
    beside = {"standings": standings, "behaviour": behaviour or {}, "left_out": left_out or {}}
    write_json(folder / "eval" / BESIDE, plain(beside))


def refusal_share(rows: SampleRows, *, seed: int = 0) -> Interval:
    """Return the share of completions that begin with a refusal; interval by topic."""
    return share_by_cluster(
        [float(refuses(row["completion"])) for row in rows], [row["topic"] for row in rows], seed=seed
    )


def refuses(completion: str) -> bool:
    """Return whether a completion begins with words of refusal; what it refuses, nobody has looked at."""
    return REFUSAL.search(completion[:_LOOKED_AT].replace("\u2019", "'")) is not None


def _scores(rows: SampleRows, names: Sequence[str], prompts: Sequence[str], key: str) -> list[list[FloatArray]]:
    """Return the scores of each policy's samples, by policy and prompt; best-of-n may have fewer a prompt."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    found: dict[str, list[list[float]]] = {name: [[] for _ in prompts] for name in names}
    for row in rows:
        found[row["policy"]][place[row["prompt"]]].append(float(row[key]))
    return [[np.array(one) for one in found[name]] for name in names]


def judges_alike(
    first: Sequence[Sequence[FloatArray]],
    second: Sequence[Sequence[FloatArray]],
    topics: Sequence[str],
    *,
    seed: int = 0,
) -> Interval:
    """Return how often two judges order a sample of a policy and one of the reference alike; interval by topic."""
    alike = [
        float(np.mean([(1 + _lead(first, i, p) * _lead(second, i, p)) / 2 for i in range(1, len(first))]))
        for p in range(len(topics))
    ]
    return bootstrap_by_cluster(alike, topics, seed=seed)


def _lead(scores: Sequence[Sequence[FloatArray]], policy: int, prompt: int) -> FloatArray:
    return np.asarray(np.sign(scores[policy][prompt][:, None] - scores[0][prompt]))


# ---- judges that compare pairs -------------------------------------------------------------------------------------


def _pairs_of(compared: Mapping[str, JudgedRows]) -> dict[str, dict[PairKey, tuple[str, float]]]:
    """Return what each judge said of each pair: its topic, and 1 where the candidate is better, -1, or between.

    Pairs of alike texts, which tie for everybody, and those that nobody judged are left out.
    """
    return {
        judge: {
            (name, row["read"], row["candidate"], row["champion"]): (row["topic"], 2 * fmean(row["candidate_wins"]) - 1)
            for name, rows in of.items()
            for row in rows
            if row["candidate_wins"] and not row["alike"] and "read" in row
        }
        for judge, of in compared.items()
    }


def _scored_pairs(
    rows: SampleRows, key: str, reference: str, pairs: Mapping[str, Mapping[PairKey, tuple[str, float]]]
) -> dict[PairKey, tuple[str, float]]:
    """Return the sign of a scoring judge's lead on every pair that somebody compared."""
    score = {(row["policy"], row["prompt"], row["completion"]): float(row[key]) for row in rows}
    found = {}
    for of in pairs.values():
        for pair, (topic, _) in of.items():
            name, read, candidate, champion = pair
            ours, theirs = score.get((name, read, candidate)), score.get((reference, read, champion))
            if ours is not None and theirs is not None:
                found[pair] = (topic, float(np.sign(ours - theirs)))
    return found


def _ranked_by_pairs(
    said: Mapping[PairKey, tuple[str, float]], names: Sequence[str], seed: int
) -> tuple[Ranked, ...] | None:
    """Return the policies that a judge compared with the reference, and the reference, on one scale."""
    shown = tuple(name for i, name in enumerate(names) if i == 0 or any(pair[0] == name for pair in said))
    prompts = {read: i for i, read in enumerate(dict.fromkeys(pair[1] for pair in said))}
    if len(shown) < 2:
        return None
    win_PNN = np.zeros((len(prompts), len(shown), len(shown)))
    topics = [""] * len(prompts)
    for (name, read, _, _), (topic, lead) in said.items():
        p, i = prompts[read], shown.index(name)
        win_PNN[p, i, 0], win_PNN[p, 0, i], topics[p] = (1 + lead) / 2, (1 - lead) / 2, topic or read
    return ranked_policies(shown, win_PNN, topics, seed=seed)


def _alike_on_pairs(
    judges: tuple[str, str],
    first: Mapping[PairKey, tuple[str, float]],
    second: Mapping[PairKey, tuple[str, float]],
    seed: int,
) -> JudgesAgree | None:
    """Return how often two judges prefer the same of a pair that both have judged, one tie counting half."""
    both = [pair for pair in first if pair in second]
    if not both:
        return None
    alike = [(1 + float(np.sign(first[pair][1]) * np.sign(second[pair][1]))) / 2 for pair in both]
    return JudgesAgree(judges, share_by_cluster(alike, [first[pair][0] or pair[1] for pair in both], seed=seed))
