"""The gate of a server that stops: calls inside finish, calls that come are sent elsewhere.

grpc's own stop cancels a call that arrives in the same moment, which a client cannot tell from its
own cancelling. So the gate closes first and refuses with UNAVAILABLE while the calls inside finish
and the callers notice; only then is the transport stopped. Calls pass in any thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from twinserve.errors import Unavailable

# Callers have noticed once none has come for QUIET seconds; MOST is how long we wait for that.
QUIET, MOST = 0.1, 2.0


def stopping() -> Unavailable:
    """Return what a call is refused with once the gate is closed."""
    return Unavailable(
        "the server is stopping and takes no new calls; send it to another, or retry here once it "
        "is back",
        retry_after=1.0,
    )


class Gate:
    """Counts the calls inside, and closes; `with gate.enter():` is inside."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._refused = 0
        self._changed = threading.Condition(threading.Lock())
        self._watchers: set[Callable[[], None]] = set()

    @property
    def inside(self) -> int:
        """How many calls there are."""
        return self._inside

    def enter(self) -> Gate:
        """Be inside while the block runs; entering itself is what may raise.

        Raises:
            Unavailable: the gate is closed.
        """
        return self

    def __enter__(self) -> None:
        with self._changed:
            if not self._closed:
                self._inside += 1
                return
            self._refused += 1
            self._changed.notify_all()
        raise stopping()

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    def watch(self, closing: Callable[[], None]) -> bool:
        """Have `closing` called when the gate closes, until `unwatch`; False where it is closed.

        Calls of many messages end by it: they enter for each message.
        """
        with self._changed:
            if not self._closed:
                self._watchers.add(closing)
            return not self._closed

    def unwatch(self, closing: Callable[[], None]) -> None:
        """Undo `watch`."""
        with self._changed:
            self._watchers.discard(closing)

    async def close(self, patience: float) -> int:
        """Refuse from now on, and wait up to `patience` seconds for the calls inside.

        Returns:
            The calls that are still inside.
        """
        with self._changed:
            self._closed = True
            watchers, self._watchers = self._watchers, set()
        for closing in watchers:
            closing()
        return await asyncio.to_thread(self._wait, patience)

    def _wait(self, patience: float) -> int:
        with self._changed:
            if not self._changed.wait_for(lambda: not self._inside, patience):
                return self._inside
            until = time.monotonic() + min(MOST, patience)
            seen = -1
            while seen != self._refused and time.monotonic() < until:
                seen = self._refused
                self._changed.wait_for(lambda seen=seen: self._refused != seen, QUIET)  # type: ignore[misc]
            return 0
