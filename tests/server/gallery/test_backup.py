"""Backups made while others write: whole, checked, and nothing that only looks like one."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import new, opened, settings
from twinserve.errors import (
    AlreadyExists,
    DiskFull,
    FailedPrecondition,
    GalleryNotFound,
    InvalidInput,
    QueueFull,
    StoreDamaged,
    Unavailable,
)
from twinserve.server.gallery import Galleries, Gallery, backup
from twinserve.server.storage import database

Told = list[tuple[str, int, int]]


def quiet(name: str, done: int, total: int) -> None:
    """Hear how far a backup is, and do nothing."""


def fill(gallery: Gallery, count: int, first: int = 0, note: int = 500) -> None:
    items = [
        new(f"i{n}", np.full(4, n + 1), f"s{n % 7}", {"count": n, "note": "x" * note})
        for n in range(first, first + count)
    ]
    for start in range(0, count, 500):
        gallery.enroll(items[start : start + 500]).result()


def ids(gallery: Gallery) -> set[str]:
    return {item.id for item in gallery.list_items(limit=10**6)[0]}


def test_a_backup_is_a_data_folder_with_just_the_galleries_asked_for(tmp_path: Path) -> None:
    told: Told = []
    with opened(tmp_path / "data") as galleries:
        for name in ("faces", "hands", "feet"):
            galleries.create(settings(name))
            fill(galleries.get(name), 20)
        before = {name: galleries.get(name).status() for name in ("faces", "hands")}
        path = galleries.backup(
            ["hands", "faces", "hands"],
            tmp_path / "backups",
            "first",
            lambda *how: told.append(how),
        )
    assert path == tmp_path / "backups" / "first"
    assert [name for name, _, _ in told if name] == sorted(name for name, _, _ in told)
    assert told[-1][1] == told[-1][2] > 0
    assert all(one[1] <= two[1] for one, two in itertools.pairwise(told))
    with opened(path) as copies:
        assert [one.settings for one in copies.list()] == [
            before["faces"].settings,
            before["hands"].settings,
        ]
        for name, status in before.items():
            copied = copies.get(name)
            assert copied.status().create_time == status.create_time
            assert ids(copied) == {f"i{n}" for n in range(20)}
            item, vector = copied.get_item("i3")
            assert item.metadata == {"count": 3, "note": "x" * 500}
            assert vector is not None
            assert np.array_equal(vector, np.full(4, 4, np.float32))
            fill(copied, 1, first=20)


def test_aliases_of_the_galleries_copied_work_on_the_copy_and_others_are_left_out(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "data") as galleries:
        for name in ("faces", "hands"):
            galleries.create(settings(name))
            fill(galleries.get(name), 3)
        for alias, name in (("live", "faces"), ("spare", "faces"), ("other", "hands")):
            galleries.set_alias(alias, name)
        some = galleries.backup(["live"], tmp_path / "backups", "some", quiet)
        every = galleries.backup([], tmp_path / "backups", "all", quiet)
    with opened(some) as copies:
        assert [one.settings.name for one in copies.list()] == ["faces"]
        assert copies.status("live").aliases == ("live", "spare")
        assert ids(copies.get("live")) == {"i0", "i1", "i2"}
        with pytest.raises(GalleryNotFound):
            copies.get("other")
        copies.create(settings("other"))  # the name is free there
        copies.delete_alias("spare")
        with pytest.raises(GalleryNotFound):
            copies.get("spare")
    with opened(every) as copies:
        assert copies.get("other").settings.name == "hands"
        assert copies.get("spare").settings.name == "faces"


def test_a_copy_keeps_what_marks_our_files(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        path = galleries.backup([], tmp_path, "copy", quiet)
    (copy,) = path.glob("galleries/*/store.db")
    (original,) = (tmp_path / "data").glob("galleries/*/store.db")
    assert sorted(one.name for one in copy.parent.iterdir()) == ["store.db"]
    marks = []
    for file in (copy, original):
        with sqlite3.connect(file) as connection:
            marks.append(
                [
                    connection.execute(f"PRAGMA {mark}").fetchone()[0]
                    for mark in ("journal_mode", "page_size", "application_id", "user_version")
                ]
            )
        connection.close()
    assert marks[0] == marks[1]
    assert marks[0][:3] == ["wal", database.PAGE_BYTES, database.APPLICATION_ID]


def test_a_backup_while_others_write_has_all_from_before_and_each_request_whole(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        gallery = galleries.get("faces")
        fill(gallery, 5_000)
        stop = threading.Event()
        steps: Told = []

        def write() -> None:
            request = 0
            while not stop.is_set():
                request += 1
                gallery.enroll(
                    [new(f"r{request}-{n}", np.full(4, n + 1)) for n in range(7)]
                ).result()
                gallery.enroll([new("i0", np.full(4, request + 1))]).result()

        writers = [threading.Thread(target=write)]
        for writer in writers:
            writer.start()
        try:
            path = galleries.backup([], tmp_path, "copy", lambda *how: steps.append(how))
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        after = ids(gallery)
    with opened(path) as copies:
        copied = ids(copies.get("faces"))
    assert {f"i{n}" for n in range(5_000)} <= copied < after
    requests: dict[str, int] = {}
    for item_id in copied:
        if item_id.startswith("r"):
            requests[item_id.split("-")[0]] = requests.get(item_id.split("-")[0], 0) + 1
    assert set(requests.values()) <= {7}


def test_commits_do_not_make_a_copy_begin_anew(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        gallery = galleries.get("faces")
        fill(gallery, 1_500, note=8_000)
        left: list[int] = []

        def commit(name: str, done: int, total: int) -> None:
            left.append(total - done)
            gallery.enroll([new("again", np.full(4, len(left)))]).result()

        path = galleries.backup([], tmp_path, "copy", commit)
    assert len(left) > 4
    assert left == sorted(left, reverse=True)
    with opened(path) as copies:
        assert "i1499" in ids(copies.get("faces"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/a", ".hidden", "a\n", "x" * 129, "ä"])
def test_a_folder_that_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    with opened(tmp_path / "data") as galleries, pytest.raises(InvalidInput) as refused:
        galleries.backup([], tmp_path / "backups", name, quiet)
    assert refused.value.field == "folder"
    assert not (tmp_path / "backups").exists()


def test_a_folder_that_is_there_is_kept_and_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with opened(tmp_path / "data") as galleries:
        for name in ("there", "link", "data"):
            with pytest.raises(AlreadyExists):
                galleries.backup([], tmp_path, name, quiet)
    assert not list(tmp_path.glob(".*.partial"))


def test_a_backup_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def end(name: str, done: int, total: int) -> None:
        if done:
            raise Enough

    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        fill(galleries.get("faces"), 1_000)
        with pytest.raises(Enough):
            galleries.backup([], tmp_path / "backups", "copy", end)
        assert list((tmp_path / "backups").iterdir()) == []
        galleries.backup([], tmp_path / "backups", "copy", quiet)


def test_a_gallery_deleted_meanwhile_ends_its_backup(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        for name in ("faces", "hands"):
            galleries.create(settings(name))

        def delete(name: str, done: int, total: int) -> None:
            if (
                name == "hands"
                and done == total
                and "faces" in {one.settings.name for one in galleries.list()}
            ):
                galleries.delete("faces")

        with pytest.raises(GalleryNotFound, match="faces"):
            galleries.backup([], tmp_path / "backups", "copy", delete)
        assert list((tmp_path / "backups").iterdir()) == []
        with pytest.raises(GalleryNotFound):
            galleries.backup(["faces"], tmp_path / "backups", "copy", quiet)


def test_closing_the_galleries_ends_a_backup(tmp_path: Path) -> None:
    galleries = Galleries(tmp_path / "data")
    galleries.open()
    galleries.create(settings())
    with pytest.raises(Unavailable):
        galleries.backup([], tmp_path / "backups", "copy", lambda *_: galleries.close())
    assert list((tmp_path / "backups").iterdir()) == []


def test_only_one_backup_is_made_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        refused: list[QueueFull] = []

        def another(name: str, done: int, total: int) -> None:
            with pytest.raises(QueueFull) as error:
                galleries.backup([], tmp_path, "second", quiet)
            refused.append(error.value)

        galleries.backup([], tmp_path, "first", another)
    assert refused[0].retry_after
    assert not (tmp_path / "second").exists()


def test_a_refused_gallery_is_named_and_never_left_out_silently(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        for name in ("faces", "hands"):
            galleries.create(settings(name))
        folder = galleries.get("faces")._store.path.parent
    (folder / "store.db").write_bytes(b"\xff" * 50_000)
    with opened(tmp_path / "data") as galleries:
        with pytest.raises(StoreDamaged, match="damaged"):
            galleries.backup(["faces", "hands"], tmp_path / "backups", "copy", quiet)
        with pytest.raises(FailedPrecondition, match="faces"):
            galleries.backup([], tmp_path / "backups", "copy", quiet)
        assert not (tmp_path / "backups").exists()
        path = galleries.backup(["hands"], tmp_path / "backups", "copy", quiet)
    with opened(path) as copies:
        assert [one.settings.name for one in copies.list()] == ["hands"]


def test_a_row_that_is_not_as_written_makes_no_backup(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        gallery = galleries.get("faces")
        fill(gallery, 10)
        with sqlite3.connect(gallery._store.path) as connection:
            connection.execute("UPDATE vectors SET embedding = zeroblob(16) WHERE number = 3")
        connection.close()
        with pytest.raises(StoreDamaged, match="i2"):
            galleries.backup([], tmp_path / "backups", "copy", quiet)
        assert list((tmp_path / "backups").iterdir()) == []


def test_a_parent_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        opened(tmp_path / "data") as galleries,
        pytest.raises(FailedPrecondition, match="--backup-dir"),
    ):
        galleries.backup([], tmp_path / "file", "copy", quiet)


def start_child(mode: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.gallery.backup_child", mode, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_full_disk_leaves_nothing_of_a_backup(tmp_path: Path) -> None:
    process = start_child("full", tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output.split() == ["refused", "made"]
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["copy"]


def test_more_than_is_free_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=10))
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        with pytest.raises(DiskFull, match="10 are free"):
            galleries.backup([], tmp_path / "backups", "copy", quiet)
    assert list((tmp_path / "backups").iterdir()) == []


@pytest.mark.parametrize("progress", [0, 3, 8])
def test_a_killed_backup_leaves_only_what_the_next_one_removes(
    tmp_path: Path, progress: int
) -> None:
    process = start_child("work", tmp_path)
    assert process.stdout is not None
    made: list[str] = []
    steps = 0
    for line in process.stdout:
        word, _, rest = line.strip().partition(" ")
        if word == "made":
            made.append(rest)
        steps += word == "step" and len(made) == 1
        if steps > progress:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    there = {path.name for path in (tmp_path / "backups").iterdir()}
    assert there - {".b1.partial"} == {"b0"}
    for name in sorted(there - {".b1.partial"}):
        with opened(tmp_path / "backups" / name) as copies:
            assert ids(copies.get("faces")) >= {f"i{n}" for n in range(3_000)}
    backup.sweep(tmp_path / "backups")
    assert not list((tmp_path / "backups").glob(".*"))


def test_the_partial_of_a_backup_that_is_still_made_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        (tmp_path / "backups" / ".old.partial" / "galleries").mkdir(parents=True)

        def swept(name: str, done: int, total: int) -> None:
            backup.sweep(tmp_path / "backups")

        path = galleries.backup([], tmp_path / "backups", "copy", swept)
    assert [one.name for one in path.parent.iterdir()] == ["copy"]


def test_a_gallery_whose_memory_failed_can_still_be_saved(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        fill(galleries.get("faces"), 20)
        galleries.get("faces")._failed = True
        path = galleries.backup([], tmp_path, "copy", quiet)
    with opened(path) as copies:
        assert len(ids(copies.get("faces"))) == 20


def test_a_damaged_gallery_is_restored_from_its_file_in_a_backup(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as galleries:
        galleries.create(settings())
        fill(galleries.get("faces"), 20)
        path = galleries.backup([], tmp_path, "copy", quiet)
    (damaged,) = (tmp_path / "data").glob("galleries/*/store.db")
    damaged.write_bytes(b"\xff" * 50_000)
    with opened(tmp_path / "data") as galleries, pytest.raises(StoreDamaged):
        galleries.get("faces")
    shutil.copyfile(path / damaged.relative_to(tmp_path / "data"), damaged)
    with opened(tmp_path / "data") as galleries:
        assert len(ids(galleries.get("faces"))) == 20
