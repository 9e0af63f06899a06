"""The annotation app as tests see it: the real server on a real port, the desk behind it, people with credentials."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from accord.config import LabelConfig
from accord.people.desk import Desk, NewTask, Person
from accord.people.web.app import create_app
from accord.people.web.connections import Connections
from accord.people.web.serving import Address, server_of
from accord.records import Completion, Prompt, Source
from accord.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTS = ("127.0.0.1", "localhost")
# The headless shell is the same browser without the parts that draw windows, and does the same tests in less time.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser"))), None)
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
CHROMIUM_ARGS += ["--disable-component-update", "--disable-sync"]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield running
        running.close()


# A client makes a context of its own in 50 ms, which is longer than most tests take; no test here speaks TLS.
_TLS = ssl.create_default_context()


def http(**more: Any) -> httpx2.Client:
    """Return a client as a test needs it: ready at once, and patient where the machine is busy."""
    return httpx2.Client(**{"verify": _TLS, "timeout": 60} | more)


def http_get(url: str, **more: Any) -> httpx2.Response:
    return httpx2.get(url, verify=_TLS, timeout=60, **more)


class Served:
    """A running app. ``desk`` is the one it serves: what was clicked is compared with what it holds."""

    def __init__(
        self,
        store: Store,
        settings: LabelConfig,
        clock: Any = time.time,
        folder: Path | None = None,
        connections: Connections | None = None,
        proxies: tuple[str, ...] = (),
    ) -> None:
        self.store = store
        self.desk = Desk(store, settings, clock=clock)
        self.app = create_app(self.desk, allowed_hosts=HOSTS, pictures=folder)
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        self.url, self.cookie = f"http://127.0.0.1:{port}", f"accord_session_{port}"
        self._server = server_of(self.app, Address(proxies=proxies), connections=connections)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=60)
        self._listening.close()

    def person(self, name: str, role: Any = "annotator") -> Person:
        known = {person.name: person for person in self.desk.directory.people()}
        return known[name] if name in known else self.desk.directory.add_person(name, role)

    def by_token(self, person: Person) -> httpx2.Client:
        """A program of this person's."""
        token = self.desk.directory.make_token(person.id, "tests")
        return http(base_url=self.url, headers={"Authorization": f"Bearer {token}"})

    def by_cookie(self, person: Person, *, csrf: bool = True) -> httpx2.Client:
        """This person's browser; with ``csrf`` it sends what the pages' script sends."""
        session = self.desk.directory.open_session(person.id)
        client = http(base_url=self.url, cookies={self.cookie: session})
        if csrf:
            shown = http_get(self.url, headers={"Cookie": f"{self.cookie}={session}"}).text
            found = re.search(r'<meta name="csrf" content="(\w+)"', shown)
            assert found is not None
            client.headers["X-CSRF-Token"] = found[1]
        return client


@contextlib.contextmanager
def labelling(place: Path | str, *words: str, cwd: Path | None = None) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """``accord label`` as a process, until the block ends: what it printed, and the process."""
    command = [sys.executable, "-m", "accord", "label", str(place), *words, "--port", "0", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, cwd=cwd, **pipes)
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline()]
        while lines[-1] and lines[-1] != "}\n":
            lines.append(server.stdout.readline())
        yield json.loads("".join(lines)), server
    finally:
        server.terminate()  # a shell's background jobs ignore SIGINT until the server has its own handler
        server.communicate(timeout=120)
    assert server.returncode in (0, -signal.SIGTERM)  # the latter: told to end before it had begun to serve


@contextlib.contextmanager
def serving(
    folder: Path,
    clock: Any = time.time,
    connections: Connections | None = None,
    proxies: tuple[str, ...] = (),
    **settings: Any,
) -> Iterator[Served]:
    with Store.open(folder / "accord.db") as store:
        served = Served(store, LabelConfig(**settings), clock, folder, connections, proxies)
        served.start()
        try:
            yield served
        finally:
            served.stop()


def task(kind: str, prompt: str | Prompt, *texts: str, **more: Any) -> NewTask:
    """A task of these texts, each from a policy of its own: policy-0, policy-1, ..."""
    asked = Prompt(text=prompt) if isinstance(prompt, str) else prompt
    sources = [Source(origin="policy", name=f"policy-{i}") for i in range(len(texts))]
    made = [Completion(prompt_id=asked.id, text=text, source=one) for text, one in zip(texts, sources, strict=True)]
    return NewTask(kind=kind, prompt=asked, completions=tuple(made), **more)
