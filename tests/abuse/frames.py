"""HTTP/2 by hand, since no library sends what an abuser does. Source: RFC 9113, RFC 7541.

No header is compressed: each goes as a literal that is not indexed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CODES = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 2: "INTERNAL_ERROR", 8: "CANCEL"}
CODES |= {3: "FLOW_CONTROL_ERROR", 6: "FRAME_SIZE_ERROR", 7: "REFUSED_STREAM"}
CODES |= {9: "COMPRESSION_ERROR", 11: "ENHANCE_YOUR_CALM"}
GRPC = {"0": "OK", "8": "RESOURCE_EXHAUSTED", "12": "UNIMPLEMENTED", "13": "INTERNAL"}
GRPC |= {"1": "CANCELLED", "2": "UNKNOWN", "3": "INVALID_ARGUMENT", "16": "UNAUTHENTICATED"}
GRPC |= {"4": "DEADLINE_EXCEEDED", "5": "NOT_FOUND", "7": "PERMISSION_DENIED"}
EMBED = "/twinserve.v1.EmbeddingService/Embed"
EMBED_STREAM = "/twinserve.v1.EmbeddingService/EmbedStream"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    left, found = len(text) - 127, b"\x7f"
    while left >= 128:
        found += bytes([left % 128 + 128])
        left //= 128
    return found + bytes([left]) + text


def literal(name: bytes, value: bytes) -> bytes:
    """Write a header that is not indexed."""
    return b"\0" + _text(name) + _text(value)


def head(path: str, bearer: str = "", more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """Write the headers of a gRPC call."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())]
    fields += [(b":authority", b"localhost"), (b"te", b"trailers")]
    fields += [(b"content-type", b"application/grpc"), *more]
    if bearer:
        fields.append((b"authorization", bearer.encode()))
    return b"".join(literal(name, value) for name, value in fields)


def message(size: int, data: bytes = b"", flag: int = 0) -> bytes:
    """Write a gRPC message that says it has this size."""
    return struct.pack(">BI", flag, size) + data


class Http2:
    """A connection on which frames are sent as they are."""

    def __init__(self, one: socket.socket, settings: Sequence[tuple[int, int]] = ()) -> None:
        self.socket = one
        self._left = b""
        self.is_closed = False
        self.sent = 0
        said = b"".join(struct.pack(">HI", *pair) for pair in settings)
        self.send(PREFACE, frame(SETTINGS, 0, 0, said))

    def send(self, *frames: bytes) -> bool:
        """Send frames; False where the other side takes none any more."""
        data = b"".join(frames)
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        self.sent += len(data)
        return True

    def frames(self, seconds: float) -> Iterator[tuple[int, int, int, bytes]]:
        """Read frames for so long: kind, flags, stream and payload of each."""
        until = time.monotonic() + seconds
        while True:
            while len(self._left) >= 9:
                size = int.from_bytes(self._left[:3], "big")
                if len(self._left) < 9 + size:
                    break
                kind, flags, stream = struct.unpack(">BBI", self._left[3:9])
                payload, self._left = self._left[9 : 9 + size], self._left[9 + size :]
                yield kind, flags, stream, payload
            left = until - time.monotonic()
            if left <= 0 or self.is_closed:
                return
            self.socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                try:
                    part = self.socket.recv(65536)
                except ConnectionError:
                    part = b""
                self.is_closed = not part
                self._left += part

    def answer(self, seconds: float = 5.0) -> str:
        """Return how a stream, or the connection, ends: a gRPC code, or HTTP/2's."""
        return next(self.answers(seconds), "silent")

    def answers(self, seconds: float) -> Iterator[str]:
        """Return how one stream after the other ends, and the connection."""
        for kind, _, _, payload in self.frames(seconds):
            if kind == HEADERS:
                _, found, rest = payload.partition(b"grpc-status")
                if found:
                    code = rest[1 : 1 + rest[0]].decode()
                    yield GRPC.get(code, code)
            elif kind == RESET:
                yield f"stream reset ({CODES[int.from_bytes(payload[:4], 'big')]})"
            elif kind == GOAWAY:
                yield f"connection closed ({CODES[int.from_bytes(payload[4:8], 'big')]})"
        if self.is_closed:
            yield "connection closed"
