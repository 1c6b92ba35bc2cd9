"""Galleries with a snapshot of their index, what they answer, and ways to damage the snapshot.

As a program (folder, count, seed) it damages copies of what `make` made at random, opens each, and
says on standard output that every answer was right: a crash of the process is a failure too.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.server.gallery.folders import new, opened, settings
from twinserve.distance import Metric
from twinserve.server.gallery import (
    Clause,
    Equals,
    Gallery,
    GalleryLimits,
    GallerySettings,
    HnswSettings,
)

DIMENSION = 8
ITEMS = 300
LIMITS = GalleryLimits(exact_scan_below=50, segment_rows=64, snapshot_rows=20_000)
NAMES = ("faces", "others")


def wanted(name: str) -> GallerySettings:
    narrow = HnswSettings(m=8, ef_construction=40, ef=8)
    return settings(name, dimension=DIMENSION, metric=Metric.COSINE, hnsw=narrow)


def settle(gallery: Gallery) -> None:
    """Wait until graphs are searched."""
    end = time.monotonic() + 60
    while gallery.status().index_debt > LIMITS.segment_rows or not any(
        segment.graph for segment in gallery.view.segments
    ):
        assert time.monotonic() < end
        time.sleep(0.005)


def make(root: Path) -> None:
    """Two galleries: each a snapshot of its index, and changes since."""
    with opened(root, LIMITS) as galleries:
        for number, name in enumerate(NAMES):
            galleries.create(wanted(name))
            gallery = galleries.get(name)
            rng = np.random.default_rng(number)
            vectors = rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32)
            colours = [{"colour": "rgb"[n % 3], "count": n} for n in range(ITEMS)]
            items = [new(f"i{n}", vectors[n], f"s{n // 3}", colours[n]) for n in range(ITEMS)]
            gallery.enroll(items[:200]).result()
            gallery.remove(ids=[f"i{n}" for n in range(0, 200, 9)]).result()
            gallery.move("moved", ids=[f"i{n}" for n in range(1, 200, 9)]).result()
            gallery.enroll(items[200:]).result()
            settle(gallery)
        keys = {name: galleries.get(name).key for name in NAMES}
        (root / "names.json").write_text(json.dumps(keys))
    with opened(root, LIMITS) as galleries:  # too little for another snapshot
        for name in NAMES:
            change(galleries.get(name), 7)


def change(gallery: Gallery, seed: int) -> None:
    """Add, replace, remove, move and rename a few."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(4, DIMENSION)).astype(np.float32)
    gallery.enroll([new("fresh", vectors[0], "s1"), new("i20", vectors[1])]).result()
    gallery.remove(ids=["i11", "i12"]).result()
    gallery.enroll([new("i12", vectors[2], "", {"count": 5, "colour": "g"})]).result()
    gallery.move("", ids=["i13", "i14"]).result()
    gallery.rename(f"s{70 + seed}", "s8", merge=True).result()
    gallery.enroll([new("i30", None, "elsewhere")]).result()


def answers(gallery: Gallery) -> object:
    """Everything that has to be the same, whatever the index was made from."""
    probes = np.random.default_rng(99).normal(size=(8, DIMENSION)).astype(np.float32)
    everybody = gallery.search(probes, k=10 * ITEMS, by_subject=False, exact=True)
    red = Clause("colour", Equals("r"))
    said = [
        [everybody.ids, everybody.subject_names, everybody.distances, everybody.items],
        gallery.search(probes, k=5, exact=True).results,
        gallery.search(probes, k=5, exact=True, filter=red).results,
        gallery.search(probes, k=5, exact=True, mean_of=2).results,
        [gallery.count(filter=red).items, gallery.count().subjects],
        [gallery.count(subject=name).items for name in ("moved", "s8", "s1", "i13", "elsewhere")],
        [gallery.verify("moved", probe).item_id for probe in probes],
        [(item.id, item.subject, item.metadata) for item in gallery.list_items(limit=9999)[0]],
    ]
    # The graphs may differ, and find others; what they say of those they find is true.
    truth = [{hit.item_id: hit for hit in hits.hits} for hits in everybody.results]
    found = gallery.search(probes, k=5, by_subject=False).results
    assert not any(hits.exact for hits in found)
    for hits, right in zip(found, truth, strict=True):
        assert len(hits.hits) == 5
        for hit in hits.hits:
            assert hit == right[hit.item_id]
    return said


def index_of(root: Path, name: str = NAMES[0]) -> Path:
    """The index folder of a gallery."""
    keys = json.loads((root / "names.json").read_text())
    return root / "galleries" / str(keys[name]) / "index"


def files(index: Path) -> dict[str, Path]:
    """One file of each kind."""
    return {
        "vectors": sorted(index.glob("segment-*.arrays"))[0],
        "graph": sorted(index.glob("segment-*.graph"))[0],
        "rows": next(index.glob("rows-*.arrays")),
        "manifest": index / "manifest.json",
    }


# -- damages --------------------------------------------------------------------------------------


def cut(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: int(rng.integers(1, path.stat().st_size))])


def empty(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def extend(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 9_000))))


def flip_a_bit(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def zero_a_page(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    pages = [start for start in range(0, len(data), 4_096) if any(data[start : start + 4_096])]
    start = int(rng.choice(pages))
    size = len(data[start : start + 4_096])
    data[start : start + size] = bytes(size)
    path.write_bytes(data)


def shuffle_pages(path: Path, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    pages = [data[start : start + 4_096] for start in range(0, len(data), 4_096)]
    if len(pages) < 3:
        flip_a_bit(path, rng)
        return
    path.write_bytes(b"".join([*pages[1:-1], pages[0], pages[-1]]))


def remove(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def garbage(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(rng.bytes(path.stat().st_size))


DAMAGES: tuple[Callable[[Path, np.random.Generator], None], ...] = (
    cut,
    empty,
    extend,
    flip_a_bit,
    zero_a_page,
    shuffle_pages,
    remove,
    garbage,
)


def rewrite_manifest(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change what the manifest says, with a right checksum; `edit` may return another content."""
    content = json.loads(path.read_text().rpartition("\n}")[0] + "\n}")
    changed = edit(content)
    text = json.dumps(content if changed is None else changed, indent=1, sort_keys=True)
    path.write_text(f"{text}\n{zlib.crc32(text.encode()):08x}\n")


def main() -> int:
    root, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    logging.disable(logging.CRITICAL)
    rng = np.random.default_rng(seed)
    with opened(root, LIMITS) as galleries:
        right = answers(galleries.get(NAMES[0]))
    copy = root.with_name("copy")
    for number in range(count):
        shutil.copytree(root, copy)
        index = index_of(copy)
        done = []
        for _ in range(int(rng.integers(1, 3))):
            paths = [path for path in sorted(index.iterdir()) if path.stat().st_size]
            path = paths[int(rng.integers(len(paths)))]
            damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
            done.append(f"{damage.__name__} {path.name}")
            damage(path, rng)
        print(number, *done, flush=True)
        for _ in range(2):  # what the damage led to must not be taken up either
            with opened(copy, LIMITS) as galleries:
                gallery = galleries.get(NAMES[0])
                settle(gallery)
                assert answers(gallery) == right
        shutil.rmtree(copy)
    print("all right", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
