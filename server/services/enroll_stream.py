"""EnrollStream: requests embed side by side, reach the disk in the order in which they came.

    window of the unanswered (embedding_stream.py) ─► embed ─► its turn ─► the gallery's writer

Several requests are under way, so that their embedding fills batches and their commits share one
flush to disk. Each waits for its turn before it is queued for the disk: of two requests that name
one item, the later one stands. What Enroll is refused with for want of room, a stream waits for,
and while it does, its window fills and nothing more is read. A request that fails as a whole ends
the stream, after the answers of those before it, and none whose turn has not come yet is enrolled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from google.rpc import status_pb2

from twinserve.errors import Exhausted, Unavailable
from twinserve.server.front import Call
from twinserve.server.services import auditing
from twinserve.server.services.calls import Encoded, Serving, abort, answered
from twinserve.server.services.embedding_stream import Window
from twinserve.server.services.status import status_of
from twinserve.v1 import gallery_service_pb2 as pb

Result = TypeVar("Result")

# The unanswered requests of one stream: enough for every commit to have some that wait for it.
REQUESTS, BYTES = 8, 16 << 20
# The longest that a request waits before it asks again for room, in seconds.
PAUSE = 0.25


class Place:
    """One request's place in its stream; `async with place:` is its turn to be queued.

    Args:
        before: the place of the request before it; None for the first.
        deadline: a point of time.monotonic until which the stream's answers are of use.
    """

    def __init__(self, before: Place | None = None, deadline: float | None = None) -> None:
        self._before = before
        self._deadline = deadline
        self._over = asyncio.Event()
        self._failed = False

    async def attempt(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do the work as soon as there is room for it.

        Raises:
            Exhausted: there is no room, and would be none before the deadline.
        """
        while True:
            try:
                return await work()
            except Exhausted as error:
                seconds = error.retry_after or PAUSE
                if self._deadline is not None and time.monotonic() + seconds >= self._deadline:
                    raise
            # Outside the handler, whose error would hold what it passed through.
            await asyncio.sleep(min(seconds, PAUSE))

    async def __aenter__(self) -> None:
        before, self._before = self._before, None  # no chain of all places of a long stream
        if before is not None:
            await before._over.wait()
            if before._failed:
                # Its fault ends the stream; nobody is told of this one.
                raise asyncio.CancelledError

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.leave(failed=kind is not None)

    def leave(self, *, failed: bool) -> None:
        """Let the next request have its turn; only the first call counts."""
        if not self._over.is_set():
            self._failed = failed
            self._over.set()


class _Fault(Exception):
    """What a request ended with that ends its stream."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


async def serve(
    servicer: Serving,
    call: Call,
    deadline: float | None,
    enroll: Callable[[pb.EnrollRequest, Place], Coroutine[Any, Any, Encoded]],
) -> None:
    """Answer a stream to its end.

    Args:
        servicer: whose stream it is.
        call: the stream.
        deadline: a point of time.monotonic until which its answers are of use.
        enroll: answers one request, on asyncio's loop, and enters its place.
    """
    last: Place | None = None

    def begin(request: pb.EnrollRequest) -> Coroutine[Any, Any, bytes]:
        nonlocal last
        last = Place(last, deadline)
        return _reply(servicer, call, request, last, enroll)

    window = Window[pb.EnrollRequest](call, begin, servicer.gate, REQUESTS, BYTES)
    try:
        await window.run()
    except _Fault as fault:
        await abort(call, fault.status)
    except Unavailable as error:
        await abort(call, status_of(error))


async def _reply(
    servicer: Serving,
    call: Call,
    request: pb.EnrollRequest,
    place: Place,
    enroll: Callable[[pb.EnrollRequest, Place], Coroutine[Any, Any, Encoded]],
) -> bytes:
    async def on_loop() -> Encoded:
        try:
            return await enroll(request, place)
        finally:
            # Its turn is past by now, unless it failed before.
            place.leave(failed=True)

    async def work() -> Encoded:
        return await call.as_task(on_loop())

    found: Encoded | status_pb2.Status | None = None
    try:
        found = await answered(servicer, "EnrollStream", work(), call, request)
    finally:
        auditing.record("EnrollStream", request, call, found)
    if isinstance(found, status_pb2.Status):
        raise _Fault(found)
    return found.data
