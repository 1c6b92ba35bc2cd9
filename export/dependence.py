"""Which judged pairs depend on each other, so that bounds draw anew what is independent.

In: pairs of items, with their subjects where these are known. Out: the two vertices that each pair
joins. A bootstrap draws vertices again: a pair of (a, b) counts as often as a was drawn times b was
drawn, and a pair within one vertex as often as that was drawn.

Two pairs that share an item, or a subject, err together. Three groupings respect that, from coarse
to fine:

- Connected components, where each pair links what it joins. Pairs of different components share
  nothing, so that whole components may be drawn as they are: exact where there are many.
- Subjects: those given, or else items joined by pairs judged the same. A pair errs with each of
  its two subjects, as in labelled data. Items alone would forget that two photographs of a person
  are alike; drawing both ends of pairs that share nothing would count chance up to three times
  (Owen, "The pigeonhole bootstrap", 2007: never too little).
- Items, where chains of "the same" tie nearly all of them into a few subjects.

The coarsest with enough vertices is taken; one with a few, or with one that holds nearly all pairs,
would give bounds that are themselves left to chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

ENOUGH_VERTICES = 30


def vertices(
    first: IntArray,
    second: IntArray,
    same: NDArray[np.bool_],
    subjects: IntArray | None = None,
) -> IntArray:
    """Return what each pair joins in the grouping that its bounds rest on.

    Args:
        first: int64 [n], item at one end.
        second: int64 [n], item at the other end.
        same: bool [n], how the pair was judged.
        subjects: int64 [items], where they are known; items are then never drawn alone.

    Returns:
        int64 [n, 2].
    """
    ends = np.stack([first, second], axis=1)
    items = np.arange(1 + int(ends.max()))
    finest = items if subjects is None else subjects
    known = components(first[same], second[same], len(items)) if subjects is None else subjects
    whole = components(known[first], known[second], 1 + int(known.max()))[known]
    for grouping in (whole, known):
        if effective(grouping[ends[~same]]) >= ENOUGH_VERTICES:
            return np.asarray(grouping[ends])
    return np.asarray(finest[ends])


def effective(joined: IntArray) -> float:
    """Count vertices as if all stood in equally many pairs (Kish's effective size).

    Args:
        joined: int64 [n, 2], the vertices of each pair; one within a vertex counts for it twice.
    """
    if len(joined) == 0:
        return 0.0
    stands_in = np.bincount(joined.ravel()).astype(np.float64)
    return float(stands_in.sum() ** 2 / (stands_in**2).sum())


def components(first: IntArray, second: IntArray, count: int) -> IntArray:
    """Label the connected components of `count` vertices: int64 [count], numbered from 0."""
    root = list(range(count))

    def find(vertex: int) -> int:
        while root[vertex] != vertex:
            root[vertex] = root[root[vertex]]
            vertex = root[vertex]
        return vertex

    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        one, other = find(one), find(other)
        root[max(one, other)] = min(one, other)
    _, labels = np.unique([find(vertex) for vertex in range(count)], return_inverse=True)
    return np.asarray(labels, dtype=np.int64)
