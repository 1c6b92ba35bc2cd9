"""From measured distances to operating points and a likelihood ratio.

In: distances of genuine and impostor pairs of classes that never shaped the weights, with the
classes that each pair joins. Out: the `Calibration` that a manifest stores. Pairs are not
independent (each drawing stands in many), so bounds come from a bootstrap over classes, and a rate
with too little evidence is absent rather than extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, check_vectors, pairwise
from twinserve.errors import DataError
from twinserve.manifest import Calibration, OperatingPoint

IntArray = NDArray[np.int64]

# "Rule of 30" (Doddington et al., 2000): at least so many errors stand behind a rate.
MIN_FALSE_ACCEPTS = 30
RATES_PER_DECADE = 10


@dataclass(frozen=True)
class PairDistances:
    """Distances of all unordered pairs of a labelled set, with the classes they join."""

    genuine: FloatArray  # [g]
    genuine_class: IntArray  # [g]
    impostor: FloatArray  # [i]
    impostor_classes: IntArray  # [i, 2]


@dataclass(frozen=True)
class RocCurve:
    """FAR and TAR at rising thresholds, float64 [n] each."""

    threshold: FloatArray
    false_accept_rate: FloatArray
    true_accept_rate: FloatArray


def pair_distances(embeddings: Embeddings, labels: IntArray, metric: Metric) -> PairDistances:
    """Measure every pair of a labelled set once.

    Args:
        embeddings: float32 [n, dimension].
        labels: int64 [n], the class of each.
        metric: under which they are compared.

    Raises:
        DataError: no genuine pair, or only one class.
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    labels = np.asarray(labels, dtype=np.int64)
    check_vectors(embeddings, metric)
    rows, columns = np.triu_indices(len(labels), k=1)
    same = labels[rows] == labels[columns]
    if not same.any() or same.all():
        raise DataError(
            f"{len(labels)} items of {len(np.unique(labels))} classes give no "
            f"{'impostor' if same.any() else 'genuine'} pair; "
            "calibration needs two classes and two items of a class at least"
        )
    distances = pairwise(embeddings, embeddings, metric)[rows, columns]
    return PairDistances(
        genuine=distances[same],
        genuine_class=labels[rows[same]],
        impostor=distances[~same],
        impostor_classes=np.stack([labels[rows[~same]], labels[columns[~same]]], axis=1),
    )


def roc(genuine: FloatArray, impostor: FloatArray) -> RocCurve:
    """Return the ROC at every distinct distance: match iff distance <= threshold."""
    thresholds = np.unique(np.concatenate([genuine, impostor]))
    return RocCurve(
        threshold=thresholds,
        false_accept_rate=_share_at_or_below(impostor, thresholds),
        true_accept_rate=_share_at_or_below(genuine, thresholds),
    )


def equal_error_rate(genuine: FloatArray, impostor: FloatArray) -> float:
    """Return the rate where FAR and FRR cross, interpolated between neighbouring thresholds.

    Raises:
        DataError: no genuine or no impostor distance.
    """
    if len(genuine) == 0 or len(impostor) == 0:
        raise DataError(
            f"{len(genuine)} genuine and {len(impostor)} impostor pairs give no equal error rate; "
            "at least one of each is needed"
        )
    curve = roc(genuine, impostor)
    far = np.concatenate([[0.0], curve.false_accept_rate])
    frr = 1.0 - np.concatenate([[0.0], curve.true_accept_rate])
    after = int(np.argmax(far >= frr))
    gap_before = frr[after - 1] - far[after - 1]
    gap_after = far[after] - frr[after]
    weight = gap_before / (gap_before + gap_after)
    return float(far[after - 1] + weight * (far[after] - far[after - 1]))


def true_accept_rate_at(genuine: FloatArray, impostor: FloatArray, rate: float) -> float:
    """Return TAR at the largest threshold whose FAR is at most `rate`."""
    threshold = threshold_at(impostor, rate)
    return 0.0 if threshold is None else float(np.mean(genuine <= threshold))


def threshold_at(impostor: FloatArray, rate: float) -> float | None:
    """Return a threshold whose FAR is the largest at most `rate`, or None where even the nearest
    impostor pair is too often.

    It lies halfway to the next impostor distance above, so that neither rounding nor a tie decides.

    Raises:
        DataError: no impostor distance at all.
    """
    if len(impostor) == 0:
        raise DataError("a false accept rate needs impostor pairs, and there are none")
    ordered = np.sort(impostor)
    allowed = int(np.floor(rate * len(ordered) + 1e-9))
    if allowed >= len(ordered):
        return float(ordered[-1])
    # Ties with the first refused distance must be refused with it.
    below = int(np.searchsorted(ordered, ordered[allowed], side="left"))
    if below == 0:
        return None
    middle = float((ordered[below - 1] + ordered[below]) / 2.0)
    # Between neighbouring floats the middle rounds onto one of them, perhaps the refused one.
    return middle if middle < ordered[below] else float(ordered[below - 1])


