"""The closed loop on a model of yours: ``python -m benchmarks.closed_loop MODEL PROMPTS [--seeds 3] [--rounds 2]``.

A project is made, served by `accord serve`, and talked to over HTTP by simulated users with a hidden taste: they
compare two answers and press thumbs. `accord round` learns from it, so often as asked. At the end the served model and
the one from the start answer the same prompts, and the taste says which it prefers. The floor is a lower bound above .5
on every seed, the goal a rate above .6.

With ``--world length`` users reward length alone, and one account floods: the gates must refuse, and say why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import yaml

from accord.records import Annotator, Completion, Prompt, Ranking, Source
from accord.serve.aliases import PROD, AliasFile
from accord.stats import Interval, win_rate
from accord.store import Store

USERS = 16  # each says less than sixty things an hour in every world but the flood's
PRAISE = frozenset(
    ("good", "great", "best", "love", "loved", "beautiful", "wonderful", "brilliant", "excellent", "perfect", "fun")
)
Taste = Callable[[str], float]


def praise(text: str) -> float:
    """The hidden taste: the share of words that praise."""
    words = text.lower().split()
    return sum(word.strip(".,!?;:'\"") in PRAISE for word in words) / max(1, len(words))


def longer(text: str) -> float:
    return float(len(text))


class Users:
    """Simulated users of a server; each asks, and says what they like. Their taste is theirs alone."""

    def __init__(self, url: str, key: str, tokens: int) -> None:
        self.client = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120)
        self.tokens = tokens

    def ask(self, prompt: str, user: str = "", **more: Any) -> list[dict[str, Any]]:
        """Return the choices that answer a prompt."""
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": self.tokens, "user": user, **more}
        answer = self.client.post("chat/completions", json=body)
        answer.raise_for_status()
        choices: list[dict[str, Any]] = answer.json()["choices"]
        return choices

    def say(self, choice: Mapping[str, Any], kind: str, value: Any, **more: Any) -> None:
        """Say something of a choice."""
        headers = {"Idempotency-Key": os.urandom(8).hex()}
        body = {"feedback_token": choice["feedback"]["token"], "kind": kind, "value": value, **more}
        self.client.post("feedback", json=body, headers=headers).raise_for_status()

    def talk(self, prompts: Sequence[str], taste: Taste) -> None:
        """Let each prompt's two answers be compared by some user, and every third get a thumb."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda row: self._compare(*row, taste), enumerate(prompts)))

    def _compare(self, number: int, prompt: str, taste: Taste) -> None:
        one, two = self.ask(prompt, f"u{number % USERS}", compare=2)
        values = [taste(choice["message"]["content"]) for choice in (one, two)]
        if values[0] == values[1]:
            return
        ranks = [1, 2] if values[0] > values[1] else [2, 1]
        self.say(one, "ranking", ranks, others=[two["feedback"]["token"]])
        if number % 3 == 0:
            self.say(one, "thumb", values[0] > values[1])

    def flood(self, many: int) -> None:
        """Let one account praise whatever comes, many times within the hour."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: self.say(self.ask(f"Spam {n}:", "mallory")[0], "thumb", True), range(many)))

    def answers(self, prompts: Sequence[str]) -> list[list[str]]:
        """Return four answers to each prompt as it is served now; nothing of it is kept."""
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda row: self.ask(row[1], seed=row[0], n=4, store=False), enumerate(prompts))
            return [[choice["message"]["content"] for choice in choices] for choices in found]


@contextlib.contextmanager
def served_project(folder: Path, tokens: int) -> Iterator[Users]:
    """Serve a project by `accord serve`, a process of its own, with a key whose users are programs."""
    command = [sys.executable, "-m", "accord", "serve", str(folder)]
    new = [*command, "--add-key", "app", "--simulated", "--per-minute", "0", "--json"]
    key = json.loads(subprocess.run(new, capture_output=True, check=True).stdout)["key"]
    options = ["--port", "0", "--need-key", "--json", "--rows", "16", "--precision", "fp32"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        users = Users(json.loads("".join(lines))["url"], key, tokens)
        with users.client:
            yield users
    finally:
        process.terminate()
        process.communicate()


def until_served(folder: Path, users: Users, seconds: float = 120.0) -> None:
    """Wait until the server answers with what the aliases call prod. Raises TimeoutError."""
    model, end = AliasFile(folder / "rounds/models").get(PROD), time.monotonic() + seconds
    while model is not None and users.client.get("models").json()["data"][0]["version"] != model.version:
        if time.monotonic() > end:
            raise TimeoutError("the server does not follow the aliases")
        time.sleep(0.1)


def preferred(after: Sequence[Sequence[str]], before: Sequence[Sequence[str]], taste: Taste) -> Interval:
    """Return how often a taste prefers what was said after, by prompt."""
    scores = [[[taste(text) for text in row] for row in rows] for rows in (after, before)]
    return win_rate(scores[0], scores[1])


def make_project(
    folder: Path, recipe: Mapping[str, Any], older: Sequence[tuple[str, Sequence[str]]], taste: Taste
) -> None:
    """Make a project with older judgements by one simulated annotator: ``older`` are prompts, each with texts."""
    subprocess.run([sys.executable, "-m", "accord", "init", str(folder)], capture_output=True, check=True)
    (folder / "accord.yaml").write_text(yaml.safe_dump({**recipe, "store": "accord.db"}))
    ada, source = Annotator(name="Ada", annotator_kind="simulated"), Source(origin="policy", name="old")
    facts: list[Any] = [ada, source]
    for text, said in older:
        prompt = Prompt(text=text)
        made = [Completion(prompt_id=prompt.id, text=one, source=source) for one in dict.fromkeys(said)]
        values = [taste(one.text) for one in made]
        if len(set(values)) > 1:
            ranks = tuple(1 + sum(other > value for other in values) for value in values)
            ids = tuple(one.id for one in made)
            ranking = Ranking(annotator_id=ada.id, prompt_id=prompt.id, completion_ids=ids, ranks=ranks)
            facts += [prompt, *made, ranking]
    with Store.open(folder / "accord.db") as store:
        store.add(facts)


def take_turn(folder: Path) -> dict[str, Any]:
    """Run `accord round` and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "accord", "round", str(folder), "--json"], capture_output=True, text=True
    )
    if done.returncode not in (0, 7):
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


