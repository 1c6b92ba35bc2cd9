"""What is no gRPC, or too much HTTP/2, to the gRPC port; and each port's clients at the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.abuse import frames
from tests.abuse.asking import alike, connected, grpc_answer, mirror, raw
from tests.abuse.cases import theme
from tests.abuse.frames import (
    CONTINUATION,
    DATA,
    EMBED,
    EMBED_STREAM,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RESET,
    SETTINGS,
    Http2,
    frame,
    head,
    literal,
)
from tests.abuse.victim import SOUND, Victim
from twinserve.v1 import embedding_service_pb2 as embedding
from twinserve.v1.shared_pb2 import Input

case = theme("gRPC and HTTP/2")
GIB = 1 << 30
TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(154)


def sent(victim: Victim, *data: bytes, path: str = EMBED) -> str:
    """Begin a call, send these bytes as its messages, and end it."""
    with connected(victim.grpc_port) as one:
        http2 = Http2(one)
        http2.send(frame(HEADERS, END_HEADERS, 1, head(path, victim.bearer("ops"))))
        http2.send(*(frame(DATA, 0, 1, part) for part in data), frame(DATA, END_STREAM, 1))
        return http2.answer()


@case("a message that says it has 1 GB", "gRPC", "RESOURCE_EXHAUSTED")
def gigabyte(victim: Victim) -> str:
    with connected(victim.grpc_port) as one:
        http2 = Http2(one)
        http2.send(frame(HEADERS, END_HEADERS, 1, head(EMBED, victim.bearer("ops"))))
        http2.send(frame(DATA, 0, 1, frames.message(GIB)))
        return http2.answer()


@case(
    "a message that says it has 15 MB, of which nothing comes, on 100 streams",
    "gRPC",
    "silent; a sound call beside them: OK",
)
def promised(victim: Victim) -> str:
    with connected(victim.grpc_port) as one:
        http2 = Http2(one)
        for number in range(100):
            stream = 2 * number + 1
            http2.send(frame(HEADERS, END_HEADERS, stream, head(EMBED, victim.bearer("ops"))))
            http2.send(frame(DATA, 0, stream, frames.message(15 << 20)))
        answer = http2.answer(0.3)
        beside = grpc_answer(victim, "embedding.Embed", SOUND)
    return f"{answer}; a sound call beside them: {beside}"


@case("a message of 20 KB that unpacks to 20 MB (gzip)", "gRPC", "RESOURCE_EXHAUSTED")
def gzip_bomb(victim: Victim) -> str:
    request = embedding.EmbedRequest(model="image", inputs=[Input(image=bytes(20 << 20))])
    return grpc_answer(victim, "embedding.Embed", request, compression=grpc.Compression.Gzip)


@case("a message that says it is packed, and is not", "gRPC", "INTERNAL")
def not_packed(victim: Victim) -> str:
    return sent(victim, frames.message(4, b"1234", flag=1))


@case("a message whose flag there is none of", "gRPC", "refused")
def bad_flag(victim: Victim) -> str:
    found = sent(victim, frames.message(4, b"1234", flag=7))
    # The core reads some of it, or none, before it finds out.
    assert found in ("UNIMPLEMENTED", "INVALID_ARGUMENT", "INTERNAL"), found
    return "refused"


@case("a message that ends early; half a prefix; nothing", "gRPC", "UNIMPLEMENTED")
def cut(victim: Victim) -> str:
    return alike(sent(victim, one) for one in (frames.message(100, b"123"), b"\0\0", b""))


@case("bytes that are no protobuf", "gRPC", "INTERNAL")
def no_protobuf(victim: Victim) -> str:
    return alike(sent(victim, frames.message(len(one), one)) for one in (b"\xff" * 64, b"\x0a\x7f"))


@case("HTTP/1.1 to the gRPC port", "gRPC", "closed")
def http1(victim: Victim) -> str:
    return raw(victim.grpc_port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


@case("gRPC to the HTTP port", "HTTP", "400, to the client UNAVAILABLE")
def grpc_to_http(victim: Victim) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{victim.http_port}") as channel:
        asked = grpc_answer(victim, "embedding.Embed", SOUND, channel=channel, timeout=5)
    return f"{raw(victim.http_port, frames.PREFACE)}, to the client {asked}"


@case("a TLS hello to a port without TLS", "both", "closed; 400")
def tls(victim: Victim) -> str:
    return f"{raw(victim.grpc_port, TLS_HELLO)}; {raw(victim.http_port, TLS_HELLO)}"


@case("random bytes", "both", "closed; 400")
def noise(victim: Victim) -> str:
    data = bytes((i * 167 + 13) % 251 for i in range(4096))
    return f"{raw(victim.grpc_port, data)}; {raw(victim.http_port, data)}"


@case("a frame of 16 MB, a frame of another size than its kind has", "gRPC", "connection closed")
def frame_sizes(victim: Victim) -> str:
    found = []
    for data in (b"\xff\xff\xff\0\0\0\0\0\1", frame(PING, 0, 0, b"123"), frame(RESET, 0, 1, b"1")):
        with connected(victim.grpc_port) as one:
            http2 = Http2(one)
            http2.send(data, bytes(1024))
            found.append(http2.answer(2.0))
    return alike(found)


@case(
    "10,000 streams opened and reset at once (rapid reset)",
    "gRPC",
    "stream reset (ENHANCE_YOUR_CALM); a sound call meanwhile: OK",
)
def rapid_reset(victim: Victim) -> str:
    return _flood(victim, reset, seconds=5.0)


def reset(victim: Victim, number: int) -> bytes:
    """Open a stream and reset it."""
    stream = 2 * number + 1
    opened = frame(HEADERS, END_HEADERS, stream, head(EMBED_STREAM, victim.bearer("ops")))
    return opened + frame(RESET, 0, stream, b"\0\0\0\x08")


@case(
    "10,000 pings",
    "gRPC",
    "connection closed (ENHANCE_YOUR_CALM); a sound call meanwhile: OK",
)
def pings(victim: Victim) -> str:
    return _flood(victim, lambda victim, number: frame(PING, 0, 0, bytes(8)), seconds=5.0)


@case("10,000 settings", "gRPC", "silent; a sound call meanwhile: OK")
def settings(victim: Victim) -> str:
    return _flood(victim, lambda victim, number: frame(SETTINGS, 0, 0))


@case("10,000 empty frames on one stream", "gRPC", "silent; a sound call meanwhile: OK")
def empty_frames(victim: Victim) -> str:
    start = frame(HEADERS, END_HEADERS, 1, head(EMBED_STREAM, victim.bearer("ops")))
    return _flood(victim, lambda victim, number: frame(DATA, 0, 1), start)


@case(
    "headers that never end (a flood of CONTINUATION)", "gRPC", "silent; a sound call meanwhile: OK"
)
def continuation(victim: Victim) -> str:
    start = frame(HEADERS, 0, 1, head(EMBED, victim.bearer("ops")))
    part = literal(b"x-more", b"x" * 100)
    return _flood(victim, lambda victim, number: frame(CONTINUATION, 0, 1, part), start)


@case(
    "a header of 4 KB sent once and named 10,000 times (an HPACK bomb)",
    "gRPC",
    "RESOURCE_EXHAUSTED",
)
def hpack_bomb(victim: Victim) -> str:
    value = b"x" * 3900
    kept = b"\x40" + literal(b"x-bomb", value)[1:]  # with incremental indexing: index 62
    with connected(victim.grpc_port) as one:
        http2 = Http2(one)
        first = head(EMBED, victim.bearer("ops")) + kept + b"\xbe" * 10_000
        http2.send(frame(HEADERS, END_HEADERS, 1, first), frame(DATA, END_STREAM, 1))
        return http2.answer()


Part = Callable[[Victim, int], bytes]


def _flood(victim: Victim, part: Part, start: bytes = b"", seconds: float = 0.2) -> str:
    """Send 10,000 parts, and say how the connection fares and a sound call meanwhile.

    Args:
        victim: that is flooded.
        part: makes each, given its number.
        start: what goes before.
        seconds: to wait for the connection's end.
    """
    count = 10_000
    used = victim.processor_seconds()
    with connected(victim.grpc_port) as one:
        http2 = Http2(one)
        http2.send(start)
        answered = ""
        for number in range(0, count, 100):
            if not http2.send(*(part(victim, number + i) for i in range(100))):
                break
            if number == count // 2:
                answered = grpc_answer(victim, "embedding.Embed", SOUND)
        answered = answered or grpc_answer(victim, "embedding.Embed", SOUND)
        found = http2.answer(seconds)
    assert victim.processor_seconds() - used < 10, "processor time"
    return f"{found}; a sound call meanwhile: {answered}"


@case("1,000 streams left open on one connection", "gRPC", "silent; a sound call beside them: OK")
def many_streams(victim: Victim) -> str:
    return streams(victim, 1000, 0.2)


@case(
    "5,000 streams left open on one connection, with one key",
    "gRPC",
    "stream reset (ENHANCE_YOUR_CALM); a sound call beside them: OK",
)
def too_many_streams(victim: Victim) -> str:
    return streams(victim, 5000, 5.0)


def streams(victim: Victim, count: int, seconds: float) -> str:
    """Leave so many streams open, and say how a sound call of another key fares meanwhile."""
    with connected(victim.grpc_port) as one:
        http2 = Http2(one)
        fields = head(EMBED_STREAM, victim.bearer("reader"))
        for number in range(count):
            http2.send(frame(HEADERS, END_HEADERS, 2 * number + 1, fields))
        found = http2.answer(seconds)
        beside = grpc_answer(victim, "embedding.Embed", SOUND, key="ops")
    return f"{found}; a sound call beside them: {beside}"


@case(
    "5,000 streams left open with one key, on five connections",
    "both",
    "RESOURCE_EXHAUSTED; 429 CLIENT_OVER_SHARE; a sound call of another key: OK",
    mib=160,
)
def streams_of_one_key(victim: Victim) -> str:
    with spread(victim, head(EMBED_STREAM, victim.bearer("reader"))) as found:
        by_http = mirror(victim, "embedding.Embed", SOUND, key="reader")
        beside = grpc_answer(victim, "embedding.Embed", SOUND, key="ops")
    return f"{found}; {by_http}; a sound call of another key: {beside}"


@case(
    "5,000 watchers of health without a key, on five connections",
    "gRPC",
    "RESOURCE_EXHAUSTED; a sound call: OK, a probe: OK",
    mib=160,
)
def watchers(victim: Victim) -> str:
    everything = frame(DATA, END_STREAM, 1, frames.message(0))
    with spread(victim, head("/grpc.health.v1.Health/Watch"), everything) as found:
        beside = grpc_answer(victim, "embedding.Embed", SOUND)
        probe = health_pb2_grpc.HealthStub(victim.channel)
        served = probe.Check(health_pb2.HealthCheckRequest(), timeout=5).status
    assert served == health_pb2.HealthCheckResponse.SERVING
    return f"{found}; a sound call: {beside}, a probe: OK"


@contextlib.contextmanager
def spread(victim: Victim, fields: bytes, data: bytes = b"") -> Iterator[str]:
    """Leave a thousand streams open on each of five connections; how the last were answered."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            http2 = Http2(stack.enter_context(connected(victim.grpc_port)))
            for stream in range(1, 2001, 2):
                http2.send(frame(HEADERS, END_HEADERS, stream, fields))
                if data:
                    http2.send(data[:5] + stream.to_bytes(4, "big") + data[9:])
        yield next((one for one in http2.answers(5.0) if one != "OK"), "silent")
