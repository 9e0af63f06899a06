"""The one thread that writes: requests of all callers, committed in groups.

A commit that is safe on disk (``synchronous=FULL``) costs a few milliseconds whatever it holds. So the requests that
arrive while one commit runs share the next. Each stands in a savepoint of its own: one that fails undoes nothing of
the others. A caller waits until the commit that holds its request is on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine

from accord.errors import UsageError
from accord.store.database import explained, place_of, transaction

#: Most requests of one commit: enough to share its cost, few enough that nobody waits long for the others.
MOST_A_COMMIT = 64

_T = TypeVar("_T")


class _Request(NamedTuple):
    work: Callable[[Connection], Any]
    answer: Future[Any]


class Writer:
    """A thread that runs requests one after the other; it starts with the first of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Unbounded: each caller waits for its own answer, so there are never more requests than threads.
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._lock = threading.Lock()  # of the two below: nothing is asked of a thread that has been asked to end
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Callable[[Connection], _T]) -> _T:
        """Return or raise what ``work(connection)`` does, once the commit that holds it is safe on disk.

        Raises:
            UsageError: The writer is closed.
            AccordError: The database refused this request, or the commit it was part of; nothing of it was stored.
        """
        # It would wait for itself for ever.
        if threading.current_thread() is self._thread:
            raise RuntimeError("a request may not wait for another: pass the connection on")
        request = _Request(work, Future())
        with self._lock:
            if self._closed:
                raise UsageError("the store is closed", where=place_of(self._engine), hint="open it again")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="accord-writer", daemon=True)
                self._thread.start()
            self._requests.put(request)
        answer: Future[_T] = request.answer
        return answer.result()

    def close(self) -> None:
        """Finish what was asked for, and end the thread."""
        with self._lock:
            self._closed = True
            self._requests.put(None)
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        while batch := self._next_batch():
            self._commit(batch)

    def _next_batch(self) -> list[_Request]:
        """Return the requests that wait, at least one; none at the end."""
        batch = []
        request = self._requests.get()
        while request is not None:
            batch.append(request)
            if len(batch) == MOST_A_COMMIT:
                return batch
            try:
                request = self._requests.get_nowait()
            except Empty:
                return batch
        self._requests.put(None)  # for the next look
        return batch

    def _commit(self, batch: list[_Request]) -> None:
        try:
            with explained(self._engine), transaction(self._engine) as connection:
                outcomes = [self._attempt(connection, request) for request in batch]
        except BaseException as error:  # the commit as a whole: the disk is full, the connection is lost
            for request in batch:
                request.answer.set_exception(error)
            return
        for request, outcome in zip(batch, outcomes, strict=True):
            outcome(request.answer)

    def _attempt(self, connection: Connection, request: _Request) -> Callable[[Future[Any]], None]:
        """Run a request, and return how to answer its caller after the commit."""
        # A request that fails takes nothing of its neighbours with it.
        savepoint = connection.begin_nested()
        try:
            with explained(self._engine):
                value = request.work(connection)
        except BaseException as error:
            savepoint.rollback()  # fails, and the whole commit with it, where the database has given up all of it
            failure = error
            return lambda answer: answer.set_exception(failure)
        savepoint.commit()
        return lambda answer: answer.set_result(value)
