"""Rows of a user's own, by name: ``module:name`` wherever an algorithm, a loss or a scorer is chosen."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from accord.errors import AccordError, DataError, UsageError
from accord.files import sha256_file

_T = TypeVar("_T")

_OUTSIDE = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def is_outside(name: str) -> bool:
    """Return whether a name means something outside the package, ``module:name``."""
    return _OUTSIDE.match(name) is not None


def row(table: Mapping[str, _T], name: str) -> _T:
    """Return the row of a table with that name, or what ``module:name`` names outside the package.

    A module is looked for where Python looks, and in the working directory.
    Raises UsageError where neither has it.
    """
    if name in table:
        return table[name]
    found: _T = outside(name, hint="give module:name, or one of " + ", ".join(table))
    return found


def outside(name: str, hint: str = "write it as module:name") -> Any:
    """Return the object that ``module:name`` names. Raises UsageError where there is none."""
    if not is_outside(name):
        raise UsageError(f"there is no {name!r}", hint=hint)
    module, attribute = name.split(":")
    _look_in_working_directory()
    try:
        return getattr(_imported(name, module), attribute)
    except AttributeError as error:
        raise UsageError(f"{name!r}: {error}", hint="check the name") from error


def _imported(name: str, module: str) -> ModuleType:
    with blaming(f"{name}, as it is imported,"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{name!r}: there is no module {error.name!r}",
                hint="start in the folder that holds it, or install its package",
            ) from error


def _look_in_working_directory() -> None:
    # As `python -m` has it, but last: a file of the working directory must not hide a package.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def code_in(settings: Any) -> dict[str, str]:
    """The hash of the code behind every ``module:name`` in nested settings: they mean what stands in it.

    That is the module's file and, of a user's own, those beside it that it imports, and theirs in turn; of a package
    all of it. What is installed counts by the module's file alone.
    """
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        return {name: found for one in settings for name, found in code_in(one).items()}
    files = _files_behind(settings) if isinstance(settings, str) and is_outside(settings) else {}
    hashes = {name: sha256_file(path) for name, path in files.items()}
    if len(hashes) == 1:
        return {settings: next(iter(hashes.values()))}
    listed = "\n".join(f"{name} {digest}" for name, digest in sorted(hashes.items()))
    return {settings: hashlib.sha256(listed.encode()).hexdigest()} if hashes else {}


def _files_behind(name: str) -> dict[str, Path]:
    """The files that hold ``module:name``, by their names as seen from where the module lies; none where it is not."""
    module = name.split(":")[0]
    root = _root_of(module.split(".")[0])
    if root is None:
        return {}
    # Ours counts by its version, also where it is installed to be edited.
    if _is_installed(root) or module.split(".")[0] == __name__.split(".")[0]:
        return {path.name: path for path in _candidates(root, module) if path.is_file()}
    found: dict[str, Path] = {}
    wanted, seen = [module.split(".")[0]], set[str]()
    while wanted:
        # A package counts whole, so each is looked through once, however often it is imported.
        if (top := wanted.pop()) not in seen:
            seen.add(top)
            for path in _own_files(root, top):
                found[path.relative_to(root).as_posix()] = path
                wanted += (name.split(".")[0] for name in _imports(path))
    return found


def _root_of(top: str) -> Path | None:
    """Where a module of this name lies, that is not part of a package."""
    _look_in_working_directory()
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module made by hand
        return None
    if found is None or not found.origin or not Path(found.origin).is_file():
        return None
    path = Path(found.origin)
    return path.parent.parent if found.submodule_search_locations else path.parent


def _is_installed(root: Path) -> bool:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return str(root) in places or bool({"site-packages", "dist-packages"} & set(root.parts))


def _candidates(root: Path, module: str) -> tuple[Path, Path]:
    stem = root.joinpath(*module.split("."))
    return stem.with_name(f"{stem.name}.py"), stem / "__init__.py"


def _own_files(root: Path, module: str) -> list[Path]:
    """The file of a module, or all files of a package; none for one that lies elsewhere."""
    alone, package = _candidates(root, module)
    return sorted(package.parent.rglob("*.py")) if package.is_file() else [alone] if alone.is_file() else []


def _imports(path: Path) -> list[str]:
    """The modules that a file imports by their whole names; a relative import stays in its package."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # whoever imports it is told
        return []
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn what goes wrong inside into a DataError that names a user's own ``module:name``.

    So does sys.exit: it would end the run as though all were well.
    """
    try:
        yield
    except (AccordError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        told = "" if error.code is None else repr(error.code)
        raise DataError(f"{name} called sys.exit({told})", why=_NO_EXIT, hint="raise an error instead") from error
    except BaseException as error:
        raise DataError(f"{name} failed: {type(error).__name__}: {error}", hint="run with -v to see where") from error


_NO_EXIT = "that would end the run in its midst"
