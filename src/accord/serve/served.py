"""What is served: a policy with its worker, a reward model, and the settings of both."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from accord.errors import DataError, ResourceError, UsageError
from accord.files import read_json, sha256_file
from accord.models.folder import load_policy
from accord.models.placement import AUTO, Placement
from accord.models.shape import DecoderConfig
from accord.models.weights import INDEX, WEIGHTS
from accord.rollout.engine import Engine
from accord.rollout.prefix_cache import PrefixCache
from accord.scoring.reward_model import RewardModel
from accord.serve.aliases import CANARY
from accord.serve.bodies import TurnBody
from accord.serve.measures import Measures
from accord.serve.refusals import Refusal
from accord.serve.worker import Worker
from accord.text.tokenizer import Tokenizer

MEMORY_SHARE = 0.25  # of the free memory may keys and values of all rows take; growing them needs as much again
_M = TypeVar("_M")
SCORER = "ForSequenceClassification"  # how the architecture of a reward model ends in a config.json


@dataclass(frozen=True)
class ServeSettings:
    """How much is served at once.

    Args:
        rows: Completions that are written at once.
        context: Most tokens of a prompt and its completion together; 0: what model and memory allow.
        most_waiting: Requests that may wait for a place; further ones are told to come again.
        prefix_tokens: Tokens of conversations whose computation is remembered; -1: as many as all rows may hold.
        placement: Device and precision.
        keep_alive_s: Seconds without a token after which a stream sends a comment, so that proxies keep it open.
    """

    rows: int = 32
    context: int = 0
    most_waiting: int = 256
    prefix_tokens: int = -1
    placement: Placement = AUTO
    keep_alive_s: float = 15.0

    def __post_init__(self) -> None:
        if min(self.rows, self.most_waiting) < 1 or self.context < 0:
            raise UsageError("rows and most_waiting must be at least 1, context at least 0")


@dataclass(frozen=True)
class ServedPolicy:
    """A policy that answers, under a name. ``version`` names its very weights."""

    name: str
    version: str
    tokenizer: Tokenizer
    vocab_size: int
    context: int
    worker: Worker
    created: int = field(default_factory=lambda: int(time.time()))

    def prompt_of(self, turns: Sequence[Mapping[str, str]]) -> str:
        """Return the text that a conversation is to the model: laid out by its template, else what was said so far."""
        chat = self.tokenizer.chat
        if chat is None:
            # A model without turns goes on writing: its own texts are part of it.
            return "\n".join(turn["content"] for turn in turns)
        try:
            return chat.prompt(turns)
        except DataError as error:
            raise Refusal(400, f"{error.what} ({error.why})", "messages") from error

    def room_behind(self, prompt: Sequence[int], param: str) -> int:
        """Return how many tokens may follow a prompt. Raises Refusal where it is empty, too long, or not its tokens."""
        if not prompt:
            raise Refusal(400, "the prompt is empty: nothing says what is to be written", param)
        if max(prompt) >= self.vocab_size:
            raise Refusal(400, f"token {max(prompt)} is none of the model's {self.vocab_size}", param)
        room = self.context - len(prompt)
        if room < 1:
            raise Refusal(
                400,
                f"the prompt has {len(prompt)} tokens, and prompt and completion together may have {self.context}",
                param,
                "context_length_exceeded",
            )
        return room

    def token_text(self, token: int) -> str:
        """Return one token as a text of its own."""
        return self.tokenizer.spelled([token])


@dataclass(frozen=True)
class ServedScorer:
    """A reward model that scores, under a name; one request at a time."""

    name: str
    version: str
    model: RewardModel
    created: int = field(default_factory=lambda: int(time.time()))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prompt_of(self, prompt: str | Sequence[TurnBody]) -> str:
        """Return a prompt as the model reads it."""
        if isinstance(prompt, str):
            return prompt
        if self.model.tokenizer.chat is None:
            raise Refusal(400, "this reward model has no chat template: give prompts as texts", "prompts")
        return self.model.tokenizer.chat.prompt([message.turn() for message in prompt])

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return a score for each prompt and completion."""
        with self._lock:
            found: list[float] = self.model.score(pairs).tolist()
        return found


