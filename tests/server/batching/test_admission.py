"""Nothing enters beyond the bound or a client's share, and what left makes room."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from twinserve.errors import ClientOverShare, Exhausted, LimitExceeded, QueueFull
from twinserve.server.batching.admission import Admission


def test_rows_count_from_entering_to_leaving() -> None:
    door = Admission(10, lambda: 0.1)
    with door.admit(6):
        assert door.rows == 6
        with door.admit(4):
            assert door.rows == 10
        assert door.rows == 6
    assert door.rows == 0


def test_a_full_server_refuses_with_the_time_until_there_is_room() -> None:
    door = Admission(10, lambda: 0.1)
    with door.admit(8, "a"):
        with pytest.raises(QueueFull, match="limit is 10") as refused:
            door.admit(5, "b")
        assert refused.value.retry_after == pytest.approx(0.3)
        assert door.rows == 8, "a refused call holds no place"
        with door.admit(2, "b"):
            pass


def test_a_call_that_fits_no_empty_server_is_refused_for_good() -> None:
    door = Admission(10, lambda: 0.1)
    with door.admit(10, "a"):
        pass
    with pytest.raises(LimitExceeded, match="in parts"):
        door.admit(11, "a")


def test_a_call_that_fails_leaves_its_places() -> None:
    door = Admission(10, lambda: 0.1)
    with pytest.raises(ValueError, match="broken"), door.admit(5, "a"):
        raise ValueError("broken")
    assert door.rows == 0
    with door.admit(10, "a"):
        pass


def test_a_client_alone_leaves_room_for_others_to_come_in_by() -> None:
    door = Admission(80, lambda: 0.01)
    with ExitStack() as inside:
        for _ in range(70):
            inside.enter_context(door.admit(1, "greedy"))
        with pytest.raises(QueueFull):
            door.admit(1, "greedy")
        with door.admit(10, "modest"):
            pass


def test_a_client_over_its_share_is_refused_while_others_are_inside_and_it_is_crowded() -> None:
    door = Admission(80, lambda: 0.01)
    with ExitStack() as inside:
        inside.enter_context(door.admit(1, "modest"))
        for _ in range(40):
            inside.enter_context(door.admit(1, "greedy"))
        with pytest.raises(ClientOverShare, match="share beside 1 other clients is 40") as refused:
            door.admit(1, "greedy")
        assert refused.value.retry_after == pytest.approx(0.05)
        for _ in range(39):
            inside.enter_context(door.admit(1, "modest"))
        with pytest.raises(Exhausted):
            door.admit(1, "modest")
        # A third finds nothing left, since two have their halves.
        with pytest.raises(QueueFull):
            door.admit(1, "third")


def test_while_there_is_plenty_of_room_nobody_is_held_to_a_share() -> None:
    door = Admission(4096, lambda: 0.01)
    with ExitStack() as inside:
        for i in range(500):
            inside.enter_context(door.admit(1, f"client{i}"))
        for _ in range(4):
            inside.enter_context(door.admit(256, "client0"))


def test_the_first_call_of_a_client_needs_room_only() -> None:
    door = Admission(80, lambda: 0.01)
    with door.admit(30, "a"), door.admit(45, "b"):
        pass


def test_work_that_proves_larger_or_smaller_is_counted_as_it_is() -> None:
    door = Admission(10, lambda: 0.1)
    with door.admit(4, "a") as held:
        held.settle(9)
        assert door.rows == 9
        held.settle(1)
        assert door.rows == 1
        with door.admit(9, "b"):
            pass
    assert door.rows == 0


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    door = Admission(50, lambda: 0.0)
    most = [0]
    refused = [0]

    def work(client: str) -> None:
        for i in range(3000):
            try:
                with door.admit(1 + i % 7, client) as held:
                    most[0] = max(most[0], door.rows)
                    held.settle(1)
            except Exhausted:
                refused[0] += 1

    threads = [threading.Thread(target=work, args=(f"c{i % 5}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert door.rows == 0
    assert not door._held
    assert most[0] <= 50
