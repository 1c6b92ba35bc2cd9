"""What the front asks about the bytes of large messages, and how it counts those of a stream.

A message counts from when it was read until its call has ended; of a stream, until it is answered.
Small ones do not: each call has less than `LARGE` bytes inside that are not counted, so the most
calls that may be inside have a gigabyte of them together, and a lone small call pays nothing.
"""

from __future__ import annotations

import threading
from typing import Protocol

import grpc

# Messages from this size on are counted, and parsed in a thread: that takes milliseconds.
LARGE = 256 * 1024


class Budget(Protocol):
    """What bounds the bytes inside; asked from any thread."""

    @property
    def crowded(self) -> bool:
        """Whether so much is inside that streams are not to be read for now."""

    def take(self, size: int, client: str) -> grpc.Status | None:
        """Count so many bytes; where there is no room for them, return what they are refused with.

        Args:
            size: bytes of messages that were read.
            client: whose they are, which is held to its share; "" is nobody.
        """

    def give_back(self, size: int, client: str) -> None:
        """Count so many bytes less."""


class _Unbounded:
    """Room for all that comes."""

    crowded = False

    def take(self, size: int, client: str) -> None:
        pass

    def give_back(self, size: int, client: str) -> None:
        pass


UNBOUNDED: Budget = _Unbounded()


class StreamBytes:
    """The bytes of one stream's messages that are inside, counted in steps of `LARGE`.

    Most messages of a stream are small and many: only every so many of them ask the budget, and
    the others pay some tenths of a microsecond. All are nobody's: a stream is not read while the
    budget is crowded, so no share is to be refused.

    Args:
        budget: of all calls.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        # Each of these two has one owner, who reads and who answers: so they need no lock.
        self._read = 0
        self._answered = 0
        self._lock = threading.Lock()
        self._counted = 0
        self.asks = True  # whether the message before asked the budget, or there was none

    def take(self, size: int) -> grpc.Status | None:
        """Count a message that was read; return what it is refused with where there is no room."""
        self._read += size
        more = self._read - self._answered - self._counted
        self.asks = more >= LARGE
        if not self.asks:
            return None
        refusal = self._budget.take(more, "")
        if refusal is not None:
            self._read -= size
            return refusal
        with self._lock:
            self._counted += more
        return None

    def give_back(self, size: int) -> None:
        """Count a message less, which was answered."""
        self._answered += size
        if self._counted + self._answered - self._read < LARGE:
            return
        with self._lock:
            # What comes after the stream's end was given back by it.
            less = min(self._counted, self._counted + self._answered - self._read)
            self._counted -= less
        if less:
            self._budget.give_back(less, "")

    def end(self) -> None:
        """Give back all that is left."""
        with self._lock:
            less, self._counted = self._counted, 0
        if less:
            self._budget.give_back(less, "")
