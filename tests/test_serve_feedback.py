"""What users say of what was served: through HTTP, into the store, each once, and what it becomes there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serverapp import Server, serving
from webapp import http

from accord.models.placement import PLAIN
from accord.records import Completion
from accord.serve.feedback import TOKEN_DAYS, FeedbackBook, secret_in
from accord.serve.keys import KeyRing
from accord.serve.served import ServeSettings
from accord.store import Store

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "What do foxes eat?"}]
_KEYS = count()


class Listening:
    """A server with a store behind it, and a clock that tests may turn."""

    def __init__(self, server: Server, store: Store, hours: list[float], keys: dict[str, str]) -> None:
        self.server, self.store, self.hours, self.keys = server, store, hours, keys

    def ask(self, key: str = "ann", **more: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        body = {"messages": HELLO, "max_tokens": 6, **more}
        answer = self.server.post(CHAT, body, headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def say(self, token: str, kind: str, value: Any = None, *, key: str = "", **more: Any) -> httpx2.Response:
        headers = {"Idempotency-Key": key or f"key-{next(_KEYS):08d}"}
        body = {"feedback_token": token, "kind": kind, **({} if value is None else {"value": value}), **more}
        return self.server.post("/v1/feedback", body, headers=headers)


@pytest.fixture(scope="module")
def listening(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    ring, hours = KeyRing(), [0.0]
    keys = {"ann": ring.add("ann", per_minute=0), "robot": ring.add("robot", users="simulated")}
    with Store.open(tmp_path_factory.mktemp("feedback") / "accord.db") as store:
        book = FeedbackBook(store, b"secret", clock=lambda: 1e9 + hours[0] * 3600)
        settings = ServeSettings(rows=8, placement=PLAIN)
        with serving({"talker": chat_model}, settings, ring, book=book) as server:
            yield Listening(server, store, hours, keys)


def tokens_of(answer: dict[str, Any]) -> list[str]:
    return [choice["feedback"]["token"] for choice in answer["choices"]]


def the_completion(listening: Listening, text: str) -> Completion:
    return next(one for one in listening.store.completions() if one.text == text)


def test_a_thumb_is_a_label_with_where_the_completion_came_from(listening: Listening) -> None:
    answer = listening.ask(user="u1", seed=11, temperature=0.7)
    text, (token,) = answer["choices"][0]["message"]["content"], tokens_of(answer)
    said = listening.say(token, "thumb", "up", reason="clear", seconds=2.5)
    assert said.status_code == 201 and said.json()["object"] == "feedback"
    one = the_completion(listening, text)
    (label,) = listening.store.labels(completion_id=one.id)
    assert (label.good, label.note, label.seconds, label.id) == (True, "clear", 2.5, said.json()["judgements"][0])
    (person,) = (who for who in listening.store.annotators() if who.id == label.annotator_id)
    assert (person.name, person.annotator_kind) == ("ann/u1", "human")
    assert (one.source.origin, one.source.name) == ("policy", "talker")
    assert one.source.version == answer["system_fingerprint"]
    assert json.loads(one.source.sampling) == {"temperature": 0.7, "seed": 11, "sample": 0}
    ids, logps = json.loads(one.meta["completion_ids"]), json.loads(one.meta["behaviour_logp"])
    assert len(ids) == len(logps) == answer["usage"]["completion_tokens"] and max(logps) <= 0
    assert len(json.loads(one.meta["prompt_ids"])) == answer["usage"]["prompt_tokens"]
    (prompt,) = (found for found in listening.store.prompts() if found.id == one.prompt_id)
    assert prompt.turns() == HELLO
    assert listening.store.verify() == []


def test_what_nobody_speaks_of_is_no_fact(listening: Listening) -> None:
    before = listening.store.counts()
    (token,) = tokens_of(listening.ask(seed=1))
    for kind in ("copy", "retry"):
        said = listening.say(token, kind)
        assert said.status_code == 201 and said.json()["judgements"] == []
    assert listening.store.counts() == before


def test_the_same_key_again_is_the_same_feedback_and_other_words_are_refused(listening: Listening) -> None:
    (token,) = tokens_of(listening.ask(seed=2))
    before = listening.store.counts()["labels"]
    with ThreadPoolExecutor(8) as pool:
        said = [*pool.map(lambda _: listening.say(token, "thumb", True, key="one-and-the-same"), range(8))]
    assert sorted(one.status_code for one in said) == [200] * 7 + [201]
    assert len({(one.json()["id"], *one.json()["judgements"]) for one in said}) == 1
    assert listening.store.counts()["labels"] == before + 1
    other = listening.say(token, "thumb", False, key="one-and-the-same")
    assert other.status_code == 422 and other.json()["error"]["code"] == "idempotency_key_reused"


def test_a_change_of_mind_supersedes_and_another_question_does_not(listening: Listening) -> None:
    answer = listening.ask(seed=3)
    (token,), text = tokens_of(answer), answer["choices"][0]["message"]["content"]
    for value, axis in ((True, ""), (False, ""), (True, "safety")):
        assert listening.say(token, "thumb", value, axis=axis).status_code == 201
    one = the_completion(listening, text)
    assert {(label.axis, label.good) for label in listening.store.labels(completion_id=one.id)} == {
        ("", False),
        ("safety", True),
    }
    assert len([*listening.store.labels(completion_id=one.id, history=True)]) == 3


def test_two_to_compare_become_a_ranking(listening: Listening) -> None:
    answer = listening.ask(seed=4, compare=2)
    first, second = tokens_of(answer)
    said = listening.say(first, "ranking", [2, 1], others=[second])
    assert said.status_code == 201, said.text
    ranking = next(one for one in listening.store.rankings() if one.id == said.json()["judgements"][0])
    texts = {one.id: one.text for one in listening.store.completions()}
    assert [texts[one] for one in ranking.completion_ids] == [one["message"]["content"] for one in answer["choices"]]
    assert ranking.ranks == (2, 1)
    (stranger,) = tokens_of(listening.ask(messages=[{"role": "user", "content": "Other?"}], seed=4))
    assert listening.say(first, "ranking", [1, 2], others=[stranger]).status_code == 422


def test_an_edit_shows_how_and_is_better_than_what_it_mends(listening: Listening) -> None:
    answer = listening.ask(seed=5)
    (token,), text = tokens_of(answer), answer["choices"][0]["message"]["content"]
    for mended in ("Mice and berries.", "Mice, mostly."):
        said = listening.say(token, "edit", mended)
        assert said.status_code == 201, said.text
    one, own = the_completion(listening, "Mice, mostly."), the_completion(listening, text)
    assert (one.source.origin, one.prompt_id) == ("user", own.prompt_id)
    shown = [demo.text for demo in listening.store.demonstrations(prompt_id=own.prompt_id)]
    assert "Mice, mostly." in shown and "Mice and berries." not in shown
    ranking = next(r for r in listening.store.rankings() if r.id == said.json()["judgements"][1])
    assert ranking.completion_ids == (one.id, own.id) and ranking.ranks == (1, 2)


def test_ratings_comments_and_flags(listening: Listening) -> None:
    answer = listening.ask(seed=6)
    (token,), text = tokens_of(answer), answer["choices"][0]["message"]["content"]
    for kind, value in (("rating", 4), ("comment", "Too short."), ("flag", "rude")):
        assert listening.say(token, kind, value).status_code == 201
    one = the_completion(listening, text)
    (rating,) = listening.store.ratings(completion_id=one.id)
    assert (rating.value, rating.low, rating.high) == (4.0, 1.0, 5.0)
    assert {(r.note, r.flags) for r in listening.store.remarks(completion_id=one.id)} == {
        ("Too short.", ()),
        ("", ("rude",)),
    }


def test_programs_are_never_counted_as_people(listening: Listening) -> None:
    (token,) = tokens_of(listening.ask("robot", seed=7))
    before = listening.store.judged_by()
    assert listening.say(token, "thumb", "down").status_code == 201
    after = listening.store.judged_by()
    assert after.get("simulated", 0) == before.get("simulated", 0) + 1 and after["human"] == before["human"]


@pytest.mark.parametrize(
    ("kind", "value", "more"),
    [
        ("thumb", "sideways", {}),
        ("thumb", None, {}),
        ("rating", 9, {}),
        ("rating", "many", {}),
        ("rating", True, {}),
        ("ranking", [1], {}),
        ("ranking", "first", {}),
        ("edit", " ", {}),
        ("comment", None, {}),
        ("flag", 3, {}),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(
    listening: Listening, kind: str, value: Any, more: dict[str, Any]
) -> None:
    (token,) = tokens_of(listening.ask(seed=8))
    before = listening.store.counts()
    assert listening.say(token, kind, value, **more).status_code == 422
    assert listening.store.counts() == before
    assert listening.say(token, kind, value, unknown=1).status_code == 400


def test_a_token_is_one_completion_s_signed_and_ends(listening: Listening) -> None:
    listening.server.client.headers.pop("authorization", None)
    (token,) = tokens_of(listening.ask(seed=9))
    name, ends, mac = token.split(".")
    forged = [f"{name}.{int(ends, 16) + 9:x}.{mac}", f"{'0' * 24}.{ends}.{mac}", "x", "..", token[:-1], "é.é.é"]
    for other in forged:
        said = listening.say(other, "thumb", True)
        assert said.status_code in (401, 429), said.text
    no_key = listening.server.post("/v1/feedback", {"feedback_token": token, "kind": "copy"})
    assert no_key.status_code == 400
    evil = {"Origin": "https://evil.example", "Idempotency-Key": "12345678"}
    assert (
        listening.server.post("/v1/feedback", {"feedback_token": token, "kind": "copy"}, headers=evil).status_code
        == 403
    )
    listening.hours[0] = TOKEN_DAYS * 24 + 1
    over = listening.say(token, "thumb", True)
    listening.hours[0] = 0.0
    assert over.status_code in (401, 429)


def test_streams_bring_their_tokens_too_and_store_false_keeps_nothing(listening: Listening) -> None:
    listening.server.client.headers["authorization"] = f"Bearer {listening.keys['ann']}"
    events = listening.server.events(CHAT, {"messages": HELLO, "seed": 10, "max_tokens": 6, "n": 2})
    ends = [one for event in events for one in event["choices"] if one["finish_reason"]]
    assert len(ends) == 2 and all(
        listening.say(one["feedback"]["token"], "thumb", True).status_code == 201 for one in ends
    )
    assert "feedback" not in listening.ask(store=False)["choices"][0]
    old = listening.server.complete("Bread", max_tokens=3, seed=1)
    assert listening.say(old["choices"][0]["feedback"]["token"], "thumb", True).status_code == 201
    assert "Bread" in {prompt.text for prompt in listening.store.prompts() if prompt.form == "text"}


def test_without_a_book_there_is_nothing_to_say(chat_model: Path) -> None:
    with serving({"talker": chat_model}) as server:
        assert "feedback" not in server.chat(HELLO, max_tokens=1)["choices"][0]
        headers = {"Idempotency-Key": "12345678"}
        server.refused("/v1/feedback", {"feedback_token": "x", "kind": "copy"}, 404, headers=headers)


def test_a_secret_is_made_once_and_kept_to_oneself(tmp_path: Path) -> None:
    file = tmp_path / "serve.secret"
    assert secret_in(file) == secret_in(file) and len(secret_in(file)) == 32
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_killed_server_has_lost_no_feedback_that_it_acknowledged(chat_model: Path, tmp_path: Path) -> None:
    home = tmp_path / "shop"
    argv = [sys.executable, "-m", "accord", "init", str(home), "--model", str(chat_model)]
    assert subprocess.run(argv, capture_output=True).returncode == 0
    command = [sys.executable, "-m", "accord", "serve", str(home), "--port", "0", "--json"]
    acknowledged: list[str] = []
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        url = json.loads("".join(lines))["url"]
        with http() as client:
            for _ in range(3):
                body = {"messages": HELLO, "max_tokens": 4}
                (choice,) = client.post(f"{url}/chat/completions", json=body).json()["choices"]
                said = {"feedback_token": choice["feedback"]["token"], "kind": "thumb", "value": True}
                headers = {"Idempotency-Key": os.urandom(8).hex()}
                acknowledged += client.post(f"{url}/feedback", json=said, headers=headers).json()["judgements"]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    with Store.open(home / "accord.db") as store:
        assert [label.id for label in store.labels()] == acknowledged and len(acknowledged) == 6
