"""The annotation app over HTTP: who may do what, what is refused, what an answer becomes. A real server on a port."""

from __future__ import annotations

import html
import io
import json
import re
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from accord.config import LabelConfig
from accord.errors import UsageError
from accord.people.desk.answers import Answer
from accord.people.desk.kinds import FEEDBACK_KINDS
from accord.people.quality.gold import gold_report
from accord.people.web.app import create_app
from accord.people.web.diff import word_diff
from accord.people.web.pages import EVERY_KEY, keys_of
from accord.people.web.security import HEADERS, LEVEL, MAX_BODY, Buckets, Guarded, Routes, host_name
from accord.stats import Interval, wilson
from tests.webapp import Served, http, http_get, serving, task


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("web"), overlap=50) as running:
        running.person("Ada", "admin")
        running.desk.queue.add_tasks([task("pair", "Which?", "this one", "that one")])
        running.app.state.limits._attempts = Buckets(1e9, 10**9)  # wrong credentials are tried by the hundred here
        yield running


# ---- who may do what ---------------------------------------------------------------------------------------------

# Every route, the least role that may use it, and the status that role gets for an empty or harmless request.
ROUTES: dict[str, tuple[str, int]] = {
    "GET /static/{version}/{name}": ("public", 404),
    "GET /kinds/{name}/script.js": ("annotator", 422),
    "GET /login": ("public", 200),
    "POST /login": ("public", 401),
    "GET /join/{token}": ("public", 303),
    "GET /join": ("public", 200),
    "POST /join": ("public", 422),
    "GET /": ("annotator", 200),
    "GET /task": ("annotator", 200),
    "GET /task/{task_id}": ("annotator", 404),
    "GET /guidelines": ("annotator", 200),
    "GET /history": ("annotator", 200),
    "POST /api/claim": ("annotator", 422),
    "GET /api/tasks/{task_id}": ("annotator", 404),
    "GET /api/tasks/{task_id}/diff": ("annotator", 404),
    "GET /pictures/{name:path}": ("annotator", 404),
    "POST /api/tasks/{task_id}/submit": ("annotator", 422),
    "PUT /api/tasks/{task_id}/draft": ("annotator", 422),
    "POST /api/tasks/{task_id}/skip": ("annotator", 422),
    "POST /api/tasks/{task_id}/unskip": ("annotator", 404),
    "POST /api/tasks/{task_id}/release": ("annotator", 404),
    "POST /api/tasks/{task_id}/heartbeat": ("annotator", 404),
    "POST /api/submissions/{submission_id}/undo": ("annotator", 404),
    "GET /api/me": ("annotator", 200),
    "POST /api/logout": ("annotator", 200),
    "POST /api/logout/everywhere": ("annotator", 200),
    "GET /api/guideline": ("annotator", 200),
    "POST /api/guideline/confirm": ("annotator", 422),
    "GET /api/openapi.json": ("annotator", 200),
    "GET /manage": ("manager", 200),
    "GET /manage/people": ("manager", 200),
    "GET /manage/guidelines": ("manager", 200),
    "GET /manage/export": ("manager", 200),
    "GET /manage/disagreements": ("manager", 200),
    "GET /manage/gold": ("manager", 200),
    "GET /manage/task/{task_id}": ("manager", 404),
    "GET /manage/task/{task_id}/gold": ("manager", 404),
    "GET /manage/tasks": ("manager", 200),
    "POST /api/tasks": ("manager", 422),
    "POST /api/tasks/remove": ("manager", 422),
    "POST /api/tasks/{task_id}/adjudicate": ("manager", 422),
    "PUT /api/tasks/{task_id}/gold": ("manager", 422),
    "POST /api/invites": ("manager", 422),
    "GET /api/links": ("manager", 200),
    "POST /api/links/{link_id}/revoke": ("manager", 404),
    "PUT /api/guideline": ("manager", 422),
    "GET /api/progress": ("manager", 200),
    "GET /api/quality": ("manager", 200),
    "GET /api/disagreements": ("manager", 200),
    "GET /api/export": ("manager", 422),
    "POST /api/people": ("admin", 422),
    "POST /api/people/{person_id}/disable": ("admin", 404),
    "POST /api/people/{person_id}/role": ("admin", 422),
    "POST /api/people/{person_id}/link": ("admin", 404),
    "POST /api/people/{person_id}/token": ("admin", 404),
    "POST /api/people/{person_id}/revoke": ("admin", 404),
    "POST /api/people/{person_id}/logout": ("admin", 404),
    "GET /api/log": ("admin", 200),
}
UNSAFE = [route for route in ROUTES if not route.startswith("GET")]


def all_routes(app: FastAPI) -> set[str]:
    return {
        f"{verb} {route.path}"  # type: ignore[attr-defined]
        for route in app.routes
        for verb in getattr(route, "methods", {"ANY"}) - {"HEAD"}
    }


