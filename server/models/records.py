"""Which models a restart serves again: rows of catalog.db, of what LoadModel loaded and of aliases.

What --model names is not kept here: the flags say so again. The rows are a function of the table of
names and are written whole, in one transaction, before that table is used; so a process that dies
at any instant comes back with the old names or with the new ones.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from twinserve.server.models.table import Table
from twinserve.server.storage import database
from twinserve.server.storage.data_folder import Catalog
from twinserve.server.storage.database import now


@dataclass(frozen=True)
class Record:
    """One loaded twin; `file` lies below --model-dir, `digest` is the SHA-256 of its content."""

    name: str
    version: str
    file: str
    digest: str


class ModelRecords:
    """The rows of models and aliases in catalog.db."""

    def __init__(self, file: Catalog) -> None:
        self._file = file

    def models(self) -> list[Record]:
        """What was loaded, in the order in which it was."""
        rows = self._file.read("SELECT name, version, file, digest FROM models ORDER BY loaded")
        return [Record(*row) for row in rows]

    def aliases(self) -> dict[str, str]:
        """Aliases, each with its name@version."""
        rows = self._file.read("SELECT alias, name, version FROM aliases ORDER BY alias")
        return {alias: f"{name}@{version}" for alias, name, version in rows}

    def keep(self, table: Table) -> None:
        """Remember what a table serves; durable when this returns.

        Raises:
            DiskFull, Unavailable, StoreDamaged: not written; what was remembered stands.
        """
        try:
            self._keep(table)
        except (sqlite3.Error, OSError) as error:
            raise database.as_twinserve_error(
                error, "the catalogue of models", ("database", "catalog.db")
            ) from error

    def _keep(self, table: Table) -> None:
        models = [
            (one.engine.name, one.engine.manifest.version, one.origin.file, one.origin.digest)
            for one in table.served
            if one.origin is not None and one.origin.file
        ]
        engines = {one.engine.version: one.engine for one in table.served}
        with self._file.changing() as connection:
            known = dict(connection.execute("SELECT name || '@' || version, loaded FROM models"))
            connection.execute("DELETE FROM models")
            connection.executemany(
                "INSERT INTO models VALUES (?,?,?,?,?)",
                [(*row, known.get(f"{row[0]}@{row[1]}", now())) for row in models],
            )
            connection.execute("DELETE FROM aliases")
            connection.executemany(
                "INSERT INTO aliases VALUES (?,?,?)",
                [
                    (alias, engines[version].name, engines[version].manifest.version)
                    for alias, version in table.aliases.items()
                ],
            )
