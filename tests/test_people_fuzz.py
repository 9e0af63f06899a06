"""Requests nobody would send by hand: whatever comes, the server answers and never falls over."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accord.people.desk.answers import Answer
from accord.people.web.security import Buckets
from tests.webapp import Served, serving, task

_NUMBERS = itertools.count()
SCHEMATHESIS = shutil.which("schemathesis", path=str(Path(sys.executable).parent))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("fuzz"), overlap=100) as running:
        running.person("Ada", "admin")
        running.desk.queue.add_tasks([task("ranking", "Which?", "one", "two", "three")])
        running.app.state.limits._requests = Buckets(1e9, 10**9)
        yield running


@pytest.mark.slow
@pytest.mark.hypothesis
@pytest.mark.skipif(SCHEMATHESIS is None, reason="no schemathesis here")
@pytest.mark.parametrize("role", ["annotator", "admin"])
def test_the_api_as_described_never_fails(served: Served, tmp_path: Path, role: Any) -> None:
    """Cases made from the OpenAPI file of the running app: no answer of the 500s."""
    token = served.desk.directory.make_token(served.person(f"machine {role}", role).id, "fuzz")
    assert SCHEMATHESIS is not None
    seed = str(random.randrange(10**9)) if "ACCORD_HYPOTHESIS" in os.environ else "1"
    argv = [SCHEMATHESIS, "run", f"{served.url}/api/openapi.json", "-H", f"Authorization: Bearer {token}"]
    phases = {"annotator": "fuzzing", "admin": "coverage"}  # what an admin reaches is everything
    argv += ["--checks", "not_a_server_error", "--max-examples", "3", "--phases", phases[role]]
    argv += ["--suppress-health-check", "all", "--seed", seed, "--exclude-path", "/api/logout", "--no-color"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0 and "Server error" not in done.stdout, done.stdout[-4000:]
    assert "Test cases" in done.stdout or "generated" in done.stdout, done.stdout[-2000:]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(st.sampled_from(sorted(Answer.model_fields)), json_values, max_size=5)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=json_values | fields, door=st.sampled_from(["submit", "draft", "skip", "adjudicate", "gold"]))
def test_any_body_on_a_held_task_gets_an_answer(served: Served, body: Any, door: str) -> None:
    person = served.person("Fuzz", "manager")
    served.desk.directory.confirm(person.id, served.desk.directory.guideline().rev)
    held = served.desk.queue.claim(person.id)
    if held is None:  # by luck a right answer, or what the test above did as an admin took the task out
        served.desk.queue.add_tasks([task("ranking", f"Which of {next(_NUMBERS)}?", "one", "two", "three")])
        held = served.desk.queue.claim(person.id)
    assert held is not None
    with served.by_token(person) as client:
        verb = "PUT" if door in ("draft", "gold") else "POST"
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        headers = {"Idempotency-Key": f"key-{abs(hash(content))}", "Content-Type": "application/json"}
        answer = client.request(verb, f"/api/tasks/{held.task.id}/{door}", content=content, headers=headers)
    assert answer.status_code in (200, 201, 204, 409, 422)
