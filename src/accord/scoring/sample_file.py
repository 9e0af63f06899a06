"""Completions of a file's prompts, with the log-probability each was drawn with; of each n the best, by a scorer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import SampleConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.extend import code_in
from accord.files import read_json, row_in, sha256_file, sha256_tree, write_json, write_text
from accord.formats.format import fold_meant
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import OF_COMPLETION, RENDERED, PromptRow, plain_rows, read_prompts
from accord.progress import Log, Notice, part_of, quiet
from accord.rollout.engine import Sampling
from accord.rollout.generator import Generated, Generator, groups_as_done, open_generator
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import load_scorer, scorer_inputs
from accord.stats import best_of_n_kl_bound


@dataclass(frozen=True)
class SampleResult:
    """Where the samples are, how many, how many of them were cut, and how long they are on average (tokens).

    ``finished`` is the share that ended by itself. ``mean_score`` is None where nothing scored them. ``kl_bound``
    bounds, in nats from above, the KL between the best of ``best_of`` samples and one
    (`accord.stats.best_of_n_kl_bound`).
    """

    output: Path
    num_samples: int
    cut: int
    mean_tokens: float
    finished: float
    mean_score: float | None
    best_of: int
    kl_bound: float


def sample(
    config: SampleConfig,
    *,
    model: Path,
    data: Path,
    output: Path,
    reward_model: Path | None = None,
    rewards: Sequence[ScorerConfig] = (),
    seed: int = 0,
    resume: bool = True,
    log: Log = quiet,
) -> SampleResult:
    """Draw ``samples_per_prompt`` completions of each ``{"prompt"}`` row.

    Each line written holds the prompt as it was asked (a text or messages), its topic and what else its row holds,
    completion, ``model`` (who wrote it), ``logp`` (sum over its tokens, nats), ``tokens`` and ``finish`` ("stop" where
    it ended by itself, "length" where it was cut). Where the prompt is messages, ``rendered`` is the text that the
    model saw.

    While it works, what is done stands in ``OUTPUT.part``; the same command goes on from there where ``resume``. When
    all is done ``OUTPUT.made.json`` says of what, and the same command again does nothing.

    A reward model or ``rewards`` (those of `accord.rl`) add ``score``, ``rank`` (1 = best of the prompt's lines, equal
    scores share one) and ``best_of``: with ``config.best_of`` n > 1 each line is the best of n samples of its own.

    Raises:
        UsageError: ``best_of`` is above 1 and there is nothing to choose by.
    """
    if not (reward_model or rewards) and config.best_of > 1:
        raise UsageError("sample.best_of needs something to choose by", hint="give --reward-model DIR, or rl.rewards")
    identity = identity_of_samples(
        config, scorer_inputs(rewards, reward_model) | {"model": model, "data": data}, seed, rewards
    )
    made = Made.beside(output)
    if resume and made is not None and made.identity == identity:
        log(1.0, Notice(f"finished before: the same command wrote {output}; nothing was done (--no-resume: anew)"))
        return made.result(output)
    scorer = load_scorer(rewards, reward_model) if reward_model or rewards else None
    generator = open_generator(model, name=config.generator)
    prompts = read_prompts(data, generator.chat)
    log(0.0, f"{len(prompts)} prompts")
    sampling = Sampling(**config.drawing() | {"samples_per_prompt": config.samples_per_prompt * config.best_of})
    done = DrawnSoFar(output, identity, resume=resume)
    rows = [
        {**_besides(prompts[place]), "completion": one["completion"], "model": str(model), **one}
        for place, group in done.finish(generator, prompts, sampling, seed, part_of(log, 0.0, 0.9))
        for one in group
    ]
    if scorer is not None:
        log(0.9, "scoring")
        rows = best_rows(rows, scorer, config.best_of, config.samples_per_prompt)
    write_jsonl(output, rows)
    done.clear()
    log(1.0, f"{len(rows)} samples")
    result = _result(output, rows, config)
    Made.write(output, identity, result)
    return result


def _result(output: Path, rows: Sequence[Mapping[str, Any]], config: SampleConfig) -> SampleResult:
    scored = bool(rows) and "score" in rows[0]
    return SampleResult(
        output=output,
        num_samples=len(rows),
        cut=sum(row["finish"] == "length" for row in rows),
        mean_tokens=sum(row["tokens"] for row in rows) / len(rows),
        finished=sum(row["finish"] == "stop" for row in rows) / len(rows),
        mean_score=sum(row["score"] for row in rows) / len(rows) if scored else None,
        best_of=config.best_of,
        kl_bound=best_of_n_kl_bound(config.best_of),
    )


def _besides(prompt: PromptRow) -> dict[str, Any]:
    """Return what the row of a prompt says, as that of its completions shall say it too."""
    kept = {name: value for name, value in prompt.besides.items() if name not in OF_COMPLETION}
    topic = {"topic": prompt.topic} if prompt.topic else {}
    rendered = {} if isinstance(prompt.asked, str) else {RENDERED: prompt.text}
    return {"prompt": plain_rows(prompt.asked), **topic, **fold_meant(kept), **rendered}


def _as_row(one: Generated) -> dict[str, Any]:
    """Return what is said of a completion."""
    return {
        "completion": one.text,
        # A sum, as a sequence's probability is a product; six places are what fp32 holds of it.
        "logp": round(sum(one.behaviour_logp), 6),
        "tokens": len(one.completion_ids),
        "finish": one.finish,
    }


def identity_of_samples(
    config: SampleConfig, inputs: Mapping[str, Path], seed: int, rewards: Sequence[ScorerConfig] = ()
) -> str:
    """Return the hash of all that decides the rows: settings, seed, and the files of models and prompts."""
    settings = {"sample": config.model_dump(), "rewards": [one.model_dump() for one in rewards]}
    hashes = {name: sha256_tree(path) for name, path in inputs.items()}
    said = {"settings": settings, "code": code_in(settings), "seed": seed, "inputs": hashes}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Made:
    """What stands beside a file of samples (``OUTPUT.made.json``): what decided them, and how they came out."""

    identity: str
    told: Mapping[str, Any]

    @classmethod
    def beside(cls, output: Path) -> Made | None:
        """Return what is said of a file that still is as it was written; None where it is not, or nothing is said."""
        try:
            said = read_json(_made_path(output))
            whole = said["sha256"] == sha256_file(output)
        except (DataError, OSError, KeyError, TypeError):
            return None
        return cls(said["identity"], said["result"]) if whole else None

    @staticmethod
    def write(output: Path, identity: str, result: SampleResult) -> None:
        told = {name: value for name, value in vars(result).items() if name != "output"}
        write_json(_made_path(output), {"identity": identity, "sha256": sha256_file(output), "result": told})

    def result(self, output: Path) -> SampleResult:
        return SampleResult(output=output, **self.told)


def _made_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.made.json")


class DrawnSoFar:
    """Completions beside the file that they will stand in, prompt by prompt as they are done (``OUTPUT.part``).

    Its first line names what decides them, and a file that names another is begun anew. A line that a killed process
    left half written is dropped.
    """

    def __init__(self, output: Path, identity: str, *, resume: bool) -> None:
        self.path, self._identity = output.with_name(f"{output.name}.part"), identity
        self._groups = self._read() if resume else {}

    def finish(
        self, generator: Generator, prompts: Sequence[PromptRow], sampling: Sampling, seed: int, log: Log
    ) -> list[tuple[int, list[dict[str, Any]]]]:
        """Draw what is missing, write it down as it comes, and return all groups in the order of the prompts."""
        if self._groups:
            log(0.0, Notice(f"going on: {len(self._groups)} of {len(prompts)} prompts are done"))
        if len(self._groups) < len(prompts):
            self._draw(generator, [prompt.text for prompt in prompts], sampling, seed, log)
        return sorted(self._groups.items())

    def clear(self) -> None:
        """Remove the file: the whole one is written."""
        self.path.unlink(missing_ok=True)

    def _draw(self, generator: Generator, texts: Sequence[str], sampling: Sampling, seed: int, log: Log) -> None:
        before = dict(self._groups)
        rest = part_of(log, len(before) / len(texts), 1.0)
        # Whole before it grows: who is killed here has lost nothing.
        head = json.dumps({"of": self._identity}) + "\n"
        write_text(self.path, head + "".join(_line(place, group) for place, group in before.items()))
        with self.path.open("a", encoding="utf-8") as file:
            for place, drawn in groups_as_done(generator, texts, sampling, seed=seed, skip=before, log=rest):
                self._groups[place] = [_as_row(one) for one in drawn]
                file.write(_line(place, self._groups[place]))
                file.flush()

    def _read(self) -> dict[int, list[dict[str, Any]]]:
        if not self.path.is_file():
            return {}
        first, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if first != json.dumps({"of": self._identity}):
            return {}
        # The last piece is what follows the last whole line: nothing, or half a line.
        rows = [row_in(line) or {} for line in lines[:-1]]
        # Those of a damaged line are drawn again.
        return {row["place"]: row["samples"] for row in rows if row.keys() == {"place", "samples"}}


def _line(place: int, group: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"place": place, "samples": group}, ensure_ascii=False) + "\n"


def best_rows(rows: Sequence[dict[str, Any]], scorer: Scorer, best_of: int, per_prompt: int) -> list[dict[str, Any]]:
    """Return the row with the highest score of each ``best_of`` in turn; of equals the earlier.

    ``per_prompt`` of those that remain belong to one prompt each, and are ranked among themselves.
    """
    # A scorer reads what the model saw. Rounded before they are compared: the file's ranks are those of its numbers.
    pairs = [(row.get(RENDERED, row["prompt"]), row["completion"]) for row in rows]
    scores = [round(s, 6) for s in scorer.score(pairs).tolist()]
    kept = [max(range(start, start + best_of), key=lambda i: (scores[i], -i)) for start in range(0, len(rows), best_of)]
    found = []
    for place, index in enumerate(kept):
        first = place - place % per_prompt
        rank = 1 + sum(scores[other] > scores[index] for other in kept[first : first + per_prompt])
        found.append({**rows[index], "score": scores[index], "rank": rank, "best_of": best_of})
    return found
