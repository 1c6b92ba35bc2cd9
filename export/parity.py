"""The gate between a twin and its exported form: who fails is not written.

In: the source (torch, or a graph made elsewhere) and the candidate (the graph in onnxruntime) as
two functions from rows to embeddings, real held-out rows, and later the operating points. Out:
reports for the manifest, or `GateFailed` with the figure, its value and its limit. Texts are tried
at every length too (see ladder.py), alone, among their like, and padded by a long neighbour. A
figure that is not a number fails: comparisons are written so that NaN never passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinserve.calibration import PairDistances
from twinserve.distance import Embeddings, FloatArray, Metric, paired
from twinserve.errors import DataError, GateFailed
from twinserve.export.evidence import Embedder
from twinserve.export.ladder import ladder
from twinserve.feed import Rows
from twinserve.manifest import InputContract, OperatingPoint, TextInput
from twinserve.train.data import take

BATCH_SIZES = (1, 2, 3, 7, 64)
# Rows that pass the gate alone and in batches: two of the largest batch.
ROWS = 128
# What one pass over the real texts may cost, padding included: texts too long for it are left to
# the lengths' own check.
MAX_TOKENS = 1 << 14
# A text of every length is padded by the longest in batches of so many tokens.
_PADDED_TOKENS = 1 << 12


@dataclass(frozen=True)
class Limits:
    """How far the candidate may stand from its source.

    `max_abs_difference` and `alone_against_batch` are for coordinates of at most 1 and grow with
    the source's largest one, as rounding does; `rounding` (a distance) likewise under the Euclidean
    metric.
    """

    max_abs_difference: float = 1e-5
    max_cosine_drift: float = 1e-6
    alone_against_batch: float = 1e-5
    rounding: float = 1e-5


FP32 = Limits()
# Of other precisions against the fp32 graph, over batch sizes and lengths. Wide: they catch what
# breaks, and export/precision/ judges how good the rest is. int8 that finds the ranges of its
# activations as it runs (dynamic quantisation) finds them over the whole batch, so that a row's
# embedding moves with its neighbours; the report says how far.
LOWERED = {
    "fp16": Limits(0.02, 0.002, 0.02, 0.02),
    "int8": Limits(0.2, 0.1, 0.2, 0.2),
}


@dataclass(frozen=True)
class LengthReport:
    """Embeddings of texts of one length: each figure is the worst over its rows."""

    tokens: int
    rows: int
    max_abs_difference: float  # to the source, which ran each row alone
    max_cosine_drift: float
    alone_against_equals: float  # the candidate alone, and in a batch of this length
    alone_against_padded: float  # the candidate alone, and padded by the longest there is


@dataclass(frozen=True)
class VectorReport:
    """Embeddings of the candidate against those of its source."""

    inputs: int
    largest_coordinate: float  # of the source; scales the limits when above 1
    max_abs_difference: dict[str, float]  # by batch size
    max_cosine_drift: dict[str, float]  # by batch size
    alone_against_batch: float  # the same row, alone and in a batch, both by the candidate
    limits: Limits
    lengths: tuple[LengthReport, ...] = ()  # of texts, rising

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest, figures to three digits."""
        values: dict[str, Any] = _rounded(dataclasses.asdict(self))
        if not self.lengths:
            values.pop("lengths")
        return values


@dataclass(frozen=True)
class DecisionReport:
    """Decisions of the candidate against those of its source, at every operating point."""

    pairs: int
    operating_points: int
    disagreements: int  # outside rounding; the gate demands 0
    within_rounding: int  # decisions so near the threshold that rounding may turn them
    turned_by_rounding: int  # those of them that it did turn
    rounding: float  # the distance that counts as near

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        values: dict[str, Any] = _rounded(dataclasses.asdict(self))
        return values


