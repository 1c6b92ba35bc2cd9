"""Headers and metadata that are too many, too long, or not what they seem."""

from __future__ import annotations

import json
import time

from tests.abuse.asking import alike, connected, grpc_answer, grpc_status, http_reply, mirror, raw
from tests.abuse.cases import theme
from tests.abuse.frames import (
    CONTINUATION,
    DATA,
    EMBED,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Http2,
    frame,
    head,
    message,
)
from tests.abuse.victim import SOUND, Victim

case = theme("Headers and metadata")
CALL = "embedding.Embed"


def http(victim: Victim, *lines: bytes) -> str:
    start = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    return raw(victim.http_port, start + b"".join(line + b"\r\n" for line in lines) + b"\r\n")


def http2(victim: Victim, *more: tuple[bytes, bytes], key: str = "ops") -> str:
    """Make a call with further headers, which no client library would send."""
    with connected(victim.grpc_port) as one:
        call = Http2(one)
        block = head(EMBED, victim.bearer(key), more)
        parts = [block[i : i + 16_000] for i in range(0, len(block), 16_000)]
        for number, part in enumerate(parts):
            flags = END_HEADERS if number == len(parts) - 1 else 0
            call.send(frame(CONTINUATION if number else HEADERS, flags, 1, part))
        data = SOUND.SerializeToString()
        call.send(frame(DATA, END_STREAM, 1, message(len(data), data)))
        return call.answer()


@case("64 KB of headers", "both", "RESOURCE_EXHAUSTED; 400")
def long_header(victim: Victim) -> str:
    value = b"x" * 65_536
    return f"{http2(victim, (b'x-long', value))}; {http(victim, b'X-Long: ' + value)}"


@case("1,000 headers", "both", "RESOURCE_EXHAUSTED; 400")
def many_headers(victim: Victim) -> str:
    many = [b"x-%d" % i for i in range(1000)]
    asked = http2(victim, *((name, b"y" * 20) for name in many))
    return f"{asked}; {http(victim, *(name + b': y' for name in many))}"


@case("CR, LF and NUL in a header's value", "gRPC", "OK")
def line_ends(victim: Victim) -> str:
    values = (b"a\r\nauthorization: x", b"a\nb", b"a\0b")
    return alike(http2(victim, (b"x-evil", value)) for value in values)


@case("bytes that are no text, in a key that does not end in -bin", "gRPC", "OK")
def binary(victim: Victim) -> str:
    return alike(http2(victim, (b"x-evil", value)) for value in (b"\xff\xfe\x01", b"\x7f\x80"))


@case("capital letters, a space, a colon in a header's name", "gRPC", "INTERNAL")
def bad_names(victim: Victim) -> str:
    return alike(http2(victim, (name, b"x")) for name in (b"X-Evil", b"x evil", b"x:evil", b""))


@case(
    "a second path behind the first: another role's method, with a key to read",
    "gRPC",
    "PERMISSION_DENIED",
)
def second_path(victim: Victim) -> str:
    found = []
    for path in ("GalleryService/DeleteGallery", "ModelService/UnloadModel"):
        more = (b":path", f"/twinserve.v1.{path}".encode())
        found.append(http2(victim, more, key="reader"))
    return alike(found)


@case("a path that is none, no path, a path of 5 KB", "gRPC", "UNIMPLEMENTED")
def bad_paths(victim: Victim) -> str:
    found = []
    for path in ("", "x", "/" + "x" * 5000, "/twinserve.v1.EmbeddingService"):
        with connected(victim.grpc_port) as one:
            call = Http2(one)
            call.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head(path, victim.bearer("ops"))))
            found.append(call.answer())
    return alike(found)


