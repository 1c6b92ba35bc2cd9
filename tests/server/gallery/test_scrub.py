"""The scrub: what the disk loses while the server runs is found, and nothing else is called so."""

from __future__ import annotations

import errno
import gc
import logging
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import new, one_gallery, opened, settings
from tests.server.gallery.test_estimator import until
from tests.server.gallery.test_recall import Moved
from twinserve.errors import StoreDamaged
from twinserve.server.gallery import Galleries, Gallery, GalleryLimits, scrub
from twinserve.server.gallery.observing import Unobserved
from twinserve.server.gallery.scrub import Scrub
from twinserve.server.gallery.store import Store
from twinserve.server.storage.raw_file import RawFile

VECTORS = np.random.default_rng(6).normal(size=(600, 64)).astype(np.float32)
PACE = 1_000_000


@dataclass
class Counted(Unobserved):
    """Adds up what was read."""

    read: int = 0

    def scrubbed(self, size: int) -> None:
        self.read += size


def filled(gallery: Gallery) -> None:
    """Enrol, and move everything into the file itself."""
    items = [
        new(f"i{n:03}", row, f"subject-of-{n:03}", {"colour": f"colour-{n:03}"})
        for n, row in enumerate(VECTORS)
    ]
    gallery.enroll(items).result()
    with sqlite3.connect(gallery.store.path) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    other.close()


def scrubbing(
    *galleries: Gallery,
    observer: Unobserved | None = None,
    busy: Callable[[], bool] = lambda: False,
    moved: Moved | None = None,
) -> Scrub:
    return Scrub(
        lambda: galleries,
        PACE,
        Unobserved() if observer is None else observer,
        busy,
        Moved() if moved is None else moved,
    )


def overwrite(path: Path, found: bytes, instead: bytes) -> None:
    """Change bytes in place wherever they stand, as a disk would, behind SQLite's back."""
    assert len(found) == len(instead)
    content = path.read_bytes()
    where = content.find(found)
    assert where > 0
    with path.open("r+b") as file:
        while where > 0:
            file.seek(where)
            file.write(instead)
            where = content.find(found, where + 1)


def flip_a_bit_of_a_vector(path: Path) -> None:
    vector = VECTORS[300].tobytes()
    overwrite(path, vector, bytes([vector[0] ^ 4]) + vector[1:])


def change_a_subject(path: Path) -> None:
    overwrite(path, b"subject-of-555", b"subject-of-556")


def no_more_utf8(path: Path) -> None:
    overwrite(path, b"colour-444", b"colour-\xff44")


