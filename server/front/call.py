"""One call: what the core does for it, what its servicer's method sees of it, and how it ends.

A call's events arrive in the front's thread. Its method runs in one of two ways: driven by whoever
has news for it (methods marked `driven`), or as a task of asyncio's loop. Reads and writes are
`Completion`s, which both can await. Whatever happens, a call ends with one status; it is over when
that and the client's end of it have been told, and nothing refers to it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from twinserve.server.completion import Completion, Driven, Elsewhere, drive
from twinserve.server.front import core
from twinserve.server.front.budget import LARGE, UNBOUNDED, Budget, StreamBytes
from twinserve.server.front.intake import Expected
from twinserve.server.request_ids import request_id_of
from twinserve.server.security.access import OPEN, Access

log = logging.getLogger(__name__)

# Seconds after which a stream asks again whether it may be read.
CROWDED = 0.1

Function = TypeVar("Function", bound=Callable[..., Any])
Value = TypeVar("Value")


def driven(method: Function) -> Function:
    """Mark a servicer's method as one that awaits nothing but `Completion`s.

    It begins in the front's thread and goes on in whichever thread ends what it waits for, so it
    must never block. All other methods are tasks of asyncio's loop.
    """
    method.__driven__ = True  # type: ignore[attr-defined]
    return method


@dataclass(frozen=True)
class Method:
    """A method of a service, as its generated code registers it."""

    name: str
    parse: Callable[[bytes], Any] | None
    serialise: Callable[[Any], bytes] | None
    reads_stream: bool
    writes_stream: bool
    run: Callable[[Any, Any], Any]
    is_driven: bool
    budget: Budget = UNBOUNDED  # that its messages' bytes count against

    @classmethod
    def of(
        cls, name: str, handler: grpc.RpcMethodHandler[Any, Any], budget: Budget = UNBOUNDED
    ) -> Method:
        """Read what `add_…Servicer_to_server` made."""
        reads, writes = bool(handler.request_streaming), bool(handler.response_streaming)
        run = {
            (False, False): handler.unary_unary,
            (False, True): handler.unary_stream,
            (True, False): handler.stream_unary,
            (True, True): handler.stream_stream,
        }[reads, writes]
        if run is None:
            raise ValueError(f"{name} has no method of its kind; register it as it streams")
        return cls(
            name,
            handler.request_deserializer,
            handler.response_serializer,
            reads,
            writes,
            run,
            getattr(run, "__driven__", False),
            budget,
        )


class Owner(Protocol):
    """The front, as its calls see it."""

    loop: asyncio.AbstractEventLoop

    def in_thread(self, work: Callable[[], None]) -> None:
        """Have a large message parsed somewhere else."""

    def in_turn(self, call: Call, work: Callable[[], None]) -> None:
        """Have a message begun once its connection has its turn; from the front's thread."""

    def begun(self, expected: Expected) -> None:
        """Expect the message of a driven call no more; from the front's thread."""

    def watch_later(self, call: Call) -> None:
        """Have `watch` called if the call has not ended soon; from the front's thread."""

    def over(self, call: Call) -> None:
        """A call has had its last event."""


