"""Intervals: Wilson's as published, and a bootstrap whose draws can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.train.intervals import (
    Estimate,
    between_percentiles,
    class_draws,
    mean_over_classes,
    share,
    wilson_interval,
)


def test_wilson_interval_is_as_published() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert share(81, 263) == Estimate(81 / 263, *wilson_interval(81, 263))


def test_draws_hold_as_many_classes_as_there_are_and_two_distinct_ones_at_least() -> None:
    draws = class_draws(2, 50, seed=0)
    assert draws.tolist() == [[1, 1]] * 50
    draws = class_draws(7, 300, seed=1)
    assert (draws.sum(axis=1) == 7).all()
    assert ((draws > 0).sum(axis=1) >= 2).all()
    assert (draws == class_draws(7, 300, seed=1)).all()
    assert class_draws(1, 10, seed=0).shape == (0, 1)


def test_a_mean_over_classes_moves_as_whole_classes_do() -> None:
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    values = (labels % 2).astype(float)
    estimate = mean_over_classes(values, labels, resamples=100, seed=3)
    means = []
    for drawn in class_draws(6, 100, seed=3):
        pool = np.concatenate(
            [np.tile(values[labels == c], times) for c, times in enumerate(drawn)]
        )
        means.append(pool.mean())
    assert estimate.value == pytest.approx(values.mean())
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_one_class_alone_gives_no_interval() -> None:
    assert mean_over_classes(np.array([0.0, 1.0]), np.array([4, 4])) == Estimate(0.5)


def test_an_interval_holds_its_figure_even_where_resamples_are_skewed() -> None:
    assert between_percentiles(0.9, np.array([0.1, 0.2, np.nan])).high == 0.9
    assert between_percentiles(0.9, np.array([np.nan])) == Estimate(0.9)
