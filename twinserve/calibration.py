"""From measured distances to operating points and a likelihood ratio.

In: distances of genuine and impostor pairs of classes that never shaped the weights, with the
classes that each pair joins. Out: the `Calibration` that a manifest stores. Pairs are not
independent (each drawing stands in many), so bounds come from a bootstrap over classes, and a rate
with too little evidence is absent rather than extrapolated.

The bound is a promise about other classes: the rate that as many new classes of the same kind stay
under with 95 %. They are a draw of their own, so the bound compares two draws; a bound on the
average over all classes there could ever be would be broken by one new set in five.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, check_vectors, pairwise
from twinserve.errors import DataError
from twinserve.manifest import ITEM, Calibration, OperatingPoint

IntArray = NDArray[np.int64]

# "Rule of 30" (Doddington et al., 2000): at least so many errors stand behind a rate.
MIN_FALSE_ACCEPTS = 30
# They must come from several pairs of classes: thirty confusions of i with l are one observation.
# Counted as (sum n)^2 / sum n^2 over the n false accepts of each pair of classes.
MIN_EFFECTIVE_CLASS_PAIRS = 5.0
RATES_PER_DECADE = 10
# The rate of a resample without any false accept, as a share of the measured one.
_LEAST_SHARE = 0.02
_GROUPS = 10_000  # of distances, in fitting the likelihood ratio


@dataclass(frozen=True)
class PairDistances:
    """Distances of pairs, with the classes they join.

    Where pairs have no classes, whatever may repeat from pair to pair stands for one; an impostor
    pair may then lie within one "class".
    """

    genuine: FloatArray  # [g]
    genuine_class: IntArray  # [g]
    impostor: FloatArray  # [i]
    impostor_classes: IntArray  # [i, 2]


@dataclass(frozen=True)
class Requirement:
    """About how much evidence a rate would take, at as many items per class as there were."""

    classes: int
    impostor_pairs: int


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
    return thresholds_at(impostor, [rate])[0]


def thresholds_at(impostor: FloatArray, rates: Sequence[float]) -> list[float | None]:
    """Return what `threshold_at` says of each rate, with the distances sorted once.

    Raises:
        DataError: no impostor distance at all.
    """
    if len(impostor) == 0:
        raise DataError("a false accept rate needs impostor pairs, and there are none")
    ordered = np.sort(impostor)
    return [_threshold_at(ordered, rate) for rate in rates]


def _threshold_at(ordered: FloatArray, rate: float) -> float | None:
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


def drawn_classes(classes: int, generator: np.random.Generator) -> IntArray:
    """Draw as many classes with replacement, and count how often each came: int64 [classes].

    In a resample the pairs within a class count as often as it came, and those of two classes as
    often as the one came times the other.
    """
    return np.bincount(generator.integers(0, classes, size=classes), minlength=classes)


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
    near, near_share = _grouped(genuine / scale)
    far, far_share = _grouped(impostor / scale)
    x = np.concatenate([near, far])
    design = np.stack([-x, np.ones_like(x)], axis=1)  # [n, 2]
    target = np.concatenate([np.ones(len(near)), np.zeros(len(far))])
    weight = 0.5 * np.concatenate([near_share, far_share])
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


def _grouped(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the means of narrow groups of values, and the share of each: [groups] twice.

    Millions of pairs are fitted ten times over. In groups this narrow the fit keeps seven digits,
    and takes a fiftieth of the time.
    """
    low, width = float(values.min()), max(float(np.ptp(values)), 1e-300) / _GROUPS
    group = np.minimum(((values - low) / width).astype(np.int64), _GROUPS - 1)
    count = np.bincount(group)
    filled = count > 0
    means = np.bincount(group, weights=values)[filled] / count[filled]
    return means, count[filled] / len(values)


def calibrate(
    pairs: PairDistances,
    *,
    precision: str,
    dimension: int,
    metric: Metric,
    aggregation: str = ITEM,
    default_far: float = 0.01,
    data_digest: str = "",
    evidence: str = "run",
    resamples: int = 400,
    seed: int = 0,
) -> Calibration:
    """Measure operating points, their bounds and the likelihood ratio.

    Points lie at `RATES_PER_DECADE` rates per decade, from 0.5 down to the smallest rate that the
    evidence carries: `MIN_FALSE_ACCEPTS` impostor pairs behind it, of
    `MIN_EFFECTIVE_CLASS_PAIRS` pairs of classes. `default_far` falls back to that smallest rate
    when it lies below it.

    Raises:
        DataError: not enough impostor pairs for any operating point.
    """
    genuine, impostor = pairs.genuine, pairs.impostor
    if len(genuine) == 0 or len(impostor) == 0:
        raise DataError(
            f"there are {len(genuine)} genuine and {len(impostor)} impostor pairs; calibration "
            "needs both: give items of several classes, several of each"
        )
    smallest = MIN_FALSE_ACCEPTS / len(impostor)
    steps = np.arange(0, int(np.floor(-np.log10(max(smallest, 1e-12)) * RATES_PER_DECADE)) + 1)
    rates = [0.5] + [rate for rate in 10.0 ** (-steps / RATES_PER_DECADE) if rate < 0.5]
    rates = [rate for rate in rates if rate >= smallest * (1 - 1e-9)]
    ordered = np.sort(impostor)
    candidates = [_threshold_at(ordered, rate) for rate in rates]
    thresholds = np.unique([threshold for threshold in candidates if threshold is not None])
    carried = _Accepts(pairs, thresholds) if len(thresholds) else None
    # Ties can push a point's real rate far below the one asked for, and below the evidence.
    enough = np.zeros(0, dtype=bool) if carried is None else carried.enough()
    if carried is None or not enough.any():
        raise DataError(
            f"{len(impostor)} impostor pairs carry no operating point: a rate needs "
            f"{MIN_FALSE_ACCEPTS} false accepts behind it, of {MIN_EFFECTIVE_CLASS_PAIRS:.0f} "
            "pairs of classes at least; give more classes, or more items, to calibrate on"
        )
    upper = carried.upper_bounds(resamples, seed)
    points = tuple(
        OperatingPoint(
            false_accept_rate=float(np.mean(impostor <= threshold)),
            false_accept_rate_upper=float(bound),
            threshold=float(threshold),
            true_accept_rate=float(np.mean(genuine <= threshold)),
        )
        for threshold, bound in zip(thresholds[enough][::-1], upper[enough][::-1], strict=True)
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
        classes=len(
            np.unique(np.concatenate([pairs.genuine_class, pairs.impostor_classes.ravel()]))
        ),
        genuine_pairs=len(genuine),
        impostor_pairs=len(impostor),
        data_digest=data_digest,
        evidence=evidence,
    )


