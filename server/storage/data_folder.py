"""A server's data folder: the lock that one process holds, and catalog.db, which says what exists.

catalog.db belongs to nobody alone: galleries and models keep their rows in tables of their own
there (gallery/catalog.py, model_records.py) and know nothing of each other. The schema stands here,
so that one number says which version of the file this is; an older one is brought up to date in
one transaction, a newer one is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from twinserve import formats
from twinserve.errors import ConfigError, FailedPrecondition
from twinserve.server.storage import database

SCHEMA_VERSION = formats.CATALOG
_ORPHAN_SECONDS = 10.0
_GALLERIES = """
CREATE TABLE galleries(
    name TEXT PRIMARY KEY, folder TEXT NOT NULL UNIQUE, settings TEXT NOT NULL,
    created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE requests(
    id TEXT PRIMARY KEY, settings TEXT NOT NULL, created INTEGER NOT NULL, at INTEGER NOT NULL);
"""
# A file of version 1 may have the first of these already.
_SINCE_1 = """
CREATE TABLE IF NOT EXISTS deleted(folder TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE models(
    name TEXT NOT NULL, version TEXT NOT NULL, file TEXT NOT NULL, digest TEXT NOT NULL,
    loaded INTEGER NOT NULL, PRIMARY KEY (name, version)) WITHOUT ROWID;
CREATE TABLE aliases(
    alias TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL) WITHOUT ROWID;
"""
_SINCE_2 = """
CREATE TABLE gallery_aliases(alias TEXT PRIMARY KEY, gallery TEXT NOT NULL) WITHOUT ROWID;
"""
# What brings a file of an older version up to this one, in one transaction.
_UPGRADES = {1: _SINCE_1 + _SINCE_2, 2: _SINCE_2}


class Catalog:
    """catalog.db, open. Safe from any thread: one transaction at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            StoreDamaged: the file is damaged or of a newer version.
        """
        self.path = path
        self._lock = threading.RLock()
        fresh = not path.exists() or path.stat().st_size == 0
        with database.refusing_damage(path):
            self._connection = database.connect(path)
            try:
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                # A crash right after the first open leaves a file that is valid and empty.
                if fresh or (version == 0 and tables[0] == 0):
                    self._connection.executescript(
                        f"PRAGMA application_id = {database.APPLICATION_ID}; BEGIN; {_GALLERIES}"
                        f"{_UPGRADES[1]} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                    )
                elif version in _UPGRADES:
                    database.check_file(self._connection, path, version)
                    self._connection.executescript(
                        f"BEGIN; {_UPGRADES[version]} PRAGMA user_version = {SCHEMA_VERSION};"
                        "COMMIT;"
                    )
                database.check_file(self._connection, path, SCHEMA_VERSION)
            except BaseException:
                self._connection.close()
                raise

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all or nothing; durable when the block has ended."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query, as of the last transaction."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


class DataFolder:
    """A data folder that this process holds, and no other.

    Raises:
        ConfigError: it cannot be made or written, or is no folder.
        FailedPrecondition: another server holds it.
        StoreDamaged: the catalogue is damaged; a copy was put beside it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(root / "lock")
        except OSError as error:
            raise ConfigError(
                f"--data-dir {root} cannot be used ({error.strerror}); give a folder that this "
                "user may write, or a path where one can be made"
            ) from error
        try:
            self.catalog = Catalog(root / "catalog.db")
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Close the catalogue, and give the folder back."""
        self.catalog.close()
        self._lock.close()


def _is_gone(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, OSError):
        return False
    return False


def _take_lock(path: Path) -> IO[str]:
    # Opened for appending: a refused second server must not wipe the holder's process id.
    file = path.open("a+", encoding="ascii")
    end = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            file.seek(0)
            holder = file.read(32).strip() or "unknown"
            # A killed server's child, which writes a graph, holds the lock until it has died too.
            if _is_gone(holder) and time.monotonic() < end:
                time.sleep(0.02)
                continue
            file.close()
            raise FailedPrecondition(
                f"the data folder {path.parent} is in use by another server (process {holder}); "
                "stop that one, or give this one a folder of its own",
                resource=("folder", str(path.parent)),
            ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
