"""Online backup: a folder that is a data folder of its own, made while others read and write.

In: the galleries' open stores. Out: `parent/name`, with a catalogue of just these galleries and a
checked copy of each store: one state of each, the one of when its turn came.

The crash that it survives: everything is made in `.name.partial`, fsynced, and renamed in one step
when all is whole. A process that dies before leaves only the partial, which nobody takes for a
backup and which the next `sweep` removes; a lock in it tells it from one still being made.

Each copy is SQLite's own backup out of one long read transaction. Through the writer's connection
it would follow the writer without ever beginning anew, but every step would keep all galleries'
writes waiting (and Python's `backup` cannot be left between two steps, so all steps would at once);
the read transaction costs the writers nothing but a log that only grows until the copy is done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from twinserve.errors import (
    AlreadyExists,
    DiskFull,
    FailedPrecondition,
    InvalidInput,
    StoreDamaged,
    TwinserveError,
)
from twinserve.server.gallery import store
from twinserve.server.gallery.catalog import Catalog, Entry
from twinserve.server.storage import data_folder, database

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
STEP_PAGES = 128  # 2 MiB: what a cancellation waits for
# SQLite's own instructions between two questions whether the check is still wanted.
CHECK_OPERATIONS = 200_000
_CHECK_ROWS = 512
_RETRY_SECONDS = 5.0

# Told the gallery's name, the bytes of all galleries done and their total, about; what it raises
# ends the backup.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """One gallery to copy: its row, and what copies its store.

    Attributes:
        entry: of the catalogue.
        copy: writes a checked copy to a path, telling the bytes left and all as it goes.
        size: bytes of the store, about.
    """

    entry: Entry
    copy: Callable[[Path, Callable[[int, int], None]], None]
    size: int


def make(
    parent: Path,
    name: str,
    sources: Sequence[Source],
    aliases: Mapping[str, str],
    progress: Progress,
    finishing: Callable[[], AbstractContextManager[None]],
) -> Path:
    """Make the backup `parent/name`; all of it is on disk when this returns.

    Args:
        parent: is made where it is missing.
        name: of the folder: one name, no path.
        sources: the galleries, in order.
        aliases: that stand for them, and for which.
        progress: hears how far it is, twice a second and more often.
        finishing: entered for the last step, which makes the partial a backup; what it raises
            prevents that.

    Raises:
        InvalidInput: the name is none.
        AlreadyExists: the folder is there.
        DiskFull: it could not be written; nothing of it is left.
        FailedPrecondition: the parent cannot be used, or another backup of this name is made.
        StoreDamaged: a copy does not pass its check.
    """
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"backup folder {name[:140]!r} is not 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a "
            "letter or digit; it is made below the server's --backup-dir",
            field="folder",
        )
    target = parent / name
    with _wording(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _check_free(target)
        sweep(parent)
        total = sum(source.size for source in sources)
        _check_room(parent, total)
        partial = parent / f".{name}.partial"
        with _held(partial):
            try:
                _fill(partial, sources, aliases, progress, total)
                with finishing():
                    _check_free(target)
                    partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        _fsync(parent)
    return target


def size_of(path: Path) -> int:
    """Bytes that a store's copy will take, about: what its log holds may be in the file too."""
    total = 0
    for part in (path, path.with_name(path.name + "-wal")):
        with contextlib.suppress(OSError):
            total += part.stat().st_size
    return total


def sweep(parent: Path) -> None:
    """Remove what backups that were cut off left below `parent`, but none that is being made.

    Raises:
        OSError: the folder cannot be read.
    """
    for path in sorted(parent.glob(".*.partial")):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(FailedPrecondition, OSError), _held(path, make=False):
                logging.getLogger(__name__).info("removing %s, cut off while it was made", path)
                shutil.rmtree(path, ignore_errors=True)


def copy_store(
    source: store.Store, target: Path, dimension: int, progress: Callable[[int, int], None]
) -> None:
    """Copy a store as it is now, check the copy whole, and have it on disk.

    `progress` is told the bytes left and all, also while the copy is checked; what it raises ends
    the copy.

    Raises:
        StoreDamaged: the copy does not pass SQLite's check, or a row its checksum.
        DiskFull: the copy could not be written.
        GalleryNotFound: the store was closed before its turn came.
    """
    told = (0, 0)

    def tell(left: int, pages: int) -> None:
        nonlocal told
        told = (left * database.PAGE_BYTES, pages * database.PAGE_BYTES)
        progress(*told)

    with source.reading() as reader:
        connection = sqlite3.connect(target, isolation_level=None, check_same_thread=False)
        with contextlib.closing(connection):
            try:
                # It is of no use until it is whole, and then it is flushed once.
                connection.execute("PRAGMA journal_mode = OFF")
                connection.execute("PRAGMA synchronous = OFF")
                reader.copy(connection, STEP_PAGES, tell)
            except sqlite3.Error as error:
                raise _of_copy(error, source.name) from error
    _fsync(target)
    _check(target, source.name, dimension, lambda: progress(*told))
    _fsync(target)


