"""Are these two alike: error rates over all pairs of held-out classes, with intervals.

In: distances of genuine and impostor pairs. Out: the EER, TAR at given FARs with their thresholds,
and the ROC on a grid of rates with its band; the DET curve is the same on normal deviates. The
figures are `twinserve.calibration`'s, and so are the draws of classes behind the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from twinserve.calibration import (
    MIN_FALSE_ACCEPTS,
    PairDistances,
    equal_error_rate,
    thresholds_at,
)
from twinserve.distance import FloatArray
from twinserve.train.intervals import RESAMPLES, Estimate, between_percentiles, class_draws

_probit = NormalDist().inv_cdf

# Rates of the curve, per decade of FAR.
_RATES_PER_DECADE = 20
# Resamples are counted at thresholds on a grid: so many by the impostors' FAR, so many by TAR.
_GRID = 64
# Above so many classes they are drawn in as many groups, so that a count of all pairs of them stays
# small; the groups are as alike as classes are, or more.
_MOST_DRAWN = 500


@dataclass(frozen=True)
class AcceptRateAt:
    """TAR at the largest threshold whose FAR is at most the one named."""

    false_accept_rate: float
    true_accept_rate: Estimate
    threshold: float | None  # None where even the nearest impostor pair is too often; TAR is 0 then


@dataclass(frozen=True)
class Curve:
    """TAR over FAR, [points] each, FAR rising; `low` and `high` bound TAR at that FAR (95 %)."""

    false_accept_rate: tuple[float, ...]
    true_accept_rate: tuple[float, ...]
    low: tuple[float, ...] = ()  # empty where no interval can be drawn
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Verification:
    """How genuine and impostor pairs of held-out classes can be told apart."""

    genuine_pairs: int
    impostor_pairs: int
    equal_error_rate: Estimate
    # Rates with fewer than `calibration.MIN_FALSE_ACCEPTS` impostor pairs behind them are absent.
    true_accept_rates: tuple[AcceptRateAt, ...]
    curve: Curve

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Verification:
        """Take back what `dataclasses.asdict` gave, or what JSON made of it."""
        return Verification(
            genuine_pairs=values["genuine_pairs"],
            impostor_pairs=values["impostor_pairs"],
            equal_error_rate=Estimate.from_dict(values["equal_error_rate"]),
            true_accept_rates=tuple(
                AcceptRateAt(
                    rate["false_accept_rate"],
                    Estimate.from_dict(rate["true_accept_rate"]),
                    rate["threshold"],
                )
                for rate in values["true_accept_rates"]
            ),
            curve=Curve(**{name: tuple(points) for name, points in values["curve"].items()}),
        )


def verification(
    pairs: PairDistances, rates: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> Verification:
    """Measure error rates over pairs.

    Args:
        pairs: of held-out classes, at least one genuine and one impostor.
        rates: FARs at which TAR is wanted; those without evidence are left out.
        resamples: draws of classes behind the intervals.
        seed: of the draws.

    Raises:
        DataError: no genuine or no impostor pair.
    """
    genuine, impostor = np.sort(pairs.genuine), np.sort(pairs.impostor)
    eer = equal_error_rate(genuine, impostor)
    wanted = [rate for rate in rates if rate * len(impostor) >= MIN_FALSE_ACCEPTS]
    curve_rates = _curve_rates(eer, len(impostor))
    thresholds = thresholds_at(impostor, [*wanted, *curve_rates])
    tars = [_share_within(genuine, threshold) for threshold in thresholds]
    far, tar = _rates_of_draws(pairs, _grid(genuine, impostor), resamples, seed)
    drawn = np.array(
        [np.interp([*wanted, *curve_rates], *draw) for draw in zip(far, tar, strict=True)]
    ).reshape(len(far), len(tars))
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    if len(far):
        low, high = (
            tuple(map(float, bound))
            for bound in np.quantile(drawn[:, len(wanted) :], [0.025, 0.975], axis=0)
        )
    return Verification(
        genuine_pairs=len(genuine),
        impostor_pairs=len(impostor),
        equal_error_rate=between_percentiles(eer, _equal_error_rates(far, tar)),
        true_accept_rates=tuple(
            AcceptRateAt(rate, between_percentiles(tars[index], drawn[:, index]), thresholds[index])
            for index, rate in enumerate(wanted)
        ),
        curve=Curve(tuple(curve_rates), tuple(tars[len(wanted) :]), low, high),
    )


def equal_error_rates_of_draws(
    pairs: PairDistances, resamples: int = RESAMPLES, seed: int = 0
) -> FloatArray:
    """Return the EER of each draw of classes, those of `verification`'s interval: [draws].

    Draws depend on the classes and the seed alone, so that two twins' rates of the same pairs can
    be compared draw by draw.

    Raises:
        DataError: no genuine or no impostor pair.
    """
    genuine, impostor = np.sort(pairs.genuine), np.sort(pairs.impostor)
    equal_error_rate(genuine, impostor)  # refuses what has none
    return _equal_error_rates(*_rates_of_draws(pairs, _grid(genuine, impostor), resamples, seed))


def deviate(rate: float, least: float = 1e-6) -> float:
    """Return a rate as a normal deviate, the scale of DET curves (Martin et al., 1997).

    Rates of 0 and 1 have none; they are taken as `least` away from it.
    """
    return _probit(min(max(rate, least), 1.0 - least))


def _curve_rates(eer: float, impostors: int) -> list[float]:
    """Choose the FARs of a curve: from one false accept up to all, and the EER's own."""
    decades = np.log10(impostors)
    grid = np.logspace(-decades, 0.0, 1 + max(1, round(decades * _RATES_PER_DECADE)))
    rates: list[float] = np.unique([*grid, eer] if eer > 0.0 else grid).tolist()
    return rates


