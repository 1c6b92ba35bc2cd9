"""gRPC calls over plain sockets, from one thread: load whose pace and bodies are ours to choose.

Just enough of HTTP/2 for unary calls to a server that grpcio made: frames are written whole into
one buffer a connection, flow control is kept in both directions, and the server is told to use no
header table, so that a status is found in its block by looking for it. A call costs some 30
microseconds, a tenth of grpc.aio's. Latencies of an open loop count from the instant at which a
call was due, so that a generator or server that falls behind cannot hide it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

OK, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 1, 4, 8, 14
LOST = -1  # the stream or its connection ended without a status

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 4, 5
_CANCEL, _REFUSED = 8, 7
_LARGEST_WINDOW = 2**31 - 1
_BUFFERED = 1 << 18  # bytes in a socket's own buffer before more frames are made


@dataclass(slots=True, eq=False)
class Call:
    """One call, from due to answered. Times are `time.perf_counter`'s."""

    body: bytes  # with gRPC's prefix
    due: float
    sent: float = 0.0
    ended: float = 0.0
    status: int = LOST
    reply: bytes = b""
    trailers: bytes = b""  # of a call that failed, as they came

    @property
    def seconds(self) -> float:
        """How long the caller waited."""
        return self.ended - self.due


def prefixed(message: bytes) -> bytes:
    """Put gRPC's prefix before a message: not compressed, and its length."""
    return b"\0" + struct.pack(">I", len(message)) + message


@dataclass(slots=True, eq=False)
class _Upload:
    stream: int
    body: bytes
    window: int
    sent: int = 0


