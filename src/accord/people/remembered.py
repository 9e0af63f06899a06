"""Values that are dear to make, remembered up to a size in all: of strangers' texts their number bounds nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
# A value that would push out so many others of its size is made anew each time.
_LEAST_PUSHED_OUT = 8


class Remembered(Generic[_K, _V]):
    """The values asked for last, together no larger than ``most``. Safe to share between threads.

    Args:
        make: Makes the value of a key; what it raises is raised, and not remembered.
        size: Of a key and its value, in characters.
        most: Characters in all.
    """

    def __init__(self, make: Callable[[_K], _V], size: Callable[[_K, _V], int], *, most: int) -> None:
        self._make, self._size, self._most = make, size, most
        self._held: OrderedDict[_K, tuple[_V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.size = 0

    def __call__(self, key: _K) -> _V:
        """Return the value of a key, made where it is not remembered. Two threads may make the same one at once."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        value = self._make(key)
        size = self._size(key, value)
        if size <= self._most // _LEAST_PUSHED_OUT:
            with self._lock:
                self._keep(key, value, size)
        return value

    def _keep(self, key: _K, value: _V, size: int) -> None:
        self.size += size - self._held.pop(key, (None, 0))[1]
        self._held[key] = (value, size)
        while self.size > self._most:
            self.size -= self._held.popitem(last=False)[1][1]