def _check(path: Path, name: str, dimension: int, proceed: Callable[[], None]) -> None:
    stopped: list[Exception] = []

    def asked() -> int:
        try:
            proceed()
        except Exception as error:
            stopped.append(error)
            return 1
        return 0

    try:
        with contextlib.closing(database.connect(path)) as connection:
            connection.set_progress_handler(asked, CHECK_OPERATIONS)
            database.check_file(connection, path, store.SCHEMA_VERSION)
            for _ in store.read_through(connection, dimension, _CHECK_ROWS):
                proceed()
    except (sqlite3.Error, StoreDamaged) as error:
        if stopped:
            raise stopped[0] from None
        if isinstance(error, StoreDamaged) or database.is_damage(error):
            raise StoreDamaged(
                f"the copy of gallery {name!r} does not pass its check ({error}), so no backup was "
                "made; check the disks of --data-dir and --backup-dir, and restart the server to "
                "have the gallery itself checked",
                resource=("gallery", name),
            ) from error
        raise _of_copy(error, name) from error


def _fill(
    partial: Path,
    sources: Sequence[Source],
    aliases: Mapping[str, str],
    progress: Progress,
    total: int,
) -> None:
    done, rest = 0, total
    (partial / "galleries").mkdir()
    for source in sources:
        name = source.entry.settings.name
        folder = partial / "galleries" / source.entry.folder
        folder.mkdir()
        rest -= source.size
        copied = _Copied(name, done, rest, source.size, progress)
        copied.tell(source.size, source.size)
        source.copy(folder / "store.db", copied.tell)
        _fsync(folder)
        done += copied.size
    file = data_folder.Catalog(partial / "catalog.db")
    with contextlib.closing(file):
        Catalog(file).fill([source.entry for source in sources], aliases)
    for path in (partial / "catalog.db", partial / "galleries", partial):
        _fsync(path)


@dataclass
class _Copied:
    """How far one gallery's copy is, as part of the whole."""

    name: str
    before: int
    after: int
    size: int
    progress: Progress

    def tell(self, left: int, size: int) -> None:
        self.size = size
        self.progress(self.name, self.before + size - left, self.before + size + self.after)


@contextlib.contextmanager
def _held(path: Path, *, make: bool = True) -> Iterator[None]:
    """Make a partial, or take one that was left, and hold its lock: the lock of a data folder."""
    if make:
        try:
            path.mkdir()
        except FileExistsError:
            raise FailedPrecondition(
                f"the backup {path.name[1:-8]!r} is being made by another server of this "
                "--backup-dir; choose another folder",
                resource=("folder", str(path)),
            ) from None
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(f"{path.name} is being made") from error
        yield
    finally:
        os.close(descriptor)


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise AlreadyExists(
            f"there is a {target.name!r} in the server's --backup-dir already; name another "
            "folder, or move that one away",
            resource=("folder", target.name),
            field="folder",
        )


def _check_room(parent: Path, wanted: int) -> None:
    free = shutil.disk_usage(parent).free
    if wanted > free:
        raise DiskFull(
            f"the backup takes {wanted} bytes, and {free} are free on the disk of --backup-dir; "
            "free space there, and try again",
            retry_after=_RETRY_SECONDS,
        )


def _of_copy(error: Exception, name: str) -> TwinserveError:
    if database.is_damage(error):
        return database.as_twinserve_error(
            error, f"gallery {name!r}", ("gallery", name), reading=True
        )
    return _full(error)


def _full(error: Exception) -> TwinserveError:
    return DiskFull(
        f"the backup could not be written ({error}), and nothing of it was kept; free space on the "
        "disk of --backup-dir, and try again",
        retry_after=_RETRY_SECONDS,
    )


@contextlib.contextmanager
def _wording(parent: Path) -> Iterator[None]:
    try:
        yield
    except TwinserveError:
        raise
    except sqlite3.Error as error:
        raise _full(error) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise _full(error) from error
        raise FailedPrecondition(
            f"--backup-dir {parent} cannot be used ({error.strerror or error}); give the server a "
            "folder that its user may write",
            resource=("folder", str(parent)),
        ) from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
