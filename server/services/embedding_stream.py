"""A stream of many messages: each is begun when it is read, and answered in the order of reading.

    read ─► begin ─► window of the unanswered, in order ─► write

The window bounds messages and bytes; while it is full nothing is read, so a client that sends
faster than the models run or its key's rate allows, or does not read its replies, is held back by
gRPC's own flow control and holds nobody up. What is wrong with a message is that message's reply.
When the server stops, nothing more is read, what was read is answered, and the stream ends as
UNAVAILABLE so that the client goes on elsewhere; so it does, as RESOURCE_EXHAUSTED, where the
server has no room for a message's bytes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import grpc

from twinserve.server.completion import Completion, Driven, drive
from twinserve.server.front import Call
from twinserve.server.gate import Gate, stopping

Request = TypeVar("Request")

# The unanswered messages of one stream: two full batches of lone inputs, or so many bytes.
MESSAGES, BYTES = 128, 16 << 20
# Who waits for the rate of its key looks up so often, in seconds: the client may have gone.
LOOK_UP = 0.25


class _Message:
    """One message that was read and is not answered yet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reply: Completion[bytes] = Completion()
        self.running: Driven[bytes] | None = None

    def begin(self, work: Coroutine[Any, Any, bytes]) -> None:
        running = drive(work, self._ended)
        if not self.reply.done:
            self.running = running

    def give_up(self) -> None:
        running, self.running = self.running, None
        if running is not None:
            running.abandon()

    def _ended(self, reply: bytes | None, error: BaseException | None) -> None:
        self.running = None
        if error is not None:
            self.reply.set_error(error)
        else:
            assert reply is not None
            self.reply.set_result(reply)


class Window(Generic[Request]):
    """One stream's messages between reading and writing.

    Args:
        call: the stream.
        answer: from a message to its reply; awaits nothing but completions.
        gate: that closes when the server stops.
        messages: most that are unanswered.
        size: most bytes that they have together; a larger message goes alone.
    """

    def __init__(
        self,
        call: Call,
        answer: Callable[[Request], Coroutine[Any, Any, bytes]],
        gate: Gate,
        messages: int = MESSAGES,
        size: int = BYTES,
    ) -> None:
        self._call = call
        self._answer = answer
        self._gate = gate
        self._most, self._most_bytes = messages, size
        self._lock = threading.Lock()
        self._unanswered: deque[_Message] = deque()
        self._bytes = 0
        self._all_read = False
        self._stopping = False
        self._failed: BaseException | None = None  # what the writer ended with
        # What the reader and the writer wait for: room, and a message.
        self._room: Completion[None] | None = None
        self._more: Completion[None] | None = None

    async def run(self) -> None:
        """Answer the stream to its end.

        Raises:
            Unavailable: the server stops; all that was read is answered.
            asyncio.CancelledError: the client has gone.
            Exception: whatever `answer` raised.
        """
        written: Completion[None] = Completion()
        writer = drive(self._write(), lambda _, error: self._writer_ended(written, error))
        if not self._gate.watch(self._stop):
            self._stop()
        try:
            try:
                await self._read()
            except grpc.aio.AbortError:
                await written
                raise
            await written
        except asyncio.CancelledError:
            if isinstance(self._failed, Exception):
                # The writer has stopped the reader, and this is why.
                raise self._failed from None
            raise
        finally:
            self._failed = None
            self._gate.unwatch(self._stop)
            with self._lock:
                left = list(self._unanswered)
            for message in left:
                message.give_up()
            writer.abandon()
        if self._stopping:
            raise stopping()

    def _stop(self) -> None:
        self._stopping = True
        self._call.stop_reading()

    async def _read(self) -> None:
        try:
            while not self._stopping:
                await self._until_room()
                try:
                    request = await self._call.read()
                except asyncio.CancelledError:
                    if self._stopping and not self._call.cancelled():
                        return
                    raise
                if request is grpc.aio.EOF:
                    return
                await self._until_rate()
                message = _Message(self._call.bytes_read)
                with self._lock:
                    self._unanswered.append(message)
                    self._bytes += message.size
                    more, self._more = self._more, None
                message.begin(self._answer(request))
                if more is not None:
                    more.set_result(None)
        finally:
            with self._lock:
                self._all_read = True
                more, self._more = self._more, None
            if more is not None:
                more.set_result(None)

    async def _until_room(self) -> None:
        with self._lock:
            if len(self._unanswered) < self._most and self._bytes < self._most_bytes:
                return
            if self._failed is not None:
                return  # nothing makes room any more, and the next read ends
            self._room = room = Completion[None]()
        await room

    async def _until_rate(self) -> None:
        """Wait until the rate of the caller's key allows one message more; nothing is read then."""
        while not self._stopping and self._failed is None:
            seconds = self._call.access.seconds_to_next()
            if not seconds:
                return
            await self._call.pause(min(seconds, LOOK_UP))
            if self._call.cancelled():
                raise asyncio.CancelledError

    async def _write(self) -> None:
        while True:
            with self._lock:
                message = self._unanswered[0] if self._unanswered else None
                if message is None:
                    if self._all_read:
                        return
                    self._more = more = Completion[None]()
            if message is None:
                await more
                continue
            await self._call.write(await message.reply)
            with self._lock:
                self._unanswered.popleft()
                self._bytes -= message.size
                room, self._room = self._room, None
            self._call.let_go(message.size)
            if room is not None:
                room.set_result(None)

    def _writer_ended(self, written: Completion[None], error: BaseException | None) -> None:
        if error is None:
            written.set_result(None)
            return
        # First the reason: a reader that waits for a message is stopped in this very thread.
        with self._lock:
            self._failed = error
            room, self._room = self._room, None
        # Nothing makes room any more, so the reader must not wait for it.
        self._call.stop_reading()
        written.set_error(error)
        if room is not None:
            room.abandon()
