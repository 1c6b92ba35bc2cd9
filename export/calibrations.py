"""From embeddings of held-out items to all the calibrations that a manifest stores.

In: embeddings with labels, or embeddings of labelled pairs. Out: one `Calibration` per dimension
(the full one and each truncation) and aggregation (single items, and the nearest of several) that
the evidence carries. What it does not carry is left out, so that nobody decides by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import IntArray, PairDistances, calibrate, pair_distances
from twinserve.distance import (
    Embeddings,
    FloatArray,
    Metric,
    check_vectors,
    paired,
    pairwise,
    truncated,
)
from twinserve.errors import DataError
from twinserve.manifest import Calibration

# Subjects of so many items are calibrated; Verify takes the next larger size for any other.
SUBJECT_SIZES = (2, 3, 5, 10)
# Fewer classes than this that could stand as a subject say nothing of subjects in general.
MIN_SUBJECTS = 10
# Pairs grow with the square of the items: 4,000 make eight million, which take a core some twenty
# seconds per dimension, and 0.8 GB.
MAX_ITEMS = 4000
DEFAULT_FAR = 0.01


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """Pairs of embeddings that somebody judged."""

    first: Embeddings  # float32 [n, dimension]
    second: Embeddings  # float32 [n, dimension]
    same: NDArray[np.bool_]  # [n]
    vertices: IntArray  # [n, 2], what the bounds draw anew; see `export.dependence`


def calibrations_for(
    embeddings: Embeddings,
    labels: IntArray,
    *,
    metric: Metric,
    dimension: int,
    truncations: Sequence[int] = (),
    precision: str,
    data_digest: str = "",
    evidence: str = "run",
    default_far: float = DEFAULT_FAR,
) -> tuple[Calibration, ...]:
    """Calibrate every dimension and aggregation on labelled embeddings.

    The cost grows with the square of the items: of more than `MAX_ITEMS` take `drawn_items`.

    Args:
        embeddings: float32 [n, dimension], of classes that never shaped the weights.
        labels: int64 [n].
        metric: of the twin.
        dimension: the full one.
        truncations: shorter ones that the twin was trained for.
        precision: of the graph that made the embeddings.
        data_digest: of the labelled data.
        evidence: run or labels, as the manifest says it.
        default_far: used when a request has no rule.

    Returns:
        Per dimension, falling, `item` first and then nearest_of_N by N.

    Raises:
        DataError: no genuine pair, only one class, or too few impostor pairs for any rate.
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    labels = np.asarray(labels, dtype=np.int64)
    facts: dict[str, Any] = {
        "precision": precision,
        "metric": metric,
        "default_far": default_far,
        "data_digest": data_digest,
        "evidence": evidence,
    }
    found = []
    for length in _dimensions(dimension, truncations):
        cut = truncated(embeddings, length)  # [n, length]
        found.append(calibrate(pair_distances(cut, labels, metric), dimension=length, **facts))
        for name, distances in _nearest(cut, labels, metric):
            try:
                found.append(calibrate(distances, dimension=length, aggregation=name, **facts))
            except DataError:  # too little evidence: Verify falls back to single items
                continue
    return tuple(found)


def calibrations_of_pairs(
    pairs: JudgedPairs,
    *,
    metric: Metric,
    dimension: int,
    truncations: Sequence[int] = (),
    precision: str,
    data_digest: str = "",
    default_far: float = DEFAULT_FAR,
) -> tuple[Calibration, ...]:
    """Calibrate every dimension on judged pairs; pairs say nothing of subjects of several items.

    The arguments besides the pairs are those of `calibrations_for`.

    Returns:
        Per dimension, falling.

    Raises:
        DataError: no genuine pair, no impostor pair, or too few of these for any rate.
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    check_kinds(pairs.same)
    found = []
    for length in _dimensions(dimension, truncations):
        cut = replace(
            pairs, first=truncated(pairs.first, length), second=truncated(pairs.second, length)
        )
        measured = judged_distances(cut, metric)
        entry = calibrate(
            measured,
            precision=precision,
            dimension=length,
            metric=metric,
            default_far=default_far,
            data_digest=data_digest,
            evidence="pairs",
        )
        found.append(entry)
    return tuple(found)


def judged_distances(pairs: JudgedPairs, metric: Metric) -> PairDistances:
    """Measure judged pairs, genuine and impostor apart.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    check_vectors(pairs.first, metric)
    check_vectors(pairs.second, metric)
    distances = paired(pairs.first, pairs.second, metric)
    return PairDistances(
        genuine=distances[pairs.same],
        genuine_class=pairs.vertices[pairs.same, 0],
        impostor=distances[~pairs.same],
        impostor_classes=pairs.vertices[~pairs.same],
    )


