"""Rows of a user's own, by name: ``module:name`` wherever an algorithm, a loss or a scorer is chosen."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
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
    # As `python -m` has it, but last: a file of the working directory must not hide a package.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name!r}: there is no module {error.name!r}",
            hint="start in the folder that holds it, or install its package",
        ) from error
    except AttributeError as error:
        raise UsageError(f"{name!r}: {error}", hint="check the name") from error


def code_in(settings: Any) -> dict[str, str]:
    """The hash of the file behind every ``module:name`` in nested settings: they mean what stands in it.

    What such a file imports in turn is not looked at.
    """
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        return {name: found for one in settings for name, found in code_in(one).items()}
    path = _module_file(settings) if isinstance(settings, str) and is_outside(settings) else None
    return {settings: sha256_file(path)} if path else {}


def _module_file(name: str) -> Path | None:
    """The file that holds ``module:name``; None where none is found."""
    try:
        found = importlib.util.find_spec(name.split(":")[0])
    except (ImportError, ValueError):  # a parent that cannot be imported, a module made by hand
        return None
    path = Path(found.origin) if found and found.origin else None
    return path if path and path.is_file() else None


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn what goes wrong inside into a DataError that names a user's own ``module:name``."""
    try:
        yield
    except AccordError:
        raise
    except Exception as error:
        raise DataError(f"{name} failed: {type(error).__name__}: {error}", hint="run with -v to see where") from error
