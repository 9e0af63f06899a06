"""The processes that train one model together, as one of them sees them. Torch-free.

Whoever trains deals its micro-batches out by `Ranks.share` and adds up what each process measured; alone, nothing is
dealt and nothing is sent. `accord.dist.mesh` makes the ranks of several processes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

from accord.errors import AccordError

# Of several processes the first one speaks. Should it fail too, torchrun ends the others before their time to speak.
# Five seconds were too few where a busy machine let the first one end slowly.
OTHERS_SPEAK_AFTER_S = 20.0

_Item = TypeVar("_Item")
_Micro = TypeVar("_Micro")


class Ranks:
    """This process among those that train together: number ``rank`` of ``world``. By itself it is alone."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    def gather(self, mine: _Item) -> list[_Item]:
        """Return what every process has, in the order of their ranks; all of them must ask."""
        return [mine]

    def said(self, mine: _Item) -> _Item:
        """Return what the first process has; all of them must ask."""
        return self.gather(mine)[0]

    def by_first(self, work: Callable[[], _Item]) -> _Item:
        """Return what the first process works out. All of them must ask, and what it refuses all of them raise."""
        if self.world == 1:
            return work()
        done: tuple[_Item | None, AccordError | None] = (None, None)
        if self.first:
            try:
                done = (work(), None)
            except AccordError as error:  # raised by itself it would leave the others waiting
                done = (None, error)
        found, refused = self.said(done)
        if refused is not None:
            raise refused
        return cast(_Item, found)

    def sums(self, mine: Mapping[str, float]) -> dict[str, float]:
        """Return each number added up over the processes; one that a process lacks is 0 there."""
        total: dict[str, float] = {}
        for one in self.gather(dict(mine)):
            for name, value in one.items():
                total[name] = total[name] + value if name in total else value
        return total

    def others(self, count: int) -> frozenset[int]:
        """Return which of so many pieces of work are for the other processes: every ``world``-th is for this one."""
        return frozenset(i for i in range(count) if i % self.world != self.rank)

    def by_row(self, rows: Sequence[_Item], work: Callable[[list[_Item]], Sequence[_Micro]]) -> list[_Micro]:
        """Return one result a row, of which each process works out its share."""
        mine = [row for i, row in enumerate(rows) if i % self.world == self.rank]
        parts = self.gather(list(work(mine)) if mine else [])
        return [parts[i % self.world][i // self.world] for i in range(len(rows))]

    def share(
        self,
        items: Sequence[_Item],
        pack: Callable[[list[_Item]], Iterable[_Micro]],
        size: Callable[[_Item], int],
        together: Callable[[_Item], Hashable] | None = None,
    ) -> list[tuple[_Micro, float]]:
        """Return the micro-batches of this process, each with what it counts: 1, or 0 where it only fills up.

        As many as every other process has, for each waits for the others in every one; so a short share repeats a
        micro-batch of weight 0. Alone it is all that ``pack`` makes of the items. Items ``together`` go to one process,
        where that leaves none idle.
        """
        if self.world == 1:
            return [(micro, 1.0) for micro in pack(list(items))]
        packed = [list(pack(part)) if part else [] for part in dealt(items, self.world, size, together)]
        mine, count = packed[self.rank], max(map(len, packed))
        filler = (mine or next(part for part in packed if part))[0]
        return [(micro, 1.0) for micro in mine] + [(filler, 0.0)] * (count - len(mine))


ONE_PROCESS = Ranks()


def dealt(
    items: Sequence[_Item],
    world: int,
    size: Callable[[_Item], int],
    together: Callable[[_Item], Hashable] | None = None,
) -> list[list[_Item]]:
    """Return the items in so many parts of about one size, each in the order given."""
    keys = [i if together is None else together(item) for i, item in enumerate(items)]
    if len(set(keys)) < world:
        keys = list(range(len(items)))
    pieces: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        pieces[key].append(i)
    parts: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    sizes = {key: sum(size(items[i]) for i in piece) for key, piece in pieces.items()}
    # Longest first to who has least: then no part is longer than another by more than one short piece.
    for key in sorted(pieces, key=lambda key: -sizes[key]):
        least = loads.index(min(loads))
        parts[least] += pieces[key]
        loads[least] += sizes[key]
    return [[items[i] for i in sorted(part)] for part in parts]


def launched_ranks() -> tuple[int, int]:
    """Return rank and number of the processes that torchrun started, by its environment; 0 of 1 where it did not."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
