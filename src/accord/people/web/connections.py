"""Connections to the app: how long a request may take to come in, and how many may wait, of one address and in all.

Whoever opens a connection and sends half a request costs nothing and would hold a place for ever. So each half has its
time; of one address only so many are waited for, and when all places are taken, who has kept the server waiting longest
makes room. Who sends whole requests is never turned away for others who do not.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any

import h11
from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for a head, of a few hundred bytes, and for a body, of a megabyte at most: 17 kB a second.
PATIENCE_S: Mapping[str, float] = {"head": 15.0, "body": 60.0, "closing": 10.0}
# Seconds without a byte taken, for who reads an answer.
STUCK_S = 60.0
# Requests of one address that are not whole. A browser opens six; an office of some hundred browsers is one address,
# but its requests come whole in milliseconds.
MOST_HALF_SENT = 100
# Connections in all, where the system allows it: six for each of a thousand browsers.
_WANTED = 6_000
# Files that the store, the pages and the system need beside connections.
_OTHER_FILES = 256
# Connections taken at a time, and those in line at the system. asyncio takes at once as many as may wait there, before
# any is counted; where files run out in the middle of that it spins (Python 3.11).
_AT_A_TIME, _IN_LINE = 16, 1024
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 23\r\n\r\nToo many connections.\r\n"
)


def room_for_connections() -> int:
    """Return how many connections this process can have, after asking the system for more where it has few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _WANTED
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # a sandbox may refuse: then it is what it is
        allowed = soft
    return max(allowed // 4, allowed - _OTHER_FILES)


class GuardedServer(Server):
    """A server whose connections are bounded.

    Args:
        connections: What bounds them; as many as the process can have where it is not given.
        settings: As uvicorn takes them.
    """

    def __init__(self, app: ASGIApp, connections: Connections | None = None, **settings: Any) -> None:
        known = connections or Connections(room_for_connections())
        protocol: Any = functools.partial(GuardedHttp, guard=known)
        super().__init__(Config(app, http=protocol, ws="none", backlog=_AT_A_TIME, **settings))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and let more connections wait at the system than are taken at a time."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(_IN_LINE)


class Connections:
    """The connections of one server. Used on its event loop's thread only.

    Args:
        most: Connections in all.
        half_sent: Requests that are not whole, of one address.
        patience_s: Seconds for a head, for a body, and for who shall close a connection.
    """

    def __init__(
        self, most: int, *, half_sent: int = MOST_HALF_SENT, patience_s: Mapping[str, float] = PATIENCE_S
    ) -> None:
        self.patience_s = patience_s
        self._most, self._half_sent = most, half_sent
        self._open = 0
        self._half: Counter[str] = Counter()
        # Those on which the server waits for the client: the one that has kept it waiting longest comes first.
        self._waiting: dict[GuardedHttp, None] = {}

    def came(self, one: GuardedHttp) -> bool:
        """Count a new connection; where all places are taken, another one makes room. False where none can."""
        self._open += 1
        return self._open <= self._most or self._make_room()

    def went(self, one: GuardedHttp) -> None:
        """Count a connection no longer."""
        self.waits(one, "")
        self._open -= 1

    def waits(self, one: GuardedHttp, phase: str) -> None:
        """Note what the server waits for on a connection: "head" or "body" of a request, "kept" open, "" nothing."""
        self._waiting.pop(one, None)
        self._count_half(one, phase in ("head", "body"))
        if phase:
            self._waiting[one] = None
        if self._half[one.address] > self._half_sent:
            next(other for other in self._waiting if other.is_half and other.address == one.address).end()

    def _count_half(self, one: GuardedHttp, is_half: bool) -> None:
        self._half[one.address] += is_half - one.is_half
        one.is_half = is_half
        if not self._half[one.address]:
            del self._half[one.address]  # addresses come and go

    def _make_room(self) -> bool:
        """End the connection that has waited longest, of the address that has the most waiting."""
        waiting = Counter(one.address for one in self._waiting)
        if not waiting:
            return False
        crowd = waiting.most_common(1)[0][0]
        next(one for one in self._waiting if one.address == crowd).end()
        return True


class GuardedHttp(H11Protocol):
    """uvicorn's connection with a deadline for each thing that it waits for."""

    def __init__(self, *args: Any, guard: Connections, **more: Any) -> None:
        super().__init__(*args, **more)
        self.address, self.is_half = "", False
        self._guard, self._phase = guard, ""
        self._deadline: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = crowd_of(self.client[0]) if self.client else ""
        if self._guard.came(self):
            self._follow()
        else:
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.went(self)
        for timer in (self._deadline, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._follow()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def end(self) -> None:
        """End it while the server waits: who has sent half a request is told that it came too late."""
        unanswered = self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        if self._phase in ("head", "body") and unanswered and not self.transport.is_closing():
            self.transport.write(_LATE)
        self.transport.close()
        self._follow()

    def _follow(self) -> None:
        """Look at what the server waits for now, and start the time for it where it is something new."""
        phase = self._waits_for()
        if phase == self._phase and phase != "kept":
            return
        self._phase = phase
        self._guard.waits(self, phase if phase != "closing" else "")
        if self._deadline is not None:
            self._deadline.cancel()
        seconds = self._guard.patience_s.get(phase)
        after = self.transport.abort if phase == "closing" else self.end
        self._deadline = None if seconds is None else self.loop.call_later(seconds, after)

    def _waits_for(self) -> str:
        if self.transport.is_closing():
            return "closing"
        if self.conn.their_state is h11.IDLE:
            return "kept" if self.timeout_keep_alive_task is not None else "head"
        return "body" if self.conn.their_state is h11.SEND_BODY else ""


def crowd_of(address: str) -> str:
    """Return what counts as one address: of IPv6 the first half, for who has one such network has all of it."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    mapped = known.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((known, 64), strict=False))
