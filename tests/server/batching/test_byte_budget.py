"""Bytes inside are bounded, shared among clients, and refused in their own words."""

from __future__ import annotations

import pytest

from twinserve.errors import ClientOverShare, LimitExceeded, QueueFull
from twinserve.server.batching.byte_budget import ByteBudget, fitting

MIB = 1 << 20


def test_bytes_count_from_taking_to_giving_back() -> None:
    budget = ByteBudget(8 * MIB)
    budget.take(3 * MIB, "a")
    budget.take(2 * MIB, "b")
    assert budget.bytes == 5 * MIB
    budget.give_back(3 * MIB, "a")
    budget.give_back(2 * MIB, "b")
    assert budget.bytes == 0


def test_where_there_is_no_room_the_refusal_names_the_bytes_and_when_to_come_again() -> None:
    budget = ByteBudget(8 * MIB)
    budget.take(5 * MIB, "a")
    with pytest.raises(QueueFull, match=f"message of {4 * MIB} bytes {9 * MIB} bytes") as refused:
        budget.take(4 * MIB, "b")
    assert refused.value.metadata == {"limit": str(8 * MIB), "value": str(9 * MIB)}
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 0
    assert "rows" not in refused.value.message
    assert budget.bytes == 5 * MIB, "what is refused is not counted"
    budget.take(3 * MIB, "b")


def test_a_client_alone_leaves_an_eighth_for_another_to_come_in_by() -> None:
    budget = ByteBudget(8 * MIB)
    budget.take(6 * MIB, "greedy")
    with pytest.raises(QueueFull):
        budget.take(2 * MIB, "greedy")
    budget.take(2 * MIB, "modest")


def test_in_a_crowd_no_client_takes_more_than_its_part() -> None:
    budget = ByteBudget(8 * MIB)
    budget.take(4 * MIB, "greedy")
    budget.take(MIB, "modest")
    with pytest.raises(ClientOverShare, match=f"its share is {4 * MIB}"):
        budget.take(MIB, "greedy")
    budget.take(3 * MIB, "modest")


def test_it_is_crowded_above_half() -> None:
    budget = ByteBudget(8 * MIB)
    budget.take(4 * MIB, "")
    assert not budget.crowded
    budget.take(1, "")
    assert budget.crowded


def test_what_no_empty_server_would_take_is_refused_for_good() -> None:
    with pytest.raises(LimitExceeded):
        ByteBudget(MIB).take(MIB + 1, "a")


def test_a_quarter_of_the_memory_is_the_bound_and_some_large_messages_at_least() -> None:
    assert fitting(8 << 30, 64 * MIB) == 2 << 30
    assert fitting(512 * MIB, 64 * MIB) == 256 * MIB
    assert fitting(0, 64 * MIB) == 256 * MIB, "a machine that does not say"
