"""Segments: vectors by label, scanned exactly or through an HNSW graph. No SQLite in here.

A sealed segment is never added to and never updated: a change is a new label in the growing
segment, a rebuild is a new segment, and a reader keeps what its view holds. So hnswlib's races
between adding and searching cannot occur. What crashes or misleads hnswlib (a wrong dimension, a
k above the count, a NaN, an index that was not initialised) is kept from it in `Graph`.

Within this module distances are in *ranking units*: squared euclidean, or 1 - cos.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import hnswlib
import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, prepared, unit
from twinserve.errors import InternalFault
from twinserve.server.gallery.types import HnswSettings

Indices = NDArray[np.int64]

BUILD_CHUNK = 2_000  # rows per add_items: the GIL is free within, and a build can be stopped
# Lengths outside this range overflow or vanish in float32 products; such vectors are compared in
# float64 and never enter a graph.
SAFE_LENGTHS = (1e-15, 1e15)


def _space(metric: Metric) -> str:
    # Cosine: normalised here in float64, since hnswlib's own norm vanishes for tiny vectors.
    return "l2" if metric is Metric.EUCLIDEAN else "ip"


def lengths_of(vectors: Embeddings) -> FloatArray:
    """Euclidean lengths in float64: [n, d] -> [n]."""
    lengths = np.empty(len(vectors), dtype=np.float64)
    for start in range(0, len(vectors), 256):  # a copy that stays in the cache
        wide = vectors[start : start + 256].astype(np.float64)
        lengths[start : start + 256] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return lengths


def safe(lengths: FloatArray, metric: Metric) -> bool:
    """Whether float32 arithmetic can rank vectors of these lengths."""
    if not len(lengths):
        return True
    low = metric is Metric.EUCLIDEAN or float(lengths.min()) >= SAFE_LENGTHS[0]
    return low and float(lengths.max()) <= SAFE_LENGTHS[1]


class Graph:
    """An hnswlib index over rows 0..n-1, built once, with guards before every call."""

    def __init__(self, dimension: int, metric: Metric, settings: HnswSettings) -> None:
        self._dimension = dimension
        self._metric = metric
        self._settings = settings
        self._index: hnswlib.Index | None = None
        self._count = 0
        self._largest = 0  # largest number of neighbours that can be asked for

    def build(self, vectors: Embeddings, threads: int, stop: Callable[[], bool]) -> bool:
        """Insert all rows; False if `stop` said so before the end."""
        if vectors.shape[1] != self._dimension:
            raise InternalFault("a vector of a wrong dimension reached the index")
        index = hnswlib.Index(space=_space(self._metric), dim=self._dimension)
        index.init_index(
            max_elements=len(vectors),
            M=self._settings.m,
            ef_construction=self._settings.ef_construction,
        )
        index.set_num_threads(threads)
        for start in range(0, len(vectors), BUILD_CHUNK):
            if stop():
                return False
            chunk = self._prepared(vectors[start : start + BUILD_CHUNK])
            if not np.isfinite(chunk).all():
                raise InternalFault("a vector that is not finite reached the index")
            index.add_items(chunk, np.arange(start, start + len(chunk)), num_threads=threads)
        # hnswlib searches with max(ef, k): ef is left at its least and never touched again, and
        # whoever wants a wider search asks for that many neighbours. Nothing to race about.
        index.set_ef(1)
        self._index, self._count, self._largest = index, len(vectors), len(vectors)
        return True

    @classmethod
    def load(
        cls, path: Path, count: int, dimension: int, metric: Metric, settings: HnswSettings
    ) -> Graph:
        """Read what `saving` wrote; the caller has verified the file, hnswlib believes anything.

        It holds the interpreter's lock all the while, so this is for the time before serving.

        Raises:
            InternalFault: hnswlib cannot read it, or it holds another number of vectors.
        """
        graph = cls(dimension, metric, settings)
        index = hnswlib.Index(space=_space(metric), dim=dimension)
        try:
            index.load_index(str(path))
        except RuntimeError as error:
            raise InternalFault(f"hnswlib cannot read {path.name}: {error}") from error
        if index.get_current_count() != count:
            raise InternalFault(
                f"{path.name} holds {index.get_current_count()} vectors, not {count}"
            )
        index.set_ef(1)  # as in `build`; hnswlib does not keep it
        graph._index, graph._count, graph._largest = index, count, count
        return graph

    def saving(self, path: Path) -> Callable[[], object]:
        """The call that writes the graph to a file, with no word of whether it could: compare
        `file_size`. It stops every thread of the process that it is made in.
        """
        if self._index is None:
            raise InternalFault("a graph that was not built cannot be saved")
        return functools.partial(self._index.save_index, str(path))

    @property
    def file_size(self) -> int:
        """Bytes that `saving` writes, if it can."""
        return 0 if self._index is None else int(self._index.index_file_size())

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about: the file's, and what hnswlib keeps beside it for each vector."""
        return self.file_size + 120 * self._count  # a mutex of 40, a label's entry of 60, levels

    def nearest(
        self, probes: Embeddings, wanted: int, threads: int = 1
    ) -> tuple[Indices, NDArray[np.float32]] | None:
        """Rows and ranking units of `wanted` neighbours per probe, or None if it cannot say.

        probes: float32 [n, dimension], of length one under cosine (`Probes.scaled`)
        -> ([n, wanted], [n, wanted]), nearest first.
        """
        if (
            self._index is None
            or probes.ndim != 2
            or probes.shape[1] != self._dimension
            or not 0 < wanted <= self._largest
            or not np.isfinite(probes).all()
        ):
            return None
        try:
            rows, units = self._index.knn_query(probes, k=wanted, num_threads=threads)
        except RuntimeError:
            # A graph with too few reachable nodes. hnswlib leaks its buffers on this path, so the
            # same question is not put to it again.
            self._largest = min(self._largest, wanted - 1)
            return None
        return rows.view(np.int64), units

    def _prepared(self, vectors: Embeddings) -> Embeddings:
        if self._metric is Metric.COSINE:
            vectors = unit(vectors.astype(np.float64)).astype(np.float32)
        return np.ascontiguousarray(vectors, dtype=np.float32)


