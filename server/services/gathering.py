"""Calls that wait for a thread go together: whoever comes while all are busy rides with the next.

The same thought as the models' batching: nobody waits for company, but what has come meanwhile is
worked on at once. A search of one probe costs a dozen steps of Python around some tens of
microseconds in the index; of sixteen that came together each costs a sixteenth of these steps.

Asks with equal keys may go together. Any thread asks, threads of an executor run, and they go on
with whoever waited. What is quick is run by the thread that reads the calls, once it has read all
that came (server/afterwards.py): the two hand-overs would cost more than the run.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from twinserve.errors import InternalFault, TwinserveError
from twinserve.server.afterwards import Afterwards
from twinserve.server.completion import Completion

log = logging.getLogger(__name__)

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
# Answers asks in order, each with an answer or the error that it ends with.
Run = Callable[[Sequence[Ask]], Sequence[Answer | Exception]]


MOST_HERE = 16  # weight of one run in the thread that reads the calls
PATIENCE = 4  # times that a run there lets others be read first


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Ask, Answer]):
    ask: Ask
    weight: int
    run: Run[Ask, Answer]
    completion: Completion[Answer]


_Queues = OrderedDict[Hashable, deque[_Waiting[Ask, Answer]]]


class Gathering(Generic[Ask, Answer]):
    """Runs asks on at most `runners` threads, up to a weight of `most` at a time.

    Asks of one key run on one thread: two would each take half of what waits, and their Python
    would wait for each other all the same.
    """

    def __init__(
        self, executor: Executor, runners: int, most: int, afterwards: Afterwards | None = None
    ) -> None:
        self._executor = executor
        self._runners = runners
        self._most = most
        self._here = _Here[Ask, Answer](afterwards or Afterwards())
        self._lock = threading.Lock()  # held for moments
        self._running: set[Hashable] = set()
        self._waiting: _Queues[Ask, Answer] = OrderedDict()

    def ask(
        self,
        key: Hashable,
        ask: Ask,
        weight: int,
        run: Run[Ask, Answer],
        *,
        is_quick: bool = False,
    ) -> Completion[Answer]:
        """Have `ask` answered, by the `run` of whoever of its key came first.

        Args:
            key: asks with an equal one may go together.
            ask: what is asked.
            weight: of it in a run.
            run: answers asks.
            is_quick: it takes a few milliseconds at most and waits for nothing.

        Raises:
            RuntimeError: the executor was shut down.
        """
        waiting = _Waiting(ask, weight, run, Completion[Answer]())
        if is_quick and self._here.takes(key, waiting):
            return waiting.completion
        with self._lock:
            self._waiting.setdefault(key, deque()).append(waiting)
            start = len(self._running) < self._runners and key not in self._running
            if start:
                self._running.add(key)
        if start:
            try:
                self._executor.submit(self._work, key)
            except RuntimeError:  # the executor was shut down
                with self._lock:
                    self._running.discard(key)
                raise
        return waiting.completion

    def _work(self, key: Hashable) -> None:
        """Run until nothing waits, beginning with `key`; a thread of the executor."""
        while taken := self._take(key):
            key, group = taken
            _run(group)
            with self._lock:
                key = self._next(key)

    def _next(self, key: Hashable) -> Hashable:
        """Leave a key for the first that waits and is not run; itself, where there is none."""
        self._running.discard(key)
        found = next((other for other in self._waiting if other not in self._running), key)
        self._running.add(found)
        return found

    def _take(self, key: Hashable) -> tuple[Hashable, list[_Waiting[Ask, Answer]]] | None:
        """The next group of a key, or of another where all of it was given up, with its key.

        None, and one runner less, where nothing waits.
        """
        with self._lock:
            while True:
                if group := _taken(self._waiting, key, self._most):
                    return key, group
                following = self._next(key)
                if following not in self._waiting:
                    self._running.discard(following)
                    return None
                key = following


class _Here(Generic[Ask, Answer]):
    """What is run by the thread that reads the calls; belongs to that thread."""

    def __init__(self, afterwards: Afterwards) -> None:
        self._afterwards = afterwards
        self._waiting: _Queues[Ask, Answer] = OrderedDict()
        self._weight = 0  # that came since the last run
        self._asked = 0  # how often it let others be read first

    def takes(self, key: Hashable, waiting: _Waiting[Ask, Answer]) -> bool:
        """Have it run here; False in any other thread."""
        if not self._afterwards.is_here:
            return False
        if not self._waiting:
            self._afterwards.put(self._go)
        self._waiting.setdefault(key, deque()).append(waiting)
        self._weight += waiting.weight
        return True

    def _go(self, nothing_left: bool) -> bool:
        """Run what of one key waits, or let more come; see `Afterwards`."""
        self._asked += 1
        if not nothing_left and self._weight < MOST_HERE and self._asked <= PATIENCE:
            return False
        self._asked = self._weight = 0
        if group := _taken(self._waiting, next(iter(self._waiting)), MOST_HERE):
            _run(group)
        return not self._waiting


def _taken(waiting: _Queues[Ask, Answer], key: Hashable, most: int) -> list[_Waiting[Ask, Answer]]:
    """Take the first of a key that nobody gave up, of a weight of `most` together, or one."""
    queue = waiting.get(key, deque())
    group: list[_Waiting[Ask, Answer]] = []
    weight = 0
    while queue and (not group or weight + queue[0].weight <= most):
        first = queue.popleft()
        if not first.completion.done:  # else given up
            group.append(first)
            weight += first.weight
    if queue:
        waiting.move_to_end(key)  # others have their turn
    else:
        waiting.pop(key, None)
    return group


def _run(group: Sequence[_Waiting[Ask, Answer]]) -> None:
    """Answer a group, and go on with who waits for it."""
    asks = [waiting.ask for waiting in group]
    try:
        answers = group[0].run(asks)
    except Exception as error:
        if len(group) > 1 and not isinstance(error, TwinserveError):
            log.exception("a run of %d calls failed", len(group))
        answers = [_again(error, alone=len(group) == 1) for _ in group]
    for waiting, answer in zip(group, answers, strict=True):
        if isinstance(answer, Exception):
            waiting.completion.set_error(answer)
        else:
            waiting.completion.set_result(answer)


def _again(error: Exception, *, alone: bool) -> Exception:
    """An error of all for one of them: an exception belongs to one who raises it."""
    if alone:
        return error
    if isinstance(error, TwinserveError):
        return error.again()
    return InternalFault("the call failed inside the server; its log says why")
