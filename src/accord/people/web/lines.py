"""WaitingLine of requests: each kind has so many places at work and so many in line; who finds none shall come again.

Forty threads serve all. Requests that wait for the one writer would hold every one of them while something else writes
to the store for long, and nobody could read a page. So writers have some places and no more, and so have reports that
take long, and whoever is not logged in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import HTTPException

Lane = Literal["read", "write", "slow", "door"]
_TOO_MUCH = "the server is busy: try again in a moment"


class WaitingLine:
    """Places for requests of one kind, used on the event loop's thread only.

    Args:
        at_work: Requests at once.
        in_line: Requests that wait for a place.
        seconds: How long one waits at most.
    """

    def __init__(self, at_work: int, in_line: int, seconds: float) -> None:
        self._free, self._in_line, self._seconds = asyncio.Semaphore(at_work), in_line, seconds
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place while the block runs. Raises HTTPException 503 where none comes free in time."""
        if self._waiting >= self._in_line and self._free.locked():
            raise busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._free.acquire()
        except TimeoutError:
            raise busy() from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


def busy() -> HTTPException:
    """Return the error that tells a program to come again."""
    return HTTPException(503, _TOO_MUCH, headers={"Retry-After": "5"})


def usual_lines() -> Mapping[Lane, WaitingLine]:
    """Return the places of one server: of forty threads eight are left to who only reads."""
    return {"write": WaitingLine(24, 600, 10.0), "slow": WaitingLine(4, 50, 30.0), "door": WaitingLine(4, 100, 10.0)}
