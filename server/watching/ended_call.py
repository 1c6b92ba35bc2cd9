"""What is known of a call at its end, for whoever writes it down: the access log, the traces.

Most calls are written down by nobody, so what costs something is worked out when it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.rpc import error_details_pb2, status_pb2

from twinserve.server.request_ids import request_id_of
from twinserve.server.security.access import OPEN

log = logging.getLogger(__name__)

# The fields of requests that hold what a call is about, each so many items.
_ITEMS = ("inputs", "pairs", "probes", "items")


@dataclass(eq=False, slots=True)
class EndedCall:
    """A call, or one message of a stream, that was answered or given up.

    Args:
        method: as the metrics name it, such as Embed.
        code: of its status, such as OK; CANCELLED where the client went.
        model: name of the model; "" where it needs none, or failed before one was found.
        began: on the clock of time.perf_counter.
        context: as the transport gave it, gRPC's or the HTTP port's.
        request: the message, where the transport has one.
        reply: the message, what stands for it on the wire, or the status of a call that failed.
    """

    method: str
    code: str
    model: str
    began: float
    context: Any
    request: Any = None
    reply: Any = None
    seconds: float = 0.0  # inside the server, once it has ended

    @property
    def full_method(self) -> str:
        """The method as gRPC names it without the first slash: twinserve.v1.…Service/Embed."""
        name: str = getattr(self.context, "method", "")
        return name.lstrip("/") or self.method

    @property
    def rpc_system(self) -> str:
        """What carried the call, as OpenTelemetry names it: gRPC, unless its context says else."""
        system: str = getattr(self.context, "rpc_system", "grpc")
        return system

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the client sent before its message."""
        return self.context.invocation_metadata() or ()

    @property
    def request_id(self) -> str:
        """The call's id; a failed one carries it in its ErrorInfo."""
        return request_id_of(self.context)

    @property
    def key(self) -> str:
        """The id of the key that the caller has, never the key; "" where there are no keys."""
        client: str = getattr(self.context, "access", OPEN).client
        return client

    @property
    def peer(self) -> str:
        """The other side's address."""
        return self.context.peer() or ""

    @property
    def items(self) -> int:
        """Inputs, pairs, probes or items of the request; 0 where it has none of them."""
        for name in _ITEMS:
            found = getattr(self.request, name, None)
            if found:
                # An inference tensor holds them along its first axis.
                shape = getattr(found[0], "shape", ())
                return int(shape[0]) if shape else len(found)
        return int(hasattr(self.request, "probe"))

    @property
    def request_bytes(self) -> int:
        """Bytes of the request's message."""
        size: int = getattr(self.context, "message_bytes", 0)
        return size or _size(self.request)

    @property
    def reply_bytes(self) -> int:
        """Bytes of the reply's message; 0 where there was none."""
        return 0 if isinstance(self.reply, status_pb2.Status) else _size(self.reply)

    @property
    def timing(self) -> Any:
        """Where the time went, a ServerTiming; None of calls that measure nothing, or failed."""
        return getattr(self.reply, "timing", None)

    @property
    def reason(self) -> str:
        """The reason that the client is told; "" of a call that did not fail."""
        info = error_details_pb2.ErrorInfo()
        if isinstance(self.reply, status_pb2.Status) and self.reply.details:
            self.reply.details[0].Unpack(info)
        reason: str = info.reason
        return reason


def _size(message: Any) -> int:
    if message is None:
        return 0
    data: bytes | None = getattr(message, "data", None)
    if isinstance(data, bytes):
        return len(data)
    return int(message.ByteSize()) if hasattr(message, "ByteSize") else 0


class CallWatch(Protocol):
    """Told of every call's end, in the thread that ended it; it must not block."""

    def ended(self, call: EndedCall) -> None:
        """A call ended."""


class CallWatches:
    """Those who are told of calls; mostly the access log alone."""

    def __init__(self) -> None:
        self._watches: tuple[CallWatch, ...] = ()

    def add(self, watch: CallWatch) -> None:
        """Tell one more of every call from now on."""
        self._watches += (watch,)

    def ended(self, call: EndedCall) -> None:
        """Tell all of them; a fault of theirs is not the call's."""
        for watch in self._watches:
            try:
                watch.ended(call)
            except Exception:
                log.exception("%s could not be written down", call.method)
