"""The scrub: everything stored is read again, slowly, to find what the disk has lost meanwhile.

In: the galleries that are open. Out: galleries whose `damaged` is set, for good. One thread reads
every row with its vector and verifies their checksums; before, it reads the file as it lies and has
SQLite check its structure, where it is not large. It works in pieces, at a bounded pace, and longer
rests while the processors are in use. Once a day it begins anew.

The one thing to know: a file that is found damaged while serving does not end the serving. Memory
was verified when it was loaded, so searches go on; writes are refused, for they would be lost with
the file. A finding counts when it is there again at a second look past all caches.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from twinserve.errors import GalleryNotFound, StoreDamaged, TwinserveError
from twinserve.server.gallery.observing import GalleryObserver
from twinserve.server.gallery.rests import Rests
from twinserve.server.gallery.store import Store
from twinserve.server.gallery.types import GallerySettings
from twinserve.server.storage import database

FIRST_SECONDS = 300.0  # after the start, which has read much of it
PASS_SECONDS = 86_400.0  # from one pass to the next, at least
PIECE_BYTES = 1 << 17
PIECE_ROWS = 256  # some 2 ms of the interpreter's time
REST = 9.0  # after each piece, for so many times as long as it took, at least
PATIENCE = 8  # so many rests more while the processors are in use
BUSY_SHARE = 0.5  # of the processors
QUICK_CHECK_BYTES = 256 << 20  # a larger file's check would fill the kernel's cache with it

T = TypeVar("T")


class Scrubbed(Protocol):
    """What the scrub asks of a gallery."""

    damaged: StoreDamaged | None
    settings: GallerySettings

    @property
    def store(self) -> Store:
        """Its file."""
        ...


class ProcessorUse:
    """Whether this process kept much of the machine's processors busy since it was last asked."""

    def __init__(self) -> None:
        self._processors = os.cpu_count() or 1
        self._last = time.monotonic(), time.process_time()

    def __call__(self) -> bool:
        """Look; any single thread."""
        then, now = self._last, (time.monotonic(), time.process_time())
        self._last = now
        return now[1] - then[1] > BUSY_SHARE * self._processors * (now[0] - then[0])