Keys = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Segment:
    """Vectors with ascending labels. `graph` None: scanned exactly.

    The arrays may lie in a file that is mapped into memory (segment_files.py): `file` names it.
    """

    labels: Indices  # [n]
    keys: Keys  # [n] digests of the vectors' bytes
    vectors: Embeddings  # [n, d], as enrolled
    lengths: FloatArray  # [n]
    graph: Graph | None = None
    file: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """Lengths in float32, for ranking."""
        with np.errstate(over="ignore", under="ignore"):  # of dead vectors, whom nobody ranks
            return self.lengths.astype(np.float32)

    @cached_property
    def squares(self) -> NDArray[np.float32]:
        """Squared lengths in float32, for ranking."""
        with np.errstate(over="ignore", under="ignore"):
            return (self.lengths**2).astype(np.float32)

    def with_graph(self, graph: Graph) -> Segment:
        """This segment, searched through a graph from now on."""
        found = dataclasses.replace(self, graph=graph)
        if self.file:  # these are mapped like the others, and need not be worked out
            found.__dict__.update(scale=self.scale, squares=self.squares)
        return found

    def labels_at(self, local: Indices) -> Indices:
        """Labels by position."""
        return self.labels[local]

    def local(self, labels: Indices) -> Indices:
        """Positions of labels that this segment holds."""
        first = int(self.labels[0])
        if int(self.labels[-1]) - first + 1 == len(self.labels):
            return labels - first
        return np.searchsorted(self.labels, labels)


def stitched(
    segments: Sequence[Segment], labels: Indices, dimension: int
) -> tuple[Embeddings, FloatArray]:
    """Vectors [n, d] and lengths [n] of labels that the segments hold."""
    vectors = np.empty((len(labels), dimension), dtype=np.float32)
    lengths = np.empty(len(labels), dtype=np.float64)
    if not len(labels):
        return vectors, lengths
    if len(segments) == 1:
        local = segments[0].local(labels)
        return segments[0].vectors[local], segments[0].lengths[local]
    starts = np.array([segment.labels[0] for segment in segments])
    owner = np.searchsorted(starts, labels, side="right") - 1
    for number in np.unique(owner):
        mine = owner == number
        segment = segments[number]
        local = segment.local(labels[mine])
        vectors[mine] = segment.vectors[local]
        lengths[mine] = segment.lengths[local]
    return vectors, lengths


def vectors_at(segments: Sequence[Segment], labels: Indices, dimension: int) -> Embeddings:
    """Vectors [n, d] of labels that the segments hold."""
    if len(segments) == 1 and len(labels):
        return segments[0].vectors[segments[0].local(labels)]
    return stitched(segments, labels, dimension)[0]


def keys_of(segments: Sequence[Segment], labels: Indices) -> Keys:
    """Keys [n] of ascending labels that the segments hold, which ascend too."""
    parts = []
    for segment in segments:
        first, last = np.searchsorted(labels, [segment.labels[0], segment.labels[-1] + 1])
        parts.append(segment.keys[segment.local(labels[first:last])])
    return np.concatenate(parts)


