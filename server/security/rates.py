"""A rate with a burst: the token bucket.

A bucket holds `burst` tokens and gains `rate` of them a second; a call takes one. Who takes none
for a while may make `burst` calls at once, and over any longer time no more than `rate` a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Allows so many calls a second; any thread may ask.

    Args:
        rate: calls a second, above 0.
        burst: calls at once, at least 1.
        clock: seconds, monotonic.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._tokens = burst
        self._since = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token and return 0; where there is none, return the seconds until there is."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self.burst, self._tokens + (now - self._since) * self.rate)
            self._since = now
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return 0.0
            return (1.0 - self._tokens) / self.rate
