"""What is no HTTP, or twice HTTP, to the HTTP port."""

from __future__ import annotations

import contextlib
import gzip
import time

from tests.abuse.asking import alike, connected, http_answer, raw, received
from tests.abuse.cases import theme
from tests.abuse.victim import Victim

case = theme("HTTP requests")
BODY = b'{"model":"text","input":"word1"}'
BIG = 1 << 30


def head(victim: Victim, *lines: bytes, path: bytes = b"/v1/embeddings") -> bytes:
    """Write the head of a request with a valid key."""
    fixed = [b"POST " + path + b" HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
    fixed.append(b"Authorization: " + victim.bearer("ops").encode())
    return b"\r\n".join([*fixed, *lines]) + b"\r\n\r\n"


@case("a body of 1 GB, said in Content-Length", "HTTP", "413")
def gigabyte(victim: Victim) -> str:
    return raw(victim.http_port, head(victim, b"Content-Length: %d" % BIG))


@case("a body without an end, in chunks", "HTTP", "413, then closed")
def endless(victim: Victim) -> str:
    with connected(victim.http_port) as one:
        one.sendall(head(victim, b"Transfer-Encoding: chunked"))
        part = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        until = time.monotonic() + 8
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                one.sendall(part)
                time.sleep(0.001)
            return "taken for 8 s"
        found, _ = received(one, 1.0, most=4096)
    return f"{found[9:12].decode() or 'no answer'}, then closed"


@case(
    "a chunk that says it has 2^63 - 1 bytes or whose line does not end (waited for as any body)",
    "HTTP",
    "silent",
)
def huge_chunk(victim: Victim) -> str:
    start = head(victim, b"Transfer-Encoding: chunked")
    sizes = (b"7fffffffffffffff\r\n", b"1;" + b"x" * 100_000)
    return alike(raw(victim.http_port, start + one, 0.2) for one in sizes)


@case("a chunk whose size is none", "HTTP", "400")
def chunk_sizes(victim: Victim) -> str:
    start = head(victim, b"Transfer-Encoding: chunked")
    sizes = (b"-1\r\n", b"zz\r\n")
    return alike(raw(victim.http_port, start + one) for one in sizes)


@case("a body packed with gzip, deflate, br (a bomb or not)", "HTTP", "415 NOT_BUILT")
def packed(victim: Victim) -> str:
    bomb = gzip.compress(bytes(10 << 20))
    return alike(
        http_answer(victim, "/v1/embeddings", bomb, headers=[("Content-Encoding", kind)])
        for kind in ("gzip", "deflate", "br", "zstd", "gzip, gzip")
    )


@case("Content-Length and chunks at once, two lengths (request smuggling)", "HTTP", "400")
def smuggled(victim: Victim) -> str:
    both = (b"Content-Length: 4", b"Transfer-Encoding: chunked")
    other = (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity")
    ways = (both, other, (b"Content-Length: 4", b"Content-Length: 40"), (b"Content-Length: +4",))
    ways += (
        (b"Content-Length: -1",),
        (b"Content-Length: 0x10",),
        (b"Transfer-Encoding: xchunked",),
    )
    tail = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return alike(raw(victim.http_port, head(victim, *one) + tail) for one in ways)


@case(
    "a folded header, a CR alone, NUL, a space in a name, a line of 100 KB, HTTP/9.9", "HTTP", "400"
)
def broken_heads(victim: Victim) -> str:
    heads = (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA: b\r\n folded\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA\0: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA: b\0c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA : b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA: b\rc: d\r\n\r\n",
        b"GET /healthz\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    return alike(raw(victim.http_port, one) for one in heads)


@case("other verbs: DELETE, PUT, TRACE, GET of a method", "HTTP", "405")
def verbs(victim: Victim) -> str:
    path = "/twinserve.v1.GalleryService/DeleteGallery"
    return alike(http_answer(victim, path, verb=verb) for verb in ("DELETE", "PUT", "TRACE", "GET"))


@case(
    "1,000 requests at once on one connection (pipelining), the last of them sound",
    "HTTP",
    "1000 x 404, 1 x 200",
)
def pipelined(victim: Victim) -> str:
    with connected(victim.http_port) as one:
        one.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        found, is_closed = received(one, 8.0, most=1 << 22)
    assert is_closed
    return f"{found.count(b'HTTP/1.1 404')} x 404, {found.count(b'HTTP/1.1 200')} x 200"


@case("Upgrade to WebSocket, to HTTP/2", "HTTP", "200")
def upgrades(victim: Victim) -> str:
    found = []
    for kind in (b"websocket", b"h2c"):
        lines = (b"Connection: Upgrade", b"Upgrade: " + kind, b"Content-Length: %d" % len(BODY))
        found.append(raw(victim.http_port, head(victim, *lines) + BODY))
    return alike(found)


@case("`Expect: 100-continue` and then nothing; something else expected", "HTTP", "100, 417")
def expects(victim: Victim) -> str:
    start = head(victim, b"Expect: 100-continue", b"Content-Length: 5")
    other = head(victim, b"Expect: the-unexpected", b"Content-Length: 5") + b"12345"
    return f"{raw(victim.http_port, start)}, {raw(victim.http_port, other)}"


@case("a page of another site asks from a browser (CORS)", "HTTP", "401, nothing allowed")
def other_origin(victim: Victim) -> str:
    lines = (
        b"OPTIONS /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n"
    )
    lines += b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
    with connected(victim.http_port) as one:
        one.sendall(lines)
        found, _ = received(one, 0.5)
    assert b"Access-Control" not in found
    return f"{found[9:12].decode()}, nothing allowed"
