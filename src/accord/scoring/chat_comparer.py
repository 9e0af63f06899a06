"""A chat model behind an OpenAI-compatible URL that says which of two completions is better.

It is asked twice, with the order swapped: who always prefers what stands first contradicts itself, and that counts as
a tie. A reply is read strictly; one that cannot be read is asked for again, then counted as such, never guessed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accord.config import ChatConfig
from accord.errors import DataError, UsageError
from accord.files import row_in
from accord.progress import Log, quiet
from accord.scoring.chat_prompts import ChatMessage, PairVerdict, asked_again, judge_messages, read_verdict
from accord.scoring.posting import SHOWN, Endpoint

PairOutcome = Literal["first", "second", "tie", "contradiction", "unreadable"]
READ_TRIES = 3  # at temperature 0 the same words come again: each further try says that the reply cannot be read
POST_TRIES = 6  # pauses of 1, 2, 4, 8, 16 s, or what the server asks for: its limit has passed by then
_SWAPPED: Mapping[PairVerdict, PairVerdict] = {"first": "second", "second": "first", "tie": "tie"}
_VALUES: Mapping[PairOutcome, float | None] = {
    "first": 1.0, "second": 0.0, "tie": 0.5, "contradiction": 0.5, "unreadable": None,
}  # fmt: skip


class Comparison(NamedTuple):
    """Two completions of a prompt, which is a text or a conversation."""

    prompt: str | Sequence[Mapping[str, Any]]
    first: str
    second: str


@dataclass(frozen=True)
class Preference:
    """What a comparer said of two completions in each order, in terms of the completions as given; None: unreadable."""

    given: PairVerdict | None
    swapped: PairVerdict | None

    @property
    def outcome(self) -> PairOutcome:
        """Return the verdict of both orders; where they differ, that they contradict each other."""
        if self.given is None or self.swapped is None:
            return "unreadable"  # one order alone would let in the preference for a place
        return self.given if self.given == self.swapped else "contradiction"

    @property
    def value(self) -> float | None:
        """Return 1 where the first is better, 0 where the second is, .5 for a tie or a contradiction, None unread."""
        return _VALUES[self.outcome]


def count_outcomes(preferences: Iterable[Preference]) -> dict[str, int]:
    """Return how many pairs were decided, tied, contradicted by the swapped order, and unreadable."""
    found = Counter(one.outcome for one in preferences)
    decided = found["first"] + found["second"]
    return {"decided": decided, "ties": found["tie"], "contradictions": found["contradiction"],
            "unreadable": found["unreadable"]}  # fmt: skip


class ChatComparer:
    """A chat model that compares completions, several requests at a time, at temperature 0.

    Args:
        replies: A file that keeps what was answered, a line each: who goes on after a kill does not pay twice.
        pause_s: The first pause before a busy server is asked again (`accord.scoring.posting`).

    Raises:
        UsageError: the environment variable of the key is not set.
    """

    def __init__(self, config: ChatConfig, *, replies: Path | None = None, pause_s: float = 1.0) -> None:
        self.config, self.replies = config, ReplyFile(replies)
        url = f"{config.url.rstrip('/')}/chat/completions"
        hint = "start the server; raise timeout_s or lower concurrency if it is slow; the same command goes on"
        self._endpoint = Endpoint(url, config.timeout_s, pause_s, POST_TRIES, "reply", hint, api_key(config))

    def compare(self, prompt: str | Sequence[Mapping[str, Any]], first: str, second: str, /) -> Preference:
        """Return which of two completions of a prompt is better; equal texts tie unasked."""
        return self.compare_all([Comparison(prompt, first, second)])[0]

    def compare_all(self, asked: Sequence[Comparison], /, log: Log = quiet) -> list[Preference]:
        """Return a preference of each comparison, in their order; the same question is asked once.

        Raises:
            ResourceError: the server cannot be reached, or is busy, at the last try too.
            DataError: it refuses the request, or answers what is no chat completion.
        """
        orders = [(one, one._replace(first=one.second, second=one.first)) for one in asked]
        questions = {_key(order): order for both in orders for order in both if order.first != order.second}
        verdicts = dict(zip(questions, self._ask_all(list(questions.values()), log), strict=True))
        return [_preference(given, swapped, verdicts) for given, swapped in orders]

    def _ask_all(self, questions: Sequence[Comparison], log: Log) -> list[PairVerdict | None]:
        found: list[PairVerdict | None] = []
        stopped = threading.Event()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            waiting = [pool.submit(self._ask_unless, stopped, one) for one in questions]
            try:
                for done, future in enumerate(waiting, 1):
                    found.append(future.result())
                    log(done / len(waiting), f"{done} of {len(waiting)} questions answered")
            finally:
                stopped.set()  # after an interrupt: what waits is not asked any more
        return found

    def _ask_unless(self, stopped: threading.Event, one: Comparison) -> PairVerdict | None:
        """Ask, unless another request has failed: what one was refused for, the next is too."""
        try:
            return None if stopped.is_set() else self._ask(one)
        except BaseException:
            stopped.set()
            raise

    def _ask(self, one: Comparison) -> PairVerdict | None:
        messages = judge_messages(one.prompt, one.first, one.second, self.config.criteria)
        for _ in range(READ_TRIES):
            reply = self._reply(messages)
            if verdict := read_verdict(reply):
                return verdict
            messages = asked_again(messages, reply)
        return None

    def _reply(self, messages: Sequence[ChatMessage]) -> str:
        body: dict[str, Any] = {"model": self.config.model, "messages": list(messages)}
        body |= {"temperature": 0, "max_tokens": self.config.max_tokens}
        return self.replies.get(_hash([self._endpoint.url, body]), lambda: self._said(self._endpoint.post(body)))

    def _said(self, answer: bytes) -> str:
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            why = 'JSON like {"choices": [{"message": {"content": "..."}}]} is wanted'
            told = f"answered {self._endpoint.said(repr(answer[:SHOWN]))}"
            raise DataError(told, where=self._endpoint.place, why=why) from error
        return content if isinstance(content, str) else ""


def api_key(config: ChatConfig) -> str:
    """Return the key out of the environment variable that the settings name; "" where they name none."""
    if not config.key_env:
        return ""
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        hint = f"export {config.key_env}=..., or leave key_env empty for a server without keys"
        raise UsageError(f"the environment variable {config.key_env} is not set", why="key_env names it", hint=hint)
    return key


def _preference(given: Comparison, swapped: Comparison, verdicts: Mapping[str, PairVerdict | None]) -> Preference:
    if given.first == given.second:
        return Preference("tie", "tie")
    turned = verdicts[_key(swapped)]
    return Preference(verdicts[_key(given)], None if turned is None else _SWAPPED[turned])


def _key(one: Comparison) -> str:
    prompt = one.prompt if isinstance(one.prompt, str) else [dict(turn) for turn in one.prompt]
    return _hash([prompt, one.first, one.second])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class ReplyFile:
    """Replies by the hash of what was asked, kept in a file a line each; without a path for as long as it lives.

    ``num_asked`` counts the replies that were not known yet. Threads may share it.
    """

    path: Path | None = None
    num_asked: int = 0
    _known: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            whole, _, _ = self.path.read_bytes().rpartition(b"\n")  # a kill may have cut the last line
            rows = [row_in(line) or {} for line in whole.decode("utf-8", "replace").split("\n")]
            self._known = {row["asked"]: row["reply"] for row in rows if row.keys() == {"asked", "reply"}}
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + 1 if whole else 0)

    def get(self, asked: str, ask: Callable[[], str]) -> str:
        """Return the reply that is known, or ask and keep it."""
        if asked in self._known:
            return self._known[asked]
        reply = ask()
        with self._lock:
            self._known[asked] = reply
            self.num_asked += 1
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"asked": asked, "reply": reply}) + "\n")
        return reply