def lose_a_vector(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("DELETE FROM vectors WHERE number = 77")
    other.close()


def wipe_pages(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for start in range(5 * 16_384, size, 16_384):
            file.seek(start)
            file.write(b"\xff" * 64)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit_of_a_vector,
        change_a_subject,
        no_more_utf8,
        lose_a_vector,
        wipe_pages,
    ],
)
def test_damage_that_happens_while_serving_is_found_and_ends_writes_only(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as galleries:
        galleries.create(settings(dimension=64))
        galleries.create(settings("other", dimension=64))
        gallery, other = galleries.get("faces"), galleries.get("other")
        filled(gallery)
        filled(other)
        check = scrubbing(gallery, other)
        assert check.run_pass()
        assert check.last_pass > 0
        assert (gallery.damaged, galleries.damaged) == (None, 0)
        with gallery.store.reading() as reader:
            reader.last_number()  # this connection remembers pages as they were
        assert gallery.get_item("i300")[0].subject == "subject-of-300"

        damage(gallery.store.path)
        evidence = gallery.store.path.read_bytes()
        assert check.run_pass()
        assert check.run_pass()
        assert galleries.damaged == 1
        assert other.damaged is None
        errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
        assert len(errors) == 1, errors
        assert "gallery 'faces'" in errors[0]
        broken = gallery.store.path.with_name("store.db.broken")
        assert broken.name in errors[0]
        if damage is not lose_a_vector:  # that went through the log
            assert broken.read_bytes() == evidence
        with pytest.raises(StoreDamaged, match=r"no more changes; searches go on.*Put a backup"):
            gallery.enroll([new("more", VECTORS[0])])
        with pytest.raises(StoreDamaged, match="found damaged while serving"):
            gallery.remove(ids=["i001"])
        hits = gallery.search(VECTORS[300:301], k=1).results[0].hits
        assert (hits[0].item_id, hits[0].distance) == ("i300", 0.0)
        assert gallery.verify("subject-of-555", VECTORS[555]).distance == 0.0
        other.enroll([new("more", VECTORS[0])]).result()
        galleries.delete("faces")
        assert galleries.damaged == 0


def test_an_embedding_that_is_not_as_enrolled_is_not_given_out(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        flip_a_bit_of_a_vector(gallery.store.path)
        with pytest.raises(StoreDamaged, match="the vector of item 'i300' is not as it was"):
            gallery.get_item("i300")
        assert np.array_equal(gallery.get_item("i301")[1], VECTORS[301])


def test_a_write_that_was_waiting_when_damage_was_found_is_refused(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        reached, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            reached.set()
            assert go_on.wait(30)

        gallery._writer.call(hold)
        assert reached.wait(30)
        waiting = gallery.enroll([new("more", VECTORS[0])])
        flip_a_bit_of_a_vector(gallery.store.path)
        scrubbing(gallery).run_pass()
        go_on.set()
        with pytest.raises(StoreDamaged, match="no more changes"):
            waiting.result(30)
        assert gallery.status().item_count == len(VECTORS)


def test_a_damaged_index_whose_rows_are_sound_is_found(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        path = gallery.store.path
        with sqlite3.connect(path) as other:
            root = other.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'items_by_subject'"
            ).fetchone()[0]
        other.close()
        with path.open("r+b") as file:
            file.seek((root - 1) * 16_384)
            file.write(b"\x00" * 8)
        scrubbing(gallery).run_pass()
        assert gallery.damaged is not None


def test_a_large_file_is_read_by_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        scrubbing(gallery, observer=counted).run_pass()
        size = gallery.store.path.stat().st_size
        assert counted.read > size + VECTORS.nbytes, "the file, and the rows"
        monkeypatch.setattr(scrub, "QUICK_CHECK_BYTES", size - 1)
        counted.read = 0
        scrubbing(gallery, observer=counted).run_pass()
        assert VECTORS.nbytes < counted.read < size
        flip_a_bit_of_a_vector(gallery.store.path)
        scrubbing(gallery).run_pass()
        assert gallery.damaged is not None


def test_writes_meanwhile_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "PIECE_ROWS", 3)
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        stop = threading.Event()
        failed: list[BaseException] = []

        def write() -> None:
            rng = np.random.default_rng(1)
            try:
                while not stop.is_set():
                    chosen = rng.integers(len(VECTORS), size=20)
                    items = [
                        new(f"i{n:03}", row, f"subject-{n}")
                        for n, row in zip(
                            chosen, rng.normal(size=(20, 64)).astype(np.float32), strict=True
                        )
                    ]
                    gallery.enroll(list({one.id: one for one in items}.values())).result()
                    gallery.remove(ids=[f"i{n:03}" for n in rng.integers(600, size=5)]).result()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        check = scrubbing(gallery)
        for _ in range(5):
            assert check.run_pass()
        stop.set()
        thread.join()
        assert not failed
        assert gallery.damaged is None
        assert check.last_pass > 0


class Fickle(RawFile):
    """A file whose first reads fail."""

    def __init__(self, path: Path, failures: int, number: int) -> None:
        super().__init__(path)
        self.failures, self.number = failures, number

    def read(self, offset: int, size: int) -> int:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError(self.number, "it failed")
        return super().read(offset, size)


@pytest.mark.parametrize(
    ("failures", "number", "damaged", "whole"),
    [
        (1, errno.EIO, False, True),  # not confirmed
        (2, errno.EIO, True, True),
        (1, errno.EMFILE, False, False),  # tells nothing of the file
    ],
)
def test_a_failed_read_is_damage_only_if_it_is_the_disks_and_fails_again(
    tmp_path: Path,
    failures: int,
    number: int,
    damaged: bool,
    whole: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        gallery.store.raw.close()
        gallery.store.raw = Fickle(gallery.store.path, failures, number)
        check = scrubbing(gallery)
        assert check.run_pass()
        assert (gallery.damaged is not None) == damaged
        assert (check.last_pass > 0) == whole
        assert len(caplog.records) == 1


def test_a_locked_database_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

        def failing(*arguments: object) -> None:
            raise error

        monkeypatch.setattr("twinserve.server.gallery.store.Reader.check_after", failing)
        check = scrubbing(gallery)
        assert check.run_pass()
        assert gallery.damaged is None
        assert check.last_pass == 0


def test_the_pace_is_kept_and_is_slower_while_others_work(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        times = []
        for busy in (False, True):
            counted, moved = Counted(), Moved(step=0.0)
            assert scrubbing(
                gallery, observer=counted, busy=lambda busy=busy: busy, moved=moved
            ).run_pass()
            assert moved.time == pytest.approx(counted.read / PACE * (9 if busy else 1))
            times.append(moved.time)
        assert times[1] == pytest.approx((1 + scrub.PATIENCE) * times[0])
        slow = Moved(step=0.5)  # pieces that take long are paid back, whatever their size
        assert scrubbing(gallery, moved=slow).run_pass()
        assert slow.rested > 0.75 * slow.time  # each look at this clock takes half a second


def test_a_scrub_stops_within_a_piece_and_holds_no_deleted_gallery(tmp_path: Path) -> None:
    class Stopping(Moved):
        def rest(self, seconds: float) -> bool:
            self.stop()
            return False

    with opened(tmp_path) as galleries:
        galleries.create(settings(dimension=64))
        filled(galleries.get("faces"))
        moved = Stopping()
        check = scrubbing(galleries.get("faces"), moved=moved)
        assert not check.run_pass()
        assert check.last_pass == 0
        del check  # it holds on to the gallery

        class Deleting(Moved):
            known: weakref.ref[Gallery] | None = None

            def let_go(self) -> bool:
                gc.collect()
                return self.known is not None and self.known() is None

            def rest(self, seconds: float) -> bool:
                if self.known is None:
                    self.known = weakref.ref(galleries.get("faces"))
                    galleries.delete("faces")
                    until(self.let_go)  # rests may be long
                return super().rest(seconds)

        deleting = Deleting()
        check = Scrub(
            lambda: [gallery for gallery, _ in galleries._open.values()],
            PACE,
            Unobserved(),
            lambda: False,
            deleting,
        )
        assert check.run_pass()
        assert deleting.known is not None


CHANGES_THE_JOURNAL = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1], timeout=0).execute("PRAGMA journal_mode = DELETE").fetchone())
"""


def test_other_programs_still_see_that_the_file_is_in_use(tmp_path: Path) -> None:
    """They would remove the log that the server writes to, if a lock had been dropped."""
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        flip_a_bit_of_a_vector(gallery.store.path)

        def other() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", CHANGES_THE_JOURNAL, str(gallery.store.path)]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        gallery.store.close()  # this test itself has opened and closed the file
        gallery._store = Store(gallery.store.path, "faces")
        assert "locked" in other().stderr
        scrubbing(gallery).run_pass()
        assert gallery.damaged is not None
        assert gallery.store.path.with_name("store.db.broken").exists()
        assert "locked" in other().stderr


def test_the_galleries_run_it_and_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "FIRST_SECONDS", 0.0)
    counted = Counted()
    galleries = Galleries(tmp_path, GalleryLimits(scrub_bytes_per_second=1_000), counted)
    galleries.open()
    galleries.create(settings(dimension=64))
    filled(galleries.get("faces"))
    galleries.close()  # in the middle of a rest of minutes
    assert not [one for one in threading.enumerate() if one.name == "gallery-scrub"]
    off = Galleries(tmp_path, GalleryLimits(scrub_bytes_per_second=0), counted)
    off.open()
    assert not [one for one in threading.enumerate() if one.name == "gallery-scrub"]
    off.close()


def test_a_copy_that_would_fill_the_disk_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with one_gallery(tmp_path, settings(dimension=64)) as gallery:
        filled(gallery)
        flip_a_bit_of_a_vector(gallery.store.path)
        usage = type("usage", (), {"free": 2 * gallery.store.path.stat().st_size})
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        scrubbing(gallery).run_pass()
        assert gallery.damaged is not None
        assert "No copy of it was made" in caplog.text
        assert not list(tmp_path.glob("**/*.broken*"))
