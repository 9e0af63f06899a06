"""`accord chat` as it is typed: against a server of its own and against a running one; what is said lies in a store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serverapp import serving

from accord.errors import UsageError
from accord.models.placement import PLAIN
from accord.serve.chat_client import Dialogue
from accord.serve.feedback import FeedbackBook
from accord.serve.keys import KeyRing
from accord.serve.served import ServeSettings
from accord.store import Store

LINES = "What do foxes eat?\n/down too vague\n/retry\n/up\n/edit Mice, mostly.\nAnd owls?\n/new\n/up\n/what\n/quit\n"


def chat(*argv: str, lines: str = LINES) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "accord", "chat", *argv], input=lines, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_conversation_with_a_running_server_teaches(chat_model: Path, tmp_path: Path) -> None:
    ring = KeyRing()
    key = ring.add("ann")
    with Store.open(tmp_path / "accord.db") as store:
        book = FeedbackBook(store, b"secret")
        with serving(
            {"talker": chat_model}, ServeSettings(rows=2, context=240, placement=PLAIN), ring, book=book
        ) as server:
            told = chat("--url", f"{server.url}/v1", "--key", key)
            refused = subprocess.run(
                [sys.executable, "-m", "accord", "chat", "--url", f"{server.url}/v1", "--key", "no"],
                input=LINES, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
        assert "Talking to talker" in told and told.count("kept\n") == 2 and "there is no answer yet" in told
        assert "/retry" in told  # the help, which an unknown word brings
        labels = list(store.labels())
        assert sorted((one.good, one.note) for one in labels) == [(False, "too vague"), (True, "")]
        assert len({one.completion_id for one in labels}) == 2
        mended = next(one for one in store.completions() if one.text == "Mice, mostly.")
        (ranking,) = store.rankings()
        assert mended.id in ranking.completion_ids
    assert refused.returncode == 2 and "not known" in refused.stderr


@pytest.mark.slow
def test_a_model_of_ones_own_is_served_for_it(chat_model: Path) -> None:
    told = [json.loads(line) for line in chat(str(chat_model), "--json", lines="Hello\n/up\n").splitlines()]
    assert [list(one) for one in told] == [["note"], ["answer"], ["note"]]
    assert "Talking to" in told[0]["note"] and "this server keeps no feedback" in told[2]["note"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_key_to_another_host(code: int) -> None:
    """A server that sends its callers elsewhere; what comes there is counted."""
    reached: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.headers.get("Authorization", ""))
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:

        class Away(Elsewhere):
            def do_GET(self) -> None:
                self.send_response(code)
                self.send_header("Location", f"http://127.0.0.1:{elsewhere.server_port}/v1/models")
                self.end_headers()

            do_POST = do_GET

        with ThreadingHTTPServer(("127.0.0.1", 0), Away) as away:
            for server in (elsewhere, away):
                threading.Thread(target=server.serve_forever, daemon=True).start()
            talk = Dialogue(f"http://127.0.0.1:{away.server_port}/v1", "sk-accord-mine")
            with pytest.raises(UsageError):
                talk.models()
            with pytest.raises(UsageError):
                list(talk.ask("Hello"))
            for server in (elsewhere, away):
                server.shutdown()
    assert reached == []