# What a call is like before anything has happened to it stands on the class, so that a call that
# uses little of it costs little.
class Call(grpc.aio.ServicerContext[Any, Any]):
    """One call, and the context that its method is given.

    Args:
        owner: the front.
        event: of the core, which holds the call.
        method: that is called.
    """

    _running: Driven[Any] | asyncio.Task[Any] | None = None
    _cancelled = False
    _ended = False
    _aborted = False
    _first = True  # nothing was sent yet
    _code: grpc.StatusCode | None = None
    _details = ""
    _trailing: core.Metadata = ()
    _callbacks: list[Callable[[Any], None]] | None = None
    _reading: Completion[bytes | None] | None = None
    _no_more = False
    expected: Expected | None = None  # by the front, until its message is begun
    is_probe = False  # of health; the front counts those apart
    access: Access = OPEN  # what the caller was let in with
    bytes_read = 0  # of the message that `read` gave last
    message_bytes = 0  # of the only message of a call that reads no stream
    _inside: StreamBytes | None = None  # what was read of a stream and is not let go
    _due = 2  # the status sent, and the close told
    _peer = ""

    def __init__(self, owner: Owner, event: core.Event, method: Method) -> None:
        self._owner = owner
        self._event = event
        self._core: core.CoreCall = event.call
        self._method = method
        self._unwatched = [None]  # taken by whoever asks for the close; see `_take_watch`

    # What the front does with a call, in its thread.

    def begin(self) -> None:
        """Read the first message, or start the method that reads a stream."""
        if not self._method.reads_stream:
            core.read_message(self._core, self._on_message)
            return
        self.watch()
        if self._method.is_driven:
            self._drive(self._run(self._requests()))
        else:
            self._owner.loop.call_soon_threadsafe(self._start_task, None)

    def watch(self) -> None:
        """Notice from now on when the client goes, or has gone."""
        if self._take_watch():
            core.watch_close(self._core, self._on_close)

    def _take_watch(self) -> bool:
        """Say, to one of all threads that ask, that it is to ask for the call's close."""
        try:
            self._unwatched.pop()
        except IndexError:
            return False
        return True

    def _on_message(self, event: core.Event) -> None:
        data = core.message_of(event)
        if data is not None:
            self.message_bytes = len(data)
        if data is not None and len(data) < LARGE and self._method.is_driven:
            # Watched also while it waits: what nobody wants any more is not begun.
            self._owner.watch_later(self)
            self._owner.in_turn(self, functools.partial(self._on_turn, data))
            return
        self._is_begun()
        self.watch()
        if data is None:
            self._code = grpc.StatusCode.UNIMPLEMENTED
            self._details = f"{self._method.name} takes exactly one message, and none came"
            self._aborted = True
            self._end(None, None)
        elif len(data) >= LARGE:
            if self._has_room(len(data)):
                self._owner.in_thread(lambda: self._on_data(data))
        else:
            self._owner.loop.call_soon_threadsafe(self._start_task, data)

    def _has_room(self, size: int) -> bool:
        """Count a large message until the call is over; where there is no room, end the call."""
        budget, client = self._method.budget, self.client()
        refusal = budget.take(size, client)
        if refusal is None:
            self.add_done_callback(lambda _: budget.give_back(size, client))
            return True
        self._aborted = True
        self._code = refusal.code
        self._details = refusal.details
        self._trailing = tuple(refusal.trailing_metadata or ())
        self._end(None, None)
        return False

    def _is_begun(self) -> None:
        expected, self.expected = self.expected, None
        if expected is not None:
            self._owner.begun(expected)

    def _on_turn(self, data: bytes) -> None:
        self._is_begun()
        if self._cancelled:
            self._end(None, asyncio.CancelledError())
            return
        if self.time_remaining() == 0.0:
            # Its client has gone, and the core has told it so.
            self._aborted = True
            self._code = grpc.StatusCode.DEADLINE_EXCEEDED
            self._details = "the deadline passed before the call began; allow more time"
            self._end(None, None)
            return
        self._on_data(data)

    def _on_data(self, data: bytes) -> None:
        method = self._method
        try:
            request = data if method.parse is None else method.parse(data)
        except Exception as error:
            self._unreadable(error)
            return
        if not method.is_driven:
            self._owner.loop.call_soon_threadsafe(self._start_with, request)
        else:
            self._drive(self._run(request))

    def _run(self, argument: Any) -> Coroutine[Any, Any, Any]:
        running: Coroutine[Any, Any, Any]
        if self._method.writes_stream:
            running = self._write_all(argument)
        else:
            running = self._method.run(argument, self)
        return running

    def _drive(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if self._cancelled:
            coroutine.close()
            self._end(None, asyncio.CancelledError())
            return
        running = drive(coroutine, self._end)
        if not self._ended:
            self._running = running
            if self._cancelled:
                running.abandon()
            if self._ended:
                self._running = None  # no circle of references stays behind

    def _on_close(self, event: core.Event) -> None:
        if core.was_cancelled(event):
            self._cancelled = True
            running = self._running
            if isinstance(running, Driven):
                running.abandon()
            elif not self._method.is_driven and not self._ended:
                self._on_loop(self._cancel_task)
        self._had_one()

    def _on_sent(self, event: core.Event) -> None:
        self._had_one()

    def _on_over(self, event: core.Event) -> None:
        self._due = 1
        self._had_one()

    def _had_one(self) -> None:
        self._due -= 1
        if self._due:
            return
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:
                log.exception("a callback of %s failed", self._method.name)
        self._owner.over(self)

    # On the loop, for the methods that are tasks.

    def _start_task(self, data: bytes | None) -> None:
        if data is None:
            self._start_with(self._requests())
            return
        try:
            request = data if self._method.parse is None else self._method.parse(data)
        except Exception as error:
            self._unreadable(error)
            return
        self._start_with(request)

    def _start_with(self, argument: Any) -> None:
        if self._cancelled:
            self._end(None, asyncio.CancelledError())
            return
        task = self._owner.loop.create_task(self._run(argument))
        self._running = task
        task.add_done_callback(self._on_task)

    def _cancel_task(self) -> None:
        if isinstance(self._running, asyncio.Task):
            self._running.cancel()

    def _on_task(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._end(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._end(None, error)
        else:
            self._end(task.result(), None)

    def _on_loop(self, work: Callable[[], object]) -> None:
        # A closed loop means that the server has stopped.
        with contextlib.suppress(RuntimeError):
            self._owner.loop.call_soon_threadsafe(work)

    # The end, in whichever thread it comes.

    def _cannot_read(self, error: Exception) -> None:
        log.warning(
            "a message of %s cannot be read: %s",
            self._method.name,
            error,
            extra={"request_id": request_id_of(self)},
        )

    def _unreadable(self, error: Exception) -> None:
        self._cannot_read(error)
        self._code = grpc.StatusCode.INTERNAL
        self._details = (
            f"the message cannot be read as {self._method.name} takes it; encode it with the "
            "contract's stubs"
        )
        self._aborted = True
        self._end(None, None)

    def _end(self, value: Any, error: BaseException | None) -> None:
        """Send the reply, or the status that the error becomes."""
        self._ended = True
        self._running = None
        status = self._status(error)
        if status is None:
            try:
                data = self._on_wire(value)
            except Exception:
                log.exception("the reply of %s cannot be serialised", self._method.name)
                status = grpc.StatusCode.INTERNAL, f"the reply of {self._method.name} is damaged"
        first, trailing = self._first, self._trailing
        alone = status is None and first and self._take_watch()
        if not alone:
            self.watch()
        try:
            if status is not None:
                core.send_status(self._core, *status, trailing, first, self._on_sent)
            elif alone:
                core.send_whole_reply(self._core, data, trailing, self._on_over)
            else:
                core.send_reply(self._core, data, trailing, first, self._on_sent)
        except Exception:
            # The core takes no such trailers; without a status the call would never be over.
            log.exception("the end of %s cannot be sent as it is", self._method.name)
            if alone:
                core.watch_close(self._core, self._on_close)
            code, details = grpc.StatusCode.INTERNAL, f"the end of {self._method.name} is damaged"
            core.send_status(self._core, code, details, (), first, self._on_sent)

    def _on_wire(self, message: Any) -> bytes:
        """Return a message's bytes; a method may give them itself."""
        serialise = self._method.serialise
        if type(message) is bytes or serialise is None:
            return message  # type: ignore[no-any-return]
        return serialise(message)

    def _status(self, error: BaseException | None) -> tuple[grpc.StatusCode, str] | None:
        """Return what the call ends with, None where a reply does."""
        if self._aborted:
            return self._code or grpc.StatusCode.UNKNOWN, self._details
        if self._cancelled or isinstance(error, asyncio.CancelledError):
            return grpc.StatusCode.CANCELLED, "the call was cancelled"
        if error is not None:
            request_id = request_id_of(self)
            log.error(
                "%s failed", self._method.name, exc_info=error, extra={"request_id": request_id}
            )
            return (
                grpc.StatusCode.UNKNOWN,
                f"{self._method.name} failed inside the server, at request id {request_id}",
            )
        if self._code is not None and self._code is not grpc.StatusCode.OK:
            return self._code, self._details
        return (grpc.StatusCode.OK, self._details) if self._method.writes_stream else None

    # Streams.

    async def _requests(self) -> AsyncIterator[Any]:
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request
            # Who asks for the next one is done with it.
            self.let_go(self.bytes_read)

    async def _write_all(self, argument: Any) -> None:
        answer = self._method.run(argument, self)
        if not hasattr(answer, "__aiter__"):
            await answer
            return
        async with contextlib.aclosing(answer) as responses:
            async for response in responses:
                await self.write(response)

    async def read(self) -> Any:
        """Return the client's next message, or grpc.aio.EOF.

        Its bytes count as inside until it is let go. Where there is no room for them, the call is
        aborted; while little is left, nothing is read, and gRPC's flow control holds the client.
        """
        inside = self._inside or self._begin_counting()
        if inside.asks:
            while self._method.budget.crowded and not (self._no_more or self._cancelled):
                await self.pause(CROWDED)
        if self._cancelled:
            raise asyncio.CancelledError
        got: Completion[bytes | None] = Completion()
        self._reading = got
        if self._no_more:
            got.abandon()
        else:
            core.read_message(self._core, lambda event: self._on_read(got, core.message_of(event)))
        try:
            data = await got
        finally:
            self._reading = None
        if data is None:
            if self._cancelled:
                raise asyncio.CancelledError
            return grpc.aio.EOF
        self.bytes_read = len(data)
        refusal = inside.take(len(data))
        if refusal is not None:
            await self.abort_with_status(refusal)
        if self._method.parse is None:
            return data
        if len(data) >= LARGE and self._method.is_driven:
            await self.elsewhere()
        try:
            return self._method.parse(data)
        except Exception as error:
            self._cannot_read(error)
            await self.abort(
                grpc.StatusCode.INTERNAL,
                f"a message cannot be read as {self._method.name} takes it; encode it with the "
                "contract's stubs",
            )

    def _begin_counting(self) -> StreamBytes:
        self._inside = inside = StreamBytes(self._method.budget)
        self.add_done_callback(lambda _: inside.end())
        return inside

    def let_go(self, size: int) -> None:
        """Count a message of so many bytes, which `read` gave, as inside no more."""
        inside = self._inside
        if inside is not None:
            inside.give_back(size)

    def _on_read(self, got: Completion[bytes | None], data: bytes | None) -> None:
        if data is None or not self._method.is_driven:
            got.set_result(data)
        else:
            self._owner.in_turn(self, lambda: got.set_result(data))

    def stop_reading(self) -> None:
        """Have `read` raise asyncio.CancelledError from now on, also where it waits already."""
        self._no_more = True
        reading = self._reading
        if reading is not None:
            reading.abandon()

    def elsewhere(self) -> Completion[None]:
        """Return what is complete in a thread of its own: who waits goes on there.

        For driven methods with work of more than a millisecond or so before they wait, during which
        the front would read nothing.
        """
        return Elsewhere(self._owner.in_thread)

    def pause(self, seconds: float) -> Completion[None]:
        """Return what is complete in so many seconds; who waits goes on in a thread of its own."""
        over: Completion[None] = Completion()
        owner = self._owner

        def passed() -> None:
            owner.in_thread(lambda: over.set_result(None))

        self._on_loop(lambda: owner.loop.call_later(seconds, passed))
        return over

    def as_task(self, work: Coroutine[Any, Any, Value]) -> Completion[Value]:
        """Run a coroutine as a task of asyncio's loop, and return what is complete with it.

        For driven methods, a part of whose work awaits what only the loop ends. Who gives up
        waiting cancels the task.
        """
        task: asyncio.Task[Value] | None = None

        def cancel() -> None:
            if task is not None:
                task.cancel()

        found: Completion[Value] = Completion(lambda: self._on_loop(cancel))

        def ended(task: asyncio.Task[Value]) -> None:
            if task.cancelled():
                found.abandon()
            elif (error := task.exception()) is not None:
                found.set_error(error)
            else:
                found.set_result(task.result())

        def start() -> None:
            nonlocal task
            if found.done:
                work.close()
                return
            task = self._owner.loop.create_task(work)
            task.add_done_callback(ended)

        try:
            self._owner.loop.call_soon_threadsafe(start)
        except RuntimeError:  # the loop is closed: the server has stopped
            work.close()
            found.abandon()
        return found

    async def write(self, message: Any) -> None:
        """Send one message; returns once the core took it, which a slow reader delays."""
        data = self._on_wire(message)
        if self._cancelled:
            raise asyncio.CancelledError
        took: Completion[bool] = Completion()
        core.send_message(
            self._core, data, self._first, lambda event: took.set_result(event.success)
        )
        self._first = False
        if not await took:
            raise asyncio.CancelledError

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send what goes before all messages; once."""
        if not self._first:
            raise RuntimeError("the initial metadata went out already; send it before all else")
        sent: Completion[bool] = Completion()
        self._first = False
        core.send_initial(
            self._core, tuple(initial_metadata), lambda event: sent.set_result(event.success)
        )
        if not await sent:
            raise asyncio.CancelledError

    # What the method sees of the call.

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """End the call with a status other than OK.

        Raises:
            grpc.aio.AbortError: always; it is not to be caught.
        """
        if code is grpc.StatusCode.OK:
            raise RuntimeError("a call cannot be aborted with OK; return instead")
        self._aborted = True
        self._code = code
        self._details = details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise grpc.aio.AbortError(details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status and its trailing metadata; see `abort`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Give what goes after all messages."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """Return what goes after all messages."""
        return self._trailing

    def invocation_metadata(self) -> Any:
        """Return what the client sent before its messages: (key, value) each."""
        return self._event.invocation_metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """Give the code that the call ends with."""
        self._code = code

    def code(self) -> grpc.StatusCode:
        """Return the code that the call is to end with."""
        return self._code or grpc.StatusCode.OK

    def set_details(self, details: str) -> None:
        """Give the sentence that goes with the code."""
        self._details = details

    def details(self) -> str:
        """Return the sentence that goes with the code."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Refuse: vectors barely compress, and the front sends all replies as they are."""
        raise NotImplementedError("the front does not compress replies; leave it out")

    def disable_next_message_compression(self) -> None:
        """Do nothing: no message is compressed."""

    @property
    def method(self) -> str:
        """The method's full name, such as /twinserve.v1.EmbeddingService/Embed."""
        return self._method.name

    def peer(self) -> str:
        """Return the other side's address."""
        if not self._peer:
            self._peer = core.peer_of(self._core)
        return self._peer

    def client(self) -> str:
        """Return who shares the server with others: the caller's key, else the connection."""
        return self.access.client or self.peer()

    def peer_identities(self) -> Sequence[bytes] | None:
        """Return who the other side proved to be."""
        return core.identities_of(self._core)

    def peer_identity_key(self) -> str | None:
        """Return the property that the other side is told apart by."""
        return core.identity_key_of(self._core)

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Return what the transport's handshake told of the other side."""
        return core.auth_of(self._core)

    def time_remaining(self) -> float | None:  # type: ignore[override]
        """Return the seconds until the deadline, at least 0; None where there is none."""
        deadline = core.deadline_of(self._event.call_details)
        return None if deadline is None else max(deadline - time.time(), 0.0)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have `callback` called, in the front's thread, when the call is over."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Say whether the client has gone, by its own will or at its deadline."""
        return self._cancelled

    def done(self) -> bool:
        """Say whether the method has ended, or the client has gone."""
        return self._ended or self._cancelled