# ---- the script ------------------------------------------------------------------------------------------------------


def recipe_for(model: Path, seed: int, tokens: int) -> dict[str, Any]:
    """A project's recipe: what the demo was tuned with, smaller, with the taste as the judge that nobody taught."""
    return {
        "seed": seed,
        "base": {"model": str(model.resolve())},
        "task": {"use": "store", "split_by": "prompt", "test_share": 0.2, "judge_share": 0.0, "simulated": True},
        "sample": {"max_new_tokens": tokens},
        "reward": {"epochs": 2, "max_tokens": 2 * tokens + 64},
        "rl": {"iterations": 24, "prompts_per_iteration": 64, "max_new_tokens": tokens, "eval_every": 8},
        "eval": {"judges": {"taste": {"function": "benchmarks.closed_loop:judged_by_praise"}}},
    }


def judged_by_praise(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [praise(text) for text in completions]


def one_seed(args: argparse.Namespace, seed: int, prompts: list[str]) -> dict[str, Any]:
    folder, draw = args.output / f"{args.world}_{seed}", random.Random(seed)
    order = draw.sample(prompts, len(prompts))
    asked, older, rest = order[:64], order[64 : 64 + args.older], order[64 + args.older :]
    taste = praise if args.world == "taste" else longer
    make_project(folder, recipe_for(args.model, seed, args.tokens), [], praise)
    with served_project(folder, args.tokens) as users:
        before = users.answers(asked)
        first = list(zip(older, users.answers(older), strict=True))
    make_project(folder.with_name(f"{folder.name}_run"), recipe_for(args.model, seed, args.tokens), first, praise)
    folder = folder.with_name(f"{folder.name}_run")
    turns = []
    with served_project(folder, args.tokens) as users:
        for number in range(args.rounds):
            users.talk(rest[number :: args.rounds][: args.compared], taste)
            if args.world == "length":
                users.flood(70)
            turns.append(take_turn(folder))
            until_served(folder, users)
        after = users.answers(asked)
    found = preferred(after, before, praise).to_json()
    told = [{key: turn[key] for key in ("state", "reasons", "sentences")} for turn in turns]
    return {"seed": seed, "world": args.world, "preferred": found, "turns": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a policy's folder, as the demo's sft/model")
    parser.add_argument("prompts", type=Path, help="prompts, a JSON object with `prompt` a line")
    parser.add_argument("--world", choices=("taste", "length"), default="taste")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--older", type=int, default=100, help="prompts with judgements that stand already")
    parser.add_argument("--compared", type=int, default=400, help="comparisons by users in each round")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/closed-loop"))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in rows))
    for seed in range(args.seeds):
        print(json.dumps(one_seed(args, seed, prompts)), flush=True)


if __name__ == "__main__":
    main()
