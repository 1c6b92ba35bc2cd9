"""Ways to ask a server, honest and not, each of which returns the answer in a few words.

Of gRPC: the code, and the reason where it says more (`INVALID_ARGUMENT LIMIT_EXCEEDED`). Of HTTP:
the status and the reason (`400 LIMIT_EXCEEDED`). Of raw bytes: the status, `closed` or `silent`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_status import rpc_status

from tests.abuse.victim import SOUND, Victim
from tests.server.wire import Stubs

SECONDS = 10.0
FRESH = [("grpc.use_local_subchannel_pool", 1)]  # a connection that no other channel has
SERVICES = {"embedding": "EmbeddingService", "gallery": "GalleryService", "model": "ModelService"}


def alike(answers: Iterable[str]) -> str:
    """Return the answer that all attempts had; all there were, where they differ."""
    return " or ".join(dict.fromkeys(answers))


def grpc_status(
    victim: Victim,
    method: str,
    request: Any,
    *,
    key: str = "ops",
    metadata: Iterable[tuple[str, str | bytes]] = (),
    channel: grpc.Channel | None = None,
    timeout: float = SECONDS,
    compression: grpc.Compression | None = None,
) -> status_pb2.Status:
    """Make one call and return how it ended; `key` "" sends none."""
    stubs = victim.stubs if channel is None else Stubs(channel)
    service, _, name = method.partition(".")
    call: Any = getattr(getattr(stubs, service), name)
    sent = tuple(metadata)
    if key:
        sent += (("authorization", victim.bearer(key)),)
    try:
        found = call(request, metadata=sent, timeout=timeout, compression=compression)
        if not isinstance(found, Message):
            list(found)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        if status is not None:
            return status
        return status_pb2.Status(code=error.code().value[0], message=error.details())
    return status_pb2.Status()


def reason_of(status: status_pb2.Status) -> str:
    """Return the reason of a status; "" where it has none."""
    info = details.ErrorInfo()
    return next((info.reason for one in status.details if one.Unpack(info)), "")


def worded(status: status_pb2.Status) -> str:
    """Say a status in a few words."""
    (name,) = (one.name for one in grpc.StatusCode if one.value[0] == status.code)
    assert len(status.message) < 2000, f"{len(status.message)} characters of message"
    reason = reason_of(status)
    return name if reason in ("", name) else f"{name} {reason}"


def grpc_answer(victim: Victim, method: str, request: Any, **how: Any) -> str:
    """Make one call, `embedding.Embed` and the like; see `grpc_status`."""
    return worded(grpc_status(victim, method, request, **how))


def http_reply(
    victim: Victim,
    path: str,
    body: bytes | None = None,
    *,
    key: str = "ops",
    headers: Iterable[tuple[str, str | bytes]] = (),
    verb: str = "",
) -> tuple[int, dict[str, str], bytes]:
    """Ask the HTTP port, on a connection of its own: status, headers (in lower case), body."""
    connection = http.client.HTTPConnection("127.0.0.1", victim.http_port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.putrequest(verb or ("GET" if body is None else "POST"), path)
        sent = [*headers]
        if key:
            sent.append(("Authorization", victim.bearer(key)))
        if body is not None and not any(name.lower() == "content-type" for name, _ in sent):
            sent.append(("Content-Type", "application/json"))
        if body is not None:
            sent.append(("Content-Length", str(len(body))))
        for name, value in sent:
            connection.putheader(name, value)
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()


def http_answer(victim: Victim, path: str, body: bytes | None = None, **how: Any) -> str:
    """Ask the HTTP port; see `http_reply`."""
    status, _, found = http_reply(victim, path, body, **how)
    reason = _reason_in(found) if status >= 400 else ""
    return f"{status} {reason}".strip()


def mirror(victim: Victim, method: str, request: Message, **how: Any) -> str:
    """Make a call of the contract by HTTP, in JSON."""
    service, _, name = method.partition(".")
    body = MessageToJson(request).encode()
    return http_answer(victim, f"/twinserve.v1.{SERVICES[service]}/{name}", body, **how)


def both(victim: Victim, method: str, request: Message, **how: Any) -> str:
    """Make a call on both ports, and return both answers."""
    return (
        f"{grpc_answer(victim, method, request, **how)}; {mirror(victim, method, request, **how)}"
    )


def _reason_in(body: bytes) -> str:
    try:
        tree = json.loads(body)
    except ValueError:
        return ""
    if "error" in tree:
        return str(tree["error"]["code"] or "").upper()
    reasons = [one["debug"].get("reason", "") for one in tree.get("details", ())]
    return next(filter(None, reasons), "")


@contextlib.contextmanager
def connected(port: int, buffer: int = 0) -> Iterator[socket.socket]:
    """Connect; `buffer` bytes are received before the other side must wait, 0 leaves it."""
    with socket.socket() as one:
        if buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one.settimeout(SECONDS)
        one.connect(("127.0.0.1", port))
        yield one


def received(one: socket.socket, seconds: float = 2.0, most: int = 1 << 16) -> tuple[bytes, bool]:
    """Return what comes within the time or until the other side closes, and whether it did."""
    found = b""
    until = time.monotonic() + seconds
    while len(found) < most and (left := until - time.monotonic()) > 0:
        one.settimeout(left)
        try:
            part = one.recv(65536)
        except TimeoutError:
            break
        except ConnectionError:
            return found, True
        if not part:
            return found, True
        found += part
    return found, False


def raw(port: int, data: bytes, seconds: float = 5.0) -> str:
    """Send bytes, and return the HTTP status that comes back, `closed` or `silent`."""
    with connected(port) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(data)
        found, is_closed = b"", False
        until = time.monotonic() + seconds
        while not is_closed and b"\r\n\r\n" not in found and time.monotonic() < until:
            more, is_closed = received(one, 0.05)
            found += more
    status = re.match(rb"HTTP/1\.[01] (\d+)", found)
    if status:
        return status[1].decode()
    return "closed" if is_closed else "silent"


def serves(victim: Victim, patience: float = 10.0) -> bool:
    """Say whether a sound call is answered on each port, by HTTP on a new connection.

    Args:
        victim: that is asked.
        patience: seconds in which it may be refused still: a server notices one after the other
            that the connections of a flood are closed.
    """
    until = time.monotonic() + patience
    while True:
        found = ["", ""]
        found[0] = grpc_answer(victim, "embedding.Embed", SOUND)
        with contextlib.suppress(OSError, http.client.HTTPException):
            found[1] = http_answer(victim, "/v1/embeddings", b'{"model":"text","input":"word1"}')
        if found == ["OK", "200"]:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
