"""Who is this closest to: ranking quality over held-out items, each a query among all the others.

In: embeddings and labels. Out: recall@k, R-precision and MAP@R (Musgrave, Belongie and Lim, "A
Metric Learning Reality Check", 2020). The query is left out of its own gallery by its index, never
by its distance. Distances are taken a block of queries at a time, so that memory grows with the
items and not with their square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, check_vectors, paired, pairwise
from twinserve.train.intervals import RESAMPLES, Estimate, IntArray, mean_over_classes

# Of more items so many are queries, drawn by seed; the gallery is always of all.
MOST_QUERIES = 10_000
RANKS = (1, 5, 10)
# Distances of a block of queries to all items: 32 MiB of float64.
_BLOCK = 1 << 22
# `pairwise` tells near ones apart to some 1e-8 of their length alone; so many beyond the wanted are
# measured again one by one, and ranked by that.
_SLACK = 16


@dataclass(frozen=True)
class RecallAt:
    """Share of queries with an item of their class among the nearest k."""

    k: int
    recall: Estimate


@dataclass(frozen=True)
class Retrieval:
    """How well the nearest of an item are of its class."""

    queries: int  # items of classes with two items at least
    gallery: int
    recalls: tuple[RecallAt, ...]
    r_precision: Estimate
    mean_average_precision_at_r: Estimate

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Retrieval:
        """Take back what `dataclasses.asdict` gave, or what JSON made of it."""
        return Retrieval(
            queries=values["queries"],
            gallery=values["gallery"],
            recalls=tuple(
                RecallAt(one["k"], Estimate.from_dict(one["recall"])) for one in values["recalls"]
            ),
            r_precision=Estimate.from_dict(values["r_precision"]),
            mean_average_precision_at_r=Estimate.from_dict(values["mean_average_precision_at_r"]),
        )


@dataclass(frozen=True, eq=False)
class Ranked:
    """What each query found."""

    queries: IntArray  # [q], index of each
    found: FloatArray  # [q, ranks], 1 where an item of its class is among the nearest k
    r_precision: FloatArray  # [q]
    average_precision: FloatArray  # [q], at R


def retrieval(
    embeddings: Embeddings,
    labels: IntArray,
    metric: Metric,
    *,
    ranks: Sequence[int] = RANKS,
    most_queries: int = MOST_QUERIES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Retrieval | None:
    """Rank all items by their distance to each query; None where no class has two items.

    Args:
        embeddings: float32 [n, dimension].
        labels: int64 [n], the class of each.
        metric: under which they are compared.
        ranks: the k of recall@k.
        most_queries: of more, so many are drawn.
        resamples: draws of the queries' classes behind the intervals.
        seed: of the draws.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    ranked = rank(embeddings, labels, metric, ranks=ranks, most_queries=most_queries, seed=seed)
    if ranked is None:
        return None

    def estimate(values: FloatArray) -> Estimate:
        return mean_over_classes(values, labels[ranked.queries], resamples, seed)

    return Retrieval(
        queries=len(ranked.queries),
        gallery=len(labels),
        recalls=tuple(
            RecallAt(k, estimate(ranked.found[:, column])) for column, k in enumerate(ranks)
        ),
        r_precision=estimate(ranked.r_precision),
        mean_average_precision_at_r=estimate(ranked.average_precision),
    )


def rank(
    embeddings: Embeddings,
    labels: IntArray,
    metric: Metric,
    *,
    ranks: Sequence[int] = RANKS,
    most_queries: int = MOST_QUERIES,
    seed: int = 0,
) -> Ranked | None:
    """Score the ranking of each query; see `retrieval`, whose figures are means over these.

    Raises:
        NotFinite, ZeroVector: an embedding that no metric can compare.
    """
    check_vectors(embeddings, metric)
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    others = count[place] - 1  # R of each item
    queries = np.flatnonzero(others > 0)
    if not len(queries):
        return None
    if len(queries) > most_queries:
        drawn = np.random.default_rng(seed).permutation(len(queries))[:most_queries]
        queries = queries[np.sort(drawn)]
    # A rank beyond all the other items is as good as the last of them.
    deepest = min(max(*ranks, int(others[queries].max())), len(labels) - 1)
    scores = [
        ranking_scores(labels[nearest] == labels[block, None], others[block], ranks)
        for block, nearest in neighbours(embeddings, metric, queries, deepest)
    ]
    return Ranked(queries, *(np.concatenate(part) for part in zip(*scores, strict=True)))


def ranking_scores(
    right: NDArray[np.bool_], r: IntArray, ranks: Sequence[int]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Score rankings of the nearest items.

    Args:
        right: [queries, depth], whether the item at each rank is of the query's class; as deep as
            the largest R, or as there are items.
        r: int64 [queries], how many items of its class there are to find.
        ranks: the k of recall@k.

    Returns:
        recall@k [queries, ranks], R-precision [queries], and average precision at R [queries]: the
        mean over the first R ranks of the precision up to each right one.
    """
    depth = right.shape[1]
    found = np.stack([right[:, :k].any(axis=1) for k in ranks], axis=1).astype(np.float64)
    within = right & (np.arange(depth) < r[:, None])
    precision = np.cumsum(within, axis=1) / np.arange(1, depth + 1)
    return found, within.sum(axis=1) / r, (precision * within).sum(axis=1) / r


def neighbours(
    embeddings: Embeddings, metric: Metric, queries: IntArray, count: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield some queries and the nearest items of each without itself, the nearest first.

    Of equally near items the one of the smaller index comes first.

    Args:
        embeddings: float32 [n, dimension].
        metric: under which they are compared.
        queries: int64 [q], index of each.
        count: how many are wanted, below n.

    Yields:
        (int64 [block], the queries; int64 [block, count], their nearest).
    """
    size = len(embeddings)
    kept = min(count + _SLACK, size - 1)
    # The rows measured again are as wide as the embeddings.
    width = max(size, kept * embeddings.shape[1])
    for start in range(0, len(queries), max(1, _BLOCK // width)):
        block = queries[start : start + max(1, _BLOCK // width)]
        distances = pairwise(embeddings[block], embeddings, metric)
        distances[np.arange(len(block)), block] = np.inf
        nearest = np.argpartition(distances, kept - 1, axis=1)[:, :kept]
        nearest = np.sort(nearest, axis=1)  # so that a stable sort leaves equal ones in order
        exact = paired(embeddings[block][:, None, :], embeddings[nearest], metric)
        order = np.argsort(exact, axis=1, kind="stable")[:, :count]
        yield block, np.take_along_axis(nearest, order, axis=1)
