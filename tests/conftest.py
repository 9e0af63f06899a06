"""What the tests of several rooms share: places for a store, one tiny tokenizer, tiny model folders, a quiet machine.

torch is imported inside the fixtures only: tests of torch-free rooms must stay quick to start.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from accord.models.decoder import CausalLM
    from accord.models.shape import DecoderConfig
    from accord.text.tokenizer import Tokenizer

# Tiny matrices are quickest on one thread, and one thread adds in one order. No test asks a hub for anything.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Hundreds of processes are started: each would compile Accord anew, a fifth of a second for the lightest command.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes says how busy the machine is, not whether the code is right.
_PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# The same examples every time: what CI refuses is a fault of the change, never of luck. `make fuzz` looks for new ones.
settings.register_profile("accord", derandomize=True, database=None, **_PATIENT)
settings.register_profile("fuzz", max_examples=500, print_blob=True, **_PATIENT)
settings.load_profile(os.environ.get("ACCORD_HYPOTHESIS", "accord"))

TEXTS = (
    "The old lighthouse keeper counted ships until the fog took the harbour.",
    "Bread wants time, salt and a warm corner of the kitchen.",
    "Nobody in the village believed the clockmaker, but the clocks did.",
    "A film about rain: slow, grey, and oddly cheerful by the end.",
    "She mended the kite twice and then gave it to the wind.",
    "The chess club met on Tuesdays and argued about soup.",
    "He wrote a long letter, read it aloud, and burnt it.",
    "Two foxes crossed the frozen canal without looking down.",
)


ALL_PASSED = pytest.StashKey[bool]()
MEMORY = Path("/dev/shm")
ROOM_IN_MEMORY = 2 << 30  # all tests together leave less than half of it


def pytest_configure(config: pytest.Config) -> None:
    """Tests are on the CPU wherever they run, but for ``pytest -m gpu``, and their files stand in memory if they fit.

    Everything durable is flushed to the disk, which takes milliseconds each time; tests kill processes, not machines.
    ``TMPDIR`` or ``--basetemp`` says another place.
    """
    gc.disable()  # until all are collected, which took a third longer with it
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_IN_MEMORY:
        os.environ["TMPDIR"] = str(_folder_in_memory())
        tempfile.tempdir = None  # as it was found before
        atexit.register(_clear_memory, config)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[ALL_PASSED] = exitstatus == 0


def _clear_memory(config: pytest.Config) -> None:
    """What passed leaves nothing in memory; what failed leaves its files to be looked at, until the next run.

    At the very end: processes that tests forked from keep their sockets there until then.
    """
    if config.stash.get(ALL_PASSED, False) and os.environ.get("TMPDIR") == str(_of_this_process()):
        shutil.rmtree(_of_this_process(), ignore_errors=True)


def _of_this_process() -> Path:
    return MEMORY / f"accord-tests-{os.getpid()}"


def _folder_in_memory() -> Path:
    """Make the folder of this run; those of runs that have ended, or were killed, go."""
    for left in MEMORY.glob("accord-tests-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    _of_this_process().mkdir(mode=0o755)  # PostgreSQL's user must be able to enter
    return _of_this_process()


@cache
def makes_much_once(path: Path) -> bool:
    """Whether a file of tests has a fixture for all of them: a server, a browser, a trained model."""
    return 'scope="module"' in path.read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file that share a fixture run in one process: it would be made once in each otherwise.

    xdist's own groups of marked tests are not told to it by pytest 9.2, which no longer names a test by ``_nodeid``.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if makes_much_once(config.rootpath / file) else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the work, slow tests come first: one that came last would leave others waiting."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: ("slow" not in item.keywords, not makes_much_once(item.path)))


def pytest_collection_finish() -> None:
    """Thousands of tests and large packages stay until the end: the collector need not look at them again."""
    gc.freeze()
    gc.enable()


WriteRows = Callable[[str, Iterable[Mapping[str, Any]]], Path]
WriteSplit = Callable[[Sequence[Mapping[str, Any]]], dict[str, Path]]


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    """A byte-level tokenizer with a few dozen merges."""
    from accord.text.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="session")
def tiny_config(words: Tokenizer) -> DecoderConfig:
    """Two blocks, grouped-query attention, 64 positions, tied head."""
    from accord.models.shape import DecoderConfig

    return DecoderConfig(
        vocab_size=words.vocab_size,
        width=32,
        ffn=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_width=8,
        max_positions=64,
    )


@pytest.fixture
def policy(tiny_config: DecoderConfig) -> CausalLM:
    """A random policy whose next-token law is far from uniform, in eval mode; a fresh one for every test."""
    return random_policy(tiny_config, 0)


def random_policy(config: DecoderConfig, seed: int, std: float = 0.25) -> CausalLM:
    import torch

    from accord.models.decoder import CausalLM

    model = CausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.normal_(centre, std, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: DecoderConfig, words: Tokenizer) -> Path:
    """A saved policy as small as `tiny_config`, nearly uniform: a starting point that trains."""
    from accord.models.decoder import CausalLM, init_weights
    from accord.models.folder import save_policy

    model = CausalLM(tiny_config)
    init_weights(model, 0)
    folder = tmp_path_factory.mktemp("policy") / "model"
    save_policy(folder, model, words)
    return folder


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: DecoderConfig, words: Tokenizer) -> Path:
    """A saved reward model with a random head, as small as `tiny_config`."""
    from accord.models.decoder import ScalarModel, init_score_head, init_weights
    from accord.models.folder import RewardScale, save_scalar

    model = ScalarModel(tiny_config)
    init_weights(model, 1)
    init_score_head(model, 1)
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_scalar(folder, model, words, RewardScale(offset=0.1, scale=2.0))
    return folder


CHAT_TEMPLATE = """{% for m in messages %}[{{ m.role }}] {{ m.content }}
{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    """A random chat model with a template, as a Hugging Face folder."""
    from accord.models.folder import save_policy
    from accord.models.shape import DecoderConfig

    folder = tmp_path_factory.mktemp("chat") / "model"
    shape = DecoderConfig(
        vocab_size=words.vocab_size, width=16, ffn=24, num_layers=2, num_heads=2, num_kv_heads=1, head_width=8,
        max_positions=640,
    )  # fmt: skip
    save_policy(folder, random_policy(shape, 0, 0.1), words)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def cpu_of_children() -> float:
    """Return the processor's seconds of all processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """``write_rows(name, rows)``: a JSONL file in the test's own folder."""

    def write(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_split(write_rows: WriteRows) -> WriteSplit:
    """``**write_split(rows)``: every twentieth row as ``valid_data``, the others as ``data``. Rows of a few prompts
    hang together, and by itself a stage would hold none of them out. Few stand there again: of fewer than twenty no
    number would be stated."""

    def write(rows: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
        train = [row for i, row in enumerate(rows) if i % 20]
        apart = [*rows[::20]]
        apart *= -(-20 // len(apart))
        return {"data": write_rows("train.jsonl", train), "valid_data": write_rows("valid.jsonl", apart)}

    return write


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL: ACCORD_TEST_POSTGRES (its user may create schemas), or a server made for these tests."""
    from postgres import binaries, server

    given, folder = os.environ.get("ACCORD_TEST_POSTGRES", ""), binaries()
    if given or folder is None or find_spec("psycopg") is None:
        yield given
        return
    with server(folder) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a new store can be made, in each kind of database; in PostgreSQL a schema of its own."""
    if request.param == "sqlite":
        yield str(tmp_path / "accord.db")
        return
    url = request.getfixturevalue("postgres")
    if not url:
        pytest.skip("no PostgreSQL server or no psycopg here, and ACCORD_TEST_POSTGRES holds no URL")
    name = f"accord_test_{os.getpid()}_{next(_SCHEMAS)}"
    _execute(url, f"CREATE SCHEMA {name}")
    yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{name}"
    _execute(url, f"DROP SCHEMA {name} CASCADE")


_SCHEMAS = count()


def _execute(url: str, statement: str) -> None:
    from sqlalchemy import text

    from accord.store.database import make_engine

    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.fixture(scope="session")
def letters_folder(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """A policy that writes two to six of the letters a, b, c, d and then ends."""
    from letters import PROMPTS

    from accord.config import OptimConfig, SftConfig
    from accord.train.sft import sft

    folder = tmp_path_factory.mktemp("letters")
    draw = random.Random(0)
    rows = [
        {"prompt": draw.choice(PROMPTS), "completion": " " + "".join(draw.choices("abcd", k=draw.randint(2, 6)))}
        for _ in range(160)
    ]
    data, valid = folder / "demos.jsonl", folder / "valid.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for i, row in enumerate(rows) if i % 20))
    valid.write_text("".join(json.dumps(row) + "\n" for row in rows[::20]))
    optim = OptimConfig(lr=5e-3, schedule="constant", warmup_ratio=0.0)
    config = SftConfig(precision="fp32", dropout=0.0, epochs=12, batch_tokens=400, max_tokens=60, optim=optim)
    return sft(config, model=policy_folder, data=data, valid_data=valid, output_dir=folder).model
