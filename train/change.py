"""What training changed: the twin as it came against the one that it became, on the same rows.

In: embeddings of the same held-out items by both. Out: each figure of both, and their difference
with its interval. Both answer the same questions, so each resample of them is measured by both and
the interval is that of the differences (a paired bootstrap; Efron and Tibshirani, 1993). That tells
a gain which two intervals side by side would leave open: what is hard is hard for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import PairDistances, equal_error_rate, pair_distances
from twinserve.distance import Embeddings, FloatArray, Metric, paired
from twinserve.train.correlation import change_of_spearman, spearman
from twinserve.train.evaluate import IntArray, measured_items
from twinserve.train.few_shot import Rule, answers, questions_of
from twinserve.train.intervals import RESAMPLES, Estimate, between_percentiles, mean_over_classes
from twinserve.train.judged import judged_distances, kind_of_judgements, partners_found, sides
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.retrieval import rank
from twinserve.train.verification import equal_error_rates_of_draws

Both = tuple[Embeddings, Embeddings]


@dataclass(frozen=True)
class Change:
    """One figure before and after training."""

    figure: str  # as `folds.estimates` names it
    before: float
    after: float
    difference: Estimate  # after - before

    @property
    def gain(self) -> int:
        """1 where the interval holds better figures alone, -1 worse ones alone, else 0."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0.0 <= high:
            return 0
        return 1 if (low > 0.0) != (self.figure == "EER") else -1

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Change:
        """Take back what `dataclasses.asdict` gave, or what JSON made of it."""
        return Change(**{**values, "difference": Estimate.from_dict(values["difference"])})


def measure_text(figure: str, value: float) -> str:
    """Write a figure as reports do: Spearman × 100, and shares in percent."""
    return f"{100 * value:.2f}" if figure == "Spearman" else f"{100 * value:.2f} %"


def change_text(difference: float) -> str:
    """Write a difference with its sign, in points of a hundred."""
    return f"{100 * difference:+z.2f}".replace("-", "−")


def changes_of_classes(
    both: Both,
    labels: IntArray,
    groups: IntArray | None,
    metric: Metric,
    *,
    ways: int = 20,
    trials: int = 1000,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Change, ...]:
    """Compare two twins on one set of classes, by the figures and draws of `held_out.measure`.

    Resamples are of classes; of one-shot trials, of their probes' classes.

    Args:
        both: float32 [n, dimension] each, by the twin as it came and by the trained one.
        labels: int64 [n], the class of each.
        groups: int64 [n], equal within a class; None for no groups.
        metric: under which embeddings are compared.
        ways: classes of an N-way trial.
        trials: of each of three seeds.
        seed: the first of them, and of all other draws.
        resamples: draws behind the intervals.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    found: list[Change] = []

    def note(figure: str, values: Sequence[FloatArray], classes: IntArray) -> None:
        found.append(_of_means(figure, values, classes, resamples, seed))

    chosen = measured_items(len(labels), seed)
    some, count = labels[chosen], np.unique(labels[chosen], return_counts=True)[1]
    if len(count) > 1 and count.max() > 1:
        pairs = [pair_distances(one[chosen], some, metric) for one in both]
        found.append(_of_error_rates(pairs, resamples, seed))
    ranked = [rank(one, labels, metric, seed=seed) for one in both]
    if ranked[0] is not None and ranked[1] is not None:
        classes = labels[ranked[0].queries]
        known = [one for one in ranked if one is not None]
        note("recall@1", [one.found[:, 0] for one in known], classes)
        note("MAP@R", [one.average_precision for one in known], classes)
    seeds = (seed, seed + 1, seed + 2)
    grouped = None if groups is None else groups[chosen]
    questions = questions_of(some, grouped, ways=ways, shots=1, trials=trials, seeds=seeds)
    if questions:
        right = [
            np.concatenate([answers(one[chosen], asked, metric, Rule.ITEM) for asked in questions])
            for one in both
        ]
        probes = some[np.concatenate([asked.probe for asked in questions])]
        note(f"{questions[0].support.shape[1]}-way 1-shot", right, probes)
    return tuple(found)


def changes_of_links(
    both: Both,
    data: PairData | TripletData,
    metric: Metric,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Change, ...]:
    """Compare two twins on judged pairs or triplets, by the figures of `held_out.measure_links`.

    Of scores, resamples are of pairs; else of sets of rows that share no item with others.

    Args:
        both: float32 [n, dimension] each, of the items of `data`, by the twin as it came and by
            the trained one.
        data: the pairs or triplets.
        metric: under which embeddings are compared.
        seed: of all draws.
        resamples: draws behind the intervals.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    component = data.components[data.members[:, 0]]
    if isinstance(data, TripletData):
        right = [np.less(*sides(one, data, metric)) for one in both]
        change = _of_means("right order", right, component, resamples, seed)
        return (change, *_of_judged(both, data.pairs, metric, resamples, seed))
    if kind_of_judgements(data) == "same":
        found = [partners_found(one, data, metric) for one in both]
        return (_of_means("recall@1 of partners", found, component, resamples, seed),)
    return _of_judged(both, data, metric, resamples, seed)


def _of_judged(
    both: Both, data: PairData, metric: Metric, resamples: int, seed: int
) -> tuple[Change, ...]:
    members, targets = data.members, data.targets.astype(np.float64)
    before, after = (paired(one[members[:, 0]], one[members[:, 1]], metric) for one in both)
    if kind_of_judgements(data) == "labels":
        if not 0 < targets.sum() < len(targets):
            return ()
        pairs = [
            judged_distances(one, members, targets, data.components) for one in (before, after)
        ]
        return (_of_error_rates(pairs, resamples, seed),)
    if not all(np.ptp(series) > 0 for series in (before, after, targets)):
        return ()  # a twin that gives all pairs one distance ranks nothing
    difference = change_of_spearman(before, after, targets, resamples, seed)
    return (Change("Spearman", spearman(-before, targets), spearman(-after, targets), difference),)


def _of_error_rates(pairs: Sequence[PairDistances], resamples: int, seed: int) -> Change:
    before, after = (equal_error_rate(one.genuine, one.impostor) for one in pairs)
    first, second = (equal_error_rates_of_draws(one, resamples, seed) for one in pairs)
    return Change("EER", before, after, between_percentiles(after - before, second - first))


def _of_means(
    figure: str,
    values: Sequence[FloatArray | NDArray[np.bool_]],
    classes: IntArray,
    resamples: int,
    seed: int,
) -> Change:
    """Compare the means of two series of the same questions, [n] each."""
    before, after = (np.asarray(one, dtype=np.float64) for one in values)
    difference = mean_over_classes(after - before, classes, resamples, seed)
    return Change(figure, float(before.mean()), float(after.mean()), difference)
