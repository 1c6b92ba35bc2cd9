"""Several runs as one result: the mean over folds, its spread, and the pooled figure.

In: what was measured in each run, as different splits or seeds gave it. Out: a row per figure. The
pooled figure is that of all folds' questions together: shares are weighted by their trials or
queries, and the pooled ROC is the folds' TARs at equal FAR, weighted by their genuine pairs, since
each fold's twin has distances, and so thresholds, of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twinserve.errors import DataError
from twinserve.train.few_shot import FewShot
from twinserve.train.held_out import HeldOut
from twinserve.train.intervals import Estimate, wilson_interval
from twinserve.train.retrieval import Retrieval
from twinserve.train.verification import Curve, Verification


@dataclass(frozen=True)
class Pooled:
    """One figure over several folds."""

    figure: str
    mean: float
    standard_deviation: float | None  # of the folds (n - 1); None of a single one
    pooled: float
    # Wilson's interval of the pooled figure, where it is a share of trials drawn at random.
    low: float | None
    high: float | None
    values: tuple[float | None, ...]  # of each fold; None where a fold has no such figure


@dataclass(frozen=True)
class PooledChange:
    """What training changed in one figure, over several folds; means of the folds that have it."""

    figure: str
    before: float
    after: float
    difference: float  # after - before
    standard_deviation: float | None  # of the differences (n - 1); None of a single one
    values: tuple[Estimate | None, ...]  # each fold's difference, with its paired interval


@dataclass(frozen=True)
class _Part:
    """A figure of one fold, with the questions that it stands for."""

    estimate: Estimate
    weight: int
    is_share_of_trials: bool = False


def pool(folds: Sequence[HeldOut]) -> tuple[Pooled, ...]:
    """Join what was measured in several folds, figure by figure, in the order of a report.

    A figure that some folds lack is joined over those that have it.

    Raises:
        DataError: no fold at all.
    """
    if not folds:
        raise DataError("there are no folds to join; name one run at least")
    parts = [_parts(fold) for fold in folds]
    names = list(dict.fromkeys(name for one in parts for name in one))
    verified = [fold.verification for fold in folds if fold.verification is not None]
    rows = []
    for name in sorted(names, key=_place):
        found = [one[name] for one in parts if name in one]
        values = [part.estimate.value for part in found]
        weights = np.array([part.weight for part in found], dtype=np.float64)
        pooled = float(np.average(values, weights=weights))
        low = high = None
        if name == "EER":
            pooled = pooled_equal_error_rate(verified)
        if all(part.is_share_of_trials for part in found):
            low, high = wilson_interval(round(pooled * weights.sum()), int(weights.sum()))
        rows.append(
            Pooled(
                figure=name,
                mean=statistics.fmean(values),
                standard_deviation=statistics.stdev(values) if len(values) > 1 else None,
                pooled=pooled,
                low=low,
                high=high,
                values=tuple(one[name].estimate.value if name in one else None for one in parts),
            )
        )
    return tuple(rows)


def pool_changes(folds: Sequence[HeldOut]) -> tuple[PooledChange, ...]:
    """Join what training changed in several folds; empty where none began with a model."""
    known = [{change.figure: change for change in fold.changes} for fold in folds]
    names = dict.fromkeys(name for one in known for name in one)
    rows = []
    for name in sorted(names, key=_place):
        found = [one[name] for one in known if name in one]
        differences = [change.difference.value for change in found]
        rows.append(
            PooledChange(
                figure=name,
                before=statistics.fmean(change.before for change in found),
                after=statistics.fmean(change.after for change in found),
                difference=statistics.fmean(differences),
                standard_deviation=statistics.stdev(differences) if len(found) > 1 else None,
                values=tuple(one[name].difference if name in one else None for one in known),
            )
        )
    return tuple(rows)


def pooled_curve(folds: Sequence[Verification]) -> Curve:
    """Average the folds' TARs at equal FAR, weighted by their genuine pairs.

    It begins at the smallest FAR that every fold can show.
    """
    rates = np.unique(np.concatenate([fold.curve.false_accept_rate for fold in folds]))
    rates = rates[rates >= max(fold.curve.false_accept_rate[0] for fold in folds)]
    tars = [
        np.interp(rates, fold.curve.false_accept_rate, fold.curve.true_accept_rate)
        for fold in folds
    ]
    pooled = np.average(tars, axis=0, weights=[fold.genuine_pairs for fold in folds])
    return Curve(tuple(rates.tolist()), tuple(pooled.tolist()))


def pooled_equal_error_rate(folds: Sequence[Verification]) -> float:
    """Return where FAR and FRR of the pooled curve cross, every fold at its own threshold."""
    if len(folds) == 1:
        return folds[0].equal_error_rate.value
    curve = pooled_curve(folds)
    far = np.array([0.0, *curve.false_accept_rate])
    gap = far - (1.0 - np.array([0.0, *curve.true_accept_rate]))
    # Where no fold errs, the pooled curve is above the line from its first point on.
    if gap[1] >= 0.0 and all(fold.equal_error_rate.value == 0.0 for fold in folds):
        return 0.0
    after = int(np.argmax(gap >= 0.0))
    weight = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(far[after - 1] + weight * (far[after] - far[after - 1]))


def estimates(fold: HeldOut) -> dict[str, Estimate]:
    """Return the figures of one fold by name, in the order of a report."""
    parts = _parts(fold)
    return {name: parts[name].estimate for name in sorted(parts, key=_place)}


def _parts(fold: HeldOut) -> dict[str, _Part]:
    """Name the figures of a fold; see `_place` for their order."""
    found: dict[str, _Part] = {}
    if fold.verification is not None:
        found |= _of_verification(fold.verification)
    if fold.retrieval is not None:
        found |= _of_retrieval(fold.retrieval)
    if fold.correlation is not None:
        found["Spearman"] = _Part(fold.correlation.spearman, fold.correlation.pairs)
    if fold.right_order is not None:
        found["right order"] = _Part(fold.right_order, fold.triplets)
    if fold.recall_of_partners is not None:
        found["recall@1 of partners"] = _Part(fold.recall_of_partners, fold.judged_pairs)
    for one in fold.few_shot:
        found[few_shot_name(one)] = _Part(one.accuracy, one.trials, True)
    return found


def _of_verification(measured: Verification) -> dict[str, _Part]:
    found = {"EER": _Part(measured.equal_error_rate, measured.genuine_pairs)}
    for rate in measured.true_accept_rates:
        name = f"TAR at FAR {rate.false_accept_rate:g}"
        found[name] = _Part(rate.true_accept_rate, measured.genuine_pairs)
    return found


def _of_retrieval(measured: Retrieval) -> dict[str, _Part]:
    values = {f"recall@{one.k}": one.recall for one in measured.recalls}
    values |= {
        "R-precision": measured.r_precision,
        "MAP@R": measured.mean_average_precision_at_r,
    }
    return {name: _Part(one, measured.queries) for name, one in values.items()}


def few_shot_name(measured: FewShot) -> str:
    """Name a figure of k-shot trials, such as 20-way 5-shot by nearest class mean."""
    name = f"{measured.ways}-way {measured.shots}-shot"
    return name if measured.shots == 1 else f"{name} by {measured.rule}"


def _place(name: str) -> int:
    """Keep verification before retrieval before k-shot, whichever fold lacks what."""
    kinds = ("Spearman", "right order", "EER", "TAR", "recall", "R-precision", "MAP")
    return next((place for place, kind in enumerate(kinds) if name.startswith(kind)), len(kinds))
