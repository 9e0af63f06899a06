"""Access to the app: levels of routes, sessions and tokens, CSRF, hosts, rates, and the headers of every answer.

Nothing is open by accident: a route without an access level cannot be made (`Routes`, `Guarded`), and the check runs
before the request's body is read.
"""

from __future__ import annotations

import hmac
import json
import math
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from accord.errors import UsageError
from accord.people.desk import Desk, Person
from accord.people.desk.answers import MOST_DEPTH, is_deep
from accord.people.desk.keys import hashed
from accord.people.web.connections import crowd_of
from accord.people.web.lines import Lane, WaitingLine

Access = Literal["public", "annotator", "manager", "admin"]
LEVEL = {access: level for level, access in enumerate(get_args(Access))}
# Methods that change nothing: they need no CSRF token.
SAFE = {"GET", "HEAD", "OPTIONS"}
# Bytes: room for two of the longest texts of an answer in any alphabet, at 4 bytes a character.
MAX_BODY = 1_000_000
# Headers of a request, and bytes of all with its address. Browsers send some twenty, of two thousand.
MOST_HEADERS, MOST_HEAD = 100, 32_000
# Bytes of a form that somebody sends who is not logged in: a name or a token, in any alphabet.
MOST_FORM = 10_000
# Texts come from models and strangers. Should a script ever pass the cleaner, browsers still run none but our files,
# send nothing elsewhere, and show no page of ours inside another site's (clickjacking).
CSP = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; object-src 'none'; "
    "frame-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": CSP,
    # An export is a file, whatever it looks like: never guessed to be a page.
    "x-content-type-options": "nosniff",
    # What frame-ancestors says, for older browsers.
    "x-frame-options": "DENY",
    # not "no-referrer": browsers would then send "Origin: null" with the forms of this very site
    "referrer-policy": "same-origin",
    # Windows and pages of other sites share no process or handle with ours.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # The pages need no device: a script that should not be there gets none either.
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
E = TypeVar("E", bound=Callable[..., Any])
# NUL and lone surrogates: databases and UTF-8 refuse them, long after the answer was accepted.
_UNSOUND = re.compile("[\x00\ud800-\udfff]")
_THIS_MACHINE = ("127.0.0.1", "::1")
_MOST_BUCKETS = 20_000  # 2 MB
_LARGEST = 2**53  # integers beyond this are not the same number to every reader of JSON


# ---- routes ------------------------------------------------------------------------------------------------------


@dataclass
class Routes:
    """A collection of routes. Each names its access where it is defined; the check is `Guarded`'s."""

    rows: list[tuple[str, str, Callable[..., Any], dict[str, Any]]] = field(default_factory=list)

    def __call__(
        self, verb: str, path: str, access: Access, *, lane: Lane | None = None, **options: Any
    ) -> Callable[[E], E]:
        usual: Lane = "read" if verb in SAFE else "write" if access != "public" else "door"

        def register(endpoint: E) -> E:
            endpoint.access, endpoint.lane = access, lane or usual  # type: ignore[attr-defined]
            self.rows.append((verb, path, endpoint, options))
            return endpoint

        return register

    def open(self, app: FastAPI) -> None:
        for verb, path, endpoint, options in self.rows:
            app.router.add_api_route(path, endpoint, methods=[verb], **options)


