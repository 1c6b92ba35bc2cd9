"""Whether a twin in another precision decides as its fp32 source does.

In: the fp32 graph on its evidence (`Reference`) and a candidate's embeddings of the same rows. Out:
figures with their limits. A gallery keeps its space when the precision changes, so that fp32 items
meet int8 probes: mixed pairs are judged too, at the thresholds of either. Without labelled data
only vectors and neighbours can be judged, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import (
    PairDistances,
    calibrate,
    equal_error_rate,
    true_accept_rate_at,
)
from twinserve.distance import Embeddings, Metric, check_vectors, paired, truncated
from twinserve.errors import GateFailed, TwinserveError
from twinserve.export.calibrations import drawn_items
from twinserve.export.dependence import vertices
from twinserve.export.evidence import Reference
from twinserve.export.precision.figures import (
    LIMITS,
    NOISY_LIMIT,
    RATE_LIMIT,
    Figure,
    Quality,
    rounded,
    worst,
)
from twinserve.export.precision.measures import (
    Trials,
    all_trials,
    distance_spearman,
    least_loss,
    least_true_accept_loss,
    nearest_is_right,
    neighbour_agreement,
)
from twinserve.feed import Rows
from twinserve.manifest import OperatingPoint
from twinserve.train.data import take

IntArray = NDArray[np.int64]

NEIGHBOURS = 5
# The pairs of so many items set the gate's thresholds; they are measured anew for each candidate.
MAX_ITEMS = 1000


@dataclass(frozen=True, eq=False)
class _Decided:
    """What one precision's embeddings of the judged rows decide, at one dimension."""

    embeddings: Embeddings
    pairs: PairDistances
    points: tuple[OperatingPoint, ...]


class Judge:
    """Holds candidates of one precision against the fp32 graph.

    Args:
        precision: whose limits count.
        reference: the fp32 graph on its evidence; without labelled items or judged pairs only
            vectors are judged.
    """

    def __init__(self, precision: str, reference: Reference) -> None:
        self._precision = precision
        self._facts = reference.facts
        self._gate = reference.gate_embeddings
        self._sources: dict[int, _Decided] = {}
        self.rows: Rows | None = None  # that candidates are to embed, beside those of the gate
        self._labels: IntArray | None = None
        if reference.calibrate_rows is None or reference.calibrate_embeddings is None:
            return
        self.rows, self._embeddings = reference.calibrate_rows, reference.calibrate_embeddings
        if reference.calibrate is not None:
            chosen = drawn_items(reference.calibrate.labels, MAX_ITEMS)
            self.rows = take(self.rows, chosen)
            self._embeddings = self._embeddings[chosen]
            self._labels = reference.calibrate.labels[chosen]
            self._trials = all_trials(self._labels)
        elif reference.pairs is not None:
            judged = reference.pairs
            joined = vertices(judged.first, judged.second, judged.same, judged.subjects)
            self._trials = Trials(judged.first, judged.second, judged.same, joined)

    def quality(self, gate: Embeddings, judged: Embeddings | None) -> Quality:
        """Measure a candidate.

        Args:
            gate: float32 [n, dimension], its embeddings of the reference's gate rows.
            judged: likewise of `rows`.

        Raises:
            GateFailed: an embedding that is not finite, or of length zero under cosine.
            DataError: too few pairs to set any threshold.
        """
        self._check(gate)
        figures = self._vectors(gate)
        if judged is None:
            agreement = neighbour_agreement(self._gate, gate, self._facts.metric, NEIGHBOURS)
            limit = LIMITS[self._precision].neighbour_agreement
            figures.append(Figure("neighbour_agreement", agreement, at_least=limit))
            return Quality("vectors and neighbours; no labelled data was given", tuple(figures))
        self._check(judged)
        points = {}
        full = judged.shape[1]
        for dimension in sorted({*self._facts.truncations, full}, reverse=True):
            measured, points[str(dimension)] = self._decisions(judged, dimension)
            where = "" if dimension == full else f" in {dimension} dimensions"
            figures += [replace(one, where=(one.where + where).strip()) for one in measured]
        return Quality("vectors, decisions and mixed pairs", tuple(figures), points)

    def _check(self, candidate: Embeddings) -> None:
        try:
            check_vectors(candidate, self._facts.metric)
        except TwinserveError as error:
            raise GateFailed(
                f"the gate failed: in {self._precision}, {error}; nothing was written",
                metadata={"figure": "finite"},
            ) from error

    def _vectors(self, candidate: Embeddings) -> list[Figure]:
        limits = LIMITS[self._precision]
        cosine = 1.0 - paired(candidate, self._gate, Metric.COSINE)
        low = float(np.percentile(cosine, 1))
        figures = [
            Figure("cosine_mean", float(cosine.mean()), at_least=limits.cosine_mean),
            Figure("cosine_1st_percentile", low, at_least=limits.cosine_1st_percentile),
            Figure("cosine_worst", float(cosine.min()), at_least=limits.cosine_worst),
        ]
        if not self._facts.normalized:  # lengths count, and no cosine sees them
            apart = paired(candidate, self._gate, Metric.EUCLIDEAN)
            lengths = np.linalg.norm(self._gate.astype(np.float64), axis=1)
            share = float(np.mean(apart / np.maximum(lengths, np.finfo(np.float64).tiny)))
            figures.append(Figure("relative_difference", share, at_most=limits.relative_difference))
        return figures

    def _decisions(
        self, embeddings: Embeddings, dimension: int
    ) -> tuple[list[Figure], list[dict[str, float]]]:
        """Judge the pairs by the candidate, and mixed ones."""
        if dimension not in self._sources:
            self._sources[dimension] = self._decided(truncated(self._embeddings, dimension))
        source = self._sources[dimension]
        found = self._decided(truncated(embeddings, dimension))
        spearman = distance_spearman(source.pairs, found.pairs)
        figures = [
            Figure(
                "equal_error_rate_lost",
                equal_error_rate(found.pairs.genuine, found.pairs.impostor)
                - equal_error_rate(source.pairs.genuine, source.pairs.impostor),
                at_most=RATE_LIMIT,
            ),
            *self._recall(source, found),
            Figure(
                "distance_spearman",
                spearman,
                at_least=LIMITS[self._precision].distance_spearman,
            ),
        ]
        figures += worst([self._own(source, found, point) for point in found.points])
        # An item by either precision may be the probe, and meets the other's gallery both ways.
        mixed = [
            self._trials.of(self._trials.distances(first, second, self._facts.metric))
            for first, second in (
                (source.embeddings, found.embeddings),
                (found.embeddings, source.embeddings),
            )
        ]
        rows = []
        above, lost = [], []
        for name, probe in ((self._precision, found), ("fp32", source)):
            for point in probe.points:
                at = f"{name} probe at FAR {point.false_accept_rate:.2g}"
                rate = float(np.mean([pairs.impostor <= point.threshold for pairs in mixed]))
                beyond = rate - point.false_accept_rate_upper
                above.append(
                    Figure("mixed_false_accept_rate_above_bound", beyond, at_most=0.0, where=at)
                )
                accepted = np.mean([pairs.genuine <= point.threshold for pairs in mixed], axis=0)
                lost.append(_mixed_loss(probe.pairs, mixed, point, at))
                if probe is found:
                    rows.append(_row(source.pairs, point, rate, float(accepted.mean())))
        return [*figures, *worst(above), *worst(lost)], rows

    def _recall(self, source: _Decided, found: _Decided) -> list[Figure]:
        if self._labels is None:  # judged pairs do not say whose nearest is right
            return []
        before, after = (
            nearest_is_right(side.embeddings, self._labels, self._facts.metric).astype(np.float64)
            for side in (source, found)
        )
        value = float(np.mean(before - after))
        noisy = _worth_a_draw(value) and least_loss(before - after, self._labels) <= 0.0
        return [Figure("recall_at_1_lost", value, at_most=RATE_LIMIT, within_noise=noisy)]

    def _own(self, source: _Decided, found: _Decided, point: OperatingPoint) -> Figure:
        """The TAR that the candidate loses at its own threshold, against the source's at its own
        for the same FAR.
        """
        rate = point.false_accept_rate
        value = (
            true_accept_rate_at(source.pairs.genuine, source.pairs.impostor, rate)
            - point.true_accept_rate
        )
        noisy = _worth_a_draw(value) and (
            least_true_accept_loss(source.pairs, found.pairs, rate) <= 0.0
        )
        where = f"at FAR {rate:.2g}"
        return Figure(
            "true_accept_rate_lost", value, at_most=RATE_LIMIT, where=where, within_noise=noisy
        )

    def _decided(self, embeddings: Embeddings) -> _Decided:
        metric = self._facts.metric
        pairs = self._trials.of(self._trials.distances(embeddings, embeddings, metric))
        calibration = calibrate(
            pairs, precision=self._precision, dimension=embeddings.shape[1], metric=metric
        )
        return _Decided(embeddings, pairs, calibration.points)


