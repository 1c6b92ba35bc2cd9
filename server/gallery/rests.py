"""The clock of a background thread, and its rests, which end at once when the thread is to stop.

Apart from the threads, so that a test can pass in time that it moves itself.
"""

from __future__ import annotations

import threading
import time


class Rests:
    """Real time."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def rest(self, seconds: float) -> bool:
        """Let so much time pass; False, and at once, where the thread is to stop."""
        return not self._stop.wait(seconds)

    def stop(self) -> None:
        """End the rest that is under way, and all that come."""
        self._stop.set()
