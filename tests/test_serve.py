"""The server over HTTP, against the engine, the model and arithmetic: what is answered, refused, counted and freed."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from serverapp import Server, eventually, serving

from accord.models.folder import load_policy
from accord.models.placement import PLAIN
from accord.people.web.security import Buckets
from accord.rollout.engine import Engine, Sampling
from accord.scoring.reward_model import RewardModel
from accord.serve.guard import GuardedRoute, Porter
from accord.serve.keys import KeyRing
from accord.serve.measures import Measures
from accord.serve.served import ServeSettings

JSON = dict[str, Any]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "What do foxes eat?"}]


@pytest.fixture(scope="module")
def server(chat_model: Path, reward_folder: Path) -> Iterator[Server]:
    settings = ServeSettings(rows=8, placement=PLAIN)
    with serving({"talker": chat_model, "taste": reward_folder}, settings) as running:
        yield running


@pytest.fixture(scope="module")
def offline(chat_model: Path) -> Any:
    """What the engine gives for a prompt's ids by itself: the sample and its text."""
    policy, tokenizer = load_policy(chat_model, PLAIN)
    engine = Engine(policy, tokenizer.stop_ids)

    def answer(ids: list[int], sampling: Sampling, seed: int = 0) -> Any:
        return engine.generate([ids], sampling, seed=seed)

    answer.tokenizer, answer.policy = tokenizer, policy  # type: ignore[attr-defined]
    return answer


def ids_of(offline: Any, messages: list[JSON]) -> list[int]:
    found: list[int] = offline.tokenizer.encode(offline.tokenizer.chat.prompt(messages))
    return found


# ---- the same as the engine ------------------------------------------------------------------------------------------


