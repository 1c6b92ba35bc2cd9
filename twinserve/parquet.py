"""Items as Parquet files: what the columns mean, written and read back. No server in here.

Out of items with embeddings comes a part: columns `id`, `subject`, `create_time`, `update_time`,
one typed column per declared metadata key, `metadata` (all other keys as JSON, types kept) and
`embedding`. Back come batches of rows, also from files that somebody else wrote: of these,
`embedding` is all that must be there, and other columns are metadata. docs/storage.md has the
format.

pyarrow is imported with the first file that is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.arrow import arrow
from twinserve.errors import DataError
from twinserve.messages import Gallery, Item, MetadataValue

MARK = b"twinserve"  # in a file's schema: whose items these are
_KEY = b"twinserve.key"  # in a column's: the metadata key that it holds
_OWN = ("id", "subject", "create_time", "update_time", "metadata", "embedding")
_LETTERS = {str: "s", int: "i", float: "n", bool: "f", datetime: "t"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Rows:
    """Some rows of a file; `first` is the number of the first, from 0."""

    first: int
    ids: list[str]
    subjects: list[str]
    metadata: list[dict[str, MetadataValue]]
    embeddings: NDArray[np.float32]  # [n, dimension]

    def __len__(self) -> int:
        return len(self.ids)


# ---- writing -------------------------------------------------------------------------------------


class PartWriter:
    """One part, written aside and put in its place when it is whole and on disk.

    Args:
        path: where it goes; `.NAME.partial` beside it until then.
        gallery: whose items these are.
        about: kept in the file: what the gallery was made with.
    """

    def __init__(self, path: Path, gallery: Gallery, about: Mapping[str, Any]) -> None:
        self._pa, parquet = arrow()
        self._path = path
        self._aside = path.with_name(f".{path.name}.partial")
        self._keys = _columns(gallery.metadata_keys)
        self._dimension = gallery.dimension
        self._schema = self._make_schema(about)
        self._file = open(self._aside, "wb")  # noqa: SIM115 - closed by `close` or `drop`
        texts = [name for name, (_, kind) in self._keys.items() if kind == "text"]
        self._writer = parquet.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            # Vectors repeat no value, and their least and greatest say nothing.
            use_dictionary=["subject", *texts],
            write_statistics=["id"],
        )

    def _make_schema(self, about: Mapping[str, Any]) -> Any:
        pa = self._pa
        time = pa.timestamp("us", "UTC")
        types = {
            "text": pa.string(),
            "integer": pa.int64(),
            "number": pa.float64(),
            "flag": pa.bool_(),
            "time": time,
        }
        return pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("subject", pa.string(), nullable=False),
                pa.field("create_time", time),
                pa.field("update_time", time),
                *(
                    pa.field(name, types[kind], metadata={_KEY: key.encode()})
                    for name, (key, kind) in self._keys.items()
                ),
                pa.field("metadata", pa.string()),
                pa.field(
                    "embedding",
                    pa.list_(pa.field("element", pa.float32(), nullable=False), self._dimension),
                    nullable=False,
                ),
            ],
            metadata={MARK: json.dumps(about, sort_keys=True).encode()},
        )

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, items: Sequence[Item], embeddings: NDArray[np.float32]) -> None:
        """Add a row group: items with their embeddings, float32 [n, dimension]."""
        pa = self._pa
        declared = {key for key, _ in self._keys.values()}
        time = pa.timestamp("us", "UTC")

        def times(values: Sequence[datetime | None]) -> Any:
            numbers = [None if one is None else (one - _EPOCH) // _MICROSECOND for one in values]
            return pa.array(numbers, pa.int64()).cast(time)

        columns = [
            pa.array([item.id for item in items], pa.string()),
            pa.array([item.subject for item in items], pa.string()),
            times([item.create_time for item in items]),
            times([item.update_time for item in items]),
        ]
        for name, (key, kind) in self._keys.items():
            values: list[Any] = [item.metadata.get(key) for item in items]
            columns.append(
                times(values) if kind == "time" else pa.array(values, self._schema.field(name).type)
            )
        columns.append(pa.array([_rest(item.metadata, declared) for item in items], pa.string()))
        flat = np.ascontiguousarray(embeddings, np.float32).reshape(-1)
        columns.append(
            pa.FixedSizeListArray.from_arrays(
                pa.array(flat, pa.float32()), type=self._schema.field("embedding").type
            )
        )
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Have the part on disk, in its place."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._aside.rename(self._path)
        fsync_folder(self._path.parent)

    def drop(self) -> None:
        """Leave nothing of the part."""
        with contextlib.suppress(OSError):
            self._writer.close()
        self._file.close()
        self._aside.unlink(missing_ok=True)


def _columns(keys: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """A column for each key, with the key and its type: of its name, unless that is one of ours."""
    columns: dict[str, tuple[str, str]] = {}
    for key, kind in keys.items():
        name = key
        while name in _OWN or name in columns or (name != key and name in keys):
            name += "_"
        columns[name] = key, kind
    return columns


def _rest(metadata: Mapping[str, MetadataValue], declared: set[str]) -> str | None:
    entries = [
        [key, _LETTERS[type(value)], _plain(value)]
        for key, value in sorted(metadata.items())
        if key not in declared
    ]
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":")) if entries else None


def _plain(value: MetadataValue) -> str | int | float | bool:
    return (value - _EPOCH) // _MICROSECOND if isinstance(value, datetime) else value


def fsync_folder(path: Path) -> None:
    """Have a folder's names on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading -------------------------------------------------------------------------------------


