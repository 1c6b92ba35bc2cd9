"""N-way k-shot trials: how they are drawn, and who is right, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.distance import Metric, paired
from twinserve.errors import DataError
from twinserve.train.evaluate import one_shot_trials
from twinserve.train.few_shot import Questions, Rule, answers, distinct, few_shot, few_shot_trials
from twinserve.train.intervals import share

LABELS = np.repeat(np.arange(12), 7)
GROUPS = LABELS // 6


def noisy(noise: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(12, 6))[LABELS] + noise * generator.normal(size=(84, 6))
    return rows.astype(np.float32)


def test_trials_hold_k_items_of_each_class_of_one_group_and_never_the_probe() -> None:
    asked = few_shot_trials(LABELS, ways=5, shots=3, trials=240, seed=4, groups=GROUPS)
    assert asked.support.shape == (240, 5, 3)
    for support, probe, answer in zip(asked.support, asked.probe, asked.answer, strict=True):
        of_way = LABELS[support]
        assert (of_way == of_way[:, :1]).all()
        assert len(set(of_way[:, 0].tolist())) == 5
        assert len(set(support.ravel().tolist())) == 15
        assert probe not in support
        assert of_way[answer, 0] == LABELS[probe]
        assert set(GROUPS[support].ravel().tolist()) == {GROUPS[probe]}
    assert np.bincount(LABELS[asked.probe]).tolist() == [20] * 12
    assert set(asked.answer.tolist()) == set(range(5))


def test_trials_follow_the_seed() -> None:
    first, again, other = (few_shot_trials(LABELS, 4, 2, 30, seed) for seed in (1, 1, 2))
    assert (first.support == again.support).all()
    assert (first.support != other.support).any()


def test_one_shot_asks_the_trials_of_evaluation() -> None:
    asked = few_shot_trials(LABELS, ways=6, shots=1, trials=50, seed=3, groups=GROUPS)
    known = one_shot_trials(LABELS, ways=6, trials=50, seed=3, groups=GROUPS)
    assert (asked.support[:, :, 0] == known.support).all()
    assert (asked.probe == known.probe).all()


def test_a_class_of_k_items_is_a_support_and_never_the_answer() -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    asked = few_shot_trials(labels, ways=3, shots=2, trials=60)
    assert 0 not in labels[asked.probe]
    assert 0 in labels[asked.support]


def test_too_many_shots_are_refused_with_what_it_takes() -> None:
    with pytest.raises(DataError, match=r"3-way 7-shot.*8 items of one"):
        few_shot_trials(LABELS, ways=3, shots=7, trials=10)


def test_distinct_numbers_are_distinct_and_each_choice_is_as_likely() -> None:
    drawn = distinct(np.random.default_rng(0), np.full(24_000, 4), 3)
    ordered, count = np.unique(drawn, axis=0, return_counts=True)
    assert len(ordered) == 24  # 4 * 3 * 2
    assert all(len(set(row)) == 3 for row in ordered.tolist())
    assert count.min() > 850  # of 1,000 each, within five standard deviations
    assert count.max() < 1150


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("rule", list(Rule))
def test_answers_agree_with_plain_loops(metric: Metric, rule: Rule) -> None:
    rows = noisy(1.0)
    asked = few_shot_trials(LABELS, ways=4, shots=3, trials=60, seed=1)
    wanted = []
    for support, probe, answer in zip(asked.support, asked.probe, asked.answer, strict=True):
        distances = []
        for items in support:
            known = rows[items].astype(np.float64)
            if rule is Rule.MEAN:
                if metric is Metric.COSINE:
                    known = known / np.linalg.norm(known, axis=1, keepdims=True)
                known = known.mean(axis=0, keepdims=True)
            distances.append(min(float(paired(one, rows[probe], metric)) for one in known))
        wanted.append(int(np.argmin(distances)) == answer)
    found = answers(rows, asked, metric, rule)
    assert found.tolist() == wanted
    assert 0 < sum(wanted) < 60


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = few_shot_trials(LABELS, ways=4, shots=3, trials=60)
    whole = answers(noisy(1.0), asked, Metric.COSINE, Rule.MEAN)
    monkeypatch.setattr("twinserve.train.few_shot._BLOCK", 500)
    assert (answers(noisy(1.0), asked, Metric.COSINE, Rule.MEAN) == whole).all()


def test_a_mean_and_a_nearest_item_may_disagree() -> None:
    # Of one class two items lie on both sides of the probe, far off; of the other one is nearer.
    rows = np.array([[-3], [3], [2], [9], [0]], np.float32)
    asked = Questions(np.array([[[0, 1], [2, 3]]]), np.array([4]), np.array([0]))
    assert answers(rows, asked, Metric.EUCLIDEAN, Rule.MEAN).tolist() == [True]
    assert answers(rows, asked, Metric.EUCLIDEAN, Rule.ITEM).tolist() == [False]


def test_results_hold_both_rules_and_wilsons_interval_over_all_seeds() -> None:
    found = few_shot(noisy(0.6), LABELS, GROUPS, Metric.COSINE, ways=20, trials=50, seeds=(0, 1))
    assert [(one.ways, one.shots, one.rule) for one in found] == [
        (6, 1, "nearest item"),
        (6, 5, "nearest class mean"),
        (6, 5, "nearest item"),
    ]
    for one in found:
        assert one.trials == 100
        right = round(sum(one.by_seed) * 50)
        assert one.accuracy == share(right, 100)
    assert found[1].accuracy.value >= found[0].accuracy.value


def test_perfect_embeddings_are_always_right() -> None:
    perfect = np.eye(12, dtype=np.float32)[LABELS]
    found = few_shot(perfect, LABELS, None, Metric.COSINE, trials=40, seeds=(0,))
    assert [one.accuracy.value for one in found] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("labels", [np.zeros(9, np.int64), np.arange(9)])
def test_what_cannot_be_asked_is_left_out(labels: np.ndarray) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    assert few_shot(rows, labels, None, Metric.COSINE, trials=5) == ()
