"""Work that the thread which reads calls puts off until it has read all that came.

A net that is nearly free costs less than it costs to hand its rows to another thread and its
results back: each hand-over waits for the interpreter's lock, up to 5 ms. So the thread that reads
the calls carries out such runs itself, once there is nothing left to read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

# Told whether nothing is left to read; says whether it is done. If not, it is asked again.
Work = Callable[[bool], bool]


class Afterwards:
    """What is put off; all but `put` belongs to one thread, which is the one that it is put off by.

    A thread that nobody made it belong to puts nothing off.
    """

    def __init__(self) -> None:
        self._thread: int | None = None
        self._works: list[Work] = []

    @property
    def waiting(self) -> bool:
        """Whether anything is put off."""
        return bool(self._works)

    def belong_here(self) -> None:
        """Make it this thread's, which calls `run` whenever it has read something."""
        self._thread = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether this is the thread that may put work off."""
        return threading.get_ident() == self._thread

    def put(self, work: Work) -> bool:
        """Put work off until the next `run`; False in any other thread, which does it itself."""
        if not self.is_here:
            return False
        self._works.append(work)
        return True

    def run(self, nothing_left: bool) -> None:
        """Do what was put off; what comes of it waits for the next time.

        Args:
            nothing_left: whether all that came was read.
        """
        works, self._works = self._works, []
        for work in works:
            try:
                done = work(nothing_left)
            except Exception:
                log.exception("work that was put off failed")
                continue
            if not done:
                self._works.append(work)
