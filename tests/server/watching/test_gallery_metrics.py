"""What the galleries export: what happened by model, and what stands at the scrape in one look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from tests.server.gallery.folders import new, settings
from tests.server.gallery.test_graphs import settle
from twinserve.errors import StoreDamaged
from twinserve.server.gallery import Galleries, GalleryLimits
from twinserve.server.gallery.observing import BuildKind
from twinserve.server.watching import gauges
from twinserve.server.watching.gallery_metrics import GalleryMetrics
from twinserve.server.watching.metrics import Metrics

LIMITS = GalleryLimits(exact_scan_below=100, segment_rows=128)
VECTORS = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)


def samples(metrics: Metrics) -> dict[str, float]:
    text = generate_latest(metrics.registry).decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name.removeprefix("twinserve_"): float(value) for name, _, value in lines}


def test_what_happens_in_a_gallery_is_counted_by_its_model(tmp_path: Path) -> None:
    metrics = Metrics()
    galleries = Galleries(tmp_path, LIMITS, GalleryMetrics(metrics))
    gauges.watch_galleries(metrics, galleries)
    galleries.open()
    galleries.create(settings(dimension=8))
    gallery = galleries.get("faces")
    gallery.enroll([new(f"i{n}", row) for n, row in enumerate(VECTORS)]).result()
    gallery.remove(ids=["nobody"]).result()
    settle(gallery, 128)
    found = samples(metrics)
    assert found['gallery_commit_seconds_count{model="twin"}'] == 2
    assert found['gallery_publish_seconds_count{model="twin"}'] == 1, "of the second none is needed"
    assert found['gallery_build_seconds_count{kind="build",model="twin"}'] >= 1
    assert found['gallery_built_rows_total{kind="build",model="twin"}'] == 384
    assert found["gallery_scrubbed_bytes_total"] == 0
    assert found["gallery_items"] == 400
    assert found["gallery_segments"] == len(gallery.view.segments)
    assert found["gallery_dead_vectors"] == 0
    assert found["gallery_memory_bytes"] == gallery.status().memory_bytes
    assert found['gallery_disk_bytes{kind="log"}'] > VECTORS.nbytes
    gallery.remove(ids=[f"i{n}" for n in range(10)]).result()
    assert samples(metrics)["gallery_dead_vectors"] == 10
    gallery.damaged = StoreDamaged("by this test")
    assert samples(metrics)["galleries_damaged"] == 1
    gallery.damaged = None
    saved = 'gallery_snapshot_seconds_count{model="twin"}'
    before = samples(metrics).get(saved, 0)
    gallery.enroll([new(f"more{n}", row) for n, row in enumerate(VECTORS + 1)]).result()
    settle(gallery, 128)
    galleries.close()
    assert samples(metrics)[saved] > before, "with other graphs the last snapshot is of no use"
    assert samples(metrics)["galleries"] == 0


def test_what_a_check_finds_and_what_a_snapshot_takes_is_counted() -> None:
    metrics = Metrics()
    observer = GalleryMetrics(metrics)
    observer.snapshotted("m", 0.5)
    observer.recalled("m", 10, 9)
    observer.recalled("m", 10, 10)
    observer.scrubbed(100)
    observer.scrubbed(23)
    observer.built("m", BuildKind.MERGE, 2.0, 7)
    found = samples(metrics)
    assert found['gallery_snapshot_seconds_sum{model="m"}'] == 0.5
    assert found['gallery_recall_neighbours_total{model="m"}'] == 20
    assert found['gallery_recall_found_total{model="m"}'] == 19
    assert found["gallery_scrubbed_bytes_total"] == 123
    assert found['gallery_built_rows_total{kind="merge",model="m"}'] == 7
    metrics.forget("m")
    assert not [name for name in samples(metrics) if 'model="m"' in name]


def test_the_rows_that_wait_and_the_lowest_recall_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, galleries = Metrics(), Galleries(tmp_path)
    gauges.watch_galleries(metrics, galleries)
    assert samples(metrics)["gallery_writer_rows"] == 0
    monkeypatch.setattr(Galleries, "waiting_rows", 7)
    monkeypatch.setattr(Galleries, "lowest_recall", lambda self: {"m": 0.5})
    monkeypatch.setattr(Galleries, "last_scrub", 1e9)
    found = samples(metrics)
    assert found["gallery_writer_rows"] == 7
    assert found['gallery_recall_lowest{model="m"}'] == 0.5
    assert found["gallery_last_scrub_timestamp_seconds"] == 1e9


def test_gauges_of_one_look_fail_together_and_spoil_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    metrics.watch_together((("a", "A.", ()), ("b", "B.", ("of",))), lambda: [[((), 1 / 0)], []])
    metrics.watch("c", "C.", lambda: 5)
    assert "twinserve_a and its likes could not be read" in "".join(
        generate_latest(metrics.registry).decode() + caplog.text
    )
    assert samples(metrics)["c"] == 5
