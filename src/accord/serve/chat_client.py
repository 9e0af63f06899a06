"""A conversation with a server that speaks OpenAI's interface, as a terminal has it: streamed, and with feedback."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any

from accord.errors import ResourceError, UsageError
from accord.scoring.posting import NoRedirect

SILENCE_S = 120.0  # between two pieces of an answer: a busy server says something every few seconds
MOST_SAID = 10_000  # bytes of an error


@dataclass
class Dialogue:
    """Turns with a server so far. ``token`` is that of the last answer; "" where the server keeps nothing."""

    url: str
    key: str = ""
    model: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    token: str = ""

    def models(self) -> list[str]:
        """Return what the server answers with."""
        found = json.loads(self._ask("/models").read())
        return [str(one["id"]) for one in found["data"] if one.get("task") != "score"]

    def ask(self, text: str) -> Iterator[str]:
        """Say something, and yield the answer piece by piece. An answer that fails leaves the question out again."""
        self.turns.append({"role": "user", "content": text})
        self.token, said = "", ""
        try:
            for event in self._events({"model": self.model, "messages": self.turns, "stream": True}):
                for choice in event["choices"]:
                    piece = choice.get("delta", {}).get("content") or ""
                    said += piece
                    self.token = (choice.get("feedback") or {}).get("token", self.token)
                    yield piece
        except BaseException:
            del self.turns[-1]
            raise
        self.turns.append({"role": "assistant", "content": said})

    def again(self) -> Iterator[str]:
        """Ask the last question again; the server is told so."""
        if len(self.turns) < 2:
            raise UsageError("there is no answer yet")
        if self.token:
            self.say("retry")
        asked = self.turns[-2]["content"]
        del self.turns[-2:]
        yield from self.ask(asked)

    def mend(self, text: str) -> None:
        """Say what the last answer should have been, and go on from that."""
        self.say("edit", value=text)
        self.turns[-1]["content"] = text

    def say(self, kind: str, **more: Any) -> None:
        """Say something of the last answer. Raises UsageError where there is none, or nothing is kept."""
        if not self.token:
            why = "this server keeps no feedback: serve a project" if self.turns else "there is no answer yet"
            raise UsageError(why)
        body = {"feedback_token": self.token, "kind": kind, **more}
        self._ask("/feedback", body, {"Idempotency-Key": secrets.token_hex(16)}).read()

    def _events(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        with self._ask("/chat/completions", body) as answer:
            for line in answer:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event: dict[str, Any] = json.loads(line[6:])
                if "error" in event:
                    raise ResourceError(str(event["error"].get("message", event["error"])), where=self.url)
                yield event

    def _ask(self, path: str, body: Any = None, more: Mapping[str, str] | None = None) -> HTTPResponse:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, {**headers, **(more or {})})
        try:
            opener = urllib.request.build_opener(NoRedirect)  # one would take the key to another host
            found: HTTPResponse = opener.open(request, timeout=SILENCE_S)
            return found
        except urllib.error.HTTPError as error:
            raise UsageError(_said(error), where=f"{self.url}{path}: {error.code}") from None
        except OSError as error:
            raise ResourceError("the server does not answer", why=str(error), where=self.url) from None


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(MOST_SAID))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
