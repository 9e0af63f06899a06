"""The server as its tests see it: the real app on a real port, with a model of their own behind it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from webapp import http

from accord.people.web.serving import Address
from accord.serve.app import create_server
from accord.serve.keys import KeyRing
from accord.serve.served import ServeSettings, Serving, open_served

JSON = dict[str, Any]


class Server:
    """A running server. ``served`` is what it answers with: what comes over the wire is compared with it."""

    def __init__(self, served: Serving, url: str) -> None:
        self.served, self.url = served, url
        self.client = http(base_url=url)

    def post(self, path: str, body: Mapping[str, Any], **more: Any) -> httpx2.Response:
        return self.client.post(path, json=dict(body), **more)

    def chat(self, content: str | list[JSON], **more: Any) -> JSON:
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        return self.answered("/v1/chat/completions", {"messages": messages, **more})

    def complete(self, prompt: Any, **more: Any) -> JSON:
        return self.answered("/v1/completions", {"prompt": prompt, **more})

    def answered(self, path: str, body: Mapping[str, Any]) -> JSON:
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.text
        found: JSON = answer.json()
        return found

    def refused(self, path: str, body: Mapping[str, Any], status: int, **more: Any) -> JSON:
        answer = self.post(path, body, **more)
        assert answer.status_code == status, answer.text
        error: JSON = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error

    def events(self, path: str, body: Mapping[str, Any]) -> list[JSON]:
        """The objects of a stream; its form is checked on the way."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            raw = b"".join(answer.iter_raw()).decode()
        blocks = [block for block in raw.split("\n\n") if block and not block.startswith(":")]
        assert all(block.startswith("data: ") for block in blocks) and blocks[-1] == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]

    def measure(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextlib.contextmanager
def serving(
    folders: Mapping[str, Path],
    settings: ServeSettings | None = None,
    keys: KeyRing | None = None,
    served: Serving | None = None,
    **options: Any,
) -> Iterator[Server]:
    """Serve models, or what is ``served`` already, until the block ends."""
    served = served or open_served(folders, settings or ServeSettings(rows=8))
    app = create_server(served, KeyRing(required=False) if keys is None else keys, **options)
    with Address(port=0).bound() as listening, running(app, listening):
        server = Server(served, f"http://127.0.0.1:{listening.getsockname()[1]}")
        with server.client:
            yield server
    served.close()


@contextlib.contextmanager
def running(app: Any, listening: Any) -> Iterator[None]:
    listening.listen(1024)
    config = uvicorn.Config(app, access_log=False, log_level="critical", lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    eventually(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is so; the bound is for what never is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
