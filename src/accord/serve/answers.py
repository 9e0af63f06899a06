"""From tokens to OpenAI's objects: a request's jobs, the text of each choice as it comes, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from accord.rollout.engine import Sampling, Token
from accord.rollout.shaping import Told
from accord.serve.bodies import ChatBody, CompletionBody
from accord.serve.fair_queue import Who
from accord.serve.served import ServedPolicy
from accord.serve.text_stream import TextStream
from accord.serve.worker import Job, batches_of

FINISH = {"stop": "stop", "length": "length", "cancelled": "abort"}
BEHIND = 32  # tokens of the prompt that a completion is decoded behind
FLOOR = -9999.0  # what stands for a log-probability of minus infinity, which JSON cannot say


@dataclass(frozen=True)
class Piece:
    """What is new of one choice: text, tokens whose text it ends, and at its end the reason."""

    index: int
    text: str
    tokens: Sequence[Token] = ()
    finish: str | None = None


@dataclass
class Writing:
    """One completion on its way. ``done`` once nothing more of it will be said."""

    index: int
    job: Job
    sample: int
    stream: TextStream
    done: bool = False
    text: str = ""
    finish: str = ""
    drawn: list[Token] = field(default_factory=list)
    _told: int = 0  # tokens that were handed on

    def take(self, token: Token) -> Piece | None:
        """Take its next token in; returns what is new, if anything is."""
        ending = token.sample.finish if token.sample is not None else None
        if token.token is not None:
            self.drawn.append(token)
        # The token that stops is an instruction, no text.
        ids = [] if token.token is None or ending == "stop" else [token.token]
        text = self.stream.feed(ids) if ids else ""
        if ending is not None:
            text += self.stream.end()
        self.text += text
        finish = "stop" if self.stream.stopped else FINISH[ending] if ending else None
        self.finish = finish or ""
        self.done = finish is not None
        if not text and not self.done:
            return None
        known = self.drawn[self._told : self.stream.released]
        self._told += len(known)
        return Piece(self.index, text, known, finish)


@dataclass
class Answering:
    """A request's jobs and their choices. `close` frees what is still being written, whatever happened."""

    policy: ServedPolicy
    prompts: Sequence[Sequence[int]]
    jobs: list[Job]
    choices: dict[tuple[Job, int], Writing]
    patience: float

    @classmethod
    def open(
        cls,
        policy: ServedPolicy,
        prompts: Sequence[Sequence[int]],
        drawing: Sequence[Sampling],
        body: ChatBody | CompletionBody,
        *,
        who: Who,
        patience: float,
    ) -> Answering:
        """Let a request wait for its turn. Raises Refusal where too many do."""
        loop, inbox, seed = asyncio.get_running_loop(), asyncio.Queue[Any](), body.drawing_seed()
        jobs = [Job(tuple(ids), one, seed, who, loop, inbox) for ids, one in zip(prompts, drawing, strict=True)]
        choices: dict[tuple[Job, int], Writing] = {}
        for job in jobs:
            for k in range(job.sampling.samples_per_prompt):
                # Behind the prompt's end: by itself a text may lose the space that it begins with.
                decode = partial(policy.tokenizer.decode_after, job.ids[-BEHIND:])
                stream = TextStream(decode, tuple(body.stop or ()))
                choices[job, k] = Writing(len(choices), job, k, stream)
        policy.worker.submit(*jobs)
        return cls(policy, prompts, jobs, choices, patience)

    async def pieces(self) -> AsyncIterator[Piece | None]:
        """Yield what is new as it comes, None where nothing came for long."""
        async for came in batches_of(self.jobs, self.patience):
            if came is None:
                yield None
                continue
            job, tokens = came
            for token in tokens:
                choice = self.choices[job, token.sample_index]
                piece = None if choice.done else choice.take(token)
                if choice.stream.stopped and token.sample is None:
                    self.policy.worker.cancel(job, choice.sample)
                if piece is not None:
                    yield piece
            if all(choice.done for choice in self.choices.values()):
                return

    def close(self) -> None:
        """Let what nobody waits for leave."""
        for job in self.jobs:
            if not all(choice.done for (of, _), choice in self.choices.items() if of is job):
                self.policy.worker.cancel(job)

    def choice(self, index: int) -> Writing:
        """Return a choice by its place in the answer."""
        return next(choice for choice in self.choices.values() if choice.index == index)

    def usage(self) -> dict[str, Any]:
        """Return how many tokens went in and out; the token that stops counts too."""
        read, drawn = sum(map(len, self.prompts)), sum(len(choice.drawn) for choice in self.choices.values())
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}


# ---- OpenAI's objects ------------------------------------------------------------------------------------------------


