"""The server by the clients that people use: OpenAI's own, LangChain's, lm-eval, curl; and the command as a process."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from serverapp import Server, serving
from webapp import http

from accord.models.folder import load_policy
from accord.models.placement import PLAIN
from accord.people.web.security import Buckets
from accord.serve.keys import KeyRing
from accord.serve.served import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "What do foxes eat?"}]
CURL = shutil.which("curl")


@pytest.fixture(scope="module")
def server(chat_model: Path) -> Iterator[Server]:
    with serving({"talker": chat_model}, ServeSettings(rows=8, placement=PLAIN)) as running:
        yield running


@pytest.fixture(scope="module")
def openai() -> Any:
    return pytest.importorskip("openai")


# ---- openai ----------------------------------------------------------------------------------------------------------


def test_openai_asks_streams_and_reads_logprobs(server: Server, openai: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert client.models.list().data[0].id == client.models.retrieve("talker").id == "talker"
        common: dict[str, Any] = {"model": "talker", "messages": HELLO, "max_tokens": 12, "seed": 1, "n": 2}
        whole = client.chat.completions.create(**common, logprobs=True, top_logprobs=2)
        usage = whole.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        said = whole.choices[0].logprobs.content
        # the tokens' bytes are those of the text (half a character at the very end is shown as such)
        data = b"".join(bytes(one.bytes) for one in said)
        assert data.decode("utf-8", "replace") == whole.choices[0].message.content
        assert all(one.top_logprobs[0].logprob >= one.logprob - 1e-6 for one in said)
        texts = ["", ""]
        with client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True}) as stream:
            chunks = [*stream]
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice.message.content for choice in whole.choices]
        assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
        old = client.completions.create(model="talker", prompt=["Bread", "Fog"], max_tokens=4, logprobs=1, echo=True)
        assert [choice.text[:3] for choice in old.choices] == ["Bre", "Fog"]
        more = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1}
        client.chat.completions.create(**common, extra_body=more)


def test_openai_in_many_tasks_at_once(server: Server, openai: Any) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="talker", messages=HELLO, max_tokens=8, seed=i, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return [*await asyncio.gather(*(one(i) for i in range(32)))]

    found = asyncio.run(ask())
    assert found == [server.chat(HELLO, max_tokens=8, seed=i)["choices"][0]["message"]["content"] for i in range(32)]


def test_openai_s_errors_are_raised_by_their_names(server: Server, openai: Any, chat_model: Path) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="temperature") as bad:
            client.chat.completions.create(model="talker", messages=HELLO, temperature=9)
        assert bad.value.param == "temperature" and bad.value.request_id.startswith("req-")
        with pytest.raises(openai.NotFoundError, match="talker"):
            client.chat.completions.create(model="gpt", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="response_format"):
            client.chat.completions.create(model="talker", messages=HELLO, response_format={"type": "json_object"})
    ring = KeyRing()
    ring.add("ann")
    with (
        serving({"talker": chat_model}, keys=ring) as guarded,
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_openai_comes_again_when_it_is_told_to(chat_model: Path, openai: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in three times it is told to wait a tenth of a second, which is said as a whole one: no answer is lost."""
    ring, waits = KeyRing(), itertools.cycle([0.0, 0.1, 0.0])
    key, operator = ring.add("ann"), ring.add("ops", operator=True, per_minute=0)
    monkeypatch.setattr(Buckets, "take", lambda self, key: next(waits))
    with serving({"talker": chat_model}, keys=ring) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=2) as client:
            assert [client.models.list().data[0].id for _ in range(3)] == ["talker"] * 3
        text = server.client.get("/metrics", headers={"Authorization": f"Bearer {operator}"}).text
    assert 'accord_requests_total{route="/v1/models",status="429"} 1' in text
    assert 'accord_requests_total{route="/v1/models",status="200"} 3' in text


# ---- others ----------------------------------------------------------------------------------------------------------


def test_langchain(server: Server) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="talker", temperature=0, max_tokens=8, seed=1
    )
    text = model.invoke([("system", "Be brief."), ("human", "Now.")]).text
    asked = [("system", "Be brief."), ("human", [{"type": "text", "text": "Now."}])]
    assert "".join(piece.text for piece in model.stream(asked)) == text != ""


@pytest.mark.slow
@torch.no_grad()
def test_lm_eval_reads_the_likelihoods_that_the_model_has(server: Server, chat_model: Path, tmp_path: Path) -> None:
    """A task of our own, by text and by tokens: its accuracy is the one that whole passes of the model give."""
    pytest.importorskip("lm_eval")
    rows = [
        {"question": "Bread wants", "choices": [" time", " fog", " soup"], "answer": 0},
        {"question": "The fog took the", "choices": [" harbour", " kite"], "answer": 1},
        {"question": "Nobody", "choices": [" believed", " x"], "answer": 0},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\n"
        "doc_to_target: answer\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n"
    )
    argv = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "own"]
    said = f"model=talker,base_url={server.url}/v1/completions,tokenizer={chat_model},num_concurrent=1,max_retries=1"
    argv += ["--include_path", str(tmp_path), "--model_args", said, "--output_path", str(tmp_path / "out")]
    argv += ["--log_samples"]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OPENAI_API_KEY": "x"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [json.loads(line) for line in next(tmp_path.glob("out/**/samples_own*.jsonl")).read_text().splitlines()]
    policy, tokenizer = load_policy(chat_model, PLAIN)
    assert len(samples) == len(rows)
    for sample in samples:
        row = rows[sample["doc_id"]]
        for choice, answer in zip(row["choices"], sample["filtered_resps"], strict=True):
            head, whole = len(tokenizer.encode(row["question"])), tokenizer.encode(row["question"] + choice)
            law = torch.log_softmax(policy(torch.tensor([whole]))[0], -1)
            wanted = sum(float(law[i - 1, whole[i]]) for i in range(head, len(whole)))
            assert math.isclose(float(answer[0]), wanted, abs_tol=1e-3)
            likeliest = all(int(law[i - 1].argmax()) == whole[i] for i in range(head, len(whole)))
            assert (str(answer[1]) == "True") == likeliest


