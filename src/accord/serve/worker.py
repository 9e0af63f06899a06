"""The thread that owns the model: one running session, which requests join and leave at any step.

The event loop hands jobs in and gets their tokens back, a call for each step and loop, not one for each token.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accord.errors import AccordError
from accord.rollout.engine import REFILL_SHARE, Engine, Sampling, Session, Token
from accord.rollout.prefix_cache import PrefixCache
from accord.serve.fair_queue import FairQueue, Who
from accord.serve.measures import Measures
from accord.serve.refusals import Refusal, come_again

KEY_SHARE = 0.5  # of the queue may be one key's: the others always find room
_T = TypeVar("_T")
Arrival = list[Token] | Exception
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One prompt to be answered, ``sampling.samples_per_prompt`` times, for somebody.

    Its tokens draw what the only prompt of `Engine.generate` would with the same seed. ``inbox`` gets pairs of a job
    and its tokens of a step, or the error that ended it: several jobs of a request may share one.
    """

    ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    who: Who
    loop: asyncio.AbstractEventLoop
    inbox: asyncio.Queue[tuple[Job, Arrival]]
    name: int = -1
    left: int = 0  # samples that have not ended
    since: float = field(default_factory=time.monotonic)
    started: bool = False  # whether its first token is there

    def __post_init__(self) -> None:
        self.left = self.sampling.samples_per_prompt