class Connection:
    """One connection to one method.

    Args:
        port: on this machine.
        path: of the method, such as /twinserve.v1.EmbeddingService/Embed.
        metadata: of every call, names in lower case.
        timeout: of every call as the server is told it, in seconds; None for none.
    """

    def __init__(
        self,
        port: int,
        path: str,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float | None = None,
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.calls: dict[int, Call] = {}
        self.closing = False  # the server takes no more calls here
        self._header = _request_header(port, path, metadata, timeout)
        self._next = 1
        self._in = bytearray()
        self._out = bytearray()
        self._uploads: deque[_Upload] = deque()
        self._open: dict[int, _Upload] = {}
        self._window = 65_535  # what the server takes from the connection
        self._stream_window = 65_535  # and from each stream at first
        self._frame = 16_384
        self._received = 0
        settings = struct.pack(
            ">HIHIHI",
            *(_HEADER_TABLE_SIZE, 0),
            *(_ENABLE_PUSH, 0),
            *(_INITIAL_WINDOW, _LARGEST_WINDOW),
        )
        self._out += b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self._put(_SETTINGS, 0, 0, settings)
        self._put(_WINDOW, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65_535))

    @property
    def wants_to_write(self) -> bool:
        """Whether bytes wait for the socket."""
        return bool(self._out)

    def begin(self, call: Call) -> None:
        """Start a call; `flush` sends it."""
        stream, self._next = self._next, self._next + 2
        self.calls[stream] = call
        self._put(_HEADERS, _END_HEADERS, stream, self._header)
        upload = _Upload(stream, call.body, self._stream_window)
        self._open[stream] = upload
        self._uploads.append(upload)
        call.sent = time.perf_counter()

    def cancel(self, call: Call) -> None:
        """Reset the call's stream, if it runs still."""
        stream = next((one for one, running in self.calls.items() if running is call), None)
        if stream is None:
            return
        del self.calls[stream]
        upload = self._open.pop(stream, None)
        if upload is not None:
            self._uploads.remove(upload)
        self._put(_RESET, 0, stream, struct.pack(">I", _CANCEL))
        call.ended, call.status = time.perf_counter(), CANCELLED

    def flush(self) -> None:
        """Send what the socket and the server's windows take.

        Raises:
            OSError: the connection is gone.
        """
        while True:
            if self._uploads and len(self._out) < _BUFFERED:
                self._fill()
            if not self._out:
                return
            try:
                sent = self.socket.send(self._out)
            except BlockingIOError:
                return
            del self._out[:sent]

    def read(self) -> list[Call]:
        """Take what came; return the calls that ended by it.

        Raises:
            OSError: the connection is gone; its calls are lost.
        """
        try:
            came = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        if not came:
            raise ConnectionResetError("the server closed the connection")
        self._in += came
        ended: list[Call] = []
        data, place, length = self._in, 0, len(self._in)
        now = time.perf_counter()
        while length - place >= 9:
            size = data[place] << 16 | data[place + 1] << 8 | data[place + 2]
            end = place + 9 + size
            if end > length:
                break
            kind, flags = data[place + 3], data[place + 4]
            stream = int.from_bytes(data[place + 5 : place + 9], "big") & _LARGEST_WINDOW
            self._frame_came(kind, flags, stream, bytes(data[place + 9 : end]), now, ended)
            place = end
        del data[:place]
        if self._received > 1 << 29:
            self._put(_WINDOW, 0, 0, struct.pack(">I", self._received))
            self._received = 0
        return ended

    def lose(self) -> list[Call]:
        """Close, and return the calls that were running, as lost."""
        self.socket.close()
        lost, self.calls = list(self.calls.values()), {}
        for call in lost:
            call.ended, call.status = time.perf_counter(), LOST
        return lost

    def _frame_came(
        self, kind: int, flags: int, stream: int, payload: bytes, now: float, ended: list[Call]
    ) -> None:
        if kind == _DATA:
            self._received += len(payload)
            call = self.calls.get(stream)
            if call is not None:
                call.reply += payload
        elif kind == _HEADERS:
            if flags & _END_STREAM:
                call = self._end(stream, now)
                if call is not None:
                    call.status = grpc_status(payload)
                    if call.status != OK:
                        call.trailers = payload
                    ended.append(call)
        elif kind == _WINDOW:
            more = int.from_bytes(payload, "big")
            if not stream:
                self._window += more
            elif stream in self._open:
                self._open[stream].window += more
        elif kind == _SETTINGS:
            if not flags & _ACK:
                self._take_settings(payload)
        elif kind == _PING:
            if not flags & _ACK:
                self._put(_PING, _ACK, 0, payload)
        elif kind == _RESET:
            # After its status a server may reset what it has not read; that call has ended.
            call = self._end(stream, now)
            if call is not None:
                if int.from_bytes(payload, "big") == _REFUSED:
                    call.status = UNAVAILABLE  # it was never begun
                ended.append(call)
        elif kind == _GOAWAY:
            self.closing = True
            last = int.from_bytes(payload[:4], "big") & _LARGEST_WINDOW
            for later in [one for one in self.calls if one > last]:
                call = self._end(later, now)
                assert call is not None
                call.status = UNAVAILABLE  # as gRPC's own clients see it: it was never begun
                ended.append(call)

    def _end(self, stream: int, now: float) -> Call | None:
        upload = self._open.pop(stream, None)
        if upload is not None:
            self._uploads.remove(upload)
        call = self.calls.pop(stream, None)
        if call is not None:
            call.ended = now
        return call

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW:
                for upload in self._open.values():
                    upload.window += value - self._stream_window
                self._stream_window = value
            elif name == _MAX_FRAME:
                self._frame = value
        self._put(_SETTINGS, _ACK, 0, b"")

    def _fill(self) -> None:
        for upload in list(self._uploads):
            body = upload.body
            while upload.sent < len(body):
                size = min(len(body) - upload.sent, self._frame, upload.window, self._window)
                if size <= 0 or len(self._out) >= _BUFFERED:
                    break
                last = upload.sent + size == len(body)
                self._put(
                    _DATA,
                    _END_STREAM if last else 0,
                    upload.stream,
                    body[upload.sent : upload.sent + size],
                )
                upload.sent += size
                upload.window -= size
                self._window -= size
            if upload.sent == len(body):
                self._uploads.remove(upload)
                del self._open[upload.stream]
            if self._window <= 0 or len(self._out) >= _BUFFERED:
                return

    def _put(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._out += struct.pack(">I", len(payload) << 8 | kind)
        self._out += struct.pack(">BI", flags, stream)
        self._out += payload


@contextlib.contextmanager
def connected(
    port: int,
    path: str,
    count: int = 1,
    metadata: Sequence[tuple[str, str]] = (),
    timeout: float | None = None,
) -> Iterator[list[Connection]]:
    """Open so many connections, and close them in the end; see `Connection`."""
    connections: list[Connection] = []
    try:
        for _ in range(count):
            connections.append(Connection(port, path, metadata, timeout))
        yield connections
    finally:
        for connection in connections:
            connection.lose()


@dataclass
class Load:
    """A way to put calls on connections; `run` goes on until it has no more and all are answered.

    Args:
        connections: that calls go to.
        answered: told every call that has ended; may begin others.
    """

    connections: Sequence[Connection]
    answered: Callable[[Connection, Call], None]
    ended: list[Call] = field(default_factory=list)

    def run(
        self, due: Iterable[tuple[float, Connection, bytes]], *, last: float, patience: float = 30.0
    ) -> None:
        """Begin calls when they are due, and take replies.

        Args:
            due: (instant, connection, body), in the order of the instants.
            last: the instant after which nobody begins a call; with those answered it is the end.
            patience: seconds after `last` that calls have; what runs still is lost.
        """
        selector = selectors.DefaultSelector()
        for connection in self.connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        alive = list(self.connections)
        schedule = iter(due)
        coming = next(schedule, None)
        try:
            while alive:
                now = time.perf_counter()
                while coming is not None and coming[0] <= now:
                    if coming[1] in alive and not coming[1].closing:
                        coming[1].begin(Call(coming[2], coming[0]))
                    coming = next(schedule, None)
                for connection in list(alive):
                    try:
                        connection.flush()
                    except OSError:
                        self._lose(selector, alive, connection)
                        continue
                    wanted = selectors.EVENT_READ
                    if connection.wants_to_write:
                        wanted |= selectors.EVENT_WRITE
                    if selector.get_key(connection.socket).events != wanted:
                        selector.modify(connection.socket, wanted, connection)
                under_way = any(connection.calls for connection in alive)
                if coming is None and now >= last and not under_way:
                    return
                if now > last + patience:
                    for connection in list(alive):
                        self._lose(selector, alive, connection)
                    return
                wait = (coming[0] if coming is not None else now + 0.05) - now
                for key, events in selector.select(min(max(wait, 0.0), 0.05)):
                    connection = key.data
                    if not events & selectors.EVENT_READ:
                        continue
                    try:
                        came = connection.read()
                    except OSError:
                        self._lose(selector, alive, connection)
                        continue
                    for call in came:
                        self.ended.append(call)
                        self.answered(connection, call)
        finally:
            selector.close()

    def _lose(
        self,
        selector: selectors.BaseSelector,
        alive: list[Connection],
        connection: Connection,
    ) -> None:
        selector.unregister(connection.socket)
        alive.remove(connection)
        for call in connection.lose():
            self.ended.append(call)
            self.answered(connection, call)


def closed(
    connections: Sequence[Connection],
    bodies: Sequence[bytes],
    in_flight: int,
    seconds: float,
    most: int | None = None,
) -> list[Call]:
    """Keep so many calls in flight, spread over the connections, and return those that ended.

    Bodies are taken in turn. What is under way at the end is waited for; the end comes once `most`
    calls have begun, if that is given, and after so many seconds at the latest.
    """
    until = time.perf_counter() + seconds
    turn = 0

    def following() -> bytes:
        nonlocal turn
        turn += 1
        return bodies[(turn - 1) % len(bodies)]

    def answered(connection: Connection, call: Call) -> None:
        now = time.perf_counter()
        enough = now >= until or (most is not None and turn >= most)
        if not enough and not connection.closing and call.status != LOST:
            connection.begin(Call(following(), now))

    load = Load(connections, answered)
    now = time.perf_counter()
    first = [(now, connections[i % len(connections)], following()) for i in range(in_flight)]
    if most is None:
        load.run(first, last=until)
    else:
        load.run(first, last=now, patience=seconds)
    return load.ended


def paced(
    connections: Sequence[Connection], bodies: Sequence[bytes], times: Sequence[float]
) -> list[Call]:
    """Begin a call at each of the times, in seconds from now, whatever became of those before.

    Calls go to the connections in turn, and take the bodies in turn.
    """
    start = time.perf_counter()
    due = (
        (start + at, connections[i % len(connections)], bodies[i % len(bodies)])
        for i, at in enumerate(times)
    )
    load = Load(connections, lambda connection, call: None)
    load.run(due, last=start + (times[-1] if len(times) else 0.0))
    return load.ended


def grpc_status(block: bytes) -> int:
    """Find the status in a block of trailers that uses no header table; LOST where it has none."""
    place = block.find(b"grpc-status")
    if place < 0:
        return LOST
    place += len(b"grpc-status")
    size = block[place]  # gRPC never uses Huffman's code for it, whose lengths have the top bit
    value = block[place + 1 : place + 1 + size]
    return int(value) if value.isdigit() else LOST


def _request_header(
    port: int, path: str, metadata: Sequence[tuple[str, str]], timeout: float | None
) -> bytes:
    """Write the block of a call's header, in HPACK without a table (RFC 7541, appendix A)."""
    block = b"\x83\x86"  # :method POST, :scheme http
    block += b"\x04" + _text(path) + b"\x01" + _text(f"127.0.0.1:{port}")
    plain = [("content-type", "application/grpc"), ("te", "trailers"), *metadata]
    if timeout is not None:
        plain.append(("grpc-timeout", f"{round(timeout * 1e3)}m"))
    for name, value in plain:
        block += b"\x00" + _text(name) + _text(value)
    return block


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, extra = len(data) - 127, bytearray([127])
    while rest >= 128:
        extra.append(rest % 128 + 128)
        rest //= 128
    return bytes(extra) + bytes([rest]) + data
