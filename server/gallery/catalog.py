"""catalog.db: which galleries there are. A gallery exists exactly as long as its row does.

Creating makes the folder first and the row last. Deleting moves the row's folder into the list of
deleted ones, in one transaction, and removes the folder afterwards. A crash in between leaves a
folder without a row: one on that list is removed at the next start, as is one that never held an
item. Any other was lost by this file, not by its owner, and is kept (galleries.py).
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from twinserve.distance import Metric
from twinserve.server.gallery import store
from twinserve.server.gallery.types import GallerySettings, HnswSettings, MetadataType

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE galleries(
    name TEXT PRIMARY KEY, folder TEXT NOT NULL UNIQUE, settings TEXT NOT NULL,
    created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE requests(
    id TEXT PRIMARY KEY, settings TEXT NOT NULL, created INTEGER NOT NULL, at INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """One gallery's row; `created` in microseconds since 1970."""

    settings: GallerySettings
    folder: str
    created: int


# Not part of the schema's version: a catalogue that an earlier server made lacks it, and gets it.
_DELETED = "CREATE TABLE IF NOT EXISTS deleted(folder TEXT PRIMARY KEY) WITHOUT ROWID"


class Catalog:
    """The rows of catalog.db; its owner serialises the calls."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            StoreDamaged: the file is damaged or of another version.
        """
        fresh = not path.exists() or path.stat().st_size == 0
        with store.refusing_damage(path):
            self._connection = store.connect(path)
            try:
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                # A crash right after the first open leaves a file that is valid and empty.
                if fresh or (version == 0 and tables[0] == 0):
                    self._connection.executescript(
                        f"PRAGMA application_id = {store.APPLICATION_ID}; BEGIN; {_SCHEMA}"
                        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                    )
                store.check_file(self._connection, path, SCHEMA_VERSION)
                self._connection.execute(_DELETED)
            except BaseException:
                self._connection.close()
                raise

    def entries(self) -> list[Entry]:
        """All galleries, by name."""
        rows = self._connection.execute(
            "SELECT settings, folder, created FROM galleries ORDER BY name"
        )
        return [Entry(read_settings(row[0]), row[1], row[2]) for row in rows]

    def add(self, entry: Entry, request_id: str) -> None:
        """Make a gallery exist; durable when this returns."""
        text = write_settings(entry.settings)
        with _transaction(self._connection):
            self._connection.execute(
                "INSERT INTO galleries VALUES (?,?,?,?)",
                (entry.settings.name, entry.folder, text, entry.created),
            )
            if request_id:
                self._remember(request_id, text, entry.created)

    def remember(self, request_id: str, settings: GallerySettings, created: int) -> None:
        """Keep the answer of a creation that found its gallery there already."""
        with _transaction(self._connection):
            self._remember(request_id, write_settings(settings), created)

    def _remember(self, request_id: str, text: str, created: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO requests VALUES (?,?,?,?)",
            (request_id, text, created, store.now()),
        )

    def answer(self, request_id: str, not_before: int) -> tuple[GallerySettings, int] | None:
        """Settings and creation time that a request since `not_before` was answered with."""
        with _transaction(self._connection):
            self._connection.execute("DELETE FROM requests WHERE at < ?", (not_before,))
        row = self._connection.execute(
            "SELECT settings, created FROM requests WHERE id = ?", (request_id,)
        ).fetchone()
        return None if row is None else (read_settings(row[0]), row[1])

    def drop(self, entry: Entry) -> None:
        """Make a gallery not exist, and its folder one to be removed; durable when this returns."""
        with _transaction(self._connection):
            self._connection.execute("DELETE FROM galleries WHERE folder = ?", (entry.folder,))
            self._connection.execute("INSERT OR IGNORE INTO deleted VALUES (?)", (entry.folder,))

    def deleted(self) -> list[str]:
        """Folders of deleted galleries that may still be there."""
        return [row[0] for row in self._connection.execute("SELECT folder FROM deleted")]

    def forget(self, folder: str) -> None:
        """Note that a deleted gallery's folder is gone."""
        with _transaction(self._connection):
            self._connection.execute("DELETE FROM deleted WHERE folder = ?", (folder,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class _transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
                return
            except sqlite3.Error:
                self._rollback()
                raise
        self._rollback()

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def write_settings(settings: GallerySettings) -> str:
    """Settings as canonical JSON."""
    return json.dumps(
        {
            "name": settings.name,
            "model": settings.model,
            "space_id": settings.space_id,
            "dimension": settings.dimension,
            "metric": settings.metric.value,
            "hnsw": [settings.hnsw.m, settings.hnsw.ef_construction, settings.hnsw.ef],
            "metadata_keys": [[key, kind.value] for key, kind in settings.metadata_keys],
            "max_items": settings.max_items,
        },
        sort_keys=True,
    )


def read_settings(text: str) -> GallerySettings:
    """The settings that `write_settings` wrote."""
    raw = json.loads(text)
    return GallerySettings(
        name=raw["name"],
        model=raw["model"],
        space_id=raw["space_id"],
        dimension=raw["dimension"],
        metric=Metric(raw["metric"]),
        hnsw=HnswSettings(*raw["hnsw"]),
        metadata_keys=tuple((key, MetadataType(kind)) for key, kind in raw["metadata_keys"]),
        max_items=raw["max_items"],
    )