@case(
    "x-request-id with a line's end, JSON, 100 KB (to forge lines of the log)",
    "both",
    "OK; 200, with an id of the server's own",
)
def forged_logs(victim: Victim) -> str:
    seen = len(victim.guarded.server.errors)
    evil = '","level":"error","message":"forged'
    found = []
    for value in (evil, "forged\\nforged", "forged" * 1000, "forged forged", "<forged>"):
        sent = [("x-request-id", value)]
        request = SOUND.__class__(model="nobody", inputs=SOUND.inputs)
        status = grpc_status(victim, CALL, request, metadata=sent)
        assert "forged" not in str(status)
        _, headers, body = http_reply(
            victim, "/v1/embeddings", b'{"model":"nobody","input":"x"}', headers=sent
        )
        assert "forged" not in f"{headers}{body!r}"
        found.append(f"{grpc_answer(victim, CALL, SOUND, metadata=sent)}")
        found[-1] += f"; {mirror(victim, CALL, SOUND, headers=sent)}"
    lines = victim.guarded.server.errors[seen:]
    assert all(json.loads(line) for line in lines)
    assert not any("forged" in line for line in lines)
    return f"{alike(found)}, with an id of the server's own"


@case(
    "names in a call that would end a line of the log",
    "both",
    "NOT_FOUND MODEL_NOT_FOUND; 404 MODEL_NOT_FOUND",
)
def forged_by_name(victim: Victim) -> str:
    seen = len(victim.guarded.server.errors)
    request = SOUND.__class__(model='x\n{"level":"error","message":"forged"}', inputs=SOUND.inputs)
    found = f"{grpc_answer(victim, CALL, request)}; {mirror(victim, CALL, request)}"
    time.sleep(0.05)
    for line in victim.guarded.server.errors[seen:]:
        assert json.loads(line)["message"] != "forged"
    return found


@case("rubbish as priority", "both", "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT")
def priority(victim: Victim) -> str:
    found = []
    for value in ("urgent", "HIGH", "", "x" * 1000):
        sent = [("twinserve-priority", value)]
        found.append(
            f"{grpc_answer(victim, CALL, SOUND, metadata=sent)}; "
            f"{mirror(victim, CALL, SOUND, headers=sent)}"
        )
    return alike(found)


@case("a deadline of 0", "both", "DEADLINE_EXCEEDED; 504 DEADLINE_EXCEEDED")
def no_time(victim: Victim) -> str:
    http = mirror(victim, CALL, SOUND, headers=[("Connect-Timeout-Ms", "0")])
    return f"{http2(victim, (b'grpc-timeout', b'0n'))}; {http}"


@case("a deadline in ten years (longer than any server lives)", "both", "OK; 200")
def all_time(victim: Victim) -> str:
    years = 10 * 365 * 24
    http = mirror(victim, CALL, SOUND, headers=[("Connect-Timeout-Ms", "9999999999")])
    return f"{grpc_answer(victim, CALL, SOUND, timeout=years * 3600.0)}; {http}"


@case("a deadline that is no number, or negative", "both", "INTERNAL; 400 INVALID_INPUT")
def bad_time(victim: Victim) -> str:
    found = []
    for value in (b"soon", b"-1", b"1e3"):
        sent = [("Connect-Timeout-Ms", value.decode())]
        asked = http2(victim, (b"grpc-timeout", value))
        found.append(f"{asked}; {mirror(victim, CALL, SOUND, headers=sent)}")
    return alike(found)


@case("a traceparent that is none", "both", "OK; 200")
def traceparent(victim: Victim) -> str:
    found = []
    for value in ("00-0-0-00", "x" * 5000, "00-" + "f" * 32 + "-" + "0" * 16 + "-ff"):
        sent = [("traceparent", value), ("tracestate", "a=b," * 100)]
        found.append(
            f"{grpc_answer(victim, CALL, SOUND, metadata=sent)}; "
            f"{mirror(victim, CALL, SOUND, headers=sent)}"
        )
    return alike(found)


@case(
    "who says by a header that he comes from elsewhere (X-Forwarded-For)",
    "both",
    "UNAUTHENTICATED; 401 UNAUTHENTICATED",
)
def forwarded(victim: Victim) -> str:
    sent = [("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")]
    found = grpc_answer(victim, CALL, SOUND, key="", metadata=sent)
    return f"{found}; {mirror(victim, CALL, SOUND, key='', headers=sent)}"
