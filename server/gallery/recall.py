"""Live recall: now and then a search that went through graphs is answered again, exactly.

In: searches that were just answered, each with the view that it read. Out: how many of its true
nearest neighbours it had found, told to the observer and kept for the last searches of a gallery.
One thread for all galleries looks at one search at a time, in small pieces with rests between, and
then rests so long that it works for a small share of the time. The galleries take turns.

The one thing to know: a search pays for this with one look at a flag. Only while the thread waits
for a search, the next one of a gallery whose turn it is leaves its view behind; the view is let go
after the comparison, for it may be all that holds an old state of a gallery in memory.

Found means by distance: of neighbours equally far any is as good as another. The truth is found by
a scan of its own, which shares nothing with the planner but the distances.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import FloatArray, Metric
from twinserve.server.gallery.observing import GalleryObserver
from twinserve.server.gallery.rests import Rests
from twinserve.server.gallery.search import Question, View, rescore, stretches
from twinserve.server.gallery.segments import Probes
from twinserve.server.gallery.types import Filter

KEPT = 50  # searches of a gallery over which its recall is taken
LEAST = 10  # of fewer nothing is said: one neighbour missed would look like a broken index
WARN_BELOW = 0.9
REST = 2.0  # after each piece, for so many times as long as it took
PIECE = 1 << 19  # float32 values that are compared at a time: 2 MB, well below a millisecond
MOST_RESCORED = 1 << 16  # a search that asks for so much is not worth its comparison
ROUND = 3_600.0  # a gallery that was not sampled for so long has no part in the taking of turns
ROUNDING = 1e-9  # relative; two sums of one distance in different orders differ by less

LARGEST = float(np.finfo(np.float32).max)

# Told how long the last piece took; may rest, and says whether to go on.
Pace = Callable[[float], bool]


@dataclass(frozen=True, eq=False)
class Sample:
    """A search as it was answered: distances ascending, of the view that it read."""

    gallery: Recomputed
    view: View
    probe: NDArray[np.float32]  # [d]
    question: Question
    wanted: Filter | None
    distances: FloatArray  # [m], of what it found


class Recomputed:
    """One gallery's part: whether a search of it is wanted, and what the last ones had found."""

    def __init__(self, name: str, model: str, sampler: Sampler) -> None:
        """Have the gallery's searches sampled from now on."""
        self.name = name
        self.model = model
        self.wanted = False  # read by every search that went through graphs
        self.due = 0.0  # on the sampler's clock
        self.sampled = -ROUND
        self.closed = False
        self._last: deque[tuple[int, int]] = deque(maxlen=KEPT)
        self._warned = False
        self._sampler = sampler
        sampler.add(self)

    def offer(
        self,
        view: View,
        probe: NDArray[np.float32],
        question: Question,
        wanted: Filter | None,
        distances: Sequence[float],
    ) -> None:
        """Leave a search that found `distances` behind; for searches that find `wanted` set."""
        self.wanted = False
        found = np.array(distances, dtype=np.float64)
        self._sampler.take(Sample(self, view, probe.copy(), question, wanted, found))

    def note(self, neighbours: int, found: int) -> None:
        """Keep what a search had found, and warn once when too much is missed."""
        self._last.append((neighbours, found))
        recall = self.recall
        if recall is None or len(self._last) < KEPT:
            return
        if recall < WARN_BELOW and not self._warned:
            logging.getLogger(__name__).warning(
                "gallery %s: the last %d searches that were compared with an exact scan found "
                "%.1f %% of their nearest neighbours. Raise ef of the searches, or make the "
                "gallery anew with larger hnsw.ef and hnsw.m; exact searches miss nothing. If it "
                "found more before, its index is damaged: a restart of the server builds it anew",
                self.name,
                KEPT,
                100.0 * recall,
            )
        self._warned = recall < WARN_BELOW

    @property
    def recall(self) -> float | None:
        """Share of true neighbours found by the last searches compared; None of too few."""
        last = list(self._last)
        if len(last) < LEAST:
            return None
        return sum(found for _, found in last) / sum(neighbours for neighbours, _ in last)

    def close(self) -> None:
        """Compare no more; a comparison that is under way ends at its next piece."""
        self.closed = True
        self.wanted = False
        self._sampler.forget(self)


