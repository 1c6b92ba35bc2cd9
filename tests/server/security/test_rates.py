"""A rate with a burst."""

from __future__ import annotations

from twinserve.server.security.rates import TokenBucket


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_at_once_and_then_the_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10.0, burst=3.0, clock=clock)
    assert [bucket.take() for _ in range(3)] == [0.0] * 3
    assert abs(bucket.take() - 0.1) < 1e-9
    clock.now += 0.05
    assert abs(bucket.take() - 0.05) < 1e-9, "a call that was refused costs nothing"
    clock.now += 0.051
    assert bucket.take() == 0.0
    assert bucket.take() > 0.0


def test_who_waits_long_saves_up_no_more_than_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10.0, burst=3.0, clock=clock)
    clock.now += 1e6
    assert sum(bucket.take() == 0.0 for _ in range(100)) == 3


def test_over_a_second_no_more_pass_than_the_rate_and_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=50.0, burst=5.0, clock=clock)
    passed = 0
    for _ in range(1000):
        passed += bucket.take() == 0.0
        clock.now += 0.001
    assert 53 <= passed <= 55