@dataclass(frozen=True)
class Serving:
    """All that one server answers with. ``policies`` may change between two requests (`accord.serve.switch`)."""

    policies: dict[str, ServedPolicy]
    scorers: Mapping[str, ServedScorer]
    measures: Measures
    settings: ServeSettings

    def policy(self, name: str) -> ServedPolicy:
        """Return the policy asked for; "" is the only one, beside its canary. Raises Refusal with 404."""
        held = dict(self.policies)
        return _named(held if name else {one: held[one] for one in held if one != CANARY}, name, "model")

    def scorer(self, name: str) -> ServedScorer:
        """Return the reward model asked for; "" is the only one."""
        return _named(self.scorers, name, "reward model")

    def close(self) -> None:
        """End all sessions."""
        for policy in [*self.policies.values()]:
            policy.worker.stop()


def _named(held: Mapping[str, _M], name: str, what: str) -> _M:
    if name in held:
        return held[name]
    if not name and len(held) == 1:
        return next(iter(held.values()))
    there = ", ".join(held) or "none"
    raise Refusal(404, f"there is no {what} {name!r} here; there is {there}", "model", "model_not_found")


# ---- opening ---------------------------------------------------------------------------------------------------------


def open_served(folders: Mapping[str, Path], settings: ServeSettings) -> Serving:
    """Load models, policies and reward models alike, by the names they are asked for, and start their workers."""
    measures = Measures()
    policies: dict[str, ServedPolicy] = {}
    scorers: dict[str, ServedScorer] = {}
    for name, folder in folders.items():
        if is_reward_model(folder):
            model = RewardModel.load(folder, settings.placement)
            scorers[name] = ServedScorer(name, weights_version(folder), model)
        else:
            policies[name] = open_policy(name, folder, settings, measures)
    return Serving(policies, scorers, measures, settings)


def open_policy(name: str, folder: Path, settings: ServeSettings, measures: Measures) -> ServedPolicy:
    """Load a policy and start its worker."""
    model, tokenizer = load_policy(folder, settings.placement)
    context = affordable_context(model.config, settings, model.device)
    prefix_tokens = settings.rows * context if settings.prefix_tokens < 0 else settings.prefix_tokens
    engine = Engine(model, tokenizer.stop_ids, max_rows=settings.rows)
    worker = Worker(engine, PrefixCache(prefix_tokens), measures, settings.most_waiting).start()
    return ServedPolicy(name, weights_version(folder), tokenizer, model.config.vocab_size, context, worker)


def is_reward_model(folder: Path) -> bool:
    """Whether a folder says that its model scores. Raises DataError where it says nothing."""
    if not folder.is_dir():
        raise DataError("no such model folder", where=str(folder), hint="give the path of a Hugging Face folder")
    named = read_json(folder / "config.json").get("architectures") or []
    return any(str(one).endswith(SCORER) for one in named)


def weights_version(folder: Path) -> str:
    """Return a name of the very weights in a folder: their hash, shortened."""
    parts = sorted(folder.glob("*.safetensors")) if (folder / INDEX).exists() else [folder / WEIGHTS]
    return hashlib.sha256("".join(map(sha256_file, parts)).encode()).hexdigest()[:12]


def affordable_context(config: object, settings: ServeSettings, device: torch.device) -> int:
    """Return how long a text may be: what was asked for, what the model has positions for, what all rows have room for.

    Raises ResourceError where that is next to nothing.
    """
    positions = int(getattr(config, "max_positions", 0))
    asked = min(settings.context or positions, positions)
    if not isinstance(config, DecoderConfig) or settings.context:
        return asked
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_width
    most = int(free_memory(device) * MEMORY_SHARE) // (numbers * 4 * settings.rows)
    if most < min(asked, 128):
        raise ResourceError(
            f"the memory that is free holds {most} tokens for each of {settings.rows} rows", hint="lower --rows"
        )
    return min(asked, most)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free where a model lives."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 << 30  # unknown on this system: what any machine has
