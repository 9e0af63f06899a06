"""One word for one thing: no public name stands in two modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src" / "accord"
MODULES = sorted(path for path in SRC.rglob("*.py") if path.name != "__init__.py" and "migrations" not in path.parts)


def public_names(source: str) -> Iterator[str]:
    """Names that a module defines at its top and does not hide."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from [] if node.name.startswith("_") else [node.name]
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("_"))


def test_public_names_are_seen() -> None:
    found = public_names("A = 1\n_b = 2\nc: int = 3\ndef d(): e = 1\nclass F: g = 1\nfrom x import h")
    assert list(found) == ["A", "c", "d", "F"]


def test_no_public_name_stands_in_two_modules() -> None:
    """Commands of `cli` are named as the functions they call."""
    places = defaultdict(list)
    for path in MODULES:
        if path.relative_to(SRC).parts[0] != "cli":
            for name in set(public_names(path.read_text())):
                places[name].append(str(path.relative_to(SRC)))
    twice = {name: where for name, where in sorted(places.items()) if len(where) > 1}
    assert not twice
