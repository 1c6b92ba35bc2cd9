"""What the galleries survive: a full disk, a damaged file, a second server, half a deletion.

What they survive of SIGKILL stands in test_kills.py, and of a damaged index in test_snapshots.py.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import KEYS, new, one_gallery, opened, settings
from twinserve.errors import (
    AlreadyExists,
    DiskFull,
    FailedPrecondition,
    GalleryFull,
    GalleryNotFound,
    InvalidInput,
    StoreDamaged,
    Unavailable,
)
from twinserve.server.gallery import Galleries, GalleryLimits, MetadataType
from twinserve.server.gallery.catalog import Catalog
from twinserve.server.gallery.store import Store, as_twinserve_error
from twinserve.server.storage import data_folder


def start_child(mode: str, folder: Path, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.gallery.child", mode, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_full_disk_refuses_writes_and_keeps_reading_and_recovers(tmp_path: Path) -> None:
    process = start_child("full", tmp_path, seed=0)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output.split() == ["stored", "refused", "read", "resumed"]
    with opened(tmp_path) as galleries:
        listed, _ = galleries.get("faces").list_items(limit=10**6)
        assert {item.id for item in listed} >= {"before", "after"}
        assert not any(item.id.startswith("large") for item in listed)


def test_a_disk_that_becomes_read_only_keeps_reading_and_resumes(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as gallery:
        gallery.enroll([new("before", [1, 0, 0, 0])]).result()
        connection = gallery.store._connection
        connection.execute("PRAGMA query_only = ON")  # SQLITE_READONLY, as the root may not get
        changes: list[Callable[[], object]] = [
            lambda: gallery.enroll([new("lost", [1, 0, 0, 0])]).result(),
            lambda: gallery.remove(ids=["before"]).result(),
            lambda: gallery.move("anna", ids=["before"]).result(),
            lambda: gallery.rename("before", "anna").result(),
        ]
        for change in changes:
            with pytest.raises(DiskFull) as refused:
                change()
            assert refused.value.retry_after
        (hits,) = gallery.search(np.ones((1, 4), dtype=np.float32), k=5).results
        assert [(hit.item_id, hit.subject) for hit in hits.hits] == [("before", "")]
        assert gallery.get_item("before")[0].id == "before"
        connection.execute("PRAGMA query_only = OFF")
        gallery.enroll([new("after", [1, 0, 0, 0])]).result()
    with opened(tmp_path) as galleries:
        listed, _ = galleries.get("faces").list_items(limit=10)
        assert [item.id for item in listed] == ["after", "before"]


def damage_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:100] = bytes(100)
    path.write_bytes(data)


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(16_384, len(data), 16_384):
        data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit_of_a_vector(path: Path) -> None:
    data = bytearray(path.read_bytes())
    where = data.find(np.float32(1234.5).tobytes())
    assert where > 0
    data[where] ^= 1
    path.write_bytes(data)


def change_a_subject(path: Path) -> None:
    data = path.read_bytes()
    assert b"subject-of-7" in data
    path.write_bytes(data.replace(b"subject-of-7", b"subject-of-8"))


def newer_schema(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def not_a_database(path: Path) -> None:
    path.write_bytes(b"hello" * 1_000)


@pytest.mark.parametrize(
    "damage",
    [
        damage_header,
        damage_pages,
        cut_short,
        flip_a_bit_of_a_vector,
        change_a_subject,
        not_a_database,
    ],
)
def test_a_damaged_store_is_copied_aside_and_refused(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with one_gallery(tmp_path / "data", settings()) as gallery:
        items = [new(f"i{n}", [1234.5, n, 0, 0], f"subject-of-{n}") for n in range(500)]
        gallery.enroll(items).result()
    (path,) = (tmp_path / "data" / "galleries").glob("*/store.db")
    shutil.copy(path, tmp_path / "backup")
    damage(path)
    evidence = path.read_bytes()
    for _ in range(2):
        with (
            opened(tmp_path / "data") as galleries,
            pytest.raises(StoreDamaged, match=r"damaged .*copy .*backup .*or delete the gallery"),
        ):
            galleries.get("faces")
    assert path.with_name("store.db.broken").read_bytes() == evidence
    shutil.copy(tmp_path / "backup", path)
    with opened(tmp_path / "data") as galleries:
        assert galleries.get("faces").status().item_count == 500


def test_a_store_of_a_later_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as gallery:
        gallery.enroll([new("a", [1, 0, 0, 0])]).result()
    (path,) = (tmp_path / "galleries").glob("*/store.db")
    newer_schema(path)
    evidence = path.read_bytes()
    with opened(tmp_path) as galleries, pytest.raises(StoreDamaged) as refused:
        galleries.get("faces")
    assert re.search(
        r"written by a newer twinserve .*99.*start that release again.*backup", str(refused.value)
    )
    assert path.read_bytes() == evidence
    assert not path.with_name("store.db.broken").exists(), "gigabytes, copied for nothing"


@pytest.mark.parametrize("trouble", ["damaged", "missing store", "missing folder"])
def test_a_refused_gallery_leaves_the_others_serving_and_can_be_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    with one_gallery(tmp_path, settings("bad")):
        pass
    (store,) = (tmp_path / "galleries").glob("*/store.db")
    with one_gallery(tmp_path, settings("good")) as gallery:
        gallery.enroll([new("a", [1, 0, 0, 0])]).result()
    if trouble == "damaged":
        not_a_database(store)
    elif trouble == "missing store":
        store.unlink()
    else:
        shutil.rmtree(store.parent)
    with opened(tmp_path, GalleryLimits(max_galleries=2)) as galleries:
        assert "gallery bad is refused" in caplog.text
        assert galleries.get("good").get_item("a")[0].id == "a"
        assert [status.settings.name for status in galleries.list("", 9)] == ["good"]
        for refused in (galleries.get, lambda name: galleries.create(settings(name))):
            with pytest.raises(StoreDamaged, match="or delete the gallery"):
                refused("bad")
        with pytest.raises(GalleryFull):
            galleries.create(settings("third"))
        galleries.delete("bad")
        with pytest.raises(GalleryNotFound):
            galleries.get("bad")
        assert galleries.create(settings("bad")).item_count == 0
    with opened(tmp_path) as galleries:
        assert [status.settings.name for status in galleries.list("", 9)] == ["bad", "good"]
    assert len(list((tmp_path / "galleries").iterdir())) == 2


def test_a_damaged_catalogue_refuses_the_start(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()):
        pass
    not_a_database(tmp_path / "catalog.db")
    with pytest.raises(StoreDamaged, match=r"catalog\.db is damaged .*Put a backup"):
        Galleries(tmp_path).open()


def failure(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "reading", "kind", "words"),
    [
        (sqlite3.SQLITE_BUSY, False, Unavailable, "locked by another process"),
        (sqlite3.SQLITE_BUSY, True, Unavailable, "locked by another process"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, False, Unavailable, "try again"),
        (sqlite3.SQLITE_IOERR, True, StoreDamaged, "could not be read"),
        (sqlite3.SQLITE_IOERR_READ, False, StoreDamaged, "could not be read"),
        (sqlite3.SQLITE_IOERR_SHORT_READ, True, StoreDamaged, "could not be read"),
        (sqlite3.SQLITE_IOERR_WRITE, False, DiskFull, "Free space"),
        (sqlite3.SQLITE_FULL, False, DiskFull, "Free space"),
        (sqlite3.SQLITE_READONLY, False, DiskFull, "Free space"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, False, DiskFull, "Free space"),
        (sqlite3.SQLITE_CORRUPT, True, StoreDamaged, "restart the server"),
    ],
)
def test_an_error_of_the_database_says_what_it_was(
    code: int, reading: bool, kind: type[Exception], words: str
) -> None:
    worded = as_twinserve_error(failure(code), "faces", reading=reading)
    assert type(worded) is kind
    assert words in worded.message


def test_a_read_that_the_disk_fails_is_not_called_a_full_disk(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store.db", "faces")
    with pytest.raises(StoreDamaged, match="could not be read"), store.reading():
        raise failure(sqlite3.SQLITE_IOERR_LOCK)
    store.close()


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as gallery:
        with pytest.raises(FailedPrecondition, match=f"another server .process {os.getpid()}."):
            Galleries(tmp_path).open()
        process = start_child("work", tmp_path, seed=1)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "in use by another server" in output
        gallery.enroll([new("a", [1, 0, 0, 0])]).result()  # the first one is undisturbed
    with opened(tmp_path):
        pass


def test_galleries_are_created_once_listed_and_deleted_for_good(tmp_path: Path) -> None:
    with opened(tmp_path) as galleries:
        for name in ("b", "a", "c"):
            galleries.create(settings(name))
        galleries.get("a").enroll([new("x", [1, 0, 0, 0])]).result()
        assert galleries.create(settings("a")).item_count == 1
        with pytest.raises(AlreadyExists, match="dimension is 4, not 5"):
            galleries.create(settings("a", dimension=5))
        assert [status.settings.name for status in galleries.list("", 2)] == ["a", "b"]
        assert [status.settings.name for status in galleries.list("b", 2)] == ["c"]
        deleted = galleries.get("a")
        galleries.delete("a")
        with pytest.raises(GalleryNotFound):
            galleries.get("a")
        with pytest.raises(GalleryNotFound):
            deleted.enroll([new("x", [1, 0, 0, 0])])
        with pytest.raises(GalleryNotFound):
            deleted.get_item("x")
        assert galleries.create(settings("a", dimension=5)).item_count == 0
    with opened(tmp_path) as galleries:
        assert [status.settings.name for status in galleries.list("", 9)] == ["a", "b", "c"]
        assert galleries.get("a").settings == settings("a", dimension=5)
    assert len(list((tmp_path / "galleries").iterdir())) == 3


def test_declared_keys_mean_the_same_in_another_order(tmp_path: Path) -> None:
    turned = dataclasses.replace(settings(), metadata_keys=tuple(reversed(KEYS)))
    with opened(tmp_path) as galleries:
        first = galleries.create(settings(), request_id="r")
        assert galleries.create(turned) == first
        assert galleries.create(turned, request_id="r") == first
        with pytest.raises(AlreadyExists, match="metadata_keys"):
            galleries.create(dataclasses.replace(settings(), metadata_keys=KEYS[1:]))


@pytest.mark.parametrize("key", ["", "Colour", "1st", "a-b", "größe", "a\n", "k" * 64, "count"])
def test_a_declared_key_that_filters_cannot_name_is_refused(tmp_path: Path, key: str) -> None:
    keys = (("a" + "b" * 62, MetadataType.TEXT), *KEYS, (key, MetadataType.TEXT))
    with opened(tmp_path) as galleries:
        with pytest.raises(InvalidInput) as refused:
            galleries.create(dataclasses.replace(settings(), metadata_keys=keys))
        assert refused.value.field == f"gallery.metadata_keys[{len(keys) - 1}].key"
        galleries.create(dataclasses.replace(settings(), metadata_keys=keys[:-1]))


def test_a_creation_is_answered_again_by_its_request_id(tmp_path: Path) -> None:
    with opened(tmp_path) as galleries:
        first = galleries.create(settings("a"), request_id="r")
        galleries.delete("a")
    with opened(tmp_path) as galleries:
        again = galleries.create(settings("a"), request_id="r")
        assert again == dataclasses.replace(first, disk_bytes=0)  # it takes none any more
        with pytest.raises(GalleryNotFound):
            galleries.get("a")


def test_what_a_crash_left_of_a_creation_or_deletion_is_swept_away(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()):
        pass
    for digit in "012":
        (tmp_path / "galleries" / (digit * 32)).mkdir()
    (tmp_path / "galleries" / ("1" * 32) / "store.db").touch()
    Store.create(tmp_path / "galleries" / ("2" * 32) / "store.db", "unfinished").close()
    (tmp_path / "trash" / "x").mkdir(parents=True)
    with opened(tmp_path) as galleries:
        assert len(galleries.list("", 9)) == 1
        assert len(list((tmp_path / "galleries").iterdir())) == 1
        assert not (tmp_path / "trash").exists()


def test_a_deletion_that_a_crash_interrupted_is_finished(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as gallery:
        gallery.enroll([new("a", [1, 0, 0, 0])]).result()
    file = data_folder.Catalog(tmp_path / "catalog.db")
    catalog = Catalog(file)
    catalog.drop(*catalog.entries())
    file.close()  # and here the process died
    with opened(tmp_path) as galleries:
        assert galleries.list("", 9) == []
        assert list((tmp_path / "galleries").iterdir()) == []
    file = data_folder.Catalog(tmp_path / "catalog.db")
    assert Catalog(file).deleted() == []
    file.close()


def test_a_deletion_stands_though_its_files_cannot_be_moved_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, target: Path) -> Path:
        raise PermissionError(13, "not now")

    with opened(tmp_path) as galleries:
        galleries.create(settings())
        galleries.get("faces").enroll([new("a", [1, 0, 0, 0])]).result()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", refused)
            galleries.delete("faces")
        assert galleries.list("", 9) == []
    assert len(list((tmp_path / "galleries").iterdir())) == 1
    with opened(tmp_path) as galleries:
        assert galleries.list("", 9) == []
        assert list((tmp_path / "galleries").iterdir()) == []


@pytest.mark.parametrize("loss", ["missing", "empty", "older"])
def test_a_lost_or_older_catalogue_costs_no_gallery(tmp_path: Path, loss: str) -> None:
    data, path = tmp_path / "data", tmp_path / "data" / "catalog.db"
    with opened(data):
        pass
    shutil.copy(path, tmp_path / "older")
    with one_gallery(data, settings()) as gallery:
        gallery.enroll([new("a", [1, 0, 0, 0])]).result()
    shutil.move(path, tmp_path / "newer")
    if loss == "empty":
        path.touch()
    elif loss == "older":
        shutil.copy(tmp_path / "older", path)
    for _ in range(2):
        with pytest.raises(StoreDamaged, match=r"does not name.*Put back the catalog\.db"):
            Galleries(data).open()
    shutil.copy(tmp_path / "newer", path)
    with opened(data) as galleries:
        assert galleries.get("faces").get_item("a")[0].id == "a"


def test_an_unnamed_store_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "galleries" / ("0" * 32)
    folder.mkdir(parents=True)
    not_a_database(folder / "store.db")
    with pytest.raises(StoreDamaged, match="move these folders elsewhere"):
        Galleries(tmp_path).open()
    assert (folder / "store.db").exists()


def test_closing_finishes_what_was_submitted(tmp_path: Path) -> None:
    galleries = Galleries(tmp_path, GalleryLimits(exact_scan_below=0, segment_rows=64))
    galleries.open()
    galleries.create(settings())
    futures = [galleries.get("faces").enroll([new(f"i{n}", [n, 1, 1, 1])]) for n in range(200)]
    galleries.close()
    assert all(future.done() for future in futures)
    with opened(tmp_path) as again:
        assert again.get("faces").status().item_count == 200
