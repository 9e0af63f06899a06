"""The routes: OpenAI's, the few that vLLM added and evaluators ask for, and those for who runs the server."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

import accord
from accord.records import Prompt
from accord.rollout.engine import Session
from accord.rollout.shaping import Told
from accord.serve.answers import (
    Answering,
    ChatDialect,
    CompletionDialect,
    Dialect,
    Keep,
    Writing,
    as_event,
    echoed,
    events,
    whole_answer,
)
from accord.serve.bodies import ChatBody, CompletionBody, DetokenizeBody, SamplingBody, ScoreBody, TokenizeBody
from accord.serve.fair_queue import Who
from accord.serve.feedback import FeedbackBody, FeedbackBook, ServedText
from accord.serve.guard import Doors, Porter
from accord.serve.measures import TEXT_FORMAT
from accord.serve.refusals import Refusal, refusal_of
from accord.serve.served import ServedPolicy, ServedScorer, Serving
from accord.serve.switch import Switch

routes = Doors()
#: Of a request, what its completions were drawn by: kept beside their log-probabilities.
DRAWN_BY = (
    *("temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
)
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
    policy = _variant(request, served.policy(body.model), body)
    ids = await run_in_threadpool(lambda: policy.tokenizer.encode_prompt(policy.prompt_of(body.turns())))
    sampling = body.sampling(body.limit(policy.room_behind(ids, "messages")), policy.vocab_size)
    answering = Answering.open(
        policy, [ids], [sampling], body, who=who_asks(request, body), patience=served.settings.keep_alive_s
    )
    dialect = ChatDialect(f"chatcmpl-{secrets.token_hex(12)}", policy, sampling.told is not None)
    turns = canonical(policy.tokenizer.chat is not None, body.turns())
    return await _answered(request, answering, dialect, body, [turns])


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
    dialect = CompletionDialect(f"cmpl-{secrets.token_hex(12)}", policy, told is not None, echoes, body.choices)
    if not any(limits):
        return JSONResponse(_only_read(dialect, ids, body))
    drawing = [replace(sampling, max_new_tokens=limit) for limit in limits]
    answering = Answering.open(
        policy, ids, drawing, body, who=who_asks(request, body), patience=served.settings.keep_alive_s
    )
    texts = [one if isinstance(one, str) else policy.tokenizer.spelled(one) for one in given]
    return await _answered(request, answering, dialect, body, [Prompt(text=text) for text in texts])


def _variant(request: Request, policy: ServedPolicy, body: ChatBody) -> ServedPolicy:
    """Return who answers a conversation: the policy that it asks for, or its canary."""
    switch: Switch | None = request.app.state.switch
    return policy if switch is None else switch.variant(policy, said_by(request, body), body.turns())


def said_by(request: Request, body: SamplingBody) -> str:
    """Return who asks, as an annotator is called: the key, and behind it the user that its holder names."""
    name: str = request.state.key.name
    return f"{name}/{body.user}" if body.user else name


def canonical(is_chat: bool, turns: Sequence[Mapping[str, str]]) -> Prompt:
    """Return a conversation as the store knows prompts; of a model without turns the text that it went on from."""
    return Prompt.of_messages(turns) if is_chat else Prompt(text="\n".join(turn["content"] for turn in turns))


def _ids_of(policy: ServedPolicy, prompt: str | list[int]) -> list[int]:
    return policy.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt


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


async def _answered(
    request: Request, answering: Answering, dialect: Dialect, body: SamplingBody, prompts: Sequence[Prompt]
) -> Response:
    keep = _keeper(request, answering, body, prompts)
    if body.stream:
        inside = request.state.inside
        inside.staying = True

        def close() -> None:
            answering.close()
            inside.leave()

        return EventStream(events(answering, dialect, body.wants_usage, keep), close)
    try:
        return JSONResponse(await until_gone(request, whole_answer(answering, dialect, keep)))
    finally:
        answering.close()


def _keeper(request: Request, answering: Answering, body: SamplingBody, prompts: Sequence[Prompt]) -> Keep | None:
    """Return what writes a choice down for feedback; None where nothing is kept."""
    book, key, policy = request.app.state.book, request.state.key, answering.policy
    if book is None or body.store is False:
        return None
    drawn_by = {name: getattr(body, name) for name in DRAWN_BY if getattr(body, name) is not None}

    async def keep(choice: Writing) -> str:
        place, tokens = answering.jobs.index(choice.job), choice.drawn
        detail = {
            "prompt_ids": choice.job.ids,
            "completion_ids": [token.token for token in tokens],
            "behaviour_logp": [token.logp for token in tokens],
            "finish": choice.finish,
            "sampling": json.dumps({**drawn_by, "seed": choice.job.seed, "sample": choice.sample}, sort_keys=True),
        }
        said = ServedText(
            who=key.name,
            said_by=said_by(request, body),
            said_by_kind=key.users,
            model=policy.name,
            version=policy.version,
            prompt=prompts[place].text,
            form=prompts[place].form,
            text=choice.text,
            detail=detail,
        )
        token: str = await run_in_threadpool(book.keep, said)
        return token

    return keep


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


# ---- feedback --------------------------------------------------------------------------------------------------------

IdempotencyKey = Annotated[
    str, Header(alias="Idempotency-Key", min_length=8, max_length=200, pattern=r"^[\x21-\x7e]+$")
]


@routes("POST", "/v1/feedback", "public")
async def give_feedback(request: Request, body: FeedbackBody, key: IdempotencyKey) -> JSONResponse:
    """Say something of a completion, by the token that came with it: no key is needed. Sent again it is the same."""
    book: FeedbackBook | None = request.app.state.book
    porter: Porter = request.app.state.gate
    porter.require_origin(request)
    if book is None:
        raise Refusal(404, "no feedback is kept here: serve a project")
    try:
        made = await run_in_threadpool(book.take, body, key)
    except Refusal as refusal:
        if refusal.status == 401:
            porter.attempt(request)
        raise
    content = {"object": "feedback", "id": made.id, "kind": made.kind, "judgements": made.judgements}
    return JSONResponse({**content, "repeated": made.repeated}, 200 if made.repeated else 201)


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
    ids = await run_in_threadpool(policy.tokenizer.encode_prompt, text)
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
