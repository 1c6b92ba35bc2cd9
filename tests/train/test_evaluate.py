"""Evaluation on embeddings whose outcome is known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.distance import Metric
from twinserve.errors import DataError
from twinserve.train.evaluate import (
    evaluate,
    one_shot_accuracy,
    one_shot_trials,
    pixel_vectors,
)

LABELS = np.repeat(np.arange(12), 5)
GROUPS = LABELS // 6


def test_trials_hold_one_support_of_the_class_and_another_item_as_probe() -> None:
    trials = one_shot_trials(LABELS, ways=6, trials=240, seed=3, groups=GROUPS)
    assert trials.support.shape == (240, 6)
    for support, probe, answer in zip(trials.support, trials.probe, trials.answer, strict=True):
        assert len(set(LABELS[support].tolist())) == 6
        assert LABELS[support[answer]] == LABELS[probe]
        assert probe not in support
        assert len(set(GROUPS[[*support, probe]].tolist())) == 1
    assert np.bincount(LABELS[trials.probe]).tolist() == [20] * 12
    assert set(trials.answer.tolist()) == set(range(6))


def test_trials_follow_the_seed() -> None:
    first, again, other = (one_shot_trials(LABELS, 5, 30, seed) for seed in (1, 1, 2))
    assert (first.support == again.support).all()
    assert (first.support != other.support).any()


def test_a_class_of_one_item_is_a_support_but_never_a_probe() -> None:
    trials = one_shot_trials(np.array([0, 1, 1, 2, 2]), ways=3, trials=40, seed=0)
    assert 0 not in trials.probe
    assert 0 in trials.support


def test_too_many_ways_are_refused_with_what_there_is() -> None:
    with pytest.raises(DataError, match=r"20-way.*has 6 classes"):
        one_shot_trials(LABELS, ways=20, groups=GROUPS)


@pytest.mark.parametrize("metric", list(Metric))
def test_perfect_random_and_collapsed_embeddings_score_as_they_must(metric: Metric) -> None:
    trials = one_shot_trials(LABELS, ways=10, trials=2000, seed=0)
    perfect = np.eye(12, dtype=np.float32)[LABELS]
    assert one_shot_accuracy(perfect, trials, metric) == 1.0
    noise = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
    assert 0.05 < one_shot_accuracy(noise, trials, metric) < 0.2
    collapsed = np.ones((60, 4), dtype=np.float32)
    assert 0.05 < one_shot_accuracy(collapsed, trials, metric) < 0.15


def test_the_report_counts_pairs_and_leaves_out_rates_without_evidence() -> None:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(12, 8))
    embeddings = (centres[LABELS] + 0.3 * generator.normal(size=(60, 8))).astype(np.float32)
    report = evaluate(embeddings, LABELS, GROUPS, Metric.EUCLIDEAN, ways=20, trials=100)
    assert (report.classes, report.items) == (12, 60)
    assert (report.genuine_pairs, report.impostor_pairs) == (12 * 10, 60 * 59 // 2 - 120)
    assert report.one_shot.ways == 6  # a group has no more
    # 1,650 impostor pairs carry 0.1 with 165 false accepts, but not 0.01 with 16.
    assert [rate.false_accept_rate for rate in report.true_accept_rates] == [0.1]
    assert report.equal_error_rate < 0.1
    assert report.one_shot.low < report.one_shot.accuracy <= report.one_shot.high


def test_groups_of_one_class_each_are_no_groups() -> None:
    embeddings = np.eye(12, dtype=np.float32)[LABELS]
    report = evaluate(embeddings, LABELS, LABELS, Metric.EUCLIDEAN, ways=5, trials=50)
    assert report.one_shot.ways == 5


def test_pixels_become_vectors_between_zero_and_one() -> None:
    vectors = pixel_vectors(np.full((2, 3, 3, 1), 51, dtype=np.uint8))
    assert vectors.shape == (2, 9)
    assert vectors.dtype == np.float32
    assert vectors[0, 0] == pytest.approx(0.2)
