"""The app under clients that send half, too much, too deep, from everywhere, all at once: by raw sockets."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UsageError
from accord.people.desk import Person
from accord.people.desk.answers import MOST_DEPTH, is_deep
from accord.people.remembered import Remembered
from accord.people.web import markdown, security
from accord.people.web.connections import Connections, crowd_of
from accord.people.web.lines import WaitingLine
from accord.people.web.security import MAX_BODY, MOST_FORM, Buckets, Guarded
from accord.people.web.serving import Address
from tests.webapp import Served, http, http_get, serving, task

HEAD = b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\n"
WHOLE = HEAD + b"\r\n"
PATIENT = {"head": 60.0, "body": 60.0, "closing": 5.0}


def opened(served: Served, *parts: bytes) -> socket.socket:
    """A connection that has sent something."""
    raw = socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=30)
    for part in parts:
        raw.sendall(part)
    return raw


def said(raw: socket.socket) -> bytes:
    """All that the server says until it closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := raw.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


# ---- half a request --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", b"408"),
        (b"G", b"408"),
        (HEAD, b"408"),
        (HEAD + b"X-Long: " + b"x" * 9_000, b"408"),
        (WHOLE + HEAD, b"200"),  # a second one, half
        (b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30\r\n\r\ntok", b"408"),
        (b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30\r\nExpect: 100-continue\r\n\r\n", b"408"),
        # Refused before its body, of which the rest never comes.
        (b"POST /api/claim HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\n\r\n{", b"401"),
        (b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", b"413"),
    ],
    ids=["nothing", "letter", "head", "long head", "second", "body", "expect", "refused", "chunk"],
)
def test_half_a_request_has_its_time_and_no_more(
    tmp_path: Path, sent: bytes, told: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    soon = Connections(100, patience_s={"head": 0.3, "body": 0.3, "closing": 0.3})
    with serving(tmp_path, connections=soon) as served, opened(served, sent) as raw:
        served._server.config.timeout_keep_alive = 1
        start = time.monotonic()
        answer = said(raw)
        assert told in answer.partition(b"\r\n")[0] or (told in answer and time.monotonic() - start < 20)
        assert http_get(f"{served.url}/login").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_byte_now_and_then_buys_no_time(tmp_path: Path) -> None:
    soon = Connections(100, patience_s={"head": 0.5, "body": 0.5})
    with serving(tmp_path, connections=soon) as served, opened(served, HEAD) as raw:
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < 30:
                raw.sendall(b"X-A: b\r\n")
                time.sleep(0.05)
                raw.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    if b"408" in raw.recv(100):
                        break
        assert time.monotonic() - start < 20


def test_half_sent_requests_of_one_address_are_bounded_and_whole_ones_pass(
    tmp_path: Path, sockets: contextlib.ExitStack
) -> None:
    with serving(tmp_path, connections=Connections(1000, half_sent=5, patience_s=PATIENT)) as served:
        half = [sockets.enter_context(opened(served, HEAD)) for _ in range(8)]
        assert [said(raw)[:12] for raw in half[:3]] == [b"HTTP/1.1 408"] * 3  # who waited longest
        for _ in range(20):
            assert http_get(f"{served.url}/login").status_code == 200
        half[7].sendall(b"\r\n")  # and the last one may still be made whole
        assert half[7].recv(15) == b"HTTP/1.1 200 OK"


def test_whoever_keeps_the_server_waiting_makes_room(tmp_path: Path, sockets: contextlib.ExitStack) -> None:
    """Heads and bodies half sent, connections kept open after an answer: none of them keeps a whole request out."""
    with serving(tmp_path, connections=Connections(20, half_sent=1000, patience_s=PATIENT)) as served:
        kinds = [HEAD, b"", WHOLE, b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30\r\n\r\n"]
        for number in range(60):
            sockets.enter_context(opened(served, kinds[number % len(kinds)]))
            assert number % 10 or http_get(f"{served.url}/login").status_code == 200
        assert http_get(f"{served.url}/login").status_code == 200


def test_when_nobody_can_make_room_one_is_told_to_come_again(tmp_path: Path, sockets: contextlib.ExitStack) -> None:
    with serving(tmp_path, connections=Connections(3, patience_s=PATIENT)) as served:
        token = served.desk.directory.make_token(served.person("Eve").id, "x")
        head = f"POST /api/claim HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        claim = f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        with writer_held(served):
            working = [sockets.enter_context(opened(served, claim)) for _ in range(3)]
            wait_until(lambda: served.app.state.lines["write"]._free._value == 21)
            with opened(served, WHOLE) as late:
                told = said(late)
            assert told.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in told
        assert [raw.recv(12) for raw in working] == [b"HTTP/1.1 204"] * 3


def wait_until(done: Any) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_twelve_hundred_half_sent_requests_lock_nobody_out(tmp_path: Path, sockets: contextlib.ExitStack) -> None:
    """`accord label` itself, with as few files as a system may give it; it was out of reach from then on."""
    (tmp_path / "accord.yaml").write_text("store: accord.db\n")
    command = f"ulimit -n 256; exec {sys.executable} -m accord label {tmp_path} --port 0 --json"
    server = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline()]
        while lines[-1] and lines[-1] != "}\n":
            lines.append(server.stdout.readline())
        url = json.loads("".join(lines))["url"]
        port = int(url.rpartition(":")[2])
        for number in range(1200):
            raw = sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            with contextlib.suppress(ConnectionError):
                raw.sendall(HEAD if number % 2 else b"")
        for _ in range(5):
            assert http_get(f"{url}/login").status_code == 200
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=60)
    assert "Too many open files" not in errors and "Traceback" not in errors


def test_who_breaks_off_a_body_makes_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path) as served:
        token = served.desk.directory.make_token(served.person("Eve").id, "x")
        head = f"POST /api/claim HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        for door in (head, "POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
            with opened(served, f"{door}Content-Type: application/json\r\nContent-Length: 200\r\n\r\n{{".encode()):
                time.sleep(0.3)
        assert http_get(f"{served.url}/login").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


