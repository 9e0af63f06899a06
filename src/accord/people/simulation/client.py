"""A small client of the annotation app, for programs that answer: one kept connection, a token, the standard library.

What the app refuses becomes a `Refused` with its status and words. A request that is safe to send again (claims, and
answers with their idempotency key, among them) is sent again when the connection breaks.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from accord.errors import DataError, ResourceError, UsageError

# Not less than the store waits for another writer (`accord.store.database.BUSY_TIMEOUT_S`): a claim may take as long.
TIMEOUT_S = 60.0
# With doubling waits from a tenth of a second: a server that restarts is back by then.
TRIES = 5
# The app takes requests of a megabyte: 200 tasks of some kilobytes stay below.
TASKS_A_REQUEST = 200


class Refused(DataError):
    """The app's answer was an error; ``status`` is that of HTTP."""

    def __init__(self, status: int, what: str, where: str) -> None:
        super().__init__(what, where=where)
        self.status = status


class Client:
    """A running app as one person uses it.

    Args:
        url: where it runs, ``http://host:port``.
        token: the person's API token.

    Raises:
        ResourceError: from every method, when the app cannot be reached.
        Refused: from every method, when it will not do it.
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not the address of an app", hint="write it like http://127.0.0.1:8765")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
        self._url, self._path = url, parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def close(self) -> None:
        self._connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        is_safe: bool = True,
    ) -> Any:
        """Return the JSON that the app answers; None where it answers nothing. Waits where the app asks to (429).

        What is not safe to send again goes over a fresh connection, since a kept one may have been closed meanwhile.
        """
        data = None if body is None else json.dumps(body).encode()
        # A person added twice would take a name that nobody uses.
        if not is_safe:
            self._connection.close()
        for attempt in range(TRIES):
            try:
                self._connection.request(method, self._path + path, data, {**self._headers, **(headers or {})})
                answer = self._connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if attempt == TRIES - 1 or not is_safe:
                    raise ResourceError(f"the app does not answer ({error})", where=self._url) from error
                time.sleep(0.1 * 2**attempt)
                continue
            if answer.status == 429 and attempt < TRIES - 1:
                time.sleep(float(answer.getheader("Retry-After") or 1))
                continue
            if answer.status >= 400:
                raise Refused(answer.status, _reason(text) or answer.reason, f"{method} {path}")
            return json.loads(text) if text else None
        raise AssertionError("the last try returns or raises")

    def claim(self) -> dict[str, Any] | None:
        """Return the next task as shown to this person; None when there is none."""
        found: dict[str, Any] | None = self.request("POST", "/api/claim", {"kinds": None})
        return found

    def submit(self, task_id: str, answer: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Send an answer and return the receipt. ``key`` is the same for the same answer, however often it is sent."""
        receipt: dict[str, Any] = self.request(
            "POST", f"/api/tasks/{task_id}/submit", dict(answer), {"Idempotency-Key": key}
        )
        return receipt

    def skip(self, task_id: str, reason: str) -> None:
        self.request("POST", f"/api/tasks/{task_id}/skip", {"reason": reason, "note": ""})

    def add_person(self, name: str) -> tuple[int, str]:
        """Add a simulated annotator, and return its id and token (for an admin)."""
        who = {"name": name, "role": "annotator", "simulated": True}
        made = self.request("POST", "/api/people", who, is_safe=False)
        return made["id"], made["token"]

    def dismiss(self, person_id: int) -> None:
        """Disable somebody's account (for an admin)."""
        self.request("POST", f"/api/people/{person_id}/disable")

    def add_tasks(self, tasks: Sequence[Mapping[str, Any]]) -> int:
        """Queue tasks as ``POST /api/tasks`` takes them (for a manager), and return how many were added."""
        added = 0
        for start in range(0, len(tasks), TASKS_A_REQUEST):
            some = [dict(task) for task in tasks[start : start + TASKS_A_REQUEST]]
            added += self.request("POST", "/api/tasks", some, is_safe=False)["added"]
        return added

    def waiting(self) -> int:
        """Return how many answers the queue waits for (for a manager)."""
        queue: dict[str, int] = self.request("GET", "/api/progress")["queue"]
        return queue["waiting"]

    def quality(self) -> dict[str, Any]:
        """Return `accord.people.quality.Quality.to_json` of the app's desk (for a manager)."""
        found: dict[str, Any] = self.request("GET", "/api/quality")
        return found


def _reason(text: bytes) -> str:
    """Return the message in an error's JSON, whatever its form."""
    try:
        said = json.loads(text)
    except ValueError:
        return ""
    if isinstance(said, dict):
        said = said.get("detail") or said.get("error") or said
    return said if isinstance(said, str) else json.dumps(said)