def _share_within(ordered: FloatArray, threshold: float | None) -> float:
    if threshold is None:
        return 0.0
    return float(np.searchsorted(ordered, threshold, side="right") / len(ordered))


def _grid(genuine: FloatArray, impostor: FloatArray) -> FloatArray:
    """Choose thresholds: by FAR as dense where it is small, by TAR evenly, and one above all."""
    by_far = impostor[np.unique(np.geomspace(1, len(impostor), _GRID).astype(np.int64)) - 1]
    by_tar = genuine[np.linspace(0, len(genuine) - 1, _GRID).astype(np.int64)]
    return np.unique(np.concatenate([by_far, by_tar, [max(genuine[-1], impostor[-1])]]))


def _rates_of_draws(
    pairs: PairDistances, thresholds: FloatArray, resamples: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """FAR and TAR of resampled classes, at threshold 0 of none and then each: [draws, 1 + n] twice.

    Draws in which no class has a genuine pair are left out.
    """
    classes = np.unique(np.concatenate([pairs.genuine_class, pairs.impostor_classes.ravel()]))
    own = np.searchsorted(classes, pairs.genuine_class) % _MOST_DRAWN
    first, second = (np.searchsorted(classes, pairs.impostor_classes) % _MOST_DRAWN).T
    count, gaps = min(len(classes), _MOST_DRAWN), len(thresholds)
    draws = class_draws(count, resamples, seed).astype(np.float64)  # [draws, classes]
    gap = np.searchsorted(thresholds, pairs.genuine, side="left")
    of_class = np.bincount(own * gaps + gap, minlength=count * gaps).reshape(count, gaps)
    true = np.cumsum(draws @ of_class, axis=1)

    gap = np.searchsorted(thresholds, pairs.impostor, side="left")
    order = np.argsort(gap, kind="stable")
    ends = np.searchsorted(gap[order], np.arange(gaps), side="right")
    code = (first * count + second)[order]
    false = np.zeros((len(draws), gaps))
    for index, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        if start == end:
            continue
        between = np.bincount(code[start:end], minlength=count * count).reshape(count, count)
        within = np.diagonal(between).copy()  # pairs that have no two classes
        between = between.astype(np.float64)
        np.fill_diagonal(between, 0.0)
        false[:, index] = ((draws @ between) * draws).sum(axis=1) + draws @ within
    false = np.cumsum(false, axis=1)
    usable = (true[:, -1] > 0) & (false[:, -1] > 0)
    far, tar = (
        np.pad(counted[usable] / counted[usable, -1:], ((0, 0), (1, 0)))
        for counted in (false, true)
    )
    return far, tar


def _equal_error_rates(far: FloatArray, tar: FloatArray) -> FloatArray:
    """Return where FAR and FRR cross in each draw: [draws, n] twice -> [draws]."""
    gap = far - (1.0 - tar)  # rises from -1 to 1
    after = np.argmax(gap >= 0.0, axis=1)
    row = np.arange(len(far))
    before = np.maximum(after - 1, 0)
    weight = -gap[row, before] / (gap[row, after] - gap[row, before])
    return np.asarray(far[row, before] + weight * (far[row, after] - far[row, before]))
