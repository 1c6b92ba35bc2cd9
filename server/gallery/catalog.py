"""Which galleries there are, and their aliases: rows of catalog.db.

A gallery exists exactly as long as its row does, and an alias too.

Creating makes the folder first and the row last. Deleting moves the row's folder into the list of
deleted ones, in one transaction, and removes the folder afterwards. A crash in between leaves a
folder without a row: one on that list is removed at the next start, as is one that never held an
item. Any other was lost by this file, not by its owner, and is kept (galleries.py).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twinserve.distance import Metric
from twinserve.server.gallery.types import GallerySettings, HnswSettings, MetadataType
from twinserve.server.storage import data_folder
from twinserve.server.storage.database import now


@dataclass(frozen=True)
class Entry:
    """One gallery's row; `created` in microseconds since 1970."""

    settings: GallerySettings
    folder: str
    created: int


class Catalog:
    """The rows of galleries in catalog.db; their owner serialises the calls."""

    def __init__(self, file: data_folder.Catalog) -> None:
        self._file = file

    def entries(self) -> list[Entry]:
        """All galleries, by name."""
        rows = self._file.read("SELECT settings, folder, created FROM galleries ORDER BY name")
        return [Entry(read_settings(row[0]), row[1], row[2]) for row in rows]

    def add(self, entry: Entry, request_id: str) -> None:
        """Make a gallery exist; durable when this returns."""
        text = write_settings(entry.settings)
        with self._file.changing() as connection:
            connection.execute(
                "INSERT INTO galleries VALUES (?,?,?,?)",
                (entry.settings.name, entry.folder, text, entry.created),
            )
            if request_id:
                _remember(connection, request_id, text, entry.created)

    def remember(self, request_id: str, settings: GallerySettings, created: int) -> None:
        """Keep the answer of a creation that found its gallery there already."""
        with self._file.changing() as connection:
            _remember(connection, request_id, write_settings(settings), created)

    def answer(self, request_id: str, not_before: int) -> tuple[GallerySettings, int] | None:
        """Settings and creation time that a request since `not_before` was answered with."""
        with self._file.changing() as connection:
            connection.execute("DELETE FROM requests WHERE at < ?", (not_before,))
        rows = self._file.read("SELECT settings, created FROM requests WHERE id = ?", (request_id,))
        return (read_settings(rows[0][0]), rows[0][1]) if rows else None

    def drop(self, entry: Entry) -> None:
        """Make a gallery not exist, and its folder one to be removed; durable when this returns."""
        with self._file.changing() as connection:
            connection.execute("DELETE FROM galleries WHERE folder = ?", (entry.folder,))
            connection.execute("INSERT OR IGNORE INTO deleted VALUES (?)", (entry.folder,))

    def aliases(self) -> dict[str, str]:
        """The gallery that each alias stands for."""
        return dict(self._file.read("SELECT alias, gallery FROM gallery_aliases ORDER BY alias"))

    def set_alias(self, alias: str, gallery: str) -> None:
        """Let an alias, new or not, stand for a gallery; durable when this returns."""
        with self._file.changing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO gallery_aliases VALUES (?,?)", (alias, gallery)
            )

    def drop_alias(self, alias: str) -> None:
        """End an alias; durable when this returns."""
        with self._file.changing() as connection:
            connection.execute("DELETE FROM gallery_aliases WHERE alias = ?", (alias,))

    def fill(self, entries: Sequence[Entry], aliases: Mapping[str, str]) -> None:
        """Make galleries and aliases exist at once, in an empty catalogue: that of a backup."""
        with self._file.changing() as connection:
            connection.executemany(
                "INSERT INTO galleries VALUES (?,?,?,?)",
                [
                    (one.settings.name, one.folder, write_settings(one.settings), one.created)
                    for one in entries
                ],
            )
            connection.executemany("INSERT INTO gallery_aliases VALUES (?,?)", aliases.items())

    def deleted(self) -> list[str]:
        """Folders of deleted galleries that may still be there."""
        return [row[0] for row in self._file.read("SELECT folder FROM deleted")]

    def forget(self, folder: str) -> None:
        """Note that a deleted gallery's folder is gone."""
        with self._file.changing() as connection:
            connection.execute("DELETE FROM deleted WHERE folder = ?", (folder,))


def _remember(connection: sqlite3.Connection, request_id: str, text: str, created: int) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO requests VALUES (?,?,?,?)", (request_id, text, created, now())
    )


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
            "max_bytes": settings.max_bytes,
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
        max_bytes=raw.get("max_bytes", 0),  # rows of before there was such a limit
    )