class ItemFile:
    """A Parquet file of items, its columns checked.

    Raises:
        DataError: it is no Parquet, has no embeddings, or a column of a type that cannot be kept.
    """

    def __init__(self, path: Path) -> None:
        self._pa, parquet = arrow()
        self.path = path
        try:
            self._file = parquet.ParquetFile(path)
        except self._pa.ArrowException as error:
            raise DataError(f"{path} is not a whole Parquet file ({_short(error)})") from error
        self.rows: int = self._file.metadata.num_rows
        schema = self._file.schema_arrow
        mark = (schema.metadata or {}).get(MARK)
        # What the exported gallery was made with; None for a file of somebody else.
        self.about: dict[str, Any] | None = None if mark is None else json.loads(mark)
        self._names = [name for name in schema.names if not re.match("__index_level_", name)]
        # The number of values that the type says; 0 where each row says its own.
        self._width = self._check_embedding(schema)
        self._keys: dict[str, str] = {}  # column -> metadata key
        self._known_digest = ""
        for name in self._names:
            field = schema.field(name)
            own = _OWN if self.about is not None else ("id", "subject", "embedding")
            if name in ("id", "subject"):
                self._check_text(name, field.type)
            elif name not in own:
                self._check_value(name, field.type)
                key = (field.metadata or {}).get(_KEY)
                self._keys[name] = name if key is None else key.decode()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def dimension(self) -> int:
        """Of the embeddings, by their type or else by the first row; 0 where there is none."""
        if self._width or not self.rows:
            return int(self._width)
        batch = next(self._file.iter_batches(batch_size=1, columns=["embedding"]))
        length = batch.column(0).value_lengths()[0].as_py()
        return int(length or 0)

    @property
    def space_id(self) -> str:
        """The space of the embeddings; "" where the file does not say."""
        return str(self.about["space_id"]) if self.about is not None else ""

    def read(self, first: int, size: int, dimension: int) -> Iterator[Rows]:
        """Read rows from number `first` on, `size` at a time and fewer at the end of a group.

        Raises:
            DataError: a row that cannot be enrolled, by its number from 1.
        """
        metadata = self._file.metadata
        begin = 0
        group = 0
        while (
            group < metadata.num_row_groups and begin + metadata.row_group(group).num_rows <= first
        ):
            begin += metadata.row_group(group).num_rows
            group += 1
        batches = self._file.iter_batches(
            batch_size=size,
            row_groups=list(range(group, metadata.num_row_groups)),
            columns=[name for name in self._names if name not in ("create_time", "update_time")]
            if self.about is not None
            else self._names,
        )
        try:
            for batch in batches:
                done = max(0, first - begin)
                if done < batch.num_rows:
                    yield self._rows(batch.slice(done), begin + done, dimension)
                begin += batch.num_rows
        except self._pa.ArrowException as error:
            raise DataError(f"{self.path} cannot be read ({_short(error)})") from error

    def _rows(self, batch: Any, first: int, dimension: int) -> Rows:
        count = batch.num_rows
        names = set(batch.schema.names)
        embeddings = self._embeddings(batch.column("embedding"), first, dimension)
        if "id" in names:
            ids = self._texts(batch, "id", first, required=True)
        else:
            ids = [f"{self._digest()}-{first + row:09}" for row in range(count)]
        subjects = self._texts(batch, "subject", first) if "subject" in names else [""] * count
        metadata: list[dict[str, MetadataValue]] = [{} for _ in range(count)]
        if self.about is not None and "metadata" in names:
            for row, text in enumerate(batch.column("metadata").to_pylist()):
                if text:
                    metadata[row] = self._read_rest(text, first + row)
        for name, key in self._keys.items():
            for row, value in enumerate(self._values(name, batch.column(name))):
                if value is not None:
                    metadata[row][key] = value
        return Rows(first, ids, subjects, metadata, embeddings)

    def _embeddings(self, column: Any, first: int, dimension: int) -> NDArray[np.float32]:
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise self.at(first + row, "the embedding is missing; drop the row, or embed it")
        if not self._width:
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != dimension)
            if len(wrong):
                raise self.at(
                    first + int(wrong[0]),
                    f"the embedding has {lengths[wrong[0]]} values, and the gallery takes "
                    f"{dimension}",
                )
        values = column.flatten()
        if values.null_count:
            row = values.is_null().to_pylist().index(True) // dimension
            raise self.at(first + row, "a value of the embedding is missing")
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is named
            flat: NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32)
        found = flat.reshape(-1, dimension)
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise self.at(
                first + int(bad[0]),
                "the embedding holds a NaN or an infinite value (or one beyond float32); drop the "
                "row, or embed it anew",
            )
        return found

    def _texts(self, batch: Any, name: str, first: int, *, required: bool = False) -> list[str]:
        texts = batch.column(name).to_pylist()
        if required and None in texts:
            raise self.at(first + texts.index(None), f"the {name} is missing; give every row one")
        return [text or "" for text in texts]

    def _values(self, name: str, column: Any) -> Sequence[Any]:
        pa = self._pa
        values: Sequence[Any]
        if pa.types.is_integer(column.type):
            try:
                values = column.cast(pa.int64()).to_pylist()
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{self.path}: column {name!r} holds integers beyond 64 bits with a sign; "
                    "write them as text"
                ) from error
            return values
        if not pa.types.is_timestamp(column.type):
            values = column.to_pylist()
            return values
        try:
            numbers = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()).to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.path}: column {name!r} holds times finer than a microsecond, which is what "
                "is kept; round them first"
            ) from error
        return [None if one is None else _EPOCH + timedelta(microseconds=one) for one in numbers]

    def _read_rest(self, text: str, row: int) -> dict[str, MetadataValue]:
        try:
            return {
                key: _EPOCH + timedelta(microseconds=value) if letter == "t" else value
                for key, letter, value in json.loads(text)
            }
        except (TypeError, ValueError, OverflowError) as error:
            raise self.at(row, f"the column metadata is not as it was exported: {error}") from error

    def at(self, row: int, what: str) -> DataError:
        """Word what is wrong with a row, by its number from 0."""
        return DataError(f"{self.path}, row {row + 1}: {what}")

    def _check_embedding(self, schema: Any) -> int:
        types = self._pa.types
        if "embedding" not in schema.names:
            raise DataError(
                f"{self.path} has the columns {', '.join(schema.names) or 'none'}; it needs "
                "embedding, lists of float32, and may have id, subject, and others that are kept "
                "as metadata"
            )
        kind = schema.field("embedding").type
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if not lists or not types.is_floating(kind.value_type):
            raise DataError(
                f"{self.path}: column embedding holds {kind}; write lists of float32, each as long "
                "as the gallery's dimension"
            )
        return int(kind.list_size) if types.is_fixed_size_list(kind) else 0

    def _check_text(self, name: str, kind: Any) -> None:
        types = self._pa.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
            raise DataError(f"{self.path}: column {name} holds {kind}; write it as text")

    def _check_value(self, name: str, kind: Any) -> None:
        types = self._pa.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not (
            types.is_string(kind)
            or types.is_large_string(kind)
            or types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_boolean(kind)
            or types.is_timestamp(kind)
            or types.is_null(kind)
        ):
            raise DataError(
                f"{self.path}: column {name!r} holds {kind}, which metadata cannot; write text, "
                "integers, numbers, booleans or timestamps, or drop the column"
            )

    def _digest(self) -> str:
        """Name the file by its content, so that ids made of it are the same another time."""
        if not self._known_digest:
            with open(self.path, "rb") as file:
                self._known_digest = hashlib.file_digest(file, "blake2b").hexdigest()[:16]
        return self._known_digest


def last_id(path: Path) -> str:
    """Return the id of a part's last row.

    Raises:
        DataError: the part cannot be read.
    """
    pa, parquet = arrow()
    try:
        with parquet.ParquetFile(path) as file:
            group = file.read_row_group(file.num_row_groups - 1, columns=["id"])
            return str(group.column("id")[-1].as_py())
    except pa.ArrowException as error:
        raise DataError(
            f"{path} cannot be read ({_short(error)}); remove it to have it exported anew"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
