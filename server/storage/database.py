"""Our SQLite files, whatever they hold: opened durable, checked, and their faults worded.

A file that fails its check is copied to `*.broken` and refused; it is never repaired in place. One
that a later release wrote is whole: it is refused and left alone. The formats stand in
docs/storage.md.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from twinserve.errors import DiskFull, StoreDamaged, TwinserveError, Unavailable

APPLICATION_ID = 0x7457494E  # "tWIN"
RETRY_DISK_SECONDS = 5.0
PAGE_BYTES = 16_384
CHECKPOINT_PAGES = 2_000  # 32 MB of log at most before a commit pays for a checkpoint
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR}
# What the disk refuses to give back, told apart by SQLite's extended codes.
_UNREADABLE = {
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_FSTAT,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_DATA,
}
_IN_THE_WAY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class NewerFormat(StoreDamaged):
    """A file that a later release wrote: nothing is wrong with it, and it is not ours to read."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a file of ours for one writer, durable at every commit."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
    keep_temporary_in_memory(connection)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_PAGES * PAGE_BYTES}")
    return connection


def keep_temporary_in_memory(connection: sqlite3.Connection) -> None:
    """Let SQLite undo a statement without a file in /tmp, which a read-only root has not."""
    connection.execute("PRAGMA temp_store = MEMORY")


def check_file(connection: sqlite3.Connection, path: Path, schema_version: int) -> None:
    """Refuse a file that SQLite's quick check finds damaged, or that another version wrote.

    Raises:
        NewerFormat: a later release wrote it.
        StoreDamaged: with the first finding.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > schema_version:
        raise NewerFormat(
            f"{path.parent.name}/{path.name} was written by a newer twinserve (its format is "
            f"{version}, this one reads up to {schema_version}), and was left as it is; start that "
            "release again, or this one on the backup made before the upgrade",
            resource=("database", path.name),
        )
    findings = [" ".join(row[0].split()) for row in connection.execute("PRAGMA quick_check(1)")]
    if findings != ["ok"]:
        raise StoreDamaged(f"{path.name}: {findings[0]}")
    if version != schema_version:
        raise StoreDamaged(
            f"{path.name} has schema version {version}, and this server reads {schema_version}"
        )


def set_aside(path: Path, finding: str) -> StoreDamaged:
    """Copy a damaged file to `*.broken` (once; the first copy is the evidence) and word it."""
    broken = path.with_name(path.name + ".broken")
    for suffix in ("", "-wal"):
        source, target = path.with_name(path.name + suffix), Path(f"{broken}{suffix}")
        if source.exists() and not target.exists():
            with contextlib.suppress(OSError):  # a full disk must not hide the finding
                shutil.copyfile(source, target)
    finding = finding.removeprefix(f"{path.name}: ")
    otherwise = ", or delete the gallery" if path.name == "store.db" else ""
    return StoreDamaged(
        f"the database {path.parent.name}/{path.name} is damaged ({finding}); a copy was put "
        f"beside it as {broken.name}. Put a backup in its place and start again{otherwise}",
        resource=("database", path.name),
    )


def is_damage(error: Exception) -> bool:
    """Whether an error of SQLite tells of what a file holds, or that the disk cannot read it."""
    extended = getattr(error, "sqlite_errorcode", None)
    if extended is None:  # Python's own word on a text that is no UTF-8
        return isinstance(error, sqlite3.OperationalError)
    return extended in _UNREADABLE or extended & 0xFF in _DAMAGED


def as_twinserve_error(
    error: Exception, what: str, resource: tuple[str, str], *, reading: bool = False
) -> TwinserveError:
    """Word an error of SQLite or the file system for the one whose write, or read, it stopped."""
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if code in _IN_THE_WAY:
        return Unavailable(
            f"the database of {what} is locked by another process ({error}); close "
            "whatever else has it open, and try again",
            resource=resource,
            retry_after=RETRY_DISK_SECONDS,
        )
    if extended in _UNREADABLE or (reading and code == sqlite3.SQLITE_IOERR):
        return StoreDamaged(
            f"the database of {what} could not be read ({error}); check the server's "
            "data disk, and restart the server to have the database checked",
            resource=resource,
        )
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    if full or code in _NO_ROOM:
        return DiskFull(
            f"{what} could not be written ({error}); nothing of this request was "
            "kept. Free space on the server's data disk, and try again",
            resource=resource,
            retry_after=RETRY_DISK_SECONDS,
        )
    return StoreDamaged(
        f"the database of {what} failed ({error}); restart the server to have it checked",
        resource=resource,
    )


@contextlib.contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Turn what is found wrong with a file, while it is opened or read through, into a refusal."""
    try:
        yield
    except NewerFormat:
        raise
    except StoreDamaged as error:
        raise set_aside(path, error.message) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if isinstance(error, sqlite3.OperationalError) and code not in _DAMAGED | {
            sqlite3.SQLITE_ERROR
        }:
            raise as_twinserve_error(
                error, f"the folder {path.parent.name}", ("database", path.name)
            ) from error
        raise set_aside(path, str(error)) from error
    except (KeyError, UnicodeDecodeError) as error:
        raise set_aside(path, f"unreadable content: {error}") from error


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1_000
