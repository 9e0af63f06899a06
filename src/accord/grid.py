"""Grids of settings: ``rl.kl_coef=.01,.05,.2`` as a recipe for each value, or for each combination. Torch-free."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from accord.config import Recipe
from accord.errors import UsageError

MOST = 64  # combinations of one sweep
LONGEST = 120  # letters of a folder's name


@dataclass(frozen=True)
class Combination:
    """One combination: the folder it runs in, the values that it gives to the keys, and the whole recipe."""

    name: str
    values: Mapping[str, str]
    recipe: Recipe


def grid(axes: Sequence[str], load: Callable[[list[str]], Recipe]) -> list[Combination]:
    """Return every combination of the values, the last key changing fastest. All recipes are built before any is run.

    Args:
        axes: ``key=a,b,c`` each; a value is YAML, so that ``[0.9,0.95]`` is one.
        load: the recipe that further overrides (``key=value``) make.

    Raises:
        UsageError: a key without two different values, a key named twice, more than 64 combinations, or a recipe
            that cannot be built.
    """
    found: dict[str, list[str]] = {}
    for axis in axes:
        key, values = _axis(axis)
        if key in found:
            raise UsageError(f"{key} is given twice", where="--sweep", hint="give a key all its values at once")
        found[key] = values
    combinations = list(itertools.product(*found.values()))
    if len(combinations) > MOST:
        sizes = " * ".join(str(len(values)) for values in found.values())
        raise UsageError(f"{sizes} = {len(combinations)} combinations", where="--sweep", hint=f"at most {MOST} run")
    points = []
    for combination in combinations:
        values_of = dict(zip(found, combination, strict=True))
        overrides = [f"{key}={value}" for key, value in values_of.items()]
        points.append(Combination(folder_name(overrides), values_of, load(overrides)))
    return points


def _axis(text: str) -> tuple[str, list[str]]:
    key, _, listed = text.partition("=")
    try:
        node = yaml.compose(f"[{listed}]", Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{text[:80]!r} cannot be read", where="--sweep", hint="write it like key=a,b,c") from error
    nodes = node.value if isinstance(node, yaml.SequenceNode) else []
    values = [f"[{listed}]"[one.start_mark.index : one.end_mark.index].strip() for one in nodes]
    if not key.strip() or len(values) < 2:
        hint = "write it like rl.kl_coef=.01,.05; a single value is an override without --sweep"
        raise UsageError(f"{text!r} has {len(values)} value" + "s" * (len(values) != 1), where="--sweep", hint=hint)
    if len(set(values)) < len(values):
        raise UsageError(f"{text!r} names one value twice", where="--sweep")
    return key.strip(), values


def folder_name(overrides: Sequence[str]) -> str:
    """Return ``rl.kl_coef=.01,seed=1``; what a folder's name cannot hold is replaced, and a hash is added."""
    text = ",".join(overrides)
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)
    if plain == text and len(text) <= LONGEST:
        return text
    # Two values that differ only in what was replaced must not share a folder.
    return f"{plain[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
