"""The gate: who is inside finishes, who comes is sent elsewhere, from any thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from twinserve.errors import Unavailable
from twinserve.server.gate import Gate


def test_a_closed_gate_refuses_and_says_when_to_come_again() -> None:
    gate = Gate()
    with gate.enter():
        pass
    assert asyncio.run(gate.close(10)) == 0
    with pytest.raises(Unavailable) as refused, gate.enter():
        raise AssertionError("inside a closed gate")
    assert refused.value.retry_after == 1.0


def test_closing_waits_for_those_inside_whatever_thread_they_are_in() -> None:
    gate = Gate()
    entered, leave = threading.Event(), threading.Event()

    def call() -> None:
        with gate.enter():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(10)

    async def close() -> int:
        closing = asyncio.create_task(gate.close(10))
        done, _ = await asyncio.wait([closing], timeout=0.05)
        assert not done
        leave.set()
        return await closing

    assert asyncio.run(close()) == 0
    thread.join()


def test_closing_without_success_tells_how_many_are_left() -> None:
    gate = Gate()
    with gate.enter(), gate.enter():
        assert asyncio.run(gate.close(0.01)) == 2


def test_an_exception_inside_leaves_too() -> None:
    gate = Gate()
    with pytest.raises(KeyError), gate.enter():
        raise KeyError
    assert asyncio.run(gate.close(1)) == 0


def test_those_who_watch_are_told_once_and_not_after_they_left() -> None:
    gate = Gate()
    told: list[str] = []

    def one() -> None:
        told.append("one")

    def other() -> None:
        told.append("other")

    assert gate.watch(one)
    assert gate.watch(other)
    gate.unwatch(other)
    asyncio.run(gate.close(1))
    assert told == ["one"]
    assert not gate.watch(other)
    assert told == ["one"]