# ---- many at once ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writer_held(served: Served) -> Iterator[None]:
    """Nothing is written while the block runs, as if another program wrote to the store."""
    held, go_on = threading.Event(), threading.Event()

    def hold(connection: Any) -> None:
        held.set()
        go_on.wait(60)

    thread = threading.Thread(target=served.store.write, args=(hold,))
    thread.start()
    held.wait(60)
    try:
        yield
    finally:
        go_on.set()
        thread.join()


def claims(served: Served, person: Person, number: int) -> list[threading.Thread]:
    """So many claims at once; their statuses are in ``statuses`` of each thread."""
    token = served.desk.directory.make_token(person.id, "tests")

    def claim(statuses: list[tuple[int, str]]) -> None:
        with http(base_url=served.url, headers={"Authorization": f"Bearer {token}"}) as client:
            answer = client.post("/api/claim", json={})
            statuses.append((answer.status_code, answer.headers.get("retry-after", "")))

    threads = []
    for _ in range(number):
        statuses: list[tuple[int, str]] = []
        threads.append(threading.Thread(target=claim, args=(statuses,)))
        threads[-1].statuses = statuses  # type: ignore[attr-defined]
    return threads


def test_waiting_writers_do_not_stop_who_reads(tmp_path: Path) -> None:
    """Forty threads serve everybody; with forty-five claims in line nobody could read a page."""
    with serving(tmp_path) as served, served.by_token(served.person("Ada", "admin")) as ada:
        threads = claims(served, served.person("Eve"), 45)
        with writer_held(served):
            for thread in threads:
                thread.start()
            wait_until(lambda: served.app.state.lines["write"]._waiting == 45 - 24)
            for path in ("/api/me", "/manage/people", "/api/progress"):
                assert ada.get(path, timeout=30).status_code == 200
        for thread in threads:
            thread.join()
        assert [thread.statuses for thread in threads] == [[(204, "")]] * 45  # type: ignore[attr-defined]