def test_greedy_answers_are_the_engines_own_whatever_else_is_being_written(server: Server, offline: Any) -> None:
    """Forty at once on eight rows, greedy ones between drawn ones of all kinds; prefixes are met."""
    asked = [f"{'Tell me more. ' * (i % 4)}Question {i % 13}?" for i in range(40)]
    others: list[JSON] = [{"temperature": 1.2, "top_p": 0.9}, {"n": 3}, {"presence_penalty": 1, "stop": "e"}]

    def ask(i: int) -> str:
        if i % 2:
            server.chat(asked[i], max_tokens=10, seed=i, **others[i % 3])
        return str(server.chat(asked[i], max_tokens=16, temperature=0)["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(20) as pool:
        found = [*pool.map(ask, range(40))]
    for question, text in zip(asked, found, strict=True):
        ids = ids_of(offline, [{"role": "user", "content": question}])
        sample = offline(ids, Sampling(16, top_k=1))[0]
        assert text == offline.tokenizer.decode(sample.completion)
    assert server.measure("accord_prompt_tokens_reused_total") > 0


def test_a_seed_draws_what_the_engine_draws_and_n_are_its_samples(server: Server, offline: Any) -> None:
    made = server.chat(HELLO, seed=5, n=4, max_tokens=12, temperature=0.9, top_p=0.95)
    samples = offline(ids_of(offline, HELLO), Sampling(12, 4, temperature=0.9, top_p=0.95), 5)
    assert [one["message"]["content"] for one in made["choices"]] == [
        offline.tokenizer.decode(s.completion) for s in samples
    ]
    assert [one["index"] for one in made["choices"]] == [0, 1, 2, 3]
    assert [one["finish_reason"] for one in made["choices"]] == [s.finish for s in samples]
    assert made["usage"]["completion_tokens"] == sum(len(s.completion) for s in samples)
    assert made["usage"]["prompt_tokens"] == len(ids_of(offline, HELLO))
    again = server.chat(HELLO, seed=5, n=4, max_tokens=12, temperature=0.9, top_p=0.95)
    assert again["choices"] == made["choices"] and again["id"] != made["id"]
    drawn = {server.chat(HELLO, max_tokens=12)["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(drawn) == 3  # without a seed nobody knows


@pytest.mark.parametrize("more", [{}, {"n": 2, "stop": ["e", "th"]}, {"logprobs": True, "top_logprobs": 2}], ids=str)
def test_a_stream_is_the_whole_answer_in_pieces(server: Server, more: JSON) -> None:
    body = {"messages": HELLO, "seed": 3, "max_tokens": 24, **more}
    whole = server.answered(CHAT, body)
    events = server.events(CHAT, {**body, "stream_options": {"include_usage": True}})
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [one for event in events for one in event["choices"] if one["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(one["delta"].get("content", "") for one in own) == choice["message"]["content"]
        assert [one["finish_reason"] for one in own if one["finish_reason"]] == [choice["finish_reason"]]
        assert own[-1]["finish_reason"] and own[-1]["delta"] == {}
        if more.get("logprobs"):
            said = [token for one in own for token in (one.get("logprobs") or {}).get("content", [])]
            assert said == choice["logprobs"]["content"]
    assert "usage" not in server.events(CHAT, body)[-1]


def test_a_stop_string_ends_the_text_and_frees_the_row(server: Server, offline: Any) -> None:
    sample = offline(ids_of(offline, HELLO), Sampling(30, top_k=1))[0]
    text = offline.tokenizer.decode(sample.completion)
    letters = [letter for letter in text[3:] if letter.isascii() and letter.isalnum()]
    stop = text[text.index(letters[4], 3) :][:2]
    made = server.chat(HELLO, temperature=0, max_tokens=30, stop=stop)["choices"][0]
    assert made["message"]["content"] == text[: text.index(stop)] and made["finish_reason"] == "stop"
    eventually(lambda: server.measure("accord_running") == 0)


def test_a_stop_token_ends_the_text_and_is_no_part_of_it(server: Server, offline: Any) -> None:
    sample = offline(ids_of(offline, HELLO), Sampling(30, top_k=1))[0]
    token = sample.completion[6]
    at = sample.completion.index(token)
    made = server.chat(HELLO, temperature=0, max_tokens=30, stop_token_ids=[token])
    assert made["choices"][0]["message"]["content"] == offline.tokenizer.decode(sample.completion[:at])
    assert made["choices"][0]["finish_reason"] == "stop" and made["usage"]["completion_tokens"] == at + 1


@torch.no_grad()
def test_logprobs_are_the_models_own_and_echo_says_those_of_the_prompt(server: Server, offline: Any) -> None:
    ids = offline.tokenizer.encode("Two foxes crossed the canal")
    made = server.complete(ids, temperature=0, max_tokens=4, logprobs=3, echo=True)["choices"][0]
    said = made["logprobs"]
    whole = [*ids, *offline(ids, Sampling(4, top_k=1))[0].completion]
    law = torch.log_softmax(offline.policy(torch.tensor([whole]))[0], -1)
    assert said["token_logprobs"][0] is None and said["top_logprobs"][0] is None
    assert said["token_logprobs"][1:] == pytest.approx(
        [float(law[i, whole[i + 1]]) for i in range(len(whole) - 1)], abs=1e-4
    )
    assert [max(top.values()) for top in said["top_logprobs"][1:]] == pytest.approx(
        law.max(-1).values[:-1].tolist(), abs=1e-4
    )
    assert said["tokens"] == [offline.tokenizer.spelled([one]) for one in whole]
    assert made["text"].startswith("Two foxes crossed the canal")
    assert said["text_offset"][:3] == [0, *[len("".join(said["tokens"][:n])) for n in (1, 2)]]


def test_only_reading_a_prompt(server: Server) -> None:
    made = server.complete(["Bread wants", "The fog"], max_tokens=0, logprobs=1, echo=True)
    longer = server.complete("Bread wants", max_tokens=1, logprobs=1, echo=True)["choices"][0]["logprobs"]
    assert [one["text"] for one in made["choices"]] == ["Bread wants", "The fog"]
    assert made["choices"][0]["logprobs"]["token_logprobs"] == longer["token_logprobs"][:-1]
    assert made["usage"]["completion_tokens"] == 0 and made["choices"][1]["index"] == 1


def test_several_prompts_are_answered_in_their_order(server: Server, offline: Any) -> None:
    texts = ["Bread", "The fog took", "Nobody"]
    made = server.complete(texts, temperature=0, max_tokens=6, n=2)
    wanted = [
        offline(offline.tokenizer.encode(one), Sampling(6, top_k=1))[0].completion for one in texts for _ in range(2)
    ]
    assert [one["text"] for one in made["choices"]] == [offline.tokenizer.decode(one) for one in wanted]
    events = server.events(TEXT, {"prompt": texts, "temperature": 0, "max_tokens": 6, "n": 2, "echo": True})
    for place, choice in enumerate(made["choices"]):
        own = "".join(one["text"] for event in events for one in event["choices"] if one["index"] == place)
        assert own == texts[place // 2] + choice["text"]


def test_biases_and_penalties_reach_the_draw(server: Server, offline: Any) -> None:
    token = offline.tokenizer.encode("Bread")[0]
    made = server.chat(HELLO, temperature=0, max_tokens=3, logit_bias={str(token): 100})
    assert made["choices"][0]["message"]["content"] == offline.tokenizer.decode([token] * 3)
    apart = server.chat(
        HELLO, temperature=0, max_tokens=4, logit_bias={str(token): 4.0}, presence_penalty=2, logprobs=True
    )
    names = [one["token"] for one in apart["choices"][0]["logprobs"]["content"]]
    assert len(names) == 4


def test_both_limits_of_tokens_and_what_there_is_room_for(server: Server, offline: Any) -> None:
    room = 640 - len(ids_of(offline, HELLO))
    bias = {str(offline.tokenizer.encode("a")[0]): 100}
    for asked, written in (({"max_tokens": 5}, 5), ({"max_completion_tokens": 4, "max_tokens": 9}, 4), ({}, room)):
        made = server.chat(HELLO, logit_bias=bias, **asked)
        assert made["usage"]["completion_tokens"] == written and made["choices"][0]["finish_reason"] == "length"
    assert server.complete("x", logit_bias=bias)["usage"]["completion_tokens"] == 16


def test_parts_of_text_and_developers_are_read(server: Server) -> None:
    plain = server.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Now."}], seed=1, max_tokens=6
    )
    parts = [{"type": "text", "text": "No"}, {"type": "text", "text": "w."}]
    same = server.chat(
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}], seed=1, max_tokens=6
    )
    assert same["choices"] == plain["choices"] and same["usage"] == plain["usage"]


def test_what_means_nothing_here_is_ignored(server: Server) -> None:
    server.chat(
        [{"role": "user", "content": "Now.", "name": "ann"}], max_tokens=1, store=True, metadata={"a": "b"}, tools=[],
        user="ann", response_format={"type": "text"}, parallel_tool_calls=False, service_tier="auto",
    )  # fmt: skip


def test_a_model_without_turns_goes_on_writing(letters_folder: Path) -> None:
    with serving({"letters": letters_folder}) as running:
        one = running.chat("Bread", temperature=0, max_tokens=8)["choices"][0]["message"]["content"]
        assert one == running.complete("Bread", temperature=0, max_tokens=8)["choices"][0]["text"]


# ---- scores, tokens, models ------------------------------------------------------------------------------------------


def test_scores_are_the_reward_models(server: Server, reward_folder: Path) -> None:
    pairs = [("Bread", " wants time"), ("The fog", " took it"), ("Bread", "")]
    wanted = RewardModel.load(reward_folder, PLAIN).score(pairs).tolist()
    body = {"prompts": [prompt for prompt, _ in pairs], "completions": [text for _, text in pairs]}
    made = server.answered("/v1/score", body)
    assert made["scores"] == pytest.approx(wanted, abs=1e-6)
    assert [one["score"] for one in made["data"]] == made["scores"] and made["model"] == "taste"
    alone = server.answered("/v1/score", {"model": "taste", "prompts": "Bread", "completions": [" wants time", ""]})
    assert alone["scores"] == pytest.approx([wanted[0], wanted[2]], abs=1e-6)
    server.refused("/v1/score", {"prompts": ["a", "b"], "completions": ["c"]}, 400)


def test_our_own_http_scorer_asks_it(server: Server, reward_folder: Path) -> None:
    from accord.scoring.http_scorer import HttpScorer

    pairs = [("Bread", " wants time"), ("The fog", " took it")]
    found = HttpScorer(f"{server.url}/v1/score").score(pairs)
    torch.testing.assert_close(found, RewardModel.load(reward_folder, PLAIN).score(pairs))


def test_tokens_there_and_back(server: Server, offline: Any) -> None:
    ids = offline.tokenizer.encode("Two foxes")
    assert server.answered("/tokenize", {"model": "talker", "prompt": "Two foxes"}) == {
        "count": len(ids), "max_model_len": 640, "tokens": ids,
    }  # fmt: skip
    assert server.answered("/tokenize", {"messages": HELLO})["tokens"] == ids_of(offline, HELLO)
    assert server.answered("/detokenize", {"tokens": ids})["prompt"] == "Two foxes"
    server.refused("/tokenize", {"prompt": "a", "messages": HELLO}, 400)


def test_models_are_listed_and_named(server: Server) -> None:
    listed = server.client.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["talker", "taste"] and listed["object"] == "list"
    assert all({"id", "object", "created", "owned_by"} <= set(one) for one in listed["data"])
    assert server.client.get("/v1/models/taste").json()["object"] == "model"
    missing = server.client.get("/v1/models/gpt-9")
    assert missing.status_code == 404 and "talker" in missing.json()["error"]["message"]
    error = server.refused(CHAT, {"model": "gpt-9", "messages": HELLO}, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 99}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_words(server: Server, more: JSON, param: str) -> None:
    error = server.refused(CHAT, {"messages": HELLO, **more}, 400)
    assert error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 5}, "best_of"),
        ({"prompt": "a", "logprobs": 50}, "logprobs"),
        ({}, "prompt"),
    ],
    ids=str,
)
def test_so_it_is_in_the_older_interface(server: Server, body: JSON, param: str) -> None:
    assert server.refused(TEXT, body, 400)["param"] == param


