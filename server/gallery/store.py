"""The truth of one gallery: a SQLite file of items and vectors. It knows nothing of any index.

The crash that it survives: a process that dies at any instant loses no transaction that `commit`
returned for (WAL, synchronous=FULL: the log is fsynced before COMMIT returns) and keeps no part of
another one. What SQLite does not catch, a flipped bit inside a row, a checksum of each row does.
A file that fails its check is set aside and refused (database.py).

One thread writes, through one connection; readers borrow connections of their own, which see the
last commit and never wait for the writer. The format stands in docs/storage.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shutil
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from twinserve import formats
from twinserve.errors import GalleryNotFound, StoreDamaged, TwinserveError
from twinserve.server.storage import database
from twinserve.server.storage.raw_file import RawFile

SCHEMA_VERSION = formats.GALLERY

_SCHEMA = """
CREATE TABLE items(
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, subject TEXT NOT NULL,
    metadata TEXT NOT NULL, digest BLOB NOT NULL, created INTEGER NOT NULL,
    updated INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE INDEX items_by_subject ON items(subject) WHERE subject != '';
CREATE TABLE vectors(
    number INTEGER PRIMARY KEY, embedding BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE state(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE requests(
    id TEXT PRIMARY KEY, digest BLOB NOT NULL, answer TEXT NOT NULL, at INTEGER NOT NULL);
CREATE INDEX requests_by_time ON requests(at);
INSERT INTO state VALUES ('sequence', 0), ('next_number', 1);
"""
# Which items, from the first to the last number, each request changed; complete for all requests
# after `changes_since`. And the ids of the last two snapshots of the index. Items of a subject come
# by id without sorting.
_SINCE_1 = """
CREATE TABLE changes(sequence INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL);
INSERT INTO state SELECT 'changes_since', value FROM state WHERE key = 'sequence';
INSERT INTO state VALUES ('snapshot', 0), ('snapshot_before', 0);
DROP INDEX items_by_subject;
CREATE INDEX items_by_subject ON items(subject, id) WHERE subject != '';
"""
MOST_CHANGES = 50_000  # rows of the log that are kept without a snapshot that wants them
_TOGETHER = 100  # rows of a statement, of at most 999 values in old versions of SQLite
_NUMBERS = struct.Struct(">qqq")
_ITEM_COLUMNS = "number, id, subject, metadata, digest, created, updated, checksum"


class Record(NamedTuple):
    """One row of `items`. Times are microseconds since 1970; metadata is canonical text."""

    number: int
    id: str
    subject: str
    metadata: str
    digest: bytes
    created: int
    updated: int


@dataclass(frozen=True, eq=False)
class NewRecords:
    """Columns of new rows of `items`, numbered on from `first`, created and updated at `moment`."""

    first: int
    ids: Sequence[str]
    subjects: Sequence[str]
    metadata: Sequence[str]
    digests: Sequence[bytes]
    moment: int


@dataclass(frozen=True)
class Loaded:
    """A stretch of the file, in order of number; `embeddings` are float32 rows end to end."""

    records: list[Record]
    embeddings: bytes


@dataclass(frozen=True)
class Changed:
    """Of the items `first` to `last`, some of which changed: those that are there, with vectors."""

    first: int
    last: int
    records: list[Record]
    embeddings: list[bytes]


def never_used(path: Path) -> bool:
    """Whether a file is missing or surely holds no item; False where that cannot be read."""
    if not path.exists():
        return True
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'items'")
            if not tables.fetchone()[0]:
                return True
            return not connection.execute("SELECT EXISTS (SELECT 1 FROM items)").fetchone()[0]
    except sqlite3.Error:
        return False


def as_twinserve_error(error: Exception, name: str, *, reading: bool = False) -> TwinserveError:
    """Word an error of SQLite or the file system for a write, or read, of the gallery `name`."""
    return database.as_twinserve_error(
        error, f"gallery {name!r}", ("gallery", name), reading=reading
    )


class Store:
    """One gallery's file. Everything but `reading` belongs to the one writing thread."""

    def __init__(self, path: Path, name: str) -> None:
        """Open a file that `create` made.

        Raises:
            StoreDamaged: it is missing, fails its check, or is of another version.
        """
        self.path = path
        self.name = name
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()  # guards the list of idle readers, never held over a read
        self.raw = RawFile(path)
        self._closed = False
        if not path.exists():
            raise StoreDamaged(
                f"the database {path.parent.name}/{path.name} of gallery {name!r} is missing; "
                "put a backup in its place and start again, or delete the gallery",
                resource=("database", path.name),
            )
        with database.refusing_damage(path):
            self._connection = database.connect(path)
            try:
                self._bring_up_to_date()
                database.check_file(self._connection, path, SCHEMA_VERSION)
                state = dict(self._connection.execute("SELECT key, value FROM state"))
                self.sequence: int = state["sequence"]
                self.next_number: int = state["next_number"]
                self.changes_since: int = state["changes_since"]
                self.snapshots: tuple[int, int] = (state["snapshot"], state["snapshot_before"])
                self._count = int(
                    self._connection.execute("SELECT count(*) FROM items").fetchone()[0]
                )
            except BaseException:
                self._connection.close()
                raise
        self._committed = self._position()

    def _bring_up_to_date(self) -> None:
        if self._connection.execute("PRAGMA user_version").fetchone()[0] == 1:
            database.check_file(self._connection, self.path, 1)
            self._connection.executescript(f"BEGIN; {_SINCE_1} PRAGMA user_version = 2; COMMIT;")

    def _position(self) -> tuple[int, int, int]:
        return self.sequence, self.next_number, self._count

    def _go_back(self, position: tuple[int, int, int]) -> None:
        self.sequence, self.next_number, self._count = position

    @classmethod
    def create(cls, path: Path, name: str) -> Store:
        """Make an empty file and open it."""
        connection = database.connect(path)
        connection.executescript(
            f"PRAGMA application_id = {database.APPLICATION_ID}; BEGIN; {_SCHEMA} {_SINCE_1}"
            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
        connection.close()
        return cls(path, name)

    def load(self, dimension: int, rows: int = 8_192) -> Iterator[Loaded]:
        """Read all items back in order of number, verifying every checksum.

        Raises:
            StoreDamaged: a checksum or a vector's length is wrong, or a vector is missing.
        """
        with database.refusing_damage(self.path):
            yield from read_through(self._connection, dimension, rows)

    # -- the writer's transaction -----------------------------------------------------------------

    def begin(self) -> None:
        """Start a transaction; several requests share it."""
        self._connection.execute("BEGIN IMMEDIATE")

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """One request inside the transaction: all of it, or on any error nothing of it."""
        before = self._position()
        self._connection.execute("SAVEPOINT request")
        try:
            yield
        except TwinserveError:
            self._connection.execute("ROLLBACK TO request")
            self._connection.execute("RELEASE request")
            self._go_back(before)
            raise
        self._connection.execute("RELEASE request")

    def commit(self) -> None:
        """Make the transaction durable; when this returns, a crash cannot undo it."""
        self._connection.executemany(
            "UPDATE state SET value = ? WHERE key = ?",
            [(self.sequence, "sequence"), (self.next_number, "next_number")],
        )
        self._connection.execute("COMMIT")
        self._committed = self._position()

    def rollback(self) -> None:
        """Undo the open transaction, if SQLite has not done so itself."""
        self._go_back(self._committed)
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def find(self, ids: Sequence[str]) -> dict[str, Record]:
        """Those of `ids` that are there, the open transaction's changes included."""
        return {record.id: record for record in _find(self._connection, ids)}

    def insert(self, records: Sequence[Record], embeddings: Sequence[bytes]) -> None:
        """Add new items with their vectors (float32 bytes)."""
        self._connection.executemany(
            f"INSERT INTO items({_ITEM_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)",
            [_columns(record) for record in records],
        )
        self._connection.executemany(
            "INSERT INTO vectors(number, embedding, checksum) VALUES (?,?,?)",
            [
                (record.number, embedding, zlib.crc32(embedding, record.number & 0xFFFFFFFF))
                for record, embedding in zip(records, embeddings, strict=True)
            ],
        )
        self._count += len(records)

    def insert_all(self, new: NewRecords, vectors: bytes) -> None:
        """Add new items with their vectors (float32 rows end to end), in few statements.

        Each step of a statement gives up the interpreter's lock and has to get it back: by rows, a
        thousand items would wait two thousand times for whatever else the server does.
        """
        count, width = len(new.ids), len(vectors) // len(new.ids)
        numbers = range(new.first, new.first + count)
        texts = zip(new.ids, new.subjects, new.metadata, strict=True)
        pack, moment = _NUMBERS.pack, new.moment
        checksums = [
            zlib.crc32(pack(number, moment, moment) + "\0".join(row).encode() + digest)
            for number, row, digest in zip(numbers, texts, new.digests, strict=True)
        ]
        times = [moment] * count
        columns = (numbers, new.ids, new.subjects, new.metadata, new.digests, times, times)
        self._insert_rows(list(zip(*columns, checksums, strict=True)))
        view = memoryview(vectors)
        vector_checksums = [
            zlib.crc32(view[start : start + width], number & 0xFFFFFFFF)
            for number, start in zip(numbers, range(0, len(vectors), width), strict=True)
        ]
        self._connection.execute(
            "INSERT INTO vectors(number, embedding, checksum)"
            " SELECT ?1 + key, substr(?2, 1 + key * ?3, ?3), value FROM json_each(?4)",
            (new.first, vectors, width, json.dumps(vector_checksums)),
        )
        self._count += count

    def _insert_rows(self, rows: Sequence[tuple[object, ...]]) -> None:
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            self._connection.execute(
                f"INSERT INTO items({_ITEM_COLUMNS}) VALUES "
                + ",".join(["(?,?,?,?,?,?,?,?)"] * len(some)),
                list(itertools.chain.from_iterable(some)),
            )

    def replace(self, record: Record, embedding: bytes | None) -> None:
        """Change the item of `record.number`; its vector only where one is given."""
        _, *columns = _columns(record)
        self._connection.execute(
            "UPDATE items SET id=?, subject=?, metadata=?, digest=?, created=?, updated=?,"
            " checksum=? WHERE number=?",
            [*columns, record.number],
        )
        if embedding is not None:
            self._connection.execute(
                "UPDATE vectors SET embedding=?, checksum=? WHERE number=?",
                (embedding, zlib.crc32(embedding, record.number & 0xFFFFFFFF), record.number),
            )

    def used_bytes(self) -> int:
        """Bytes of the pages in use, the open transaction's included, those free for others not."""
        pages, free = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
        return int(pages - free) * database.PAGE_BYTES

    def count(self) -> int:
        """How many items there are, the open transaction's included."""
        return self._count

    def of_subject(self, subject: str) -> list[Record]:
        """The items of a subject; an item without one is its own subject, by its id."""
        return [
            _record(row)
            for query in (
                f"SELECT {_ITEM_COLUMNS} FROM items WHERE subject = ? AND subject != ''",
                f"SELECT {_ITEM_COLUMNS} FROM items WHERE id = ? AND subject = ''",
            )
            for row in self._connection.execute(query, (subject,))
        ]

    def has_subject(self, subject: str) -> bool:
        """Whether `of_subject` would give any."""
        row = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM items WHERE subject = ?1 AND subject != '')"
            " OR EXISTS (SELECT 1 FROM items WHERE id = ?1 AND subject = '')",
            (subject,),
        ).fetchone()
        return bool(row[0])

    def every(self) -> Iterator[Record]:
        """All items by id, as the writer sees them."""
        for row in self._connection.execute(f"SELECT {_ITEM_COLUMNS} FROM items ORDER BY id"):
            yield _record(row)

    def delete(self, records: Iterable[Record]) -> None:
        """Remove items with their vectors."""
        numbers = [(record.number,) for record in records]
        self._connection.executemany("DELETE FROM items WHERE number = ?", numbers)
        self._connection.executemany("DELETE FROM vectors WHERE number = ?", numbers)
        self._count -= len(numbers)

    def log(self, sequence: int, numbers: Iterable[int]) -> None:
        """Note which items the request of this sequence added, changed or removed."""
        self._connection.executemany(
            "INSERT INTO changes VALUES (?,?,?)",
            [(sequence, first, last) for first, last in _stretches(sorted(numbers))],
        )

    def changed_after(self, sequence: int, rows: int = 8_192) -> Iterator[Changed]:
        """What later requests changed, as it stands now, verifying checksums.

        Raises:
            StoreDamaged: a checksum is wrong, or a vector is missing.
        """
        with database.refusing_damage(self.path):
            logged = self._connection.execute(
                "SELECT first, last FROM changes WHERE sequence > ? ORDER BY first", (sequence,)
            ).fetchall()
            for first, last in _joined(logged, rows):
                found = self._connection.execute(
                    "SELECT i.number, i.id, i.subject, i.metadata, i.digest, i.created, i.updated,"
                    " i.checksum, v.embedding, v.checksum FROM items i LEFT JOIN vectors v"
                    " ON v.number = i.number WHERE i.number BETWEEN ? AND ? ORDER BY i.number",
                    (first, last),
                ).fetchall()
                records = [_record(row[:8]) for row in found]
                for record, row in zip(records, found, strict=True):
                    if row[8] is None or zlib.crc32(row[8], record.number & 0xFFFFFFFF) != row[9]:
                        raise StoreDamaged(f"the vector of item {record.id!r} is not as written")
                yield Changed(first, last, records, [row[8] for row in found])

    def note_snapshot(self, snapshot: int, before: int) -> None:
        """Know a snapshot by its id, beside the one before, which counts until the new one is
        whole; a transaction of its own.
        """
        ids = (snapshot, before)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(
                "UPDATE state SET value = ? WHERE key = ?",
                [(ids[0], "snapshot"), (ids[1], "snapshot_before")],
            )
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self.snapshots = ids

    def shorten_log(self, wanted_after: int | None) -> None:
        """Drop what no snapshot needs of the log of changes; for idle moments.

        wanted_after: the sequence of the snapshot that is there, or None: then the log goes once
        it is long, since a start without a snapshot reads everything anyway.
        """
        keep_after = wanted_after
        if keep_after is None:
            rows = self._connection.execute("SELECT count(*) FROM changes").fetchone()[0]
            if rows < MOST_CHANGES:
                return
            keep_after = self.sequence
        if keep_after <= self.changes_since:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM changes WHERE sequence <= ?", (keep_after,))
            self._connection.execute(
                "UPDATE state SET value = ? WHERE key = 'changes_since'", (keep_after,)
            )
            self._connection.execute("COMMIT")
            self.changes_since = keep_after
        except sqlite3.Error as error:  # only a chore
            logging.getLogger(__name__).warning("shortening the log of %s: %s", self.name, error)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def answer(self, request_id: str, not_before: int) -> tuple[bytes, str] | None:
        """Digest and stored answer of a request since `not_before` (microseconds), or None."""
        row = self._connection.execute(
            "SELECT digest, answer FROM requests WHERE id = ? AND at >= ?", (request_id, not_before)
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def remember(self, request_id: str, digest: bytes, answer: str, at: int) -> None:
        """Keep a request's answer, with the change that it answers for."""
        self._connection.execute(
            "INSERT OR REPLACE INTO requests VALUES (?,?,?,?)", (request_id, digest, answer, at)
        )

    def forget_answers(self, before: int) -> None:
        """Drop stored answers older than `before` (microseconds)."""
        self._connection.execute("DELETE FROM requests WHERE at < ?", (before,))

    def checkpoint(self) -> None:
        """Move the log into the file where no reader is in the way; for idle moments."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:  # only a chore: the log itself is already durable
            logging.getLogger(__name__).warning("checkpoint of %s: %s", self.name, error)

    def close(self) -> None:
        """Close the writer and all idle readers; a borrowed reader closes when given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.close()
        self._connection.close()
        self.raw.close()

    def set_aside(self, finding: str, proceed: Callable[[], bool]) -> Path | None:
        """Copy the file, which is in use, as evidence; None where `proceed` ended that, or where it
        would fill the disk, on which the other galleries still write.
        """
        broken = self.path.with_name(self.path.name + ".broken")
        if not broken.exists():
            room = shutil.disk_usage(self.path.parent).free
            try:
                copied = room > 2 * self.path.stat().st_size and self.raw.copy_to(broken, proceed)
            except OSError:
                copied = False
            if not copied:
                return None
        database.set_aside(self.path, finding)  # the log; of the file there is a copy
        return broken

    # -- readers, any thread ----------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """Borrow a connection that sees the last commit.

        Raises:
            GalleryNotFound: the store was closed, its gallery deleted or the server stopping.
        """
        with self._lock:
            if self._closed:
                raise GalleryNotFound(
                    f"gallery {self.name!r} was deleted or closed",
                    resource=("gallery", self.name),
                )
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=30.0
            )
            database.keep_temporary_in_memory(connection)
            connection.execute("PRAGMA query_only = ON")
        healthy = False
        try:
            yield Reader(connection)
            healthy = True
        except sqlite3.Error as error:
            raise as_twinserve_error(error, self.name, reading=True) from error
        except TwinserveError:
            healthy = True
            raise
        finally:
            with self._lock:
                keep = healthy and not self._closed and len(self._idle) < 8
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()


class Reader:
    """Reads of one borrowed connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def item(self, item_id: str) -> tuple[Record, bytes] | None:
        """An item with its embedding (float32 bytes), of one snapshot.

        Raises:
            StoreDamaged: one of them is not as it was written.
        """
        row = self._connection.execute(
            "SELECT i.number, i.id, i.subject, i.metadata, i.digest, i.created, i.updated,"
            " i.checksum, v.embedding, v.checksum"
            " FROM items i JOIN vectors v ON v.number = i.number WHERE i.id = ?",
            (item_id,),
        ).fetchone()
        if row is None:
            return None
        *columns, embedding, checksum = row
        record = _record(columns)
        _check_vector(columns, embedding, checksum, len(embedding) // 4)
        return record, embedding

    def items(self, ids: Sequence[str]) -> list[Record]:
        """Those of `ids` that are there, in no order."""
        return list(_find(self._connection, ids))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all reads of the block see one state; while it lasts, the log only grows."""
        self._connection.execute("BEGIN")
        try:
            # SQLite takes the state with the first read, not with BEGIN.
            self._connection.execute("SELECT count(*) FROM state").fetchone()
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def embeddings(self, records: Sequence[Record], dimension: int) -> list[bytes]:
        """The vectors (float32 bytes) of records of the same snapshot, in their order.

        Raises:
            StoreDamaged: a vector is missing, or not as it was written.
        """
        numbers = json.dumps([record.number for record in records])
        found = {
            number: embedding
            for number, embedding, checksum in self._connection.execute(
                "SELECT number, embedding, checksum FROM vectors"
                " WHERE number IN (SELECT value FROM json_each(?))",
                (numbers,),
            )
            if len(embedding) == dimension * 4
            and zlib.crc32(embedding, number & 0xFFFFFFFF) == checksum
        }
        for record in records:
            if record.number not in found:
                raise StoreDamaged(f"the vector of item {record.id!r} is not as it was written")
        return [found[record.number] for record in records]

    def copy(
        self, target: sqlite3.Connection, pages: int, progress: Callable[[int, int], None]
    ) -> None:
        """Copy the whole file as it is now into an empty one, in steps of `pages`.

        `progress` is told the pages left and all pages; what it raises ends the copy. SQLite begins
        anew whenever another connection commits, except inside an open transaction: there every
        step reads the same state, whatever is written meanwhile.
        """
        with self.snapshot():
            self._connection.backup(
                target, pages=pages, progress=lambda _, left, total: progress(left, total)
            )

    def after(self, item_id: str, limit: int) -> list[Record]:
        """The next items by id, bytewise."""
        return [
            _record(row)
            for row in self._connection.execute(
                f"SELECT {_ITEM_COLUMNS} FROM items WHERE id > ? ORDER BY id LIMIT ?",
                (item_id, limit),
            )
        ]

    def of_subject_after(self, subject: str, item_id: str, limit: int) -> list[Record]:
        """The next items of a subject by id, bytewise; as `Store.of_subject`, of one snapshot."""
        return [
            _record(row)
            for row in self._connection.execute(
                f"SELECT {_ITEM_COLUMNS} FROM items"
                " WHERE subject = ?1 AND subject != '' AND id > ?2"
                f" UNION ALL SELECT {_ITEM_COLUMNS} FROM items"
                " WHERE id = ?1 AND subject = '' AND id > ?2 ORDER BY id LIMIT ?3",
                (subject, item_id, limit),
            )
        ]

    # -- for the scrub, whose reads must come from the disk --

    def check_structure(self) -> None:
        """Have SQLite check the file's pages; the GIL is free meanwhile.

        Raises:
            StoreDamaged: with the first finding.
        """
        self._connection.execute("PRAGMA shrink_memory")
        findings = [
            " ".join(row[0].split()) for row in self._connection.execute("PRAGMA quick_check(1)")
        ]
        if findings != ["ok"]:
            raise StoreDamaged(findings[0])

    def last_number(self) -> int:
        """The largest number of an item; 0 where there is none."""
        row = self._connection.execute("SELECT max(number) FROM items").fetchone()
        return row[0] or 0

    def check_after(self, number: int, rows: int, dimension: int) -> tuple[int, int]:
        """Read the next rows by number with their vectors, of one snapshot, and verify them.

        Return the number of the last one, and the bytes that were read; (number, 0) at the end.

        Raises:
            StoreDamaged: a checksum or a vector's length is wrong, or a vector is missing.
        """
        self._connection.execute("PRAGMA shrink_memory")  # what it remembers was read before
        size = 0
        for *columns, embedding, checksum in self._connection.execute(
            "SELECT i.number, i.id, i.subject, i.metadata, i.digest, i.created, i.updated,"
            " i.checksum, v.embedding, v.checksum"
            " FROM items i LEFT JOIN vectors v ON v.number = i.number"
            " WHERE i.number > ? ORDER BY i.number LIMIT ?",
            (number, rows),
        ).fetchall():
            record = _record(columns)
            _check_vector(columns, embedding, checksum, dimension)
            number = record.number
            size += (
                len(embedding) + len(record.metadata) + len(record.subject) + len(record.id) + 64
            )
        return number, size


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, last) of each stretch without a gap."""
    first = last = None
    for number in numbers:
        if first is None or last is None or number > last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


def _joined(logged: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Overlapping stretches, ordered by their first, as disjoint ones of at most `most` numbers."""
    reached = -1
    for first, last in logged:
        start = max(first, reached + 1)
        while start <= last:
            end = min(last, start + most - 1)
            yield start, end
            start = end + 1
        reached = max(reached, last)


def read_through(connection: sqlite3.Connection, dimension: int, rows: int) -> Iterator[Loaded]:
    """Read all items in order of number, verifying every checksum.

    Raises:
        StoreDamaged: a checksum or a vector's length is wrong, or a vector is missing.
    """
    cursor = connection.execute(
        "SELECT i.number, i.id, i.subject, i.metadata, i.digest, i.created, i.updated,"
        " i.checksum, v.embedding, v.checksum"
        " FROM items i LEFT JOIN vectors v ON v.number = i.number ORDER BY i.number"
    )
    while fetched := cursor.fetchmany(rows):
        records = []
        for *columns, embedding, vector_checksum in fetched:
            records.append(_record(columns))
            _check_vector(columns, embedding, vector_checksum, dimension)
        yield Loaded(records, b"".join(row[8] for row in fetched))


def _check_vector(
    columns: Sequence[object], embedding: object, checksum: object, dimension: int
) -> None:
    number = columns[0]
    if (
        not isinstance(embedding, bytes)
        or not isinstance(number, int)
        or len(embedding) != dimension * 4
        or zlib.crc32(embedding, number & 0xFFFFFFFF) != checksum
    ):
        raise StoreDamaged(f"the vector of item {columns[1]!r} is not as it was written")


def _find(connection: sqlite3.Connection, ids: Sequence[str]) -> Iterator[Record]:
    query = f"SELECT {_ITEM_COLUMNS} FROM items WHERE id IN (SELECT value FROM json_each(?))"
    for row in connection.execute(query, (json.dumps(list(ids)),)):
        yield _record(row)


def _columns(record: Record) -> tuple[object, ...]:
    return (
        record.number,
        record.id,
        record.subject,
        record.metadata,
        record.digest,
        record.created,
        record.updated,
        _checksum(record),
    )


def _record(columns: Sequence[object]) -> Record:
    *values, checksum = columns
    record = Record(*values)  # type: ignore[arg-type]
    try:
        right = _checksum(record) == checksum
    except (TypeError, ValueError, AttributeError, struct.error):
        right = False
    if not right:
        raise StoreDamaged(f"item {record.id!r} is not as it was written")
    return record


def _checksum(record: Record) -> int:
    numbers = _NUMBERS.pack(record.number, record.created, record.updated)
    texts = "\0".join((record.id, record.subject, record.metadata)).encode()
    return zlib.crc32(record.digest, zlib.crc32(texts, zlib.crc32(numbers)))
