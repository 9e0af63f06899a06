"""The routes: OpenAI's, the few that vLLM added and evaluators ask for, and those for who runs the server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

import accord
from accord.rollout.engine import Session
from accord.rollout.shaping import Told
from accord.serve.answers import (
    Answering,
    ChatDialect,
    CompletionDialect,
    Dialect,
    as_event,
    echoed,
    events,
    whole_answer,
)
from accord.serve.bodies import ChatBody, CompletionBody, DetokenizeBody, SamplingBody, ScoreBody, TokenizeBody
from accord.serve.fair_queue import Who
from accord.serve.guard import Doors
from accord.serve.measures import TEXT_FORMAT
from accord.serve.refusals import Refusal, refusal_of
from accord.serve.served import ServedPolicy, ServedScorer, Serving

routes = Doors()
_T = TypeVar("_T")


async def _served(request: Request) -> Serving:
    served: Serving = request.app.state.served
    return served


TheServed = Annotated[Serving, Depends(_served)]


# ---- answers ---------------------------------------------------------------------------------------------------------


@routes("POST", "/v1/chat/completions", "user")
async def chat_completions(request: Request, served: TheServed, body: ChatBody) -> Response:
    """Answer a conversation."""
    body.refuse_impossible()
    policy = served.policy(body.model)
    ids = await run_in_threadpool(lambda: policy.tokenizer.encode(policy.prompt_of(body.turns())))
    sampling = body.sampling(body.limit(policy.room_behind(ids, "messages")), policy.vocab_size)
    answering = Answering.open(
        policy, [ids], [sampling], body, who=who_asks(request, body), patience=served.settings.keep_alive_s
    )
    dialect = ChatDialect(f"chatcmpl-{secrets.token_hex(12)}", policy, sampling.told is not None)
    return await _answered(request, answering, dialect, body)


@routes("POST", "/v1/completions", "user")
async def text_completions(request: Request, served: TheServed, body: CompletionBody) -> Response:
    """Write on behind prompts, or with ``echo`` and ``max_tokens`` 0 say how likely they are."""
    body.refuse_impossible()
    policy, given = served.policy(body.model), body.prompts()
    ids = await run_in_threadpool(lambda: [[*_ids_of(policy, prompt)] for prompt in given])
    limits = [body.limit(policy.room_behind(one, "prompt")) for one in ids]
    sampling = body.sampling(max(*limits, 1), policy.vocab_size)
    told = sampling.told
    read: list[list[Told] | None] = [None] * len(ids)
    if body.echo and told is not None:
        read = [await _read(policy, one, told) for one in ids]
    echoes = [echoed(policy, *one) for one in zip(given, ids, read, strict=True)] if body.echo else []
    dialect = CompletionDialect(f"cmpl-{secrets.token_hex(12)}", policy, told is not None, echoes, body.n or 1)
    if not any(limits):
        return JSONResponse(_only_read(dialect, ids, body))
    drawing = [replace(sampling, max_new_tokens=limit) for limit in limits]
    answering = Answering.open(
        policy, ids, drawing, body, who=who_asks(request, body), patience=served.settings.keep_alive_s
    )
    return await _answered(request, answering, dialect, body)


def _ids_of(policy: ServedPolicy, prompt: str | list[int]) -> list[int]:
    return policy.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


async def _read(policy: ServedPolicy, ids: list[int], most: int) -> list[Told]:
    def work(session: Session) -> list[Told]:
        return session.read(ids, most)

    return await asyncio.wrap_future(policy.worker.aside(work))


def _only_read(dialect: CompletionDialect, ids: list[list[int]], body: SamplingBody) -> dict[str, Any]:
    """Return the prompts as they were echoed, with nothing written behind them."""
    pieces = [
        [replace(dialect.echoes[place], index=place, text="", tokens=(), finish="length")] for place in range(len(ids))
    ]
    whole = [replace(dialect, per_prompt=1).whole(one) for one in pieces]
    read = sum(map(len, ids))
    usage = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
    return {**dialect.head(streamed=False), "choices": whole, "usage": usage}


def who_asks(request: Request, body: SamplingBody) -> Who:
    """Return whose turn a request is: a key's, and within it that of the user whom its holder names."""
    return request.state.key.name, body.user or ""


