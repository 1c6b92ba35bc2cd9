"""Live recall: searches answered again exactly, so that a broken index shows, at a bounded cost."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.gallery.folders import new, one_gallery, settings
from tests.server.gallery.test_estimator import until
from tests.server.gallery.test_graphs import clustered, settle
from twinserve.distance import FloatArray, Metric
from twinserve.server.gallery import Clause, Equals, Galleries, Gallery, GalleryLimits, recall
from twinserve.server.gallery.observing import Unobserved
from twinserve.server.gallery.recall import Recomputed, Sample, Sampler, nearest_distances
from twinserve.server.gallery.rests import Rests
from twinserve.server.gallery.search import Question, View
from twinserve.server.gallery.segments import Graph

DIMENSION = 16
LIMITS = GalleryLimits(exact_scan_below=100, segment_rows=512, recall_share=0.0)
RNG = np.random.default_rng(3)
VECTORS = clustered(RNG, 2_000, DIMENSION)
PROBES = clustered(RNG, 100, DIMENSION)


class Counted(Unobserved):
    """Adds up what was recomputed."""

    def __init__(self) -> None:
        self.neighbours = self.found = 0

    def recalled(self, model: str, neighbours: int, found: int) -> None:
        assert model == "twin"
        self.neighbours += neighbours
        self.found += found


class Moved(Rests):
    """Time that passes only while somebody rests, and by a fixed step at each look."""

    def __init__(self, step: float = 0.001) -> None:
        super().__init__()
        self.time, self.step, self.rested = 0.0, step, 0.0

    def now(self) -> float:
        self.time += self.step
        return self.time

    def rest(self, seconds: float) -> bool:
        self.time += seconds
        self.rested += seconds
        return not self.stopped


@contextmanager
def indexed(folder: Path, metric: Metric = Metric.EUCLIDEAN) -> Iterator[Gallery]:
    with one_gallery(folder, settings(dimension=DIMENSION, metric=metric), LIMITS) as gallery:
        items = [new(f"i{n}", row, f"s{n // 2}", {"count": n % 2}) for n, row in enumerate(VECTORS)]
        gallery.enroll(items).result()
        settle(gallery, LIMITS.segment_rows)
        yield gallery


def compared(gallery: Gallery, sampler: Sampler, probes: NDArray[np.float32]) -> Recomputed:
    """Have every probe's search recomputed, and return what was kept of it."""
    kept = Recomputed(gallery.settings.name, gallery.settings.model, sampler)
    for probe in probes:
        hits = gallery.search(probe[None], k=10).results[0]
        assert not hits.exact, "it went through the graphs"
        distances = np.array([hit.distance for hit in hits.hits])
        sampler.compare(Sample(kept, gallery.view, probe, Question(10), None, distances))
    return kept


def lost_links(self: Graph, probes: NDArray[np.float32], wanted: int, *more: int) -> object:
    """The front-runners are never met, as where links were destroyed."""
    found = nearest(self, probes, min(wanted + 8, self._count), *more)
    return None if found is None else (found[0][:, 8:][:, :wanted], found[1][:, 8:][:, :wanted])


def wrong_rows(self: Graph, probes: NDArray[np.float32], wanted: int, *more: int) -> object:
    """Rows of other vectors, as where the file belongs to another segment."""
    found = nearest(self, probes, wanted, *more)
    return None if found is None else ((found[0] + 37) % self._count, found[1])


nearest = Graph.nearest


def test_a_sound_index_keeps_the_recall_near_one(quick_folder: Path) -> None:
    counted = Counted()
    sampler = Sampler(0.0, counted, Moved())
    with indexed(quick_folder) as gallery:
        kept = compared(gallery, sampler, PROBES)
    assert kept.recall is not None
    assert kept.recall > 0.97
    assert counted.neighbours == 10 * len(PROBES)
    assert counted.found > 0.97 * counted.neighbours
    assert sampler.lowest() == {"twin": kept.recall}


