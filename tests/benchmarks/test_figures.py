"""The arithmetic of the serving benchmarks, against figures worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.serving import figures


def test_reachable_is_what_the_cores_allow_when_each_request_also_pays_for_its_wire() -> None:
    # Two cores, 100 rows a second: 20 ms of CPU each, and 5 ms more beside it.
    assert figures.reachable(100, 0.005, 2) == pytest.approx(2 / 0.025)


def test_without_overhead_the_limit_itself_can_be_reached() -> None:
    assert figures.reachable(23_600, 0, 2) == 23_600


def test_decoding_and_running_share_the_cores() -> None:
    assert figures.with_decoding(100, 0.005, 2) == pytest.approx(80)


def test_a_percentile_is_one_of_the_values_by_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert figures.percentile(values, 0.5) == 50
    assert figures.percentile(values, 0.99) == 99
    assert figures.percentile(values, 1) == 100
    assert figures.percentile(values, 0.07) == 7
    assert figures.percentile([3.0], 0.99) == 3.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0), ([1.0], 1.1)])
def test_a_percentile_of_nothing_or_beyond_all_is_refused(
    values: list[float], share: float
) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        figures.percentile(values, share)


def test_ratios_are_taken_turn_by_turn_so_that_a_drifting_machine_favours_nobody() -> None:
    # The second turn ran at half the speed for both.
    found = figures.ratios([200, 100, 210], [100, 50, 100])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.1)
    assert f"{found:.2f}" == "2.00 (2.00 to 2.10)"


def test_turns_that_one_side_missed_are_not_made_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        figures.ratios([1, 2], [1])


def test_growth_is_a_share_of_what_was_there() -> None:
    assert figures.growth(200, 203) == pytest.approx(0.015)
