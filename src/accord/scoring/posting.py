"""One JSON request to a server that may be busy: sent again where a later try may help, with growing pauses.

The server is a stranger: what it sends is bounded in size and in time, its redirects are not followed, and what it says
stands in messages without the caller's credentials.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from accord.errors import DataError, ResourceError, UsageError
from accord.progress import for_terminal

PASSING = (408, 425, 429)  # refusals that a later try may lift, besides all of 500 and above
LONGEST_PAUSE_S = 60.0  # what a server asks for with Retry-After is heeded so far: a day is no pause
MOST_BYTES = 16 * 2**20  # of an answer: a batch of scores is some kilobytes, a long reply some hundred
SHORTEST_KEY = 3  # characters
SHOWN = 80  # of an answer that cannot be read: bytes in the message


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: a POST would become a GET without its body, and take the key to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Deadline:
    """Cuts the connections of a request once it has taken too long altogether.

    A timeout of sockets counts from byte to byte: a server that sends one now and then would hold its caller for ever.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.has_passed = seconds, False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for one in self._sockets:
            one.close()

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        """Connect as `socket.create_connection` does."""
        made = socket.create_connection(*args, **kwargs)
        # A second handle of it: TLS takes the first one over.
        self._sockets.append(made.dup())
        self.require()
        return made

    def require(self) -> None:
        """Raise TimeoutError where the time is over: what was cut may look like an answer that has ended."""
        if self.has_passed:
            raise TimeoutError(f"not answered within {self.seconds:g} s")

    def _pass(self) -> None:
        self.has_passed = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    """Connects under a deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> http.client.HTTPResponse:
        return super().do_open(_connecting(http_class, self.deadline), req, **options)


class _Https(urllib.request.HTTPSHandler):
    """The same over TLS."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> http.client.HTTPResponse:
        return super().do_open(_connecting(http_class, self.deadline), req, **options)


def _connecting(kind: Any, deadline: _Deadline) -> Any:
    def made(host: str, **options: Any) -> Any:
        connection = kind(host, **options)
        connection._create_connection = deadline.connect  # its one place that makes a socket, before TLS and proxies
        return connection

    return made


@dataclass(frozen=True)
class Endpoint:
    """A URL that answers a POST of JSON; environment variables for proxies (``no_proxy`` among them) hold.

    A server that has not answered whole in ``timeout_s`` seconds, breaks off, or says that it is busy (408, 425, 429,
    5xx) is asked again, ``tries`` times in all, ``pause_s``, 2 ``pause_s``, 4 ``pause_s`` ... seconds apart, or as many
    as it asks for. ``secret`` is sent as the bearer's token; a user and password in the URL are sent as such. Neither
    stands in a message. ``wanted`` and ``hint`` are for errors.
    """

    url: str = field(repr=False)
    timeout_s: float
    pause_s: float
    tries: int
    wanted: str
    hint: str
    secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            urlsplit(self.url)
        except ValueError as error:
            raise UsageError(f"the URL of {self.wanted} cannot be understood ({error})") from error

    @property
    def place(self) -> str:
        """Return the URL as messages name it: without user, password and query, where keys may stand."""
        url = self._parts
        return f"{url.scheme}://{_host_of(url)}{url.path}" + ("?..." if url.query else "")

    def said(self, text: str) -> str:
        """Return what a server said as messages quote it: without what is secret, and without codes for a terminal."""
        url = self._parts
        for secret in filter(None, (self.secret, url.password, _basic(url), url.query, *_values(url.query))):
            text = text.replace(secret, "...").replace(unquote(secret), "...")
        return for_terminal(text)

    def post(self, body: Any) -> bytes:
        """Return the answer's body, after as many tries as it takes.

        Raises:
            ResourceError: the server cannot be reached, or is busy, at the last try too.
            DataError: it refuses what it is sent, or sends more than any answer needs.
        """
        failure: Exception | None = None
        for tried in range(self.tries):
            asked_s = 0.0
            try:
                return self._answer(json.dumps(body).encode())
            except _Busy as busy:
                asked_s, failure = busy.seconds, busy
            except (OSError, http.client.HTTPException) as error:
                failure = error
            if tried < self.tries - 1:
                time.sleep(max(self.pause_s * 2**tried, asked_s))
        raise ResourceError(
            f"no {self.wanted} after {self.tries} tries ({self.said(str(failure))})", where=self.place, hint=self.hint
        ) from failure

    def _answer(self, body: bytes) -> bytes:
        """Ask once."""
        url = self._parts._replace(netloc=_host_of(self._parts), fragment="").geturl()
        request = urllib.request.Request(url, body, self._headers())
        with _Deadline(self.timeout_s) as deadline:
            try:
                with _opened(request, deadline) as response:
                    answer: bytes = response.read(MOST_BYTES + 1)
            except urllib.error.HTTPError as error:
                raise self._refused(error) from error
            except (OSError, http.client.HTTPException):
                deadline.require()
                raise
            deadline.require()
        if len(answer) > MOST_BYTES:
            raise DataError(f"answers with more than {MOST_BYTES // 2**20} MB", where=self.place)
        return answer

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)

    def _headers(self) -> dict[str, str]:
        basic = _basic(self._parts)
        key = f"Bearer {self.secret}" if self.secret else f"Basic {basic}" if basic else ""
        return {"Content-Type": "application/json", **({"Authorization": key} if key else {})}

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """Return what a refusal is: a busy server's, with the seconds that it asks for, or one that no try lifts."""
        said = ""
        with error, contextlib.suppress(OSError, http.client.HTTPException):
            said = error.read(200).decode("utf-8", "replace")
        # What is refused now will be refused again: better to stop with the server's own words.
        if error.code < 500 and error.code not in PASSING:
            return DataError(f"refused with {error.code}: {self.said(said)}", where=self.place)
        wait = error.headers.get("Retry-After") or ""
        asked_s = min(LONGEST_PAUSE_S, float(wait[:9])) if wait.isascii() and wait.isdigit() else 0.0
        return _Busy(f"HTTP Error {error.code}: {error.reason}", asked_s)


class _Busy(Exception):
    """A server that may take the request later, and after how many seconds it says so."""

    def __init__(self, told: str, seconds: float) -> None:
        super().__init__(told)
        self.seconds = seconds


@contextlib.contextmanager
def _opened(request: urllib.request.Request, deadline: _Deadline) -> Iterator[Any]:
    opener = urllib.request.build_opener(NoRedirect, _Http(deadline), _Https(deadline))
    with opener.open(request, timeout=deadline.seconds) as response:
        yield response


def _host_of(url: SplitResult) -> str:
    """Return the host and port of a URL, without user and password."""
    return url.netloc.rpartition("@")[2]


def _values(query: str) -> list[str]:
    """Return what a query says, without what is too short to be a key and may stand anywhere."""
    return [value for _, value in parse_qsl(query) if len(value) >= SHORTEST_KEY]


def _basic(url: SplitResult) -> str:
    """Return user and password of a URL as HTTP sends them; "" where it names none."""
    if not url.username and not url.password:
        return ""
    return base64.b64encode(f"{unquote(url.username or '')}:{unquote(url.password or '')}".encode()).decode()