def ask(client: httpx2.Client, route: str, **more: Any) -> httpx2.Response:
    verb, path = route.split(" ")
    return client.request(verb, re.sub(r"\{[\w:]+\}", "99999", path), **more)


def test_the_table_names_every_route(served: Served) -> None:
    assert all_routes(served.app) == set(ROUTES)


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_lets_in_whom_the_table_says_and_nobody_else(served: Served, route: str) -> None:
    least, status = ROUTES[route]
    with http(base_url=served.url) as nobody:
        assert ask(nobody, route).status_code == (status if least == "public" else 401)
        assert ask(nobody, route, headers={"Authorization": "Bearer wrong"}).status_code in (status, 401, 429)
    for role in ("annotator", "manager", "admin"):
        person = served.person(f"walker {role}", role)
        for door in (served.by_token, served.by_cookie):
            with door(person) as client:
                wanted = status if LEVEL[role] >= LEVEL[least] else 403
                wanted = 303 if route == "GET /login" else wanted  # who is logged in goes on
                assert ask(client, route).status_code == wanted, role


@pytest.mark.parametrize("route", [route for route, (least, _) in ROUTES.items() if least != "public"])
def test_a_disabled_person_is_out_at_once(served: Served, route: str) -> None:
    admin = served.person("Ada")
    name = f"gone {route}"[:90].replace("/", " ").replace("{", " ").replace("}", " ")
    person = served.person(name, "admin")
    with served.by_token(person) as program, served.by_cookie(person) as browser:
        served.desk.directory.disable(person.id, by=admin)
        assert ask(program, route).status_code == 401
        assert ask(browser, route).status_code == 401


def test_a_route_without_access_cannot_be_made(served: Served) -> None:
    app = create_app(served.desk)
    with pytest.raises(UsageError, match="declares no access"):
        app.get("/open")(lambda: "anybody")
    with pytest.raises(UsageError, match="declares no access"):
        Guarded("/open", lambda: "anybody")
    routes = Routes()
    routes("GET", "/kept", "admin")(lambda: "admins")
    routes.open(app)
    assert "GET /kept" in all_routes(app)


def test_one_person_cannot_touch_the_work_of_another(served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Mine?", "yes", "no", priority=9)])
    with served.by_token(served.person("Mine")) as mine, served.by_token(served.person("Other")) as other:
        held = mine.post("/api/claim", json={}).json()["task_id"]
        answer = {"ranks": [1, 2]}
        assert other.get(f"/api/tasks/{held}").status_code == 404
        assert other.get(f"/api/tasks/{held}/diff").status_code == 404
        assert other.put(f"/api/tasks/{held}/draft", json={}).status_code == 404
        sent = other.post(f"/api/tasks/{held}/submit", json=answer, headers={"Idempotency-Key": "k" * 9})
        assert sent.status_code == 404
        receipt = mine.post(f"/api/tasks/{held}/submit", json=answer, headers={"Idempotency-Key": "k" * 9}).json()
        assert other.post(f"/api/submissions/{receipt['submission_id']}/undo").status_code == 404


# ---- what another site sends in one's name -----------------------------------------------------------------------


@pytest.mark.parametrize("route", [route for route in UNSAFE if ROUTES[route][0] != "public"])
def test_a_cookie_alone_changes_nothing(served: Served, route: str) -> None:
    person = served.person("Cookie", "admin")
    with served.by_cookie(person, csrf=False) as client:
        assert ask(client, route).status_code == 403
        assert ask(client, route, headers={"X-CSRF-Token": "0" * 64}).status_code == 403
    with served.by_cookie(person) as client:
        for origin in ("https://evil.example", "null", served.url.replace("http", "https"), "http://127.0.0.1:1"):
            assert ask(client, route, headers={"Origin": origin}).status_code == 403
        assert ask(client, route, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert ask(client, route, headers={"Origin": served.url}).status_code != 403


@pytest.mark.parametrize("path", ["/login", "/join"])
def test_nobody_is_logged_in_by_another_site(served: Served, path: str) -> None:
    with http(base_url=served.url) as client:
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            assert client.post(path, data={"token": "x", "name": "x"}, headers=headers).status_code == 403


def test_a_session_cookie_in_a_header_is_no_token_and_the_other_way_round(served: Served) -> None:
    person = served.person("Swap", "admin")
    session, token = served.desk.directory.open_session(person.id), served.desk.directory.make_token(person.id, "swap")
    with http(base_url=served.url) as client:
        assert client.get("/api/me", headers={"Authorization": f"Bearer {session}"}).status_code == 401
        assert client.get("/api/me", headers={"Cookie": f"{served.cookie}={token}"}).status_code == 401
        both = {"Authorization": "Basic eDp5", "Cookie": f"{served.cookie}={session}"}
        assert client.get("/api/me", headers=both).status_code == 401


# ---- hosts, sizes, rates, headers --------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:80", "[::1", "0.0.0.0"])
def test_another_host_is_refused(served: Served, host: str) -> None:
    with http(base_url=served.url) as client:
        answer = client.get("/login", headers={"Host": host})
    assert answer.status_code == 400 and "csrf" not in answer.text


def test_ports_of_a_host_do_not_matter(served: Served) -> None:
    assert [host_name(host) for host in ("a:80", "A", "[::1]:80", "[::1]", "")] == ["a", "a", "[::1]", "[::1]", ""]
    with http(base_url=served.url) as client:
        assert client.get("/login", headers={"Host": "localhost:1"}).status_code == 200


def test_a_large_body_is_refused_however_it_comes(served: Served) -> None:
    with served.by_token(served.person("Large")) as client:
        large = b'{"kinds": "' + b"x" * MAX_BODY + b'"}'
        headers = {"Content-Type": "application/json"}
        assert client.post("/api/claim", content=large, headers=headers).status_code == 413
        assert client.post("/api/claim", content=iter([large]), headers=headers).status_code == 413
        assert client.post("/login", content=iter([large])).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\\u0000"}',
        b'{"\\ud800": 1}',
        b'{"a": ["\\udfff"]}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e400}',
        b'{"a": 123456789012345678901234567890}',
        b"[" * 5000,
        b"{",
        b"\xff",
    ],
)
def test_what_no_database_could_hold_is_refused(served: Served, body: bytes) -> None:
    with served.by_token(served.person("Odd")) as client:
        held = client.post("/api/claim", json={}).json()["task_id"]
        sent = client.put(f"/api/tasks/{held}/draft", content=body, headers={"Content-Type": "application/json"})
        upper = client.put(f"/api/tasks/{held}/draft", content=body, headers={"Content-Type": "application/JSON"})
    assert sent.status_code == upper.status_code == 422


