"""Access to the server: every route says who may use it, and whoever may not is told before its body is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from accord.errors import UsageError
from accord.people.web.security import Buckets, address
from accord.serve.keys import ApiKey, KeyRing
from accord.serve.refusals import Refusal, come_again

Door = Literal["public", "user", "operator"]
_E = TypeVar("_E", bound=Callable[..., Any])


@dataclass
class Doors:
    """A collection of routes. Each names who may use it where it is defined; the check is `GuardedRoute`'s."""

    rows: list[tuple[str, str, Callable[..., Any]]] = field(default_factory=list)

    def __call__(self, verb: str, path: str, door: Door) -> Callable[[_E], _E]:
        def register(endpoint: _E) -> _E:
            endpoint.door = door  # type: ignore[attr-defined]
            self.rows.append((verb, path, endpoint))
            return endpoint

        return register

    def open(self, app: FastAPI) -> None:
        for verb, path, endpoint in self.rows:
            app.router.add_api_route(path, endpoint, methods=[verb])


class GuardedRoute(APIRoute):
    """A route that lets in whom it names. One that names nobody cannot be made."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.door = getattr(endpoint, "door", None)
        if self.door not in ("public", "user", "operator"):
            raise UsageError(f"the route {path} does not say who may use it")
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, door, path = super().get_route_handler(), self.door, self.path

        async def guarded(request: Request) -> Response:
            gate: Porter = request.app.state.gate
            request.state.route = path
            if door == "public":
                return await handle(request)
            key = gate.admit(request)
            if door == "operator" and not key.operator:
                raise Refusal(403, "this needs an operator's key", code="operator_required")
            request.state.key = key
            with gate.counted(key) as inside:
                request.state.inside = inside
                return await handle(request)

        return guarded


@dataclass
class Porter:
    """Who is let in, how often, and how many times at once; used on the event loop's thread only.

    ``origins`` are sites whose pages may ask: others' pages could use a server that this machine alone can reach.
    """

    keys: KeyRing
    origins: frozenset[str] = frozenset()
    _attempts: Buckets = field(default_factory=lambda: Buckets(1 / 6, 10))
    _rates: dict[str, Buckets] = field(default_factory=dict)
    _inside: Counter[str] = field(default_factory=Counter)

    def admit(self, request: Request) -> ApiKey:
        """Return whose request it is. Raises Refusal with 401, 403 or 429."""
        self.require_origin(request)
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        key = self.keys.find(secret.strip() if scheme.lower() == "bearer" else "")
        if key is None:
            if secret:
                self.attempt(request)
            said = "this key is not known" if secret else "no key was sent: Authorization: Bearer KEY"
            raise Refusal(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if key.per_minute:
            rate = self._rates.setdefault(f"{key.hash} {key.per_minute}", Buckets(key.per_minute / 60, key.per_minute))
            if wait := rate.take(key.hash):
                raise come_again(f"more than {key.per_minute} requests a minute with this key", wait)
        return key

    def require_origin(self, request: Request) -> None:
        """Refuse what a page of another site sends. Raises Refusal with 403."""
        origin = request.headers.get("origin")
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        if origin is not None and origin != own and origin not in self.origins:
            raise Refusal(
                403, f"pages of {origin[:100]} may not ask here; --allow-origin lets them", code="wrong_origin"
            )

    def attempt(self, request: Request) -> None:
        """Count a wrong key or token. Raises Refusal with 429 where an address had too many."""
        if wait := self._attempts.take(address(request)):
            raise come_again("too many wrong keys", wait)

    def counted(self, key: ApiKey) -> Inside:
        """Count a request of a key until the block ends. Raises Refusal where it has too many."""
        if key.at_once and self._inside[key.hash] >= key.at_once:
            raise come_again(f"{key.at_once} requests with this key are being answered already", 1.0)
        return Inside(self._inside, key.hash)


@dataclass
class Inside:
    """One request that is being answered. A stream goes on after its route is left: ``staying``, until `leave`."""

    counts: Counter[str]
    key: str
    staying: bool = False

    def __enter__(self) -> Inside:
        self.counts[self.key] += 1
        return self

    def __exit__(self, *_: object) -> None:
        if not self.staying:
            self.leave()

    def leave(self) -> None:
        self.counts[self.key] -= 1
        if not self.counts[self.key]:
            del self.counts[self.key]
