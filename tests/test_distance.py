"""Distances: by hand, symmetric to the last bit, and refusing what has none."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.distance import Metric, check_vectors, paired, pairwise, truncated, unit
from twinserve.errors import NotFinite, ZeroVector


def random_rows(count: int, dimension: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def test_euclidean_distance_is_the_length_of_the_difference_not_its_square() -> None:
    first = np.array([[0, 0], [1, 1]], dtype=np.float32)
    second = np.array([[3, 4], [1, 1]], dtype=np.float32)
    np.testing.assert_array_equal(paired(first, second, Metric.EUCLIDEAN), [5.0, 0.0])


def test_cosine_distance_is_one_minus_the_cosine_whatever_the_lengths() -> None:
    first = np.array([[2, 0], [2, 0], [2, 0], [1, 1]], dtype=np.float32)
    second = np.array([[9, 0], [0, 5], [-1, 0], [1, 0]], dtype=np.float32)
    np.testing.assert_allclose(
        paired(first, second, Metric.COSINE), [0.0, 1.0, 2.0, 1 - np.sqrt(0.5)], atol=1e-15
    )


@pytest.mark.parametrize("metric", Metric)
def test_equal_vectors_have_distance_exactly_zero(metric: Metric) -> None:
    rows = random_rows(500, 64)
    assert (paired(rows, rows.copy(), metric) == 0.0).all()


@pytest.mark.parametrize("metric", Metric)
def test_distance_is_symmetric_to_the_last_bit(metric: Metric) -> None:
    first, second = random_rows(500, 64, seed=1), random_rows(500, 64, seed=2)
    np.testing.assert_array_equal(paired(first, second, metric), paired(second, first, metric))


@pytest.mark.parametrize("metric", Metric)
def test_the_matrix_form_agrees_with_the_paired_form(metric: Metric) -> None:
    first, second = random_rows(20, 48, seed=1), random_rows(30, 48, seed=2)
    matrix = pairwise(first, second, metric)
    assert matrix.shape == (20, 30)
    for column in range(30):
        np.testing.assert_allclose(
            matrix[:, column], paired(first, second[column], metric), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("metric", Metric)
def test_distances_come_in_float64_even_for_tiny_differences(metric: Metric) -> None:
    first = np.ones((1, 2), dtype=np.float32)
    second = np.array([[1.0, np.nextafter(np.float32(1.0), np.float32(2.0))]], dtype=np.float32)
    distance = paired(first, second, metric)
    assert distance.dtype == np.float64
    assert distance[0] > 0.0


def test_cosine_distance_never_leaves_zero_to_two() -> None:
    rows = random_rows(2000, 7)
    assert paired(rows, -rows, Metric.COSINE).max() <= 2.0
    assert pairwise(rows[:300], rows[:300], Metric.COSINE).min() >= 0.0


def test_huge_and_tiny_float32_vectors_neither_overflow_nor_vanish() -> None:
    huge = np.full((1, 4), 3e38, dtype=np.float32)
    tiny = np.full((1, 4), 1e-45, dtype=np.float32)
    assert np.isfinite(paired(huge, -huge, Metric.EUCLIDEAN)).all()
    np.testing.assert_allclose(paired(huge, tiny, Metric.COSINE), 0.0, atol=1e-15)


def test_unit_leaves_zero_rows_at_zero() -> None:
    rows = unit(np.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(rows, [[0, 0], [0.6, 0.8]])


def test_a_truncation_has_unit_length_and_the_full_dimension_stays_as_it_is() -> None:
    rows = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 1.0]], dtype=np.float32)
    cut = truncated(rows, 2)
    assert cut.dtype == np.float32
    np.testing.assert_allclose(cut, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-7)
    assert truncated(rows, 3) is rows


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", Metric)
def test_a_number_that_is_not_finite_is_refused_with_its_row(bad: float, metric: Metric) -> None:
    rows = random_rows(5, 3)
    rows[3, 1] = bad
    with pytest.raises(NotFinite, match="embedding 3") as caught:
        check_vectors(rows, metric)
    assert caught.value.metadata == {"row": "3"}


def test_a_zero_vector_is_refused_under_cosine_only() -> None:
    rows = random_rows(5, 3)
    rows[2] = 0.0
    with pytest.raises(ZeroVector, match="embedding 2"):
        check_vectors(rows, Metric.COSINE)
    check_vectors(rows, Metric.EUCLIDEAN)


def test_one_vector_may_be_checked_without_a_batch() -> None:
    check_vectors(np.array([1.0, 0.0], dtype=np.float32), Metric.COSINE)
    with pytest.raises(ZeroVector):
        check_vectors(np.zeros(2, dtype=np.float32), Metric.COSINE)


@pytest.mark.parametrize("shape", [(6,), (1, 6)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_among_small_ones_is_found(shape: tuple[int, ...], bad: float) -> None:
    vectors = np.full(shape, 1e-3, np.float32)
    vectors[..., 3] = bad
    for metric in Metric:
        with pytest.raises(NotFinite):
            check_vectors(vectors, metric)


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_numbers_whose_squares_vanish_or_overflow_are_still_fine(value: float) -> None:
    for metric in Metric:
        check_vectors(np.full((1, 4), value, np.float32), metric)


def test_a_zero_row_is_found_alone_and_among_others() -> None:
    zero = np.zeros((1, 4), np.float32)
    check_vectors(zero, Metric.EUCLIDEAN)
    for vectors in (zero, np.concatenate([np.ones((1, 4), np.float32), zero])):
        with pytest.raises(ZeroVector):
            check_vectors(vectors, Metric.COSINE)
