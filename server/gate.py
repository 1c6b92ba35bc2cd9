"""The gate of a server that stops: calls inside finish, calls that come are sent elsewhere.

grpc's own stop cancels a call that arrives in the same moment, which a client cannot tell from its
own cancelling. So the gate closes first and refuses with UNAVAILABLE while the calls inside finish
and the callers notice; only then is the transport stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from twinserve.errors import Unavailable

# Callers have noticed once none has come for QUIET seconds; MOST is how long we wait for that.
QUIET, MOST = 0.1, 2.0


class Gate:
    """Counts the calls inside, and closes."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._refused = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside while the block runs.

        Raises:
            Unavailable: the gate is closed.
        """
        if self._closed:
            self._refused.set()
            raise Unavailable(
                "the server is stopping and takes no new calls; send it to another, or retry here "
                "once it is back",
                retry_after=1.0,
            )
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self, patience: float) -> int:
        """Refuse from now on, and wait up to `patience` seconds for the calls inside.

        Returns:
            The calls that are still inside.
        """
        self._closed = True
        try:
            await asyncio.wait_for(self._empty.wait(), patience)
        except TimeoutError:
            return self._inside
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(MOST, patience)):
                while await self._refused_within(QUIET):
                    pass
        return 0

    async def _refused_within(self, seconds: float) -> bool:
        self._refused.clear()
        try:
            await asyncio.wait_for(self._refused.wait(), seconds)
        except TimeoutError:
            return False
        return True
