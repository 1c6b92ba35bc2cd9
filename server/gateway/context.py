"""What a servicer's method sees of a call that came by HTTP, in the place of gRPC's context."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NoReturn

import grpc
from aiohttp import web
from google.rpc import status_pb2

from twinserve.errors import InvalidInput
from twinserve.server.completion import Completion, Elsewhere
from twinserve.server.gateway.refused import Refused, status_in
from twinserve.server.gateway.request_id import request_id
from twinserve.server.request_ids import KEY
from twinserve.server.security.access import OPEN, Access

TIMEOUT_KEY = "connect-timeout-ms"
# The method of a call that stands for none, as OpenTelemetry names it: what callers make up would
# fill logs and traces with names.
OTHER = "_OTHER"
_MAX_DIGITS = 10


class HttpContext(grpc.aio.ServicerContext[Any, Any]):
    """One call.

    Its headers are its metadata, with the id that it has in any case. Its peer is the client's
    address without the port: HTTP/1.1 takes a connection for each call under way, so that
    connections tell no clients apart.

    Args:
        request: with its headers; the body need not have come.
        method: full name of the RPC that it stands for, or `OTHER`.
        threads: where long work goes on.
    """

    def __init__(self, request: web.Request, method: str, threads: Executor) -> None:
        self.method = method
        # As OpenTelemetry names what carries a call, where it has a name for it.
        self.rpc_system = "connect_rpc" if request.path == method else "http"
        self.message_bytes = 0  # of the body, once it was read
        self.request_id = request_id(request)
        self.is_handed_over = False  # to its method, which counts it and has it written down
        self._threads = threads
        sent = ((key.lower(), value) for key, value in request.headers.items())
        # One that could not be used is nowhere to be seen.
        self._metadata = (*(one for one in sent if one[0] != KEY), (KEY, self.request_id))
        self._peer = _address(request.transport)
        self._timeout = request.headers.get(TIMEOUT_KEY)
        self._deadline: float | None = None
        self.access: Access = OPEN

    def begin(self) -> None:
        """Let its time run.

        Raises:
            InvalidInput: a timeout that is none.
        """
        self._deadline = _deadline(self._timeout)

    def elsewhere(self) -> Completion[None]:
        """Return what is complete in a thread: a driven method that waits for it goes on there."""
        return Elsewhere(self._threads.submit)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """End the call with a status other than OK.

        Raises:
            Refused: always; it is not to be caught.
        """
        raise Refused(status_pb2.Status(code=code.value[0], message=details))

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status and its details; see `abort`."""
        raise Refused(status_in(status))

    def invocation_metadata(self) -> Any:
        """Return the request's headers: (key in lower case, value) each."""
        return self._metadata

    def peer(self) -> str:
        """Return the client's address, in gRPC's form, without a port."""
        return self._peer

    def time_remaining(self) -> float | None:  # type: ignore[override]
        """Return the seconds until the deadline, at least 0; None where there is none."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def peer_identities(self) -> Sequence[bytes] | None:
        """Return who the other side proved to be."""
        return None

    def peer_identity_key(self) -> str | None:
        """Return the property that the other side is told apart by."""
        return None

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Return what the transport's handshake told of the other side."""
        return {}

    async def read(self) -> NoReturn:
        """Refuse: a stream is for gRPC."""
        raise NotImplementedError("calls by HTTP have one message each way")

    async def write(self, message: Any) -> NoReturn:
        """Refuse: a stream is for gRPC."""
        raise NotImplementedError("calls by HTTP have one message each way")

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Refuse: no method sends any, and nothing here would carry it."""
        raise NotImplementedError("calls by HTTP send no metadata before their reply")

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Refuse: no method sends any, and nothing here would carry it."""
        raise NotImplementedError("calls by HTTP send no metadata behind their reply")

    def set_code(self, code: grpc.StatusCode) -> None:
        """Refuse: methods abort instead."""
        raise NotImplementedError("abort with a status instead")

    def set_details(self, details: str) -> None:
        """Refuse: methods abort instead."""
        raise NotImplementedError("abort with a status instead")

    def set_compression(self, compression: grpc.Compression) -> None:
        """Refuse: replies go as they are."""
        raise NotImplementedError("the gateway does not compress replies; leave it out")

    def disable_next_message_compression(self) -> None:
        """Do nothing: no message is compressed."""


def _address(transport: Any) -> str:
    name = None if transport is None else transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "unix:"
    return f"ipv6:[{name[0]}]" if len(name) == 4 else f"ipv4:{name[0]}"


def _deadline(text: str | None) -> float | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidInput(
            f"the header Connect-Timeout-Ms is {text!r:.40}; give whole milliseconds of at most "
            f"{_MAX_DIGITS} digits, or leave it out",
            field="Connect-Timeout-Ms",
        )
    return time.monotonic() + int(text) / 1000