def fit_logistic(genuine: FloatArray, impostor: FloatArray) -> tuple[float, float]:
    """Fit llr(d) = intercept - slope * d by logistic regression with balanced weights.

    Genuine and impostor pairs weigh the same in total, so that the fitted log-odds are the
    log-likelihood ratio, free of the pairs' own prior. Newton's method, with a slight ridge that
    keeps the slope finite when the two are separable.

    Returns:
        (slope, intercept); (0, 0), hence no evidence either way, where smaller distances are not
        likelier to be genuine.
    """
    scale = float(np.concatenate([genuine, impostor]).std())
    if not scale > 1e-12:
        return 0.0, 0.0
    x = np.concatenate([genuine, impostor]) / scale
    design = np.stack([-x, np.ones_like(x)], axis=1)  # [n, 2]
    target = np.concatenate([np.ones(len(genuine)), np.zeros(len(impostor))])
    weight = np.concatenate(
        [np.full(len(genuine), 0.5 / len(genuine)), np.full(len(impostor), 0.5 / len(impostor))]
    )
    ridge = np.diag([1e-4, 1e-6])
    beta = np.zeros(2)
    for _ in range(100):
        probability = 1.0 / (1.0 + np.exp(-np.clip(design @ beta, -60, 60)))
        gradient = design.T @ (weight * (probability - target)) + ridge @ beta
        curvature = design.T @ (design * (weight * probability * (1 - probability))[:, None])
        step = np.linalg.solve(curvature + ridge, gradient)
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        beta -= step
        if float(np.abs(step).max()) < 1e-10:
            break
    if beta[0] <= 0.0:
        return 0.0, 0.0
    return float(beta[0] / scale), float(beta[1])


def calibrate(
    pairs: PairDistances,
    *,
    precision: str,
    dimension: int,
    metric: Metric,
    aggregation: str = "item",
    default_far: float = 0.01,
    data_digest: str = "",
    resamples: int = 400,
    seed: int = 0,
) -> Calibration:
    """Measure operating points, their bounds and the likelihood ratio.

    Points lie at `RATES_PER_DECADE` rates per decade, from 0.5 down to the smallest rate with
    `MIN_FALSE_ACCEPTS` impostor pairs behind it. `default_far` falls back to the smallest rate
    with evidence when it lies below that.

    Raises:
        DataError: not enough impostor pairs for any operating point.
    """
    genuine, impostor = pairs.genuine, pairs.impostor
    smallest = MIN_FALSE_ACCEPTS / len(impostor)
    steps = np.arange(0, int(np.floor(-np.log10(max(smallest, 1e-12)) * RATES_PER_DECADE)) + 1)
    rates = [0.5] + [rate for rate in 10.0 ** (-steps / RATES_PER_DECADE) if rate < 0.5]
    rates = [rate for rate in rates if rate >= smallest * (1 - 1e-9)]
    candidates = [threshold_at(impostor, rate) for rate in rates]
    # Ties can push a point's real rate far below the one asked for, and below the evidence.
    thresholds = np.unique(
        [
            threshold
            for threshold in candidates
            if threshold is not None and np.sum(impostor <= threshold) >= MIN_FALSE_ACCEPTS
        ]
    )[::-1]
    if len(thresholds) == 0:
        raise DataError(
            f"{len(impostor)} impostor pairs carry no operating point: a rate needs "
            f"{MIN_FALSE_ACCEPTS} false accepts behind it; "
            "give more classes or more items to calibrate on"
        )
    upper = _upper_bounds(pairs, thresholds, resamples, seed)
    points = tuple(
        OperatingPoint(
            false_accept_rate=float(np.mean(impostor <= threshold)),
            false_accept_rate_upper=float(bound),
            threshold=float(threshold),
            true_accept_rate=float(np.mean(genuine <= threshold)),
        )
        for threshold, bound in zip(thresholds, upper, strict=True)
    )
    slope, intercept = fit_logistic(genuine, impostor)
    return Calibration(
        precision=precision,
        dimension=dimension,
        aggregation=aggregation,
        metric=metric,
        points=points,
        default_far=max(default_far, points[-1].false_accept_rate),
        slope=slope,
        intercept=intercept,
        equal_error_rate=equal_error_rate(genuine, impostor),
        classes=len(np.unique(pairs.genuine_class)),
        genuine_pairs=len(genuine),
        impostor_pairs=len(impostor),
        data_digest=data_digest,
    )


def _upper_bounds(
    pairs: PairDistances, thresholds: FloatArray, resamples: int, seed: int
) -> FloatArray:
    """95th percentile of FAR when whole classes are drawn again with replacement: [thresholds].

    A pair of classes (a, b) counts as often as a was drawn times b was drawn. Pairs of items are
    counted once per pair of classes and gap between thresholds, so that a resample is one weighted
    count over those. Never below the measured rate itself.
    """
    rising = np.sort(thresholds)
    classes, position = np.unique(pairs.impostor_classes, return_inverse=True)
    position = np.sort(position.reshape(-1, 2), axis=1)
    gaps = len(rising) + 1
    # gap g holds the distances accepted from rising[g] on, the last one those never accepted
    gap = np.searchsorted(rising, pairs.impostor, side="left")
    key = (position[:, 0] * len(classes) + position[:, 1]) * gaps + gap
    cell, items = np.unique(key, return_counts=True)
    gap = cell % gaps
    first, second = np.divmod(cell // gaps, len(classes))
    generator = np.random.default_rng(seed)
    measured = np.cumsum(np.bincount(gap, weights=items, minlength=gaps))
    rates = [measured[:-1] / measured[-1]]
    for _ in range(resamples):
        drawn = np.bincount(
            generator.integers(0, len(classes), size=len(classes)), minlength=len(classes)
        )
        weight = items * drawn[first] * drawn[second]
        accepted = np.cumsum(np.bincount(gap, weights=weight, minlength=gaps))
        if accepted[-1] > 0:  # a draw of one class only has no impostor pair
            rates.append(accepted[:-1] / accepted[-1])
    upper = np.maximum(np.quantile(np.stack(rates), 0.95, axis=0), rates[0])
    return np.asarray(upper[np.argsort(np.argsort(thresholds))])


def _share_at_or_below(values: FloatArray, thresholds: FloatArray) -> FloatArray:
    return np.searchsorted(np.sort(values), thresholds, side="right") / len(values)
