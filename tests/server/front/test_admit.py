"""The door that a front asks: before a message is read, and whose call it then is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.server.front.conftest import Running
from twinserve.server.front import Call, driven
from twinserve.server.security.access import Access

Start = Callable[..., Running]
KEY = "key"


class Unknown(grpc.Status):
    """What a call without a key is answered with."""

    code = grpc.StatusCode.UNAUTHENTICATED
    details = "no key"
    trailing_metadata = (("why", "no key"),)


def admit(method: str, metadata: Any, peer: str) -> Access | grpc.Status:
    key = dict(metadata).get(KEY)
    return Unknown() if key is None else Access(key)


@driven
async def whose(request: bytes, context: Call) -> bytes:
    return f"{context.access.client} {context.client()}".encode()


async def whose_stream(requests: Any, context: Call) -> bytes:
    return f"{context.access.client} {len([one async for one in requests])}".encode()


def test_who_is_not_let_in_is_answered_before_anything_is_read(run_front: Start) -> None:
    asked: list[tuple[str, str]] = []

    def listening(method: str, metadata: Any, peer: str) -> Access | grpc.Status:
        asked.append((method, peer.partition(":")[0]))
        return admit(method, metadata, peer)

    running = run_front({"Whose": ("uu", whose)}, admit=listening)
    channel = running.channel()
    for method, message in (("/s/Whose", bytes(2 << 20)), ("/s/Nothing", b"")):
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(method)(message)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert dict(refused.value.trailing_metadata())["why"] == "no key"
    running.settle()
    assert running.front.refused == 2
    assert asked == [("/s/Whose", "ipv4"), ("/s/Nothing", "ipv4")]


def test_a_method_sees_what_its_caller_was_let_in_with(run_front: Start) -> None:
    methods = {"Whose": ("uu", whose), "Stream": ("su", whose_stream)}
    running = run_front(methods, admit=admit)
    channel = running.channel()
    metadata = ((KEY, "shop"),)
    assert channel.unary_unary("/s/Whose")(b"", metadata=metadata) == b"shop shop"
    assert channel.stream_unary("/s/Stream")(iter([b"", b""]), metadata=metadata) == b"shop 2"


def test_without_a_door_everybody_is_let_in_and_told_apart_by_connection(run_front: Start) -> None:
    running = run_front({"Whose": ("uu", whose)})
    first, second = (running.channel().unary_unary("/s/Whose")(b"").decode() for _ in range(2))
    assert first.startswith(" ipv4:127.0.0.1:")
    assert first != second


def test_ten_connections_of_one_key_have_one_turn(run_front: Start) -> None:
    began, go_on = threading.Event(), threading.Event()
    order: list[bytes] = []

    @driven
    async def note(request: bytes, context: Call) -> bytes:
        order.append(request)
        if request == b"first":
            began.set()
            go_on.wait(20)  # the front is held while the others' messages come
        return request

    running = run_front({"Note": ("uu", note)}, admit=admit)
    crowd = [running.channel().unary_unary("/s/Note") for _ in range(10)]
    one = running.channel().unary_unary("/s/Note")
    mine, theirs = ((KEY, "one"),), ((KEY, "crowd"),)
    for call in crowd:
        call(b"", metadata=theirs)
    one(b"", metadata=mine)
    order.clear()
    futures = [crowd[0].future(b"first", metadata=theirs)]
    assert began.wait(10)
    futures += [call.future(b"crowd", metadata=theirs) for call in crowd for _ in range(3)]
    futures += [one.future(b"one", metadata=mine) for _ in range(4)]
    threading.Event().wait(1.0)
    go_on.set()
    for future in futures:
        future.result(20)
    last = max(place for place, who in enumerate(order) if who == b"one")
    assert last <= 10, order
