"""The table of what runs cost."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.server.batching.costs import Measured, RunCosts


def line(rows: int, longest: int = 1) -> float:
    return 0.004 + 0.0003 * rows * longest


def measured(*sizes: tuple[int, int]) -> list[Measured]:
    return [Measured(rows, longest, line(rows, longest)) for rows, longest in sizes]


def test_nothing_measured_is_nothing_known() -> None:
    costs = RunCosts()
    assert costs.seconds(8, 32) == 0
    assert costs.enough() == float("inf")
    assert costs.fixed_tokens == 0
    assert costs.queue_seconds(1000, 1) == 0


def test_sizes_that_never_ran_are_told_from_those_that_did() -> None:
    costs = RunCosts(measured((1, 8), (16, 8), (1, 256), (8, 256)))
    for rows, longest in ((1, 8), (4, 32), (16, 64), (64, 32)):
        assert costs.seconds(rows, longest) == pytest.approx(line(rows, longest), rel=1e-6)
    assert costs.fixed_tokens == pytest.approx(0.004 / 0.0003)
    # 400 tokens: the fixed price is a thirtieth of the rest.
    assert costs.enough(100) == pytest.approx(4.44, rel=0.01)
    assert costs.queue_seconds(10_000, 2) == pytest.approx(1.5)


def test_one_size_tells_no_fixed_price() -> None:
    costs = RunCosts([Measured(4, 1, 0.5), Measured(5, 1, 0.5)])
    assert costs.enough() == float("inf")
    assert costs.fixed_tokens == 0
    assert costs.seconds(8) == pytest.approx(0.9, rel=0.3)


def test_a_shape_that_is_off_the_line_is_remembered_as_it_is() -> None:
    costs = RunCosts(measured((1, 1), (64, 1)))
    for _ in range(200):
        costs.tell(8, 1, 3 * line(8))
        costs.tell(64, 1, line(64))
        costs.tell(1, 1, line(1))
    assert costs.seconds(8) == pytest.approx(3 * line(8), rel=0.02)
    assert costs.seconds(64) == pytest.approx(line(64), rel=0.02)


def test_the_table_follows_a_machine_that_grows_slower() -> None:
    costs = RunCosts(measured((1, 1), (8, 1), (64, 1)))
    for _ in range(100):
        for rows in (1, 8, 64):
            costs.tell(rows, 1, 5 * line(rows))
    for rows in (1, 8, 64):
        assert costs.seconds(rows) == pytest.approx(5 * line(rows), rel=0.05)
    assert costs.queue_seconds(1000, 1) == pytest.approx(1000 * 5 * 0.0003, rel=0.05)


def test_single_runs_that_the_machine_held_up_move_it_little() -> None:
    costs = RunCosts(measured((1, 1), (8, 1), (64, 1)))
    generator = np.random.default_rng(0)
    for _ in range(2000):
        rows = int(generator.choice([1, 8, 64]))
        held_up = 100 if generator.random() < 0.01 else generator.uniform(0.9, 1.1)
        costs.tell(rows, 1, line(rows) * held_up)
    for rows in (1, 8, 64):
        assert costs.seconds(rows) == pytest.approx(line(rows), rel=0.5)


def test_a_first_run_of_a_size_that_was_held_up_does_not_spoil_the_table() -> None:
    costs = RunCosts(measured((1, 1), (64, 1)))
    costs.tell(8, 1, 1000.0)
    assert costs.seconds(8) <= 4 * line(8)
    assert costs.seconds(64) == pytest.approx(line(64), rel=0.5)


def test_what_warm_up_measured_twice_counts_by_the_quicker() -> None:
    costs = RunCosts([*measured((1, 1), (64, 1)), Measured(1, 1, 5.0)])
    assert costs.seconds(1) == pytest.approx(line(1))