def test_bodies_that_are_none(server: Server) -> None:
    sent: dict[str, Any] = {"headers": {"content-type": "application/json"}}
    for raw in (b"{", b"[]", b'"x"', b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"\xff\xfe"):
        answer = server.client.post(CHAT, content=raw, **sent)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    # what a form of another site can send without asking first
    plain = server.client.post(CHAT, content=json.dumps({"messages": HELLO}), headers={"content-type": "text/plain"})
    assert plain.status_code == 400
    assert server.client.post(CHAT, content=b" " * 5_000_000, **sent).status_code == 413
    assert server.client.get(CHAT).status_code == 405 and server.client.get("/nothing").status_code == 404


def test_no_template_means_no_turns_for_a_reward_model(server: Server) -> None:
    error = server.refused("/v1/score", {"prompts": [HELLO], "completions": ["x"]}, 400)
    assert "template" in error["message"]


# ---- who may ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(chat_model: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    ring = KeyRing()
    keys = {"user": ring.add("ann"), "slow": ring.add("slow", per_minute=2), "operator": ring.add("ops", operator=True)}
    keys["once"] = ring.add("once", at_once=1)
    with serving({"talker": chat_model}, keys=ring, origins=["https://chat.example.org"]) as running:
        yield running, keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_denies_who_has_no_key(guarded: tuple[Server, dict[str, str]]) -> None:
    server, keys = guarded
    app_routes = [
        route
        for route in create_routes(server)
        if isinstance(route, GuardedRoute)
        # Feedback comes with a signed token; the page of the chat, its scripts and style hold nothing.
        and route.path not in ("/health", "/version", "/v1/feedback", "/", "/chat", "/static/{version}/{name}")
    ]
    assert len(app_routes) >= 9
    for route in app_routes:
        path = route.path.replace("{name}", "talker")
        for verb in route.methods:
            for headers in ({}, bearer("sk-accord-wrong"), {"Authorization": "Basic abc"}):
                answer = server.client.request(verb, path, headers=headers)
                assert answer.status_code in (401, 429) and answer.json()["error"]["code"], path
            user = server.client.request(verb, path, headers=bearer(keys["user"]))
            assert (user.status_code == 403) == (route.door == "operator"), path
            assert server.client.request(verb, path, headers=bearer(keys["operator"])).status_code not in (401, 403)


