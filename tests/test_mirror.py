"""Checkpoints and models at an fsspec URL: whole or not there, whatever fails; another machine goes on from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import WriteRows
from safetensors.torch import load_file

from accord.config import OptimConfig, SftConfig
from accord.errors import DataError, ResourceError
from accord.mirror import MIRROR_URL, Mirror, mirror_of
from accord.train.sft import sft


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"memory://kept-{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/kept"
    fsspec.filesystem("memory").store.clear()


def folder_of(path: Path, **files: str) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    for name, text in files.items():
        (path / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (path / name.replace("__", "/")).write_text(text)
    return path


def read(path: Path) -> dict[str, str]:
    return {str(one.relative_to(path)): one.read_text() for one in path.rglob("*") if one.is_file()}


def test_what_is_put_comes_back_and_replaces_what_stood_there(url: str, tmp_path: Path) -> None:
    mirror = Mirror(url, "runs/ppo")
    assert not mirror.get("model", tmp_path / "back") and mirror.names("checkpoints") == []
    mirror.put(folder_of(tmp_path / "a", config="1", sub__weights="2"), "model")
    assert mirror.get("model", tmp_path / "back") and read(tmp_path / "back") == {"config": "1", "sub/weights": "2"}
    mirror.put(folder_of(tmp_path / "a", config="3"), "model")
    mirror.put(folder_of(tmp_path / "a", config="4"), "checkpoints/step_000001")
    assert mirror.get("model", tmp_path / "back") and read(tmp_path / "back") == {"config": "3"}
    assert Mirror(url, "runs/ppo").names("checkpoints") == ["checkpoints/step_000001"]
    assert Mirror(url, "runs/dpo").names("checkpoints") == []
    # The older version's objects are gone: a folder each of model and checkpoint, and their commits.
    files, root = fsspec.core.url_to_fs(url)
    assert len(files.find(f"{root}/runs/ppo")) == 4
    mirror.drop("model")
    assert not mirror.get("model", tmp_path / "back") and mirror.names("checkpoints")


@pytest.mark.parametrize("allowed", range(4))
def test_an_upload_that_breaks_off_leaves_the_older_version(
    url: str, allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files and the commit, of which any may be the first that fails."""
    mirror, left = Mirror(url, "runs/ppo"), [allowed]
    mirror.put(folder_of(tmp_path / "a", x="old", y="old", z="old"), "model")

    def breaking(real: Any) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("connection reset")
            return real(*given, **more)

        return call

    for name in ("put_file", "pipe_file"):
        monkeypatch.setattr(mirror._files, name, breaking(getattr(mirror._files, name)))
    with pytest.raises(ResourceError, match=r"does not answer[\s\S]*connection reset"):
        mirror.put(folder_of(tmp_path / "a", x="new", y="new", z="new"), "model")
    monkeypatch.undo()
    assert Mirror(url, "runs/ppo").get("model", tmp_path / "back")
    assert set(read(tmp_path / "back").values()) == {"old"}


def test_what_is_not_as_it_was_put_is_refused_whole(url: str, tmp_path: Path) -> None:
    mirror = Mirror(url, "runs/ppo")
    mirror.put(folder_of(tmp_path / "a", x="1", y="2"), "model")
    files, root = fsspec.core.url_to_fs(url)
    victim = next(one for one in files.find(root) if one.endswith("/y"))
    files.pipe_file(victim, b"3")
    with pytest.raises(DataError, match="y is not as it was put there"):
        mirror.get("model", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_no_url_no_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(MIRROR_URL, raising=False)
    assert mirror_of(tmp_path) is None
    monkeypatch.setenv(MIRROR_URL, "nothing-like-this://bucket")
    with pytest.raises(ResourceError, match="does not answer"):
        mirror_of(tmp_path)


class Stop(Exception):
    pass


@pytest.mark.slow
def test_another_machine_goes_on_from_what_was_mirrored(
    url: str, chat_model: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows("demos.jsonl", [{"prompt": f"a{i}", "completion": "a word"} for i in range(24)])
    optim = OptimConfig(lr=1e-2)
    config = SftConfig(epochs=2, batch_tokens=30, checkpoint_every=2, optim=optim, precision="fp32")
    said: list[str] = []

    def stop_at(step: int) -> Any:
        def log(fraction: float, text: str) -> None:
            said.append(str(text))
            if text.startswith(f"step {step}/"):
                raise Stop

        return log

    whole = sft(config, model=chat_model, data=data, output_dir=tmp_path / "whole/sft")
    monkeypatch.setenv(MIRROR_URL, url)
    with pytest.raises(Stop):
        sft(config, model=chat_model, data=data, output_dir=tmp_path / "one/sft", log=stop_at(6))
    kept = Mirror(url, "one/sft")
    assert kept.names("checkpoints") == ["checkpoints/step_000002", "checkpoints/step_000004"]
    shutil.rmtree(tmp_path / "one")
    again = sft(config, model=chat_model, data=data, output_dir=tmp_path / "one/sft", log=stop_at(999))
    assert any("checkpoint step_000004 is fetched from" in text for text in said)
    weights, expected = (load_file(one.model / "model.safetensors") for one in (again, whole))
    assert all((weights[k] == expected[k]).all() for k in expected)
    # Done: the checkpoints are let go of, the model is kept.
    assert kept.get("model", tmp_path / "fetched")
    assert (tmp_path / "fetched/model.safetensors").read_bytes() == (again.model / "model.safetensors").read_bytes()
