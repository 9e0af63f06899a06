"""What a file of somebody else's may hold to exhaust or confuse its reader: an error of ours each time, at once."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import models

from accord import formats
from accord.config.layers import override_layer, read_layer
from accord.errors import AccordError, DataError, UsageError
from accord.files import read_json
from accord.formats.parquet import _fitting_batch
from accord.grid import grid
from accord.models.gguf import convert
from accord.text.template import ChatTemplate
from accord.text.tokenizer import Tokenizer, load_tokenizer

# -- YAML --------------------------------------------------------------------------------------------------------------

NINE = [(chr(98 + i), ", ".join(9 * [f"*{chr(97 + i)}"])) for i in range(9)]
BILLION = "a: &a [1, 1]\n" + "".join(f"{name}: &{name} [{of}]\n" for name, of in NINE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BILLION, "no aliases"),
        ("rl: &r\n  seed: *r\n", "no aliases"),
        ("rl:\n  <<: *gone\n", "no aliases"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "{a: " * 100_000, "nested too deeply"),
        ("- " * 5_000, "nested too deeply"),
        ("day: 2026-13-45", "cannot be read"),
        ("n: !!int 'x'", "cannot be read"),
        ("n: !!bool 'x'", "cannot be read"),
        ("n: !!timestamp 'x'", "cannot be read"),
        ("n: " + "9" * 5_000, "cannot be read"),
        ("n: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a\0b: 1", "not valid YAML"),
        ("#" * (1 << 20) + "\na: 1", "more than a recipe"),
    ],
)
def test_a_recipe_that_is_a_bomb(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_layer(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["rl.seed=" + "[" * 100_000, "rl.seed=*a", "rl.seed=2026-13-45"])
def test_an_override_that_is_a_bomb(text: str) -> None:
    with pytest.raises(UsageError):
        override_layer(text)


def test_a_sweep_that_is_a_bomb() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        grid(["rl.seed=" + "[" * 100_000], lambda overrides: None)  # type: ignore[arg-type, return-value]


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, says in (
        ("[" * 100_000, "too deeply"),
        ("{" * 9, "as JSON"),
        ("9" * 5_000, "as JSON"),
        ("\udcff", "as JSON"),
    ):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=says):
            read_json(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="no plain file"):
        read_json(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(300 << 20)  # sparse: it takes no room
    with pytest.raises(DataError, match="more than such a file"):
        read_json(path)


# -- files of rows -----------------------------------------------------------------------------------------------------


def rows_read(path: Path, format: str | None = None) -> tuple[int, list[str]]:
    """Return how many items a file has, and why rows of it were left out."""
    rejected: list[str] = []
    return len(list(formats.read_items(path, format, on_reject=lambda one: rejected.append(one.problem)))), rejected


PAIR = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
#: What opens, on 16 MB of nothing, as a member of a file; so many of them are one file.
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: pytest.importorskip("zstandard").compress(data),
}


@pytest.mark.parametrize("fill", [b"\0", b"\n", PAIR], ids=["nothing", "lines", "rows"])
@pytest.mark.parametrize("packing", PACKED)
def test_a_compressed_file_that_is_a_bomb(
    packing: str, fill: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows before it are read, and it is refused once it has made so much; here a quarter of a megabyte."""
    monkeypatch.setattr("accord.formats.source.MOST_INFLATED", 1 << 18)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(PACKED[packing](PAIR * 100) + 4 * PACKED[packing](fill * ((1 << 17) // len(fill))))
    with pytest.raises(DataError, match="compressed bytes stand for") as caught:
        rows_read(path)
    assert str(path) in str(caught.value) and path.stat().st_size < 100_000


def test_texts_that_compress_well_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.formats.source.MOST_INFLATED", 1 << 14)
    rows = b"".join(b'{"prompt": "p%d", "chosen": "a%d", "rejected": "b"}\n' % (i, i % 7) for i in range(2_000))
    (tmp_path / "a.gz").write_bytes(gzip.compress(rows))
    assert rows_read(tmp_path / "a.gz") == (2_000, [])


def nothing_but_values(path: Path) -> None:
    path.write_bytes(PAIR + b'{"prompt": "p", "x": [' + b"{}," * 10_000_000 + b"{}]}\n" + PAIR)


def nothing_but_cells(path: Path) -> None:
    path.write_bytes(b"prompt,chosen,rejected\np,a,b\n" + b"," * 30_000_000 + b"\np,a,b\n")


def parquet_of(path: Path, **columns: list[object]) -> Path:
    """Write a table as small as it can be: each text once, and compressed."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    length = len(next(iter(columns.values())))
    table = arrow.table({"chosen": ["a"] * length, "rejected": ["b"] * length, **columns})
    parquet.write_table(table, path, compression="zstd", write_statistics=False)
    assert path.stat().st_size < 20_000
    return path


def a_long_cell(path: Path) -> None:
    parquet_of(path, prompt=["p", "p" * (40 << 20), "q"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "items", "says"),
    [
        (nothing_but_values, 2, "values in one row"),
        (nothing_but_cells, 2, "values in one row"),
        (a_long_cell, 2, "bytes in one row"),
    ],
)
def test_a_row_that_is_a_bomb_costs_itself(
    write: Callable[[Path], None], items: int, says: str, tmp_path: Path
) -> None:
    """What is read takes at most 800 MB beside the program."""
    write(tmp_path / "data")
    ran = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "data")], capture_output=True, text=True)
    assert not ran.returncode, ran.stderr[-2000:]
    found, rejected = ran.stdout.splitlines()
    assert int(found) == items and says in rejected


READ = """
import resource, sys
import pyarrow.parquet
from accord import formats
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (3 << 28)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
rejected = []
count = sum(1 for _ in formats.read_items(sys.argv[1], on_reject=lambda one: rejected.append(one.problem)))
print(count, *rejected, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bounds", "says"), [((64, 2**30), "64 MB of memory"), ((1024, 2**25), "characters and values")]
)
def test_a_parquet_file_that_is_a_bomb(
    bounds: tuple[int, int], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("MOST_MEGABYTES", "MOST_INFLATED"), bounds, strict=True):
        monkeypatch.setattr(f"accord.formats.parquet.{name}", value)
    a_long_cell(tmp_path / "data.parquet")
    with pytest.raises(DataError, match=says) as caught:
        rows_read(tmp_path / "data.parquet")
    assert caught.value.exit_code == 3 and "within bounds" in str(caught.value)


@pytest.mark.slow
def test_rows_of_a_parquet_file_that_do_not_fit_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of two megabytes in each of a hundred rows is two hundred, and the file two thousand bytes."""
    monkeypatch.setattr("accord.formats.parquet.MOST_MEGABYTES", 128)
    path = parquet_of(tmp_path / "data.parquet", prompt=["p" * (2 << 20)] * 100)
    assert rows_read(path) == (100, [])
    assert _fitting_batch(path, path.stat().st_size, path.stat().st_mtime_ns) == 16


@pytest.mark.slow
def test_a_parquet_file_that_takes_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.formats.parquet._SECONDS", 0.6)
    path = parquet_of(tmp_path / "data", prompt=[1] * 2_000_000)
    with pytest.raises(DataError, match="s of the processor"):
        rows_read(path)


# -- GGUF --------------------------------------------------------------------------------------------------------------


def named(name: str) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode()


def array(kind: int, length: int, rest: bytes = b"") -> bytes:
    return named("a") + struct.pack("<IIQ", 9, kind, length) + rest


def gguf(settings: bytes = b"", tensors: bytes = b"", count: int = 0, of_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, of_tensors, count) + settings + tensors + bytes(64)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "too short"),
        (b"GGUF" + bytes(8), "too short"),
        (b"HUHU" + bytes(40), "first bytes"),
        (gguf(count=2**60), "promises"),
        (gguf(of_tensors=2**60), "promises"),
        (gguf(struct.pack("<Q", 2**62), count=1), "ends too early"),
        (gguf(array(4, 2**40), count=1), "an array of"),
        (gguf(array(8, 3_000_000), count=1), "ends too early"),
        (gguf(array(9, 1), count=1), "of type 9"),
        (gguf(array(99, 1), count=1), "type 99"),
        (gguf(named("a") + struct.pack("<I", 77), count=1), "type 77"),
        (gguf(tensors=named("t") + struct.pack("<IQQ", 2, 2**33, 2**33), of_tensors=1), "a tensor of"),
        (gguf(tensors=named("t") + struct.pack("<I", 2**31), of_tensors=1), "dimensions"),
        (gguf(), "is missing"),
    ],
)
def test_a_gguf_file_that_promises_too_much(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(DataError, match=says) as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert caught.value.exit_code == 3 and not (tmp_path / "out").exists()


# -- chat templates ----------------------------------------------------------------------------------------------------

BIG = "{% set x = 'a' * 4000000 %}"
LOOPS = "".join(f"{{% for {name} in range(9999) %}}" for name in "abc") + 3 * "{% endfor %}"
DOUBLED = "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = WHAT %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOPS,
        "".join(f"{{% for {name} in [1, 2, 3, 4, 5, 6, 7, 8, 9] %}}" for name in "abcdefghijkl") + 12 * "{% endfor %}",
        DOUBLED.replace("WHAT", "n.x ~ n.x"),
        DOUBLED.replace("WHAT", "n.x + n.x"),
        DOUBLED.replace("WHAT", "n.x * 9"),
        DOUBLED.replace("WHAT", "[n.x, n.x] | join"),
        DOUBLED.replace("WHAT", "n.x | replace('a', 'aaaaaaaaa')"),
        DOUBLED.replace("WHAT", "n.x.replace('a', 'aaaaaaaaa')"),
        DOUBLED.replace("WHAT", "'%s%s' % (n.x, n.x)"),
        DOUBLED.replace("WHAT", "'%s%s' | format(n.x, n.x)"),
        DOUBLED.replace("WHAT", "'{0}{0}'.format(n.x)"),
        DOUBLED.replace("'aaaa'", "[1]").replace("WHAT", "n.x + n.x"),
        DOUBLED.replace("'aaaa'", "9").replace("WHAT", "n.x * n.x"),
        "{{ 'a' * 10 ** 9 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ 'a'.rjust(1000000000) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ {'a': 1} | tojson(indent=999999999) }}",
        "{% macro m(n) %}{{ m(n) ~ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
        "{% set a = [[]] %}"
        + "".join("{% set a = [a, a] %}" for _ in range(60))
        + "{% for x in a recursive %}{{ loop(x) }}{% endfor %}",
        "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
        "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
        "{{ lipsum(n=99999) }}",
        "{#" + "a" * (1 << 20) + "#}",
        # what grows without a word of the sandbox's: the same list many times, texts held, made in C, or not looked at
        "{% set a = [1] %}" + 60 * "{% set a = [a, a] %}" + "{{ a }}",
        "{% set a = {} %}" + 60 * "{% set a = dict(x=a, y=a) %}" + "{{ a | tojson }}",
        "{% set a = (1,) %}" + 60 * "{% set a = (a, a) %}" + "{{ {a: 1} }}",
        "{% set n = namespace(a=1) %}{% set n.b = n %}{{ n }}",
        "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + ['a' * 99999 ~ i] %}{% endfor %}",
        "".join(f"{{% set a{i} = 'a' * 4000000 %}}" for i in range(3000)),
        BIG + "{% for i in range(99999) %}{% if 'ab' in x %}{% endif %}{% endfor %}",
        BIG + 1000 * "{% set y = x[1:] %}",
        BIG + "{% set y %}" + 9999 * "{{ x }}" + "{% endset %}",
        "{{ (9999999 * '\n') | indent(99999) }}",
        "{{ (999999 * '\t') | indent(99999) }}".replace("indent", "replace('\t', 9999 * 'a') | indent"),
        "{{ (999999 * '\t').expandtabs(99999) }}",
        "{{ (['a'] * 99999) | join('a' * 99999) }}",
        "{{ ('a' * 99999).join(['a'] * 99999) }}",
        "{{ ['a' * 999999] * 999999 }}",
        "{{ ('%(a)s' * 9999) % {'a': 'b' * 999999} }}",
        "{{ ('{:>99999}' * 9999).format(*range(9999)) }}",
        "{{ '{:{}}'.format('a', 999999999) }}",
        "{{ '%*d' | format(999999999, 1) }}",
        "{{ ('ab' * 1999999) | sort | first }}",
    ],
)
def test_a_chat_template_that_is_a_bomb(source: str) -> None:
    before = time.process_time()
    with pytest.raises(DataError):
        ChatTemplate(source).render([{"role": "user", "content": "Who?"}])
    assert time.process_time() - before < 8  # the bound is 5 s of this thread's time; most end in milliseconds


@pytest.mark.slow
def test_bombs_of_a_chat_template_stay_small(tmp_path: Path) -> None:
    """A gigabyte and a half of address space beside what the program takes; the worst before took all there was."""
    sources = [mark.args[1] for mark in test_a_chat_template_that_is_a_bomb.pytestmark if mark.name == "parametrize"]
    (tmp_path / "sources.json").write_text(json.dumps(sources[0]))
    subprocess.run([sys.executable, "-c", HELD, str(tmp_path / "sources.json")], check=True)


HELD = """
import json, resource, sys
from accord.errors import DataError
from accord.text.template import ChatTemplate
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (3 << 29)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for source in json.load(open(sys.argv[1])):
    try:
        ChatTemplate(source).render([{"role": "user", "content": "Who?"}])
    except DataError as error:
        assert not isinstance(error.__cause__, MemoryError), source[:200]
"""


def test_a_long_conversation_is_within_bounds() -> None:
    source = "{% for m in messages %}<|{{ m.role | upper }}|>{{ m.content | replace('a', 'b') | trim }}\n{% endfor %}"
    said = [{"role": "user", "content": "aha " * 200}, {"role": "assistant", "content": "no"}] * 1000
    wanted = "".join(f"<|{m['role'].upper()}|>{m['content'].replace('a', 'b').strip()}\n" for m in said)
    assert ChatTemplate(source).render(said) == wanted


def test_numbers_in_messages_are_no_widths() -> None:
    source = "{% macro at(t) %}{{ t | string }}{% endmacro %}{{ at(messages[0].at) }}{{ messages[0].at | tojson }}"
    assert ChatTemplate(source).render([{"role": "user", "content": "", "at": 1_700_000_000}]) == 2 * "1700000000"


# -- tokenizers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(words: Tokenizer, tmp_path: Path) -> Path:
    words.save(tmp_path)
    return tmp_path


def changed(**parts: object) -> Callable[[dict[str, object]], object]:
    return lambda raw: raw | parts


@pytest.mark.parametrize(
    "change",
    [
        changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
        changed(normalizer={"type": "Sequence", "normalizers": [None]}),
        changed(post_processor={"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {"x": {}}}),
        changed(added_tokens=[{"id": 2**63, "content": "x"}]),
        changed(model={"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}),
        changed(model={"type": "WordLevel", "vocab": {}, "unk_token": "x"}),
        lambda raw: ["x"],
        lambda raw: None,
    ],
)
def test_a_tokenizer_that_is_spoilt(change: Callable[[dict[str, object]], object], folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(change(raw)))
    with pytest.raises(AccordError):
        load_tokenizer(folder).encode("The old lighthouse keeper")


def cut(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def growing(kind: str, times: int) -> dict[str, object]:
    part = {"type": "Replace", "pattern": {"String": "a"}, "content": 10 * "a"}
    return {"type": "Sequence", kind: times * [part]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(normalizer=growing("normalizers", 9)), "within bounds"),
        (changed(decoder=growing("decoders", 12)), "within bounds"),
        (
            changed(normalizer={"type": "Sequence", "normalizers": 99 * [{"type": "Prepend", "prepend": 9**6 * "a"}]}),
            "within",
        ),
        (changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}), "ends the process"),
        (changed(pre_tokenizer=cut("a*a*[^a]")), "more than 2 s"),
        (changed(pre_tokenizer=cut("(?:é*){2}[^é]")), "more than 2 s"),
        (changed(pre_tokenizer=cut(r"a*a*\p{Lu}")), "more than 2 s"),
        (changed(model={"type": "Unigram", "unk_id": 0, "vocab": [["a" * 5000, 0.0]]}), "5,000 characters"),
    ],
)
def test_a_tokenizer_that_is_a_bomb(
    change: Callable[[dict[str, object]], object], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ended or filled the process, or took minutes of it; now it is tried in another one."""
    monkeypatch.setattr("accord.text.tokenizer_trial.TRIED_SECONDS", 2)
    monkeypatch.setattr("accord.text.tokenizer_trial.TRIED_MEGABYTES", 512)
    raw = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(change(raw)))
    with pytest.raises(DataError, match=says) as caught:
        load_tokenizer(folder)
    assert caught.value.exit_code == 3 and str(folder) in str(caught.value) and len(str(caught.value)) < 1000


def test_a_tokenizer_of_known_parts_is_not_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.text.tokenizer_trial.work_apart", lambda *arguments, **bounds: pytest.fail("tried"))
    load_tokenizer(folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut(r"\p{N}{1,3}"), raw["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    load_tokenizer(folder)


def test_a_library_that_panics_is_a_data_error(words: Tokenizer) -> None:
    class PanicException(BaseException):
        pass

    class Panics:
        def __getattr__(self, name: str) -> Callable[..., object]:
            def call(*args: object, **settings: object) -> object:
                raise PanicException("index out of bounds")

            return call

    tokenizer = Tokenizer(Inner(models.BPE()), words.stop_ids, 0, {})
    tokenizer._inner = Panics()  # type: ignore[assignment]
    for work in (lambda: tokenizer.encode("a"), lambda: tokenizer.encode_batch("ab"), lambda: tokenizer.decode([1])):
        with pytest.raises(DataError, match="gave up"):
            work()
