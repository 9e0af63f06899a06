"""The annotation app on the network: where it listens, by which names it is called, and serving it meanwhile."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accord.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from accord.people.desk import Desk
    from accord.people.web.connections import Connections, GuardedServer

# Addresses that mean every interface: to listen on, not to call.
_ANYWHERE = {"0.0.0.0", "::", ""}
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Address:
    """Where an app listens, and by which further names browsers may call it; port 0 takes a free one.

    ``proxies`` are addresses of proxies that are believed for whom they ask (``X-Forwarded-For``).
    """

    host: str = "127.0.0.1"
    port: int = 8765
    allow: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                hint = "give the proxy's own, such as 127.0.0.1 or 10.0.0.0/24"
                raise UsageError(f"{proxy!r} is no address", where="--proxy", hint=hint) from error

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in _THIS_MACHINE

    def names(self) -> list[str]:
        """The names by which the app may be called."""
        from accord.people.web.app import LOOPBACK

        return [*LOOPBACK, *([] if self.host in _ANYWHERE else [_bracketed(self.host)]), *self.allow]

    def url(self, listening: socket.socket) -> str:
        """The address of an app that listens there, as this machine calls it."""
        shown = "127.0.0.1" if self.host in _ANYWHERE else self.host
        return f"http://{_bracketed(shown)}:{listening.getsockname()[1]}"

    def url_for_others(self, listening: socket.socket) -> str:
        """The same as other machines call it: by the first name that was allowed."""
        return f"http://{self.allow[0]}:{listening.getsockname()[1]}" if self.allow else self.url(listening)

    def bound(self) -> socket.socket:
        """Bind the port before the server starts, so that a port in use is reported at once. Raises ResourceError."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # With the protocol named, asyncio sends small answers at once; else they wait 40 ms for an acknowledgement.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        # A restart does not wait for the last connections of the server before.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self.host, self.port))
        except OSError as error:
            listening.close()
            hint = "choose another one with --port, or 0 for any"
            told = f"cannot listen on {self.host} port {self.port}: {error.strerror}"
            raise ResourceError(told, hint=hint) from error
        return listening


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def admin_entry(desk: Desk, url: str) -> dict[str, str]:
    """Return a link for an admin: at first it makes one, later it logs the first one in. Either works once."""
    token, admin = desk.directory.start_link()
    return {"link": f"{url}/join/{token}", "for": admin.name if admin else "a new admin"}


def server_of(app: ASGIApp, address: Address | None = None, *, connections: Connections | None = None) -> GuardedServer:
    """Make the server of an app. There is no access log: addresses of invitations hold tokens.

    Args:
        connections: What bounds its connections; as many as the process can have where it is not given.
    """
    from accord.people.web.connections import GuardedServer

    proxies = [*(address.proxies if address else ())]
    return GuardedServer(
        app,
        connections,
        # By name, or uvloop would take its place wherever another package has brought it along.
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_level="error",
        server_header=False,
        # Who is asked for by whom is believed of named proxies alone: else everybody would be whoever one likes, and
        # limits of tries none.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        # Connections are kept longer than the minute of proxies: who closes first loses no request.
        timeout_keep_alive=65,
        # A client that keeps its connection must not hold up the end.
        timeout_graceful_shutdown=2,
    )


@contextlib.contextmanager
def served(app: ASGIApp, listening: socket.socket, address: Address | None = None) -> Iterator[threading.Thread]:
    """Serve an app until the block ends, in the thread that it gives. Raises ResourceError where it does not start."""
    server = server_of(app, address)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise ResourceError("the app did not start")
            time.sleep(0.01)
        yield thread
    finally:
        server.should_exit = True
        thread.join()
