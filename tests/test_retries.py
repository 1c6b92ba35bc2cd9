"""When a call is made again, with the clock and the chance of a test's own."""

from __future__ import annotations

import pytest

from twinserve.client import retries
from twinserve.client.retries import Attempts, RetryPolicy
from twinserve.errors import Exhausted, ModelNotFound, QueueFull, TwinserveError, Unavailable

POLICY = RetryPolicy(unavailable_for=10.0, jitter=lambda low, high: high)


def test_the_pauses_on_a_lost_server_double_up_to_the_longest() -> None:
    pauses = [POLICY.pause(Unavailable("gone"), attempt, 0.0) for attempt in range(8)]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_pauses_are_jittered_so_that_clients_do_not_come_back_in_step() -> None:
    pauses = {RetryPolicy(10.0).pause(Unavailable("gone"), 6, 0.0) for _ in range(20)}
    assert len(pauses) > 10
    assert all(pause is not None and 1.0 <= pause <= 2.0 for pause in pauses)


def test_a_server_that_stays_away_is_given_up() -> None:
    assert POLICY.pause(Unavailable("gone"), 3, 9.9) is not None
    assert POLICY.pause(Unavailable("gone"), 3, 10.0) is None


def test_the_delay_that_the_server_names_is_kept() -> None:
    assert POLICY.pause(Unavailable("draining", retry_after=3.0), 0, 0.0) == 3.0
    assert POLICY.pause(Unavailable("draining", retry_after=0.01), 0, 0.0) == 0.05
    assert POLICY.pause(QueueFull("full", retry_after=0.7), 5, 0.0) == 0.7


@pytest.mark.parametrize(
    "error", [Exhausted("too large"), ModelNotFound("no model", retry_after=0.1)]
)
def test_what_no_delay_helps_against_is_not_tried_again(error: TwinserveError) -> None:
    assert POLICY.pause(error, 0, 0.0) is None


def test_all_attempts_share_one_deadline_until_an_answer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(retries.time, "monotonic", lambda: now)
    attempts = Attempts(POLICY.pause, 1.0)
    assert attempts.remaining() == 1.0
    now = 100.6
    assert attempts.remaining() == pytest.approx(0.4)
    assert attempts.pause_after(QueueFull("full", retry_after=0.3)) == 0.3
    assert attempts.pause_after(QueueFull("full", retry_after=0.5)) is None, "past the deadline"
    now = 102.0
    assert attempts.remaining() == 0.001, "gRPC takes no deadline in the past"
    attempts.restart()
    assert attempts.remaining() == 1.0
    assert attempts.pause_after(Unavailable("gone")) == 0.05
    assert attempts.pause_after(Unavailable("gone")) == 0.1
