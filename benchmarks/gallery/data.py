"""The embeddings that are searched, the probes, and the exact answers that recall is counted by.

Clustered ones are drawn here, real ones are read from a .npy file (see `embed`). Both are
normalised and compared by cosine. Everything is kept as .npy, so that all processes map the same
pages.

Clustered: a seeded mixture of Gaussians on the sphere, one centre for every hundred items, centres
standard normal in every coordinate and items around them with 0.7 times that spread; probes are
drawn in the same way around the same centres, and are not items.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

K = 10
PROBES = 1_000
SEED = 29
PER_CENTRE = 100
SPREAD = 0.7  # of the items around a centre, of the centres' own
BLOCK = 65_536  # items compared at a time for the exact answers

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Data:
    """Items and probes, float32 [n, d] and [p, d] of length 1, and each probe's true neighbours.

    Arrays are mapped from files of one folder: `items.npy`, `probes.npy`, `truth.npy` (int64
    [p, 10], nearest first).
    """

    kind: str
    folder: Path

    @property
    def items(self) -> Vectors:
        """float32 [n, d], mapped."""
        items: Vectors = np.load(self.folder / "items.npy", mmap_mode="r")
        return items

    @property
    def probes(self) -> Vectors:
        """float32 [p, d]."""
        probes: Vectors = np.load(self.folder / "probes.npy")
        return probes

    @property
    def truth(self) -> Ids:
        """int64 [p, 10]."""
        truth: Ids = np.load(self.folder / "truth.npy")
        return truth

    @property
    def count(self) -> int:
        """Number of items."""
        return len(self.items)

    @property
    def dimension(self) -> int:
        """Of each embedding."""
        return int(self.items.shape[1])

    def __str__(self) -> str:
        return f"{self.kind} {short(self.count)} x {self.dimension}"


def short(count: int) -> str:
    """Write a number as people say it: 20000 as 20k, 1000000 as 1M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return str(count)


def clustered(folder: Path, count: int, dimension: int, probes: int = PROBES) -> Data:
    """Draw the mixture of Gaussians; what is there already is taken as it is."""
    place = folder / f"clustered-{count}-{dimension}-{probes}-{SPREAD:g}"
    if not (place / "truth.npy").is_file():
        centres = max(10, count // PER_CENTRE)
        generator = np.random.default_rng(SEED)
        middle = generator.standard_normal((centres, dimension), dtype=np.float32)
        drawn = []
        for size in (count, probes):
            around = middle[generator.integers(0, centres, size)]
            drawn.append(
                around + SPREAD * generator.standard_normal(around.shape, dtype=np.float32)
            )
        _keep(place, *drawn)
    return Data("clustered", place)


def real(folder: Path, path: Path, count: int | None = None, probes: int = PROBES) -> Data:
    """Take rows of a file of embeddings, float32 [n, d]: probes first, in a seeded order.

    Args:
        folder: for what is made of it.
        path: of the .npy file, whose stem names the data.
        count: of the items; None or too many takes all that are left.
        probes: of them, at most a tenth of the rows.
    """
    given = np.load(path, mmap_mode="r")
    probes = min(probes, len(given) // 10)
    count = min(count or len(given), len(given) - probes)
    mark = hashlib.sha256(f"{path.resolve()} {given.shape}".encode()).hexdigest()[:8]
    place = folder / f"{path.stem}-{count}-{given.shape[1]}-{probes}-{mark}"
    if not (place / "truth.npy").is_file():
        order = np.random.default_rng(SEED).permutation(len(given))
        _keep(place, given[order[probes : probes + count]], given[order[:probes]])
    return Data(path.stem, place)


def nearest(items: Vectors, probes: Vectors, k: int = K) -> Ids:
    """Return the k items of the largest inner product with each probe, exactly: int64 [p, k]."""
    best = np.empty((len(probes), 0), np.float32)
    ids = np.empty((len(probes), 0), np.int64)
    for start in range(0, len(items), BLOCK):
        near = probes @ np.asarray(items[start : start + BLOCK]).T
        take = min(k, near.shape[1])
        found = np.argpartition(-near, take - 1, axis=1)[:, :take]
        best = np.hstack([best, np.take_along_axis(near, found, axis=1)])
        ids = np.hstack([ids, found + start])
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, ids = np.take_along_axis(best, order, 1), np.take_along_axis(ids, order, 1)
    return ids


def recall(found: Ids, truth: Ids) -> float:
    """Return the share of the true neighbours that were found, over all probes.

    Args:
        found: int64 [p, k]; -1 where fewer were found.
        truth: int64 [p, k].
    """
    same = sum(
        len(set(some.tolist()) & set(true.tolist()))
        for some, true in zip(found, truth, strict=True)
    )
    return same / truth.size


def _keep(place: Path, items: Vectors, probes: Vectors) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for rows in (items, probes):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(place / "items.npy", items.astype(np.float32, copy=False))
    np.save(place / "probes.npy", probes.astype(np.float32, copy=False))
    # Last, since it says that the others are whole.
    np.save(place / "truth.npy", nearest(items, probes))
