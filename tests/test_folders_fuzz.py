"""Model folders, GGUF files, tokenizers, recipes and chat templates, damaged anywhere: never a raw exception.

`make fuzz TESTS=tests/test_folders_fuzz.py` draws new damage each round; ACCORD_FUZZ_S=600 gives each reader so many
seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_blemished_folders import llama
from test_formats_fuzz import HINTS, damaged, drawing, values
from test_gguf import Tiny

from accord.config.layers import read_layer
from accord.errors import AccordError
from accord.models.folder import load_policy, load_scalar, shape_of
from accord.models.gguf import convert
from accord.text.template import ChatTemplate
from accord.text.tokenizer import Tokenizer, load_tokenizer


@st.composite
def spoilt(draw: st.DrawFn, row: dict[str, Any]) -> dict[str, Any]:
    return damaged(draw, row)


TRIED = Counter[str]()


def tried(work: Callable[[], object]) -> None:
    try:
        work()
    except AccordError as error:
        assert str(error)


@pytest.mark.slow
@pytest.mark.hypothesis
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "reward.json"]
)
def test_a_folder_with_a_damaged_file(name: str, words: Tokenizer, tmp_path: Path) -> None:
    folder = llama(words, tmp_path / "m")
    (folder / "reward.json").write_text(json.dumps({"offset": 0.5, "scale": 2.0, "combine": {"rule": "mean"}}))
    raw = json.loads((folder / name).read_text())

    @HINTS
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        TRIED[name] += 1
        found = data.draw(values) if data.draw(st.integers(0, 9)) == 0 else data.draw(spoilt(raw))
        (folder / name).write_bytes(json.dumps(found).encode("utf-8", "replace"))
        tried(lambda: load_tokenizer(folder).encode_pair("The old", " light"))
        tried(lambda: shape_of(folder))
        tried(lambda: load_policy(folder))
        tried(lambda: load_scalar(folder, head_seed=0))

    drawing(name, run, TRIED)


@pytest.mark.slow
@pytest.mark.hypothesis
@pytest.mark.parametrize("name", ["model.safetensors", "tiny.gguf"])
def test_weights_with_other_bytes(name: str, words: Tokenizer, tmp_path: Path) -> None:
    folder = llama(words, tmp_path / "m")
    whole = (folder / name if name.startswith("model") else Tiny().write(tmp_path / name)).read_bytes()
    header = min(len(whole), 6_000)

    @HINTS
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        TRIED[name] += 1
        found = bytearray(whole)
        for place in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=4)):
            found[place] = data.draw(st.integers(0, 255))
        found = found[: data.draw(st.one_of(st.just(len(found)), st.integers(0, len(found))))]
        (folder / name).write_bytes(found)
        if name.endswith("gguf"):
            tried(lambda: convert(folder / name, tmp_path / "out"))
        else:
            tried(lambda: load_policy(folder))

    drawing(name, run, TRIED)


PIECES = [
    *("a", "rl:", "seed: 1", "\n", "  ", "- ", "[", "]", "{", "}", "&x ", "*x", "!!int ", "!!set ", "? ", ": ", "'"),
    *('"', "|", ">", "#", "---", "...", "%YAML 1.1", "<<: ", "2026-13-45", "1e999", "0x", "\t", "\x00", "\u2028", "~"),
]
JINJA = [
    *("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if m %}", "{% endif %}"),
    *("{% set a = ", " %}", "{{ ", " }}", "a ~ a", "range(99999)", "|", "replace('a', a)", "join", "*", "**", "9999"),
    *("(", ")", "{% macro f(x) %}", "{% endmacro %}", "f(f)", "loop.index", "namespace(", "{% generation %}", "tojson"),
]


@pytest.mark.slow
@pytest.mark.hypothesis
def test_recipes_of_any_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    @HINTS
    @given(parts=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=30))
    def run(parts: list[str]) -> None:
        TRIED["recipes"] += 1
        path.write_bytes("".join(parts).encode("utf-8", "replace"))
        tried(lambda: read_layer(path))

    drawing("recipes", run, TRIED)


@pytest.mark.slow
@pytest.mark.hypothesis
def test_chat_templates_of_any_text() -> None:
    said: list[dict[str, Any]] = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]

    @HINTS
    @given(parts=st.lists(st.one_of(st.sampled_from(JINJA), st.text(max_size=3)), max_size=25))
    def run(parts: list[str]) -> None:
        TRIED["templates"] += 1
        template = ChatTemplate("".join(parts), special=("</s>",))
        tried(lambda: template.assistant_spans(said))
        tried(lambda: template.reply(said[:1], "Me."))
        assert template.wrote("Who?") in (True, False) and isinstance(template.closing, str)

    drawing("templates", run, TRIED)