def check_vectors(
    source: Embedder,
    candidate: Embedder,
    rows: Rows,
    contract: InputContract,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    limits: Limits = FP32,
) -> VectorReport:
    """Compare embeddings of the same rows: at each batch size, row by row, and at each length.

    Args:
        source: the twin that is to be repeated; texts are given to it one at a time, so that its
            own padding decides nothing.
        candidate: what would be served.
        rows: real held-out rows, in no order; at most `ROWS` are used, repeated where a batch
            needs more than there are.
        contract: of the rows.
        batch_sizes: each is run in whole batches over all of those rows that fill one.
        limits: how far is too far.

    Raises:
        GateFailed: a figure above its limit, an output of another shape or type, or a batch that
            the candidate refuses.
        DataError: no rows.
    """
    if len(rows) == 0:
        raise DataError("the gate needs real inputs, and there are none")
    is_text = isinstance(contract, TextInput)
    used = (
        _affordable(rows, max(batch_sizes))
        if is_text
        else take(rows, np.arange(min(len(rows), ROWS)))
    )
    used = take(used, np.arange(max(len(used), *batch_sizes)) % len(used))
    expected = _each(source, used) if is_text else source(used)
    largest = float(np.max(np.abs(expected)))
    scale = max(1.0, largest)
    alone = _alone(candidate, used, expected)
    difference: dict[str, float] = {}
    drift: dict[str, float] = {}
    apart = 0.0
    for size in batch_sizes:
        whole = len(used) // size * size
        batches = [
            _run(candidate, take(used, np.arange(start, start + size)), expected)
            for start in range(0, whole, size)
        ]
        found = np.concatenate(batches)
        at = f"at batch size {size}"
        difference[str(size)] = _max_abs(found, expected[:whole])
        _hold("max_abs_difference", difference[str(size)], limits.max_abs_difference * scale, at)
        drift[str(size)] = float(paired(found, expected[:whole], Metric.COSINE).max())
        _hold("max_cosine_drift", drift[str(size)], limits.max_cosine_drift, at)
        apart = max(apart, _max_abs(found, alone[:whole]))
        _hold("alone_against_batch", apart, limits.alone_against_batch * scale, at)
    lengths = _check_lengths(source, candidate, rows, contract, limits, scale)
    return VectorReport(len(used), largest, difference, drift, apart, limits, lengths)


def check_decisions(
    source: PairDistances,
    candidate: PairDistances,
    points: Sequence[OperatingPoint],
    metric: Metric,
    *,
    largest_coordinate: float = 1.0,
    limits: Limits = FP32,
) -> DecisionReport:
    """Compare the decisions on the same pairs at every operating point.

    Args:
        source: distances between embeddings of the source.
        candidate: distances of the same pairs, in the same order, by the candidate.
        points: with the thresholds that will be served.
        metric: of the distances.
        largest_coordinate: from the `VectorReport`.
        limits: `rounding` says how near to a threshold a decision may turn.

    Raises:
        GateFailed: a decision turned that rounding does not explain.
    """
    rounding = limits.rounding
    if metric is Metric.EUCLIDEAN:
        rounding *= max(1.0, largest_coordinate)
    expected = _all_distances(source)
    found = _all_distances(candidate)
    disagreements = near = turned = 0
    worst: OperatingPoint | None = None
    for point in points:
        differs = (expected <= point.threshold) != (found <= point.threshold)
        close = np.abs(expected - point.threshold) <= rounding
        near += int(close.sum())
        turned += int((differs & close).sum())
        outside = int((differs & ~close).sum())
        if outside and worst is None:
            worst = point
        disagreements += outside
    where = "" if worst is None else f"first at FAR {worst.false_accept_rate:.2g}"
    _hold("disagreements", disagreements, 0, where)
    return DecisionReport(len(expected), len(points), disagreements, near, turned, rounding)


