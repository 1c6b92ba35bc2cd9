"""What every call by HTTP passes through, whatever its form: bounds, door, deadline, method, end.

The bounds are those of the gRPC front: one number of calls inside for both ports, one budget of
bytes, the same limit of one message, and the gate that a stopping server closes, which the methods
themselves enter. What a call is refused with becomes a google.rpc.Status, and its form says how
that is written; each is counted and written down once, here or by its method.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar

import grpc
from aiohttp import web
from google.protobuf.message import Message

from twinserve.errors import (
    Code,
    DeadlineExceeded,
    InternalFault,
    InvalidInput,
    LimitExceeded,
    NotBuilt,
    NotFound,
    TwinserveError,
)
from twinserve.server.completion import Completion, drive
from twinserve.server.config import Limits
from twinserve.server.front.budget import Budget
from twinserve.server.front.shares import Shares
from twinserve.server.gateway import body
from twinserve.server.gateway.body import Bytes, Reply
from twinserve.server.gateway.context import OTHER, HttpContext
from twinserve.server.gateway.methods import Method
from twinserve.server.gateway.refused import Refused, name_in, refused, status_in
from twinserve.server.security.access import Door
from twinserve.server.services.calls import count_errors
from twinserve.server.watching.ended_call import EndedCall
from twinserve.server.watching.metrics import Metrics

log = logging.getLogger(__name__)

Value = TypeVar("Value")

# Bytes from which reading or writing JSON takes more than half a millisecond, which the loop has
# better uses for.
LONG = 32 * 1024


class Front(Protocol):
    """The gRPC front, as far as both ports share its bound."""

    calls: int  # inside, by gRPC
    beside: int  # inside, by HTTP; counted here


class Calls:
    """Takes calls in.

    Args:
        front: whose calls count with these.
        door: that lets callers in.
        budget: of the bytes of large messages.
        limits: of one message, and of the calls inside.
        overloaded: returns what a call is refused with where too many are inside.
        metrics: that count refusals, and tell those who write calls down of them.
        threads: where long messages are read and written.
        shares: of the calls inside that one key may have, over both ports.
    """

    def __init__(
        self,
        front: Front,
        door: Door,
        budget: Budget,
        limits: Limits,
        overloaded: Callable[[], grpc.Status],
        metrics: Metrics,
        threads: Executor,
        shares: Shares | None = None,
    ) -> None:
        self._shares = shares
        self._front = front
        self._door = door
        self._budget = budget
        self._limits = limits
        self._overloaded = overloaded
        self._metrics = metrics
        self._threads = threads
        for kind in (InvalidInput, LimitExceeded, NotBuilt, NotFound):
            # A counter that begins with its first refusal would hide that one from a rate.
            metrics.refused_calls.labels(kind.reason)

    async def take(
        self,
        request: web.Request,
        path: str,
        work: Callable[[Call], Awaitable[Reply]],
        form: Callable[[Refused], Reply],
        *,
        known: bool = True,
    ) -> web.StreamResponse:
        """Take a call from its headers to the last byte of its reply.

        Args:
            request: its headers; its body is read by the work.
            path: of the RPC that it stands for, which the door is asked about.
            work: does it.
            form: writes what it is refused with.
            known: whether there is such an RPC, by whose name logs may call it.
        """
        began = time.perf_counter()
        context = HttpContext(request, path if known else OTHER, self._threads)

        def told(refusal: Refused) -> Reply:
            return form(self._told(refusal, context, began))

        front = self._front
        if front.calls + front.beside >= self._limits.max_calls:
            return await body.send(request, told(Refused(status_in(self._overloaded()))))
        front.beside += 1
        try:
            return await self._inside(request, path, context, work, told)
        finally:
            front.beside -= 1

    async def _inside(
        self,
        request: web.Request,
        path: str,
        context: HttpContext,
        work: Callable[[Call], Awaitable[Reply]],
        told: Callable[[Refused], Reply],
    ) -> web.StreamResponse:
        try:
            context.access = self._door.admit(path, context.invocation_metadata(), context.peer())
            context.begin()
        except TwinserveError as error:
            return await body.send(request, told(refused(error)))
        except Exception:
            facts = {"request_id": context.request_id}
            log.exception("the door failed at %.200r", path, extra=facts)
            closed = InternalFault("the server cannot check keys; its log says why")
            return await body.send(request, told(refused(closed)))
        client = context.access.client
        refusal = None if self._shares is None else self._shares.take(client)
        if refusal is not None:
            return await body.send(request, told(Refused(status_in(refusal))))
        try:
            with Bytes(self._budget, client or context.peer()) as inside:
                call = Call(request, context, inside, self._limits.max_message_bytes, self._threads)
                return await body.send(request, await _worked(call, path, work, told))
        finally:
            if self._shares is not None:
                self._shares.give_back(client)

    def _told(self, refusal: Refused, context: HttpContext, began: float) -> Refused:
        """Count what a call is refused with, and have it written down, unless its method has."""
        error, status = refusal.error, refusal.status
        if error is not None:
            count_errors(self._metrics, {0: error})
        if not context.is_handed_over:
            if error is not None:
                self._metrics.refused_calls.labels(error.reason).inc()
            name = context.method.rpartition("/")[2]
            call = EndedCall(name, Code(status.code).name, "", began, context, None, status)
            call.seconds = time.perf_counter() - began
            self._metrics.watches.ended(call)
        name_in(status, context.request_id)
        return refusal


async def _worked(
    call: Call,
    path: str,
    work: Callable[[Call], Awaitable[Reply]],
    told: Callable[[Refused], Reply],
) -> Reply:
    try:
        async with asyncio.timeout(call.context.time_remaining()):
            return await work(call)
    except Refused as refusal:
        return told(refusal)
    except TwinserveError as error:
        return told(refused(error))
    except TimeoutError:
        late = DeadlineExceeded("the deadline passed before the answer came; allow more time")
        return told(refused(late))
    except Exception:
        request_id = call.context.request_id
        log.exception("%s by HTTP failed", path, extra={"request_id": request_id})
        fault = InternalFault(
            f"{path} failed inside the server; its log says why, under request id {request_id}"
        )
        return told(refused(fault))


class Call:
    """One call inside, as its form works on it."""

    def __init__(
        self,
        request: web.Request,
        context: HttpContext,
        inside: Bytes,
        limit: int,
        threads: Executor,
    ) -> None:
        self.request = request
        self.context = context
        self._inside = inside
        self._limit = limit
        self._threads = threads

    async def message(self, read: Callable[[bytes], Value]) -> Value:
        """Read the request's body, and out of it what it says; the body itself is let go.

        Raises:
            Refused: see `body.read`.
        """
        data = await body.read(self.request, self._limit, self._inside)
        self.context.message_bytes = len(data)
        return await self.away(len(data), lambda: read(data))

    async def away(self, size: int, work: Callable[[], Value]) -> Value:
        """Do work on so many bytes: in a thread, where it takes long."""
        if size < LONG:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def run(self, method: Method, message: Message) -> bytes:
        """Run a method; return its reply as it would go on gRPC's wire.

        Raises:
            Refused: as the method ended.
        """
        self.context.is_handed_over = True
        if method.is_driven:
            reply = await _driven(method, message, self.context)
        else:
            reply = await method.run(message, self.context)
        return reply if isinstance(reply, bytes) else reply.SerializeToString()


def _driven(method: Method, message: Message, context: HttpContext) -> Completion[Any]:
    """Begin a driven method here; it goes on in whichever thread ends what it waits for."""
    done: Completion[Any] = Completion(lambda: running.abandon())

    def ended(value: Any, error: BaseException | None) -> None:
        if error is not None:
            done.set_error(error)
        else:
            done.set_result(value)

    coroutine: Any = method.run(message, context)
    running = drive(coroutine, ended)
    return done