class Scrub:
    """The thread that reads, and what it found.

    Args:
        galleries: returns those that are open now.
        bytes_per_second: of reading, at most; 0: never.
        observer: is told how much was read.
        busy: whether others need the machine now.
        rests: its clock.
    """

    def __init__(
        self,
        galleries: Callable[[], Sequence[Scrubbed]],
        bytes_per_second: int,
        observer: GalleryObserver,
        busy: Callable[[], bool] | None = None,
        rests: Rests | None = None,
    ) -> None:
        self._galleries = galleries
        self._bytes_per_second = bytes_per_second
        self._observer = observer
        self._busy = ProcessorUse() if busy is None else busy
        self._rests = Rests() if rests is None else rests
        self._whole = True
        self._began = 0.0  # of the last look
        self._thread = threading.Thread(target=self._run, name="gallery-scrub", daemon=True)
        self.last_pass = 0.0  # Unix time at which one ended that left nothing out

    def start(self) -> None:
        """Begin the first pass after a while."""
        if self._bytes_per_second > 0:
            self._thread.start()

    def close(self) -> None:
        """Drop the pass that is running, and end the thread."""
        self._rests.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def run_pass(self) -> bool:
        """Read all galleries once; False if it was stopped."""
        self._whole = True
        # Weakly: a gallery that is deleted meanwhile must not stay in memory until its turn.
        waiting = [weakref.ref(gallery) for gallery in self._galleries()]
        for reference in waiting:
            if not self._scrub(reference):
                return False
        if self._whole:
            self.last_pass = time.time()
        return True

    def _run(self) -> None:
        go_on = self._rests.rest(FIRST_SECONDS)
        while go_on:
            began = self._rests.now()
            try:
                go_on = self.run_pass()
            except Exception:  # the next pass may fare better
                logging.getLogger(__name__).exception("reading the galleries again failed")
            if go_on:
                go_on = self._rests.rest(max(60.0, PASS_SECONDS - (self._rests.now() - began)))

    def _scrub(self, reference: weakref.ref[Scrubbed]) -> bool:
        """Read one gallery; False when the thread is to stop."""
        with contextlib.suppress(_Skip):
            size = self._look(reference, _begin)
            if size <= QUICK_CHECK_BYTES:
                # Into the kernel's cache, at our pace: the check then costs the disk nothing.
                offset = 0
                while read := self._look(reference, partial(_read, offset=offset)):
                    offset += read
                    if not self._rest(read):
                        return False
                self._look(reference, _check_structure)
                if not self._rest(0):
                    return False
            number, last = 0, self._look(reference, _last_number)
            while number < last:
                number, read = self._look(reference, partial(_check_rows, after=number))
                if not read:
                    break  # the last ones were deleted
                if not self._rest(read):
                    return False
        return not self._rests.stopped

    def _look(self, reference: weakref.ref[Scrubbed], check: Callable[[Scrubbed], T]) -> T:
        gallery = reference()
        if gallery is None or gallery.damaged is not None:
            raise _Skip
        self._began = self._rests.now()
        finding = ""
        for _ in range(2):
            try:
                found = check(gallery)
            except GalleryNotFound:
                raise _Skip from None
            except (TwinserveError, sqlite3.Error, OSError) as error:
                if not _tells_of_damage(error):
                    self._whole = False
                    logging.getLogger(__name__).warning(
                        "gallery %s was not read to its end (%s); the next pass tries again",
                        gallery.settings.name,
                        error,
                    )
                    raise _Skip from None
                finding = error.message if isinstance(error, TwinserveError) else str(error)
                gallery.store.raw.drop_cached()
            else:
                if finding:
                    logging.getLogger(__name__).warning(
                        "gallery %s: a second look did not confirm that %s; check the machine's "
                        "memory and data disk",
                        gallery.settings.name,
                        finding,
                    )
                return found
        _refuse_writes(gallery, finding, lambda: not self._rests.stopped)
        raise _Skip

    def _rest(self, size: int) -> bool:
        """Rest after a piece of so many bytes; False when the thread is to stop."""
        self._observer.scrubbed(size)
        took = self._rests.now() - self._began
        seconds = max(size / self._bytes_per_second - took, REST * took)
        for _ in range(1 + PATIENCE):
            if not self._rests.rest(seconds):
                return False
            if not self._busy():
                break
        return True


class _Skip(Exception):
    """No more of this gallery in this pass."""


def _begin(gallery: Scrubbed) -> int:
    gallery.store.raw.drop_cached()
    return gallery.store.path.stat().st_size


def _read(gallery: Scrubbed, offset: int) -> int:
    return gallery.store.raw.read(offset, PIECE_BYTES)


def _check_structure(gallery: Scrubbed) -> None:
    with gallery.store.reading() as reader:
        reader.check_structure()


def _last_number(gallery: Scrubbed) -> int:
    with gallery.store.reading() as reader:
        return reader.last_number()


def _check_rows(gallery: Scrubbed, after: int) -> tuple[int, int]:
    dimension = gallery.settings.dimension
    rows = max(1, min(PIECE_ROWS, PIECE_BYTES // (4 * dimension + 128)))
    with gallery.store.reading() as reader:
        return reader.check_after(after, rows, dimension)


def _tells_of_damage(error: Exception) -> bool:
    """Whether a read failed for what the file holds, not for want of memory, files or a lock."""
    if isinstance(error, OSError):
        return error.errno == errno.EIO
    cause = error if isinstance(error, sqlite3.Error) else error.__cause__
    if isinstance(cause, sqlite3.Error):
        return database.is_damage(cause)
    return isinstance(error, StoreDamaged)


def _refuse_writes(gallery: Scrubbed, finding: str, proceed: Callable[[], bool]) -> None:
    name, path = gallery.settings.name, gallery.store.path
    gallery.damaged = StoreDamaged(
        f"the database {path.parent.name}/{path.name} of gallery {name!r} was found damaged while "
        f"serving ({finding}). The gallery takes no more changes; searches go on from memory, "
        "which is sound, until the server stops. Put a backup in its place and start again, or "
        "enrol into another gallery and delete this one",
        resource=("gallery", name),
    )
    copied = gallery.store.set_aside(finding, proceed)
    logging.getLogger(__name__).error(
        "%s. %s",
        gallery.damaged.message,
        f"A copy was put beside it as {copied.name}" if copied else "No copy of it was made",
    )
