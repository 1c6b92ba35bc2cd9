"""Several runs as one: mean, deviation and the pooled figure, by hand."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest

from twinserve.calibration import equal_error_rate
from twinserve.distance import Metric, paired
from twinserve.errors import DataError
from twinserve.train.correlation import spearman
from twinserve.train.folds import estimates, pool, pooled_curve, pooled_equal_error_rate
from twinserve.train.held_out import FILE, HeldOut, measure, measure_pairs
from twinserve.train.intervals import wilson_interval
from twinserve.train.verification import Curve, Verification


def fold(seed: int, noise: float, classes: int = 10, items: int = 6) -> HeldOut:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), items)
    centres = generator.normal(size=(classes, 5))
    rows = centres[labels] + noise * generator.normal(size=(len(labels), 5))
    return measure(
        rows.astype(np.float32), labels, None, Metric.EUCLIDEAN, trials=30, ways=5, resamples=20
    )


FOLDS = (fold(0, 0.3), fold(1, 0.6), fold(2, 0.9, classes=20))


def verified(one: HeldOut) -> Verification:
    assert one.verification is not None
    return one.verification


def test_means_and_deviations_are_those_of_the_folds() -> None:
    rows = [row for row in pool(FOLDS) if None not in row.values]
    assert len(rows) >= 10
    for row in rows:
        values = [estimates(one)[row.figure].value for one in FOLDS]
        assert row.values == tuple(values)
        assert row.mean == pytest.approx(sum(values) / 3)
        assert row.standard_deviation == pytest.approx(statistics.stdev(values))


def test_shares_are_pooled_by_their_trials_and_queries() -> None:
    rows = {row.figure: row for row in pool(FOLDS)}
    recall = rows["recall@1"]
    assert recall.pooled == pytest.approx(np.average(recall.values, weights=[60, 60, 120]))
    one_shot = rows["5-way 1-shot"]
    right = round(sum(value * 90 for value in one_shot.values if value is not None))
    assert one_shot.pooled == pytest.approx(right / 270)
    assert (one_shot.low, one_shot.high) == wilson_interval(right, 270)
    assert recall.low is None


def test_figures_come_in_the_order_of_a_report() -> None:
    names = [row.figure for row in pool(FOLDS)]
    assert names[:2] == ["EER", "TAR at FAR 0.1"]
    assert names[-3:] == [
        "5-way 1-shot",
        "5-way 5-shot by nearest class mean",
        "5-way 5-shot by nearest item",
    ]


def test_the_pooled_curve_weighs_tars_at_equal_far_by_genuine_pairs() -> None:
    first = dataclasses.replace(
        verified(FOLDS[0]), genuine_pairs=1, curve=Curve((0.1, 1), (0.5, 1))
    )
    second = dataclasses.replace(first, genuine_pairs=3, curve=Curve((0.2, 1), (0.9, 1)))
    curve = pooled_curve([first, second])
    assert curve.false_accept_rate == (0.2, 1.0)
    assert curve.true_accept_rate == pytest.approx((0.25 * (0.5 + 0.5 / 9) + 0.75 * 0.9, 1.0))


def test_the_pooled_equal_error_rate_lies_among_the_folds_and_is_that_of_equal_ones() -> None:
    eers = [verified(one).equal_error_rate.value for one in FOLDS]
    assert min(eers) < pooled_equal_error_rate([verified(one) for one in FOLDS]) < max(eers)
    for one in FOLDS:
        same = pooled_equal_error_rate([verified(one)] * 3)
        assert same == pytest.approx(verified(one).equal_error_rate.value, abs=0.003)
        assert pool([one])[0].pooled == verified(one).equal_error_rate.value


def test_folds_without_an_error_pool_to_none() -> None:
    assert pool([fold(3, 0.001), fold(4, 0.001)])[0].pooled == 0.0


def test_a_figure_that_a_fold_lacks_is_joined_over_the_others() -> None:
    lacking = dataclasses.replace(FOLDS[0], verification=None, few_shot=())
    rows = {row.figure: row for row in pool([lacking, FOLDS[1]])}
    assert rows["EER"].values == (None, verified(FOLDS[1]).equal_error_rate.value)
    assert rows["EER"].standard_deviation is None
    assert rows["recall@1"].standard_deviation is not None


def test_no_folds_are_refused() -> None:
    with pytest.raises(DataError, match="no folds"):
        pool([])


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    FOLDS[0].save(tmp_path)
    assert HeldOut.load(tmp_path) == FOLDS[0]
    (tmp_path / FILE).write_text('{"format": 1}')
    with pytest.raises(DataError, match="damaged"):
        HeldOut.load(tmp_path)
    (tmp_path / FILE).write_text('{"format": 99}')
    with pytest.raises(DataError, match="newer"):
        HeldOut.load(tmp_path)


def test_one_class_is_measured_as_far_as_it_goes() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    alone = measure(rows, np.zeros(6, np.int64), None, Metric.COSINE)
    assert alone.verification is None
    assert alone.few_shot == ()
    assert alone.retrieval is not None
    singles = measure(rows, np.arange(6), None, Metric.COSINE)
    assert (singles.verification, singles.retrieval, singles.few_shot) == (None, None, ())


def judged(scored: bool, pairs: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of two items a pair, the pairs, and targets that closeness follows."""
    generator = np.random.default_rng(7)
    members = generator.permutation(2 * pairs).reshape(pairs, 2)
    targets = generator.integers(6, size=pairs) / 5 if scored else np.arange(pairs) % 2.0
    rows = generator.normal(size=(2 * pairs, 4))
    rows[members[:, 1]] = rows[members[:, 0]] + (1.5 - targets)[:, None] * rows[members[:, 1]]
    return rows.astype(np.float32), members, targets