def test_a_line_that_is_too_long_or_too_slow_is_told_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.app.state.lines = {"write": WaitingLine(1, 2, 0.5)}
        threads = claims(served, served.person("Eve"), 6)
        with writer_held(served):
            for thread in threads:
                thread.start()
            wait_until(lambda: sum(not thread.is_alive() for thread in threads) == 5)
        for thread in threads:
            thread.join()
        answers = sorted(thread.statuses[0] for thread in threads)  # type: ignore[attr-defined]
        assert answers == [(204, "")] + [(503, "5")] * 5


def test_reports_and_doors_have_lines_of_their_own(tmp_path: Path) -> None:
    """Who asks for report after report, or knocks without a credential, takes nobody's place but their like's."""
    with serving(tmp_path) as served:
        routes = [route for route in served.app.routes if isinstance(route, Guarded)]
        lanes = {f"{verb} {route.path}": (route.lane, route.access) for route in routes for verb in route.methods}
        dear = ("/api/quality", "/api/disagreements", "/api/export", "/manage", "/manage/disagreements", "/manage/gold")
        assert {lanes[f"GET {path}"][0] for path in dear} == {"slow"}
        assert lanes["GET /task"][0] == "write"  # it leases one
        for name, (lane, access) in lanes.items():
            if not name.startswith("GET"):
                assert lane == ("door" if access == "public" else "write"), name
        taken = sum(line._free._value for line in served.app.state.lines.values())
        assert taken == 32  # of 40 threads


# ---- from everywhere -------------------------------------------------------------------------------------------------


def tried(served: Served, *forwarded: str) -> list[int]:
    with http(base_url=served.url) as client:
        answers = [client.post("/login", data={"token": "no"}, headers={"X-Forwarded-For": one}) for one in forwarded]
    return [answer.status_code for answer in answers]


def test_nobody_says_by_oneself_who_one_is(tmp_path: Path) -> None:
    """Ten tries an address, whatever the header says; it was believed on this machine, a new address for each try."""
    with serving(tmp_path) as served:
        served.app.state.limits._attempts = Buckets(1e-6, 10)
        assert tried(served, *(f"10.0.0.{n}" for n in range(13))) == [401] * 10 + [429] * 3
        right = served.desk.directory.make_token(served.person("Eve").id, "x")
        with http(base_url=served.url) as client:  # who has the right one is not kept out
            assert client.post("/login", data={"token": right}).status_code == 303


def test_a_proxy_that_was_named_is_believed_for_the_last_address_alone(tmp_path: Path) -> None:
    with serving(tmp_path, proxies=("127.0.0.1",)) as served:
        served.app.state.limits._attempts = Buckets(1e-6, 2)
        assert tried(served, "9.9.9.9", "9.9.9.9", "9.9.9.9", "8.8.8.8") == [401, 401, 429, 401]
        # A client writes what it likes before what the proxy adds.
        assert tried(served, *(f"1.2.3.{n}, 7.7.7.7" for n in range(3))) == [401, 401, 429]


def test_one_network_of_ipv6_is_one_address() -> None:
    home = {crowd_of(f"2001:db8:1:2:{n:x}::{n:x}") for n in range(50)}
    assert home == {"2001:db8:1:2::/64"} and crowd_of("2001:db8:1:3::1") not in home
    assert crowd_of("::ffff:10.0.0.1") == crowd_of("10.0.0.1") == "10.0.0.1"
    assert (crowd_of("fe80::1%eth0"), crowd_of("testclient")) == ("fe80::/64", "testclient")


def test_many_addresses_fill_no_memory() -> None:
    buckets = Buckets(1e-9, 1)
    for number in range(50_000):
        assert buckets.take(str(number)) == 0
    assert len(buckets._held) == 20_000 and buckets.take("49999") > 0


def test_a_proxy_has_an_address() -> None:
    assert Address(proxies=("127.0.0.1", "10.0.0.0/24", "::1")).proxies
    for wrong in ("*", "nginx", ""):
        with pytest.raises(UsageError, match="is no address"):
            Address(proxies=(wrong,))


