"""What hangs together, directly or through others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Generic, TypeVar

_T = TypeVar("_T", int, str)


class Connected(Generic[_T]):
    """Names in sets that are joined one by one; the least name of a set stands for all of it.

    So the name of a set does not depend on the order in which its names were joined.
    """

    def __init__(self) -> None:
        self._leader: dict[_T, _T] = {}

    def find(self, name: _T) -> _T:
        """Return the name that stands for the set of this one, which is alone where it was never joined."""
        while self._leader.setdefault(name, name) != name:
            self._leader[name] = name = self._leader[self._leader[name]]
        return name

    def join(self, names: Iterable[_T]) -> None:
        """Make one set of those in which these names are."""
        roots = {self.find(name) for name in names}
        self._leader.update(dict.fromkeys(roots, min(roots)))

    def sizes(self) -> Counter[_T]:
        """Return how many names stand in each set, by the name that stands for it."""
        return Counter(map(self.find, list(self._leader)))