class Probes:
    """Probes made ready for ranking.

    Args:
        vectors: float32 [n, d], as given.
        metric: that they are compared by.
    """

    def __init__(self, vectors: Embeddings, metric: Metric) -> None:
        self.vectors = vectors
        self.metric = metric
        self.lengths = lengths_of(vectors)  # [n]

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def precise(self) -> FloatArray:
        """In float64, of length one under cosine: [n, d]."""
        return prepared(self.vectors, self.metric)

    @cached_property
    def scaled(self) -> Embeddings:
        """Of length one under cosine: float32 [n, d]."""
        return self.precise.astype(np.float32) if self.metric is Metric.COSINE else self.vectors

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The least and the greatest of the lengths; there must be some."""
        if len(self.lengths) == 1:
            length = float(self.lengths[0])
            return length, length
        return float(self.lengths.min()), float(self.lengths.max())

    @property
    def are_sound(self) -> bool:
        """Whether all can be compared: finite, and under cosine not of length zero."""
        if not len(self):
            return True
        least, greatest = self.extent
        # Of a NaN neither holds.
        return greatest < np.inf and (self.metric is Metric.EUCLIDEAN or least > 0.0)

    @property
    def are_safe(self) -> bool:
        """Whether float32 arithmetic can rank by them; see `safe`."""
        least, greatest = self.extent
        low = self.metric is Metric.EUCLIDEAN or least >= SAFE_LENGTHS[0]
        return low and greatest <= SAFE_LENGTHS[1]

    def some(self, which: Indices | slice) -> Probes:
        """Those at these places."""
        return Probes(self.vectors[which], self.metric)

    def units(self, segment: Segment, local: Indices | None = None) -> NDArray[np.float32]:
        """Ranking units in float32, [n, m], to a segment's vectors or to those at `local`.

        Those of dead vectors may be infinite or not a number; no row leads to them.
        """
        with np.errstate(all="ignore"):
            return self._units(segment, local)

    def _units(self, segment: Segment, local: Indices | None) -> NDArray[np.float32]:
        vectors, scale, squares = segment.vectors, segment.scale, segment.squares
        if local is not None:
            vectors, scale, squares = vectors[local], scale[local], squares[local]
        products: NDArray[np.float32] = self.scaled @ vectors.T
        if self.metric is Metric.COSINE:
            products /= scale
            return np.subtract(np.float32(1.0), products, out=products)
        products *= np.float32(-2.0)
        products += squares
        products += (self.lengths**2).astype(np.float32)[:, None]
        return products

    def error(self, longest: float) -> FloatArray:
        """[n] how far `units` can be off, against vectors of at most this length.

        The classic bound of a float32 dot product in any order of summation, (d + 16) 2^-24
        |a| |b|, doubled for what is added afterwards (Higham, Accuracy and Stability, 3.1).
        """
        bound = (self.vectors.shape[1] + 16) * 2.0**-23
        if self.metric is Metric.COSINE:
            return np.full(len(self.vectors), 2.0 * bound)
        return np.asarray(bound * (longest + self.lengths) ** 2)


class Growing:
    """The one segment that still takes vectors; only the writing thread appends."""

    def __init__(self, first_label: int, capacity: int, dimension: int) -> None:
        self.labels = np.arange(first_label, first_label + capacity, dtype=np.int64)
        self.keys: Keys = np.empty(capacity, dtype=np.uint64)
        self.vectors = np.empty((capacity, dimension), dtype=np.float32)
        self.lengths = np.empty(capacity, dtype=np.float64)
        self.count = 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        arrays = (self.labels, self.keys, self.vectors, self.lengths)
        return sum(array.nbytes for array in arrays)

    @property
    def room(self) -> int:
        """How many vectors still fit."""
        return len(self.labels) - self.count

    @property
    def next_label(self) -> int:
        """The label that the next vector gets."""
        return int(self.labels[0]) + self.count

    def append(self, vectors: Embeddings, keys: Keys) -> Indices:
        """Add vectors, at most `room`, behind every reader's count; return their labels."""
        end = self.count + len(vectors)
        self.keys[self.count : end] = keys
        self.vectors[self.count : end] = vectors
        self.lengths[self.count : end] = lengths_of(vectors)
        labels = self.labels[self.count : end]
        self.count = end
        return labels

    def segment(self) -> Segment:
        """What has been appended, as a segment that shares the memory."""
        end = self.count
        return Segment(self.labels[:end], self.keys[:end], self.vectors[:end], self.lengths[:end])
