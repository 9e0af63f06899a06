"""Every public function of ``algo`` refuses tensors of another rank or size than its names say."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import accord.algo
from accord.algo.advantages import Rewarded
from accord.algo.policy_loss import Tokens
from accord.algo.reward_loss import Judgements, Pairs, Positions
from accord.algo.shapes import dims_of
from accord.algo.table import PREFERENCE_LOSSES
from accord.config import DpoConfig, RlConfig

# A size for each letter that a name may promise; no two that stand in one call are equal, so that a swap is seen.
SIZES = {"B": 6, "T": 5, "N": 4, "S": 4, "M": 3, "P": 3, "K": 2, "D": 8, "V": 11, "G": 2, "R": 3, "C": 5}
# Their door is the dataclass that they take, or they take no tensor, or torch itself refuses (a plain linear layer).
NO_DOOR = {"bounds", "group_pairs", "product", "prepacked", "log_odds", "defaults_of", "dims_of"}
NO_DOOR |= {"rounds_by_hand", "sum_of_outer", "shaped", "elementwise", "check_fields"}
PREFERENCE_FUNCTIONS = {row.loss.name.partition(":")[2] for row in PREFERENCE_LOSSES.values()}  # type: ignore[attr-defined]
HOLDERS = {"rewarded": Rewarded, "tokens": Tokens, "judged": Judgements}
ELEMENTWISE = {"kl_k1", "kl_k3", "ratio_weighted_k3", "k3_naive", "masked_mean", "masked_whiten", "bradley_terry_loss"}


def public_functions() -> Iterator[Callable[..., Any]]:
    for info in pkgutil.iter_modules(accord.algo.__path__):
        module = import_module(f"accord.algo.{info.name}")
        for name, found in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and found.__module__ == module.__name__ and name not in NO_DOOR:
                yield found


def tensor(name: str, dims: str) -> Tensor:
    shape = [SIZES[letter] for letter in dims]
    if name.startswith("mask"):
        return torch.ones(shape, dtype=torch.bool)
    if name.split("_")[0] in ("chosen", "rejected", "group", "row", "ids"):
        return torch.zeros(shape, dtype=torch.long) if dims != "N" else torch.arange(shape[0])
    if name.startswith("target"):
        return torch.zeros(shape, dtype=torch.long)
    if name.startswith("length"):
        return torch.full(shape, 2.0)
    return torch.rand(shape) - 1.1


def judgements() -> Judgements:
    pairs = Pairs(torch.tensor([0, 2, 0, 2]), torch.tensor([1, 3, 1, 3]), *(torch.ones(4) for _ in range(3)))
    at = Positions(torch.randint(9, (4, 5)), torch.rand(4, 5), torch.full((4,), 5))
    group, rank = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 1, 2])
    return Judgements(torch.rand(4), group, rank, torch.ones(2), pairs, torch.ones(4), at)


def argument(function: str, name: str) -> Any:
    mask = torch.ones(6, 5, dtype=torch.bool)
    made: dict[str, Any] = {
        "settings": DpoConfig() if function in PREFERENCE_FUNCTIONS else RlConfig(),
        "rewarded": Rewarded(torch.rand(6, 5), torch.rand(6, 5), mask, 2),
        "tokens": Tokens(*(torch.rand(4) for _ in range(3)), torch.zeros(4, dtype=torch.long)),
        "judged": judgements(),
        "ranks": [(1, 2), (2, 1)],
        "generator": torch.Generator(),
        "max_tokens": 5,
        "cap": 2.0,
        "margin": torch.rand(6, 5) if function == "bradley_terry_loss" else 2,
        "mask": mask,
    }
    if name in made:
        return made[name]
    return torch.rand(6, 5) if function in ELEMENTWISE else 0.5


def called(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that a function takes."""
    given = {}
    for name, parameter in inspect.signature(function).parameters.items():
        dims = dims_of(name)
        if dims is not None:
            given[name] = tensor(name, dims)
        elif parameter.default is inspect.Parameter.empty or name in ("probability", "margin"):
            given[name] = argument(function.__name__, name)
    return given


FUNCTIONS = [pytest.param(f, id=f"{f.__module__.rsplit('.', 1)[-1]}.{f.__name__}") for f in public_functions()]


def wrong(value: Tensor) -> Iterator[Tensor]:
    """The same numbers as a column, as a row of a batch, and one too many."""
    yield value.unsqueeze(-1)
    yield value.unsqueeze(0)
    yield torch.cat([value, value[:1]])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_takes_what_its_names_say(function: Callable[..., Any]) -> None:
    function(**called(function))
    function(*called(function).values()) if function.__name__ != "masked_whiten" else None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_refuses_another_rank_and_another_size(function: Callable[..., Any]) -> None:
    given = called(function)
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    assert tensors or set(given) & set(HOLDERS), "it takes no tensor: say so in NO_DOOR"
    for name in tensors:
        dims = dims_of(name) or "BT"
        shared = any(other != name and set(dims[:1]) & set(dims_of(other) or "BT") for other in tensors)
        for value in list(wrong(given[name]))[: 3 if shared else 2]:
            if len(tensors) == 1 and dims_of(name) is None:
                continue
            with pytest.raises(ValueError, match="shape") as caught:
                function(**given | {name: value})
            assert f"{name} is {tuple(value.shape)}" in str(caught.value)
            assert all(
                f"{other} is {tuple(given[other].shape)}" in str(caught.value) for other in tensors if other != name
            )


@pytest.mark.parametrize(
    "held", [argument("", "rewarded"), argument("", "tokens"), judgements()], ids=lambda h: type(h).__name__
)
def test_what_holds_tensors_refuses_other_shapes(held: Any) -> None:
    for part in (held, *(getattr(held, field.name) for field in fields(held))):
        if not is_dataclass(part):
            continue
        given = {field.name: getattr(part, field.name) for field in fields(part)}
        for name, value in given.items():
            if isinstance(value, Tensor):
                for other in list(wrong(value))[: 2 if name == "weight_G" else 3]:
                    with pytest.raises(ValueError, match="shapes"):
                        type(part)(**given | {name: other})


def test_an_advantage_is_one_a_completion() -> None:
    held = argument("", "rewarded")
    assert held.spread(torch.rand(3, 2)).shape == held.spread(torch.rand(6)).shape == (6, 5)
    with pytest.raises(ValueError, match="advantage is"):
        held.spread(torch.rand(6, 6))


def test_a_column_no_longer_broadcasts() -> None:
    """What it is for: (4, 1) against (4,) was a (4, 4) of numbers that look right."""
    logp = torch.rand(4)
    with pytest.raises(ValueError, match=r"logp_N is \(4, 1\), old_logp_N is \(4,\)"):
        Tokens(logp[:, None], logp, logp, torch.zeros(4))
