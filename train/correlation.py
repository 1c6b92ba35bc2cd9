"""Spearman's rank correlation: do distances fall where people's scores rise?

In: two series of figures of the same pairs. Out: the correlation of their ranks (Spearman, 1904),
ties at their average rank, as the papers on semantic textual similarity report it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinserve.distance import FloatArray
from twinserve.errors import DataError
from twinserve.train.intervals import RESAMPLES, Estimate, between_percentiles


@dataclass(frozen=True)
class Correlation:
    """How closeness follows the scores of some pairs."""

    pairs: int
    spearman: Estimate

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Correlation:
        """Take back what `dataclasses.asdict` gave, or what JSON made of it."""
        return Correlation(values["pairs"], Estimate.from_dict(values["spearman"]))


def average_ranks(values: FloatArray) -> FloatArray:
    """Rank values from 1, equal ones at the mean of their ranks: [n] -> float64 [n]."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2.0)[place]


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Return the correlation of two series' ranks, -1 to 1.

    Args:
        first: [n], such as negated distances.
        second: [n], such as the scores that people gave.

    Raises:
        DataError: fewer than two figures, series of unequal length, NaN, or a constant series.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise DataError(
            f"a rank correlation needs two series of equal length, two figures at least; these "
            f"have shapes {first.shape} and {second.shape}"
        )
    for name, series in (("first", first), ("second", second)):
        if not np.isfinite(series).all():
            raise DataError(f"the {name} series holds NaN or infinity; leave those pairs out")
        if (series == series[0]).all():
            raise DataError(
                f"the {name} series is {series[0]:g} throughout, and has no ranks to compare; "
                "a twin whose distances are all equal has collapsed"
            )
    ranks = average_ranks(first), average_ranks(second)
    return float(np.corrcoef(*ranks)[0, 1])


def spearman_of_pairs(
    distances: FloatArray, scores: FloatArray, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Correlate closeness with scores, with a 95 % interval from a bootstrap over the pairs.

    Args:
        distances: float64 [n], of the pairs.
        scores: [n], higher for what is more alike.
        resamples: draws of pairs behind the interval; constant ones do not count.
        seed: of the draws; equal seeds draw equal pairs, so that two twins can be compared by the
            differences of their draws.

    Raises:
        DataError: as `spearman`.
    """
    value = spearman(-distances, scores)
    return between_percentiles(value, _of_draws(distances, scores, resamples, seed))


def change_of_spearman(
    before: FloatArray,
    after: FloatArray,
    scores: FloatArray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return by how much another twin's closeness follows the scores better: a paired bootstrap.

    Args:
        before: float64 [n], distances of the pairs by one twin.
        after: float64 [n], by the other.
        scores: [n], higher for what is more alike.
        resamples: draws of pairs, each measured by both; those that are constant do not count.
        seed: of the draws.

    Raises:
        DataError: as `spearman`.
    """
    value = spearman(-after, scores) - spearman(-before, scores)
    drawn = [_of_draws(distances, scores, resamples, seed) for distances in (before, after)]
    return between_percentiles(value, drawn[1] - drawn[0])


def _of_draws(distances: FloatArray, scores: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Correlate each of some draws of pairs: [resamples], NaN for those that rank nothing."""
    generator = np.random.default_rng(seed)
    drawn = np.full(resamples, np.nan)
    for index in range(resamples):
        pairs = generator.integers(len(scores), size=len(scores))
        if np.ptp(distances[pairs]) > 0 and np.ptp(scores[pairs]) > 0:
            drawn[index] = spearman(-distances[pairs], scores[pairs])
    return drawn