@pytest.mark.skipif(CURL is None, reason="no curl here")
def test_curl(server: Server) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 3, "temperature": 0})
    argv = [str(CURL), "-s", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d"]
    whole = json.loads(subprocess.run([*argv, body], capture_output=True, text=True, check=True).stdout)
    streamed = subprocess.run(
        [*argv, body.replace("{", '{"stream": true, ', 1), "-N"], capture_output=True, text=True, check=True
    ).stdout
    deltas = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert streamed.endswith("data: [DONE]\n\n")


# ---- the command -----------------------------------------------------------------------------------------------------


def started(argv: list[str], cwd: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """The command as a process, and what it says when it is ready."""
    command = [sys.executable, "-m", "accord", "serve", *argv, "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)
    assert process.stdout is not None and process.stderr is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.stderr.read())
        lines.append(line)
    return process, json.loads("".join(lines))


@pytest.fixture
def ended() -> Iterator[Any]:
    processes: list[subprocess.Popen[str]] = []
    yield processes.append
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("signal_sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_what_is_written_end(
    chat_model: Path, tmp_path: Path, ended: Any, signal_sent: signal.Signals
) -> None:
    process, said = started([str(chat_model)], tmp_path)
    ended(process)
    body = {"messages": HELLO, "stream": True, "max_tokens": 400, "logit_bias": {"70": 100}}
    with http() as client, client.stream("POST", f"{said['url']}/chat/completions", json=body) as answer:
        raw = answer.iter_raw()
        text = next(raw)
        process.send_signal(signal_sent)
        text += b"".join(raw)
    assert text.endswith(b"data: [DONE]\n\n") and text.count(b'"content":"') == 401
    process.wait(60)
    with pytest.raises(httpx2.ConnectError), http() as client:
        client.get(f"{said['url']}/models")


@pytest.mark.slow
def test_keys_are_wanted_off_this_machine_and_the_first_is_shown_once(
    chat_model: Path, tmp_path: Path, ended: Any
) -> None:
    keys = ["--keys", str(tmp_path / "keys.json")]
    process, said = started([str(chat_model), "--host", "0.0.0.0", *keys], tmp_path)
    ended(process)
    url = said["url"]
    with http() as client:
        assert client.get(f"{url}/models").status_code == 401
        assert client.get(f"{url}/models", headers={"Authorization": f"Bearer {said['key']}"}).status_code == 200
        made = command([str(chat_model), *keys, "--add-key", "ann", "--json"], tmp_path)
        own = {"Authorization": f"Bearer {json.loads(made.stdout)['key']}"}
        assert client.get(f"{url}/models", headers=own).status_code == 200
        assert client.get(url.replace("/v1", "/metrics"), headers=own).status_code == 403
        assert command([str(chat_model), *keys, "--revoke-key", "ann"], tmp_path).returncode == 0
        assert client.get(f"{url}/models", headers=own).status_code == 401
    assert command([str(chat_model), "--add-key", "ann"], tmp_path).returncode == 2  # kept nowhere
    assert command([str(chat_model), *keys, "--revoke-key", "bob"], tmp_path).returncode == 2


def command(argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "accord", "serve", *argv], capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_what_is_served_of_projects_runs_and_folders(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accord.cli.serving import folders_of, project_at

    home = tmp_path / "shop"
    made = subprocess.run(
        [sys.executable, "-m", "accord", "init", str(home), "--model", str(chat_model)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    monkeypatch.chdir(home)
    assert folders_of(None, project_at(None), []) == {"shop": chat_model.resolve()}
    run = home / "runs" / "first"
    shutil.copytree(chat_model, run / "rl" / "model")
    (run / "summary.json").write_text(json.dumps({"champion": {"policy": "rl/model", "promoted": True}}))
    assert folders_of(home, project_at(home), [f"second={chat_model}"]) == {
        "shop": run / "rl/model",
        "second": chat_model,
    }
    assert [*folders_of(run, project_at(run), []).values()] == [run / "rl/model"]
    assert [*folders_of(chat_model, project_at(chat_model), []).values()] == [chat_model]
    for argv in ([str(tmp_path)], [str(chat_model), "--model", f"{folder_name(chat_model)}={chat_model}"]):
        failed = command(argv, tmp_path)
        assert failed.returncode in (2, 3) and re.search("no model|no project|two models", failed.stderr)


def folder_name(folder: Path) -> str:
    from accord.evals.contestants import policy_name

    return policy_name(folder)