# ---- too deep, too large ---------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = "x"
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def test_depth_is_counted() -> None:
    assert not is_deep("x") and not is_deep(nested(MOST_DEPTH)) and is_deep(nested(MOST_DEPTH + 1))
    assert is_deep(nested(100_000)) and not is_deep([[]] * 1000)


@pytest.mark.parametrize("depth", [33, 200, 330, 480, 900, 990, 5000])
def test_a_deep_draft_is_refused_and_its_page_opens(tmp_path: Path, depth: int) -> None:
    with serving(tmp_path) as served, served.by_token(served.person("Eve")) as eve:
        served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
        held = eve.post("/api/claim", json={}).json()["task_id"]
        deep = b'{"note": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        headers = {"Content-Type": "application/json"}
        assert eve.put(f"/api/tasks/{held}/draft", content=deep, headers=headers).status_code == 422
        # As an older version kept it.
        served.store.write(
            lambda connection: connection.exec_driver_sql("UPDATE assignments SET draft = ?", (deep.decode(),))
        )
        for path in (f"/task/{held}", "/task", f"/api/tasks/{held}"):
            assert eve.get(path).status_code == 200
        assert eve.post("/api/claim", json={}).json()["draft"] is None
        assert (
            eve.put(f"/api/tasks/{held}/draft", json=nested(MOST_DEPTH - 1) if MOST_DEPTH % 2 else {}).status_code
            == 204
        )


def test_the_desk_itself_keeps_no_deep_draft(tmp_path: Path) -> None:
    from accord.errors import DataError

    with serving(tmp_path) as served:
        served.desk.queue.add_tasks([task("pair", "Which?", "one", "two")])
        eve = served.person("Eve")
        held = served.desk.queue.claim(eve.id)
        assert held is not None
        with pytest.raises(DataError, match="nested too deep"):
            served.desk.queue.save_draft(eve.id, held.task.id, {"a": nested(50)})


def test_nothing_is_parsed_before_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as served, http(base_url=served.url) as client:
        parsed: list[int] = []
        monkeypatch.setattr(security, "_require_sane", lambda body, kind: parsed.append(len(body)))
        large = b"[" + b"1," * (MAX_BODY // 2 - 10) + b"1]"
        headers = {"Content-Type": "application/json"}
        for path, status in (("/login", 413), ("/join", 413), ("/api/claim", 401), ("/api/tasks", 401)):
            assert client.post(path, content=large, headers=headers).status_code == status
            assert client.post(path, content=iter([large]), headers=headers).status_code == status
        small = b"x" * MOST_FORM
        assert client.post("/login", content=small, headers=headers).status_code == 401
        assert parsed == []


def test_a_name_and_a_token_fit_in_any_alphabet(tmp_path: Path) -> None:
    with serving(tmp_path) as served, http(base_url=served.url) as client:
        client.get(f"/join/{served.desk.directory.invite('annotator', by=None)}")
        assert client.post("/join", data={"name": "\N{CJK UNIFIED IDEOGRAPH-20000}" * 100}).status_code == 303


# ---- what is remembered ----------------------------------------------------------------------------------------------


def test_what_is_remembered_has_a_size_whatever_comes() -> None:
    """Against plain counting: what is held is the last asked for, and its size is what it says."""
    made: list[int] = []

    def make(key: int) -> str:
        made.append(key)
        return "x" * (key % 130)

    remembered, draw = Remembered(make, lambda key, value: len(value), most=1000), random.Random(0)
    for _ in range(3000):
        key = draw.randrange(200)
        assert remembered(key) == "x" * (key % 130)
        assert remembered.size == sum(len(value) for value, _ in remembered._held.values()) <= 1000
    assert remembered(7) and remembered(7) and made.count(7) < 40
    before = len(made)
    assert remembered(127) == remembered(127) == "x" * 127 and len(made) == before + 2  # more than an eighth of all


def test_long_texts_fill_no_memory() -> None:
    for number in range(300):
        markdown.render(f"{number} " + "word " * 40_000)
    assert markdown._KNOWN.size <= markdown._MOST_KNOWN and len(markdown._KNOWN._held) < 60
    text = "**bold** " * 10
    assert markdown.render(text) is markdown.render(text)
