"""Ranking quality: the paper's own examples, and a brute force in plain Python."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from twinserve.distance import Embeddings, Metric
from twinserve.errors import NotFinite
from twinserve.train.retrieval import Retrieval, neighbours, ranking_scores, retrieval


@pytest.mark.parametrize(
    ("right", "r_precision", "map_at_r"),
    [
        ("1000000000", 0.1, 0.1),
        ("1000000001", 0.2, 0.12),
        ("1100000000", 0.2, 0.2),
        ("1111111111", 1.0, 1.0),
    ],
)
def test_scores_are_those_of_the_paper(right: str, r_precision: float, map_at_r: float) -> None:
    # Musgrave et al. (2020), table 1: ten results for a query with ten to find.
    row = np.array([[one == "1" for one in right]])
    found, precision, average = ranking_scores(row, np.array([10]), (1,))
    assert found.tolist() == [[1.0]]
    assert precision[0] == pytest.approx(r_precision)
    assert average[0] == pytest.approx(map_at_r)


def test_ranks_beyond_r_count_for_recall_alone() -> None:
    row = np.array([[False, False, True, True]])
    found, precision, average = ranking_scores(row, np.array([2]), (1, 2, 3))
    assert found.tolist() == [[0.0, 0.0, 1.0]]
    assert (precision[0], average[0]) == (0.0, 0.0)


def test_a_set_on_a_line_scores_as_counted_by_hand() -> None:
    # a0 at 0, a1 at 1, b0 at 1.5, b1 at 5: the nearest of a0 is a1; of a1 b0; of b0 a1; of b1 b0.
    embeddings = np.array([[0], [1], [1.5], [5]], np.float32)
    measured = retrieval(embeddings, np.array([0, 0, 1, 1]), Metric.EUCLIDEAN, ranks=(1, 2, 3))
    assert measured is not None
    # Within two a1 finds a0, and b0 finds a0 still before b1.
    assert [one.recall.value for one in measured.recalls] == [0.5, 0.75, 1.0]
    assert measured.r_precision.value == 0.5
    assert measured.mean_average_precision_at_r.value == 0.5


def brute_force(
    embeddings: Embeddings, labels: np.ndarray, metric: Metric
) -> tuple[list[float], float, float]:
    """Recall@1, 5, 10, R-precision and MAP@R, a query and an item at a time."""
    rows = embeddings.astype(np.longdouble)
    if metric is Metric.COSINE:
        rows = rows / np.sqrt((rows**2).sum(axis=1))[:, None]
    recalls: dict[int, list[float]] = {1: [], 5: [], 10: []}
    precisions, averages = [], []
    for query in range(len(rows)):
        to_find = int((labels == labels[query]).sum()) - 1
        if to_find == 0:
            continue
        others = [item for item in range(len(rows)) if item != query]
        others.sort(key=lambda item: (float(((rows[item] - rows[query]) ** 2).sum()), item))
        right = [labels[item] == labels[query] for item in others]
        for k, found in recalls.items():
            found.append(float(any(right[:k])))
        precisions.append(sum(right[:to_find]) / to_find)
        averages.append(
            sum(sum(right[: i + 1]) / (i + 1) for i in range(to_find) if right[i]) / to_find
        )
    return (
        [float(np.mean(found)) for found in recalls.values()],
        float(np.mean(precisions)),
        float(np.mean(averages)),
    )


@pytest.mark.parametrize("metric", list(Metric))
def test_it_agrees_with_brute_force_over_uneven_classes(metric: Metric) -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 9, 14, 20, 1])
    rows = generator.normal(size=(9, 5))[labels] + 0.8 * generator.normal(size=(59, 5))
    embeddings = rows.astype(np.float32)
    measured = retrieval(embeddings, labels, metric)
    assert measured is not None
    recalls, precision, average = brute_force(embeddings, labels, metric)
    assert [one.recall.value for one in measured.recalls] == pytest.approx(recalls)
    assert measured.r_precision.value == pytest.approx(precision)
    assert measured.mean_average_precision_at_r.value == pytest.approx(average)
    assert (measured.queries, measured.gallery) == (57, 59)


def test_ranks_of_float32_are_exact_far_from_the_origin_where_a_product_in_float32_fails() -> None:
    generator = np.random.default_rng(2)
    embeddings = (1000.0 + 0.01 * generator.normal(size=(80, 3))).astype(np.float32)
    wide = embeddings.astype(np.float64)
    exact = np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(axis=2))
    np.fill_diagonal(exact, np.inf)
    wanted = np.argsort(exact, axis=1, kind="stable")[:, :20]
    ((_, found),) = neighbours(embeddings, Metric.EUCLIDEAN, np.arange(80), 20)
    assert (found == wanted).all()
    product = embeddings @ embeddings.T
    squares = np.diagonal(product)
    squared = squares[:, None] + squares[None] - 2 * product
    np.fill_diagonal(squared, np.inf)
    assert (np.argsort(squared, axis=1)[:, :20] != wanted).any()


def test_a_query_is_left_out_of_its_gallery_even_among_its_copies() -> None:
    embeddings = np.zeros((4, 2), np.float32)
    ((_, found),) = neighbours(embeddings, Metric.EUCLIDEAN, np.arange(4), 3)
    # Equally near ones come in their order.
    assert found.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_a_collapsed_twin_ranks_no_better_than_chance() -> None:
    labels = np.repeat(np.arange(20), 5)
    measured = retrieval(np.ones((100, 8), np.float32), labels, Metric.COSINE)
    assert measured is not None
    assert measured.recalls[0].recall.value <= 0.06


@pytest.mark.parametrize("metric", list(Metric))
def test_blocks_change_nothing(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(12), 5)
    embeddings = generator.normal(size=(60, 6)).astype(np.float32)
    whole = retrieval(embeddings, labels, metric)
    monkeypatch.setattr("twinserve.train.retrieval._BLOCK", 60 * 7)
    assert len(list(neighbours(embeddings, metric, np.arange(60), 5))) > 7
    assert retrieval(embeddings, labels, metric) == whole


def test_of_many_items_some_are_queries_and_all_are_in_the_gallery() -> None:
    labels = np.repeat(np.arange(10), 5)
    embeddings = np.eye(10, dtype=np.float32)[labels]
    measured = retrieval(embeddings, labels, Metric.COSINE, most_queries=20)
    assert measured is not None
    assert (measured.queries, measured.gallery) == (20, 50)
    assert measured.mean_average_precision_at_r.value == 1.0


def test_classes_of_one_item_each_have_nothing_to_find() -> None:
    assert retrieval(np.eye(3, dtype=np.float32), np.arange(3), Metric.COSINE) is None


def test_two_items_of_one_class_find_each_other() -> None:
    measured = retrieval(np.eye(2, dtype=np.float32), np.zeros(2, np.int64), Metric.COSINE)
    assert measured is not None
    assert [one.recall.value for one in measured.recalls] == [1.0, 1.0, 1.0]
    assert measured.r_precision.low is None


def test_embeddings_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(NotFinite):
        retrieval(np.array([[np.nan], [1]], np.float32), np.zeros(2, np.int64), Metric.EUCLIDEAN)


def test_what_is_written_is_read_back() -> None:
    labels = np.repeat(np.arange(5), 3)
    embeddings = np.random.default_rng(0).normal(size=(15, 3)).astype(np.float32)
    measured = retrieval(embeddings, labels, Metric.COSINE)
    assert measured is not None
    document = json.loads(json.dumps(dataclasses.asdict(measured), allow_nan=False))
    assert Retrieval.from_dict(document) == measured
