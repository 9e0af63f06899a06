"""A real server on loopback that speaks the chat part of OpenAI's API, with a taste of its own and faults on demand."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_SHOWN = re.compile(r"<text(x*)_A>\n(.*)\n</text\1_A>\n\n<text\1_B>\n(.*)\n</text\1_B>", re.DOTALL)
Judge = Callable[[str, str], str]  # the texts shown as A and as B, to what is replied


def longer(first: str, second: str) -> str:
    """Prefer the longer text."""
    return "VERDICT: " + ("TIE" if len(first) == len(second) else "A" if len(first) > len(second) else "B")


def always_a(first: str, second: str) -> str:
    """Prefer what is shown first, whatever it says."""
    return "VERDICT: A"


class ChatServer(ThreadingHTTPServer):
    """``faults`` are acted out first, one a request: a status, headers with a status, "hang", "drop", or raw bytes."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judge = judge
        self.faults: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.hold_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def said_to(self, body: Mapping[str, Any]) -> str:
        shown = _SHOWN.search(body["messages"][1]["content"])
        assert shown is not None
        return self.judge(shown[2], shown[3])


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        made = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with made.lock:
            made.bodies.append(body)
            made.paths.append(self.path)
            made.headers.append(dict(self.headers))
            made.times.append(time.monotonic())
            made.at_once += 1
            made.most_at_once = max(made.most_at_once, made.at_once)
            fault = made.faults.pop(0) if made.faults else None
        try:
            time.sleep(made.hold_s)
            self._answer(fault, body)
        finally:
            with made.lock:
                made.at_once -= 1

    def _answer(self, fault: Any, body: Mapping[str, Any]) -> None:
        if fault == "hang":
            time.sleep(1.0)
        elif fault == "drop":
            self.close_connection = True
        elif isinstance(fault, bytes):
            self._send(200, fault, {})
        elif fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            self._send(status, f"no: {self.headers.get('Authorization')}".encode(), headers)
        else:
            said = {"choices": [{"message": {"role": "assistant", "content": self.server.said_to(body)}}]}
            self._send(200, json.dumps(said).encode(), {})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving_chat(judge: Judge) -> Iterator[ChatServer]:
    """Run such a server for as long as it lasts; ``no_proxy`` must name 127.0.0.1."""
    with ChatServer(judge) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()