def check_kinds(same: NDArray[np.bool_]) -> None:
    """Refuse pairs that are all of one kind.

    Raises:
        DataError: no genuine pair, or no impostor pair.
    """
    if same.all() or not same.any():
        raise DataError(
            f"all {len(same)} pairs are {'the same' if same.all() else 'different'}, so there is "
            f"no {'impostor' if same.all() else 'genuine'} pair; calibration needs both kinds"
        )


def drawn_items(labels: IntArray, most: int = MAX_ITEMS) -> IntArray:
    """Choose at most `most` items, the same ones every time, so that small classes stay whole.

    The bounds rest on the number of classes, and a class's hundredth item adds less than another
    class's second: items are taken in turns, one per class, in a seeded order.

    Args:
        labels: int64 [n].
        most: items to keep.

    Returns:
        int64 [min(n, most)], rising positions.
    """
    labels = np.asarray(labels, dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    # The turn of an item is the number of items of its class before it in the seeded order.
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    turns = np.empty(len(labels), dtype=np.int64)
    turns[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(order[np.argsort(turns[order], kind="stable")][:most])


def nearest_of(
    distances: FloatArray, labels: IntArray, size: int, seed: int = 0
) -> PairDistances | None:
    """Measure probes against subjects of `size` items, by the nearest of these.

    A class is cut at random into subjects of `size` items, no item in two of them, and every item
    of another class probes each. A genuine probe meets subjects made of its class's other items.
    So each distance is of the kind that Verify decides on, and there are 1 / size as many as there
    are pairs of items.

    Args:
        distances: float64 [n, n], between all items.
        labels: int64 [n].
        size: items of a subject.
        seed: of the cuts.

    Returns:
        The distances with the classes that each joins, or None where fewer than `MIN_SUBJECTS`
        classes have `size` + 1 items.
    """
    generator = np.random.default_rng([seed, size])
    genuine, genuine_class, impostor, joined = [], [], [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        strangers = np.flatnonzero(labels != label)
        subjects = members[: len(members) // size * size].reshape(-1, size)
        if len(subjects):
            nearest = distances[strangers[:, None, None], subjects].min(axis=2)
            impostor.append(nearest.ravel())  # [strangers * subjects]
            pair = np.stack([labels[strangers], np.full(len(strangers), label)], axis=1)
            joined.append(np.repeat(pair, len(subjects), axis=0))
        others = (len(members) - 1) // size
        if others:
            # The items after the probe, in a circle, are its class's others in a random order.
            turns = np.arange(len(members))[:, None] + 1 + np.arange(others * size)
            met = members[turns % len(members)].reshape(len(members), others, size)
            nearest = distances[members[:, None, None], met].min(axis=2)
            genuine.append(nearest.ravel())  # [members * others]
            genuine_class.append(np.full(nearest.size, label))
    if len(genuine) < MIN_SUBJECTS:
        return None
    return PairDistances(
        genuine=np.concatenate(genuine),
        genuine_class=np.concatenate(genuine_class),
        impostor=np.concatenate(impostor),
        impostor_classes=np.concatenate(joined),
    )


def _nearest(
    embeddings: Embeddings, labels: IntArray, metric: Metric
) -> Iterator[tuple[str, PairDistances]]:
    distances = pairwise(embeddings, embeddings, metric)
    for size in SUBJECT_SIZES:
        measured = nearest_of(distances, labels, size)
        if measured is not None:
            yield f"nearest_of_{size}", measured


def _dimensions(full: int, truncations: Sequence[int]) -> list[int]:
    return sorted({full, *truncations}, reverse=True)