class Worker:
    """A running session on a model, and who waits for it. Started by `start`, ended by `stop`; used from any thread."""

    def __init__(self, engine: Engine, prefixes: PrefixCache, measures: Measures, most_waiting: int) -> None:
        self._engine, self._prefixes, self._measures, self._most = engine, prefixes, measures, most_waiting
        self._changed = threading.Condition()
        self._queue: FairQueue[Job] = FairQueue()
        self._cancelled: list[tuple[Job, int | None]] = []
        self._asides: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        self._live: dict[int, Job] = {}
        self._names = itertools.count()
        self._ended = False
        self._seconds = 1.0  # of a request lately, for who must come again
        self._thread = threading.Thread(target=self._run, name="accord-engine", daemon=True)
        gauges: dict[str, Callable[[], float]] = {
            "accord_running": lambda: sum(job.left for job in [*self._live.values()]),
            "accord_waiting": lambda: len(self._queue),
            "accord_prefix_tokens": lambda: prefixes.tokens,
            "accord_prompt_tokens_reused_total": lambda: prefixes.reused,
        }
        for name, value in gauges.items():
            measures.now(name, value)

    def start(self) -> Worker:
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not (self._live or self._queue or self._asides)

    def stop(self) -> None:
        """End the session; whoever still waits for tokens gets an error."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, *jobs: Job) -> None:
        """Let jobs wait for their turn, all or none. Raises Refusal where too much waits already."""
        with self._changed:
            key, waiting = jobs[0].who[0], len(self._queue)
            if self._ended:
                raise Refusal(503, "the server is stopping", headers={"Retry-After": "5"})
            wait = self._seconds * (1 + waiting / self._engine.max_rows)
            if waiting + len(jobs) > self._most:
                raise come_again(f"{waiting} requests wait already", wait)
            if self._queue.waiting_of(key) + len(jobs) > max(1, self._most * KEY_SHARE):
                raise come_again(f"{self._queue.waiting_of(key)} requests of this key wait already", wait)
            for job in jobs:
                job.name = next(self._names)
                self._queue.put(job.who, job)
            self._changed.notify()

    def cancel(self, job: Job, sample: int | None = None) -> None:
        """Let a job, or one of its samples, leave before its next token."""
        with self._changed:
            self._cancelled.append((job, sample))
            self._changed.notify()

    def aside(self, work: Callable[[Session], _T]) -> Future[_T]:
        """Do something else with the session, between two steps."""
        done: Future[_T] = Future()
        with self._changed:
            if self._ended:
                raise Refusal(503, "the server is stopping", headers={"Retry-After": "5"})
            self._asides.append((work, done))
            self._changed.notify()
        return done

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended:
            try:
                with self._engine.session(self._prefixes) as session:
                    self._serve(session)
            except Exception as error:  # of a step: whoever took part is told, and the next ones get a new session
                _log.exception("the engine failed")
                told = error if isinstance(error, AccordError) else Refusal(500, "the engine failed; the log says why")
                self._fail([*self._live.values()], told)
        with self._changed:
            waiting = [self._queue.pop() for _ in range(len(self._queue))]
            asides, self._asides = [*self._asides], deque()
        stopped = Refusal(503, "the server is stopping", headers={"Retry-After": "5"})
        self._fail([*self._live.values(), *waiting], stopped)
        for _, done in asides:
            done.set_exception(stopped)

    def _serve(self, session: Session) -> None:
        while self._await_work(session):
            self._leave(session)
            self._enter(session)
            self._do_asides(session)
            if session.busy:
                self._hand_out(session.step())

    def _await_work(self, session: Session) -> bool:
        """Sleep until there is something to do; False where it is to end."""
        with self._changed:
            while not (self._ended or session.busy or self._queue or self._cancelled or self._asides):
                self._changed.wait()
            return not self._ended

    def _leave(self, session: Session) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            for job, sample in cancelled:
                if job.name not in self._live:
                    if sample is None:
                        self._queue.remove(job)
                    continue
                for k in range(job.sampling.samples_per_prompt) if sample is None else (sample,):
                    session.cancel(job.name, k)

    def _enter(self, session: Session) -> None:
        """Let waiting jobs in: at once where all fit, else when enough rows are free to make a pass worth it."""
        with self._changed:
            free = session.free
            if not self._queue or (session.busy and len(self._queue) > free < self._engine.max_rows // REFILL_SHARE):
                return
            entering: list[Job] = []
            while self._queue and free > 0:
                entering.append(self._queue.pop())
                free -= entering[-1].sampling.samples_per_prompt
        for job in entering:
            try:
                session.submit(job.name, job.ids, job.sampling, seed=job.seed, place=0)
            except AccordError as error:
                self._fail([job], error)
                continue
            self._live[job.name] = job
            self._measures.count("accord_prompt_tokens_total", len(job.ids))

    def _do_asides(self, session: Session) -> None:
        while self._asides:
            work, done = self._asides.popleft()
            try:
                done.set_result(work(session))
            except Exception as error:
                done.set_exception(error)

    def _hand_out(self, tokens: list[Token]) -> None:
        now, by_job = time.monotonic(), defaultdict[int, list[Token]](list)
        for token in tokens:
            by_job[token.prompt_index].append(token)
        batches: list[tuple[Job, Arrival]] = []
        for name, drawn in by_job.items():
            job = self._live[name]
            if not job.started:
                job.started = True
                self._measures.observe("accord_first_token_seconds", now - job.since)
            ended = [token.sample.finish for token in drawn if token.sample is not None]
            job.left -= len(ended)
            for finish in ended:
                self._measures.count("accord_completions_total", reason=finish)
            if not job.left:
                del self._live[name]
                self._seconds += 0.1 * (now - job.since - self._seconds)
                self._measures.observe("accord_request_seconds", now - job.since)
            batches.append((job, drawn))
        self._measures.count("accord_completion_tokens_total", sum(token.token is not None for token in tokens))
        _deliver(batches)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in jobs:
            self._live.pop(job.name, None)
        _deliver([(job, error) for job in jobs])


def _deliver(batches: list[tuple[Job, Arrival]]) -> None:
    """Put what there is for each loop into its inboxes, by one call into its thread."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[Job, Arrival]]] = defaultdict(list)
    for job, batch in batches:
        by_loop[job.loop].append((job, batch))
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_fill, mine)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            continue


def _fill(batches: list[tuple[Job, Arrival]]) -> None:
    for job, batch in batches:
        job.inbox.put_nowait((job, batch))


async def batches_of(jobs: list[Job], patience: float) -> AsyncIterator[tuple[Job, list[Token]] | None]:
    """Yield what comes for jobs that share an inbox, until all have ended; None where nothing came for so long.

    Raises what ended one of them.
    """
    inbox, left = jobs[0].inbox, sum(job.sampling.samples_per_prompt for job in jobs)
    while left:
        try:
            job, batch = inbox.get_nowait() if not inbox.empty() else await asyncio.wait_for(inbox.get(), patience)
        except TimeoutError:
            yield None
            continue
        if isinstance(batch, Exception):
            raise batch
        left -= sum(token.sample is not None for token in batch)
        yield job, batch
