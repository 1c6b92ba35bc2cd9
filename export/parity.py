"""The gate between a twin and its exported form: who fails is not written.

In: the source (torch) and the candidate (the graph in onnxruntime) as two functions from inputs to
embeddings, real held-out inputs, and later the operating points. Out: a `ParityReport` for the
manifest, or `GateFailed` with the figure, its value and its limit. A figure that is not a number
fails: comparisons are written so that NaN never passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import PairDistances
from twinserve.distance import Embeddings, FloatArray, Metric, paired
from twinserve.errors import DataError, GateFailed
from twinserve.manifest import OperatingPoint

Embedder = Callable[[NDArray[np.uint8]], Embeddings]

BATCH_SIZES = (1, 2, 3, 7, 64)
# Rows that pass the gate alone and in batches: two of the largest batch.
ROWS = 128


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


@dataclass(frozen=True)
class VectorReport:
    """Embeddings of the candidate against those of its source."""

    inputs: int
    largest_coordinate: float  # of the source; scales the limits when above 1
    max_abs_difference: dict[str, float]  # by batch size
    max_cosine_drift: dict[str, float]  # by batch size
    alone_against_batch: float  # the same row, alone and in a batch, both by the candidate
    limits: Limits

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest, figures to three digits."""
        return dataclasses.asdict(
            dataclasses.replace(
                self,
                largest_coordinate=_rounded(self.largest_coordinate),
                max_abs_difference=_all_rounded(self.max_abs_difference),
                max_cosine_drift=_all_rounded(self.max_cosine_drift),
                alone_against_batch=_rounded(self.alone_against_batch),
            )
        )


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
        return dataclasses.asdict(dataclasses.replace(self, rounding=_rounded(self.rounding)))


def check_vectors(
    source: Embedder,
    candidate: Embedder,
    inputs: NDArray[np.uint8],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    limits: Limits = FP32,
) -> VectorReport:
    """Compare embeddings of the same inputs, at each batch size and row by row.

    Args:
        source: the twin that is to be repeated.
        candidate: what would be served.
        inputs: real held-out inputs, [n, ...]; at most `ROWS` are used, repeated where a batch
            needs more than there are.
        batch_sizes: each is run in whole batches over all of those rows that fill one.
        limits: how far is too far.

    Raises:
        GateFailed: a figure above its limit, an output of another shape or type, or a batch that
            the candidate refuses.
        DataError: no inputs.
    """
    if len(inputs) == 0:
        raise DataError("the gate needs real inputs, and there are none")
    rows = inputs[np.arange(max(min(len(inputs), ROWS), *batch_sizes)) % len(inputs)]
    expected = source(rows)
    largest = float(np.max(np.abs(expected)))
    scale = max(1.0, largest)
    alone = np.concatenate([_run(candidate, rows[i : i + 1], expected) for i in range(len(rows))])
    difference: dict[str, float] = {}
    drift: dict[str, float] = {}
    apart = 0.0
    for size in batch_sizes:
        whole = len(rows) // size * size
        batches = [_run(candidate, rows[i : i + size], expected) for i in range(0, whole, size)]
        found = np.concatenate(batches)
        at = f"at batch size {size}"
        difference[str(size)] = _max_abs(found, expected[:whole])
        _hold("max_abs_difference", difference[str(size)], limits.max_abs_difference * scale, at)
        drift[str(size)] = float(paired(found, expected[:whole], Metric.COSINE).max())
        _hold("max_cosine_drift", drift[str(size)], limits.max_cosine_drift, at)
        apart = max(apart, _max_abs(found, alone[:whole]))
        _hold("alone_against_batch", apart, limits.alone_against_batch * scale, at)
    return VectorReport(len(rows), largest, difference, drift, apart, limits)


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


def _run(candidate: Embedder, batch: NDArray[np.uint8], expected: Embeddings) -> Embeddings:
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
            "and look for operations that depend on the batch or on training mode",
            metadata={"figure": figure, "value": f"{value:.6g}", "limit": f"{limit:.6g}"},
        )


def _max_abs(found: Embeddings, expected: Embeddings) -> float:
    return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64))))


def _all_distances(pairs: PairDistances) -> FloatArray:
    return np.concatenate([pairs.genuine, pairs.impostor])


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _all_rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: _rounded(value) for key, value in values.items()}
