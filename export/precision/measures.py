"""What two precisions of one twin have in common, measured: neighbours, ranks, mixed pairs, noise.

In: embeddings of the same rows by the source and by a candidate. Out: numbers; which of them are
good enough is for quality.py to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import PairDistances
from twinserve.distance import Embeddings, FloatArray, Metric, paired, pairwise

IntArray = NDArray[np.int64]

RESAMPLES = 200
# Rank correlation over so many pairs at most, drawn with a seed.
_RANKED_PAIRS = 200_000
_CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class Trials:
    """Which rows are compared, and which classes each comparison joins."""

    first: IntArray  # [n], index into the rows
    second: IntArray  # [n]
    same: NDArray[np.bool_]  # [n]
    classes: IntArray  # [n, 2], of the first and of the second

    def distances(self, first: Embeddings, second: Embeddings, metric: Metric) -> FloatArray:
        """Measure each comparison: rows of `first` against rows of `second`, float64 [n]."""
        if 4 * len(self.first) > len(first) * len(second):
            return np.asarray(pairwise(first, second, metric)[self.first, self.second])
        starts = range(0, len(self.first), _CHUNK)
        chunks = [
            paired(first[self.first[i : i + _CHUNK]], second[self.second[i : i + _CHUNK]], metric)
            for i in starts
        ]
        return np.concatenate(chunks)

    def of(self, distances: FloatArray) -> PairDistances:
        """Take genuine and impostor distances apart."""
        return PairDistances(
            genuine=distances[self.same],
            genuine_class=self.classes[self.same, 0],
            impostor=distances[~self.same],
            impostor_classes=self.classes[~self.same],
        )


def all_trials(labels: IntArray) -> Trials:
    """Compare every two rows once.

    Args:
        labels: int64 [n], the class of each.
    """
    first, second = np.triu_indices(len(labels), k=1)
    classes = np.stack([labels[first], labels[second]], axis=1)
    return Trials(first, second, classes[:, 0] == classes[:, 1], classes)


def neighbour_agreement(
    source: Embeddings, candidate: Embeddings, metric: Metric, neighbours: int
) -> float:
    """Return the share of rows whose nearest other row by the candidate is among the source's
    `neighbours` nearest; NaN of fewer than two rows.
    """
    if len(source) < 2:
        return float("nan")
    before, after = (pairwise(vectors, vectors, metric) for vectors in (source, candidate))
    for distances in (before, after):
        np.fill_diagonal(distances, np.inf)
    count = min(neighbours, len(source) - 1)
    reach = np.partition(before, count - 1, axis=1)[:, count - 1]
    nearest = after.argmin(axis=1)
    return float(np.mean(before[np.arange(len(before)), nearest] <= reach))


def nearest_is_right(embeddings: Embeddings, labels: IntArray, metric: Metric) -> NDArray[np.bool_]:
    """Tell of each row whether the nearest other row is of its class: bool [n]. Their mean is
    recall@1.
    """
    distances = pairwise(embeddings, embeddings, metric)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(labels[distances.argmin(axis=1)] == labels)


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Return the rank correlation of two series, ties at their mean rank; NaN of a constant one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def distance_spearman(source: PairDistances, candidate: PairDistances) -> float:
    """Return the rank correlation of the two precisions' distances over the same pairs."""
    first = np.concatenate([source.genuine, source.impostor])
    second = np.concatenate([candidate.genuine, candidate.impostor])
    if len(first) > _RANKED_PAIRS:
        chosen = np.random.default_rng(0).choice(len(first), _RANKED_PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    return spearman(first, second)


def least_loss(lost: FloatArray, classes: IntArray) -> float:
    """Return the 5 % quantile of a mean when whole classes are drawn again with replacement.

    Args:
        lost: [n], what each pair or row lost: 1, 0 or -1.
        classes: [n], the class of each.
    """
    _, position = np.unique(classes, return_inverse=True)
    sums, counts = np.bincount(position, weights=lost), np.bincount(position)
    drawn = _redrawn(len(counts))
    return float(np.quantile((drawn @ sums) / (drawn @ counts), 0.05))


def least_true_accept_loss(source: PairDistances, candidate: PairDistances, rate: float) -> float:
    """Return the 5 % quantile of the TAR lost at a FAR, when classes are drawn again.

    Both thresholds are set anew in each draw, since at a small FAR they scatter more than anything
    else. A pair of classes (a, b) counts as often as a was drawn times b was drawn, as in the
    bounds of `twinserve.calibration`.

    Args:
        source: distances by the source.
        candidate: of the same pairs, in the same order.
        rate: false accept rate of both thresholds.
    """
    classes = np.concatenate([source.genuine_class, source.impostor_classes.ravel()])
    known, position = np.unique(classes, return_inverse=True)
    genuine = position[: len(source.genuine)]
    first, second = position[len(source.genuine) :].reshape(-1, 2).T
    sides = []
    for side in (source, candidate):
        # No draw moves the threshold beyond a rate far above the one sought.
        tail = min(len(side.impostor), int(10 * rate * len(side.impostor)) + 100) - 1
        order = np.flatnonzero(side.impostor <= np.partition(side.impostor, tail)[tail])
        order = order[np.argsort(side.impostor[order])]
        sides.append((side, order))
    losses = []
    for drawn in _redrawn(len(known)):
        weights = (drawn[first] * drawn[second]).astype(np.float64)
        own = drawn[genuine]
        allowed = rate * weights.sum()
        if allowed == 0 or own.sum() == 0:  # a draw of a single class
            continue
        accepted = []
        for side, order in sides:
            count = int(np.searchsorted(np.cumsum(weights[order]), allowed, side="right"))
            threshold = side.impostor[order[count - 1]] if count else -np.inf
            accepted.append(float(own[side.genuine <= threshold].sum() / own.sum()))
        losses.append(accepted[0] - accepted[1])
    return float(np.quantile(losses, 0.05)) if losses else float("nan")


def _redrawn(classes: int) -> IntArray:
    """How often each class is drawn when as many are drawn with replacement: [draws, classes]."""
    chances = np.full(classes, 1 / classes)
    return np.random.default_rng(0).multinomial(classes, chances, size=RESAMPLES)


def _ranks(values: FloatArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[place])