async def _answered(request: Request, answering: Answering, dialect: Dialect, body: SamplingBody) -> Response:
    if body.stream:
        inside = request.state.inside
        inside.staying = True

        def close() -> None:
            answering.close()
            inside.leave()

        return EventStream(events(answering, dialect, body.wants_usage), close)
    try:
        return JSONResponse(await until_gone(request, whole_answer(answering, dialect)))
    finally:
        answering.close()


class EventStream(StreamingResponse):
    """Server-sent events. ``close`` is called once at the end, also where the client left before the first of them."""

    def __init__(self, content: Any, close: Callable[[], None]) -> None:
        # Proxies would collect a stream, and hand it on when it is over.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_told_errors(content), media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _told_errors(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass events on; an error after the first of them can only be said as one more."""
    try:
        async for event in content:
            yield event
    except Exception as error:
        yield as_event(refusal_of(error).content())


async def until_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what some work gives; it ends where the client leaves."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Refusal(499, "the client has left")
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


# ---- models ----------------------------------------------------------------------------------------------------------


@routes("GET", "/v1/models", "user")
async def list_models(served: TheServed) -> dict[str, Any]:
    """List what is served."""
    every: list[ServedPolicy | ServedScorer] = [*served.policies.values(), *served.scorers.values()]
    return {"object": "list", "data": [_model(one) for one in every]}


@routes("GET", "/v1/models/{name}", "user")
async def one_model(served: TheServed, name: str) -> dict[str, Any]:
    """Describe one of them."""
    return _model(served.scorers[name] if name in served.scorers else served.policy(name))


def _model(one: ServedPolicy | ServedScorer) -> dict[str, Any]:
    more = {"max_model_len": one.context} if isinstance(one, ServedPolicy) else {"task": "score"}
    said = {"id": one.name, "object": "model", "created": one.created, "owned_by": "accord", "version": one.version}
    return {**said, **more}


@routes("POST", "/v1/score", "user")
async def score_completions(served: TheServed, body: ScoreBody) -> dict[str, Any]:
    """Score completions by a reward model: a number each, in ``scores`` and as vLLM says it in ``data``."""
    scorer = served.scorer(body.model)
    texts = [body.completions] if isinstance(body.completions, str) else body.completions
    prompts = [body.prompts] * len(texts) if isinstance(body.prompts, str) else body.prompts
    if len(prompts) != len(texts):
        raise Refusal(400, f"{len(prompts)} prompts and {len(texts)} completions: give one for each", "prompts")
    pairs = [(scorer.prompt_of(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
    found = await run_in_threadpool(scorer.scores, pairs)
    data = [{"index": place, "object": "score", "score": one} for place, one in enumerate(found)]
    said = {"id": f"score-{secrets.token_hex(12)}", "object": "list", "model": scorer.name, "data": data}
    return {**said, "system_fingerprint": scorer.version, "scores": found}


@routes("POST", "/tokenize", "user")
async def tokenize(served: TheServed, body: TokenizeBody) -> dict[str, Any]:
    """Return the tokens of a text, or of a conversation up to where the assistant begins to write."""
    policy = served.policy(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Refusal(400, "give either prompt or messages", "prompt")
    text = body.prompt if body.prompt is not None else policy.prompt_of([m.turn() for m in body.messages or ()])
    ids = await run_in_threadpool(policy.tokenizer.encode, text)
    return {"count": len(ids), "max_model_len": policy.context, "tokens": ids}


@routes("POST", "/detokenize", "user")
async def detokenize(served: TheServed, body: DetokenizeBody) -> dict[str, str]:
    """Return the text of tokens, special ones included."""
    return {"prompt": served.policy(body.model).tokenizer.spelled(body.tokens)}


# ---- the server itself -----------------------------------------------------------------------------------------------


@routes("GET", "/health", "public")
async def health(served: TheServed) -> Response:
    """Say whether it answers: 200, or 503."""
    well = all(policy.worker.alive for policy in served.policies.values())
    return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503)


@routes("GET", "/version", "public")
async def version() -> dict[str, str]:
    """Return the version of Accord."""
    return {"version": accord.__version__}


@routes("GET", "/metrics", "operator")
async def metrics(served: TheServed) -> Response:
    """Return the measures as Prometheus reads them."""
    return Response(served.measures.text(), media_type=TEXT_FORMAT)


@routes("GET", "/openapi.json", "user")
async def interface(request: Request) -> dict[str, Any]:
    """Return the description of this interface, for programs that make clients."""
    schema: dict[str, Any] = request.app.openapi()
    return schema
