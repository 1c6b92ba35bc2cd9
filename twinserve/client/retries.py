"""When a call is made again: a policy that knows no connection, and the attempts of one call.

UNAVAILABLE is tried again with a growing pause, RESOURCE_EXHAUSTED after the delay that the server
names in its RetryInfo, nothing else. All attempts share one deadline; nobody sleeps here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from twinserve.errors import Exhausted, TwinserveError, Unavailable

# Of an error, the attempts so far and the seconds since the first: seconds to wait, or None.
Pause = Callable[[TwinserveError, int, float], float | None]


@dataclass(frozen=True)
class RetryPolicy:
    """Which errors are worth another attempt, and after how long.

    Args:
        unavailable_for: seconds for which a server that cannot be reached is tried again.
        first_pause: seconds before the second attempt; each one after waits twice as long.
        longest_pause: seconds that the pauses grow to.
        jitter: a number between its two arguments, by which a pause is multiplied.
    """

    unavailable_for: float
    first_pause: float = 0.05
    longest_pause: float = 2.0
    jitter: Callable[[float, float], float] = random.uniform

    def pause(self, error: TwinserveError, attempt: int, elapsed: float) -> float | None:
        """Return the seconds to wait before the next attempt; None where there is to be none."""
        if isinstance(error, Unavailable):
            if elapsed >= self.unavailable_for:
                return None
            # The exponent is bounded: a server may be away for days.
            pause = min(self.first_pause * 2.0 ** min(attempt, 30), self.longest_pause)
            # Clients that lost the same server must not come back in step.
            return max(error.retry_after or 0.0, pause * self.jitter(0.5, 1.0))
        # Without a delay from the server, "exhausted" (a message too large, say) will not pass.
        return error.retry_after if isinstance(error, Exhausted) else None


class Attempts:
    """The attempts of one call, or of one message of a stream, under their common deadline."""

    def __init__(self, pause: Pause, seconds: float) -> None:
        self.seconds = seconds
        self._pause = pause
        self.restart()

    def restart(self) -> None:
        """Begin anew: an answer came, and the next one has the whole time again."""
        self._number = 0
        self._since = time.monotonic()

    def remaining(self) -> float:
        """Return the seconds left, of which gRPC wants a few."""
        return max(self._since + self.seconds - time.monotonic(), 0.001)

    def pause_after(self, error: TwinserveError) -> float | None:
        """Return the seconds to wait before the next attempt, or None to give up."""
        elapsed = time.monotonic() - self._since
        pause = self._pause(error, self._number, elapsed)
        # A pause past the deadline would only hide the reason behind DEADLINE_EXCEEDED.
        if pause is None or elapsed + pause >= self.seconds:
            return None
        self._number += 1
        return pause
