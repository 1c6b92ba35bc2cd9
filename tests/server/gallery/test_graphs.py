"""HNSW behind the galleries: recall, identical vectors, rebuilds, and reading while all writes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import new, one_gallery, settings
from twinserve.distance import Metric
from twinserve.server.gallery import Gallery, GalleryLimits, HnswSettings
from twinserve.server.gallery.segments import Graph, Segment, keys_of, stitched

GRAPHS = GalleryLimits(exact_scan_below=500, segment_rows=1_024)


def clustered(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    centres = rng.normal(size=(50, dimension))
    points = centres[rng.integers(50, size=count)] + 0.5 * rng.normal(size=(count, dimension))
    return points.astype(np.float32)


def settle(gallery: Gallery, debt: int) -> None:
    """Wait until at most `debt` vectors are without a graph."""
    end = time.monotonic() + 60
    while gallery.status().index_debt > debt:
        assert time.monotonic() < end, gallery.status()
        time.sleep(0.02)


@pytest.mark.parametrize("metric", list(Metric))
def test_the_graphs_find_what_the_exact_scan_finds(quick_folder: Path, metric: Metric) -> None:
    rng = np.random.default_rng(7)
    vectors = clustered(rng, 5_000, 32)
    probes = clustered(rng, 100, 32)
    with one_gallery(quick_folder, settings(dimension=32, metric=metric), GRAPHS) as gallery:
        items = [new(f"i{n}", row, f"s{n // 2}") for n, row in enumerate(vectors)]
        for start in range(0, len(items), 1_000):
            gallery.enroll(items[start : start + 1_000]).result()
        settle(gallery, GRAPHS.segment_rows)
        quick = gallery.search(probes, k=10).results
        truth = gallery.search(probes, k=10, exact=True).results
    assert not any(hits.exact for hits in quick)
    assert all(hits.exact for hits in truth)
    shared = sum(
        len({hit.item_id for hit in a.hits} & {hit.item_id for hit in b.hits})
        for a, b in zip(quick, truth, strict=True)
    )
    assert shared / (10 * len(probes)) >= 0.95


def test_ten_thousand_identical_vectors_are_all_found_and_hide_nobody(quick_folder: Path) -> None:
    rng = np.random.default_rng(8)
    limits = GalleryLimits(exact_scan_below=100, segment_rows=512)
    others = rng.normal(size=(2_000, 16)).astype(np.float32)
    same = np.full(16, 0.25, dtype=np.float32)
    with one_gallery(quick_folder, settings(dimension=16), limits) as gallery:
        for start in range(0, 10_000, 1_000):
            gallery.enroll([new(f"same{n:05}", same) for n in range(start, start + 1_000)]).result()
        gallery.enroll([new(f"other{n:04}", row) for n, row in enumerate(others)]).result()
        settle(gallery, limits.segment_rows)
        (hits,) = gallery.search(same[None], k=10).results
        assert [(h.item_id, h.distance) for h in hits.hits] == [
            (f"same{n:05}", 0.0) for n in range(10)
        ]
        found = gallery.search(others[:200], k=1).results
        right = sum(hits.hits[0].item_id == f"other{n:04}" for n, hits in enumerate(found))
        assert right >= 195
        assert gallery.remove(ids=[f"same{n:05}" for n in range(9_999)]).result().removed == 9_999
        (hits,) = gallery.search(same[None], k=1).results
        assert hits.hits[0].item_id == "same09999"


def test_removing_most_vectors_rebuilds_the_graphs_without_them(quick_folder: Path) -> None:
    rng = np.random.default_rng(9)
    vectors = rng.normal(size=(3_000, 8)).astype(np.float32)
    limits = GalleryLimits(exact_scan_below=200, segment_rows=512)
    with one_gallery(quick_folder, settings(dimension=8), limits) as gallery:
        gallery.enroll([new(f"i{n}", row) for n, row in enumerate(vectors)]).result()
        settle(gallery, limits.segment_rows)
        gallery.remove(ids=[f"i{n}" for n in range(3_000) if n % 3]).result()
        end = time.monotonic() + 60
        while sum(len(segment) for segment in gallery.view.segments) > 1_000 + limits.segment_rows:
            assert time.monotonic() < end
            time.sleep(0.02)
        for n, hits in zip(
            range(0, 300, 3), gallery.search(vectors[0:300:3], k=1).results, strict=True
        ):
            assert hits.hits[0].item_id == f"i{n}"


def test_a_late_rebuild_does_not_throw_away_its_neighbours(quick_folder: Path) -> None:
    limits = GalleryLimits(exact_scan_below=1_000, segment_rows=16)
    with one_gallery(quick_folder, settings(dimension=2), limits) as gallery:
        gallery.enroll([new(f"i{n:02}", [n, 1]) for n in range(60)]).result()
        first, second, third, *_ = gallery.view.segments

        def joined(*old: Segment) -> Segment:
            labels = gallery.living(old)
            return Segment(labels, keys_of(old, labels), *stitched(old, labels, 2))

        # Both were planned on the same view; the second comes when the first was taken in.
        gallery.offer([second, third], joined(second, third))
        gallery.offer([first, second], joined(first, second))
        gallery.enroll([new("last", [60, 1])]).result()
        probes = np.stack([np.arange(60), np.ones(60)], axis=1).astype(np.float32)
        found = gallery.search(probes, k=1).results
        assert [hits.hits[0].item_id for hits in found] == [f"i{n:02}" for n in range(60)]


def test_enrolling_searching_and_removing_at_once_never_shows_half_an_item(
    quick_folder: Path,
) -> None:
    """Each item's vector, subject and version say the same number, in whatever state is read."""
    limits = GalleryLimits(exact_scan_below=50, segment_rows=128)
    stop = threading.Event()
    faults: list[BaseException] = []
    reads = [0]

    def item(name: int, version: int):
        # Far apart by name, near by version: a probe at (name, 0) finds any version of the name.
        return new(f"i{name}", [1_000.0 * name, version], f"v{version}-{name}")

    def guarded(work):
        def run() -> None:
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:
                faults.append(error)
                stop.set()

        return threading.Thread(target=run)

    with one_gallery(quick_folder, settings(dimension=2), limits) as gallery:
        rng = np.random.default_rng(10)
        gallery.enroll([item(name, 0) for name in range(400)]).result()

        def write() -> None:
            names = rng.choice(200, size=20, replace=False)  # 200..399 stay as they are
            version = int(rng.integers(1, 300))
            gallery.enroll([item(int(name), version) for name in names]).result()
            gallery.remove(ids=[f"i{name}" for name in names[:5]]).result()

        def read() -> None:
            names = np.random.default_rng().integers(0, 400, size=4)
            probes = np.stack([1_000.0 * names, np.zeros(4)], axis=1).astype(np.float32)
            for name, hits in zip(names, gallery.search(probes, k=1).results, strict=True):
                hit = hits.hits[0]
                version, _, owner = hit.subject.removeprefix("v").partition("-")
                assert hit.item_id == f"i{owner}"
                expected = np.hypot(1_000.0 * (int(owner) - int(name)), float(version))
                assert hit.distance == pytest.approx(expected)
                if name >= 200:
                    assert (hit.item_id, hit.distance) == (f"i{name}", 0.0)
                reads[0] += 1

        threads = [guarded(write), guarded(read), guarded(read)]
        for thread in threads:
            thread.start()
        stop.wait(3.0)
        stop.set()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        assert reads[0] > 100


def test_a_graph_refuses_what_would_crash_hnswlib() -> None:
    graph = Graph(4, Metric.EUCLIDEAN, HnswSettings())
    probe = np.ones((1, 4), dtype=np.float32)
    assert graph.nearest(probe, 1) is None  # not built
    vectors = np.random.default_rng(3).normal(size=(50, 4)).astype(np.float32)
    assert graph.build(vectors, 1, lambda: False)
    assert graph.nearest(probe, 1) is not None
    for bad, wanted in ((probe[:, :3], 1), (probe, 0), (probe, 51), (probe * np.nan, 1)):
        assert graph.nearest(bad, wanted) is None
