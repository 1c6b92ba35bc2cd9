"""The thread that builds graphs aside, one segment at a time, for all galleries.

In: galleries that say they have work. Out: new segments, offered back to the gallery, which swaps
them in on the writing thread. What waits is built together, so that the longer the debt, the
larger the segments, and the fewer of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinserve.server.gallery.observing import BuildKind
from twinserve.server.gallery.search import View
from twinserve.server.gallery.segments import Graph, Segment, keys_of, stitched
from twinserve.server.gallery.types import HnswSettings

DEAD_SHARE = 0.25
MOST_SEGMENTS = 10  # while others write; each costs a search some tens of microseconds
LARGEST_BUILD = 262_144
LARGEST_MERGE = 4_194_304
WORTH_MERGING = 0.1  # of the largest segment: what the others hold together


@dataclass(frozen=True)
class Rebuild:
    """Replace the adjacent segments [first, last) by one."""

    first: int
    last: int
    with_graph: bool


class Source(Protocol):
    """What the builder asks of a gallery."""

    def plan(self) -> tuple[View, Rebuild] | None:
        """The next rebuild worth doing, or None."""
        ...

    def living(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """Labels of these segments that an item still holds. A dead label never lives again."""
        ...

    def gathered(self, old: Sequence[Segment], labels: NDArray[np.int64]) -> Segment:
        """The vectors of labels that `old` hold, in one segment without a graph."""
        ...

    def offer(self, old: Sequence[Segment], new: Segment | None) -> Future[None] | None:
        """Have `old` replaced by `new` (None: nothing in it lived); resolves when that is done."""
        ...

    def pressed(self) -> bool:
        """Whether so much waits for a graph that merging has to give way."""
        ...

    def rest(self) -> None:
        """There is nothing to build."""
        ...

    def built(self, kind: BuildKind, seconds: float, rows: int) -> None:
        """Hear how long a rebuild took."""
        ...

    @property
    def hnsw(self) -> HnswSettings:
        """Parameters of the graphs."""
        ...


def plan(
    view: View, sealed: int, alive: Sequence[int], exact_below: int, *, quiet: bool = False
) -> Rebuild | None:
    """What to rebuild in a view whose first `sealed` segments are closed.

    `alive`: live vectors of each of these. A gallery that is scanned exactly needs no graph. One
    graph is searched in about the time of each of several, so while it is `quiet` they become one.
    """
    segments = view.segments[:sealed]
    indexing = view.safe and view.rows.vector_count > exact_below
    if indexing:
        bare = [number for number, segment in enumerate(segments) if segment.graph is None]
        if bare:
            first = last = bare[0]
            total = 0
            while last in bare and (total == 0 or total + alive[last] <= LARGEST_BUILD):
                total += alive[last]
                last += 1
            return Rebuild(first, last, True)
    total = sum(alive)
    rest = total - max(alive, default=0)
    one_is_better = 0 < WORTH_MERGING * (total - rest) <= rest and total <= LARGEST_MERGE
    if indexing and one_is_better and quiet:
        return Rebuild(0, len(segments), True)
    for number, segment in enumerate(segments):
        if alive[number] < (1.0 - DEAD_SHARE) * len(segment):
            return Rebuild(number, number + 1, indexing)
    if len(segments) > MOST_SEGMENTS:
        # The smallest pair: sizes then grow like those of a log-structured merge.
        pairs = [alive[number] + alive[number + 1] for number in range(len(segments) - 1)]
        first = int(np.argmin(pairs))
        return Rebuild(first, first + 2, indexing)
    return None


class Builder:
    """A set of galleries that may have work, and the thread that does it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._sources: dict[int, Source] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gallery-builder", daemon=True)
        self._thread.start()

    def consider(self, source: Source) -> None:
        """Look at a gallery soon."""
        with self._changed:
            self._sources[id(source)] = source
            self._changed.notify()

    def close(self) -> None:
        """Drop the build that is running, and end the thread."""
        self._stop.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                while not self._sources and not self._stop.is_set():
                    self._changed.wait()
                if self._stop.is_set():
                    return
                _, source = self._sources.popitem()
            try:
                self._work_on(source)
            except Exception:  # one gallery's trouble must not leave the others without graphs
                logging.getLogger(__name__).exception("building an index failed")
            del source  # or a deleted gallery would stay in memory until the next one's turn

    def _work_on(self, source: Source) -> None:
        planned = source.plan()
        if planned is None:
            source.rest()
            return
        view, rebuild = planned
        began = time.monotonic()
        old = view.segments[rebuild.first : rebuild.last]
        labels = source.living(old)
        new = None
        if len(labels) and rebuild.with_graph:
            new = source.gathered(old, labels)
            graph = Graph(view.dimension, view.metric, source.hnsw)
            merging = all(segment.graph is not None for segment in old)

            def stop() -> bool:
                return self._stop.is_set() or (merging and source.pressed())

            if not graph.build(new.vectors, self._threads, stop):
                if not self._stop.is_set():
                    self.consider(source)
                return
            new = new.with_graph(graph)
        elif len(labels):
            vectors, lengths = stitched(old, labels, view.dimension)
            new = Segment(labels, keys_of(old, labels), vectors, lengths)
        bare = rebuild.with_graph and all(segment.graph is None for segment in old)
        kind = BuildKind.BUILD if bare else BuildKind.MERGE
        source.built(kind, time.monotonic() - began, len(labels))
        done = source.offer(old, new)
        if done is not None:
            done.result()  # or the same would be planned again
