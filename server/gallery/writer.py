"""The one thread that writes: it gathers what waits and hands each gallery its share at once.

One per data folder, since a disk has one queue of fsyncs: whatever arrives while a commit is on
its way to the disk shares the next commit. It knows neither stores nor indexes; a gallery says
what a group of its jobs means.
"""

from __future__ import annotations

import collections
import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from twinserve.errors import InternalFault, QueueFull, Unavailable

GROUP_ROWS = 16_384  # more than this would make the first of the group wait for the last
IDLE_SECONDS = 1.0
RETRY_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class Job:
    """Something for the writing thread; `rows` is its weight, `work` what the owner understands."""

    rows: int
    work: Any
    future: Future[Any]
    submitted: float = field(default_factory=time.monotonic)


class Owner(Protocol):
    """Who understands jobs."""

    def write(self, jobs: Sequence[Job]) -> None:
        """Do them in order and resolve each future; only the writing thread calls this."""
        ...

    def idle(self) -> None:
        """Nothing waits: a moment for chores."""
        ...


class Writer:
    """A queue of (owner, job) and its thread."""

    def __init__(self, max_waiting_rows: int) -> None:
        self._max_waiting_rows = max_waiting_rows
        self._waiting: collections.deque[tuple[Owner, Job]] = collections.deque()
        self._rows = 0
        self._writing: list[Job] = []  # taken, and not yet known to be on disk
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gallery-writer", daemon=True)
        self._thread.start()

    @property
    def lag(self) -> float:
        """Seconds since the oldest job with rows was submitted that is not on disk; 0 if none."""
        with self._changed:
            # Jobs are written in the order of submission, so the first of each is the oldest.
            jobs = itertools.chain(self._writing, (job for _, job in self._waiting))
            oldest = next((job for job in jobs if job.rows and not job.future.done()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.submitted

    @property
    def waiting_rows(self) -> int:
        """Rows of jobs that the thread has not taken yet."""
        return self._rows

    def submit(self, owner: Owner, work: Any, *, rows: int = 0) -> Future[Any]:
        """Queue a job. Jobs of one owner are done in the order of submission.

        Raises:
            QueueFull: more rows wait than may.
            Unavailable: the server is stopping.
        """
        job = Job(rows, work, Future())
        with self._changed:
            if self._stopping:
                raise Unavailable("the server is stopping; try again on another one")
            if rows and self._rows and self._rows + rows > self._max_waiting_rows:
                raise QueueFull(
                    f"{self._rows} rows wait to be written, and at most "
                    f"{self._max_waiting_rows} may; slow down and try again",
                    retry_after=RETRY_SECONDS,
                )
            self._rows += rows
            self._waiting.append((owner, job))
            self._changed.notify()
        return job.future

    def call(self, function: Callable[[], None]) -> Future[Any]:
        """Queue a plain call, behind everything that waits."""
        return self.submit(_Caller(function), None)

    def close(self) -> None:
        """Refuse new jobs, finish those that wait, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        recent: dict[Hashable, Owner] = {}
        while self._turn(recent):
            pass

    def _turn(self, recent: dict[Hashable, Owner]) -> bool:
        """Write what waits, or tidy up; False at the end.

        A function of its own, so that nothing holds on to a deleted gallery while nothing waits.
        """
        with self._changed:
            if not self._waiting and not self._stopping:
                self._changed.wait(IDLE_SECONDS if recent else None)
            group = self._take()
            if not group and self._stopping:
                return False
        if not group:
            for owner in recent.values():
                owner.idle()
            recent.clear()
        for owner, jobs in group:
            recent[id(owner)] = owner
            _write(owner, jobs)
        self._writing = []
        return True

    def _take(self) -> list[tuple[Owner, list[Job]]]:
        rows = 0
        group: dict[int, tuple[Owner, list[Job]]] = {}
        while self._waiting and (rows == 0 or rows + self._waiting[0][1].rows <= GROUP_ROWS):
            owner, job = self._waiting.popleft()
            rows += job.rows
            group.setdefault(id(owner), (owner, []))[1].append(job)
            self._writing.append(job)
        self._rows -= rows
        return list(group.values())


def _write(owner: Owner, jobs: Sequence[Job]) -> None:
    try:
        owner.write(jobs)
    except Exception:  # a bug of ours must not stop all writing for good
        logging.getLogger(__name__).exception("writing failed")
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(
                    InternalFault("the write failed; the server's log says where")
                )


class _Caller:
    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def write(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                try:
                    self._function()
                except Exception as error:
                    job.future.set_exception(error)
                else:
                    job.future.set_result(None)

    def idle(self) -> None:
        return None
