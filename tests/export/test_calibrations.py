"""Calibrations of every dimension and aggregation: measured by hand, honest on unseen classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from tests.test_calibration import labelled
from twinserve.calibration import calibrate, pair_distances
from twinserve.decision import Rule, limit
from twinserve.distance import Metric, pairwise, unit
from twinserve.errors import DataError, ZeroVector
from twinserve.export.calibrations import (
    MIN_SUBJECTS,
    JudgedPairs,
    calibrations_for,
    calibrations_of_pairs,
    drawn_items,
    nearest_of,
)

Draw = Callable[..., tuple[np.ndarray, np.ndarray]]
clusters: Draw = partial(labelled, classes=20, each=12, dimension=8)
calibrated = partial(
    calibrations_for, metric=Metric.COSINE, dimension=8, precision="fp32", data_digest="d"
)


def test_every_dimension_and_aggregation_has_its_calibration() -> None:
    rows, labels = clusters()
    found = calibrated(rows, labels, truncations=(2, 4), evidence="labels", default_far=0.02)
    sizes = ["item", "nearest_of_2", "nearest_of_3", "nearest_of_5", "nearest_of_10"]
    assert [(entry.dimension, entry.aggregation) for entry in found] == [
        (dimension, size) for dimension in (8, 4, 2) for size in sizes
    ]
    assert {entry.evidence for entry in found} == {"labels"}
    assert {entry.default_far for entry in found} == {0.02}
    assert {(entry.precision, entry.metric, entry.data_digest) for entry in found} == {
        ("fp32", Metric.COSINE, "d")
    }


def test_the_full_dimension_is_calibrated_as_it_is() -> None:
    rows, labels = clusters()
    pairs = pair_distances(rows, labels, Metric.EUCLIDEAN)
    expected = calibrate(pairs, precision="fp32", dimension=8, metric=Metric.EUCLIDEAN)
    found = calibrations_for(rows, labels, metric=Metric.EUCLIDEAN, dimension=8, precision="fp32")
    assert found[0] == expected


def test_a_truncation_is_cut_and_brought_to_unit_length_as_serving_does() -> None:
    rows, labels = clusters()
    cut = unit(rows[:, :3].astype(np.float64)).astype(np.float32)
    expected = calibrations_for(cut, labels, metric=Metric.EUCLIDEAN, dimension=3, precision="fp32")
    found = calibrations_for(
        rows, labels, metric=Metric.EUCLIDEAN, dimension=8, truncations=(3,), precision="fp32"
    )
    assert found[len(found) // 2 :] == expected


def test_sizes_without_enough_items_or_classes_are_left_out() -> None:
    rows, labels = clusters(each=5)
    sizes = [entry.aggregation for entry in calibrated(rows, labels)]
    assert sizes == ["item", "nearest_of_2", "nearest_of_3"]
    few = clusters(classes=MIN_SUBJECTS - 1, each=12)
    assert [entry.aggregation for entry in calibrated(*few)] == ["item"]


def test_calibrations_are_the_same_every_time() -> None:
    rows, labels = clusters()
    assert calibrated(rows, labels) == calibrated(rows, labels)


def test_labels_and_embeddings_that_cannot_be_used_are_refused() -> None:
    rows, labels = clusters()
    with pytest.raises(DataError, match="no genuine pair"):
        calibrated(rows, np.arange(len(rows)))
    with pytest.raises(DataError, match="no impostor pair"):
        calibrated(rows, np.zeros(len(rows), dtype=np.int64))
    rows[3, :2] = 0.0
    with pytest.raises(ZeroVector, match="embedding 3"):
        calibrated(rows, labels, truncations=(2,))


def test_the_nearest_of_a_subject_is_the_smallest_distance_to_its_items() -> None:
    rows, labels = clusters(classes=12, each=7)
    distances = pairwise(rows, rows, Metric.EUCLIDEAN)
    found = nearest_of(distances, labels, 3)
    assert found is not None
    # 84 items probe the two subjects of every other class; 7 items meet 6 others as two subjects.
    assert len(found.impostor) == 84 * 11 * 2
    assert len(found.genuine) == 84 * 2
    counts = np.zeros((12, 12), dtype=int)
    np.add.at(counts, tuple(found.impostor_classes.T), 1)
    assert (counts == 14 * (1 - np.eye(12, dtype=int))).all()
    np.testing.assert_array_equal(np.bincount(found.genuine_class), np.full(12, 14))
    for distance, (probe, subject) in zip(found.impostor, found.impostor_classes, strict=True):
        block = distances[np.ix_(labels == probe, labels == subject)]
        # The nearest of three has four items of the class beyond it at most.
        assert any(distance in np.sort(row)[:5] for row in block)


def test_a_genuine_probe_is_never_compared_with_itself() -> None:
    rows, labels = clusters(classes=12, each=4)
    distances = pairwise(rows, rows, Metric.EUCLIDEAN)
    np.fill_diagonal(distances, -1.0)
    found = nearest_of(distances, labels, 3)
    assert found is not None
    assert found.genuine.min() >= 0.0
    # With three others there is one subject, so each distance is the nearest other's.
    np.fill_diagonal(distances, np.inf)
    nearest = [distances[item, labels == labels[item]].min() for item in range(len(rows))]
    np.testing.assert_allclose(np.sort(found.genuine), np.sort(nearest))


def test_every_subject_is_of_one_class_and_shares_no_item_with_another() -> None:
    labels = np.repeat(np.arange(MIN_SUBJECTS), 6)
    # The distance to an item is its number: the nearest names it, and a shared one shows twice.
    distances = np.tile(np.arange(len(labels), dtype=np.float64), (len(labels), 1))
    found = nearest_of(distances, labels, 2)
    assert found is not None
    for subject in range(MIN_SUBJECTS):
        met = found.impostor[found.impostor_classes[:, 1] == subject]
        nearest, counts = np.unique(met, return_counts=True)
        assert len(nearest) == 3
        assert (nearest // 6 == subject).all()
        assert (counts == len(labels) - 6).all()


def test_a_subjects_own_calibration_is_honest_and_finds_more_than_the_correction() -> None:
    rate, sizes = 0.01, (3, 10)
    realised: dict[int, list[float]] = {size: [] for size in sizes}
    gain: dict[int, list[float]] = {size: [] for size in sizes}
    for seed in range(3):
        rows, labels = clusters(classes=80, each=11, spread=0.6, seed=seed)
        setting, probing = labels < 40, labels >= 40
        made = {entry.aggregation: entry for entry in calibrated(rows[setting], labels[setting])}
        distances = pairwise(rows[probing], rows[probing], Metric.COSINE)
        for size in sizes:
            fresh = nearest_of(distances, labels[probing], size, seed=9)
            own = limit(Rule(rate), made[f"nearest_of_{size}"])
            other = limit(Rule(rate), made["item"], compared=size)
            assert fresh is not None
            assert own.threshold is not None
            assert other.threshold is not None
            assert own.false_accept_rate_upper is not None
            realised[size].append(float(np.mean(fresh.impostor <= own.threshold)))
            assert realised[size][-1] <= own.false_accept_rate_upper
            found, corrected = (
                np.mean(fresh.genuine <= t) for t in (own.threshold, other.threshold)
            )
            gain[size].append(float(found - corrected))
    for size in sizes:
        assert np.mean(realised[size]) == pytest.approx(rate, rel=0.4)
        assert np.mean(gain[size]) > 0.01


def test_items_are_drawn_so_that_small_classes_stay_whole(rng: np.random.Generator) -> None:
    labels = rng.permutation(np.repeat([3, 5, 8], [2, 60, 40]))
    drawn = drawn_items(labels, 22)
    assert (np.diff(drawn) > 0).all()
    kept, counts = np.unique(labels[drawn], return_counts=True)
    assert kept.tolist() == [3, 5, 8]
    assert counts.tolist() == [2, 10, 10]
    np.testing.assert_array_equal(drawn_items(labels, 22), drawn)
    np.testing.assert_array_equal(drawn_items(labels, 500), np.arange(len(labels)))


def judged(seed: int = 0) -> JudgedPairs:
    generator = np.random.default_rng(seed)
    rows, labels = clusters(seed=seed)
    first, second = generator.integers(0, len(rows), size=(2, 3000))
    first = np.concatenate([first, np.arange(0, len(rows), 2)])
    second = np.concatenate([second, np.arange(1, len(rows), 2)])
    keep = first != second
    first, second = first[keep], second[keep]
    return JudgedPairs(
        first=rows[first],
        second=rows[second],
        same=labels[first] == labels[second],
        vertices=np.stack([labels[first], labels[second]], axis=1),
    )


def test_pairs_are_calibrated_in_every_dimension_for_single_items_alone() -> None:
    pairs = judged()
    found = calibrations_of_pairs(
        pairs, metric=Metric.EUCLIDEAN, dimension=8, truncations=(4,), precision="int8"
    )
    assert [(entry.dimension, entry.aggregation) for entry in found] == [(8, "item"), (4, "item")]
    for entry in found:
        assert entry.evidence == "pairs"
        assert entry.genuine_pairs == int(pairs.same.sum())
        assert entry.impostor_pairs == int((~pairs.same).sum())
        assert entry.classes == 20
    distances = np.linalg.norm(pairs.first.astype(float) - pairs.second, axis=1)
    for point in found[0].points:
        assert np.mean(distances[~pairs.same] <= point.threshold) == point.false_accept_rate


@pytest.mark.parametrize(("kind", "missing"), [(True, "impostor"), (False, "genuine")])
def test_pairs_of_one_kind_are_refused(kind: bool, missing: str) -> None:
    pairs = judged()
    one_kind = dataclasses.replace(pairs, same=np.full(len(pairs.same), kind))
    with pytest.raises(DataError, match=f"no {missing} pair"):
        calibrations_of_pairs(one_kind, metric=Metric.COSINE, dimension=8, precision="fp32")