def _check_lengths(
    source: Embedder,
    candidate: Embedder,
    rows: Rows,
    contract: InputContract,
    limits: Limits,
    scale: float,
) -> tuple[LengthReport, ...]:
    """Try texts of each length: alone, among their like, and padded by the longest."""
    if not isinstance(contract, TextInput):
        return ()
    rungs = ladder(rows, contract)
    longest = rungs[-1][:1]
    together = max(1, _PADDED_TOKENS // len(longest[0]) - 1)
    reports = []
    for rung in rungs:
        tokens = len(rung[0])
        at = f"at {tokens} tokens"
        expected = _each(source, rung)
        alone = _alone(candidate, rung, expected)
        equals = _run(candidate, rung, expected)
        padded = np.concatenate(
            [
                _run(candidate, [*batch, *longest], expected)[:-1]
                for start in range(0, len(rung), together)
                if (batch := rung[start : start + together])
            ]
        )
        report = LengthReport(
            tokens=tokens,
            rows=len(rung),
            max_abs_difference=max(_max_abs(found, expected) for found in (alone, equals, padded)),
            max_cosine_drift=max(
                float(paired(found, expected, Metric.COSINE).max())
                for found in (alone, equals, padded)
            ),
            alone_against_equals=_max_abs(equals, alone),
            alone_against_padded=_max_abs(padded, alone),
        )
        for figure, limit in (
            ("max_abs_difference", limits.max_abs_difference * scale),
            ("max_cosine_drift", limits.max_cosine_drift),
            ("alone_against_equals", limits.alone_against_batch * scale),
            ("alone_against_padded", limits.alone_against_batch * scale),
        ):
            _hold(figure, getattr(report, figure), limit, at)
        reports.append(report)
    return tuple(reports)


def _affordable(rows: Rows, least: int) -> Rows:
    """Return at most `ROWS` texts in their order, the longest left out where padding is dear."""
    chosen = np.arange(min(len(rows), ROWS))
    lengths = np.array([len(rows[index]) for index in chosen.tolist()])
    rising = np.argsort(lengths, kind="stable")
    # A batch is padded to its longest text, and the largest batch is filled by repetition.
    cost = np.maximum(np.arange(1, len(chosen) + 1), least) * lengths[rising]
    kept = max(1, int(np.sum(cost <= MAX_TOKENS)))
    return take(rows, np.sort(chosen[rising[:kept]]))


def _each(embedder: Embedder, rows: Rows) -> Embeddings:
    return np.concatenate([embedder(take(rows, np.array([index]))) for index in range(len(rows))])


def _alone(candidate: Embedder, rows: Rows, expected: Embeddings) -> Embeddings:
    return np.concatenate(
        [_run(candidate, take(rows, np.array([index])), expected) for index in range(len(rows))]
    )


def _run(candidate: Embedder, batch: Rows, expected: Embeddings) -> Embeddings:
    found = candidate(batch)
    shape = (len(batch), *expected.shape[1:])
    if found.shape != shape or found.dtype != np.float32:
        raise GateFailed(
            f"the gate failed: a batch of {len(batch)} gave {found.dtype} {list(found.shape)}, "
            f"it must give float32 {list(shape)}; nothing was written",
            metadata={
                "figure": "output shape",
                "value": str(list(found.shape)),
                "limit": str(list(shape)),
            },
        )
    return found


def _hold(figure: str, value: float, limit: float, where: str) -> None:
    if not value <= limit:
        raise GateFailed(
            f"the gate failed: {figure} is {value:.3g} {where}, the limit is {limit:.3g}; nothing "
            "was written. The exported twin does not repeat its source: export the same weights, "
            "and look for operations that depend on the batch, on padding or on training mode",
            metadata={"figure": figure, "value": f"{value:.6g}", "limit": f"{limit:.6g}"},
        )


def _max_abs(found: Embeddings, expected: Embeddings) -> float:
    return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64))))


def _all_distances(pairs: PairDistances) -> FloatArray:
    return np.concatenate([pairs.genuine, pairs.impostor])


def _rounded(value: Any) -> Any:
    """Round every figure within to three digits; limits and counts stay as they are."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value
