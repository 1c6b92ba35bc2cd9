"""What a gallery takes: in memory by what its view holds, on disk by kinds of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.server.gallery.folders import new, one_gallery, settings
from twinserve.server.gallery import GalleryLimits
from twinserve.server.gallery.footprint import DiskUsage, disk_usage

VECTORS = np.random.default_rng(1).normal(size=(1_000, 64)).astype(np.float32)
SCANNED = GalleryLimits(segment_rows=256)


def test_the_status_counts_segments_dead_vectors_and_bytes(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(dimension=64), SCANNED) as gallery:
        empty = gallery.status()
        assert (empty.segment_count, empty.dead_count) == (0, 0)
        items = [new(f"i{n}", row) for n, row in enumerate(VECTORS[:600])]
        gallery.enroll(items).result()
        full = gallery.status()
        assert (full.segment_count, full.dead_count) == (3, 0)
        assert full.memory_bytes > 768 * 64 * 4, "the growing segment has its room already"
        gallery.remove(ids=[f"i{n}" for n in range(10)]).result()
        gallery.enroll([new("i20", VECTORS[900])]).result()
        assert gallery.status().dead_count == 11


def test_files_count_by_what_they_are_for(tmp_path: Path) -> None:
    for name, size in (
        ("store.db", 7),
        ("store.db-wal", 11),
        ("store.db-shm", 2),
        ("store.db.broken", 17),
        ("index-1.graph", 19),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "a").write_bytes(bytes(23))
    found = disk_usage(tmp_path)
    assert found == DiskUsage(store=7, log=11, index=42, broken=17)
    assert found + found == DiskUsage(14, 22, 84, 34)
    assert disk_usage(tmp_path / "gone") == DiskUsage()
