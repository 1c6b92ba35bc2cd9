"""A figure with its 95 % interval, and the two ways an interval comes about.

Shares of trials drawn at random have Wilson's interval. Figures over items have one from a
bootstrap over classes, since the items of a class rise and fall together: classes are drawn with
replacement, the figure is taken anew of each draw, and the interval runs from the 2.5th to the
97.5th percentile (Efron, 1979). It says how much the figure would move with other classes of the
same kind in the average; one new set of classes moves farther (see docs/decisions.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import drawn_classes
from twinserve.distance import FloatArray

IntArray = NDArray[np.int64]

RESAMPLES = 200
_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


@dataclass(frozen=True)
class Estimate:
    """A measured figure and its 95 % interval, which is absent where none can be drawn."""

    value: float
    low: float | None = None
    high: float | None = None

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Estimate:
        """Take back what `dataclasses.asdict` gave."""
        return Estimate(**values)


def wilson_interval(correct: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    share = correct / trials
    middle = share + _Z * _Z / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z * _Z / (4 * trials * trials))
    scale = 1 + _Z * _Z / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def share(correct: int, trials: int) -> Estimate:
    """Return a share of trials with Wilson's interval."""
    return Estimate(correct / trials, *wilson_interval(correct, trials))


def class_draws(classes: int, resamples: int, seed: int) -> IntArray:
    """Draw resamples of at least two distinct classes: int64 [resamples, classes], how often each.

    With a single class there is nothing to draw: [0, 1].
    """
    generator = np.random.default_rng(seed)
    draws: list[IntArray] = []
    while len(draws) < resamples and classes > 1:
        drawn = drawn_classes(classes, generator)
        if np.count_nonzero(drawn) > 1:  # a draw of one class only has no impostor pair
            draws.append(drawn)
    return np.array(draws, dtype=np.int64).reshape(len(draws), classes)


def between_percentiles(value: float, drawn: FloatArray) -> Estimate:
    """Return a figure with the interval of its resamples, [resamples]; NaN ones do not count.

    The interval holds the figure itself, also where the resamples are skewed.
    """
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Estimate(float(value))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def mean_over_classes(
    values: FloatArray, labels: IntArray, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return the mean of values, float64 [n], with its interval from draws of their classes, [n].

    A class counts by its items. Where all values are of one class there is no interval.
    """
    classes, place = np.unique(labels, return_inverse=True)
    count = np.bincount(place)
    total = np.bincount(place, weights=values)
    draws = class_draws(len(classes), resamples, seed)
    return between_percentiles(float(values.mean()), (draws @ total) / (draws @ count))
