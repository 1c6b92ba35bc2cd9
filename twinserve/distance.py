"""The two metrics, in one place for training, calibration and serving.

`euclidean` is d = ||a - b||, not squared; `cosine` is d = 1 - a.b / (||a|| ||b||). Smaller is
closer. Sums run in float64, so that a distance and a threshold compared with it agree wherever
they were computed.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import NotFinite, ZeroVector

FloatArray = NDArray[np.float64]
Embeddings = NDArray[np.float32]


class Metric(enum.StrEnum):
    """How two embeddings are compared."""

    EUCLIDEAN = "euclidean"
    COSINE = "cosine"


def check_vectors(embeddings: Embeddings, metric: Metric) -> None:
    """Refuse what no metric can compare.

    Args:
        embeddings: float32 [batch, dimension].
        metric: under which they are to be compared.

    Raises:
        NotFinite: a NaN or an infinity.
        ZeroVector: a row of length zero under cosine, whose distance to anything is undefined.
    """
    if are_sound(embeddings, metric):
        return
    finite = np.isfinite(embeddings).all(axis=-1)
    if not finite.all():
        row = int(np.flatnonzero(~np.atleast_1d(finite))[0])
        raise NotFinite(
            f"embedding {row} holds a NaN or an infinity; send finite numbers only",
            metadata={"row": str(row)},
        )
    if metric is Metric.COSINE:
        zero = ~np.any(embeddings, axis=-1)
        if np.any(zero):
            row = int(np.flatnonzero(np.atleast_1d(zero))[0])
            raise ZeroVector(
                f"embedding {row} has length zero, which has no direction under cosine; "
                "send a non-zero vector, or use a gallery with the euclidean metric",
                metadata={"row": str(row)},
            )


def are_sound(embeddings: Embeddings, metric: Metric) -> bool:
    """Say in one sum of squares what is true of nearly all vectors; False where it cannot tell.

    A NaN or an infinity makes the sum one; so may very large or very small numbers, for which
    `check_vectors` looks at each.

    Args:
        embeddings: float32 [batch, dimension] or [dimension].
        metric: under which they are to be compared.
    """
    if embeddings.size == embeddings.shape[-1]:
        flat = embeddings.reshape(-1)
        # Not `dot`, which warns of what it meets.
        square = float(np.einsum("i,i->", flat, flat))
        return (square > 0.0 or metric is Metric.EUCLIDEAN) and square < float("inf")
    squares = np.einsum("...i,...i->...", embeddings, embeddings)
    if not squares.size or not squares.max() < float("inf"):  # of a NaN neither holds
        return False
    return metric is Metric.EUCLIDEAN or bool(squares.min() > 0.0)


def paired(first: Embeddings, second: Embeddings, metric: Metric) -> FloatArray:
    """Distances of corresponding rows: float32 [n, d] x [n, d] -> float64 [n].

    Symmetric to the last bit: paired(a, b) == paired(b, a).
    """
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    if metric is Metric.EUCLIDEAN:
        return np.asarray(np.sqrt(np.sum((a - b) ** 2, axis=-1)))
    # cos is computed on unit vectors as 1 - ||u - v||^2 / 2: exact zero for identical inputs,
    # where 1 - u.v would leave some 1e-16 of either sign.
    difference = unit(a) - unit(b)
    return np.asarray(np.minimum(np.sum(difference**2, axis=-1) / 2.0, 2.0))


def prepared(vectors: Embeddings, metric: Metric) -> FloatArray:
    """What `paired_with` compares with: float32 [n, d] -> float64 [n, d]."""
    wide = vectors.astype(np.float64)
    return unit(wide) if metric is Metric.COSINE else wide


def paired_with(
    first: Embeddings, second: FloatArray, which: NDArray[np.int64], metric: Metric
) -> FloatArray:
    """Distances of rows to chosen ones: float32 [n, d] x [m, d], [n] below m -> float64 [n].

    To the last bit those of `paired(first, s[which])`, with less work for each of s, of which
    `second` is what `prepared` gives.
    """
    a = first.astype(np.float64)  # a copy, to be written over
    if metric is Metric.EUCLIDEAN:
        a -= second[which]
        return np.asarray(np.sqrt(np.sum(a**2, axis=-1)))
    difference = unit(a) - second[which]
    return np.asarray(np.minimum(np.sum(difference**2, axis=-1) / 2.0, 2.0))


def pairwise(first: Embeddings, second: Embeddings, metric: Metric) -> FloatArray:
    """All distances: float32 [n, d] x [m, d] -> float64 [n, m].

    Uses the expanded form (one matrix product), so that a zero distance may come out as some
    1e-8; where equality with a threshold matters, rescore with `paired`.
    """
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    if metric is Metric.COSINE:
        return np.clip(1.0 - unit(a) @ unit(b).T, 0.0, 2.0)
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def unit(vectors: FloatArray) -> FloatArray:
    """Rows scaled to length one; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0.0, 1.0, norms)


def truncated(embeddings: Embeddings, dimension: int) -> Embeddings:
    """Keep the first coordinates and scale to length one: float32 [n, d] -> [n, dimension].

    Embeddings of the full dimension come back as they are: a truncation is a space of its own, and
    is normalised whether or not the full space is.
    """
    if dimension == embeddings.shape[-1]:
        return embeddings
    return unit(embeddings[..., :dimension].astype(np.float64)).astype(np.float32)