def test_pairs_judged_by_a_score_are_measured_by_rank_correlation(tmp_path: Path) -> None:
    rows, members, targets = judged(scored=True)
    measured = measure_pairs(rows, members, targets, np.arange(80) // 2, Metric.EUCLIDEAN)
    distances = paired(rows[members[:, 0]], rows[members[:, 1]], Metric.EUCLIDEAN)
    assert measured.correlation is not None
    assert measured.correlation.spearman.value == spearman(-distances, targets) > 0.4
    assert (measured.verification, measured.judged_pairs, measured.items) == (None, 40, 80)
    assert [row.figure for row in pool([measured, measured])] == ["Spearman"]
    measured.save(tmp_path)
    assert HeldOut.load(tmp_path) == measured


def test_pairs_judged_the_same_or_not_are_measured_by_verification() -> None:
    rows, members, targets = judged(scored=False)
    components = np.zeros(80, np.int64)
    components[members] = np.arange(40)[:, None]
    measured = measure_pairs(rows, members, targets, components, Metric.EUCLIDEAN)
    distances = paired(rows[members[:, 0]], rows[members[:, 1]], Metric.EUCLIDEAN)
    eer = verified(measured).equal_error_rate
    assert eer.value == equal_error_rate(distances[targets == 1], distances[targets == 0])
    assert eer.low is not None
    assert eer.high is not None
    assert eer.low < eer.value < eer.high
    assert (verified(measured).genuine_pairs, measured.classes) == (20, 40)


def test_pairs_of_one_kind_are_measured_as_far_as_they_go() -> None:
    rows, members, _ = judged(scored=False)
    measured = measure_pairs(rows, members, np.ones(40), np.arange(80), Metric.COSINE)
    assert (measured.verification, measured.correlation) == (None, None)
    collapsed = np.ones((80, 2), np.float32)
    targets = np.linspace(0, 1, 40)
    measured = measure_pairs(collapsed, members, targets, np.arange(80), Metric.COSINE)
    assert measured.correlation is None