@pytest.mark.parametrize("broken", [lost_links, wrong_rows])
def test_a_broken_index_makes_the_recall_fall_and_the_log_say_so(
    quick_folder: Path,
    broken: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted = Counted()
    sampler = Sampler(0.0, counted, Moved())
    with indexed(quick_folder) as gallery:
        sound = compared(gallery, sampler, PROBES[:20])
        monkeypatch.setattr(Graph, "nearest", broken)
        kept = compared(gallery, sampler, PROBES)
        assert kept.recall is not None
        assert kept.recall < 0.8
        assert sound.recall is not None
        assert sampler.lowest()["twin"] == kept.recall < sound.recall, "the worst is told"
        assert counted.found < 0.85 * counted.neighbours
        warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
        assert len(warnings) == 1, "once, not at each search"
        assert "gallery faces" in warnings[0]
        assert "Raise ef" in warnings[0]
        monkeypatch.undo()
        kept = compared(gallery, sampler, PROBES)
        assert kept.recall is not None
        assert kept.recall > 0.97


def test_of_few_searches_nothing_is_said(quick_folder: Path) -> None:
    sampler = Sampler(0.0, Unobserved(), Moved())
    with indexed(quick_folder) as gallery:
        kept = compared(gallery, sampler, PROBES[: recall.LEAST - 1])
    assert kept.recall is None
    assert sampler.lowest() == {}


def true_distances(gallery: Gallery, probe: NDArray[np.float32], question: Question) -> FloatArray:
    hits = gallery.search(
        probe[None],
        k=question.k,
        by_subject=question.by_subject,
        max_distance=question.max_distance,
        exact=True,
    )
    return np.array([hit.distance for hit in hits.results[0].hits])


@pytest.mark.parametrize("metric", list(Metric))
def test_the_truth_is_what_the_exact_search_says(
    quick_folder: Path, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "PIECE", 100 * DIMENSION)
    with indexed(quick_folder, metric) as gallery:
        gallery.remove(ids=[f"i{n}" for n in range(0, 300, 3)]).result()
        gallery.enroll([new(f"again{n}", VECTORS[7]) for n in range(60)]).result()  # ties
        near = true_distances(gallery, PROBES[0], Question(40))[-1]
        for question in (
            Question(1),
            Question(10),
            Question(10, by_subject=False),
            Question(40, max_distance=float(near)),
            Question(1_500),
            Question(3_000, by_subject=False),
        ):
            for probe in (*PROBES[:5], VECTORS[7]):
                found = nearest_distances(gallery.view, probe, question, None, lambda: True)
                assert found is not None
                assert np.array_equal(found, true_distances(gallery, probe, question))
        wanted = Clause("count", Equals(1))
        hits = gallery.search(PROBES[:1], k=10, filter=wanted, exact=True).results[0].hits
        found = nearest_distances(gallery.view, PROBES[0], Question(10), wanted, lambda: True)
        assert found is not None
        assert found.tolist() == [hit.distance for hit in hits]


def test_neighbours_that_are_equally_far_are_as_good_as_each_other(quick_folder: Path) -> None:
    counted = Counted()
    sampler = Sampler(0.0, counted, Moved())
    with one_gallery(quick_folder, settings(dimension=2), LIMITS) as gallery:
        gallery.enroll([new(f"i{n}", [1.0, 0.0]) for n in range(30)]).result()
        kept = Recomputed("faces", "twin", sampler)
        probe = np.zeros(2, dtype=np.float32)
        for distances in (np.ones(3), np.ones(2), np.array([1.0, 1.0, 2.0])):
            sampler.compare(Sample(kept, gallery.view, probe, Question(3), None, distances))
    assert (counted.neighbours, counted.found) == (9, 3 + 2 + 2)


def test_a_comparison_rests_after_each_piece_and_stops_when_told(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "PIECE", 100 * DIMENSION)
    counted, moved = Counted(), Moved()
    sampler = Sampler(0.0, counted, moved)
    with indexed(quick_folder) as gallery:
        kept = Recomputed("faces", "twin", sampler)
        sample = Sample(kept, gallery.view, PROBES[0], Question(5), None, np.zeros(5))
        began = moved.time
        worked = sampler.compare(sample)
        assert moved.rested >= 20 * recall.REST * moved.step, "20 pieces at least, each with a rest"
        assert 0 < worked < moved.time - began - 0.9 * moved.rested
        assert counted.neighbours == 5
        kept.close()
        sampler.compare(sample)
        sampler.close()
        sampler.compare(Sample(kept, gallery.view, PROBES[0], Question(5), None, np.zeros(5)))
    assert counted.neighbours == 5, "neither a closed gallery's nor after the end"


def sampling(folder: Path, observer: Unobserved) -> Galleries:
    galleries = Galleries(folder, replace(LIMITS, recall_share=0.9), observer)
    galleries.open()
    galleries.create(settings(dimension=DIMENSION))
    gallery = galleries.get("faces")
    gallery.enroll([new(f"i{n}", row) for n, row in enumerate(VECTORS)]).result()
    settle(gallery, LIMITS.segment_rows)
    return galleries


def test_live_searches_are_sampled_and_no_view_is_held_afterwards(quick_folder: Path) -> None:
    counted = Counted()
    galleries = sampling(quick_folder, counted)
    gallery = galleries.get("faces")
    until(lambda: gallery.recomputed.wanted)
    view: weakref.ref[View] = weakref.ref(gallery.view)
    gallery.search(PROBES[:1], k=10, exact=True)
    assert gallery.recomputed.wanted, "an exact search proves nothing"
    gallery.search(PROBES[:3], k=10)
    until(lambda: counted.neighbours == 10)
    until(lambda: gallery.recomputed.wanted)
    gallery.enroll([new("more", VECTORS[0] + 1)]).result()
    # A snapshot that is being written holds the state that it writes, until it is done.
    until(lambda: gc.collect() >= 0 and view() is None)
    galleries.close()
    gallery.search(PROBES[:1], k=10)
    assert counted.neighbours == 10
    assert counted.found >= 9


def test_galleries_take_turns_however_many_searches_one_has() -> None:
    class Endless(Rests):
        def rest(self, seconds: float) -> bool:
            return super().rest(0.0)

    sampler = Sampler(0.5, Unobserved(), Endless())
    order: list[str] = []
    compare = sampler.compare

    def noted(sample: Sample) -> float:
        order.append(sample.gallery.name)
        return 0.02

    sampler.compare = noted  # type: ignore[method-assign]
    assert compare
    busy, calm = Recomputed("busy", "m", sampler), Recomputed("calm", "m", sampler)
    nothing: FloatArray = np.zeros(0)

    def offered() -> bool:
        for one in (busy, busy, busy, calm):
            if one.wanted:
                one.wanted = False
                sampler.take(Sample(one, None, nothing, Question(1), None, nothing))  # type: ignore[arg-type]
        return len(order) >= 12

    until(offered)
    sampler.close()
    assert 4 <= order.count("calm") <= 8, order


def test_no_search_is_sampled_where_that_is_off(quick_folder: Path) -> None:
    with indexed(quick_folder) as gallery:
        gallery.search(PROBES[:1], k=10)
        assert not gallery.recomputed.wanted