class Guarded(APIRoute):
    """A route that lets nobody pass whom its access level does not name."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.access = getattr(endpoint, "access", None)
        self.lane: Lane = getattr(endpoint, "lane", "read")
        # At the start, not at the first request: a route without access cannot be served at all.
        if self.access not in LEVEL:
            raise UsageError(f"the route {path} declares no access", hint=f"give one of {', '.join(LEVEL)}")
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        level = LEVEL[str(self.access)]

        async def guarded(request: Request) -> Response:
            request.state.person = await _admit(request, level)
            if request.method not in SAFE:
                await _require_fit(request, level)
            line: WaitingLine | None = request.app.state.lines.get(self.lane)
            async with nullcontext() if line is None else line.place():
                return await handle(request)

        return guarded


# ---- who is it ---------------------------------------------------------------------------------------------------


async def _admit(request: Request, level: int) -> Person | None:
    """Return the person behind the request; HTTPException 401, 403 or 429 for those who may not pass."""
    limits: Limits = request.app.state.limits
    token, by_cookie = _credential(request)
    # In a thread: it reads the database, and the event loop serves everybody.
    person = await run_in_threadpool(_person, request.app.state.desk, token, by_cookie) if token else None
    if person is None:
        # Only tokens that a program sent: an ended session in a browser is nobody's attempt to guess.
        if token and not by_cookie:
            limits.attempt(address(request))
        if level > 0:
            raise HTTPException(401, "log in first", headers={"WWW-Authenticate": "Bearer"})
        return None
    # By token, not by address: an office or a proxy is one address to us.
    limits.request(hashed(token))
    if person.disabled and level > 0:
        raise HTTPException(403, "this account is disabled")
    if LEVEL[person.role] < level:
        raise HTTPException(403, f"this needs the role {list(LEVEL)[level]}")
    if by_cookie and level > 0 and request.method not in SAFE:  # the open forms check the origin themselves
        _require_same_site(request, token)
    return person


def _credential(request: Request) -> tuple[str, bool]:
    """Return the token sent, and whether it is the browser's cookie. A header given is never completed by a cookie."""
    given = request.headers.get("authorization")
    if given is None:
        return request.cookies.get(session_cookie(request), ""), True
    scheme, _, token = given.partition(" ")
    return (token.strip() if scheme.lower() == "bearer" else ""), False


def session_cookie(request: Request) -> str:
    """Return the name of the session's cookie, with the port: browsers send a host's cookies to every server on it."""
    port = request.headers.get("host", "").rpartition(":")[2]
    return f"accord_session_{port}" if port.isdecimal() else "accord_session"


def _person(desk: Desk, token: str, by_cookie: bool) -> Person | None:
    return desk.directory.person_of_session(token) if by_cookie else desk.directory.person_of_token(token)


def _require_same_site(request: Request, session: str) -> None:
    """Require the CSRF token: a cookie travels by itself, this only our own pages know."""
    require_own_origin(request)
    # In constant time: how long a comparison takes says nothing of how much was right.
    if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), csrf_token(session).encode()):
        raise HTTPException(403, "the page is out of date: reload it (CSRF token missing or wrong)")


def require_own_origin(request: Request) -> None:
    """Refuse what another site sent in a browser's name."""
    origin = request.headers.get("origin")
    # Programs and old browsers send no Origin; whoever sends one must be us.
    if origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host', '')}":
        raise HTTPException(403, "this came from another site (wrong Origin)")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "this came from another site")


def csrf_token(session: str) -> str:
    """Return the token that only pages of a session know: no script can read the session's own."""
    return hashed("csrf " + session)


def address(request: Request) -> str:
    """Return where a request comes from, as far as limits go. Only a proxy that was named is believed who that is."""
    return crowd_of(request.client.host) if request.client else "unknown"


# ---- how often ---------------------------------------------------------------------------------------------------


class Buckets:
    """Token buckets, one a key: ``burst`` at once, then ``rate`` a second. Used on the event loop's thread only."""

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._held: dict[str, tuple[float, float]] = {}  # key -> (tokens left, when that was so)

    def take(self, key: str) -> float:
        """Return 0 where the request may pass, else the seconds to wait."""
        now = self._clock()
        left, then = self._held.get(key, (float(self._burst), now))
        left = min(self._burst, left + (now - then) * self._rate)
        # A refused request takes nothing, so that waiting as long as asked for is enough.
        if left < 1:
            return (1 - left) / self._rate
        self._held.pop(key, None)
        self._held[key] = (left - 1, now)
        # The one used longest ago is the fullest; of so many keys none is anybody's trouble.
        while len(self._held) > _MOST_BUCKETS:
            del self._held[next(iter(self._held))]
        return 0.0


