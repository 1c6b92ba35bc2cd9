"""The hardest held-out pairs: genuine ones far apart, impostor ones close together.

In: embeddings and labels, or judged pairs. Out: pairs of items. Of classes at most one pair is
taken of a class, or of two classes: ten confusions of i with l would teach no more than one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinserve.distance import Embeddings, FloatArray, Metric, paired, pairwise
from twinserve.train.correlation import average_ranks
from twinserve.train.evaluate import IntArray

# Distances of a block of items to all: 32 MiB of float64.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class HardPair:
    """Two items, by index, and their distance."""

    first: int
    second: int
    distance: float


def hardest(
    embeddings: Embeddings, labels: IntArray, metric: Metric, count: int
) -> tuple[tuple[HardPair, ...], tuple[HardPair, ...]]:
    """Return the farthest genuine and the nearest impostor pairs, the hardest first.

    Args:
        embeddings: float32 [n, dimension].
        labels: int64 [n], the class of each.
        metric: under which they are compared.
        count: how many of each; there are fewer where there are fewer classes.
    """
    classes, place = np.unique(labels, return_inverse=True)
    size, kinds = len(labels), len(classes)
    genuine: dict[int, tuple[float, int, int]] = {}
    impostor: dict[int, tuple[float, int, int]] = {}
    step = max(1, _BLOCK // max(size, 1))
    for start in range(0, size, step):
        rows = np.arange(start, min(start + step, size))
        distances = pairwise(embeddings[rows], embeddings, metric)
        later = np.arange(size) > rows[:, None]  # each pair once
        same = place[rows][:, None] == place
        for wanted, sign, found in ((same & later, -1.0, genuine), (~same & later, 1.0, impostor)):
            row, column = np.nonzero(wanted)
            # Enough that some classes are left when those of the nearest are used up.
            keys = sign * distances[row, column]
            nearest = _smallest(keys, 100 * count)
            for index in nearest.tolist():
                first, second = int(rows[row[index]]), int(column[index])
                low, high = sorted((int(place[first]), int(place[second])))
                entry = (float(keys[index]), first, second)
                found[low * kinds + high] = min(found.get(low * kinds + high, entry), entry)
    return tuple(  # type: ignore[return-value]
        tuple(
            _measured(embeddings, first, second, metric)
            for _, first, second in sorted(found.values())[:count]
        )
        for found in (genuine, impostor)
    )


def hardest_judged(
    distances: FloatArray, targets: FloatArray, count: int
) -> tuple[IntArray, IntArray]:
    """Return which judged pairs are too far and too near for their targets, the worst first.

    A pair is as hard as its closeness ranks away from its target; it is too far or too near, or
    neither.

    Args:
        distances: float64 [pairs].
        targets: [pairs], from 0 (different, never too far) to 1 (the same, never too near).
        count: how many of each at most.
    """
    targets = np.asarray(targets, np.float64)
    behind = average_ranks(targets) - average_ranks(-distances)
    too_far = np.flatnonzero((behind > 0) & (targets > 0))
    too_near = np.flatnonzero((behind < 0) & (targets < 1))
    return (
        too_far[np.argsort(-behind[too_far], kind="stable")[:count]],
        too_near[np.argsort(behind[too_near], kind="stable")[:count]],
    )


def _smallest(keys: FloatArray, count: int) -> IntArray:
    if len(keys) <= count:
        return np.arange(len(keys))
    return np.argpartition(keys, count)[:count]


def _measured(embeddings: Embeddings, first: int, second: int, metric: Metric) -> HardPair:
    return HardPair(first, second, float(paired(embeddings[first], embeddings[second], metric)))