class Sampler:
    """The thread that compares, one search at a time.

    Args:
        share: of the time that the thread may work; 0: never.
        observer: is told the result of each comparison.
        rests: its clock.
    """

    def __init__(self, share: float, observer: GalleryObserver, rests: Rests | None = None) -> None:
        self._share = share
        self._observer = observer
        self._rests = Rests() if rests is None else rests
        self._galleries: list[Recomputed] = []
        self._sample: Sample | None = None
        self._waiting = False  # for a sample
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="gallery-recall", daemon=True)
        if share > 0:
            self._thread.start()

    def add(self, gallery: Recomputed) -> None:
        """Sample a gallery too."""
        with self._changed:
            self._galleries.append(gallery)
            self._changed.notify()

    def forget(self, gallery: Recomputed) -> None:
        """Let go of a gallery."""
        with self._changed:
            if gallery in self._galleries:
                self._galleries.remove(gallery)
            if self._sample is not None and self._sample.gallery is gallery:
                self._sample = None

    def take(self, sample: Sample) -> None:
        """Take a search that a gallery offers, if one is still waited for."""
        with self._changed:
            if self._waiting and self._sample is None and not sample.gallery.closed:
                self._sample = sample
                self._changed.notify()

    def lowest(self) -> dict[str, float]:
        """By model, the lowest recall that one of its galleries has; a total would hide it."""
        with self._changed:
            galleries = list(self._galleries)
        found: dict[str, float] = {}
        for gallery in galleries:
            recall = gallery.recall
            if recall is not None:
                found[gallery.model] = min(recall, found.get(gallery.model, recall))
        return found

    def close(self) -> None:
        """Drop the comparison that is running, and end the thread."""
        self._rests.stop()
        with self._changed:
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def compare(self, sample: Sample) -> float:
        """Find the true neighbours of one search and note what it had found.

        Return the seconds that this took, rests not counted.
        """
        began, rested = self._rests.now(), 0.0

        def pace(seconds: float) -> bool:
            nonlocal rested
            start = self._rests.now()
            go_on = self._rests.rest(REST * seconds)
            rested += self._rests.now() - start
            return go_on and not sample.gallery.closed

        piece = _Timed(self._rests, pace)
        true = nearest_distances(
            sample.view, sample.probe, sample.question, sample.wanted, piece.done
        )
        if true is not None and len(true):
            reach = true[-1] * (1.0 + ROUNDING) + ROUNDING**2
            found = min(len(true), int(np.count_nonzero(sample.distances <= reach)))
            sample.gallery.note(len(true), found)
            self._observer.recalled(sample.gallery.model, len(true), found)
        return self._rests.now() - began - rested

    def _run(self) -> None:
        while (sample := self._next()) is not None:
            gallery, worked = sample.gallery, 0.1
            try:
                worked = self.compare(sample)
            except Exception:  # one search's trouble must not leave the others unwatched
                logging.getLogger(__name__).exception("recomputing a search failed")
            del sample  # and with it the view
            rest = worked * (1.0 / self._share - 1.0)
            now = self._rests.now()
            gallery.sampled = now
            gallery.due = now + rest * self._in_turn(now)
            del gallery
            self._rests.rest(rest)

    def _in_turn(self, now: float) -> int:
        with self._changed:
            return max(1, sum(one.sampled > now - ROUND for one in self._galleries))

    def _next(self) -> Sample | None:
        """Ask the galleries whose turn it is for a search, and wait for one."""
        with self._changed:
            self._waiting = True
            try:
                while not self._rests.stopped:
                    if self._sample is not None:
                        sample, self._sample = self._sample, None
                        return sample
                    now = self._rests.now()
                    patience: float | None = None
                    for gallery in self._galleries:
                        gallery.wanted = gallery.due <= now
                        if not gallery.wanted:
                            patience = min(gallery.due - now, patience or gallery.due - now)
                    self._changed.wait(patience)
                return None
            finally:
                self._waiting = False
                for gallery in self._galleries:
                    gallery.wanted = False


class _Timed:
    """Tells a pace how long each piece took."""

    def __init__(self, rests: Rests, pace: Pace) -> None:
        self._rests, self._pace = rests, pace
        self._began = rests.now()

    def done(self) -> bool:
        go_on = self._pace(self._rests.now() - self._began)
        self._began = self._rests.now()
        return go_on


def nearest_distances(
    view: View,
    probe: NDArray[np.float32],
    question: Question,
    wanted: Filter | None,
    proceed: Callable[[], bool],
) -> FloatArray | None:
    """The distances of the true answer, ascending: at most k, one of each subject if so asked.

    probe: [d], to be ranked in float32 like the view's vectors. `proceed` is called between pieces
    and says whether to go on; None where it does not, or where too much would have to be looked at.
    """
    rows = view.rows
    live = rows.live_rows if wanted is None else np.flatnonzero(rows.passing(wanted))
    if not len(live):
        return np.zeros(0)
    labels = rows.label[live]
    limit = np.inf if question.max_distance is None else question.max_distance
    ready = Probes(probe[None], view.metric)
    units = np.empty(len(live), dtype=np.float32)
    step = max(1, PIECE // len(probe))
    parts = stretches(view.segments, labels)
    for part in parts:
        places = np.arange(len(live))[part.columns]
        local = np.arange(len(part.segment)) if part.local is None else part.local
        for start in range(0, len(local), step):
            if not proceed():
                return None
            piece = slice(start, start + step)
            units[places[piece]] = ready.units(part.segment, local[piece])[0]
    error = float(ready.error(max(part.longest for part in parts))[0])

    def nearest(chosen: NDArray[np.int64]) -> FloatArray | None:
        distances = np.empty(len(chosen))
        for start in range(0, len(chosen), step):
            if not proceed():
                return None
            piece = chosen[start : start + step]
            distances[start : start + step] = rescore(view, probe, labels[piece])
        order = np.argsort(distances, kind="stable")
        distances = distances[order]
        if question.by_subject:
            _, first = np.unique(rows.subject[live[chosen[order]]], return_index=True)
            distances = distances[np.sort(first)]
        return distances[distances <= limit][: question.k]

    take = 2 * question.k + 16
    while take < min(len(live), MOST_RESCORED):
        edge = float(np.partition(units, take - 1)[take - 1])
        distances = nearest(np.flatnonzero(units <= edge))
        if distances is None:
            return None
        bound = float(distances[-1]) if len(distances) == question.k else limit
        if bound < np.inf:
            # Whom float32 may have put behind the edge, though not farther than the last.
            reach = bound * bound if view.metric is Metric.EUCLIDEAN else bound
            reach = min((reach + error) * (1.0 + 1e-6), LARGEST)
            return distances if reach < edge else nearest(np.flatnonzero(units <= reach))
        take *= 4
    return nearest(np.arange(len(live))) if len(live) <= MOST_RESCORED else None