class Dialect(Protocol):
    """How one of the two interfaces says what comes."""

    def head(self, streamed: bool) -> dict[str, Any]:
        """Return what stands in every object of an answer."""

    def first(self, choice: Writing) -> list[dict[str, Any]]:
        """Return what a stream says of a choice before its text."""

    def chunk(self, piece: Piece) -> list[dict[str, Any]]:
        """Return what a stream says of a piece."""

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return a whole choice."""


@dataclass(frozen=True)
class ChatDialect:
    """``/v1/chat/completions``."""

    id: str
    policy: ServedPolicy
    told: bool

    def head(self, streamed: bool) -> dict[str, Any]:
        return _head(self.id, "chat.completion.chunk" if streamed else "chat.completion", self.policy)

    def first(self, choice: Writing) -> list[dict[str, Any]]:
        return [{"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]

    def chunk(self, piece: Piece) -> list[dict[str, Any]]:
        said = {"logprobs": self._logprobs(piece.tokens)} if self.told else {}
        delta = {"content": piece.text} if piece.text else {}
        chunks: list[dict[str, Any]] = []
        if delta or piece.tokens:
            chunks.append({"index": piece.index, "delta": delta, **said, "finish_reason": None})
        if piece.finish:
            chunks.append({"index": piece.index, "delta": {}, "finish_reason": piece.finish})
        return chunks

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        tokens = [token for piece in pieces for token in piece.tokens]
        said = self._logprobs(tokens) if self.told else None
        return {
            "index": pieces[0].index,
            "message": message,
            "logprobs": said,
            "finish_reason": pieces[-1].finish,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {"content": [self._of(token) for token in tokens], "refusal": None}

    def _of(self, token: Token) -> dict[str, Any]:
        assert token.token is not None and token.told is not None
        top = [self._said(one, logp) for one, logp in token.told.top]
        return {**self._said(token.token, token.told.logp), "top_logprobs": top}

    def _said(self, token: int, logp: float) -> dict[str, Any]:
        text = self.policy.token_text(token)
        return {"token": text, "logprob": _finite(logp), "bytes": self.policy.tokenizer.token_bytes(token)}


@dataclass(frozen=True)
class CompletionDialect:
    """``/v1/completions``; what is echoed stands before the first text of its prompt's choices."""

    id: str
    policy: ServedPolicy
    told: bool
    echoes: Sequence[Piece] = ()  # one a prompt where the prompts are echoed
    per_prompt: int = 1

    def head(self, streamed: bool) -> dict[str, Any]:
        return _head(self.id, "text_completion", self.policy)

    def first(self, choice: Writing) -> list[dict[str, Any]]:
        return self.chunk(self._echo(choice.index)) if self.echoes else []

    def chunk(self, piece: Piece) -> list[dict[str, Any]]:
        said = self._logprobs([piece]) if self.told else None
        return [{"index": piece.index, "text": piece.text, "logprobs": said, "finish_reason": piece.finish}]

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        every = [*([self._echo(pieces[0].index)] if self.echoes else []), *pieces]
        return {
            "index": pieces[0].index,
            "text": "".join(piece.text for piece in every),
            "logprobs": self._logprobs(every) if self.told else None,
            "finish_reason": pieces[-1].finish,
        }

    def _echo(self, index: int) -> Piece:
        echoed = self.echoes[index // self.per_prompt]
        return Piece(index, echoed.text, echoed.tokens)

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        tokens = [token for piece in pieces for token in piece.tokens]
        texts = [self.policy.token_text(token.token or 0) for token in tokens]
        offsets = [0]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [None if token.told is None else _finite(token.told.logp) for token in tokens],
            "top_logprobs": [None if token.told is None else self._top(token.told) for token in tokens],
            "text_offset": offsets[:-1],
        }

    def _top(self, told: Told) -> dict[str, float]:
        # The likeliest last, so that it stays where two tokens are the same text.
        return {self.policy.token_text(one): _finite(logp) for one, logp in reversed(told.top)}


def _head(id: str, kind: str, policy: ServedPolicy) -> dict[str, Any]:
    return {
        "id": id,
        "object": kind,
        "created": int(time.time()),
        "model": policy.name,
        "system_fingerprint": policy.version,
    }


def _finite(logp: float) -> float:
    return logp if math.isfinite(logp) else FLOOR


# ---- whole, and in events --------------------------------------------------------------------------------------------


#: Writes a choice down and returns the token by which somebody may say something of it.
Keep = Callable[[Writing], Awaitable[str]]


async def whole_answer(answering: Answering, dialect: Dialect, keep: Keep | None) -> dict[str, Any]:
    """Return the answer once all of it is there."""
    by_choice: dict[int, list[Piece]] = {choice.index: [] for choice in answering.choices.values()}
    async for piece in answering.pieces():
        if piece is not None:
            by_choice[piece.index].append(piece)
    choices = [dialect.whole(pieces) for _, pieces in sorted(by_choice.items())]
    for said in choices if keep else ():
        said["feedback"] = {"token": await keep(answering.choice(said["index"]))} if keep else None
    return {**dialect.head(streamed=False), "choices": choices, "usage": answering.usage()}


async def events(answering: Answering, dialect: Dialect, usage: bool, keep: Keep | None) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events, while it is written."""
    head = dialect.head(streamed=True)
    more = {"usage": None} if usage else {}
    for choice in answering.choices.values():
        for said in dialect.first(choice):
            yield as_event({**head, "choices": [said], **more})
    async for piece in answering.pieces():
        if piece is None:
            yield b": keep-alive\n\n"
            continue
        for said in dialect.chunk(piece):
            if keep and said["finish_reason"]:
                said["feedback"] = {"token": await keep(answering.choice(piece.index))}
            yield as_event({**head, "choices": [said], **more})
    if usage:
        yield as_event({**head, "choices": [], "usage": answering.usage()})
    yield b"data: [DONE]\n\n"


def as_event(content: Mapping[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def echoed(policy: ServedPolicy, prompt: str | Sequence[int], ids: Sequence[int], told: Sequence[Told] | None) -> Piece:
    """Return a prompt as the first piece of what is written behind it; nothing is said of its first token."""
    text = prompt if isinstance(prompt, str) else policy.tokenizer.spelled(ids)
    each: Iterator[Told | None] = iter([None, *told] if told is not None else [None] * len(ids))
    return Piece(0, text, [Token(0, 0, token, 0.0, told=next(each)) for token in ids])
