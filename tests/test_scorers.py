"""Scores that are not a reward model's, and several as one: checked on the way in, and each part stays visible."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WriteRows
from safetensors.torch import load_file
from test_cli import Done
from torch import Tensor

from accord.algo.table import POLICY_ALGORITHMS
from accord.config import CombineConfig, RlConfig, ScorerConfig, load_recipe
from accord.errors import DataError, ResourceError, UsageError
from accord.models.decoder import ScalarModel, init_score_head, init_weights
from accord.models.folder import RewardScale, load_scalar, save_scalar
from accord.models.placement import PLAIN
from accord.models.shape import DecoderConfig
from accord.scoring import (
    FunctionScorer,
    HttpScorer,
    Part,
    RegexScorer,
    RewardModel,
    WeightedScorer,
    load_scorer,
    score,
)
from accord.scoring.posting import Endpoint
from accord.scoring.scorer import checked
from accord.scoring.weighted import score_in_parts, scorer_inputs
from accord.text.tokenizer import Tokenizer
from accord.train.policy_models import load_policy_models
from accord.train.rl import rl

PAIRS = [("The village:", " fog"), ("He:", " wrote a long letter"), ("A", "")]

OWN = """
def count(prompts, completions):
    return [len(completion) for completion in completions]

def echoes(prompts, completions):
    return [prompt in completion for prompt, completion in zip(prompts, completions)]

def one_short(prompts, completions):
    return [1.0] * (len(completions) - 1)

def shy(prompts, completions):
    return [1.0 if completion else None for completion in completions]

def broken(prompts, completions):
    return [1 / len(completion) for completion in completions]

