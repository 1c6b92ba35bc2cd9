"""What was read and is not begun: connections in turn, and how long the next one waits."""

from __future__ import annotations

import pytest

from twinserve.server.front.intake import Intake


class Clock:
    """A clock that work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_connection_with_one_message_goes_before_the_second_of_one_with_a_hundred() -> None:
    intake = Intake()
    done: list[str] = []
    for i in range(100):
        intake.put("crowd", lambda i=i: done.append(f"crowd {i}"))  # type: ignore[misc]
    intake.put("one", lambda: done.append("one"))
    intake.work(60)
    assert done[:3] == ["crowd 0", "one", "crowd 1"]
    assert len(done) == 101
    assert intake.waiting == 0


def test_work_stops_after_its_time_and_does_one_at_least() -> None:
    clock = Clock()
    intake = Intake(clock)

    def take_a_second() -> None:
        clock.now += 1

    for _ in range(5):
        intake.put("a", take_a_second)
    intake.work(0)
    assert intake.waiting == 4
    intake.work(2)
    assert intake.waiting == 2


def test_the_wait_is_told_from_the_time_between_messages_whatever_it_went_to() -> None:
    clock = Clock()
    intake = Intake(clock)
    for _ in range(100):
        intake.put("a", lambda: None)
    assert intake.seconds == 0.0, "nothing is known yet"
    for _ in range(50):
        intake.work(0)
        clock.now += 0.01  # spent on events, or in another thread
    assert intake.seconds == pytest.approx(50 * 0.01)
    intake.work(60)
    clock.now += 1000  # nothing waited
    intake.put("a", lambda: None)
    intake.work(60)
    assert intake.pace <= 0.011


def test_calls_that_are_let_in_count_until_their_messages_are_begun_by_turns() -> None:
    intake = Intake()
    crowd = [intake.expect("crowd") for _ in range(100)]
    other = intake.expect("other")
    assert intake.expected == 101
    assert intake.before("crowd") == 101
    assert intake.before("new") == 2, "one of each goes before its first"
    assert intake.before("other") == 4
    for one in crowd:
        intake.begun(one)
    assert intake.before("new") == intake.expected == 1
    intake.begun(other)
    assert intake.before("new") == 0


def test_a_call_whose_message_is_slow_to_come_is_expected_no_more() -> None:
    clock = Clock()
    intake = Intake(clock)
    slow = [intake.expect("slow") for _ in range(10)]
    clock.now += 0.2
    quick = intake.expect("quick")
    clock.now += 0.2
    last = intake.expect("quick")
    assert intake.expected == 2
    assert intake.before("slow") == 1
    for one in (*slow, quick, last):
        intake.begun(one)  # whenever its message comes
    assert intake.expected == 0
    clock.now += 1
    intake.begun(intake.expect("quick"))
    assert intake.expected == 0
