"""Calibration: rates counted by hand, bounds that hold, and silence where evidence is missing."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.calibration import (
    MIN_FALSE_ACCEPTS,
    PairDistances,
    calibrate,
    equal_error_rate,
    fit_logistic,
    pair_distances,
    required,
    roc,
    threshold_at,
    true_accept_rate_at,
)
from twinserve.distance import Metric, paired
from twinserve.errors import DataError, NotFinite, ZeroVector
from twinserve.manifest import Calibration, OperatingPoint


def labelled(
    classes: int = 12, each: int = 10, dimension: int = 8, spread: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clusters: float32 [classes * each, dimension] and their labels."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dimension))
    labels = np.repeat(np.arange(classes), each)
    rows = centres[labels] + spread * generator.normal(size=(len(labels), dimension))
    return rows.astype(np.float32), labels


def calibrated(pairs: PairDistances, **changes: object) -> Calibration:
    settings: dict[str, object] = {
        "precision": "fp32",
        "dimension": 8,
        "metric": Metric.EUCLIDEAN,
    }
    return calibrate(pairs, **{**settings, **changes})  # type: ignore[arg-type]


def joined(
    genuine: np.ndarray, impostor: np.ndarray, classes: int = 20, seed: int = 0
) -> PairDistances:
    """Distances dealt to random classes."""
    generator = np.random.default_rng(seed)
    first = generator.integers(classes, size=len(impostor))
    second = (first + generator.integers(1, classes, size=len(impostor))) % classes
    return PairDistances(
        genuine=genuine,
        genuine_class=generator.integers(classes, size=len(genuine)),
        impostor=impostor,
        impostor_classes=np.stack([first, second], axis=1),
    )


def test_every_unordered_pair_is_measured_once() -> None:
    rows = np.array([[0, 0], [3, 4], [0, 1], [6, 8]], dtype=np.float32)
    pairs = pair_distances(rows, np.array([7, 7, 9, 9]), Metric.EUCLIDEAN)
    np.testing.assert_allclose(np.sort(pairs.genuine), [5.0, np.hypot(6, 7)])
    np.testing.assert_allclose(
        np.sort(pairs.impostor), np.sort([1.0, 10.0, np.hypot(3, 3), np.hypot(3, 4)])
    )
    assert sorted(pairs.genuine_class) == [7, 9]
    assert {tuple(sorted(pair)) for pair in pairs.impostor_classes.tolist()} == {(7, 9)}


@pytest.mark.parametrize("metric", Metric)
def test_pair_distances_are_those_that_serving_computes(metric: Metric) -> None:
    rows, labels = labelled(classes=5, each=4)
    pairs = pair_distances(rows, labels, metric)
    expected = [
        paired(rows[i], rows[j], metric)
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if labels[i] != labels[j]
    ]
    np.testing.assert_allclose(pairs.impostor, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "missing"), [([0, 0, 0], "no impostor pair"), ([0, 1, 2], "no genuine pair")]
)
def test_labels_that_give_one_kind_of_pair_are_refused(labels: list[int], missing: str) -> None:
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(DataError, match=missing):
        pair_distances(rows, np.array(labels), Metric.EUCLIDEAN)


def test_embeddings_that_cannot_be_compared_are_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    rows[2, 0] = np.nan
    with pytest.raises(NotFinite, match="embedding 2"):
        pair_distances(rows, np.array([0, 0, 1, 1]), Metric.EUCLIDEAN)
    rows[2] = 0.0
    with pytest.raises(ZeroVector, match="embedding 2"):
        pair_distances(rows, np.array([0, 0, 1, 1]), Metric.COSINE)


def test_the_roc_counts_a_pair_at_the_threshold_as_a_match() -> None:
    curve = roc(np.array([0.1, 0.2, 0.2, 0.5]), np.array([0.2, 0.6]))
    np.testing.assert_array_equal(curve.threshold, [0.1, 0.2, 0.5, 0.6])
    np.testing.assert_array_equal(curve.true_accept_rate, [0.25, 0.75, 1.0, 1.0])
    np.testing.assert_array_equal(curve.false_accept_rate, [0.0, 0.5, 0.5, 1.0])


@pytest.mark.parametrize(
    ("genuine", "impostor", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], 0.0),
        ([4, 5, 6], [1, 2, 3], 1.0),
        ([1, 2, 3, 6], [4, 5, 7, 8], 0.25),
        # FAR is 1/2 from 2 to 5, and FRR falls from 2/3 to 1/3 at 3.
        ([1, 3, 4], [2, 5], 0.5),
        ([5, 5], [5, 5], 0.5),
    ],
)
def test_the_equal_error_rate_of_points_counted_by_hand(
    genuine: list[int], impostor: list[int], expected: float
) -> None:
    rate = equal_error_rate(np.array(genuine, float), np.array(impostor, float))
    assert rate == pytest.approx(expected)


def test_the_equal_error_rate_of_two_normals_is_the_textbook_one() -> None:
    generator = np.random.default_rng(1)
    genuine = generator.normal(0.0, 1.0, 200_000)
    impostor = generator.normal(2.0, 1.0, 200_000)
    # They cross in the middle, one standard deviation from either: 1 - Phi(1) = 0.1587.
    assert equal_error_rate(genuine, impostor) == pytest.approx(0.1587, abs=0.002)


def test_a_rate_without_pairs_is_refused() -> None:
    some, none = np.array([1.0]), np.array([])
    for genuine, impostor in ((some, none), (none, some)):
        with pytest.raises(DataError, match="at least one of each"):
            equal_error_rate(genuine, impostor)
    with pytest.raises(DataError, match="there are none"):
        threshold_at(none, 0.1)


def test_the_threshold_of_a_rate_accepts_that_share_and_lies_between_two_distances() -> None:
    impostor = np.arange(1.0, 101.0)
    threshold = threshold_at(impostor, 0.05)
    assert threshold == 5.5
    assert np.mean(impostor <= threshold) == 0.05


def test_the_threshold_refuses_ties_rather_than_exceed_the_rate() -> None:
    impostor = np.array([1.0, 2.0, 2.0, 2.0, 3.0])
    for rate in (0.2, 0.4, 0.6, 0.79):
        threshold = threshold_at(impostor, rate)
        assert threshold is not None
        assert np.mean(impostor <= threshold) == 0.2
    assert threshold_at(impostor, 0.8) == 2.5
    assert threshold_at(impostor, 0.19) is None
    assert threshold_at(np.full(10, 4.0), 0.9) is None
    assert threshold_at(impostor, 1.0) == 3.0


def test_the_threshold_between_neighbouring_floats_stays_below_the_refused_one() -> None:
    low = 1.0
    for _ in range(4):
        high = np.nextafter(low, 2.0)
        threshold = threshold_at(np.array([low, high]), 0.5)
        assert threshold is not None
        assert low <= threshold < high
        low = float(high)


def test_the_threshold_never_exceeds_its_rate_on_random_tied_distances() -> None:
    generator = np.random.default_rng(4)
    for _ in range(300):
        impostor = generator.integers(0, 12, size=int(generator.integers(1, 60))) / 7
        rate = float(generator.uniform(0, 1))
        threshold = threshold_at(impostor, rate)
        if threshold is not None:
            assert np.mean(impostor <= threshold) <= rate + 1e-9
            larger = impostor[impostor > threshold]
            # One distance more would be one too many.
            assert len(larger) == 0 or np.mean(impostor <= larger.min()) > rate
        else:
            assert np.mean(impostor <= impostor.min()) > rate


def test_the_true_accept_rate_is_read_at_the_threshold_of_the_rate() -> None:
    impostor = np.arange(1.0, 101.0)
    genuine = np.array([0.5, 5.4, 5.6, 200.0])
    assert true_accept_rate_at(genuine, impostor, 0.05) == 0.5
    assert true_accept_rate_at(genuine, np.full(9, 1.0), 0.05) == 0.0


def test_the_logistic_recovers_the_known_likelihood_ratio_of_two_normals() -> None:
    generator = np.random.default_rng(2)
    # Equal variances s^2: llr(d) = (m1^2 - m0^2) / 2s^2 - (m1 - m0) / s^2 * d, whatever the counts.
    genuine = generator.normal(0.3, 0.1, 60_000)
    impostor = generator.normal(0.6, 0.1, 200_000)
    slope, intercept = fit_logistic(genuine, impostor)
    assert slope == pytest.approx(30.0, rel=0.03)
    assert intercept == pytest.approx(13.5, rel=0.03)


def test_the_logistic_is_stationary_over_every_pair_though_it_was_fitted_in_groups() -> None:
    generator = np.random.default_rng(6)
    genuine, impostor = generator.gamma(4.0, 0.1, 30_000), generator.gamma(9.0, 0.1, 60_000)
    slope, intercept = fit_logistic(genuine, impostor)
    missed, mistaken = (
        1 / (1 + np.exp(sign * (intercept - slope * distances)))
        for sign, distances in ((1, genuine), (-1, impostor))
    )
    assert np.mean(missed) == pytest.approx(np.mean(mistaken), abs=1e-4)
    assert np.mean(missed * genuine) == pytest.approx(np.mean(mistaken * impostor), abs=1e-3)


def test_the_logistic_is_finite_when_the_two_are_separable() -> None:
    slope, intercept = fit_logistic(np.linspace(0, 0.2, 50), np.linspace(0.8, 1.0, 500))
    assert np.isfinite([slope, intercept]).all()
    assert intercept - slope * 0.2 > 2.0
    assert intercept - slope * 0.8 < -2.0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_logistic_does_not_depend_on_the_unit_of_distance(scale: float) -> None:
    generator = np.random.default_rng(6)
    genuine, impostor = generator.normal(0.3, 0.1, 2000), generator.normal(0.6, 0.1, 2000)
    slope, intercept = fit_logistic(genuine, impostor)
    scaled_slope, scaled_intercept = fit_logistic(genuine * scale, impostor * scale)
    assert scaled_slope * scale == pytest.approx(slope, rel=1e-6)
    assert scaled_intercept == pytest.approx(intercept, rel=1e-6)


def test_distances_that_tell_nothing_give_a_ratio_of_zero() -> None:
    same = np.full(100, 0.4)
    assert fit_logistic(same, same) == (0.0, 0.0)
    backwards = fit_logistic(np.linspace(0.5, 1.0, 100), np.linspace(0.0, 0.5, 100))
    assert backwards == (0.0, 0.0)


def test_operating_points_repeat_on_the_pairs_they_were_measured_on() -> None:
    rows, labels = labelled(classes=20, each=20)
    pairs = pair_distances(rows, labels, Metric.EUCLIDEAN)
    found = calibrated(pairs)
    assert len(found.points) > 10
    for point in found.points:
        assert np.mean(pairs.impostor <= point.threshold) == point.false_accept_rate
        assert np.mean(pairs.genuine <= point.threshold) == point.true_accept_rate
        assert point.false_accept_rate <= point.false_accept_rate_upper <= 1.0
    rates = [point.false_accept_rate for point in found.points]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.001
    assert (found.classes, found.genuine_pairs) == (20, 20 * 190)
    assert found.impostor_pairs == len(pairs.impostor)
    assert found.equal_error_rate == equal_error_rate(pairs.genuine, pairs.impostor)


def test_no_point_stands_on_fewer_than_thirty_false_accepts() -> None:
    generator = np.random.default_rng(9)
    pairs = joined(generator.uniform(0, 0.2, 500), generator.uniform(0.1, 1.0, 3000))
    rates = [point.false_accept_rate for point in calibrated(pairs).points]
    assert min(rates) * 3000 >= MIN_FALSE_ACCEPTS
    assert min(rates) <= 0.0126  # the grid's next rate above 30 / 3000


def test_ties_do_not_smuggle_in_a_point_without_evidence() -> None:
    # Three near impostors, then one distance shared by all: every rate from 0.003 to 1 would be
    # answered by a threshold that three pairs stand behind.
    impostor = np.concatenate([[0.1, 0.2, 0.3], np.full(997, 0.5)])
    with pytest.raises(DataError, match="no operating point"):
        calibrated(joined(np.linspace(0, 0.4, 100), impostor))


def test_too_few_pairs_are_refused_with_the_count() -> None:
    pairs = joined(np.linspace(0, 0.4, 20), np.linspace(0.2, 1.0, 59))
    with pytest.raises(DataError, match="59 impostor pairs carry no operating point"):
        calibrated(pairs)


def test_the_default_rate_falls_back_to_the_smallest_with_evidence() -> None:
    generator = np.random.default_rng(3)
    genuine = generator.uniform(0, 0.3, 200)
    plenty = calibrated(joined(genuine, generator.uniform(0, 1, 20_000)), default_far=0.01)
    assert plenty.default_far == 0.01
    scarce = calibrated(joined(genuine, generator.uniform(0, 1, 300)), default_far=0.01)
    assert scarce.default_far == scarce.points[-1].false_accept_rate >= 0.1


def lumps(pairs_of_classes: int) -> PairDistances:
    """20 classes, 190 pairs of them with 100 item pairs each; 1 % of all pairs are near, and those
    come from so many pairs of classes.
    """
    first, second = np.triu_indices(20, k=1)
    order = np.random.default_rng(1).permutation(190)
    classes = np.repeat(np.stack([first, second], axis=1)[order], 100, axis=0)
    far = np.random.default_rng(0).uniform(0.5, 1, (190, 100))
    far[:pairs_of_classes, : 190 // pairs_of_classes] = 0.1
    return PairDistances(np.linspace(0, 0.4, 400), np.arange(400) % 20, far.ravel(), classes)


def at_one_percent(found: Calibration) -> OperatingPoint:
    return min(found.points, key=lambda point: abs(point.false_accept_rate - 0.01))


def test_the_bound_is_the_wider_the_fewer_pairs_of_classes_make_the_errors() -> None:
    bounds = []
    for pairs_of_classes in (190, 38, 10):
        point = at_one_percent(calibrated(lumps(pairs_of_classes)))
        assert point.false_accept_rate == pytest.approx(0.01)
        bounds.append(point.false_accept_rate_upper / point.false_accept_rate)
    assert 1.0 <= bounds[0] < 1.2 < bounds[1] < bounds[2]
    assert bounds[2] > 2.5


def test_a_rate_whose_errors_come_from_two_pairs_of_classes_is_absent() -> None:
    found = calibrated(lumps(2))
    assert min(point.false_accept_rate for point in found.points) > 0.011


def test_the_bound_matches_a_plain_bootstrap_of_classes() -> None:
    rows, labels = labelled(classes=8, each=6, seed=3)
    pairs = pair_distances(rows, labels, Metric.EUCLIDEAN)
    found = calibrated(pairs, resamples=300, seed=5)
    generator = np.random.default_rng(5)
    rates: list[list[float]] = []
    for _ in range(300):
        drawn = np.bincount(generator.integers(0, 8, size=8), minlength=8)
        distances: list[float] = []
        for distance, (a, b) in zip(pairs.impostor, pairs.impostor_classes, strict=True):
            distances += [float(distance)] * int(drawn[a] * drawn[b])
        rates.append([float(np.mean(np.array(distances) <= p.threshold)) for p in found.points])
    assert len(found.points) >= 5
    smallest_so_far = 1.0
    for column, point in enumerate(found.points):
        measured = point.false_accept_rate
        ratios = [
            max(old[column], 0.02 * measured) / max(new[column], 0.02 * measured)
            for old in rates[:150]
            for new in rates[150:]
        ]
        bound = measured * max(float(np.exp(np.quantile(np.log(ratios), 0.95))), 1.0)
        smallest_so_far = max(min(smallest_so_far, bound), measured)
        assert point.false_accept_rate_upper == pytest.approx(smallest_so_far, rel=1e-9)


def test_new_classes_stay_under_the_stated_bound() -> None:
    """The promise itself: in 40 draws of 20 classes, and of 20 others to measure on."""
    kept = cells = 0
    for seed in range(40):
        rows, labels = labelled(classes=40, each=6, dimension=6, spread=0.6, seed=seed)
        known, fresh = labels < 20, labels >= 20
        found = calibrated(pair_distances(rows[known], labels[known], Metric.EUCLIDEAN))
        unseen = pair_distances(rows[fresh], labels[fresh], Metric.EUCLIDEAN)
        for point in found.points[::4]:
            cells += 1
            kept += np.mean(unseen.impostor <= point.threshold) <= point.false_accept_rate_upper
    assert cells > 100
    assert kept / cells >= 0.9


def test_pairs_inside_one_cluster_are_drawn_as_one() -> None:
    """Pairs without classes: each cluster stands for one, and carries its pairs along once."""
    generator = np.random.default_rng(2)
    clusters = np.repeat(np.arange(60), 10)
    impostor = generator.uniform(0.2, 1.0, 600)
    genuine = generator.uniform(0.0, 0.5, 600)
    pairs = PairDistances(genuine, clusters, impostor, np.stack([clusters, clusters], axis=1))
    point = min(calibrated(pairs).points, key=lambda p: abs(p.false_accept_rate - 0.1))
    # 60 independent observations a cell: two draws of a share of 0.1 over 600 pairs.
    spread = point.false_accept_rate_upper / point.false_accept_rate
    assert 1.15 < spread < 1.6


def test_two_classes_carry_no_rate_at_all() -> None:
    rows, labels = labelled(classes=2, each=20, spread=2.0)
    with pytest.raises(DataError, match="5 pairs of classes at least; give more classes"):
        calibrated(pair_distances(rows, labels, Metric.EUCLIDEAN))


def test_what_a_smaller_rate_would_take_is_said_in_classes_and_pairs() -> None:
    rows, labels = labelled(classes=30, each=8)
    found = calibrated(pair_distances(rows, labels, Metric.EUCLIDEAN))
    smallest = found.points[-1].false_accept_rate
    assert required(found, smallest) is None
    assert required(found, 0.3) is None
    needed = required(found, smallest / 100)
    assert needed is not None
    assert needed.classes == 300
    assert needed.impostor_pairs >= 100 * found.impostor_pairs
    assert needed.impostor_pairs >= MIN_FALSE_ACCEPTS / (smallest / 100)


def test_so_many_more_classes_do_carry_the_smaller_rate() -> None:
    rows, labels = labelled(classes=20, each=6, spread=0.8)
    few = calibrated(pair_distances(rows, labels, Metric.EUCLIDEAN))
    wanted = few.points[-1].false_accept_rate / 8
    needed = required(few, wanted)
    assert needed is not None
    rows, labels = labelled(classes=needed.classes * 3 // 2, each=6, spread=0.8)
    many = calibrated(pair_distances(rows, labels, Metric.EUCLIDEAN))
    assert required(many, wanted) is None


def test_calibration_is_the_same_every_time() -> None:
    rows, labels = labelled()
    pairs = pair_distances(rows, labels, Metric.COSINE)
    assert calibrated(pairs) == calibrated(pairs)
