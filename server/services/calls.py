"""What every unary call shares: its priority, timing, counting, and errors turned into statuses.

A servicer's method raises `TwinserveError` (or `ItemsFailed` for all of its items) and returns its
response; the decorator does the rest, so that no method repeats it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from twinserve.errors import Code, InternalFault, InvalidInput, TwinserveError
from twinserve.server.callers import Caller, Priority
from twinserve.server.completion import Completion
from twinserve.server.gate import Gate
from twinserve.server.request_ids import request_id_of
from twinserve.server.security.access import OPEN, Access
from twinserve.server.services import auditing
from twinserve.server.services.status import status_of, status_of_items
from twinserve.server.watching.ended_call import EndedCall
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import shared_pb2 as shared

log = logging.getLogger(__name__)

# Inputs of a call from which reading them takes more than half a millisecond.
MANY = 64
# The key of a call's metadata that says how urgent it is.
PRIORITY_KEY = "twinserve-priority"
_PRIORITIES: Mapping[str | bytes, Priority] = {
    priority.name.lower(): priority for priority in Priority
}

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Response = TypeVar("Response")


class Serving(Protocol):
    """A servicer, with what it shares with the others."""

    metrics: Metrics
    gate: Gate


Servicer = TypeVar("Servicer", bound=Serving)


class ItemsFailed(Exception):
    """All items of a call failed, or one did and the call is atomic."""

    def __init__(self, errors: Mapping[int, TwinserveError]) -> None:
        super().__init__(f"{len(errors)} items failed")
        self.errors = errors


def check_items(errors: Mapping[int, TwinserveError], count: int, *, atomic: bool = False) -> None:
    """Fail the call when every item failed, or when one did and the call is atomic.

    Raises:
        ItemsFailed: as said.
    """
    if errors and (atomic or len(errors) == count):
        raise ItemsFailed(errors)


def caller_of(context: Context) -> Caller:
    """Say whose call this is, how urgent, and until when its answer is of use.

    Raises:
        InvalidInput: a priority that there is none of.
    """
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    client = access_of(context).client or context.peer() or ""
    return Caller(client, deadline, priority_of(context))


def access_of(context: Context) -> Access:
    """Return what the transport let the caller in with."""
    access: Access = getattr(context, "access", OPEN)
    return access


def priority_of(context: Context) -> Priority:
    """Read how urgent the caller says the call is; see `priority_in`."""
    return priority_in(context.invocation_metadata() or ())


def priority_in(metadata: Iterable[tuple[str, str | bytes]]) -> Priority:
    """Read how urgent a call's metadata says that it is.

    Raises:
        InvalidInput: a priority that there is none of.
    """
    found = Priority.NORMAL
    for key, value in metadata:
        if key == PRIORITY_KEY:
            known = _PRIORITIES.get(value)
            if known is None:
                raise InvalidInput(
                    f"the metadata key {PRIORITY_KEY} is {value!r:.80}; give high, normal or low, "
                    "or leave it out",
                    field=PRIORITY_KEY,
                )
            found = known
    return found


async def leave_front(context: Context, inputs: int) -> None:
    """Go on in a thread of its own where reading so many inputs would keep the front."""
    if inputs > MANY:
        # Both transports' contexts offer it.
        elsewhere: Callable[[], Completion[None]] | None = getattr(context, "elsewhere", None)
        if elsewhere is not None:
            await elsewhere()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A reply as it goes on the wire, the name of the model that it is of, and its ServerTiming."""

    data: bytes
    model_name: str
    failed: int = 0  # of the items that it answers
    timing_data: bytes = b""  # a ServerTiming on its own; most replies have it inside too

    @property
    def timing(self) -> shared.ServerTiming | None:
        """Where the call's time went; None where nothing was measured."""
        return shared.ServerTiming.FromString(self.timing_data) if self.timing_data else None


def unary(
    method: Callable[[Servicer, Request, Context], Coroutine[Any, Any, Response | Encoded]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """Wrap a servicer's method, which returns its response, or that as it goes on the wire."""
    name = method.__name__
    is_audited = name in auditing.CHANGES

    @functools.wraps(method)
    async def call(self: Servicer, request: Request, context: Context) -> Response:
        found: Response | Encoded | status_pb2.Status | None = None
        try:
            found = await answered(self, name, method(self, request, context), context, request)
        finally:
            if is_audited:
                auditing.record(name, request, context, found)
        if isinstance(found, status_pb2.Status):
            await abort(context, found)
        # The front takes bytes as they are.
        reply: Any = found.data if isinstance(found, Encoded) else found
        return cast("Response", reply)

    return call


async def answered(
    servicer: Serving,
    name: str,
    work: Coroutine[Any, Any, Response],
    context: Context,
    request: object = None,
) -> Response | status_pb2.Status:
    """Do the work of a call, or of one message of a stream: inside the gate, timed and counted.

    Args:
        servicer: whose call it is.
        name: of the method.
        work: of the call.
        context: of the call.
        request: its message, for the access log and traces.

    Returns:
        What the work returns, or the status that its error becomes.
    """
    began = time.perf_counter()
    code, model = "CANCELLED", ""
    reply: Response | status_pb2.Status | None = None
    try:
        with servicer.gate.enter():
            priority_of(context)
            reply = await work
        code, model = "OK", _model_of(reply)
        return reply
    except Exception as error:
        status = status_of_failure(servicer, name, error, context)
        code, model = Code(status.code).name, getattr(error, "model", "")
        reply = status
        return status
    finally:
        work.close()  # where it was not begun
        finish(servicer, EndedCall(name, code, model, began, context, request, reply))


def finish(servicer: Serving, call: EndedCall) -> None:
    """Time and count a call, and tell those who write calls down."""
    call.seconds = time.perf_counter() - call.began
    servicer.metrics.requests.labels(call.method, call.code, call.model).observe(call.seconds)
    servicer.metrics.watches.ended(call)


def _model_of(response: object) -> str:
    """Name the model that a reply says it is of."""
    name: str = getattr(response, "model_name", "")
    return name or getattr(response, "model_version", "").partition("@")[0]


def status_of_failure(
    servicer: Serving, method: str, error: Exception, context: Context
) -> status_pb2.Status:
    """Return the status that a call's error becomes, and count it."""
    request_id = request_id_of(context)
    if isinstance(error, ItemsFailed):
        count_errors(servicer.metrics, error.errors)
        return status_of_items(error.errors, request_id)
    if not isinstance(error, TwinserveError):
        facts = {"method": method, "request_id": request_id, "key": access_of(context).client}
        log.error("%s failed", method, exc_info=error, extra=facts)
        error = InternalFault(
            f"{method} failed inside the server; its log says why, under request id {request_id}"
        )
    count_errors(servicer.metrics, {0: error})
    return status_of(error, request_id)


async def abort(context: Context, status: status_pb2.Status) -> None:
    """End a call with a status and its details."""
    await context.abort_with_status(rpc_status.to_status(status))


def count_errors(metrics: Metrics, errors: Mapping[int, TwinserveError]) -> None:
    """Count the items that failed in a call that did not."""
    for error in errors.values():
        metrics.rejections.labels(error.reason).inc()
