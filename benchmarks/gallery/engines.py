"""Indexes in a process of their own: hnswlib, faiss and usearch raw, and our galleries in process.

    python -m benchmarks.gallery.engines hnswlib

Asked by lines of JSON (see `workers`): open data, build, save, load, count recall, measure a rate.
All have M 16 and ef_construction 200, float32, cosine over vectors of length 1.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.gallery.data import Data, Ids, Vectors, recall
from benchmarks.gallery.workers import answer
from benchmarks.serving.figures import percentile

M, EF_CONSTRUCTION = 16, 200
CHUNK = 10_000  # rows of one call that adds
K = 10


class Index(Protocol):
    """What is asked of each."""

    def build(self, items: Vectors, threads: int) -> None:
        """Insert all items, numbered from 0."""
        ...

    def widen(self, ef: int) -> None:
        """Search with this breadth from now on."""
        ...

    def query(self, probes: Vectors, threads: int) -> Ids:
        """Return the 10 nearest of each probe: int64 [n, 10]; with so many threads inside."""
        ...

    def save(self, path: str) -> None:
        """Write it to a file."""
        ...

    def load(self, path: str, dimension: int) -> None:
        """Read it from a file."""
        ...


class Hnswlib:
    """Raw hnswlib."""

    def __init__(self) -> None:
        import hnswlib

        self._library = hnswlib

    def build(self, items: Vectors, threads: int) -> None:
        self._index = self._library.Index(space="ip", dim=items.shape[1])
        self._index.init_index(max_elements=len(items), M=M, ef_construction=EF_CONSTRUCTION)
        for start in range(0, len(items), CHUNK):
            some = items[start : start + CHUNK]
            self._index.add_items(some, np.arange(start, start + len(some)), num_threads=threads)

    def widen(self, ef: int) -> None:
        self._index.set_ef(ef)

    def query(self, probes: Vectors, threads: int) -> Ids:
        found: Ids = self._index.knn_query(probes, k=K, num_threads=threads)[0].astype(np.int64)
        return found

    def save(self, path: str) -> None:
        self._index.save_index(path)

    def load(self, path: str, dimension: int) -> None:
        self._index = self._library.Index(space="ip", dim=dimension)
        self._index.load_index(path)


class Faiss:
    """faiss's IndexHNSWFlat."""

    def __init__(self) -> None:
        import faiss

        self._library = faiss

    def build(self, items: Vectors, threads: int) -> None:
        self._library.omp_set_num_threads(threads)
        metric = self._library.METRIC_INNER_PRODUCT
        self._index = self._library.IndexHNSWFlat(items.shape[1], M, metric)
        self._index.hnsw.efConstruction = EF_CONSTRUCTION
        for start in range(0, len(items), CHUNK):
            self._index.add(np.ascontiguousarray(items[start : start + CHUNK]))

    def widen(self, ef: int) -> None:
        self._index.hnsw.efSearch = ef

    def query(self, probes: Vectors, threads: int) -> Ids:
        self._library.omp_set_num_threads(threads)
        found: Ids = self._index.search(probes, K)[1]
        return found

    def save(self, path: str) -> None:
        self._library.write_index(self._index, path)

    def load(self, path: str, dimension: int) -> None:
        self._index = self._library.read_index(path)


class Usearch:
    """usearch, in float32."""

    def __init__(self) -> None:
        from usearch.index import Index as Library

        self._library = Library

    def build(self, items: Vectors, threads: int) -> None:
        self._index = self._made(items.shape[1])
        for start in range(0, len(items), CHUNK):
            some = np.ascontiguousarray(items[start : start + CHUNK])
            self._index.add(np.arange(start, start + len(some)), some, threads=threads)

    def widen(self, ef: int) -> None:
        self._index.expansion_search = ef

    def query(self, probes: Vectors, threads: int) -> Ids:
        found = self._index.search(probes, K, threads=threads)
        return np.asarray(found.keys).astype(np.int64).reshape(len(probes), K)

    def save(self, path: str) -> None:
        self._index.save(path)

    def load(self, path: str, dimension: int) -> None:
        self._index = self._made(dimension)
        self._index.load(path)

    def _made(self, dimension: int) -> Any:
        return self._library(
            ndim=dimension,
            metric="ip",
            dtype="f32",
            connectivity=M,
            expansion_add=EF_CONSTRUCTION,
        )


