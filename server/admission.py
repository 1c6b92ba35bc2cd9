"""The one door: how many rows may be inside the server at a time.

A row counts while it is decoded, queued and run, and again as a probe while it is searched for, so
that nothing can pile up in a stage that no bound covers (enrolments wait in the gallery's writer,
which has a bound of its own). The queue itself never refuses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twinserve.errors import QueueFull


class Admission:
    """Rows admitted and not yet answered, bounded.

    Args:
        max_rows: the bound.
        seconds_per_row: what a row has cost lately, to tell refused callers when to come again.
    """

    def __init__(self, max_rows: int, seconds_per_row: Callable[[], float]) -> None:
        self._max_rows = max_rows
        self._seconds_per_row = seconds_per_row
        self._lock = threading.Lock()
        self.rows = 0

    @contextmanager
    def admit(self, rows: int) -> Iterator[None]:
        """Hold `rows` places while the block runs.

        Raises:
            QueueFull: with the time in which the rows inside should be done.
        """
        with self._lock:
            held = self.rows
            if held + rows <= self._max_rows:
                self.rows += rows
        if held + rows > self._max_rows:
            wait = min(max(held * self._seconds_per_row(), 0.01), 30.0)
            raise QueueFull(
                f"{held} rows are waiting or running and the limit is {self._max_rows}, so "
                f"{rows} more are refused; retry in {wait:.2f} s or send fewer at a time",
                retry_after=wait,
                metadata={"limit": str(self._max_rows), "value": str(held + rows)},
            )
        try:
            yield
        finally:
            with self._lock:
                self.rows -= rows
