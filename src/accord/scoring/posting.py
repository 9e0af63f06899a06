"""One JSON request to a server that may be busy: sent again where a later try may help, with growing pauses."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from accord.errors import DataError, ResourceError

PASSING = (408, 425, 429)  # refusals that a later try may lift, besides all of 500 and above
LONGEST_PAUSE_S = 60.0  # what a server asks for with Retry-After is heeded so far: a day is no pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: a POST would become a GET without its body, and take the key to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """A URL that answers a POST of JSON; environment variables for proxies (``no_proxy`` among them) hold.

    A server that does not answer in ``timeout_s`` seconds, breaks off, or says that it is busy (408, 425, 429, 5xx) is
    asked again, ``tries`` times in all, ``pause_s``, 2 ``pause_s``, 4 ``pause_s`` ... seconds apart, or as many as it
    asks for. ``secret`` is sent as the bearer's token and stands in no message. ``wanted`` and ``hint`` are for errors.
    """

    url: str
    timeout_s: float
    pause_s: float
    tries: int
    wanted: str
    hint: str
    secret: str = field(default="", repr=False)

    def post(self, body: Any) -> bytes:
        """Return the answer's body, after as many tries as it takes.

        Raises:
            ResourceError: the server cannot be reached, or is busy, at the last try too.
            DataError: it refuses what it is sent.
        """
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self._headers())
        opener = urllib.request.build_opener(_NoRedirect)
        failure: Exception | None = None
        for tried in range(self.tries):
            asked_s = 0.0
            try:
                with opener.open(request, timeout=self.timeout_s) as response:
                    answer: bytes = response.read()
                    return answer
            except urllib.error.HTTPError as error:
                asked_s, failure = self._refused(error), error
            except (OSError, http.client.HTTPException) as error:
                failure = error
            if tried < self.tries - 1:
                time.sleep(max(self.pause_s * 2**tried, asked_s))
        raise ResourceError(
            f"no {self.wanted} after {self.tries} tries ({failure})", where=self.url, hint=self.hint
        ) from failure

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
        return {"Content-Type": "application/json", **key}

    def _refused(self, error: urllib.error.HTTPError) -> float:
        """Return the seconds that a busy server asks for. Raises DataError for a refusal that no later try lifts."""
        with error:
            said = error.read(200).decode("utf-8", "replace")
        # What is refused now will be refused again: better to stop with the server's own words.
        if error.code < 500 and error.code not in PASSING:
            shown = said.replace(self.secret, "...") if self.secret else said
            raise DataError(f"refused with {error.code}: {shown}", where=self.url) from error
        wait = error.headers.get("Retry-After") or ""
        return min(LONGEST_PAUSE_S, float(wait)) if wait.isascii() and wait.isdigit() else 0.0
