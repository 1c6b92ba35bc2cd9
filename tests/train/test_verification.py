"""Error rates by hand, and intervals against a bootstrap that copies the drawn classes out."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from twinserve.calibration import PairDistances, pair_distances, true_accept_rate_at
from twinserve.distance import Metric
from twinserve.errors import DataError
from twinserve.train.intervals import class_draws
from twinserve.train.verification import Verification, deviate, verification


def pairs_of(genuine: list[float], impostor: list[float]) -> PairDistances:
    """Spread pairs over three classes."""
    own = np.arange(len(genuine)) % 3
    first = np.arange(len(impostor)) % 3
    return PairDistances(
        np.array(genuine), own, np.array(impostor), np.stack([first, (first + 1) % 3], axis=1)
    )


def of_classes(classes: int, items: int, seed: int = 0, noise: float = 0.5) -> PairDistances:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), items)
    centres = generator.normal(size=(classes, 4))
    rows = centres[labels] + noise * generator.normal(size=(len(labels), 4))
    return pair_distances(rows.astype(np.float32), labels, Metric.EUCLIDEAN)


def test_the_equal_error_rate_is_where_both_errors_meet() -> None:
    # At 3 one of four genuine pairs is missed, and one of four impostor pairs accepted.
    measured = verification(pairs_of([1, 2, 3, 10], [2.5, 4, 5, 6]), ())
    assert measured.equal_error_rate.value == pytest.approx(0.25)
    assert (measured.genuine_pairs, measured.impostor_pairs) == (4, 4)
    apart = verification(pairs_of([1, 2, 3], [4, 5, 6]), ())
    assert apart.equal_error_rate.value == 0.0
    inverted = verification(pairs_of([4, 5, 6], [1, 2, 3]), ())
    assert inverted.equal_error_rate.value == pytest.approx(1.0)


def test_rates_are_those_of_calibration_and_lie_on_the_curve() -> None:
    pairs = of_classes(12, 6)
    measured = verification(pairs, (0.1, 0.03, 0.001))
    # 2,376 impostor pairs carry 0.1 and 0.03, not 0.001.
    assert [rate.false_accept_rate for rate in measured.true_accept_rates] == [0.1, 0.03]
    for rate in measured.true_accept_rates:
        wanted = true_accept_rate_at(pairs.genuine, pairs.impostor, rate.false_accept_rate)
        assert rate.true_accept_rate.value == wanted
        assert np.mean(pairs.genuine <= rate.threshold) == wanted
        assert np.mean(pairs.impostor <= rate.threshold) <= rate.false_accept_rate
    curve = measured.curve
    assert curve.false_accept_rate[0] == pytest.approx(1 / len(pairs.impostor))
    assert curve.false_accept_rate[-1] == pytest.approx(1.0)
    assert np.all(np.diff(curve.true_accept_rate) >= 0)
    for far, tar in zip(curve.false_accept_rate, curve.true_accept_rate, strict=True):
        assert tar == true_accept_rate_at(pairs.genuine, pairs.impostor, far)


def test_a_rate_below_the_nearest_impostors_share_has_no_threshold_and_finds_none() -> None:
    # 400 impostor pairs at distance 0: any threshold accepts all of them.
    measured = verification(pairs_of([0.0] * 20, [0.0] * 400), (0.1,))
    (rate,) = measured.true_accept_rates
    assert (rate.true_accept_rate.value, rate.threshold) == (0.0, None)
    assert measured.equal_error_rate.value == pytest.approx(0.5)


def test_intervals_are_those_of_classes_copied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # A grid of all distances.
    monkeypatch.setattr("twinserve.train.verification._GRID", 2000)
    generator = np.random.default_rng(5)
    labels = np.repeat(np.arange(5), 3)
    rows = generator.normal(size=(5, 2))[labels] + 0.6 * generator.normal(size=(15, 2))
    pairs = pair_distances(rows.astype(np.float32), labels, Metric.EUCLIDEAN)
    measured = verification(pairs, (0.5,), resamples=40, seed=9)
    thresholds = np.unique(np.concatenate([pairs.genuine, pairs.impostor]))
    eers, tars = [], []
    for drawn in class_draws(5, 40, seed=9):
        genuine = np.repeat(pairs.genuine, drawn[pairs.genuine_class])
        times = drawn[pairs.impostor_classes[:, 0]] * drawn[pairs.impostor_classes[:, 1]]
        impostor = np.repeat(pairs.impostor, times)
        far = np.array([0.0, *(np.mean(impostor <= t) for t in thresholds)])
        frr = np.array([1.0, *(np.mean(genuine > t) for t in thresholds)])
        after = int(np.flatnonzero(far >= frr)[0])
        rise, fall = far[after] - far[after - 1], frr[after] - frr[after - 1]
        weight = (frr[after - 1] - far[after - 1]) / (rise - fall)
        eers.append(far[after - 1] + weight * rise)
        tars.append(np.interp(0.5, far, 1.0 - frr))
    eer, tar = measured.equal_error_rate, measured.true_accept_rates[0].true_accept_rate
    assert (eer.low, eer.high) == pytest.approx(tuple(np.quantile(eers, [0.025, 0.975])))
    assert (tar.low, tar.high) == pytest.approx(tuple(np.quantile(tars, [0.025, 0.975])))


def test_the_grid_of_thresholds_changes_intervals_by_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = of_classes(15, 8)
    coarse = verification(pairs, (0.1,))
    monkeypatch.setattr("twinserve.train.verification._GRID", 2000)
    fine = verification(pairs, (0.1,))
    for one, other in (
        (coarse.equal_error_rate, fine.equal_error_rate),
        (coarse.true_accept_rates[0].true_accept_rate, fine.true_accept_rates[0].true_accept_rate),
    ):
        assert one.value == other.value
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.004)


def test_more_classes_make_narrower_intervals() -> None:
    widths = []
    for classes in (6, 60):
        eer = verification(of_classes(classes, 4), ()).equal_error_rate
        assert eer.low is not None
        assert eer.high is not None
        assert eer.low <= eer.value <= eer.high
        widths.append(eer.high - eer.low)
    assert widths[1] < 0.6 * widths[0]


def test_many_classes_are_drawn_in_groups_with_alike_intervals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = of_classes(80, 4)
    single = verification(pairs, ()).equal_error_rate
    monkeypatch.setattr("twinserve.train.verification._MOST_DRAWN", 40)
    grouped = verification(pairs, ()).equal_error_rate
    assert grouped.value == single.value
    assert single.low is not None
    assert grouped.low == pytest.approx(single.low, abs=0.02)


def test_without_impostors_there_is_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="0 impostor pairs"):
        verification(pairs_of([1.0, 2.0], []), ())


def test_what_is_written_is_read_back() -> None:
    measured = verification(of_classes(8, 5), (0.1,))
    document = json.loads(json.dumps(dataclasses.asdict(measured), allow_nan=False))
    assert Verification.from_dict(document) == measured


def test_normal_deviates_are_those_of_the_tables() -> None:
    assert deviate(0.5) == 0.0
    assert deviate(0.025) == pytest.approx(-1.959964, abs=1e-6)
    assert deviate(0.975) == pytest.approx(1.959964, abs=1e-6)
    assert deviate(0.0) == deviate(1e-6)