class Limits:
    """Limits on a person's requests (far above what hands can do) and on wrong credentials from an address."""

    def __init__(self) -> None:
        # 50 a second, for simulated annotators work through the same routes. Ten wrong tokens, then one in 6 seconds:
        # far from guessing 256 random bits, and quick enough for who copied a token badly.
        self._requests, self._attempts = Buckets(50, 300), Buckets(1 / 6, 10)

    def request(self, key: str) -> None:
        _wait(self._requests.take(key), "too many requests")

    def attempt(self, key: str) -> None:
        _wait(self._attempts.take(key), "too many attempts")


def _wait(seconds: float, why: str) -> None:
    if seconds > 0:
        raise HTTPException(429, why, headers={"Retry-After": str(math.ceil(seconds))})


# ---- what may come in, what goes out -----------------------------------------------------------------------------


async def _require_fit(request: Request, level: int) -> None:
    """Refuse bodies that are too large for who is not known, and JSON that nobody could hold."""
    if level == 0:
        # Nothing of a stranger's is parsed but a short form, and its length is known before a byte is read.
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MOST_FORM:
            raise HTTPException(413, f"a form has a length, of at most {MOST_FORM} bytes")
    try:
        body = await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "the request ended in the middle") from None
    if level > 0:
        _require_sane(body, request.headers.get("content-type", ""))


def _require_sane(body: bytes, content_type: str) -> None:
    """Refuse JSON that no database and no other program could hold: NUL, half characters, NaN, enormous numbers."""
    if not body or "json" not in content_type.lower():
        return
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(422, "the body is not JSON") from None
    if is_deep(value):
        raise HTTPException(422, f"the body is nested more than {MOST_DEPTH} deep")
    if not _sane(value):
        raise HTTPException(422, "the body holds a NUL, half a character, or a number out of range")


def _sane(value: Any) -> bool:
    if isinstance(value, str):
        return sane_text(value)
    if isinstance(value, dict):
        return all(sane_text(key) and _sane(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_sane, value))
    return not isinstance(value, int | float) or -_LARGEST <= value <= _LARGEST  # False for NaN


def sane_text(text: str) -> bool:
    return not _UNSOUND.search(text)


class Frame:
    """The outermost layer: refuses hosts that are not ours (DNS rebinding) and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Iterable[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                # What a person sees must not be found in a shared browser's cache after logging out.
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if scope["client"] and scope["client"][0] in _THIS_MACHINE and _says_https(scope):
            scope["scheme"] = "https"
        refused = self._refused(scope)
        return await (refused or self._app)(scope, receive, send_framed)

    def _refused(self, scope: Scope) -> Response | None:
        """Return the answer to a head that goes no further; None for one that does."""
        headers = Headers(scope=scope)
        if len(headers) > MOST_HEADERS or sum(map(len, (scope["raw_path"], *headers.values()))) > MOST_HEAD:
            return _refusal(431, "Too many headers, or too long ones.")
        # Two lengths: a proxy may go by the one and we by the other, and a request would hide in this one's body.
        if "content-length" in headers and "transfer-encoding" in headers:
            # Closed: what follows on the connection would be read as a request of its own.
            return _refusal(400, "A body has one length.", {"connection": "close"})
        host = headers.get("host", "")
        if host_name(host) not in self._hosts:
            return _refusal(
                400, f"The host {host[:100]!r} is not served here. Start with --allow-host NAME to allow it."
            )
        texts = (scope["path"], scope["query_string"].decode("latin-1"))
        if not all(map(sane_text, texts)) or b"%00" in scope["query_string"]:
            return _refusal(400, "Bad address.")
        return None


def _refusal(status: int, said: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(f"{said}\n", status, headers, "text/plain")


def _says_https(scope: Scope) -> bool:
    """Whether a proxy on this machine has spoken HTTPS. Who lies only has one's own cookies kept for HTTPS."""
    return Headers(scope=scope).get("x-forwarded-proto", "").strip().lower() == "https"


def host_name(host: str) -> str:
    """Return a Host header without its port: ``[::1]:80`` is ``[::1]``."""
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() and name else host).lower()
