"""The process that the durability tests kill, starve of disk, and lock out.

It says on standard output what it is about to do and, after the future resolved, that it is done.
"""

from __future__ import annotations

import json
import resource
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.server.gallery.folders import new, settings
from twinserve.errors import DiskFull, FailedPrecondition, ItemNotFound
from twinserve.server.gallery import Galleries, Gallery, GalleryLimits

LIMITS = GalleryLimits(exact_scan_below=50, segment_rows=32)
IDS = 300


def embedding(item_id: str, version: int) -> NDArray[np.float32]:
    seed = zlib.crc32(f"{item_id}/{version}".encode())
    return np.random.default_rng(seed).normal(size=4).astype(np.float32)


def holds(gallery: Gallery, item_id: str, version: int | None) -> bool:
    """Whether the gallery has exactly this version of the item (None: does not have it)."""
    try:
        item, stored = gallery.get_item(item_id)
    except ItemNotFound:
        return version is None
    if version is None or stored is None:
        return False
    return (
        item.subject == f"{item_id}-{version}"
        and item.metadata == {"count": version}
        and np.array_equal(stored, embedding(item_id, version))
    )


def work(gallery: Gallery, seed: int) -> None:
    rng = np.random.default_rng([seed, 77])
    for step in range(10_000):
        names = [f"i{n}" for n in rng.choice(IDS, size=int(rng.integers(1, 20)), replace=False)]
        if rng.random() < 0.3:
            say("begin", dict.fromkeys(names))
            gallery.remove(ids=names).result()
        else:
            version = seed * 10_000 + step
            say("begin", dict.fromkeys(names, version))
            gallery.enroll(
                [
                    new(name, embedding(name, version), f"{name}-{version}", {"count": version})
                    for name in names
                ]
            ).result()
        say("done")


def full(gallery: Gallery, folder: Path) -> None:
    gallery.enroll([new("before", [1, 0, 0, 0])]).result()
    say("stored")
    largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 100_000, hard))
    fill = {f"k{n}": "x" * 1_000 for n in range(12)}
    try:
        for _ in range(5):
            gallery.enroll([new(f"large{n}", [1, 0, 0, 0], "", fill) for n in range(100)]).result()
    except DiskFull as error:
        say("refused" if error.retry_after else "refused without a delay")
    (hits,) = gallery.search(np.ones((1, 4), dtype=np.float32), k=5).results
    assert [hit.item_id for hit in hits.hits] == ["before"]
    assert gallery.get_item("before")[0].id == "before"
    say("read")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    gallery.enroll([new("after", [1, 0, 0, 0])]).result()
    say("resumed")


def say(word: str, facts: object = None) -> None:
    print(word if facts is None else f"{word} {json.dumps(facts)}", flush=True)


def main() -> int:
    mode, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    galleries = Galleries(folder, LIMITS)
    try:
        galleries.open()
    except FailedPrecondition as error:
        print(error.message)
        return 3
    galleries.create(settings())
    gallery = galleries.get("faces")
    if mode == "full":
        full(gallery, folder)
    else:
        work(gallery, seed)
    galleries.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