def _mixed_loss(
    own: PairDistances, mixed: Sequence[PairDistances], point: OperatingPoint, where: str
) -> Figure:
    """The TAR lost at one threshold by taking one item of each pair from the other precision.

    Noise makes mixed distances slightly longer, so that FAR falls with TAR. That counts as noise
    where mixed pairs, at a threshold of their own for the same FAR, lose nothing that a bootstrap
    over classes can tell: then the twin slides along its curve, and decides no worse.
    """
    accepted = np.mean([pairs.genuine <= point.threshold for pairs in mixed], axis=0)
    value = float(np.mean((own.genuine <= point.threshold) - accepted))
    noisy = _worth_a_draw(value) and all(
        least_true_accept_loss(own, pairs, point.false_accept_rate) <= 0.0 for pairs in mixed
    )
    return Figure(
        "mixed_true_accept_rate_lost", value, at_most=RATE_LIMIT, where=where, within_noise=noisy
    )


def _worth_a_draw(lost: float) -> bool:
    return RATE_LIMIT < lost <= NOISY_LIMIT


def _rate(pairs: PairDistances, false_accept_rate: float) -> float:
    return true_accept_rate_at(pairs.genuine, pairs.impostor, false_accept_rate)


def _row(
    source: PairDistances, point: OperatingPoint, rate: float, accepted: float
) -> dict[str, float]:
    row = {
        "false_accept_rate": point.false_accept_rate,
        "false_accept_rate_upper": point.false_accept_rate_upper,
        "source_true_accept_rate": true_accept_rate_at(
            source.genuine, source.impostor, point.false_accept_rate
        ),
        "true_accept_rate": point.true_accept_rate,
        "mixed_false_accept_rate": rate,
        "mixed_true_accept_rate": accepted,
    }
    return {name: rounded(value) for name, value in row.items()}