def create_routes(server: Server) -> list[Any]:
    from accord.serve.app import create_server

    return [*create_server(server.served, KeyRing()).router.routes]


def test_a_route_that_names_nobody_cannot_be_made() -> None:
    from accord.errors import UsageError

    async def endpoint() -> None: ...

    with pytest.raises(UsageError, match="who may use it"):
        GuardedRoute("/open", endpoint)


def test_a_key_has_its_own_rate(guarded: tuple[Server, dict[str, str]]) -> None:
    server, keys = guarded
    answers = [server.client.get("/v1/models", headers=bearer(keys["slow"])) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert server.client.get("/v1/models", headers=bearer(keys["user"])).status_code == 200


def test_a_key_that_may_ask_once_at_a_time(guarded: tuple[Server, dict[str, str]]) -> None:
    server, keys = guarded
    body = {"messages": HELLO, "n": 16, "max_tokens": 500, "stream": True, "logit_bias": {"70": 100}}
    with server.client.stream("POST", CHAT, json=body, headers=bearer(keys["once"])) as answer:
        raw = answer.iter_raw()
        next(raw)
        error = server.refused(CHAT, {"messages": HELLO, "max_tokens": 1}, 429, headers=bearer(keys["once"]))
        assert "already" in error["message"]
    eventually(
        lambda: server.post(CHAT, {"messages": HELLO, "max_tokens": 1}, headers=bearer(keys["once"])).status_code == 200
    )


def test_pages_of_others_may_not_ask(guarded: tuple[Server, dict[str, str]]) -> None:
    server, keys = guarded
    headers = bearer(keys["user"])
    evil = server.client.get("/v1/models", headers={**headers, "Origin": "https://evil.example"})
    assert evil.status_code == 403 and "access-control-allow-origin" not in evil.headers
    friend = server.client.get("/v1/models", headers={**headers, "Origin": "https://chat.example.org"})
    assert friend.status_code == 200 and friend.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert server.client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_keys_stand_in_a_file_as_hashes_and_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    ring = KeyRing(file)
    assert ring.find("") is None and len(ring) == 0
    secret = KeyRing(file).add("ann", per_minute=5)
    assert secret not in file.read_text() and file.stat().st_mode & 0o077 == 0
    found = ring.find(secret)
    assert found is not None and (found.name, found.per_minute, found.operator) == ("ann", 5, False)
    KeyRing(file).revoke("ann")
    assert ring.find(secret) is None
    assert KeyRing(file, required=False).find(secret) is not None  # local: nobody needs one


def test_wrong_keys_are_tried_slowly(chat_model: Path) -> None:
    gate = Porter(KeyRing())
    gate._attempts = Buckets(1 / 6, 3)
    with serving({"talker": chat_model}, keys=gate.keys) as server:
        codes = [server.client.get("/v1/models", headers=bearer(f"x{i}")).status_code for i in range(12)]
    assert codes[:10] == [401] * 10 and codes[-1] == 429


# ---- leaving, waiting, failing ---------------------------------------------------------------------------------------


def long_request(server: Server, stream: bool) -> socket.socket:
    body = json.dumps({"messages": HELLO, "max_tokens": 600, "stream": stream, "logit_bias": {"70": 100}}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)))
    lines = [f"POST {CHAT} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json"]
    sock.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    return sock


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_row(server: Server, stream: bool) -> None:
    before = server.measure("accord_completion_tokens_total")
    socks = [long_request(server, stream) for _ in range(8)]
    eventually(lambda: server.measure("accord_running") == 8)
    for sock in socks:
        sock.close()
    eventually(lambda: server.measure("accord_running") == 0)
    assert server.measure("accord_completion_tokens_total") - before < 8 * 600