limit = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own in the working directory; its name."""
    name = f"own_scores_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


# -- what may come in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [[0.5, 2, True], (0.5, 2, True), np.array([0.5, 2.0, 1.0]), torch.tensor([0.5, 2.0, 1.0]), iter([0.5, 2, 1])],
    ids=["list", "tuple", "array", "tensor", "iterator"],
)
def test_any_iterable_of_numbers_is_taken(given: Any) -> None:
    assert checked("mine", given, PAIRS).tolist() == [0.5, 2.0, 1.0]
    assert checked("mine", [], []).shape == (0,)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([0.5, 1.0], "mine gave 2 scores for 3 completions"),
        (0.5, "mine gave a float"),
        (None, "mine gave a NoneType"),
        ([0.5, math.nan, 1.0], "mine gave nan for ' wrote a long letter'"),
        ([0.5, 1.0, math.inf], "mine gave inf for ''"),
        ([1e39, 1.0, 0.5], "mine gave 1e+39 for ' fog'"),  # more than fp32 holds
        ([10**400, 1.0, 0.5], "mine gave 1000"),
        ([0.5, "1.0", 1.0], "mine gave '1.0' for ' wrote"),
        ([0.5, None, 1.0], "mine gave None for ' wrote"),
        ([[0.5], [1.0], [0.5]], "mine gave [0.5] for ' fog'"),
        (torch.zeros(3, 1), "mine gave [0.0] for ' fog'"),
        ({" fog": 0.5, "b": 1.0, "c": 2.0}, "mine gave ' fog' for ' fog'"),
    ],
)
def test_anything_else_is_refused_with_the_scorer_and_the_text(given: Any, told: str) -> None:
    with pytest.raises(DataError, match="^" + ".*" + re.escape(told)):
        checked("mine", given, PAIRS)


def test_a_reward_model_that_gives_no_number_is_told(reward_folder: Path) -> None:
    scorer = RewardModel.load(reward_folder, PLAIN)
    with torch.no_grad():
        scorer.model.score.weight.fill_(math.nan)
    with pytest.raises(DataError, match="the reward model gave nan for ' fog'"):
        scorer.score(PAIRS)


def test_an_ensemble_is_one_part(reward_folder: Path, tmp_path: Path) -> None:
    scorer, words, _ = load_scalar(reward_folder, head_seed=0)
    with torch.no_grad():
        scorer.score.weight.neg_()
    save_scalar(tmp_path / "opposite", scorer, words)
    both = [str(reward_folder), str(tmp_path / "opposite")]
    config = ScorerConfig(ensemble=both, combine=CombineConfig(rule="min"), weight=2.0, name="worst")
    alone = torch.stack([RewardModel.load(Path(folder), PLAIN).score(PAIRS) for folder in both])
    made = load_scorer([config, ScorerConfig(regex="x")], None, PLAIN)
    assert isinstance(made, WeightedScorer)
    torch.testing.assert_close(made.parts(PAIRS)["worst"], alone.amin(0))
    assert scorer_inputs([config]) == {"rewards.worst.0": Path(both[0]), "rewards.worst.1": Path(both[1])}
    with pytest.raises(ValueError, match="combine has no effect without ensemble"):
        ScorerConfig(regex="x", combine=CombineConfig(rule="min"))


# -- rules -------------------------------------------------------------------------------------------------------------


def test_a_function_of_ones_own_gets_prompts_and_completions(own: str) -> None:
    assert FunctionScorer(f"{own}:count").score(PAIRS).tolist() == [4.0, 20.0, 0.0]
    assert FunctionScorer(f"{own}:echoes").score([("a", "cat"), ("b", "cat")]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("function", "error", "told"),
    [
        ("one_short", DataError, "gave 2 scores for 3 completions"),
        ("shy", DataError, "gave None for ''"),
        ("broken", DataError, "failed: ZeroDivisionError: division by zero"),
        ("limit", UsageError, "is a int, not a function"),
        ("nothing", UsageError, "no attribute 'nothing'"),
    ],
)
def test_a_function_that_fails_is_named(own: str, function: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        FunctionScorer(f"{own}:{function}").score(PAIRS)
    assert f"{own}:{function}" in str(caught.value)


def test_a_module_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no module 'nowhere'"):
        FunctionScorer("nowhere:score")


def test_a_pattern_is_searched_in_the_completion_alone() -> None:
    pairs = [("please", "no"), ("x", "yes, PLEASE"), ("x", "ends in 7"), ("x", "")]
    assert RegexScorer("(?i)please").score(pairs).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert RegexScorer(r"\d$").score(pairs).tolist() == [0.0, 0.0, 1.0, 0.0]
    assert RegexScorer("(?i)please", absent=True).score(pairs).tolist() == [1.0, 0.0, 1.0, 1.0]


# -- HTTP --------------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """A real server on loopback that scores by length. ``faults`` are acted out first, one a request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[int | str | bytes] = []
        self.asked: list[dict[str, list[str]]] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json"
        self.server.asked.append(body)
        self.server.times.append(time.monotonic())
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            self.send_error(fault, "too long" if fault < 429 else "busy")
        elif fault == "drop":
            self.close_connection = True
        elif fault == "hang":
            time.sleep(2.5)
        else:
            scores = [len(completion) for completion in body["completions"]]
            answer = fault if isinstance(fault, bytes) else json.dumps({"scores": scores}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_scores_over_http_come_in_batches_and_in_order(server: Server) -> None:
    pairs = [(f"p{i}", "x" * i) for i in range(5)]
    assert HttpScorer(server.url, batch_size=2).score(pairs).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [body["prompts"] for body in server.asked] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    assert server.asked[1]["completions"] == ["xx", "xxx"]
    assert HttpScorer(server.url).score([]).shape == (0,)


@pytest.mark.slow
def test_a_busy_server_is_asked_again_after_pauses_that_double(server: Server) -> None:
    server.faults = [503, 429, "drop", "hang"]
    scorer = HttpScorer(server.url, timeout_s=2.0, pause_s=0.04)
    assert scorer.score(PAIRS).tolist() == [4.0, 20.0, 0.0]
    assert len(server.asked) == 5
    gaps = [later - earlier for earlier, later in pairwise(server.times)]
    assert all(gap >= pause for gap, pause in zip(gaps, (0.04, 0.08, 0.16, 0.8), strict=True))


def test_a_server_that_stays_busy_is_given_up(server: Server) -> None:
    server.faults = [503] * 9
    with pytest.raises(ResourceError, match="no scores after 5 tries") as caught:
        HttpScorer(server.url, pause_s=0.0).score(PAIRS)
    assert server.url in str(caught.value) and "503" in str(caught.value)
    assert len(server.asked) == 5


def test_no_server_at_all_is_a_lack_of_the_machine() -> None:
    with Server() as closed:
        url = closed.url
    with pytest.raises(ResourceError, match="start the server"):
        HttpScorer(url, pause_s=0.0).score(PAIRS)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (400, "refused with 400"),
        (b"<html>", "answered b'<html>'"),
        (b'{"score": [1, 2, 3]}', "JSON like"),
        (b"[1, 2, 3]", "JSON like"),
        (b'{"scores": [1, 2]}', "gave 2 scores for 3 completions"),
        (b'{"scores": [1, 2, NaN]}', "gave nan for ''"),
        (b'{"scores": [1, "2", 3]}', "gave '2' for ' wrote"),
    ],
)
def test_a_wrong_answer_is_not_asked_for_again(server: Server, fault: int | bytes, told: str) -> None:
    server.faults = [fault]
    with pytest.raises(DataError, match=re.escape(told)) as caught:
        HttpScorer(server.url).score(PAIRS)
    assert server.url in str(caught.value)
    assert len(server.asked) == 1


