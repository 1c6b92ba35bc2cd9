"""Spearman's correlation by hand, with ties, and against the textbook's sum over differences."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.errors import DataError
from twinserve.train.correlation import average_ranks, spearman, spearman_of_pairs


def test_ties_get_the_mean_of_their_ranks() -> None:
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def test_a_correlation_with_ties_is_as_counted_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    found = spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4]))
    assert found == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_without_ties_it_is_the_textbooks_formula() -> None:
    generator = np.random.default_rng(0)
    first = generator.permutation(50).astype(float)
    second = first + 20 * generator.normal(size=50)
    ranks = [np.array([1 + np.sum(s < v) for v in s]) for s in (first, second)]
    wanted = 1 - 6 * np.sum((ranks[0] - ranks[1]) ** 2) / (50 * (50**2 - 1))
    assert spearman(first, second) == pytest.approx(wanted)


def test_it_agrees_with_ranks_by_counting_where_half_of_all_are_ties() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.integers(5, size=(2, 80)).astype(float)
    second += first

    def ranks(series: np.ndarray) -> np.ndarray:
        return np.array([np.sum(series < v) + (np.sum(series == v) + 1) / 2 for v in series])

    a, b = ranks(first) - 40.5, ranks(second) - 40.5
    assert spearman(first, second) == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_only_the_order_counts() -> None:
    first = np.array([0.1, 0.5, 0.2, 0.9])
    assert spearman(first, np.exp(10 * first)) == pytest.approx(1.0)
    assert spearman(first, -first) == pytest.approx(-1.0)


def test_close_pairs_with_high_scores_correlate_with_an_interval_around() -> None:
    generator = np.random.default_rng(2)
    scores = generator.integers(6, size=200).astype(float)
    distances = 2.0 - scores / 5 + 0.3 * generator.normal(size=200)
    estimate = spearman_of_pairs(distances, scores)
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0.5 < estimate.low < estimate.value < estimate.high < 0.95
    assert estimate == spearman_of_pairs(distances, scores)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([1.0, 2.0], [1.0], "equal length"),
        ([1.0], [1.0], "two figures at least"),
        ([1.0, np.nan], [1.0, 2.0], "first series holds NaN"),
        ([1.0, 2.0], [3.0, 3.0], "second series is 3 throughout"),
    ],
)
def test_series_without_ranks_are_refused(
    first: list[float], second: list[float], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        spearman(np.array(first), np.array(second))
