"""Completions: set by one thread, awaited on asyncio's loop or driven without any."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from twinserve.server.completion import Completion, drive, in_executor


class Ended:
    """Keeps what `drive` tells, and in which thread."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self.times = 0

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error, self.thread = value, error, threading.current_thread()
        self.times += 1


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return thread


async def doubled(waited: Completion[int]) -> int:
    return 2 * await waited


def test_a_driven_coroutine_goes_on_in_the_thread_that_gives_the_value() -> None:
    waited: Completion[int] = Completion()
    ended = Ended()
    drive(doubled(waited), ended)
    assert ended.times == 0
    thread = in_thread(lambda: waited.set_result(21))
    assert (ended.value, ended.error, ended.times) == (42, None, 1)
    assert ended.thread is thread


def test_a_coroutine_that_need_not_wait_ends_at_once() -> None:
    waited: Completion[int] = Completion()
    waited.set_result(4)
    ended = Ended()
    drive(doubled(waited), ended)
    assert (ended.value, ended.thread) == (8, threading.current_thread())


def test_a_coroutine_may_wait_many_times_without_growing_the_stack() -> None:
    async def many() -> int:
        total = 0
        for _ in range(5000):
            done: Completion[int] = Completion()
            done.set_result(1)
            total += await done
        return total

    ended = Ended()
    drive(many(), ended)
    assert ended.value == 5000


def test_an_error_is_met_where_it_was_awaited() -> None:
    waited: Completion[int] = Completion()

    async def recovering() -> str:
        try:
            await waited
        except ValueError as error:
            return f"met {error}"
        return "met nothing"

    ended = Ended()
    drive(recovering(), ended)
    waited.set_error(ValueError("it"))
    assert ended.value == "met it"


def test_an_exception_that_leaves_the_coroutine_is_told() -> None:
    waited: Completion[int] = Completion()
    ended = Ended()
    drive(doubled(waited), ended)
    waited.set_error(ValueError("it"))
    assert isinstance(ended.error, ValueError)


def test_only_the_first_result_counts() -> None:
    waited: Completion[int] = Completion()
    waited.set_result(1)
    waited.set_result(2)
    waited.set_error(ValueError())
    waited.abandon()
    assert waited.result() == 1


def test_abandoning_tells_the_giver_and_cancels_the_waiter() -> None:
    told: list[str] = []
    waited: Completion[int] = Completion(abandoned=lambda: told.append("gone"))
    ended = Ended()
    driven = drive(doubled(waited), ended)
    driven.abandon()
    assert told == ["gone"]
    assert isinstance(ended.error, asyncio.CancelledError)
    waited.set_result(1)
    assert ended.times == 1


def test_what_is_begun_after_the_abandoning_is_given_up_too() -> None:
    second_abandoned: list[bool] = []
    first: Completion[int] = Completion()
    second: Completion[int] = Completion(abandoned=lambda: second_abandoned.append(True))

    async def stubborn() -> int:
        try:
            return await first
        except asyncio.CancelledError:
            return await second

    ended = Ended()
    drive(stubborn(), ended).abandon()
    assert second_abandoned == [True]
    assert isinstance(ended.error, asyncio.CancelledError)


def test_a_task_of_the_loop_awaits_what_a_thread_sets() -> None:
    async def main() -> int:
        waited: Completion[int] = Completion()
        task = asyncio.create_task(doubled(waited))
        await asyncio.sleep(0)
        in_thread(lambda: waited.set_result(5))
        return await task

    assert asyncio.run(main()) == 10


def test_a_cancelled_task_abandons_what_it_waited_for() -> None:
    told: list[str] = []

    async def main() -> None:
        waited: Completion[int] = Completion(abandoned=lambda: told.append("gone"))
        task = asyncio.create_task(doubled(waited))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waited.done

    asyncio.run(main())
    assert told == ["gone"]


def test_results_and_abandonings_from_two_threads_end_each_coroutine_once() -> None:
    for _ in range(300):
        waited: Completion[int] = Completion()
        ended = Ended()
        driven = drive(doubled(waited), ended)
        line = threading.Barrier(2)

        def set_it(waited: Completion[int] = waited, line: threading.Barrier = line) -> None:
            line.wait()
            waited.set_result(1)

        thread = threading.Thread(target=set_it)
        thread.start()
        line.wait()
        driven.abandon()
        thread.join()
        assert ended.times == 1
        assert ended.value == 2 or isinstance(ended.error, asyncio.CancelledError)


def test_news_from_the_loops_thread_go_on_with_what_is_driven() -> None:
    first: Completion[int] = Completion()
    second: Completion[int] = Completion()
    ended: list[object] = []

    async def work() -> int:
        return await first + await second

    drive(work(), lambda value, error: ended.append(error or value))

    async def tell() -> None:
        first.set_result(1)
        second.set_result(2)
        assert asyncio.get_running_loop() is not None

    asyncio.run(tell())
    assert ended == [3]


def test_an_error_that_was_met_is_freed_without_the_collector() -> None:
    class Fault(Exception):
        pass

    async def waits() -> int:
        waited: Completion[int] = Completion()
        known.append(waited)
        try:
            return await waited
        except Fault:
            return 0

    known: list[Completion[int]] = []
    ended = Ended()
    gc.collect()
    gc.disable()
    try:
        drive(waits(), ended)
        fault = Fault()
        left = weakref.ref(fault)
        known.pop().set_error(fault)
        del fault
        assert ended.value == 0
        assert left() is None
    finally:
        gc.enable()


def test_work_of_an_executor_is_awaited_either_way_and_not_begun_for_nobody() -> None:
    done: list[str] = []

    def fail() -> None:
        raise ValueError("no")

    with ThreadPoolExecutor(1) as threads:
        free = threading.Event()
        threads.submit(free.wait, 10)
        first = in_executor(threads, lambda: done.append("first"))
        unwanted = in_executor(threads, lambda: done.append("unwanted"))
        failing = in_executor(threads, fail)
        unwanted.abandon()
        free.set()
        ended = Ended()

        async def wait() -> str:
            await first
            with pytest.raises(ValueError, match="no"):
                await failing
            return "waited"

        drive(wait(), ended)
    assert (ended.value, ended.error, done) == ("waited", None, ["first"])