# -- a server that is a stranger, or an enemy --------------------------------------------------------------------------


class Enemy:
    """A server that sends these bytes, whatever it is asked, then goes on with ``drip`` for as long as it is let."""

    def __init__(self, answer: bytes, drip: bytes = b"") -> None:
        self.answer, self.drip, self.heard = answer, drip, list[bytes]()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/score"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self.heard.append(connection.recv(65536))
                connection.sendall(self.answer)
                while self.drip:
                    connection.sendall(self.drip)
                    time.sleep(0.01)


@pytest.fixture
def enemy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Enemy]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made: list[Enemy] = []

    def make(answer: bytes, drip: bytes = b"") -> Enemy:
        made.append(Enemy(answer, drip))
        return made[-1]

    yield make
    for one in made:
        one.socket.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DRIPS = {
    "head": (HEAD, b"X-Again: x\r\n"),
    "a line of the head": (HEAD + b"X-Long: ", b"x"),
    "body": (HEAD + b"Content-Length: 1000000\r\n\r\n", b" "),
    "body without length": (HEAD + b"\r\n", b" "),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a refusal": (b"HTTP/1.1 500 Busy\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize(("answer", "drip"), DRIPS.values(), ids=DRIPS.keys())
def test_one_deadline_holds_for_a_server_that_sends_a_byte_now_and_then(
    answer: bytes, drip: bytes, enemy: Callable[..., Enemy]
) -> None:
    began, url = time.monotonic(), enemy(answer, drip).url
    endpoint = Endpoint(url, timeout_s=0.2, pause_s=0.0, tries=2, wanted="scores", hint="")
    with pytest.raises((ResourceError, DataError)) as caught:
        endpoint.post({})
    # Not a bound on speed: it would be for ever, or until a header of 100 lines is full.
    assert time.monotonic() - began < 30
    assert "2 tries" in str(caught.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
@pytest.mark.parametrize("drips", [False, True])
def test_the_deadline_holds_over_tls_too(drips: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, made = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2 -keyout {key} -out {made}"
    words = [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with (
            contextlib.suppress(OSError),
            listening,
            context.wrap_socket(listening.accept()[0], server_side=True) as one,
        ):
            asked = b""
            while not asked.endswith(b"{}"):  # head and body may come apart, and what is unread ends in a reset
                asked += one.recv(65536)
            one.sendall(HEAD + b'\r\n{"scores": [1, 2, 3')
            while drips:
                one.sendall(b" ")
                time.sleep(0.01)
            one.sendall(b"]}")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{listening.getsockname()[1]}/score"
    endpoint = Endpoint(url, timeout_s=0.5 if drips else 30, pause_s=0.0, tries=1, wanted="scores", hint="")
    if drips:
        with pytest.raises(ResourceError, match=r"1 tries \(not answered within 0.5 s\)"):
            endpoint.post({})
    else:
        assert json.loads(endpoint.post({})) == {"scores": [1, 2, 3]}
    thread.join()


@pytest.mark.parametrize("length", [b"", b"Content-Length: 9999999999\r\n"])
def test_an_answer_without_end_is_cut_off(length: bytes, enemy: Callable[..., Enemy], monkeypatch: Any) -> None:
    monkeypatch.setattr("accord.scoring.posting.MOST_BYTES", 2**20)
    with pytest.raises(DataError, match="answers with more than 1 MB"):
        HttpScorer(enemy(HEAD + length + b"\r\n", b" " * 2**18).url).score(PAIRS)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(code: int, server: Server, enemy: Callable[..., Enemy]) -> None:
    head = f"HTTP/1.1 {code} Moved\r\nLocation: {server.url}\r\nContent-Length: 0\r\n\r\n".encode()
    with pytest.raises(DataError, match=f"refused with {code}"):
        HttpScorer(enemy(head).url).score(PAIRS)
    assert server.asked == []


@pytest.mark.parametrize("answer", [b"[" * 100_000, b'{"scores": ' + b"[" * 100_000, b"\xff\xfe", b"1" * 5000])
def test_an_answer_that_breaks_a_parser_is_refused(answer: bytes, server: Server) -> None:
    server.faults = [answer]
    with pytest.raises(DataError):
        HttpScorer(server.url).score(PAIRS)


def test_user_and_password_of_a_url_are_sent_and_never_shown(enemy: Callable[..., Enemy]) -> None:
    """The server repeats what it was sent, with codes for a terminal around it: in its reason, and in its words."""
    basic = base64.b64encode(b"ada:pa ss").decode()
    for said, error in ((b"400 No", DataError), (b"503 \x1b[2Jpa ss", ResourceError), (b"200 OK", DataError)):
        echo = f"\x1b]0;owned\x07 pa ss pa%20ss {basic} k3y \x9b31m".encode()
        one = enemy(b"HTTP/1.1 " + said + b"\r\nContent-Length: " + str(len(echo)).encode() + b"\r\n\r\n" + echo)
        url = one.url.replace("://", "://ada:pa%20ss@") + "?key=k3y"
        with pytest.raises(error) as caught:
            HttpScorer(url, pause_s=0.0).score(PAIRS)
        told = str(caught.value)
        assert f"Authorization: Basic {basic}".encode() in one.heard[0] and b"/score?key=k3y" in one.heard[0]
        assert "127.0.0.1" in told and "?..." in told
        assert not [
            secret for secret in ("pa ss", "pa%20ss", basic, "k3y", "\x1b", "\x07", "\x9b") if secret in told
        ], told


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="cannot be understood"):
        HttpScorer("http://[::1/score")


# -- functions that end the run ----------------------------------------------------------------------------------------

ENDS = {
    "exit": "import sys\ndef f(p, c): sys.exit(0)",
    "exit with words": "def f(p, c): raise SystemExit('done')",
    "quit": "def f(p, c): quit()",
    "generator": "def f(p, c):\n    yield 1.0\n    raise SystemExit",
    "its own": "class Mine(BaseException): pass\ndef f(p, c): raise Mine('x')",
    "generator exit": "def f(p, c): raise GeneratorExit",
    "import of a module": "def f(p, c): import no_such_module_at_all",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS.keys())
def test_a_function_that_would_end_the_run_is_named(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ends_{zlib.crc32(code.encode())}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=f"{name}:f (called sys.exit|failed)"):
        FunctionScorer(f"{name}:f").score(PAIRS)


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "1/0", "def f(:", "raise BaseException", "import os, no_such"]
)
def test_a_module_that_fails_as_it_is_imported_is_named(code: str, tmp_path: Path, monkeypatch: Any) -> None:
    name = f"imports_{zlib.crc32(code.encode())}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((DataError, UsageError), match=name):
        FunctionScorer(f"{name}:f")


def test_a_function_that_waits_for_ctrl_c_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupts.py").write_text("def f(p, c): raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        FunctionScorer("interrupts:f").score(PAIRS)


@pytest.mark.slow
def test_a_run_whose_reward_exits_fails_and_one_whose_reward_was_edited_begins_anew(
    policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """As the installed script has it: the working directory is not where Python looks."""
    data = write_rows("p.jsonl", [{"prompt": "The village:"}])
    argv = ["rl", "--model", policy_folder, "--data", data, "-o", "out", "rl.max_new_tokens=4", "rl.iterations=2"]
    argv += ['rl.rewards=[{function: "mine:f"}]', "rl.prompts_per_iteration=2", "rl.minibatches=1"]
    code = "import sys; sys.argv[0] = 'accord'; from accord.cli.main import main; main()"

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", code, *map(str, argv)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "mine.py").write_text("import sys\ndef f(p, c): sys.exit(0)\n")
    done = run()
    assert done.returncode == 3 and "mine:f called sys.exit(0)" in done.stderr and not (tmp_path / "out/model").exists()
    (tmp_path / "helper.py").write_text("def worth(c): return len(c)\n")
    (tmp_path / "mine.py").write_text("from helper import worth\ndef f(p, c): return [worth(one) for one in c]\n")
    assert run().returncode == 0
    assert run().stdout.startswith("finished before")
    (tmp_path / "helper.py").write_text("def worth(c): return -len(c)\n")  # what it imports is edited, not itself
    done = run()
    assert done.returncode == 2 and "contents of its inputs were others" in done.stderr


# -- several as one ----------------------------------------------------------------------------------------------------


class Fixed:
    def __init__(self, *scores: float) -> None:
        self.scores, self.calls = torch.tensor(scores), 0

    def score(self, pairs: Any) -> Tensor:
        self.calls += 1
        return self.scores


def test_a_weighted_sum_by_hand_and_its_parts() -> None:
    helpful, harmless, only_seen = Fixed(1.0, 2.0, -1.0), Fixed(0.5, 0.0, 4.0), Fixed(9.0, 9.0, 9.0)
    scorer = WeightedScorer(
        [Part("helpful", 2.0, helpful), Part("harmless", -0.5, harmless), Part("seen", 0.0, only_seen)]
    )
    # 2 * 1 - .5 * .5, 2 * 2 - 0, 2 * -1 - .5 * 4
    assert scorer.score(PAIRS).tolist() == [1.75, 4.0, -4.0]
    whole, parts = score_in_parts(scorer, PAIRS)
    assert whole.tolist() == [1.75, 4.0, -4.0]
    assert {name: part.tolist() for name, part in parts.items()} == {
        "helpful": [1.0, 2.0, -1.0],
        "harmless": [0.5, 0.0, 4.0],
        "seen": [9.0, 9.0, 9.0],
    }
    assert helpful.calls == 2  # once for each of the two calls above
    assert score_in_parts(helpful, PAIRS)[1] == {}


def test_parts_need_names_and_some_weight() -> None:
    with pytest.raises(UsageError, match="share a name: a, a"):
        WeightedScorer([Part("a", 1.0, Fixed()), Part("a", 1.0, Fixed())])
    with pytest.raises(UsageError, match="nothing would be optimised"):
        WeightedScorer([Part("a", 0.0, Fixed())])
    with pytest.raises(UsageError, match="--reward-model"):
        load_scorer()


@pytest.fixture
def harmless_folder(tmp_path: Path, tiny_config: DecoderConfig, words: Tokenizer) -> Path:
    """A second reward model, for another axis."""
    model = ScalarModel(tiny_config)
    init_weights(model, 5)
    init_score_head(model, 5)
    save_scalar(tmp_path / "harmless", model, words, RewardScale(offset=-0.2, scale=0.5))
    return tmp_path / "harmless"


def test_reward_models_of_several_axes_add_up_by_weight(reward_folder: Path, harmless_folder: Path) -> None:
    helpful, harmless = (RewardModel.load(f, PLAIN).score(PAIRS) for f in (reward_folder, harmless_folder))
    axes = [
        ScorerConfig(name="helpful", model=str(reward_folder), weight=0.75),
        ScorerConfig(name="harmless", model=str(harmless_folder), weight=2.0),
    ]
    whole, parts = score_in_parts(load_scorer(axes, placement=PLAIN), PAIRS)
    torch.testing.assert_close(whole, 0.75 * helpful + 2.0 * harmless)
    assert torch.equal(parts["helpful"], helpful) and torch.equal(parts["harmless"], harmless)
    # a reward model that is given counts once
    with_given = load_scorer(axes[1:], reward_folder, PLAIN)
    torch.testing.assert_close(with_given.score(PAIRS), helpful + 2.0 * harmless)
    assert set(score_in_parts(with_given, PAIRS)[1]) == {"reward_model", "harmless"}
    assert torch.equal(load_scorer(reward_model=reward_folder, placement=PLAIN).score(PAIRS), helpful)


# -- configuration -----------------------------------------------------------------------------------------------------


def test_rewards_are_given_as_a_list_in_yaml_and_on_the_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "rl:\n  rewards:\n    - {regex: please, weight: 1}\n    - {function: 'mine:short', name: short}\n"
    )
    found = load_recipe(recipe).rl.rewards
    assert [(one.label, one.kind, one.weight) for one in found] == [
        ("regex", "regex", 1.0),
        ("short", "function", 1.0),
    ]
    changed = load_recipe(recipe, ['rl.rewards=[{http: "http://localhost:1/score", weight: -2}]']).rl.rewards
    assert [(one.label, one.http, one.weight) for one in changed] == [("http", "http://localhost:1/score", -2.0)]
    assert load_recipe(recipe, ["rl.rewards=[]"]).rl.rewards == ()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rl.rewards=[{weight: 1}]", "exactly one of model, ensemble, function, regex, http, chat; given: none"),
        ("rl.rewards=[{regex: a, model: b}]", "given: model and regex"),
        ("rl.rewards=[{regex: '('}]", "'(' is no regular expression"),
        (r'rl.rewards=[{regex: "\bno\b"}]', "YAML reads \\b in double quotes as one"),
        ("rl.rewards=[{function: count}]", "write module:function"),
        ("rl.rewards=[{http: 'ftp://x'}]", "rl.rewards.0.http"),
        ("rl.rewards=[{regex: a, wieght: 1}]", "rl.rewards.0.wieght"),
        ("rl.rewards=[{regex: a}, {regex: b}]", "'regex' would name two scores"),
        ("rl.rewards=[{regex: a, name: reward_model}]", "'reward_model' would name two scores"),
        ("rl.rewards=[{model: a, absent: true}]", "absent has no effect without regex"),
        ("rl.rewards=[{regex: a, timeout_s: 3}]", "timeout_s has no effect without http"),
        ("rl.rewards=[{regex: a, name: Bad Name}]", "rl.rewards.0.name"),
        ("rl.rewards={regex: a}", "rl.rewards"),
        ("rl.prompts.regex='['", "is no regular expression"),
        ("rl.prompts.function=keep", "write module:function"),
    ],
)
def test_wrong_rewards_are_refused_before_any_work(override: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        load_recipe(None, [override])


# -- through the stages ------------------------------------------------------------------------------------------------


def toy(**changes: Any) -> RlConfig:
    settings: dict[str, Any] = {
        "precision": "fp32",
        "iterations": 2,
        "prompts_per_iteration": 4,
        "max_new_tokens": 6,
        "ppo_epochs": 1,
        "eval_every": 2,
    }
    return RlConfig(**settings | changes)


def test_rl_without_a_reward_model(own: str, policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    """Two scores of one's own: both are logged, and their weighted sum is the score."""
    config = toy(
        rewards=[
            {"function": f"{own}:count", "weight": 0.5, "name": "length"},
            {"regex": "e", "weight": -2.0, "name": "no_e"},
        ]
    )
    data = write_rows("prompts.jsonl", [{"prompt": "He:"}, {"prompt": "The village:"}])
    made = rl(config, model=policy_folder, data=data, output_dir=tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["score"] == pytest.approx(0.5 * row["part_length"] - 2.0 * row["part_no_e"], abs=1e-5)
    assert rows[0]["part_length"] > 1 and 0 <= rows[0]["part_no_e"] <= 1
    assert made.final["part_length"] == pytest.approx(rows[-1]["part_length"], abs=1e-5)


def test_without_a_reward_model_the_critic_starts_from_the_policy(policy_folder: Path) -> None:
    actors = load_policy_models(toy(rewards=[{"regex": "e"}]), POLICY_ALGORITHMS["ppo"], policy_folder, None)
    start = load_file(policy_folder / "model.safetensors")
    assert torch.equal(actors.critic.model.embed_tokens.weight, start["model.embed_tokens.weight"])
    assert bool((actors.critic.score.weight == 0).all())
    with pytest.raises(UsageError, match="nothing says what a completion is worth"):
        load_policy_models(toy(), POLICY_ALGORITHMS["ppo"], policy_folder, None)


def test_a_file_is_scored_by_all_parts(reward_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    pairs = PAIRS[:2]
    rows = write_rows("rows.jsonl", [{"prompt": p, "completion": c} for p, c in pairs])
    rewards = [ScorerConfig(regex="letter", weight=3.0)]
    result = score(reward_model=reward_folder, rewards=rewards, rows=rows, output=tmp_path / "scored.jsonl")
    written = [json.loads(line) for line in result.output.read_text().splitlines()]
    model = RewardModel.load(reward_folder).score(pairs).tolist()
    for row, wanted, found in zip(written, model, (0.0, 1.0), strict=True):
        assert row["parts"] == {"reward_model": pytest.approx(wanted, abs=1e-5), "regex": found}
        assert row["score"] == pytest.approx(wanted + 3.0 * found, abs=1e-5)
    assert result.parts["regex"] == 0.5


def test_commands_take_scores_of_ones_own(own: str, policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    rows = write_rows("rows.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS[:2]])
    done = Done(
        "score", "--data", str(rows), "-o", "scored.jsonl", f'rl.rewards=[{{function: "{own}:count"}}]', "--json"
    )
    assert done.code == 0, done.err
    assert done.json["mean_score"] == 12.0 and done.json["parts"] == {"function": 12.0}

    refused = Done("score", "--data", str(rows), "-o", "scored.jsonl", "rl.kl_coef=1")
    assert refused.code == 2 and "this command reads rl.rewards" in refused.err
    nothing = Done("score", "--data", str(rows), "-o", "scored.jsonl")
    assert nothing.code == 2 and "nothing says what a completion is worth" in nothing.err

    small = ["rl.iterations=1", "rl.prompts_per_iteration=2", "rl.max_new_tokens=4", "rl.ppo_epochs=1"]
    base = ("rl", "--model", str(policy_folder), "--data", str(rows), "-o", "ppo", *small)
    assert Done(*base).code == 2
    broken = Done(*base, f'rl.rewards=[{{function: "{own}:one_short"}}]')
    assert broken.code == 3 and f"{own}:one_short gave 1 scores for 2 completions" in broken.err
    done = Done(*base, 'rl.rewards=[{regex: "e"}]', "--json")
    assert done.code == 0, done.err
    assert done.json["final"]["part_regex"] == done.json["final"]["score"]
