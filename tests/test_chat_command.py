"""`accord chat` as it is typed: against a server of its own and against a running one; what is said lies in a store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serverapp import serving

from accord.models.placement import PLAIN
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
