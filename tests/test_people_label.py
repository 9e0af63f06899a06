"""``accord label`` as somebody at a shell has it: one command, a link, and everything it promises."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import cpu_of_children

from accord.people.web.security import HEADERS
from tests.webapp import http, labelling

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "accord", "init", str(tmp_path / "reviews")], check=True, capture_output=True)
    return tmp_path / "reviews"


@contextmanager
def entering(told: dict[str, Any], name: str = "") -> Iterator[tuple[httpx2.Client, httpx2.Response]]:
    """Somebody who opens the link, and what the app says to it."""
    with http(base_url=told["url"], follow_redirects=True) as client:
        client.get(told["link"])
        yield client, client.post("/join", data={"name": name})


@pytest.mark.slow
def test_the_first_start_makes_an_admin_and_later_ones_log_that_one_in(project: Path) -> None:
    with labelling(project) as (told, _):
        with entering(told, "Ada") as (client, entered):
            assert entered.status_code == 200 and "Hello, <bdi>Ada</bdi>." in entered.text
            assert client.get("/api/me").json()["role"] == "admin"
            assert "server" not in entered.headers and HEADERS.items() <= dict(entered.headers).items()
        with entering(told, "Eve") as (_client, refused):
            assert refused.status_code == 422
    with labelling(project) as (again, _):
        with entering(again) as (client, _entered):
            assert client.get("/api/me").json()["name"] == "Ada" and again["for"] == "Ada"
        with entering(again) as (_client, refused):
            assert refused.status_code == 422 and again["link"] != told["link"]
    with labelling(project, "--no-link") as (silent, _):
        assert "link" not in silent


@pytest.mark.slow
def test_hosts_are_those_allowed(project: Path) -> None:
    with labelling(project, "--host", "0.0.0.0", "--allow-host", "labels.example.org") as (told, _):
        with http(base_url=told["url"]) as client:
            assert client.get("/login").status_code == 200
            assert client.get("/login", headers={"Host": "labels.example.org"}).status_code == 200
            assert client.get("/login", headers={"Host": "evil.example.org"}).status_code == 400
        assert "0.0.0.0" not in told["hosts"]


@pytest.mark.slow
def test_tokens_stay_out_of_what_the_server_prints_and_of_the_store(project: Path) -> None:
    with labelling(project) as (told, running):
        with entering(told, "Ada") as (client, _entered):
            session = client.cookies[f"accord_session_{told['url'].rpartition(':')[2]}"]
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
        assert running.returncode == 0
    token = told["link"].rpartition("/")[2]
    assert token not in out + err and session not in out + err
    held = b"".join(file.read_bytes() for file in project.glob("accord.db*"))
    assert token.encode() not in held and session.encode() not in held


@pytest.mark.slow
def test_guidelines_come_from_a_file_and_keys_from_the_command_line(project: Path, tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("# Be kind")
    argv = ("min_seconds=2", "--guidelines", str(tmp_path / "guide.md"))
    with labelling(project, *argv) as (told, _), entering(told, "Ada") as (client, _entered):
        assert "Be kind" in client.get("/guidelines").text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "told", "code"),
    [
        (["--guidelines", "nowhere.md"], "nowhere.md", 2),
        (["min_second=2"], "min_seconds", 2),
        (["--host", "192.0.2.1"], "cannot listen", 4),
    ],
)
def test_what_makes_no_sense_is_said(project: Path, argv: list[str], told: str, code: int) -> None:
    command = [sys.executable, "-m", "accord", "label", str(project), "--port", "0", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code and told in done.stderr


def test_it_starts_without_torch_and_quickly(project: Path) -> None:
    look = (
        "import sys, uvicorn\n"
        "uvicorn.Server.run = lambda self, sockets: None\n"
        "from accord.cli.main import app\n"
        f"app(['label', {str(project)!r}, '--port', '0'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    before = cpu_of_children()
    with labelling(project):
        pass
    assert cpu_of_children() - before < 3  # a second of the processor, whatever else runs on the machine


def test_the_wheel_holds_the_pages(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    room = ROOT / "src" / "accord" / "people" / "web"
    pages = [file for folder in ("templates", "static") for file in (room / folder).rglob("*") if file.is_file()]
    assert len(pages) > 25
    assert {str(file.relative_to(ROOT / "src")) for file in pages} <= names


def test_no_page_names_another_host() -> None:
    """Works offline: nothing on a page, in the style or the script comes from elsewhere."""
    room = ROOT / "src" / "accord" / "people" / "web"
    for file in (*(room / "templates").rglob("*.j2"), *(room / "static").iterdir()):
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|@import|url\(|//[a-z]+\.[a-z]+/", text), file
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), file