@pytest.mark.slow
def test_wrong_credentials_are_slowed_down_and_right_ones_are_not(tmp_path: Path) -> None:
    with serving(tmp_path) as served, http(base_url=served.url) as client:
        token = served.desk.directory.make_token(served.person("Fast").id, "fast")
        answers = [client.post("/login", data={"token": "wrong"}) for _ in range(12)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 6
        wrong = {"Authorization": "Bearer wrong"}
        assert client.get("/api/me", headers=wrong).status_code == 429
        assert client.post("/login", data={"token": token}).status_code == 303
        right = {"Authorization": f"Bearer {token}"}
        for _ in range(100):  # quicker than any hand
            assert client.get("/api/guideline", headers=right).status_code == 200


def test_a_program_that_runs_wild_is_told_to_wait(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.app.state.limits._requests = Buckets(0.5, 5)
        with served.by_token(served.person("Wild")) as wild, served.by_token(served.person("Calm")) as calm:
            answers = [wild.get("/api/guideline") for _ in range(7)]
            assert {answer.status_code for answer in answers[:5]} == {200} and answers[-1].status_code == 429
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
            assert calm.get("/api/guideline").status_code == 200  # one waits, not all


def test_buckets_fill_again() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    now[0] = 100
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


@pytest.mark.parametrize("path", ["/login", "/", "/nothing", "/api/me", "/static/x/app.css", "/static/x/..%2fapp.py"])
def test_every_answer_has_the_headers(served: Served, path: str) -> None:
    with http(base_url=served.url) as client:
        headers = client.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert headers["cache-control"] in ("no-store", "no-cache")
    csp = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert csp["default-src"] == csp["script-src"] == csp["style-src"] == csp["form-action"] == "'self'"
    assert csp["object-src"] == csp["frame-ancestors"] == csp["base-uri"] == "'none'"


def test_assets_may_be_kept_only_under_their_version(served: Served) -> None:
    with http(base_url=served.url) as client:
        found = re.findall(r"/static/\w+/[\w.]+", client.get("/login").text)
        assert len(found) >= 3
        for path in found:
            answer = client.get(path)
            assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        assert client.get("/static/x/%2e%2e/app.py").status_code == 404


def test_cookies_are_for_the_browser_alone(served: Served) -> None:
    token = served.desk.directory.make_token(served.person("Cookies").id, "x")
    with http(base_url=served.url) as client:
        plain = client.post("/login", data={"token": token}).headers["set-cookie"].lower()
        secure = client.post("/login", data={"token": token}, headers={"X-Forwarded-Proto": "https"})
        assert "httponly" in plain and "samesite=lax" in plain and "secure" not in plain
        assert "secure" in secure.headers["set-cookie"].lower()


def test_an_error_nobody_foresaw_tells_nothing_and_keeps_the_headers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(person_id: int) -> None:
        raise RuntimeError("a secret: s3cr3t")

    with served.by_token(served.person("Bug")) as client:
        monkeypatch.setattr(served.desk.reading, "standing", broken)
        answer = client.get("/api/me")
    assert answer.status_code == 500 and "s3cr3t" not in answer.text
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


# ---- coming in ---------------------------------------------------------------------------------------------------


def test_an_invitation_lets_one_person_in_once(served: Served) -> None:
    token = served.desk.directory.invite("manager", by=None)
    with http(base_url=served.url) as first, http(base_url=served.url) as second:
        for client in (first, second):  # looking at the link uses nothing up, and it leaves the address bar
            seen = client.get(f"/join/{token}")
            assert (seen.status_code, seen.headers["location"]) == (303, "/join") and token not in seen.text
        taken = first.post("/join", data={"name": "Ada"})
        assert taken.status_code == 422 and "taken" in taken.text
        assert first.post("/join", data={"name": "  Bea  "}).status_code == 303
        assert first.get("/api/me").json()["name"] == "Bea" and first.get("/manage").status_code == 200
        late = second.post("/join", data={"name": "Late"})
        assert late.status_code == 422 and "used" in late.text and served.cookie not in second.cookies


@pytest.mark.parametrize("token", ["%E2%82%AC", "%0d%0aSet-Cookie:a=b", "a;b", "x" * 201])
def test_an_invitation_that_no_cookie_could_hold_is_refused(served: Served, token: str) -> None:
    told = http_get(f"{served.url}/join/{token}")
    assert (told.status_code, "set-cookie" in told.headers) == (422, False)


def test_a_login_link_works_once_and_names_the_person(served: Served) -> None:
    with served.by_token(served.person("Ada")) as admin:
        url = admin.post(f"/api/people/{served.person('Lost').id}/link").json()["url"]
    with http(base_url=served.url, follow_redirects=True) as client:
        assert "Lost" in client.get(url).text
        client.post("/join")
        assert client.get("/api/me").json()["name"] == "Lost"
    with http(base_url=served.url, follow_redirects=True) as client:
        client.get(url)
        assert client.post("/join", data={"name": ""}).status_code == 422
        assert client.get("/api/me").status_code == 401


def test_two_servers_on_one_host_do_not_log_each_other_out(served: Served, tmp_path: Path) -> None:
    """Browsers know no ports of cookies: both servers get what either has set."""
    with serving(tmp_path) as other, http() as browser:
        people = {served: served.person("Here"), other: other.person("There")}
        for one, person in people.items():
            link = f"{one.url}/join/{one.desk.directory.login_link(person.id, by=None)}"
            assert browser.get(link, follow_redirects=True).status_code == 200
            assert browser.post(f"{one.url}/join", data={}).status_code == 303
        told = [browser.get(f"{one.url}/api/me").json()["name"] for one in people]
        assert told == ["Here", "There"]


def test_log_out_ends_the_session(served: Served) -> None:
    with served.by_cookie(served.person("Out")) as client:
        session = client.cookies[served.cookie]
        assert client.post("/api/logout").status_code == 200
    with http(base_url=served.url) as again:
        assert again.get("/api/me", headers={"Cookie": f"{served.cookie}={session}"}).status_code == 401


def test_a_removed_admin_does_not_come_back(tmp_path: Path) -> None:
    """By no link, token or session of whatever this person made, while one was an admin."""
    with serving(tmp_path) as served, served.by_token(served.person("Ada", "admin")) as ada:
        old, ada_id = served.person("Old", "admin"), served.person("Ada").id
        with served.by_token(old) as program, served.by_cookie(old) as browser:
            links = [program.post("/api/invites", json={"role": "admin"}).json()["url"]]
            links += [browser.post(f"/api/people/{ada_id}/link").json()["url"] for _ in range(2)]
            token = browser.post(f"/api/people/{ada_id}/token").json()["token"]
        with http(base_url=served.url, follow_redirects=True) as as_ada:
            as_ada.get(links.pop())
            assert as_ada.post("/join").status_code == 200 and as_ada.get("/api/me").json()["name"] == "Ada"
            listed = [link["made_by"] for link in ada.get("/api/links").json()]
            assert listed == ["Old", "Old"] and links[0][-43:] not in ada.get("/api/links").text
            assert ada.post(f"/api/people/{old.id}/disable").status_code == 204
            assert as_ada.get("/api/me").status_code == 401
        for link in links:
            with http(base_url=served.url, follow_redirects=True) as client:
                client.get(link)
                refused = client.post("/join", data={"name": "Old again"})
                assert refused.status_code == 422 and "taken back" in refused.text
        with http(base_url=served.url) as client:
            assert client.post("/login", data={"token": token}).status_code == 401
            assert client.get("/api/me", headers={"Authorization": f"Bearer {token}"}).status_code == 401
        assert ada.get("/api/links").json() == []
        done = [row["action"] for row in ada.get("/api/log").json()]
        assert {"links void", "tokens void", "sessions ended", "person disabled"} <= set(done[:4])


def test_log_out_everywhere_and_the_session_of_a_token(tmp_path: Path) -> None:
    with serving(tmp_path) as served, served.by_token(served.person("Ada", "admin")) as ada:
        eve = served.person("Eve")
        token = ada.post(f"/api/people/{eve.id}/token").json()["token"]
        with http(base_url=served.url) as browser, served.by_cookie(eve) as one, served.by_cookie(eve) as two:
            assert browser.post("/login", data={"token": token}).status_code == 303
            assert browser.get("/api/me").status_code == 200
            assert one.post("/api/logout/everywhere").status_code == 200
            assert [client.get("/api/me").status_code for client in (browser, one, two)] == [401] * 3
            assert browser.post("/login", data={"token": token}).status_code == 303
            assert ada.post(f"/api/people/{eve.id}/revoke").status_code == 204
            assert browser.get("/api/me").status_code == 401
        with served.by_cookie(eve) as third:
            assert ada.post(f"/api/people/{eve.id}/logout").status_code == 204
            assert third.get("/api/me").status_code == 401


def test_the_people_page_shows_open_links_and_takes_them_back(tmp_path: Path) -> None:
    with serving(tmp_path) as served, served.by_cookie(served.person("Ada", "admin")) as ada:
        with served.by_cookie(served.person("Mia", "manager")) as mia:
            url = mia.post("/api/invites", json={"role": "annotator"}).json()["url"]
            shown = mia.get("/manage/people").text
            link_id = int(re.findall(r"/api/links/(\d+)/revoke", shown)[0])
            assert "What was done" not in shown and url.rpartition("/")[2] not in shown
        page = ada.get("/manage/people", headers={"Accept-Language": "zh"}).text
        assert "有效链接" in page and "制作了邀请" in page and "<bdi>Mia</bdi>" in page
        assert ada.post(f"/api/links/{link_id}/revoke").status_code == 204
        assert f"/api/links/{link_id}/revoke" not in ada.get("/manage/people").text


def test_a_manager_invites_annotators_only(served: Served) -> None:
    with served.by_token(served.person("Moe", "manager")) as client:
        assert client.post("/api/invites", json={"role": "admin"}).status_code == 403
        assert client.post("/api/invites", json={"role": "manager"}).status_code == 403
        url = client.post("/api/invites", json={"role": "annotator"}).json()["url"]
    assert url.startswith(f"{served.url}/join/")


# ---- a task's way through the doors ------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_answer_goes_through_once_and_comes_back_on_undo(tmp_path: Path) -> None:
    with serving(tmp_path, overlap=1) as served:
        served.desk.queue.add_tasks([task("pair", "Which?", "long " * 50, "short")])
        with served.by_token(served.person("Eve")) as eve, served.by_token(served.person("Fay")) as fay:
            held = eve.post("/api/claim", json={}).json()
            assert fay.post("/api/claim", json={}).status_code == 204
            assert set(held["completions"][0]) == {"text"} and "policy" not in str(held) and held["group"] is None
            path, key = f"/api/tasks/{held['task_id']}", {"Idempotency-Key": "one-and-only"}
            assert eve.put(f"{path}/draft", json={"note": "so far"}).status_code == 204
            assert eve.get(path).json()["draft"] == {"note": "so far"}
            assert eve.post(f"{path}/heartbeat").json()["until"] > time.time()
            answer = {"ranks": [1, 2], "strength": "slightly", "seconds": 3}
            assert eve.post(f"{path}/submit", json=answer).status_code == 422  # no key
            first, again = (eve.post(f"{path}/submit", json=answer, headers=key) for _ in range(2))
            assert (first.status_code, again.status_code) == (201, 200)
            assert again.json() == first.json() | {"repeated": True}
            other = eve.post(f"{path}/submit", json=answer | {"ranks": [2, 1]}, headers=key)
            assert other.status_code == 409
            assert eve.get("/api/me").json()["done"] == 1
            back = eve.post(f"/api/submissions/{first.json()['submission_id']}/undo").json()
            assert back["revision"] == held["revision"] + 1 and back["draft"]["ranks"] == [1, 2]
            assert eve.post(f"{path}/skip", json={"reason": "no such reason"}).status_code == 422
            assert eve.post(f"{path}/skip", json={"reason": "cannot decide"}).status_code == 204
            assert eve.post(f"{path}/unskip").json()["task_id"] == held["task_id"]
            assert eve.post(f"{path}/release").status_code == 204
            assert fay.post("/api/claim", json={"kinds": ["pair"]}).json()["task_id"] == held["task_id"]
        assert [fact.ranks for fact in served.store.rankings(history=True)] == [(1, 2)]
        assert list(served.store.rankings()) == []


def test_a_manager_adds_tasks_and_decides_them(tmp_path: Path) -> None:
    with serving(tmp_path) as served, served.by_token(served.person("Moe", "manager")) as client:
        turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Tell me more")]
        rows = [
            {"kind": "pair", "prompt": "Which?", "completions": [{"text": "a"}, {"text": "b"}], "overlap": 2},
            {
                "kind": "demonstration",
                "prompt": [{"role": role, "content": content} for role, content in turns],
            },
        ]
        assert client.post("/api/tasks", json=rows).json() == {"added": 2}
        assert client.post("/api/tasks", json=[rows[0] | {"completions": [{"text": "a"}]}]).status_code == 422
        pair, written = served.desk.queue.tasks()
        assert [turn["role"] for turn in written.prompt.turns()] == ["user", "assistant", "user"]
        assert client.put(f"/api/tasks/{pair.id}/gold", json={"answer": {"ranks": [1, 2]}}).status_code == 204
        assert served.desk.queue.task(pair.id).gold == {"ranks": [1, 2]}
        assert client.put(f"/api/tasks/{pair.id}/gold", json={"answer": None}).status_code == 204
        key = {"Idempotency-Key": "decided-1"}
        decided = client.post(f"/api/tasks/{pair.id}/adjudicate", json={"ranks": [2, 1]}, headers=key)
        assert decided.status_code == 201
        (ranking,) = served.store.rankings()
        assert ranking.flags == ("adjudication",) and ranking.ranks == (2, 1)
        assert client.get(f"/manage/task/{pair.id}").status_code == 200


def test_every_key_that_does_something_can_be_changed() -> None:
    """But digits and the question mark; a key with Shift goes along with its letter."""
    rows = [
        key
        for kind in FEEDBACK_KINDS.values()
        for mode in ("label", "gold")
        for keys, _ in keys_of(kind, 2, mode)
        for key in keys.split()
    ]
    lone = {key for key in rows if len(key) == 1} | {key[1:].upper() for key in rows if key.startswith("⇧")}
    assert sorted(lone - set("0123456789?…↵")) == sorted(EVERY_KEY)


def test_a_manager_sees_who_misses_which_gold_question_and_retires_one(tmp_path: Path) -> None:
    """Two gold questions of four people: all know the first; of the second, a ranking of three, Cy has one pair of
    three right and Di none. So Cy has (1 + 1/3) / 2 = 67 % in all, Di 50 %."""
    with serving(tmp_path, overlap=1) as served, served.by_token(served.person("Moe", "manager")) as moe:
        rows = [
            task("pair", "Easy?", "yes", "no", overlap=4, gold={"ranks": [1, 2], "note": "Obviously."}),
            task("ranking", "Hard?", "a", "b", "c", overlap=4, gold={"ranks": [1, 2, 3]}),
        ]
        served.desk.queue.add_tasks(rows)
        easy, hard = served.desk.queue.tasks()
        for name, said in {"Ann": [1, 2, 3], "Bo": [1, 2, 3], "Cy": [1, 3, 1], "Di": [3, 2, 1]}.items():
            for ranks in ([1, 2], said):
                held = served.desk.queue.claim(served.person(name).id)
                assert held is not None
                shown = tuple(ranks[i] for i in held.order)
                served.desk.answers.submit(
                    served.person(name).id, held.task.id, Answer(ranks=shown), key="k" + held.task.id
                )
        questions, people = gold_report(served.desk)
        assert [row.task.id for row in questions] == [hard.id, easy.id]
        assert [row.missed for row in questions] == [(("Di", 0.0), ("Cy", pytest.approx(1 / 3))), ()]
        assert str(questions[0].right) == str(wilson(7 / 3, 4))
        assert [(row.name, row.right.value) for row in people if isinstance(row.right, Interval)][:2] == [
            ("Di", 0.5),
            ("Cy", pytest.approx(2 / 3)),
        ]
        report = moe.get("/api/quality").json()["people"]
        assert {row["name"]: row["gold"]["value"] for row in report}["Cy"] == pytest.approx(2 / 3)
        shown = moe.get("/manage/gold").text
        assert "Di, Cy (33 %)" in re.sub(r"</?bdi>", "", shown) and "A &gt; B &gt; C" in shown and "Obviously." in shown
        assert moe.put(f"/api/tasks/{hard.id}/gold", json={"answer": None, "overlap": 1}).status_code == 204
        assert "Cy" not in moe.get("/manage/gold").text.split("Who misses them")[0]
        report = moe.get("/api/quality").json()["people"]  # at once, although the report may be kept for a while
        assert {row["name"]: row["gold"]["value"] for row in report}["Cy"] == 1.0


def test_a_new_gold_answer_is_in_the_report_at_once(tmp_path: Path) -> None:
    """The counts of the desk do not change with the answer alone."""
    with serving(tmp_path) as served, served.by_token(served.person("Moe", "manager")) as moe:
        served.desk.queue.add_tasks([task("pair", "Which?", "one", "two", gold={"ranks": [1, 2]})])
        ann = served.person("Ann")
        held = served.desk.queue.claim(ann.id)
        assert held is not None
        served.desk.answers.submit(ann.id, held.task.id, Answer(ranks=tuple(1 + i for i in held.order)), key="key")
        assert moe.get("/api/quality").json()["people"][0]["gold"]["value"] == 1.0
        moe.put(f"/api/tasks/{held.task.id}/gold", json={"answer": {"ranks": [2, 1]}})
        assert moe.get("/api/quality").json()["people"][0]["gold"]["value"] == 0.0


def test_the_form_of_a_gold_answer_starts_from_what_is_known(tmp_path: Path) -> None:
    """The gold answer, else what was decided, by its ranks alone; a text that somebody writes has none."""
    with serving(tmp_path) as served, served.by_token(served.person("Moe", "manager")) as moe:
        served.desk.queue.add_tasks([task("pair", "Which?", "one", "two"), task("demonstration", "Write!")])
        pair, written = served.desk.queue.tasks()

        def draft() -> Any:
            found = re.search('data-task="([^"]*)"', moe.get(f"/manage/task/{pair.id}/gold").text)
            assert found is not None
            return json.loads(html.unescape(found[1]))["draft"]

        assert draft() is None
        served.desk.answers.adjudicate(served.person("Moe").id, pair.id, Answer(ranks=(2, 1), note="no"), key="decided")
        assert draft() == {"ranks": [2, 1], "unacceptable": None, "strength": None}
        moe.put(f"/api/tasks/{pair.id}/gold", json={"answer": {"ranks": [1, 1]}})
        assert draft() == {"ranks": [1, 1]}
        assert moe.get(f"/manage/task/{written.id}/gold").status_code == 422
        assert moe.put(f"/api/tasks/{written.id}/gold", json={"answer": {"text": "x"}}).status_code == 422
        assert served.desk.queue.task(written.id).gold is None
        assert written.id not in moe.get("/manage/gold").text


def test_tasks_that_could_be_gold_are_listed_a_page_at_a_time(tmp_path: Path) -> None:
    with serving(tmp_path) as served, served.by_token(served.person("Moe", "manager")) as moe:
        served.desk.queue.add_tasks([task("pair", f"Question {i}", f"{i} a", f"{i} b") for i in range(65)])
        seen, path, pages = [], "/manage/gold", 0
        while path:
            shown = moe.get(path).text
            seen += re.findall(r"Question (\d+)", shown)
            more = re.search(r'href="(/manage/gold\?after=[^"#]+)', shown)
            path, pages = more[1] if more else "", pages + 1
        assert seen == [str(i) for i in range(65)] and pages == 3


@pytest.mark.slow
def test_a_manager_takes_the_answers_home_as_a_file_with_its_manifest(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.desk.queue.add_tasks([task("pair", "Which?", "this", "that")])
        manager = served.by_token(served.person("Mia", "manager"))
        assert "nothing" in manager.get("/api/export").json()["error"].lower()
        eve = served.by_token(served.person("Eve"))
        held = eve.post("/api/claim", json={}).json()
        sent = {"ranks": [1, 2], "seconds": 1}
        eve.post(f"/api/tasks/{held['task_id']}/submit", json=sent, headers={"Idempotency-Key": "k" * 8})
        page = manager.get("/manage/export").text
        for path in re.findall(r'href="(/api/export[^"]+)"', page):
            with zipfile.ZipFile(io.BytesIO(manager.get(path).content)) as archive:
                (file, manifest) = archive.namelist()
                assert json.loads(archive.read(manifest))["rows"] == 1
                assert held["completions"][0]["text"].encode() in archive.read(file)
        for name in ("pyclbr:x", "../x", "no-such-format", "hh-redteam"):
            assert manager.get("/api/export", params={"format": name}).status_code == 422
        assert "pyclbr" not in sys.modules  # no code is loaded by a name that came over the net
        manager.close()
        eve.close()


def test_an_admin_does_not_lock_oneself_out(served: Served) -> None:
    me = served.person("Ada", "admin")
    served.person("Second", "admin")
    with served.by_token(me) as admin:
        assert admin.post(f"/api/people/{me.id}/disable").status_code == 422
        assert admin.post(f"/api/people/{me.id}/role", json={"role": "manager"}).status_code == 422
    assert served.desk.directory.person(me.id) == me


def test_all_tokens_of_a_person_end(served: Served) -> None:
    lost = served.person("Careless")
    with served.by_token(lost) as old, served.by_token(served.person("Ada", "admin")) as admin:
        assert old.get("/api/me").status_code == 200
        assert admin.post(f"/api/people/{lost.id}/revoke").status_code == 204
        assert (old.get("/api/me").status_code, admin.get("/api/me").status_code) == (401, 200)
    with served.by_token(lost) as new:
        assert new.get("/api/me").status_code == 200


def test_new_guidelines_are_confirmed_before_the_next_task(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.desk.queue.add_tasks([task("label", "Good?", "yes")])
        admin = served.person("Ada", "admin")
        with served.by_cookie(served.person("Eve")) as eve, served.by_token(admin) as client:
            assert client.put("/api/guideline", json={"text": "# Be fair"}).json()["rev"] == 1
            assert eve.post("/api/claim", json={}).status_code == 409
            sent_on = eve.get("/task")
            assert (sent_on.status_code, sent_on.headers["location"]) == (303, "/guidelines")
            assert "Be fair" in eve.get("/guidelines").text
            assert eve.post("/api/guideline/confirm", json={"rev": 0}).status_code == 409
            assert eve.post("/api/guideline/confirm", json={"rev": 1}).status_code == 204
            assert eve.get("/task").status_code == 200


def test_sources_and_lengths_are_told_when_the_answer_stands(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.desk.queue.add_tasks([task("ranking", "Which?", *("word " * n for n in (2, 30, 7)))])
        with served.by_cookie(served.person("Eve")) as eve:
            shown = eve.get("/task").text
            assert "policy-" not in shown
            words = re.sub(r'="[^"]*"', "", shown)  # tokens in attributes hold any digits
            assert not re.search(r"\b30\b", words)
            held = eve.post("/api/claim", json={}).json()
            sent = {"ranks": [1, 2, 3], "seconds": 1}
            path = f"/api/tasks/{held['task_id']}/submit"
            receipt = eve.post(path, json=sent, headers={"Idempotency-Key": "k" * 8}).json()
            undoable = eve.get("/history").text
            eve.post(f"/api/submissions/{receipt['submission_id']}/undo")
            undone = eve.get("/history").text
            eve.post(path, json=sent, headers={"Idempotency-Key": "l" * 8})
            served.desk.settings = LabelConfig(undo_minutes=0)
            past = eve.get("/history").text
    assert not any("policy-" in page or ">30<" in page for page in (undoable, undone))
    assert past.count("policy-1") == 1 and past.count(">30<") == 1


@pytest.mark.slow
def test_the_minimum_reading_time_is_the_servers_too(tmp_path: Path) -> None:
    with serving(tmp_path, min_seconds=5) as served:
        served.desk.queue.add_tasks([task("label", "Good?", "yes")])
        with served.by_token(served.person("Eve")) as eve:
            path = f"/api/tasks/{eve.post('/api/claim', json={}).json()['task_id']}/submit"
            quick, slow = {"good": [True], "seconds": 4.9}, {"good": [True], "seconds": 5}
            assert eve.post(path, json=quick, headers={"Idempotency-Key": "k" * 8}).status_code == 422
            assert eve.post(path, json=slow, headers={"Idempotency-Key": "k" * 8}).status_code == 201


def test_the_words_that_differ(served: Served) -> None:
    served.desk.queue.add_tasks([task("pair", "Diff?", "the <b>old</b> cat", "the <b>new</b> cat", priority=99)])
    with served.by_token(served.person("Differ")) as client:
        held = client.post("/api/claim", json={}).json()
        told = client.get(f"/api/tasks/{held['task_id']}/diff?a=0&b=1").json()
        words = [one["text"].split("<b>")[1].split("</b>")[0] for one in held["completions"]]
        assert told["a"] == f"the &lt;b&gt;<del>{words[0]}</del>&lt;/b&gt; cat"
        assert told["b"] == f"the &lt;b&gt;<ins>{words[1]}</ins>&lt;/b&gt; cat"
        assert (told["removed"], told["added"]) == (1, 1)
        assert client.get(f"/api/tasks/{held['task_id']}/diff?a=0&b=2").status_code == 422
        assert client.get(f"/api/tasks/{held['task_id']}/diff?listed=true").status_code == 403


@pytest.mark.parametrize("text", ["a " * 3000, " ".join(map(str, range(3001)))])
def test_texts_that_would_hold_up_the_others_are_not_compared(text: str) -> None:
    assert word_diff(text, text + " b") is None
    assert word_diff(text[:900], text[:900] + " b") is not None


def test_spaces_make_no_difference_and_are_kept() -> None:
    found = word_diff(" a big cat\n\nsat", "a dog  sat.")
    assert found is not None
    assert (found.a, found.b) == (" a <del>big cat</del>\n\nsat", "a <ins>dog</ins>  sat<ins>.</ins>")
    assert (found.removed, found.added) == (2, 2)


def test_raw_requests_that_are_no_http_do_not_stop_the_server(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    for raw in (
        b"\x00\xff\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as raw_socket:
            raw_socket.sendall(raw)
            raw_socket.shutdown(socket.SHUT_WR)
            raw_socket.recv(100)
    with http(base_url=served.url) as client:
        assert client.get("/login").status_code == 200
