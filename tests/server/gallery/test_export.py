"""Reading a gallery out, stretch by stretch, and how many bytes it may take."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import new, one_gallery, opened, settings
from twinserve.errors import AlreadyExists, GalleryFull, GalleryNotFound, InvalidInput, StoreDamaged
from twinserve.server.gallery import Clause, Equals, Filter, Gallery, Item
from twinserve.server.gallery.catalog import read_settings, write_settings

MIB = 1 << 20


def read_out(
    gallery: Gallery, size: int, filter: Filter | None = None
) -> tuple[list[Item], bytes, list[int]]:
    items, vectors, sizes, after, done = [], b"", [], "", False
    while not done:
        found = gallery.export(after, size, filter=filter)
        assert len(found.embeddings) == 16 * len(found.items)
        items += found.items
        vectors += found.embeddings
        sizes.append(len(found.items))
        after, done = found.last, found.done
    return items, vectors, sizes


def fill(gallery: Gallery, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    vectors = {f"i{n}": rng.normal(size=4).astype(np.float32) for n in range(count)}
    gallery.enroll(
        [
            new(item_id, vector, f"s{n % 5}", {"count": n % 3, "note": "é" * n})
            for n, (item_id, vector) in enumerate(vectors.items())
        ]
    ).result()
    return vectors


@pytest.mark.parametrize("size", [1, 300, 5_000, MIB])
def test_all_items_come_once_by_id_with_their_vectors_bit_for_bit(
    quick_folder: Path, size: int
) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        vectors = fill(gallery, 57)
        items, read, sizes = read_out(gallery, size)
        assert [item.id for item in items] == sorted(vectors)
        assert read == b"".join(vectors[item_id].tobytes() for item_id in sorted(vectors))
        assert items == gallery.list_items(limit=100)[0]
        assert (len(sizes) == 1) == (size == MIB)
        if size == 1:
            assert set(sizes[:-1]) == {1}
        assert not gallery.export("", size, embeddings=False).embeddings


def test_a_filter_chooses_and_what_it_leaves_out_costs_no_message(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        vectors = fill(gallery, 57)
        wanted = sorted(f"i{n}" for n in range(57) if n % 3 == 1)
        items, read, sizes = read_out(gallery, MIB, Clause("count", Equals(1)))
        assert [item.id for item in items] == wanted
        assert read == b"".join(vectors[item_id].tobytes() for item_id in wanted)
        assert sizes == [len(wanted)]
        assert gallery.export("", MIB, filter=Clause("count", Equals(9))).items == []


def test_an_empty_gallery_ends_at_once(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        found = gallery.export("", MIB)
        assert (found.items, found.embeddings, found.done) == ([], b"", True)


def test_a_vector_that_is_not_as_written_is_never_exported(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        fill(gallery, 5)
        with sqlite3.connect(gallery._store.path) as connection:
            connection.execute("UPDATE vectors SET embedding = zeroblob(16) WHERE number = 3")
        connection.close()
        with pytest.raises(StoreDamaged, match="i2"):
            gallery.export("", MIB)
        assert len(gallery.export("", MIB, embeddings=False).items) == 5
        with sqlite3.connect(gallery._store.path) as connection:
            connection.execute("DELETE FROM vectors WHERE number = 3")
        connection.close()
        with pytest.raises(StoreDamaged, match="i2"):
            gallery.export("", MIB)


def test_a_deleted_gallery_cannot_be_read_on(quick_folder: Path) -> None:
    with opened(quick_folder) as galleries:
        galleries.create(settings())
        gallery = galleries.get("faces")
        fill(gallery, 5)
        last = gallery.export("", 1).last
        galleries.delete("faces")
        with pytest.raises(GalleryNotFound):
            gallery.export(last, 1)


# ---- max_bytes -----------------------------------------------------------------------------------


def used(gallery: Gallery) -> int:
    with gallery._store.reading() as reader:
        pages, free = (
            reader._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
    return int(pages - free) * 16_384


def bulk(first: int, count: int = 100) -> list[object]:
    note = {"note": "x" * 4_000}
    return [new(f"i{n:05}", [1, 0, 0, n], "", note) for n in range(first, first + count)]


@pytest.mark.parametrize("atomic", [False, True])
def test_a_gallery_never_takes_more_than_max_bytes(quick_folder: Path, atomic: bool) -> None:
    with one_gallery(quick_folder, settings(max_bytes=2 * MIB)) as gallery:
        held = 0
        while (error := gallery.enroll(bulk(held), atomic=atomic).exception()) is None:
            held += 100
            assert used(gallery) <= 2 * MIB
        assert isinstance(error, GalleryFull)
        assert str(2 * MIB) in error.message
        assert error.retry_after
        assert error.resource == ("gallery", "faces")
        assert held >= 300
        assert gallery.status().item_count == held
        # What adds nothing is always taken, and what was removed makes room.
        gallery.enroll(bulk(0)).result()
        gallery.remove(ids=[item.id for item in bulk(0, 200)]).result()
        gallery.enroll(bulk(20_000)).result()
        assert used(gallery) <= 2 * MIB


def test_a_request_refused_for_its_bytes_leaves_nothing_and_others_pass(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(max_bytes=MIB)) as gallery:
        large = gallery.enroll(bulk(0, 1_000), request_id="large")
        small = gallery.enroll(bulk(5_000, 1))
        with pytest.raises(GalleryFull):
            large.result()
        small.result()
        assert [item.id for item in gallery.list_items(limit=10)[0]] == ["i05000"]


def test_a_replacement_that_grows_is_refused_too(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(max_bytes=MIB)) as gallery:
        gallery.enroll([new(f"i{n}", [1, 0, 0, n]) for n in range(500)]).result()
        note = {"note": "x" * 10_000}
        with pytest.raises(GalleryFull):
            gallery.enroll([new(f"i{n}", None, "", note) for n in range(500)]).result()
        assert gallery.get_item("i0")[0].metadata == {}


def test_max_bytes_is_a_setting_like_the_others(quick_folder: Path) -> None:
    with opened(quick_folder) as galleries:
        galleries.create(settings(max_bytes=5 * MIB))
        galleries.create(settings(max_bytes=5 * MIB))
        with pytest.raises(AlreadyExists, match="max_bytes"):
            galleries.create(settings())
        for value in (-1, 1, MIB - 1):
            with pytest.raises(InvalidInput) as refused:
                galleries.create(settings("small", max_bytes=value))
            assert refused.value.field == "gallery.max_bytes"
    with opened(quick_folder) as galleries:
        assert galleries.get("faces").settings.max_bytes == 5 * MIB


def test_rows_of_before_there_was_a_limit_have_none() -> None:
    raw = json.loads(write_settings(settings(max_bytes=MIB)))
    del raw["max_bytes"]
    assert read_settings(json.dumps(raw)) == dataclasses.replace(settings(), max_bytes=0)


def test_a_gallery_says_what_it_takes_on_disk(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as gallery:
        before = gallery.status().disk_bytes
        gallery.enroll(bulk(0, 500)).result()
        folder = gallery._store.path.parent
        assert gallery.status().disk_bytes >= before + 500 * 4_000
        other = folder / "other" / "graph"  # in index/ the gallery would tidy it away
        other.parent.mkdir()
        other.write_bytes(b"x" * 1_000_000)
        (folder / "store.db.broken").write_bytes(b"x" * 1_000_000)
        expected = sum(
            path.stat().st_size for path in (folder / "store.db", folder / "store.db-wal", other)
        )
        assert gallery.status().disk_bytes == expected
