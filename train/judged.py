"""What judged pairs and triplets say of a twin, in one or two figures.

In: embeddings of their items. Out: `Figures` of the kind that the judgements allow: rank
correlation with scores, error rates of labels, the share of triplets in the right order; of pairs
that are all the same, how often an item's own partner is the nearest. The first figure is the one
that twins are told apart by. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import PairDistances, equal_error_rate
from twinserve.distance import Embeddings, FloatArray, Metric, check_vectors, paired, pairwise
from twinserve.train.correlation import spearman
from twinserve.train.data import IntArray
from twinserve.train.pairs import PairData, TripletData

# Columns of log.csv by kind of judgement, the one that chooses first.
COLUMNS = {
    "scores": ("spearman",),
    "labels": ("equal_error_rate", "average_precision"),
    "same": ("recall_at_1",),
    "triplets": ("right_order", "equal_error_rate"),
}
# Figures of which less is better.
_ERRORS = ("equal_error_rate",)
_SPOKEN = {
    "spearman": "Spearman {:.4f}",
    "equal_error_rate": "EER {:.1%}",
    "average_precision": "average precision {:.3f}",
    "recall_at_1": "recall@1 {:.1%}",
    "right_order": "right order {:.1%}",
}
# Distances of a block of items to all: 32 MiB of float64.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class JudgedFigures:
    """What was measured on pairs or triplets."""

    metric: str
    counts: dict[str, int]  # how many pairs or triplets, of how many items
    values: dict[str, float]  # by name, in the order of `COLUMNS`

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as report.json holds them."""
        return {"metric": self.metric, **self.counts, **self.values}

    @property
    def rank(self) -> tuple[float, ...]:
        """What the better twin has more of, the most telling first."""
        return tuple(-one if name in _ERRORS else one for name, one in self.values.items())

    def __str__(self) -> str:
        return ", ".join(_SPOKEN[name].format(value) for name, value in self.values.items())


def kind_of_judgements(data: PairData | TripletData) -> str:
    """Return what pairs or triplets can be measured by: a key of `COLUMNS`."""
    if isinstance(data, TripletData):
        return "triplets"
    if not data.binary:
        return "scores"
    return "same" if data.targets.all() else "labels"


def figures_of(
    embeddings: Embeddings, data: PairData | TripletData, metric: Metric
) -> JudgedFigures:
    """Measure pairs or triplets.

    Args:
        embeddings: float32 [n, dimension], of the items of `data`.
        data: of a part; pairs that are all different give no figure.
        metric: under which they are compared.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    check_vectors(embeddings, metric)
    kind = kind_of_judgements(data)
    found: dict[str, float]
    if isinstance(data, TripletData):
        near, far = sides(embeddings, data, metric)
        found = {
            "right_order": float(np.mean(near < far)),
            "equal_error_rate": equal_error_rate(near, far),
        }
        counts = {"triplets": len(data), "items": len(data.names)}
        return JudgedFigures(metric.value, counts, found)
    counts = {"pairs": len(data), "items": len(data.names)}
    if kind == "same":
        found = {"recall_at_1": float(partners_found(embeddings, data, metric).mean())}
        return JudgedFigures(metric.value, counts, found)
    distances = paired(embeddings[data.members[:, 0]], embeddings[data.members[:, 1]], metric)
    if kind == "scores":
        # A twin that gives all pairs one distance ranks nothing.
        ranked = np.ptp(distances) > 0 and np.ptp(data.targets) > 0
        scores = data.targets.astype(np.float64)
        found = {"spearman": spearman(-distances, scores) if ranked else 0.0}
        return JudgedFigures(metric.value, counts, found)
    same = data.targets == 1.0
    counts |= {"genuine_pairs": int(same.sum()), "impostor_pairs": int((~same).sum())}
    if not same.any():
        return JudgedFigures(metric.value, counts, {})
    found = {
        "equal_error_rate": equal_error_rate(distances[same], distances[~same]),
        "average_precision": average_precision(distances, same),
    }
    return JudgedFigures(metric.value, counts, found)


def average_precision(distances: FloatArray, same: NDArray[np.bool_]) -> float:
    """Return the precision over all thresholds, weighted by the recall that each one adds.

    Args:
        distances: float64 [pairs]; equal ones stand at one threshold.
        same: bool [pairs], one of them at least.
    """
    place = np.unique(distances, return_inverse=True)[1]
    hits = np.bincount(place, weights=same)
    precision = np.cumsum(hits) / np.cumsum(np.bincount(place))
    return float((hits * precision).sum() / hits.sum())


def sides(
    embeddings: Embeddings, data: TripletData, metric: Metric
) -> tuple[FloatArray, FloatArray]:
    """Return d(anchor, positive) and d(anchor, negative): float64 [triplets] each.

    A triplet is in the right order where the first is smaller; equal ones are not.
    """
    anchor, positive, negative = (embeddings[ends] for ends in data.members.T)
    return paired(anchor, positive, metric), paired(anchor, negative, metric)


def partners_found(embeddings: Embeddings, data: PairData, metric: Metric) -> NDArray[np.bool_]:
    """Tell of which pairs the nearest of all second items is a partner of the first: [pairs].

    Args:
        embeddings: float32 [n, dimension], of the items of `data`.
        data: pairs that are all the same. Where a first item stands in several, any partner will
            do; an item is none of its own.
        metric: under which they are compared.
    """
    firsts, seconds = data.members.T
    candidates = np.unique(seconds)
    partners = set(map(tuple, data.members.tolist()))
    found = np.zeros(len(firsts), dtype=np.bool_)
    step = max(1, _BLOCK // len(candidates))
    for start in range(0, len(firsts), step):
        rows = firsts[start : start + step]
        distances = pairwise(embeddings[rows], embeddings[candidates], metric)
        distances[candidates == rows[:, None]] = np.inf
        nearest = candidates[distances.argmin(axis=1)]
        pairs = zip(rows.tolist(), nearest.tolist(), strict=True)
        found[start : start + step] = [pair in partners for pair in pairs]
    return found


def judged_distances(
    distances: FloatArray, members: IntArray, targets: FloatArray, components: IntArray
) -> PairDistances:
    """Part the distances of judged pairs, [pairs], by their targets, which are 0 or 1."""
    same = targets == 1.0
    joined = components[members]
    return PairDistances(distances[same], joined[same, 0], distances[~same], joined[~same])
