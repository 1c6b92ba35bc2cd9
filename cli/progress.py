"""A line about what takes longer than two seconds, on a terminal only.

`Progress` counts items; `Working` says how long a step of unknown length has taken. Both rewrite
one line on standard error, by a thread of their own, so that the line lives while a call waits for
its answer; and both take it away at the end. In a pipe or a log nothing is written, except what
`say` is given.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

_QUIET, _INTERVAL, _WIDTH = 2.0, 0.5, 24  # seconds, seconds, characters


class _Line:
    """One line that is rewritten every half second, from two seconds on."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._start = time.monotonic()
        self._drawn = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._thread = threading.Thread(target=self._redraw, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
        self._clear()

    def say(self, text: str) -> None:
        """Print a line of its own on standard error, terminal or not."""
        with self._lock:
            self._clear()
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def text(self, elapsed: float) -> str:
        """Return what the line says after so many seconds."""
        raise NotImplementedError

    def _redraw(self) -> None:
        wait = _QUIET
        while not self._ended.wait(wait):
            wait = _INTERVAL
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            text = self.text(time.monotonic() - self._start)
            self._stream.write(f"\r\x1b[K{text[: _columns(self._stream) - 1]}")
            self._stream.flush()
            self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


class Progress(_Line):
    """Counts items done.

    Args:
        total: how many there are; 0 where it is learnt later.
        what: their name, such as "pictures".
        stream: where to write, standard error by default.
    """

    def __init__(self, total: int, what: str, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._total, self._what = total, what
        self._done = 0

    def reach(self, done: int, total: int) -> None:
        """Say how many are done by now, of how many: for who learns the total late."""
        self._done, self._total = done, total

    def advance(self, count: int) -> None:
        """Count some more as done."""
        self._done += count

    def text(self, elapsed: float) -> str:
        """Return the bar, the counts, the rate and the time left."""
        done, total = self._done, self._total
        if not done:
            return f"working on {total or 'the'} {self._what} … {elapsed:.0f} s"
        filled = min(_WIDTH * done // max(total, 1), _WIDTH)
        left = elapsed / done * max(total - done, 0)
        return (
            f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done:,}/{total:,} {self._what}, "
            f"{done / elapsed:,.0f}/s, {left:.0f} s left"
        )


class Working(_Line):
    """Says what is being done and for how long, where nobody can tell how much is left.

    Args:
        what: such as "loading the model".
        stream: where to write, standard error by default.
    """

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._what = what

    def stage(self, what: str) -> None:
        """Begin another step: a line of its own, and the seconds start anew."""
        self.say(f"{what} …")
        self._what, self._start = what, time.monotonic()

    def text(self, elapsed: float) -> str:
        """Return the step and its seconds."""
        return f"{self._what} … {elapsed:.0f} s"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
