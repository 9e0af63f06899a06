"""`accord models`: what is served under which name, moved by hand, told with its reason, and taken back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from accord.cli.main import app


def run(*argv: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, [*argv, "--json"], prog_name="accord")
    return done.exit_code, json.loads(done.stdout)


def test_names_are_moved_by_hand_and_told(chat_model: Path, letters_folder: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "shop")
    assert run("init", home)[0] == 0
    assert run("models", home)[1] == {"models": {}, "history": []}
    code, told = run("models", home, "--set", f"prod={letters_folder}", "--reason", "to begin with")
    weights = hashlib.sha256((letters_folder / "model.safetensors").read_bytes()).hexdigest()
    version = hashlib.sha256(weights.encode()).hexdigest()[:12]
    assert code == 0 and told["models"] == {"prod": {"folder": str(letters_folder.resolve()), "version": version}}
    told = run("models", home, "--set", f"prod={chat_model}")[1]
    assert told["models"]["prod"]["folder"] == str(chat_model.resolve())
    assert [(row["alias"], row["why"]) for row in told["history"]] == [
        ("prod", "by hand, no gate was asked: to begin with"),
        ("prod", "by hand, no gate was asked: no reason given"),
    ]
    shown = CliRunner().invoke(app, ["models", home], prog_name="accord").stdout
    assert f"none -> {version}" in shown and "2 moves" in shown
    assert run("rollback", home)[1]["version"] == version
    assert run("models", home)[1]["models"]["prod"]["version"] == version


def test_what_names_no_model_is_refused(letters_folder: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "shop")
    run("init", home)
    for move, code in (
        (f"reference={letters_folder}", 2),
        (f"canary={letters_folder}", 2),
        ("prod", 2),
        (f"prod={tmp_path}", 3),
    ):
        assert run("models", home, "--set", move)[0] == code
    assert run("models", home)[1]["history"] == []
