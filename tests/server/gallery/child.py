"""The process that the durability tests kill, starve of disk, and lock out.

It says on standard output what it is about to do and, after the future resolved, that it is done.
`many` forks such processes, one for each line on standard input: starting Python a thousand times
would take longer than all that they do.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.server.gallery.folders import new, settings
from twinserve.errors import DiskFull, FailedPrecondition, ItemNotFound
from twinserve.server.gallery import (
    Galleries,
    Gallery,
    GalleryLimits,
    GallerySettings,
    HnswSettings,
    NewItem,
    PackedItems,
    fail_points,
)

# Always indexing, sealing, merging and writing snapshots.
LIMITS = GalleryLimits(exact_scan_below=50, segment_rows=32, snapshot_rows=20)
IDS = 300
SHARED = 7  # one version in so many has a vector that other items of the version have too

# What is known of an item: its version and subject; None = it is not there.
State = tuple[int, str] | None


def wanted() -> GallerySettings:
    return settings(hnsw=HnswSettings(m=8, ef_construction=50, ef=16))


def embedding(item_id: str, version: int) -> NDArray[np.float32]:
    whose = "" if version % SHARED == 0 else item_id
    seed = zlib.crc32(f"{whose}/{version}".encode())
    return np.random.default_rng(seed).normal(size=4).astype(np.float32)


def holds(gallery: Gallery, item_id: str, state: State) -> bool:
    """Whether the gallery has the item exactly so."""
    try:
        item, stored = gallery.get_item(item_id)
    except ItemNotFound:
        return state is None
    if state is None or stored is None:
        return False
    return (item.metadata, item.subject) == (
        {"count": state[0]},
        state[1],
    ) and stored.tobytes() == embedding(item_id, state[0]).tobytes()


def present(gallery: Gallery) -> dict[str, tuple[int, str]]:
    """What a gallery holds."""
    items, _ = gallery.list_items(limit=10**6)
    return {item.id: (int(str(item.metadata["count"])), item.subject) for item in items}


def work(gallery: Gallery, seed: int) -> None:
    """Enrol, replace, remove, move, rename and search, until killed."""
    rng = np.random.default_rng([seed, 77])
    known = present(gallery)
    for step in range(10_000):
        version = seed * 10_000 + step
        names = [f"i{n}" for n in rng.choice(IDS, size=int(rng.integers(1, 20)), replace=False)]
        there = [name for name in names if name in known]
        kind = rng.random()
        effects: dict[str, State]
        if kind < 0.2:
            effects = dict.fromkeys(names)
            begin(effects)
            gallery.remove(ids=names).result()
        elif kind < 0.35 and there:
            subject = "" if rng.random() < 0.2 else f"g{rng.integers(30)}"
            effects = {name: (known[name][0], subject) for name in there}
            begin(effects)
            gallery.move(subject, ids=there).result()
        elif kind < 0.45 and there and known[there[0]][1]:
            subject = known[there[0]][1]
            fresh = f"r{version}" if rng.random() < 0.5 else f"g{rng.integers(30)}"
            if fresh == subject:
                continue
            effects = {
                name: (number, fresh) for name, (number, old) in known.items() if old == subject
            }
            begin(effects)
            gallery.rename(subject, fresh, merge=True).result()
        elif kind < 0.55 and there:
            probes = np.stack([embedding(name, known[name][0]) for name in there])
            outcome = gallery.search(probes, k=1, by_subject=False, exact=bool(step % 2))
            found = [(outcome.ids[at], outcome.distances[at]) for at in outcome.starts[:-1]]
            assert all(item.decode() in known for item, _ in found)
            continue
        else:
            columns = bool(step % 2)
            if columns:  # which are written in another way where all are new
                names = [name for name in names if name not in known] or names
            items = []
            for name in names:
                subject = "" if rng.random() < 0.2 else f"g{rng.integers(30)}"
                items.append(new(name, embedding(name, version), subject, {"count": version}))
            effects = {item.id: (version, item.subject) for item in items}
            begin(effects)
            gallery.enroll(packed(items) if columns else items).result()
        say("done")
        for name, state in effects.items():
            if state is None:
                known.pop(name, None)
            else:
                known[name] = state


def packed(items: Sequence[NewItem]) -> PackedItems:
    return PackedItems(
        [item.id for item in items],
        [item.subject for item in items],
        [item.metadata for item in items],
        np.stack([item.embedding for item in items if item.embedding is not None]),
    )


def begin(effects: Mapping[str, State]) -> None:
    say("begin", effects)


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
    line = word if facts is None else f"{word} {json.dumps(facts)}"
    os.write(1, f"{line}\n".encode())  # in one step: it may be the last


def many() -> None:
    """Fork a process for each line `mode folder seed fail-point` (- = none)."""
    for line in sys.stdin:
        mode, folder, seed, point = line.split()
        child = os.fork()
        if not child:
            code = 1
            say("pid", os.getpid())  # not by the parent, which may be later than what comes next
            try:
                fail_points.arm("" if point == "-" else point)
                code = run(mode, Path(folder), int(seed))
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        say("ended", os.waitstatus_to_exitcode(status))


def run(mode: str, folder: Path, seed: int) -> int:
    galleries = Galleries(folder, LIMITS)
    try:
        galleries.open()
    except FailedPrecondition as error:
        print(error.message, flush=True)
        return 3
    galleries.create(wanted())
    gallery = galleries.get("faces")
    if mode == "full":
        full(gallery, folder)
    else:
        work(gallery, seed)
    galleries.close()
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "many":
        many()
        raise SystemExit(0)
    raise SystemExit(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