def test_a_full_queue_says_when_to_come_again_and_leavers_leave_it(chat_model: Path) -> None:
    settings = ServeSettings(rows=1, most_waiting=4, placement=PLAIN)
    with serving({"talker": chat_model}, settings) as server:
        writing = long_request(server, True)
        eventually(lambda: server.measure("accord_running") == 1)
        waiting = [long_request(server, True) for _ in range(2)]
        eventually(lambda: server.measure("accord_waiting") == 2)
        answer = server.post(CHAT, {"messages": HELLO})
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        for sock in waiting:
            sock.close()
        eventually(lambda: server.measure("accord_waiting") == 0)
        writing.close()
        assert server.chat(HELLO, max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_fault_of_the_engine_is_told_and_the_next_request_answered(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from accord.rollout.engine import Session

    with serving({"talker": chat_model}) as server:
        real, broken = Session.step, threading.Event()

        def step(self: Session) -> Any:
            if not broken.is_set():
                broken.set()
                raise RuntimeError("a bug")
            return real(self)

        monkeypatch.setattr(Session, "step", step)
        error = server.refused(CHAT, {"messages": HELLO, "max_tokens": 2}, 500)
        assert "a bug" not in error["message"] and "a bug" in caplog.text
        assert server.chat(HELLO, max_tokens=2)["usage"]["completion_tokens"] == 2
        assert server.client.get("/health").status_code == 200


def test_an_error_within_a_stream_is_an_event(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.errors import DataError
    from accord.rollout.engine import Session

    with serving({"talker": chat_model}) as server:
        real, steps = Session.step, [0]

        def step(self: Session) -> Any:
            steps[0] += 1
            if steps[0] == 3:
                raise DataError("the model's logits are not numbers")
            return real(self)

        monkeypatch.setattr(Session, "step", step)
        with server.client.stream("POST", CHAT, json={"messages": HELLO, "stream": True, "max_tokens": 9}) as answer:
            text = b"".join(answer.iter_raw()).decode()
        last = json.loads(text.rstrip().rpartition("data: ")[2])
        assert last["error"]["message"] == "the model's logits are not numbers"


def test_silence_is_filled_with_comments(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.rollout.engine import Session

    real = Session.step

    def slow(self: Session) -> Any:
        time.sleep(0.3)
        return real(self)

    monkeypatch.setattr(Session, "step", slow)
    body = {"messages": HELLO, "stream": True, "max_tokens": 1}
    with (
        serving({"talker": chat_model}, ServeSettings(rows=2, keep_alive_s=0.05)) as server,
        server.client.stream("POST", CHAT, json=body) as answer,
    ):
        assert b": keep-alive\n\n" in b"".join(answer.iter_raw())


# ---- what is counted -------------------------------------------------------------------------------------------------


def test_measures_count_what_happens(server: Server) -> None:
    names = ("accord_completion_tokens_total", "accord_prompt_tokens_total", "accord_request_seconds_count")
    before = [server.measure(name) for name in names]
    usage = server.chat(HELLO, max_tokens=5, n=2)["usage"]
    after = [server.measure(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [
        usage["completion_tokens"],
        usage["prompt_tokens"],
        1,
    ]


def test_measures_are_what_prometheus_reads() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    measures = Measures()
    measures.count("accord_requests_total", route='/a"b\\c\n', status="200")
    measures.count("accord_requests_total", by=2, route="/b", status="500")
    measures.now("accord_running", lambda: 3)
    for seconds in (0.02, 0.02, 0.3, 1000.0):
        measures.observe("accord_first_token_seconds", seconds)
    families = {family.name: family for family in parser.text_string_to_metric_families(measures.text())}
    found = {tuple(sorted(s.labels.items())): s.value for s in families["accord_requests"].samples}
    assert found == {(("route", '/a"b\\c\n'), ("status", "200")): 1.0, (("route", "/b"), ("status", "500")): 2.0}
    assert families["accord_running"].samples[0].value == 3.0
    buckets = {
        s.labels["le"]: s.value for s in families["accord_first_token_seconds"].samples if s.name.endswith("_bucket")
    }
    assert (buckets["0.01"], buckets["0.025"], buckets["0.5"], buckets["+Inf"]) == (0, 2, 3, 4)
    assert math.isclose(
        next(s.value for s in families["accord_first_token_seconds"].samples if s.name.endswith("_sum")), 1000.34
    )


def test_health_version_and_names_of_requests(server: Server) -> None:
    answer = server.client.get("/health")
    assert answer.json() == {"status": "ok"} and answer.headers["x-request-id"].startswith("req-")
    assert server.client.get("/version").json()["version"]
    assert "/v1/chat/completions" in server.client.get("/openapi.json").json()["paths"]
