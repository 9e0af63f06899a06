"""Workers of a Ray cluster that draw samples, each with a copy of the policy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accord.cluster.connect import place
from accord.errors import AccordError, ResourceError
from accord.rollout.engine import Sample, Sampling
from accord.rollout.published import Copy, Patience, require_version

WORKERS_TRIED = 3  # of one call, each of them of a new worker


class RolloutWorker:
    """A copy of the policy in a process of its own. A new one holds version -1 and refuses every other."""

    def __init__(self, make: Callable[[], Copy]) -> None:
        self._copy = make()

    def pid(self) -> int:
        return os.getpid()

    def load(self, version: int, folder: str) -> None:
        self._copy.load(version, Path(folder))

    def draw(self, *asked: Any) -> list[Sample]:
        return self._copy.draw(*asked)


class RayCopy:
    """So many workers as one copy. Each draws its share of the prompts; what a lost one had is asked of a new one.

    ``make`` makes the copy inside of each worker.
    """

    def __init__(self, ray: Any, count: int, make: Callable[[], Copy]) -> None:
        self._ray, self._make = ray, make
        self._version, self._folder = -1, ""
        self._patience = Patience()
        self.workers = [self._worker() for _ in range(count)]

    def _worker(self) -> Any:
        return self._ray.remote(**place(self._ray))(RolloutWorker).remote(self._make)

    def load(self, version: int, folder: Path) -> None:
        self._version, self._folder = version, str(folder.absolute())
        self._each("load", [(version, self._folder)] * len(self.workers))

    def draw(
        self, version: int, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int, places: Sequence[int]
    ) -> list[Sample]:
        require_version(self._version, version)
        count = len(self.workers)
        shares = [(prompts[i::count], places[i::count]) for i in range(count)]
        drawn = self._each("draw", [(version, mine, sampling, seed, at) if at else None for mine, at in shares])
        together = [one for part in drawn if part for one in part]
        return sorted(together, key=lambda one: (one.prompt_index, one.sample_index))

    def _each(self, do: str, asked: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """Ask each worker at once; None asks nothing of it."""
        began = time.monotonic()
        refs = [None if one is None else self._ask(i, do, one) for i, one in enumerate(asked)]
        return [None if ref is None else self._got(i, do, asked[i], ref, began) for i, ref in enumerate(refs)]

    def _ask(self, index: int, do: str, asked: Any) -> Any:
        return getattr(self.workers[index], do).remote(*asked)

    def _got(self, index: int, do: str, asked: Any, ref: Any, began: float) -> Any:
        """Return the answer, of a new worker where one is gone or misses its deadline. Raises what a worker refuses."""
        problem: Exception | None = None
        for _ in range(WORKERS_TRIED):
            try:
                found = self._ray.get(ref, timeout=self._patience.limit(do))
                self._patience.took(do, time.monotonic() - began)
                return found
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, AccordError):
                    raise error.cause from None
                raise ResourceError(f"a rollout worker could not {do}", why=str(error.cause)) from error
            except (self._ray.exceptions.RayError, TimeoutError) as error:
                problem = error
            self._ray.kill(self.workers[index], no_restart=True)
            self.workers[index] = self._worker()
            began = time.monotonic()
            if do != "load" and self._version >= 0:
                self._ask(index, "load", (self._version, self._folder))
            ref = self._ask(index, do, asked)
        raise ResourceError(f"{WORKERS_TRIED} rollout workers were lost as they were asked to {do}", why=str(problem))

    def close(self) -> None:
        for worker in self.workers:
            self._ray.kill(worker, no_restart=True)
