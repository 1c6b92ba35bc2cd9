"""A progress line for what takes longer than two seconds, on a terminal only."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_QUIET, _INTERVAL, _WIDTH = 2.0, 0.2, 24  # seconds, seconds, characters


class Progress:
    """Counts items done, and rewrites one line on standard error.

    Args:
        total: how many there are.
        what: their name, such as "pictures".
        stream: where to write; nothing is written unless it is a terminal.
    """

    def __init__(self, total: int, what: str, stream: TextIO | None = None) -> None:
        self._total, self._what = total, what
        self._stream = sys.stderr if stream is None else stream
        self._done = 0
        self._start = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def reach(self, done: int, total: int) -> None:
        """Say how many are done by now, of how many: for who learns the total late."""
        self._total = total
        self.advance(done - self._done)

    def advance(self, count: int) -> None:
        """Count some more as done."""
        self._done += count
        now = time.monotonic()
        elapsed = now - self._start
        if elapsed < _QUIET or now - self._drawn < _INTERVAL or not self._stream.isatty():
            return
        self._drawn = now
        filled = _WIDTH * self._done // max(self._total, 1)
        left = elapsed / max(self._done, 1) * (self._total - self._done)
        self._stream.write(
            f"\r\x1b[K[{'#' * filled}{'.' * (_WIDTH - filled)}] {self._done}/{self._total} "
            f"{self._what}, {self._done / elapsed:.0f}/s, {left:.0f} s left"
        )
        self._stream.flush()
