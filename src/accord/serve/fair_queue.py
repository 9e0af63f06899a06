"""Who waits, and who is next: everybody in turn, however much one of them asks."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")
Who = tuple[str, str]  # whose key, and which of the key's own users


class FairQueue(Generic[_T]):
    """A queue that goes round the keys, and within a key round its users; of one user first come, first served."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, OrderedDict[str, deque[_T]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_T]:
        return (item for users in self._keys.values() for items in users.values() for item in items)

    def put(self, who: Who, item: _T) -> None:
        """Let an item wait."""
        key, user = who
        self._keys.setdefault(key, OrderedDict()).setdefault(user, deque()).append(item)
        self._count += 1

    def waiting_of(self, key: str) -> int:
        """Return how many items of a key wait."""
        return sum(map(len, self._keys.get(key, {}).values()))

    def pop(self) -> _T:
        """Take the next item out. Raises KeyError where nothing waits."""
        key, users = self._keys.popitem(last=False)
        user, items = users.popitem(last=False)
        item = items.popleft()
        self._count -= 1
        # Behind all others: who was served is served again when they were.
        if items:
            users[user] = items
        if users:
            self._keys[key] = users
        return item

    def remove(self, item: _T) -> bool:
        """Take an item out that gave up waiting; False where it does not wait."""
        for key, users in self._keys.items():
            for user, items in users.items():
                if item in items:
                    items.remove(item)
                    self._count -= 1
                    if not items:
                        del users[user]
                    if not users:
                        del self._keys[key]
                    return True
        return False