def required(calibration: Calibration, rate: float) -> Requirement | None:
    """Say what it would take to carry a FAR below the smallest one here; None where it is carried.

    False accepts, and the pairs of classes that they come from, grow with the pairs of classes, and
    those with the square of the classes. An estimate: new classes may be easier or harder.
    """
    smallest = calibration.points[-1].false_accept_rate
    if rate >= smallest * (1 - 1e-9):
        return None
    short = smallest / rate
    return Requirement(
        classes=math.ceil(calibration.classes * math.sqrt(short)),
        impostor_pairs=max(
            math.ceil(calibration.impostor_pairs * short), math.ceil(MIN_FALSE_ACCEPTS / rate)
        ),
    )


class _Accepts:
    """False accepts of each pair of classes at rising thresholds.

    Items are counted once per pair of classes and gap between thresholds, so that a resample is one
    weighted count over those cells. Gap g holds the distances accepted from thresholds[g] on, the
    last one those never accepted.
    """

    def __init__(self, pairs: PairDistances, thresholds: FloatArray) -> None:
        classes = np.unique(pairs.impostor_classes)
        position = np.sort(np.searchsorted(classes, pairs.impostor_classes), axis=1)
        gaps = len(thresholds) + 1
        gap = np.searchsorted(thresholds, pairs.impostor, side="left")
        key = (position[:, 0] * len(classes) + position[:, 1]) * gaps + gap
        cell, self._items = np.unique(key, return_counts=True)
        self._classes, self._gaps = len(classes), gaps
        self._gap = cell % gaps
        self._pair = cell // gaps
        self._first, self._second = np.divmod(self._pair, len(classes))
        accepted = self._accepted(self._items)
        self._measured = accepted[:-1] / accepted[-1]
        self._count = accepted[:-1]

    def enough(self) -> NDArray[np.bool_]:
        """Tell per threshold whether the evidence carries its rate: [thresholds]."""
        pairs, place = np.unique(self._pair, return_inverse=True)
        per_pair = np.zeros(len(pairs))
        effective = np.zeros(self._gaps - 1)
        for gap in range(self._gaps - 1):
            here = self._gap == gap
            per_pair[place[here]] += self._items[here]
            squares = float(per_pair @ per_pair)
            effective[gap] = per_pair.sum() ** 2 / squares if squares else 0.0
        return np.asarray(
            (self._count >= MIN_FALSE_ACCEPTS) & (effective >= MIN_EFFECTIVE_CLASS_PAIRS)
        )

    def upper_bounds(self, resamples: int, seed: int) -> FloatArray:
        """95 % bound of the rate on as many new classes: [thresholds], rising.

        Whole classes are drawn with replacement; a pair of classes (a, b) counts as often as a was
        drawn times b was drawn. Half of the draws stand for the classes that were measured, half
        for new ones, and the bound is the measured rate times the 95th percentile of the ratio of
        the two. Ratios, since the rates of draws are skewed, and more so the rarer they are.
        """
        generator = np.random.default_rng(seed)
        rates: list[FloatArray] = []
        while len(rates) < resamples:
            drawn = drawn_classes(self._classes, generator)
            weight = drawn[self._first] * np.where(
                self._first == self._second, 1, drawn[self._second]
            )
            accepted = self._accepted(self._items * weight)
            if accepted[-1] > 0:  # a draw of one class only has no impostor pair
                rates.append(accepted[:-1] / accepted[-1])
        measured = self._measured
        least = np.maximum(_LEAST_SHARE * measured, 1e-300)
        drawn_rates = np.log(np.maximum(np.stack(rates), least))  # [resamples, thresholds]
        half = resamples // 2
        ratios = drawn_rates[:half, None, :] - drawn_rates[None, half:, :]
        ratio = np.quantile(ratios.reshape(-1, len(measured)), 0.95, axis=0)
        upper = np.clip(measured * np.exp(np.maximum(ratio, 0.0)), measured, 1.0)
        # What bounds a rate also bounds the smaller rates of smaller thresholds.
        return np.asarray(np.maximum(np.minimum.accumulate(upper[::-1])[::-1], measured))

    def _accepted(self, weight: IntArray) -> FloatArray:
        """Accepted pairs from the smallest threshold on, all pairs last: [gaps]."""
        return np.cumsum(np.bincount(self._gap, weights=weight, minlength=self._gaps))


def _share_at_or_below(values: FloatArray, thresholds: FloatArray) -> FloatArray:
    return np.searchsorted(np.sort(values), thresholds, side="right") / len(values)
