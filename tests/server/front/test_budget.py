"""Bytes of large messages: counted while their calls are inside, refused where there is no room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.server.front.conftest import Running
from twinserve.server.completion import Completion
from twinserve.server.front import Call, driven
from twinserve.server.front.budget import LARGE, StreamBytes
from twinserve.server.gate import Gate
from twinserve.server.services.embedding_stream import Window

Start = Callable[..., Running]
CODE = grpc.StatusCode


class NoRoom(grpc.Status):
    """What is refused with."""

    code = CODE.RESOURCE_EXHAUSTED
    details = "no room"
    trailing_metadata = (("again", "soon"),)


class Room:
    """A budget that a test can read, and fill."""

    def __init__(self, most: int = 1 << 40) -> None:
        self.most = most
        self.crowded = False
        self.taken: dict[str, int] = {}
        self.asked = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return sum(self.taken.values())

    def take(self, size: int, client: str) -> grpc.Status | None:
        with self._lock:
            self.asked += 1
            if self.bytes + size > self.most:
                return NoRoom()
            self.taken[client] = self.taken.get(client, 0) + size
            return None

    def give_back(self, size: int, client: str) -> None:
        with self._lock:
            self.taken[client] -= size

    def settle(self, size: int) -> None:
        """Wait until so many bytes are inside."""
        until = time.monotonic() + 15
        while self.bytes != size:
            assert time.monotonic() < until, f"{self.bytes} bytes are inside, not {size}"
            time.sleep(0.01)


class Waiting:
    """A method that answers once it is told to."""

    def __init__(self) -> None:
        self.go_on: Completion[None] = Completion()

    async def run(self, request: bytes, context: Call) -> bytes:
        if len(request) > 1:
            await self.go_on
        return request[:1]


@pytest.mark.parametrize("way", [driven, lambda method: method], ids=["driven", "task"])
def test_a_large_message_counts_until_its_call_is_over(run_front: Start, way: Any) -> None:
    room, waiting = Room(), Waiting()

    async def wait(request: bytes, context: Call) -> bytes:
        return await waiting.run(request, context)

    running = run_front({"Wait": ("uu", way(wait))}, budget=room)
    call = running.channel().unary_unary("/s/Wait")
    inside = [call.future(bytes(LARGE + i)) for i in range(2)]
    room.settle(2 * LARGE + 1)
    assert next(iter(room.taken)).startswith("ipv4:127.0.0.1:"), "they are a client's"
    waiting.go_on.set_result(None)
    assert [one.result(20) for one in inside] == [b"\0", b"\0"]
    room.settle(0)
    inside = [call.future(bytes(LARGE))]
    inside[0].cancel()
    room.settle(0)
    running.settle()


def test_small_messages_do_not_ask(run_front: Start) -> None:
    @driven
    async def echo(request: bytes, context: Call) -> bytes:
        return request

    room = Room(most=0)
    running = run_front({"Echo": ("uu", echo)}, budget=room)
    small = bytes(LARGE - 1)
    assert running.channel().unary_unary("/s/Echo")(small) == small
    assert room.asked == 0


@pytest.mark.parametrize("way", [driven, lambda method: method], ids=["driven", "task"])
def test_a_large_message_without_room_is_refused_before_its_method_begins(
    run_front: Start, way: Any
) -> None:
    room, waiting = Room(most=LARGE + 10), Waiting()

    async def wait(request: bytes, context: Call) -> bytes:
        return await waiting.run(request, context)

    running = run_front({"Wait": ("uu", way(wait))}, budget=room)
    call = running.channel().unary_unary("/s/Wait")
    first = call.future(bytes(LARGE))
    room.settle(LARGE)
    with pytest.raises(grpc.RpcError) as refused:
        call(bytes(LARGE), timeout=20)
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert refused.value.details() == "no room"
    assert dict(refused.value.trailing_metadata())["again"] == "soon"
    assert call(b"1") == b"1", "small ones have room"
    waiting.go_on.set_result(None)
    assert first.result(20) == b"\0"
    room.settle(0)
    assert call(bytes(LARGE), timeout=20) == b"\0"
    running.settle()


class Bulk:
    """A stream in a window, whose messages are answered when a test says so."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.go_on: Completion[None] = Completion()

    async def answer(self, message: bytes) -> bytes:
        self.begun.append(len(message))
        await self.go_on
        return message[:1]

    def method(self) -> Any:
        gate = Gate()

        @driven
        async def stream(requests: object, call: Call) -> None:
            await Window(call, self.answer, gate, size=1 << 40).run()

        return stream

    def wait(self, count: int) -> None:
        until = time.monotonic() + 15
        while len(self.begun) < count:
            assert time.monotonic() < until, self.begun
            time.sleep(0.01)


