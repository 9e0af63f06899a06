"""What may be asked: the bodies of requests, in OpenAI's words and those that vLLM added, and what they ask the engine.

Fields that mean nothing here are ignored, as every server of this interface does; what cannot be done is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from accord.people.web.security import sane_text
from accord.rollout.engine import Sampling
from accord.rollout.shaping import Shaping
from accord.serve.refusals import Refusal

MOST_CHOICES, MOST_PROMPTS, MOST_STOPS, MOST_TOP = 16, 64, 16, 20
COMPLETION_TOKENS = 16  # what OpenAI's older interface gives without max_tokens
#: Fields of OpenAI's that nothing here can do, what may stand in them all the same, and why.
IMPOSSIBLE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "response_format": (({"type": "text"},), "the engine writes free text only; check its form and ask again"),
    "tools": (([],), "the models served here call no tools"),
    "functions": (([],), "the models served here call no functions"),
    "tool_choice": (("none", "auto"), "the models served here call no tools"),
    "modalities": ((["text"],), "only texts are written"),
    "audio": ((), "only texts are written"),
    "suffix": (("",), "texts are written from left to right"),
    "best_of": ((1,), "ask for n choices and take the one you like best"),
    "use_beam_search": ((False,), "completions are drawn, not searched"),
}


def _sound(text: str) -> str:
    if not sane_text(text):
        raise ValueError("holds a NUL or half a character")
    return text


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


SoundText = Annotated[str, AfterValidator(_sound)]
Stops = Annotated[list[Annotated[SoundText, Field(min_length=1, max_length=200)]], Field(max_length=MOST_STOPS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class PartBody(BaseModel):
    """A part of a message; only texts are read."""

    type: str
    text: SoundText | None = None


class TurnBody(BaseModel):
    """A turn of a conversation. Its further fields mean nothing here."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: SoundText | list[PartBody] | None = None

    def turn(self) -> dict[str, str]:
        """Return it as chat templates read it: one text, "developer" as "system", which templates know."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, list):
            wrong = next((part.type for part in self.content if part.type != "text" or part.text is None), None)
            if wrong is not None:
                raise Refusal(400, f"a part of type {wrong!r} cannot be read: only texts are", "messages")
            return {"role": role, "content": "".join(part.text or "" for part in self.content)}
        return {"role": role, "content": self.content or ""}


class SamplingBody(BaseModel):
    """What both interfaces ask about drawing. ``top_k``, ``min_p`` and ``repetition_penalty`` are vLLM's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: Annotated[SoundText, Field(max_length=200)] = ""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Annotated[Stops, BeforeValidator(_texts)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    user: Annotated[SoundText, Field(max_length=200)] | None = None
    store: bool | None = None
    compare: Annotated[int, Field(ge=2, le=4)] | None = None

    @property
    def choices(self) -> int:
        """How many completions of a prompt are wanted: ``n``, or as many as somebody is to compare."""
        return self.compare or self.n or 1

    def refuse_impossible(self) -> None:
        """Raise Refusal for what is asked and cannot be done: silence would be an answer that seems to obey."""
        if self.compare is not None and self.n not in (None, 1, self.compare):
            raise Refusal(400, f"n is {self.n} and compare {self.compare}: give one of them", "compare")
        for name, (harmless, why) in IMPOSSIBLE.items():
            asked = (self.model_extra or {}).get(name)
            if asked is not None and asked not in harmless:
                raise Refusal(400, f"{name} is not supported here: {why}", name, "unsupported_parameter")

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def told(self) -> int | None:
        """How many likeliest tokens are told beside each; None: nothing is told."""
        raise NotImplementedError

    def sampling(self, limit: int, vocab_size: int) -> Sampling:
        """Return how completions of at most ``limit`` tokens are drawn."""
        greedy = self.temperature == 0 or self.top_p == 0
        return Sampling(
            max_new_tokens=limit,
            samples_per_prompt=self.choices,
            temperature=1.0 if greedy else 1.0 if self.temperature is None else max(self.temperature, 1e-3),
            top_k=1 if greedy else max(self.top_k or 0, 0),
            top_p=1.0 if greedy or self.top_p is None else self.top_p,
            stop_ids=tuple(self.stop_token_ids or ()),
            shaping=self._shaping(vocab_size),
            told=self.told(),
        )

    def drawing_seed(self) -> int:
        """Return the seed given, or one that nobody can guess."""
        return secrets.randbits(63) if self.seed is None else self.seed

    def _shaping(self, vocab_size: int) -> Shaping | None:
        shaping = Shaping(
            logit_bias=self._biases(vocab_size),
            presence=self.presence_penalty or 0.0,
            frequency=self.frequency_penalty or 0.0,
            repetition=self.repetition_penalty or 1.0,
            min_p=self.min_p or 0.0,
        )
        return None if shaping == Shaping() else shaping

    def _biases(self, vocab_size: int) -> tuple[tuple[int, float], ...]:
        found = []
        for token, bias in (self.logit_bias or {}).items():
            if not token.isascii() or not token.isdigit() or int(token) >= vocab_size:
                raise Refusal(400, f"{token!r} is no id of one of the model's {vocab_size} tokens", "logit_bias")
            found.append((int(token), bias))
        return tuple(found)


class ChatBody(SamplingBody):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[TurnBody], Field(min_length=1, max_length=2000)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None

    def told(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise Refusal(400, "top_logprobs has no effect without logprobs: true", "top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None

    def turns(self) -> list[dict[str, str]]:
        """Return the conversation as chat templates read it."""
        return [message.turn() for message in self.messages]

    def limit(self, room: int) -> int:
        """Return how many tokens may be written where there is room for so many."""
        asked = self.max_completion_tokens or self.max_tokens
        if asked == 0:
            raise Refusal(400, "max_tokens is 0: nothing would be written", "max_tokens")
        return room if asked is None else min(asked, room)


class CompletionBody(SamplingBody):
    """The body of ``/v1/completions``: prompts are texts or token ids, one or several."""

    prompt: SoundText | TokenIds | Annotated[list[SoundText | TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | bool | None = None

    def told(self) -> int | None:
        return int(self.logprobs) if self.logprobs is not None and self.logprobs is not False else None

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        return [[i for i in given if isinstance(i, int)]] if isinstance(given[0], int) else given

    def limit(self, room: int) -> int:
        """Return how many tokens may be written where there is room for so many; 0 reads the prompt alone."""
        asked = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        if asked == 0 and not self.echo:
            raise Refusal(400, "max_tokens is 0: nothing would be written without echo: true", "max_tokens")
        return min(asked, room)


class ScoreBody(BaseModel):
    """The body of ``/v1/score``: completions, and the prompt of each or one for all, as texts or conversations."""

    model: Annotated[SoundText, Field(max_length=200)] = ""
    prompts: SoundText | Annotated[list[SoundText | list[TurnBody]], Field(min_length=1, max_length=4096)]
    completions: SoundText | Annotated[list[SoundText], Field(min_length=1, max_length=4096)]


class TokenizeBody(BaseModel):
    """The body of ``/tokenize``: a text, or a conversation as the model would be asked to answer it."""

    model: Annotated[SoundText, Field(max_length=200)] = ""
    prompt: SoundText | None = None
    messages: Annotated[list[TurnBody], Field(min_length=1, max_length=2000)] | None = None


class DetokenizeBody(BaseModel):
    """The body of ``/detokenize``."""

    model: Annotated[SoundText, Field(max_length=200)] = ""
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=1_000_000)]
