"""Calls that wait for a thread go together: whoever comes while all are busy rides with the next.

The same thought as the models' batching: nobody waits for company, but what has come meanwhile is
worked on at once. A search of one probe costs a dozen steps of Python around some tens of
microseconds in the index; of sixteen that came together each costs a sixteenth of these steps.

Asks with equal keys may go together. One event loop asks, threads of an executor run.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from twinserve.errors import InternalFault, TwinserveError

log = logging.getLogger(__name__)

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
# Answers asks in order, each with an answer or the error that it ends with.
Run = Callable[[Sequence[Ask]], Sequence[Answer | Exception]]


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Ask, Answer]):
    ask: Ask
    weight: int
    run: Run[Ask, Answer]
    future: asyncio.Future[Answer]


class Gathering(Generic[Ask, Answer]):
    """Runs asks on at most `runners` threads, up to a weight of `most` at a time.

    Asks of one key run on one thread: two would each take half of what waits, and their Python
    would wait for each other all the same.
    """

    def __init__(self, executor: Executor, runners: int, most: int) -> None:
        self._executor = executor
        self._runners = runners
        self._most = most
        self._lock = threading.Lock()  # held for moments
        self._running: set[Hashable] = set()
        self._waiting: OrderedDict[Hashable, deque[_Waiting[Ask, Answer]]] = OrderedDict()

    async def ask(self, key: Hashable, ask: Ask, weight: int, run: Run[Ask, Answer]) -> Answer:
        """Have `ask` answered, by the `run` of whoever of its key came first."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        waiting = _Waiting(ask, weight, run, future)
        with self._lock:
            self._waiting.setdefault(key, deque()).append(waiting)
            start = len(self._running) < self._runners and key not in self._running
            if start:
                self._running.add(key)
        if start:
            try:
                self._executor.submit(self._work, loop, key)
            except RuntimeError:  # the executor was shut down
                with self._lock:
                    self._running.discard(key)
                raise
        return await future

    def _work(self, loop: asyncio.AbstractEventLoop, key: Hashable) -> None:
        """Run until nothing waits, beginning with `key`; a thread of the executor."""
        while group := self._take(key):
            asks = [waiting.ask for waiting in group]
            try:
                answers = group[0].run(asks)
            except Exception as error:
                if len(group) > 1 and not isinstance(error, TwinserveError):
                    log.exception("a run of %d calls failed", len(group))
                answers = [_again(error, alone=len(group) == 1) for _ in group]
            with self._lock:
                key = self._next(key)
            try:
                loop.call_soon_threadsafe(_deliver, group, answers)
            except RuntimeError:  # the loop is closed: nobody waits
                continue

    def _next(self, key: Hashable) -> Hashable:
        """Leave a key for the first that waits and is not run; itself, where there is none."""
        self._running.discard(key)
        found = next((other for other in self._waiting if other not in self._running), key)
        self._running.add(found)
        return found

    def _take(self, key: Hashable) -> list[_Waiting[Ask, Answer]]:
        """The next group of a key; empty, and one runner less, where nothing of it waits."""
        with self._lock:
            while True:
                queue = self._waiting.get(key, deque())
                group: list[_Waiting[Ask, Answer]] = []
                weight = 0
                while queue and (not group or weight + queue[0].weight <= self._most):
                    waiting = queue.popleft()
                    if not waiting.future.cancelled():
                        group.append(waiting)
                        weight += waiting.weight
                if queue:
                    self._waiting.move_to_end(key)  # others have their turn
                else:
                    self._waiting.pop(key, None)
                if group:
                    return group
                following = self._next(key)
                if following not in self._waiting:
                    self._running.discard(following)
                    return []
                key = following


def _again(error: Exception, *, alone: bool) -> Exception:
    """An error of all for one of them: an exception belongs to one who raises it."""
    if alone:
        return error
    if isinstance(error, TwinserveError):
        return error.again()
    return InternalFault("the call failed inside the server; its log says why")


def _deliver(group: Sequence[_Waiting[Ask, Answer]], answers: Sequence[Answer | Exception]) -> None:
    for waiting, answer in zip(group, answers, strict=True):
        if waiting.future.done():  # given up meanwhile
            continue
        if isinstance(answer, Exception):
            waiting.future.set_exception(answer)
        else:
            waiting.future.set_result(answer)