class InProcess:
    """A gallery of ours, opened from a data folder that no server holds; items are hits."""

    def __init__(self) -> None:
        self._ef = 64

    def load(self, path: str, dimension: int) -> None:
        """Open the first gallery of the folder."""
        from twinserve.server.gallery import Galleries

        folder, _, name = path.partition(":")
        self._galleries = Galleries(Path(folder))
        self._galleries.open()
        self.gallery = self._galleries.get(name)

    def build(self, items: Vectors, threads: int) -> None:
        raise NotImplementedError("a gallery is filled through its server")

    def save(self, path: str) -> None:
        raise NotImplementedError("a gallery keeps itself")

    def widen(self, ef: int) -> None:
        self._ef = ef

    def query(self, probes: Vectors, threads: int) -> Ids:
        outcome = self.gallery.search(probes, k=K, by_subject=False, ef=self._ef)
        return np.array([[int(hit.item_id) for hit in one.hits] for one in outcome.results])


ENGINES: dict[str, Callable[[], Any]] = {
    "hnswlib": Hnswlib,
    "faiss": Faiss,
    "usearch": Usearch,
    "ours": InProcess,
}


class Answers:
    """The commands, over one index."""

    def __init__(self, name: str) -> None:
        self.index: Index = ENGINES[name]()

    def open(self, folder: str) -> None:
        """Take data; only mapped, so that memory is the index's own."""
        data = Data("", Path(folder))
        self.items, self.probes, self.truth = data.items, data.probes, data.truth

    def build(self, threads: int) -> dict[str, float]:
        """Insert all items: seconds."""
        return self._timed(lambda: self.index.build(self.items, threads))

    def save(self, path: str) -> dict[str, float]:
        """Write a file: seconds."""
        return self._timed(lambda: self.index.save(path))

    def load(self, path: str) -> dict[str, float]:
        """Read a file: seconds."""
        return self._timed(lambda: self.index.load(path, self.items.shape[1]))

    def debt(self) -> dict[str, int]:
        """Say how many rows of a gallery wait for their graph."""
        assert isinstance(self.index, InProcess)
        return {"debt": self.index.gallery.status().index_debt}

    def recall(self, ef: int, rows: int = 0) -> dict[str, float]:
        """Count recall over all probes, in calls of so many; 0: all at once."""
        self.index.widen(ef)
        rows = rows or len(self.probes)
        found = [
            self.index.query(self.probes[start : start + rows], 1)
            for start in range(0, len(self.probes), rows)
        ]
        return {"recall": recall(np.concatenate(found), self.truth)}

    def rate(
        self, ef: int, rows: int, threads: int, seconds: float, apart: bool = False
    ) -> dict[str, float]:
        """Search for a time.

        Args:
            ef: breadth.
            rows: probes of a call; 0: all of them.
            threads: of the library, or, with `apart`, threads that each call with one inside.
            seconds: to go on for.
            apart: whether each thread has calls of its own.

        Returns:
            Probes per second, and p50 and p99 of a call in seconds.
        """
        self.index.widen(ef)
        rows = rows or len(self.probes)
        starts = range(0, max(1, len(self.probes) - rows + 1), rows)
        took: list[list[float]] = []
        callers = threads if apart else 1
        ready = threading.Barrier(callers)

        def go(number: int) -> None:
            mine: list[float] = []
            took.append(mine)
            turn = number
            ready.wait()
            until = time.perf_counter() + seconds
            while True:
                start = starts[turn % len(starts)]
                turn += callers
                began = time.perf_counter()
                if began >= until:
                    return
                self.index.query(self.probes[start : start + rows], 1 if apart else threads)
                mine.append(time.perf_counter() - began)

        go_threads = [threading.Thread(target=go, args=(number,)) for number in range(callers)]
        began = time.perf_counter()
        for one in go_threads:
            one.start()
        for one in go_threads:
            one.join()
        elapsed = time.perf_counter() - began
        calls = [seconds for mine in took for seconds in mine]
        return {
            "per_second": len(calls) * rows / elapsed,
            "p50": percentile(calls, 0.5),
            "p99": percentile(calls, 0.99),
        }

    def _timed(self, do: Callable[[], None]) -> dict[str, float]:
        began = time.perf_counter()
        do()
        return {"seconds": time.perf_counter() - began}


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    answers = Answers(parser.parse_args().engine)
    names = ("open", "build", "save", "load", "debt", "recall", "rate")
    answer({name: getattr(answers, name) for name in names})


if __name__ == "__main__":
    main()
