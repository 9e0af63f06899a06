"""The server as an app: routes, their guard, errors in OpenAI's shape, and headers on every answer."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import accord
from accord.errors import AccordError
from accord.people.web.app import LOOPBACK
from accord.people.web.security import Frame
from accord.serve.chat_page import chat_routes
from accord.serve.feedback import FeedbackBook
from accord.serve.guard import GuardedRoute, Porter
from accord.serve.keys import KeyRing
from accord.serve.measures import Measures
from accord.serve.refusals import Refusal, refusal_of
from accord.serve.routes import routes
from accord.serve.served import Serving
from accord.serve.switch import Switch

LONGEST_BODY = 4_000_000  # of a request's body: a whole context of any model here, some times over


def create_server(
    served: Serving,
    keys: KeyRing,
    *,
    book: FeedbackBook | None = None,
    switch: Switch | None = None,
    allowed_hosts: Iterable[str] = LOOPBACK,
    origins: Sequence[str] = (),
    most_bytes: int = LONGEST_BODY,
) -> FastAPI:
    """Create the app that answers with these models to who has a key.

    Args:
        switch: What gives conversations to a canary; None: there is none.
        book: Where completions and what users say of them are kept; None: nothing is.
        allowed_hosts: Names by which it may be called; others are refused (DNS rebinding).
        origins: Sites whose pages may ask (CORS); by default none.
        most_bytes: Longest body of a request.
    """
    app = FastAPI(
        title="Accord: serve",
        version=accord.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # behind the guard, as everything is
        redirect_slashes=False,
        max_body_size=most_bytes,
    )
    app.router.route_class = GuardedRoute
    app.state.served, app.state.gate = served, Porter(keys, frozenset(origins))
    app.state.book, app.state.switch = book, switch
    for doors in (routes, chat_routes):
        doors.open(app)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=[*origins], allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(Counted, measures=served.measures)
    app.add_middleware(Frame, allowed_hosts=allowed_hosts)
    for kind in (Refusal, AccordError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    said = refusal_of(error)
    return JSONResponse(said.content(), said.status, said.headers)


class Counted:
    """The layer that counts every answer, and gives it a name by which a log and a client can speak of it."""

    def __init__(self, app: ASGIApp, *, measures: Measures) -> None:
        self._app, self._measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        name, state = f"req-{secrets.token_hex(12)}", scope.setdefault("state", {})

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route, status = state.get("route", "other"), str(message["status"])
                self._measures.count("accord_requests_total", route=route, status=status)
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        return await self._app(scope, receive, send_counted)
