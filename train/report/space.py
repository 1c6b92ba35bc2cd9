"""A map of the space: some held-out classes in the two directions in which they spread most.

In: embeddings. Out: their first two principal components, by a singular value decomposition. A map
in two dimensions shows less than the space holds: classes that overlap here may lie apart there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinserve.distance import Embeddings, FloatArray, Metric, unit
from twinserve.train.evaluate import IntArray


@dataclass(frozen=True)
class SpaceMap:
    """Items on a plane."""

    items: IntArray  # [n], index of each
    points: FloatArray  # [n, 2]
    explained: float  # share of the items' variance that the plane shows


def space_map(
    embeddings: Embeddings,
    labels: IntArray,
    metric: Metric,
    *,
    classes: int = 12,
    items: int = 300,
    seed: int = 0,
) -> SpaceMap:
    """Draw some classes and items, and lay them on a plane.

    Args:
        embeddings: float32 [n, dimension].
        labels: int64 [n], the class of each.
        metric: under cosine, directions are laid out rather than vectors.
        classes: how many at most.
        items: how many at most, as many of each class as there are or fit.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    known = np.unique(labels)
    chosen = np.sort(generator.permutation(known)[:classes])
    each = max(1, items // max(len(chosen), 1))
    drawn = [
        np.sort(generator.permutation(np.flatnonzero(labels == label))[:each]) for label in chosen
    ]
    shown = np.concatenate(drawn)
    vectors = embeddings[shown].astype(np.float64)
    if metric is Metric.COSINE:
        vectors = unit(vectors)
    centred = vectors - vectors.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is arbitrary; fixed, so that equal runs give equal maps.
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.sign(directions[np.arange(len(directions)), largest])[:, None]
    points = centred @ directions[:2].T
    if points.shape[1] < 2:  # one item, or vectors of one number
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    total = float((spread**2).sum())
    return SpaceMap(shown, points, float((spread[:2] ** 2).sum() / total) if total > 0 else 1.0)
