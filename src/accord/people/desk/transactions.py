"""How a part of the desk changes anything: one request to the store's writer, done as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from accord.config import LabelConfig
from accord.store import Store

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Transaction:
    """One request to the store's writer: its connection, and the moment at which somebody made it.

    The moment is read before the request waits for its turn: a lease is as long as the person was promised.
    """

    connection: Connection
    at: float


class DeskPart:
    """One part of the desk: the store that it works on, the project's settings, and the clock."""

    def __init__(self, store: Store, settings: LabelConfig, clock: Callable[[], float]) -> None:
        self._store, self._settings, self._clock = store, settings, clock


_AnyPart = TypeVar("_AnyPart", bound=DeskPart)


def in_transaction(
    work: Callable[Concatenate[_AnyPart, Transaction, _P], _R],
) -> Callable[Concatenate[_AnyPart, _P], _R]:
    """Make a method one transaction: its callers leave ``tx`` out, and what it did is on disk when it returns.

    Inside one, call functions and methods that take the ``Transaction``: a request that waits for another is refused.
    """

    @wraps(work)
    def run(self: _AnyPart, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        at = self._clock()
        return self._store.write(lambda connection: work(self, Transaction(connection, at), *args, **kwargs))

    whole = signature(work)
    seen = [parameter for name, parameter in whole.parameters.items() if name != "tx"]
    shown: Any = run
    shown.__signature__ = whole.replace(parameters=seen)  # `help` tells what callers give
    return run
