"""A red-team pass over every route and door of the people's app: what was tried is counted, nothing may give way.

`docs/security.md` states the counts; ``-s`` prints them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from accord.people.web.connections import Connections
from accord.people.web.security import LEVEL, Buckets
from tests.test_people_web import ROUTES, UNSAFE
from tests.webapp import Served, http, serving, task

pytestmark = pytest.mark.slow
TRIED: Counter[str] = Counter()
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
# What stands where a route has an id: numbers that no database has, ways out of a folder, SQL, a template's braces.
IDS = [
    "0",
    "-1",
    "9" * 15,
    "9" * 30,
    "1e9",
    "1.5",
    "%2e%2e",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "a%00b",
    "%ff",
    "%ed%a0%80",
]
IDS += [
    "x" * 3000,
    "'%20OR%201=1--",
    "%7B%7B7*7%7D%7D",
    "%F0%9F%98%80",
    "%0d%0aSet-Cookie:a=b",
    "*",
    "%25",
    "NaN",
    "null",
]
PATHS = ["//manage", "/./manage", "/login/../manage", "/manage/", "/MANAGE", "/manage%2f", "/manage%00", "/manage;x=1"]
PATHS += [
    "/%6danage",
    "/api/%2e%2e/manage",
    "/static/x/..%2f..%2fapp.py",
    "/static/../manage",
    "/manage?x=%00",
    "/manage%20",
]
PATHS += [
    "/pictures/..%2faccord.db",
    "/pictures/%2e%2e/accord.db",
    "/pictures/accord.db",
    "/pictures//etc/passwd",
    "/docs",
]
PATHS += [
    "/pictures/.hidden.png",
    "/openapi.json",
    "/redoc",
    "/kinds/os:system/script.js",
    "/kinds/..%2fpair/script.js",
]
BODIES: list[bytes] = [b"", b"{", b"null", b"[]", b"0", b'""', b"true", b"[" * 2000, b'{"a":' * 500 + b"1" + b"}" * 500]
BODIES += [
    b'{"role": "admin", "role": "annotator"}',
    b'{"role": ["admin"]}',
    b'{"__proto__": {"role": "admin"}}',
    b"\xff\xfe{}",
]
BODIES += [
    b'{"answer": 1e999}',
    b'{"name": "\\ud800"}',
    b'{"name": "\\u0000"}',
    b'{"kind": "os:system", "prompt": "x"}',
]
BODIES += [
    b'[{"kind": "pair", "prompt": [{"role": "x", "content": "y"}], "completions": [{"text": "a"}, {"text": "a"}]}]'
]
BODIES += [
    b'{"origin": "' + b"a" * 5000 + b'"}',
    b'{"ranks": [1, 2], "key": 1}',
    b'{"rev": -1}',
    b'{"rev": 99999999999999999999}',
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("red"), overlap=50) as running:
        running.person("Ada", "admin")
        running.desk.queue.add_tasks([task("pair", "Which?", "this one", "that one")])
        limits = running.app.state.limits
        limits._attempts = limits._requests = Buckets(1e9, 10**9)  # what they hold back is tried elsewhere
        yield running
    print("\ntried:", dict(TRIED), TRIED.total())


def path_of(route: str, id_: str = "99999") -> tuple[str, str]:
    verb, path = route.split(" ")
    return verb, re.sub(r"\{[\w:]+\}", lambda _: id_, path)


def sent(client: httpx2.Client, what: str, verb: str, path: str, **more: Any) -> httpx2.Response:
    """Send one try, and count it. No answer of the 500s, no word of the inside, and the headers on each."""
    TRIED[what] += 1
    answer = client.request(verb, path, **more)
    assert answer.status_code < 500, (verb, path, answer.text[:300])
    assert "Traceback" not in answer.text and "sqlalchemy" not in answer.text.lower()
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    return answer


def test_no_credential_but_the_right_one_opens_a_route(served: Served) -> None:
    directory, admin = served.desk.directory, served.person("Ada")
    gone, ended = served.person("Gone", "admin"), served.person("Ended", "admin")
    old_token, old_session = directory.make_token(gone.id, "x"), directory.open_session(gone.id)
    revoked = directory.make_token(ended.id, "x")
    by_revoked = directory.enter_by_token(revoked)
    directory.revoke_token(directory.tokens(ended.id)[0].id, by=admin)
    out = directory.open_session(ended.id)
    directory.log_out_everywhere(ended.id, by=admin)
    directory.disable(gone.id, by=admin)
    session, token, link = (
        directory.open_session(admin.id),
        directory.make_token(admin.id, "x"),
        directory.invite("admin", by=admin),
    )
    assert by_revoked is not None
    bearers = ["wrong", old_token, revoked, session, link, token[:-1], token + "x", f"{token} {token}", "' OR 1=1--"]
    cookies = [
        "wrong",
        old_session,
        by_revoked.session,
        out,
        token,
        link,
        session[:-1],
        session.upper(),
        "%00",
        "x" * 3000,
    ]
    tries = [{"Authorization": f"Bearer {one}"} for one in bearers]
    tries += [{"Authorization": f"{scheme} {token}"} for scheme in ("Basic", "Token", "bearer:")]
    tries += [{"Cookie": f"{served.cookie}={one}"} for one in cookies] + [{"Cookie": f"accord_session={session}"}]
    with http(base_url=served.url) as client:
        for route, (least, _) in ROUTES.items():
            if least != "public":
                for headers in tries:
                    verb, path = path_of(route)
                    assert sent(client, "credentials", verb, path, headers=headers).status_code == 401, (route, headers)


def test_no_role_reaches_above_itself(served: Served) -> None:
    for role in ("annotator", "manager"):
        with served.by_token(served.person(f"red {role}", role)) as client:
            for route, (least, _) in ROUTES.items():
                if LEVEL[least] > LEVEL[role]:
                    for id_ in ("99999", "1", "2"):
                        verb, path = path_of(route, id_)
                        assert sent(client, "roles", verb, path, json={"role": "admin"}).status_code == 403


def test_no_verb_does_what_no_route_says(served: Served) -> None:
    known: dict[str, set[str]] = {}
    for route in ROUTES:
        verb, path = path_of(route)
        known.setdefault(path, set()).update({verb, "HEAD"} if verb == "GET" else {verb})
    with served.by_token(served.person("Ada")) as admin, http(base_url=served.url) as nobody:
        for path, verbs in known.items():
            for verb in VERBS:
                if verb not in verbs:
                    for client in (admin, nobody):
                        assert sent(client, "verbs", verb, path).status_code in (401, 404, 405), (verb, path)


def test_odd_paths_and_ids_lead_nowhere(served: Served) -> None:
    token = served.desk.directory.make_token(served.person("Ada").id, "paths")
    for path in PATHS:
        for credential, open_to in ((b"", ()), (f"Authorization: Bearer {token}\r\n".encode(), ("/%6danage",))):
            TRIED["paths"] += 1
            head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n".encode()
            status = int(raw(served, head + credential + b"\r\n").split()[1])
            assert status in (400, 401, 404, 405, 422) or path in open_to, (path, status)
    with served.by_token(served.person("Ada")) as admin:
        for route in ROUTES:
            if "{" in route:
                for id_ in IDS:
                    verb, path = path_of(route, id_)
                    assert sent(admin, "ids", verb, path, json={}).status_code in (303, 400, 404, 405, 409, 422), path


def test_no_body_breaks_a_door(served: Served) -> None:
    directory = served.desk.directory
    with served.by_token(served.person("Ada")) as admin:
        for route in UNSAFE:
            for body in BODIES:
                for kind in ("application/json", "text/plain"):
                    verb, path = path_of(route)
                    sent(admin, "bodies", verb, path, content=body, headers={"Content-Type": kind})
    roles = {person.name: person.role for person in directory.people()}
    assert roles["Ada"] == "admin" and {name for name, role in roles.items() if role == "admin"} <= {
        "Ada",
        "Gone",
        "Ended",
    }


def test_no_question_breaks_a_page(served: Served) -> None:
    queries = [
        "after=%00",
        "after=x",
        "a=0&b=0",
        "a=1e9",
        "format=../../x",
        "format=os:system",
        "most=0",
        "most=99999999999",
    ]
    queries += ["listed=1&a=0&b=1", "x" * 5000, "a[]=1", "%ff=%ff", "after='%20OR%201=1--", "format=jsonl&format=trl"]
    with served.by_token(served.person("Ada")) as admin:
        for route in ROUTES:
            if route.startswith("GET"):
                for query in queries:
                    sent(admin, "queries", "GET", f"{path_of(route)[1]}?{query}")


def test_another_site_changes_nothing(served: Served) -> None:
    signs = [
        {"Origin": origin} for origin in ("https://evil.example", "null", "http://127.0.0.1", "http://localhost:1", "")
    ]
    signs += [{"Sec-Fetch-Site": site} for site in ("cross-site", "same-site", "nonsense")]
    signs += [{"X-CSRF-Token": token} for token in ("", "0" * 64, "x" * 5000)]
    with served.by_cookie(served.person("Ada")) as client:
        right = client.headers["X-CSRF-Token"]
        for route in UNSAFE:
            for sign in signs:
                verb, path = path_of(route)
                if ROUTES[route][0] != "public":
                    assert (
                        sent(client, "other sites", verb, path, headers={"X-CSRF-Token": right, **sign}).status_code
                        == 403
                    )
                elif "X-CSRF-Token" not in sign:
                    assert sent(client, "other sites", verb, path, headers=sign).status_code == 403
        assert client.get("/api/me").status_code == 200


def raw(served: Served, request: bytes) -> bytes:
    """What the server answers within half a second of its first word, or until it closes the connection."""
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=60) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
        parts = []
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                parts.append(part)
                connection.settimeout(0.5)
    return b"".join(parts)


def test_no_request_hides_in_another(served: Served) -> None:
    """Smuggling, doubled headers, bare line ends, giant heads: refused, or one request and one answer."""
    host = b"Host: 127.0.0.1\r\n"
    hidden = b"GET /static/x/hidden HTTP/1.1\r\n" + host + b"\r\n"
    refused = [
        b"POST /login HTTP/1.1\r\n"
        + host
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + hidden,
        b"POST /login HTTP/1.1\r\n" + host + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde" + hidden,
        b"POST /login HTTP/1.1\r\n" + host + b"Content-Length: +5\r\n\r\nabcde",
        b"POST /login HTTP/1.1\r\n" + host + b"Content-Length: 0x5\r\n\r\nabcde",
        b"POST /login HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n",
        b"POST /login HTTP/1.1\r\n" + host + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /login HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET /login HTTP/1.1\r\n" + host + b" folded: x\r\n\r\n",
        b"GET /login HTTP/1.1\r\n" + host + b"X\x00Y: z\r\n\r\n",
        b"GET /login HTTP/1.1\r\n" + host + b"X : y\r\n\r\n",
        b"GET /lo gin HTTP/1.1\r\n" + host + b"\r\n",
        b"GET http://evil.example/login HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"GET /login HTTP/1.1\r\n" + host + b"X: y\r\n" * 20_000 + b"\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\n" + host + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200,
        b"GET /login HTTP/1.1\r\n\r\n",
    ]
    given = []
    for request in refused:
        TRIED["raw requests"] += 1
        statuses = {*re.findall(rb"HTTP/1\.1 (\d+)", raw(served, request))}
        if not (statuses and statuses <= {b"400", b"404", b"405", b"413", b"431"}):
            given.append((request[:80], statuses))
    assert given == []
    TRIED["raw requests"] += 1
    upgrade = raw(served, b"GET /login HTTP/1.1\r\n" + host + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert upgrade.split()[1] == b"200"


def test_one_link_lets_one_in_however_many_knock(served: Served) -> None:
    """Twenty at once at an invitation, and at a login link; and logins while one is logged out everywhere."""
    directory, eve = served.desk.directory, served.person("Racer")
    for token in (directory.invite("annotator", by=None), directory.login_link(eve.id, by=None)):
        statuses: list[int] = []

        def knock(number: int, token: str = token, statuses: list[int] = statuses) -> None:
            TRIED["races"] += 1
            with http(base_url=served.url, cookies={"accord_join": token}) as client:
                statuses.append(client.post("/join", data={"name": f"Racer {number}"}).status_code)

        threads = [threading.Thread(target=knock, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [303] + [422] * 19


def test_a_login_takes_no_session_that_somebody_else_chose(served: Served) -> None:
    chosen = "chosen-by-somebody-else-0123456789abcdef-xyz"
    token = served.desk.directory.make_token(served.person("Victim").id, "x")
    with http(base_url=served.url, headers={"Cookie": f"{served.cookie}={chosen}"}) as client:
        TRIED["sessions"] += 1
        entered = client.post("/login", data={"token": token})
    assert entered.status_code == 303 and chosen not in entered.headers["set-cookie"]
    assert served.desk.directory.person_of_session(chosen) is None
    # Another name of the same server, and a cookie put before ours, are nobody's session.
    with http(base_url=served.url) as client:
        right = served.desk.directory.open_session(served.person("Victim").id)
        for jar in (f"{served.cookie}={chosen}; {served.cookie}x={right}", f"{served.cookie.upper()}={right}"):
            TRIED["sessions"] += 1
            assert client.get("/api/me", headers={"Cookie": jar}).status_code == 401


def test_who_reads_nothing_holds_nothing_for_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelined questions whose answers nobody takes: the connection ends, and others are served."""
    assert Connections(1).patience_s["closing"] < 60
    port = int(served.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            TRIED["greedy"] += 1
            greedy = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            greedy.sendall(b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100)
        with http(base_url=served.url) as client:
            assert client.get("/login").status_code == 200