def test_a_streams_messages_count_until_each_is_answered(run_front: Start) -> None:
    room, bulk = Room(), Bulk()
    running = run_front({"S": ("ss", bulk.method())}, budget=room)
    more = threading.Event()

    def messages() -> Iterator[bytes]:
        yield bytes(LARGE)
        yield bytes(LARGE // 2)
        yield bytes(LARGE // 2)
        more.wait(20)

    replies = running.channel().stream_stream("/s/S")(messages())
    room.settle(2 * LARGE)
    assert room.asked == 2, "small ones ask together"
    bulk.go_on.set_result(None)
    assert [next(replies) for _ in range(3)] == [b"\0"] * 3
    room.settle(0)
    more.set()
    assert list(replies) == []
    running.settle()


def test_a_stream_that_is_left_gives_its_bytes_back(run_front: Start) -> None:
    room, bulk = Room(), Bulk()
    running = run_front({"S": ("ss", bulk.method())}, budget=room)
    replies = running.channel().stream_stream("/s/S")(iter([bytes(LARGE), bytes(10)]))
    bulk.wait(2)
    assert room.bytes == LARGE
    replies.cancel()
    room.settle(0)
    running.settle()


def test_a_stream_is_not_read_while_it_is_crowded(run_front: Start) -> None:
    room, bulk = Room(), Bulk()
    bulk.go_on.set_result(None)
    room.crowded = True
    running = run_front({"S": ("ss", bulk.method())}, budget=room)
    replies = running.channel().stream_stream("/s/S")(iter([bytes(LARGE), b"1"]))
    time.sleep(0.4)
    assert bulk.begun == []
    room.crowded = False
    assert list(replies) == [b"\0", b"1"]
    running.settle()


def test_a_stream_whose_message_finds_no_room_answers_those_before_and_ends(
    run_front: Start,
) -> None:
    room, bulk = Room(most=2 * LARGE), Bulk()
    running = run_front({"S": ("ss", bulk.method())}, budget=room)
    sizes = [LARGE, 1, LARGE + 1, 1]
    replies = running.channel().stream_stream("/s/S")(bytes(size) for size in sizes)
    bulk.wait(2)
    until = time.monotonic() + 15
    while room.asked < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    bulk.go_on.set_result(None)
    assert [next(replies), next(replies)] == [b"\0", b"\0"]
    with pytest.raises(grpc.RpcError) as refused:
        next(replies)
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert bulk.begun == [LARGE, 1]
    room.settle(0)
    running.settle()


def test_a_method_that_asks_for_the_next_message_is_done_with_the_last(run_front: Start) -> None:
    room = Room()
    most: list[int] = []

    async def count(requests: Any, context: Call) -> bytes:
        async for _ in requests:
            most.append(room.bytes)
        return b"done"

    running = run_front({"Count": ("su", count)}, budget=room)
    reply = running.channel().stream_unary("/s/Count")(iter([bytes(LARGE)] * 3))
    assert reply == b"done"
    assert most == [LARGE] * 3
    room.settle(0)


def test_what_comes_back_after_a_streams_end_is_not_given_back_twice() -> None:
    room = Room()
    stream = StreamBytes(room)
    assert stream.take(3 * LARGE) is None
    stream.give_back(LARGE)
    assert room.bytes == 2 * LARGE
    stream.end()
    stream.give_back(2 * LARGE)
    stream.end()
    assert room.bytes == 0
