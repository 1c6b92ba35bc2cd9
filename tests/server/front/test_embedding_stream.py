"""The window between a stream's reading and writing, with a front but no models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.server.front.conftest import Running
from twinserve.errors import Unavailable
from twinserve.server.completion import Completion
from twinserve.server.front import Call, driven
from twinserve.server.gate import Gate
from twinserve.server.services.embedding_stream import Window

Start = Callable[..., Running]


class Answers:
    """Answers messages when it is told to, and remembers what was begun and given up."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.given_up: list[bytes] = []
        self._waiting: dict[bytes, Completion[None]] = {}
        self._changed = threading.Condition()
        self.gate = Gate()
        self.settings: dict[str, int] = {}

    async def answer(self, message: bytes) -> bytes:
        done: Completion[None] = Completion()
        with self._changed:
            self.begun.append(message)
            self._waiting[message] = done
            self._changed.notify_all()
        try:
            await done
        except asyncio.CancelledError:
            with self._changed:
                self.given_up.append(message)
                self._changed.notify_all()
            raise
        return message.upper()

    def finish(self, message: bytes) -> None:
        self._waiting.pop(message).set_result(None)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 20), (self.begun, self.given_up)

    def method(self) -> Any:
        @driven
        async def stream(requests: object, call: Call) -> None:
            try:
                await Window(call, self.answer, self.gate, **self.settings).run()
            except Unavailable as error:
                await call.abort(grpc.StatusCode.UNAVAILABLE, error.message)

        return stream


def letters(count: int) -> list[bytes]:
    return [bytes([97 + i]) for i in range(count)]


def test_replies_come_in_the_order_of_the_messages_whatever_ends_first(run_front: Start) -> None:
    answers = Answers()
    running = run_front({"S": ("ss", answers.method())})
    replies = running.channel().stream_stream("/s/S")(iter(letters(5)))
    answers.wait(lambda: len(answers.begun) == 5)
    for message in reversed(letters(5)):
        answers.finish(message)
    assert list(replies) == [b"A", b"B", b"C", b"D", b"E"]
    running.settle()


def test_no_more_is_read_than_the_window_holds(run_front: Start) -> None:
    answers = Answers()
    answers.settings = {"messages": 3}
    running = run_front({"S": ("ss", answers.method()), "Echo": ("uu", answers.answer)})
    replies = running.channel().stream_stream("/s/S")(iter(letters(9)))
    for first in range(7):
        answers.wait(lambda first=first: len(answers.begun) == first + 3)  # type: ignore[misc]
        answers.finish(letters(9)[first])
        assert next(replies) == letters(9)[first].upper()
    answers.wait(lambda: len(answers.begun) == 9)
    answers.finish(b"h")
    answers.finish(b"i")
    assert list(replies) == [b"H", b"I"]


def test_the_window_counts_bytes_and_lets_one_large_message_through(run_front: Start) -> None:
    answers = Answers()
    answers.settings = {"size": 1000}
    running = run_front({"S": ("ss", answers.method())})
    large = [bytes([97 + i]) * 1500 for i in range(3)]
    replies = running.channel().stream_stream("/s/S")(iter(large))
    for i, message in enumerate(large):
        answers.wait(lambda i=i: len(answers.begun) == i + 1)  # type: ignore[misc]
        answers.finish(message)
        assert next(replies) == message.upper()
    assert list(replies) == []


def test_a_client_that_leaves_gives_up_what_was_begun(run_front: Start) -> None:
    answers = Answers()
    running = run_front({"S": ("ss", answers.method())})
    hold = threading.Event()

    def messages() -> Iterator[bytes]:
        yield from letters(4)
        hold.wait(20)

    replies = running.channel().stream_stream("/s/S")(messages())
    answers.wait(lambda: len(answers.begun) == 4)
    answers.finish(b"a")
    assert next(replies) == b"A"
    replies.cancel()
    answers.wait(lambda: len(answers.given_up) == 3)
    hold.set()
    running.settle()


def test_a_closing_gate_ends_the_stream_after_what_was_read(run_front: Start) -> None:
    answers = Answers()
    running = run_front({"S": ("ss", answers.method())})
    hold = threading.Event()

    def messages() -> Iterator[bytes]:
        yield from letters(2)
        hold.wait(20)

    replies = running.channel().stream_stream("/s/S")(messages())
    answers.wait(lambda: len(answers.begun) == 2)
    running.on_loop(answers.gate.close(0.01))
    answers.finish(b"b")
    answers.finish(b"a")
    assert [next(replies), next(replies)] == [b"A", b"B"]
    with pytest.raises(grpc.RpcError) as ended:
        next(replies)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    hold.set()
    running.settle()


def test_a_stream_that_comes_to_a_closed_gate_is_sent_elsewhere(run_front: Start) -> None:
    answers = Answers()
    running = run_front({"S": ("ss", answers.method())})
    running.on_loop(answers.gate.close(0.01))
    with pytest.raises(grpc.RpcError) as ended:
        list(running.channel().stream_stream("/s/S")(iter(letters(1))))
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert answers.begun == []
    running.settle()


def test_an_idle_stream_holds_nobody_up(run_front: Start) -> None:
    answers = Answers()

    @driven
    async def echo(request: bytes, call: Call) -> bytes:
        return request

    running = run_front({"S": ("ss", answers.method()), "Echo": ("uu", echo)})
    hold = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"a"
        hold.wait(20)

    idle = [running.channel().stream_stream("/s/S")(messages()) for _ in range(10)]
    answers.wait(lambda: len(answers.begun) == 10)
    assert running.channel().unary_unary("/s/Echo")(b"served", timeout=20) == b"served"
    for stream in idle:
        stream.cancel()
    hold.set()
    running.settle()


@pytest.mark.parametrize("bad", letters(4))
def test_a_fault_of_ours_ends_the_stream_as_that_fault_and_keeps_nobody_waiting(
    run_front: Start, bad: bytes
) -> None:
    answers = Answers()
    answers.settings = {"messages": 2}

    async def answer(message: bytes) -> bytes:
        if message == bad:
            raise ValueError("a fault of ours")
        return message.upper()

    answers.answer = answer  # type: ignore[method-assign]
    running = run_front({"S": ("ss", answers.method())})
    replies = running.channel().stream_stream("/s/S")(iter(letters(9)), timeout=10)
    with pytest.raises(grpc.RpcError) as ended:
        list(replies)
    assert ended.value.code() is grpc.StatusCode.UNKNOWN, ended.value.details()
    assert "failed inside the server" in ended.value.details()
    running.settle()


def test_a_fault_while_the_next_message_is_awaited_ends_the_stream_as_that_fault(
    run_front: Start,
) -> None:
    answers = Answers()
    hold = threading.Event()

    async def answer(message: bytes) -> bytes:
        later: Completion[None] = Completion()
        threading.Timer(0.2, later.set_result, (None,)).start()
        await later
        raise ValueError("a fault of ours")

    answers.answer = answer  # type: ignore[method-assign]
    running = run_front({"S": ("ss", answers.method())})

    def messages() -> Iterator[bytes]:
        yield b"a"
        hold.wait(20)

    replies = running.channel().stream_stream("/s/S")(messages(), timeout=10)
    with pytest.raises(grpc.RpcError) as ended:
        list(replies)
    assert ended.value.code() is grpc.StatusCode.UNKNOWN, ended.value.details()
    hold.set()
    running.settle()
