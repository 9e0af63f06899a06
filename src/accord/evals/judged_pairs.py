"""Pairs of completions that a judge compares: which, what is said of them, and a chat model that says it."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.config import ChatConfig
from accord.evals.trust import JudgeSaid, judge_said
from accord.files import read_json, read_rows
from accord.formats import read_items
from accord.formats.jsonl import write_jsonl
from accord.progress import Log, quiet
from accord.scoring.chat_comparer import ChatComparer, Comparison, count_outcomes
from accord.seeds import stream_seed
from accord.stats import share_by_cluster

PAIRS = "pairs.jsonl"  # in the folder of a judge that compares pairs; the report shows one of them


@dataclass(frozen=True)
class JudgedPair:
    """A completion of the champion and one of the candidate for one test prompt, a text or messages.

    ``read`` is the prompt as the policies read it, by which samples are found again.
    """

    prompt: Any
    topic: str
    champion: str
    candidate: str
    read: str = field(default="", compare=False)

    @property
    def alike(self) -> bool:
        """Whether nobody could tell them apart: a tie that needs no answer."""
        return self.champion.split() == self.candidate.split()


def read_pairs(inputs: Mapping[str, Path], count: int, seed: int, candidate: str = "") -> list[JudgedPair]:
    """The pairs of so many test prompts drawn by the seed, in the file's order; of the first candidate, or another.

    Of each policy's samples the first is taken, the next where one of the two is empty: nobody can be shown nothing.
    """
    results, asked = read_json(inputs["results"]), [item.prompt for item in read_items(inputs["test_prompts"])]
    drawn: dict[str, dict[str, list[str]]] = {results["reference"]: {}, candidate or results["candidate"]: {}}
    topics: dict[str, str] = {}
    for line in inputs["samples"].read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        topics[row["prompt"]] = row["topic"]
        if row["policy"] in drawn:
            drawn[row["policy"]].setdefault(row["prompt"], []).append(row["completion"])
    made = []
    # Rows stand in the order of the file of prompts, by which they are found again as they were asked.
    for prompt, said in zip(asked, topics, strict=True):
        both = zip(*(of[said] for of in drawn.values()), strict=True)
        shown = next((pair for pair in both if all(text.strip() for text in pair)), None)
        if shown is not None:
            champion, theirs = shown
            made.append(JudgedPair(prompt, topics[said], champion, theirs, said))
    chosen = random.Random(stream_seed(seed, "judged pairs")).sample(range(len(made)), min(count, len(made)))
    return [made[i] for i in sorted(chosen)]


def pair_verdict(
    judge: tuple[str, str], pairs: Sequence[JudgedPair], said: Sequence[Sequence[float]], resamples: int, note: str = ""
) -> JudgeSaid:
    """What a judge says by its outcomes of each pair: 1 where the candidate is better, a half for a tie, 0.

    A prompt counts once, however often its pair was judged; the interval resamples topics. Pairs that nobody judged are
    left out, and those that are alike tie.

    Args:
        judge: its name and its kind.
    """
    outcomes = [(pair.topic, [0.5] if pair.alike else list(of)) for pair, of in zip(pairs, said, strict=True)]
    known = [(topic, of) for topic, of in outcomes if of]
    if not known:
        return judge_said(*judge, None, note=note)
    shares = [sum(of) / len(of) for _, of in known]
    ties = sum(of.count(0.5) / len(of) for _, of in known) / len(known)
    win = share_by_cluster(shares, [topic for topic, _ in known], resamples=resamples)
    return judge_said(*judge, win, ties=round(ties, 6), note=note)


def write_pairs(
    folder: Path, pairs: Sequence[JudgedPair], said: Sequence[Sequence[float]], candidate: str = ""
) -> None:
    """Write ``pairs.jsonl``: each pair with the outcomes that a judge gave it, as `pair_verdict` reads them.

    Those of another candidate than the first lie in a file of its name.
    """
    write_jsonl(
        folder / (f"pairs_{candidate}.jsonl" if candidate else PAIRS),
        (
            {
                "prompt": pair.prompt,
                "read": pair.read,
                "topic": pair.topic,
                "champion": pair.champion,
                "candidate": pair.candidate,
                "candidate_wins": list(of),
                "alike": pair.alike,
            }
            for pair, of in zip(pairs, said, strict=True)
        ),
    )


def kept_apart(judge_data: Path, taught: Path) -> str:
    """How far what taught a judge is apart from what taught the reward model, in words: prompts are, by the split."""
    own, others = (annotators_in(path) for path in (judge_data, taught))
    if not own:
        return "other prompts; it is not known who judged them"
    if own & others:
        return f"other prompts; {len(own & others)} of its {len(own)} annotators taught the reward model too"
    return f"other prompts and other annotators ({len(own)})"


def annotators_in(rows: Path) -> set[str]:
    """The annotators that a file of judgements names."""
    lines = rows.read_text(encoding="utf-8").splitlines()
    return {name for line in lines if (name := json.loads(line).get("annotator"))}


def compared_in(folder: Path, results: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return what judges that compare pairs have said in an evaluation: judge -> candidate -> rows of its file."""
    names = [row["name"] for row in results["policies"]]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for place in sorted(folder.glob("judged_*")):
        files = {name: place / f"pairs_{name}.jsonl" for name in names} | {results["candidate"]: place / PAIRS}
        rows = {name: read_rows(path) for name, path in files.items() if path.is_file()}
        if any(rows.values()):
            found[place.name.removeprefix("judged_")] = rows
    return found


@dataclass(frozen=True)
class JudgingRun:
    """Where a judge of pairs leaves what it said, of which candidate ("" is the first), and how it is told."""

    folder: Path
    seed: int
    resamples: int
    candidate: str = ""


def chat_verdict(
    name: str, config: ChatConfig, inputs: Mapping[str, Path], run: JudgingRun, log: Log = quiet
) -> JudgeSaid:
    """What a chat model says, asked about every test prompt with the two sides in both orders: AI feedback.

    Its replies are kept in the folder: who goes on after a kill does not pay twice. Beside them stands what it said of
    each pair.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(inputs, sys.maxsize, run.seed, run.candidate)
    comparer = ChatComparer(config, replies=run.folder / "replies.jsonl")
    said = comparer.compare_all([Comparison(pair.prompt, pair.candidate, pair.champion) for pair in pairs], log)
    outcomes = [[] if one.value is None else [one.value] for one in said]
    write_pairs(run.folder, pairs, outcomes, run.candidate)
    counts = count_outcomes(said)
    note = (
        f"{config.model}; of {len(said):,} pairs {counts['contradictions']:,} were judged otherwise in the other order"
    )
    note += f", {counts['unreadable']:,} replies could not be read" if counts["unreadable"] else ""
    return pair_verdict((name, "chat"), pairs, outcomes, run.resamples, note)
