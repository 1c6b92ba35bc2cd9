"""grpcio's core, and the only module that touches it.

The core is private API of a pinned package: what grpc's own servers are built on. Everything that
the front needs of it stands here, so that an upgrade is checked in one place
(tests/server/front/test_core.py). A `Core` has one queue; each operation carries a callable, its
tag, and the thread that polls the queue calls it with the event once the operation is done.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

# The core's objects have no types: an event, and a call.
Event: TypeAlias = Any
CoreCall: TypeAlias = Any
Tag: TypeAlias = Callable[[Event], None]
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

NAMES = (
    "CompletionQueue",
    "Server",
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "auth_context",
    "peer_identities",
    "peer_identity_key",
)

# The core writes lines of its own to standard error, in its own form, also for what any stranger
# sends. Set the variable to ERROR or INFO to see them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _is_ours(record: logging.LogRecord) -> bool:
    """Say whether a line of grpcio's log is not about metadata that is no UTF-8.

    It takes those for Latin-1 and logs a traceback for each: anyone may send them for ever.
    """
    return not str(record.msg).startswith("Invalid encoding on")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_ours)

_NO_FLAGS = 0
_NO_DEADLINE = 1e11  # seconds since 1970: the core says "never" as a time some centuries away
_STATUS = {code: code.value[0] for code in grpc.StatusCode}
_OK = _STATUS[grpc.StatusCode.OK]

# Operations hold nothing of a call before they are used, and the core reads them anew each time;
# only what receives must be made for each use.
_EMPTY_METADATA = ()


class Core:
    """A server and its queue.

    Args:
        options: channel arguments, as grpc.server takes them.
    """

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self.poll: Callable[..., Event] = self._queue.poll
        # Freed by the polling thread, perhaps before another is back from telling it to stop.
        self._ending = threading.Lock()

    def add_port(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen; returns the port, 0 where that cannot be."""
        if credentials is None:
            return int(self._server.add_http2_port(address.encode()))
        inner = credentials._credentials  # type: ignore[attr-defined]
        return int(self._server.add_http2_port(address.encode(), inner))

    def start(self) -> None:
        """Take connections."""
        self._server.start()

    def next_call(self, tag: Tag) -> None:
        """Ask for one more call; its event has `call`, `call_details`, `invocation_metadata`."""
        self._server.request_call(self._queue, self._queue, tag)

    def shut(self, tag: Tag) -> None:
        """Take no more calls; the tag is called when the last one has ended."""
        with self._ending:
            self._server.shutdown(self._queue, tag)

    def cancel_all(self) -> None:
        """End the calls that are left; only once shut."""
        with self._ending:
            self._server.cancel_all_calls()

    def destroy(self) -> None:
        """Free the server; only once the tag of `shut` was called."""
        with self._ending:
            self._server.destroy()


def read_message(call: CoreCall, tag: Tag) -> None:
    """Ask for the next message; see `message_of`."""
    call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), tag)


def message_of(event: Event) -> bytes | None:
    """Return the message that was read; None where the client sends no more."""
    data: bytes | None = event.batch_operations[0].message()
    return data


def watch_close(call: CoreCall, tag: Tag) -> None:
    """Ask to be told when the call is over, whoever ended it; see `was_cancelled`."""
    call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), tag)


def was_cancelled(event: Event) -> bool:
    """Say whether the call ended without its status having reached the client."""
    return bool(event.batch_operations[0].cancelled())


def send_initial(call: CoreCall, metadata: Metadata, tag: Tag) -> None:
    """Send what goes before all messages."""
    call.start_server_batch((cygrpc.SendInitialMetadataOperation(metadata, _NO_FLAGS),), tag)


def send_message(call: CoreCall, data: bytes, first: bool, tag: Tag) -> None:
    """Send one message of a stream; `first` where nothing was sent before."""
    message = cygrpc.SendMessageOperation(data, _NO_FLAGS)
    if first:
        start = cygrpc.SendInitialMetadataOperation(_EMPTY_METADATA, _NO_FLAGS)
        call.start_server_batch((start, message), tag)
    else:
        call.start_server_batch((message,), tag)


def send_whole_reply(call: CoreCall, data: bytes, trailing: Metadata, tag: Tag) -> None:
    """Send all that a call has, with its status, OK, and await its close: its last event."""
    call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(_EMPTY_METADATA, _NO_FLAGS),
            cygrpc.SendMessageOperation(data, _NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(trailing, _OK, b"", _NO_FLAGS),
            cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
        ),
        tag,
    )


def send_reply(call: CoreCall, data: bytes, trailing: Metadata, first: bool, tag: Tag) -> None:
    """Send the only message of a call together with its status, OK."""
    message = cygrpc.SendMessageOperation(data, _NO_FLAGS)
    status = cygrpc.SendStatusFromServerOperation(trailing, _OK, b"", _NO_FLAGS)
    if first:
        start = cygrpc.SendInitialMetadataOperation(_EMPTY_METADATA, _NO_FLAGS)
        call.start_server_batch((start, message, status), tag)
    else:
        call.start_server_batch((message, status), tag)


def send_status(
    call: CoreCall,
    code: grpc.StatusCode,
    details: str,
    trailing: Metadata,
    first: bool,
    tag: Tag,
) -> None:
    """Send a status and nothing else, which ends the call."""
    status = cygrpc.SendStatusFromServerOperation(
        trailing, _STATUS[code], details.encode(), _NO_FLAGS
    )
    if first:
        start = cygrpc.SendInitialMetadataOperation(_EMPTY_METADATA, _NO_FLAGS)
        call.start_server_batch((start, status), tag)
    else:
        call.start_server_batch((status,), tag)


def refuse(
    call: CoreCall, code: grpc.StatusCode, details: str, trailing: Metadata, tag: Tag
) -> None:
    """End a call before anything of it was read; its only event."""
    call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(_EMPTY_METADATA, _NO_FLAGS),
            cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(
                trailing, _STATUS[code], details.encode(), _NO_FLAGS
            ),
        ),
        tag,
    )


def deadline_of(details: Any) -> float | None:
    """Return until when the client waits, in seconds since 1970; None where for ever."""
    deadline: float = details.deadline
    return None if deadline > _NO_DEADLINE else deadline


def peer_of(call: CoreCall) -> str:
    """Return the address of the other side, as grpc writes it."""
    return str(call.peer().decode())


def identities_of(call: CoreCall) -> Sequence[bytes] | None:
    """Return who the other side proved to be."""
    found: Sequence[bytes] | None = cygrpc.peer_identities(call)
    return found


def identity_key_of(call: CoreCall) -> str | None:
    """Return by which property of `auth_of` the other side is told apart."""
    key = cygrpc.peer_identity_key(call)
    return None if key is None else key.decode()


def auth_of(call: CoreCall) -> dict[str, Sequence[bytes]]:
    """Return what is known of the other side from the transport's handshake."""
    return {key.decode(): value for key, value in (cygrpc.auth_context(call) or {}).items()}
