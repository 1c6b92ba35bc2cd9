"""Work that a thread puts off until it has read what came."""

from __future__ import annotations

import threading

from twinserve.server.afterwards import Afterwards


def test_a_thread_that_it_belongs_to_puts_off_and_no_other_does() -> None:
    afterwards = Afterwards()
    done: list[str] = []

    def work(nothing_left: bool) -> bool:
        done.append("read all" if nothing_left else "reading")
        return nothing_left

    assert not afterwards.put(work)  # it is nobody's yet
    afterwards.belong_here()
    assert afterwards.put(work)
    other: list[bool] = []
    thread = threading.Thread(target=lambda: other.append(afterwards.put(work)))
    thread.start()
    thread.join()
    assert other == [False]
    assert not done
    afterwards.run(nothing_left=False)
    assert afterwards.waiting  # it was not done, and is asked again
    afterwards.run(nothing_left=True)
    assert done == ["reading", "read all"]
    assert not afterwards.waiting


def test_what_comes_of_work_waits_for_the_next_time_and_a_fault_keeps_nothing_back() -> None:
    afterwards = Afterwards()
    afterwards.belong_here()
    done: list[int] = []

    def fail(nothing_left: bool) -> bool:
        raise RuntimeError("a fault")

    def second(nothing_left: bool) -> bool:
        done.append(2)
        return True

    def first(nothing_left: bool) -> bool:
        done.append(1)
        return afterwards.put(second)

    assert afterwards.put(fail)
    assert afterwards.put(first)
    afterwards.run(nothing_left=True)
    assert done == [1]
    assert afterwards.waiting
    afterwards.run(nothing_left=True)
    assert done == [1, 2]
