"""The gate: passes what repeats its source, and names the figure for whatever does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.export.conftest import CONTRACT, make_twin, random_inputs
from tests.export.text_twins import MAX_TOKENS, make_text_twin, text_contract, text_rows
from twinserve.calibration import PairDistances
from twinserve.distance import Metric
from twinserve.errors import DataError, GateFailed
from twinserve.export.parity import Limits, check_decisions, check_vectors
from twinserve.export.session import GraphSession
from twinserve.feed import Rows
from twinserve.manifest import OperatingPoint
from twinserve.train.evaluate import embed

MATRIX = np.random.default_rng(0).normal(size=(256, 12)) / 40_000


def source(inputs: np.ndarray) -> np.ndarray:
    """A plain linear twin with coordinates below 1."""
    return (inputs.reshape(len(inputs), -1) @ MATRIX).astype(np.float32)


def pairs(genuine: list[float], impostor: list[float]) -> PairDistances:
    return PairDistances(
        genuine=np.array(genuine),
        genuine_class=np.zeros(len(genuine), dtype=np.int64),
        impostor=np.array(impostor),
        impostor_classes=np.zeros((len(impostor), 2), dtype=np.int64),
    )


POINTS = (OperatingPoint(0.1, 0.2, 0.5, 0.9), OperatingPoint(0.01, 0.02, 0.3, 0.8))


def test_a_twin_and_its_graph_pass_and_the_report_holds_every_batch_size(model: bytes) -> None:
    twin = make_twin()
    report = check_vectors(
        lambda inputs: embed(twin, inputs),
        GraphSession(model, CONTRACT),
        random_inputs(150),
        CONTRACT,
    )
    assert report.inputs == 128
    assert list(report.max_abs_difference) == ["1", "2", "3", "7", "64"]
    assert 0.0 < max(report.max_abs_difference.values()) <= 1e-5
    assert max(report.max_cosine_drift.values()) <= 1e-6
    assert report.to_dict()["limits"]["max_abs_difference"] == 1e-5


def test_the_graph_of_another_twin_fails_with_its_figure(model: bytes) -> None:
    twin, other = make_twin(seed=4), GraphSession(model, CONTRACT)
    with pytest.raises(GateFailed, match=r"max_abs_difference is .* the limit is 1e-05") as caught:
        check_vectors(lambda inputs: embed(twin, inputs), other, random_inputs(70), CONTRACT)
    assert caught.value.metadata["figure"] == "max_abs_difference"
    assert float(caught.value.metadata["value"]) > 1e-5
    assert "nothing was written" in str(caught.value)


def test_a_difference_just_above_the_limit_fails_and_just_below_passes() -> None:
    inputs = random_inputs(64)

    def shifted(by: float) -> None:
        check_vectors(source, lambda batch: source(batch) + np.float32(by), inputs, CONTRACT)

    shifted(0.9e-5)
    with pytest.raises(GateFailed, match="max_abs_difference"):
        shifted(1.1e-5)


def test_a_fault_at_one_batch_size_is_found_there() -> None:
    def candidate(batch: np.ndarray) -> np.ndarray:
        found = source(batch)
        if len(batch) == 7:
            found[3] += 1e-3
        return found

    with pytest.raises(GateFailed, match="at batch size 7"):
        check_vectors(source, candidate, random_inputs(64), CONTRACT)


def test_a_row_that_differs_alone_and_in_a_batch_fails_though_each_is_near_the_source() -> None:
    def candidate(batch: np.ndarray) -> np.ndarray:
        return source(batch) + np.float32(0.8e-5 if len(batch) == 1 else -0.8e-5)

    with pytest.raises(GateFailed, match="alone_against_batch"):
        check_vectors(source, candidate, random_inputs(64), CONTRACT)


def test_a_drift_of_direction_fails_though_every_coordinate_is_near() -> None:
    with pytest.raises(GateFailed, match="max_cosine_drift"):
        check_vectors(
            lambda batch: source(batch) * np.float32(1e-4),
            lambda batch: (source(batch) * np.float32(1e-4))[:, ::-1],
            random_inputs(64),
            CONTRACT,
            limits=Limits(max_abs_difference=1.0, alone_against_batch=1.0),
        )


def test_a_nan_fails() -> None:
    def candidate(batch: np.ndarray) -> np.ndarray:
        found = source(batch)
        found[0, 0] = np.nan
        return found

    with pytest.raises(GateFailed, match="max_abs_difference is nan"):
        check_vectors(source, candidate, random_inputs(64), CONTRACT)


def test_the_limit_grows_with_coordinates_above_one() -> None:
    def large(batch: np.ndarray) -> np.ndarray:
        return source(batch) * np.float32(1000.0)

    largest = float(np.abs(large(random_inputs(64))).max())
    assert largest > 10.0

    def shifted(share: float) -> None:
        by = np.float32(share * 1e-5 * largest)
        check_vectors(large, lambda batch: large(batch) + by, random_inputs(64), CONTRACT)

    shifted(0.8)
    with pytest.raises(GateFailed, match="max_abs_difference"):
        shifted(1.3)


def test_a_candidate_of_a_fixed_batch_fails() -> None:
    fixed = source(random_inputs(3))
    with pytest.raises(GateFailed, match=r"a batch of 1 gave float32 \[3, 12\]"):
        check_vectors(source, lambda _: fixed, random_inputs(64), CONTRACT)


def test_a_candidate_of_another_type_fails() -> None:
    with pytest.raises(GateFailed, match="float64"):
        check_vectors(
            source, lambda batch: source(batch).astype(np.float64), random_inputs(64), CONTRACT
        )


def test_few_inputs_are_repeated_to_fill_the_largest_batch() -> None:
    sizes: set[int] = set()

    def candidate(batch: np.ndarray) -> np.ndarray:
        sizes.add(len(batch))
        return source(batch)

    assert check_vectors(source, candidate, random_inputs(5), CONTRACT).inputs == 64
    assert sizes == {1, 2, 3, 7, 64}


def test_without_inputs_there_is_no_gate() -> None:
    with pytest.raises(DataError, match="real inputs"):
        check_vectors(source, source, random_inputs(0), CONTRACT)


TABLE = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32) / 3


def text_source(rows: Rows) -> np.ndarray:
    """Averaged word vectors: padding cannot touch them."""
    return np.stack([TABLE[row].mean(axis=0) for row in rows])


def longest(rows: Rows) -> int:
    return max(len(row) for row in rows)


def test_a_text_twin_and_its_graph_pass_at_every_length(text_model: bytes) -> None:
    twin = make_text_twin()
    report = check_vectors(
        lambda rows: embed(twin, rows),
        GraphSession(text_model, twin.contract),
        text_rows(150),
        twin.contract,
    )
    assert list(report.max_abs_difference) == ["1", "2", "3", "7", "64"]
    assert [entry.tokens for entry in report.lengths] == [3, 8, 16, 32, MAX_TOKENS]
    for entry in report.lengths:
        assert entry.rows == 3
        assert 0.0 < entry.max_abs_difference <= 1e-5
        assert entry.alone_against_padded <= 1e-5
    first = report.to_dict()["lengths"][0]
    assert set(first) >= {"tokens", "alone_against_equals", "alone_against_padded"}
    assert "lengths" not in check_vectors(source, source, random_inputs(9), CONTRACT).to_dict()


def test_a_text_twin_s_source_sees_one_text_at_a_time() -> None:
    asked: set[int] = set()

    def alone(rows: Rows) -> np.ndarray:
        asked.add(len(rows))
        return text_source(rows)

    check_vectors(alone, text_source, text_rows(), text_contract())
    assert asked == {1}


def test_padding_that_leaks_into_an_embedding_fails() -> None:
    def averages_over_padding(rows: Rows) -> np.ndarray:
        shares = np.array([[len(row) / longest(rows)] for row in rows], dtype=np.float32)
        return text_source(rows) * shares

    with pytest.raises(GateFailed, match=r"max_abs_difference is .* at batch size 2"):
        check_vectors(text_source, averages_over_padding, text_rows(), text_contract())


def test_a_fault_above_the_real_texts_length_is_found_there() -> None:
    def breaks_above_40(rows: Rows) -> np.ndarray:
        return text_source(rows) + np.float32(longest(rows) > 40)

    short = [row for row in text_rows(100) if len(row) <= 40]
    with pytest.raises(GateFailed, match=r"max_abs_difference is 1 at \d+ tokens"):
        check_vectors(text_source, breaks_above_40, short, text_contract())


def test_a_short_text_that_a_long_neighbour_changes_fails_though_each_is_near_the_source() -> None:
    def candidate(rows: Rows) -> np.ndarray:
        apart = 0.8e-5 if longest(rows) == MAX_TOKENS and len(rows) > 3 else -0.8e-5
        return text_source(rows) + np.float32(apart)

    short = [row for row in text_rows(100) if len(row) < MAX_TOKENS]
    with pytest.raises(GateFailed, match=r"alone_against_padded is .* at 3 tokens"):
        check_vectors(text_source, candidate, short, text_contract())


def test_texts_too_long_to_pad_a_large_batch_are_left_to_the_lengths_check() -> None:
    contract = dataclasses.replace(text_contract(), max_tokens=2048)
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 200, size) for size in [2000, 9, 12] * 5]
    batches: list[int] = []

    def candidate(batch: Rows) -> np.ndarray:
        batches.append(len(batch) * longest(batch))
        return text_source(batch)

    report = check_vectors(text_source, candidate, rows, contract)
    assert report.lengths[-1].tokens == 2048
    assert report.inputs == 64
    assert max(batches) <= 3 * 2048


def test_equal_decisions_pass() -> None:
    same = pairs([0.1, 0.4], [0.2, 0.7])
    report = check_decisions(same, same, POINTS, Metric.COSINE)
    assert (report.pairs, report.operating_points) == (4, 2)
    assert (report.disagreements, report.within_rounding, report.turned_by_rounding) == (0, 0, 0)


@pytest.mark.parametrize("place", ["genuine", "impostor"])
def test_one_turned_decision_fails(place: str) -> None:
    before = {"genuine": [0.1, 0.29], "impostor": [0.29, 0.7]}
    after = {**before, place: [0.31 if value == 0.29 else value for value in before[place]]}
    with pytest.raises(GateFailed, match=r"disagreements is 1 first at FAR 0.01") as caught:
        check_decisions(pairs(**before), pairs(**after), POINTS, Metric.COSINE)
    assert caught.value.metadata == {"figure": "disagreements", "value": "1", "limit": "0"}


def test_decisions_within_rounding_of_a_threshold_are_counted_and_forgiven() -> None:
    before = pairs([0.1, 0.3 - 4e-6], [0.3 + 4e-6, 0.7])
    after = pairs([0.1, 0.3 + 4e-6], [0.3 + 5e-6, 0.7])
    report = check_decisions(before, after, POINTS, Metric.COSINE)
    assert (report.within_rounding, report.turned_by_rounding) == (2, 1)


def test_rounding_grows_with_the_embeddings_under_euclidean_distance_only() -> None:
    before, after = pairs([0.3 - 5e-5], [0.7]), pairs([0.3 + 5e-5], [0.7])
    check_decisions(before, after, POINTS, Metric.EUCLIDEAN, largest_coordinate=10.0)
    with pytest.raises(GateFailed, match="disagreements"):
        check_decisions(before, after, POINTS, Metric.EUCLIDEAN)
    with pytest.raises(GateFailed, match="disagreements"):
        check_decisions(before, after, POINTS, Metric.COSINE, largest_coordinate=10.0)
