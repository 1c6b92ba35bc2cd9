"""Connections that are too many, silent, slow, or gone."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
import numpy as np

from tests import twins
from tests.abuse.asking import alike, connected, grpc_answer, http_answer, received
from tests.abuse.cases import theme
from tests.abuse.http_requests import head
from tests.abuse.inputs import space_of
from tests.abuse.victim import PIXELS, SOUND, Victim
from tests.conftest import start
from tests.server import wire
from twinserve.server.gateway.body import READ_SECONDS, SEND_SECONDS
from twinserve.server.security.connections import HANDSHAKE_SECONDS, HTTP_SECONDS
from twinserve.v1 import embedding_service_pb2 as embedding
from twinserve.v1 import gallery_service_pb2 as pb

case = theme("Connections")
MOST = 200  # that the server takes; see conftest


@contextlib.contextmanager
def opened(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open so many connections and say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connected(port)) for _ in range(count)]


def is_closed(one: socket.socket) -> bool:
    """Say whether the other side has closed a connection by now."""
    one.setblocking(False)
    try:
        while data := one.recv(65536):
            assert data
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def still_open(many: list[socket.socket], most: int, seconds: float = 5.0) -> int:
    """Wait until no more than so many are open, and return how many are."""
    until = time.monotonic() + seconds
    while (count := sum(not is_closed(one) for one in many)) > most and time.monotonic() < until:
        time.sleep(0.05)
    return count


@case(
    "220 idle connections to a server that takes 200 (--max-connections)",
    "both",
    "those above the bound closed, who is inside is served: OK",
)
def idle(victim: Victim) -> str:
    found = []
    for port in (victim.grpc_port, victim.http_port):
        with opened(port, 220) as many:
            left = still_open(many, MOST)
            assert left > MOST / 2
            found.append("those above the bound closed" if left <= MOST else f"{left} open")
            found[-1] += (
                f", who is inside is served: {grpc_answer(victim, 'embedding.Embed', SOUND)}"
            )
    return alike(found)


@case(
    "10,000 idle connections to a server that takes them",
    "both",
    "those above the bound closed, who is inside is served: OK",
    mib=1024,
    is_long=True,
)
def ten_thousand(victim: Victim) -> str:
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = victim.folder / "idle"
    folder.mkdir()
    (folder / "image.onnx").write_bytes(twins.small_image_twin("image"))
    flags = ("--max-connections", "9900", "--runners", "1", "--threads", "1")
    server = start("--model", folder / "image.onnx", "--data-dir", folder / "data", *flags)
    try:
        other = Victim(replace(victim.guarded, server=server), folder)
        assert grpc_answer(other, "embedding.Embed", SOUND) == "OK"  # inside before the others
        found = []
        for name, port in (("gRPC", server.grpc_port), ("HTTP", server.http_port)):
            before = other.memory()
            with opened(port, 10_000) as many:
                left = still_open(many, 9900, 15.0)
                grown = other.memory() - before
                print(
                    f"{name}: {left} open, {grown:.0f} MiB more, {grown * 1024 / left:.1f} KiB each"
                )
                answer = grpc_answer(other, "embedding.Embed", SOUND)
                assert left > 9000, left
                assert grown < 512
                found.append(f"those above the bound closed, who is inside is served: {answer}")
        other.channel.close()
        return alike(found)
    finally:
        server.kill()
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


@case("connections that end with a reset in the middle of a request, 100 times", "both", "OK; 200")
def resets(victim: Victim) -> str:
    at_once = struct.pack("ii", 1, 0)
    parts = {
        victim.grpc_port: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        victim.http_port: head(victim, b"Content-Length: 1000") + b"{",
    }
    for port, part in parts.items():
        for _ in range(50):
            with connected(port) as one:
                one.sendall(part)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    return f"{grpc_answer(victim, 'embedding.Embed', SOUND)}; {http_answer(victim, '/v1/models')}"


@case("half-open: the client has closed its side and waits", "HTTP", "closed")
def half_open(victim: Victim) -> str:
    found = []
    for data in (b"", b"GET /healthz HTTP/1.1\r\nHo", head(victim, b"Content-Length: 1000") + b"{"):
        with connected(victim.http_port) as one:
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
            said, closed = received(one, 5.0)
            found.append("closed" if closed else f"open {said!r}")
    return alike(found)


@case("100 bodies that begin and do not go on", "HTTP", "calls beside them: OK; 200")
def slow_bodies(victim: Victim) -> str:
    with opened(victim.http_port, 100) as many:
        for one in many:
            one.sendall(head(victim, b"Content-Length: 15000000") + bytes(1000))
        time.sleep(0.1)
        beside = (
            f"{grpc_answer(victim, 'embedding.Embed', SOUND)}; {http_answer(victim, '/v1/models')}"
        )
    return f"calls beside them: {beside}"


@case(
    "a stream whose replies are never read",
    "gRPC",
    "the server reads no more of it; a sound call beside it: OK",
    mib=128,
)
def slow_reader(victim: Victim) -> str:
    inputs = [wire.tensor(PIXELS[0])] * 1024
    message = embedding.EmbedStreamRequest(
        request=embedding.EmbedRequest(model="image", inputs=inputs)
    )
    taken = 0

    def messages() -> Iterator[embedding.EmbedStreamRequest]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield message

    metadata = [("authorization", victim.bearer("reader"))]
    # Else the client's library would read megabytes ahead.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    with grpc.insecure_channel(victim.guarded.server.target, options) as channel:
        stream = wire.Stubs(channel).embedding.EmbedStream(messages(), metadata=metadata)
        until, last = time.monotonic() + 5, -1
        while taken != last and time.monotonic() < until:
            last = taken
            time.sleep(0.5)
        beside = grpc_answer(victim, "embedding.Embed", SOUND)
        stream.cancel()
    found = "the server reads no more of it" if taken == last else f"{taken} messages were taken"
    return f"{found}; a sound call beside it: {beside}"


@case("an export that is never read", "gRPC", "writes beside it: OK")
def slow_export(victim: Victim) -> str:
    metadata = [("authorization", victim.bearer("ops"))]
    request = pb.ExportItemsRequest(gallery="north-1")
    unread = [victim.stubs.gallery.ExportItems(request, metadata=metadata) for _ in range(100)]
    time.sleep(0.2)
    enroll = pb.EnrollRequest(gallery="north-1")
    enroll.items.add(input=wire.tensor(PIXELS[0])).item.id = "meanwhile"
    found = grpc_answer(victim, "gallery.Enroll", enroll)
    for one in unread:
        one.cancel()
    return f"writes beside it: {found}"


@case("20 replies of 4 MB that are never read", "HTTP", "calls beside them: OK; 200", mib=256)
def slow_http_reader(victim: Victim) -> str:
    with _unread(victim, 20):
        grpc_found = grpc_answer(victim, "embedding.Embed", SOUND)
        beside = f"{grpc_found}; {http_answer(victim, '/v1/models')}"
    return f"calls beside them: {beside}"


@contextlib.contextmanager
def _unread(victim: Victim, count: int) -> Iterator[list[socket.socket]]:
    """Ask for large replies, more than the kernel holds for a client, and read none."""
    _enroll_heavy(victim)
    body = b'{"gallery":"heavy","pageSize":1000,"view":"ITEM_VIEW_FULL"}'
    request = head(
        victim, b"Content-Length: %d" % len(body), path=b"/twinserve.v1.GalleryService/ListItems"
    )
    with contextlib.ExitStack() as stack:
        many = []
        for _ in range(count):
            one = stack.enter_context(connected(victim.http_port, buffer=2048))
            one.sendall(request + body)
            many.append(one)
        time.sleep(0.5)
        yield many


def _enroll_heavy(victim: Victim) -> None:
    """Have a gallery of 1,000 items with 4 KB each."""
    with victim.guarded.client("ops") as client:
        if any(one.name == "heavy" for one in client.list_galleries()):
            return
        client.create_gallery("heavy", model="image", metadata_keys={"note": "text"})
    request = pb.EnrollRequest(
        gallery="heavy",
        embeddings=np.ones((1000, 16), "<f4").tobytes(),
        space_id=space_of(victim),
    )
    for number in range(1000):
        item = request.items.add().item
        item.id = f"item-{number}"
        item.metadata["note"].text = "x" * 4000
    assert grpc_answer(victim, "gallery.Enroll", request) == "OK"


@case(
    "calls that are cancelled as soon as they are made, 1,000 times",
    "gRPC",
    "a sound call right behind them: OK",
)
def cancelled(victim: Victim) -> str:
    metadata = [("authorization", victim.bearer("reader"))]
    for _ in range(1000):
        victim.stubs.embedding.Embed.future(SOUND, metadata=metadata).cancel()
    return f"a sound call right behind them: {grpc_answer(victim, 'embedding.Embed', SOUND)}"


def closed_within(one: socket.socket, least: float, most: float) -> str:
    """Wait for the other side to close, which takes so many seconds."""
    began = time.monotonic()
    _, closed = received(one, most)
    took = time.monotonic() - began
    assert not closed or took >= least, f"closed after {took:.1f} s already"
    return "closed" if closed else "open"


@case(
    f"a connection that says nothing (closed after {HANDSHAKE_SECONDS} s)",
    "gRPC",
    "closed",
    is_long=True,
)
def silent(victim: Victim) -> str:
    with connected(victim.grpc_port) as one:
        return closed_within(one, HANDSHAKE_SECONDS - 2, HANDSHAKE_SECONDS + 10)


@case(
    f"a head that trickles in, slowloris (closed after {HTTP_SECONDS} s)",
    "HTTP",
    "closed",
    is_long=True,
)
def slowloris(victim: Victim) -> str:
    with connected(victim.http_port) as one:
        began = time.monotonic()
        one.sendall(b"GET /healthz HTTP/1.1\r\n")
        while time.monotonic() - began < HTTP_SECONDS + 15:
            _, closed = received(one, 5.0)
            if closed:
                return "closed"
            with contextlib.suppress(OSError):
                one.sendall(b"X-More: x\r\n")
    return "open"


@case(f"a body that trickles in (refused after {READ_SECONDS:.0f} s)", "HTTP", "408", is_long=True)
def slow_body(victim: Victim) -> str:
    with connected(victim.http_port) as one:
        began = time.monotonic()
        one.sendall(head(victim, b"Content-Length: 1000"))
        found = b""
        while time.monotonic() - began < READ_SECONDS + 15 and not found:
            with contextlib.suppress(OSError):
                one.sendall(b" ")
            found, _ = received(one, 2.0)
    return found[9:12].decode() or "open"


@case(
    f"a reply that is never read (closed after {SEND_SECONDS:.0f} s)",
    "HTTP",
    "closed before its end",
    is_long=True,
)
def unread_reply(victim: Victim) -> str:
    with _unread(victim, 1) as (one,):
        time.sleep(SEND_SECONDS + 5)
        found, closed = received(one, 5.0, most=1 << 26)
    return "closed before its end" if closed else f"open, {len(found)} bytes"
