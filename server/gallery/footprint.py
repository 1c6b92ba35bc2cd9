"""How much room a gallery takes: bytes of its view in memory, and of its files by kind.

In: a view, or a folder. Out: bytes. Arrays are counted as they lie, each memory once though several
slices share it; vectors that are mapped from a file are not counted, since the kernel can drop
them. What Python objects and hnswlib take is estimated, to some tenths.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.server.gallery.search import View
from twinserve.server.gallery.types import HnswSettings

# Of one row beside its arrays: its id (a short str) and its place in the list of these, and its
# entry in the table of rows by id.
ROW_OBJECTS = 64 + 8 + 104
# Of one vector: its digest (bytes), its label, and their entry in the table of labels.
VECTOR_OBJECTS = 49 + 32 + 104


def memory_bytes(view: View, hnsw: HnswSettings) -> int:
    """About how many bytes a view and what it is made from take."""
    owners: dict[int, int] = {}
    rows = view.rows
    _count(owners, vars(rows).copy().values())
    for column in rows.masks.columns.values():
        _count(owners, (column.values, column.present))
    graphs = 0
    for segment in view.segments:
        _count(owners, vars(segment).copy().values())
        if segment.graph is not None:
            graphs += graph_bytes(len(segment), view.dimension, hnsw)
    objects = rows.count * ROW_OBJECTS + rows.vector_count * VECTOR_OBJECTS
    return sum(owners.values()) + graphs + objects


def graph_bytes(rows: int, dimension: int, hnsw: HnswSettings) -> int:
    """About how many bytes hnswlib takes for a graph, with its own copy of the vectors.

    Of each row: the vector, 2 m links and a count at the bottom, a label; of one in m, m links and
    a count a level above; the pointer to these, the level, a lock, and an entry of the hash table.
    """
    row = 4 * dimension + 4 * (2 * hnsw.m + 1) + 8
    above = 4 * (hnsw.m + 1) // max(hnsw.m - 1, 1)
    return rows * (row + above + 8 + 4 + 40 + 40)


def _count(owners: dict[int, int], values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, np.ndarray):
            owner = _owner(value)
            if owner is not None:
                owners[id(owner)] = owner.nbytes


def _owner(array: NDArray[Any]) -> NDArray[Any] | None:
    """The array whose memory this is, or None where that is a mapped file."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    base = array.base
    if isinstance(base, memoryview):
        base = base.obj
    return None if isinstance(base, mmap.mmap) else array


@dataclass(frozen=True)
class DiskUsage:
    """Bytes of a gallery's files."""

    store: int = 0  # the database: the truth
    log: int = 0  # what was committed and is not in it yet, with its index
    index: int = 0  # files that can be made anew
    broken: int = 0  # copies of a damaged database

    def __add__(self, other: DiskUsage) -> DiskUsage:
        return DiskUsage(
            self.store + other.store,
            self.log + other.log,
            self.index + other.index,
            self.broken + other.broken,
        )


def disk_usage(folder: Path) -> DiskUsage:
    """Look at the files of a gallery's folder; one that is gone takes nothing."""
    sizes = dict.fromkeys(("store", "log", "index", "broken"), 0)
    for path, size in _files(folder):
        sizes[_kind(path)] += size
    return DiskUsage(**sizes)


def _kind(name: str) -> str:
    if ".broken" in name:
        return "broken"
    if name == "store.db":
        return "store"
    return "log" if name.startswith("store.db-") else "index"


def _files(folder: Path) -> Iterable[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _files(Path(entry.path))
                    else:
                        yield entry.name, entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # removed since it was listed
                    continue
    except FileNotFoundError:
        return
