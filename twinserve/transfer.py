"""Whole galleries to and from folders of Parquet files, over a client; both go on where they broke.

    export:  gallery ─► part-00000.parquet, part-00001.parquet … and gallery.json
    import:  parts, or any Parquet with a column `embedding` ─► Enroll, some calls under way at once

What an export that was cut off has written stays: each part appears whole and on disk, and the next
run goes on after the last one's last id. An import notes how many rows were acknowledged in
`.import-GALLERY.json` beside the files; what was sent and not noted is sent again under the same
request id, so that it is not done twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve import formats, parquet
from twinserve.arrow import arrow
from twinserve.client import Client
from twinserve.errors import DataError, GalleryNotFound, SpaceMismatch, TwinserveError
from twinserve.messages import Enrolled, EnrollItem, Gallery, Item, Vector
from twinserve.v1 import gallery_pb2

PART_ROWS, PART_BYTES = 50_000, 64 << 20
GROUP_ROWS, GROUP_BYTES = 8_192, 8 << 20
# Of one Enroll; the server takes 1,024 items unless it was told otherwise.
BATCH_ROWS, BATCH_BYTES = 1_000, 4 << 20
UNDER_WAY = 3
# A server that is behind with its index makes an import wait this long before it gives up.
ENROLL_SECONDS = 600.0
ABOUT = "gallery.json"
_VERSION = formats.EXPORT
_NOTE_SECONDS = 1.0
_PART = re.compile(r"part-(\d{5})\.parquet")

Progress = Callable[[int, int], None]  # items done, of how many about


@dataclass(frozen=True)
class ExportDone:
    """What a folder holds now: its items and parts, and how many of the items came by this run."""

    folder: Path
    items: int
    parts: int
    exported: int


@dataclass(frozen=True)
class ImportDone:
    """What became of the rows; those of an earlier run that was cut off are `skipped`."""

    rows: int
    skipped: int
    changes: dict[str, int]  # created, replaced, unchanged


# ---- export --------------------------------------------------------------------------------------


def export_gallery(
    client: Client,
    name: str,
    folder: Path,
    progress: Progress | None = None,
    *,
    part_rows: int = PART_ROWS,
) -> ExportDone:
    """Write a gallery's items into a folder, or go on with an export of the same gallery there.

    Args:
        client: of the server.
        name: of the gallery.
        folder: new, empty, or with an unfinished export of this very gallery.
        progress: told how many items are written.
        part_rows: most rows of one file; fewer where they would take more than 64 MB.

    Raises:
        DataError: the folder holds something else, or an export that is complete.
        GalleryNotFound: there is none, or it was deleted meanwhile.
        ConfigError: pyarrow is not installed.
    """
    arrow()
    gallery = client.get_gallery(name)
    about = _about(gallery)
    number, after, items = _begin(folder, about)
    kept = items
    each = 4 * gallery.dimension + 128
    group_rows = max(1, min(GROUP_ROWS, GROUP_BYTES // each, part_rows))
    part_rows = max(1, min(part_rows, PART_BYTES // each))
    part: parquet.PartWriter | None = None
    in_part = 0
    try:
        for batch_items, embeddings in _groups(client, name, after, group_rows):
            if part is None:
                path = folder / f"part-{number:05}.parquet"
                part, in_part = parquet.PartWriter(path, gallery, about), 0
            part.write(batch_items, embeddings)
            in_part += len(batch_items)
            items += len(batch_items)
            if in_part + group_rows > part_rows or part.size >= PART_BYTES:
                part.close()
                part, number = None, number + 1
            if progress is not None:
                progress(items, max(items, gallery.item_count))
        if part is not None:
            part.close()
            part, number = None, number + 1
    finally:
        if part is not None:
            part.drop()
    _write_json(folder / ABOUT, {**about, "complete": True, "items": items, "parts": number})
    return ExportDone(folder, items, number, items - kept)


def _about(gallery: Gallery) -> dict[str, Any]:
    """What a gallery was made with, and which one it is."""
    return {
        "format": "twinserve items",
        "version": _VERSION,
        "gallery": gallery.name,
        "created": gallery.create_time.isoformat() if gallery.create_time else "",
        "model": gallery.model,
        "space_id": gallery.space_id,
        "dimension": gallery.dimension,
        "metric": None if gallery.metric is None else gallery.metric.value,
        "hnsw": None if gallery.hnsw is None else dataclasses.asdict(gallery.hnsw),
        "metadata_keys": gallery.metadata_keys,
        "max_items": gallery.max_items,
        "max_bytes": gallery.max_bytes,
    }


def _begin(folder: Path, about: dict[str, Any]) -> tuple[int, str, int]:
    """Return the number of the next part, the id to go on after, and the items that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(path.name for path in folder.iterdir())
    known = read_about(folder)
    if known is None:
        # A crash before the first word was written leaves only what was written aside.
        if any(not name.startswith(f".{ABOUT}") for name in there):
            raise DataError(
                f"{folder} is not empty, and holds no unfinished export; name a new folder"
            )
        _write_json(folder / ABOUT, {**about, "complete": False})
        return 0, "", 0
    if known.get("complete"):
        raise DataError(
            f"{folder} holds a complete export of gallery {known.get('gallery')!r}; name a new "
            "folder"
        )
    differing = [key for key, value in about.items() if known.get(key) != value]
    if differing:
        raise DataError(
            f"{folder} holds an unfinished export of another gallery ({', '.join(differing)} "
            "differ); name a new folder"
        )
    for name in there:
        if name.startswith(".part-") and name.endswith(".partial"):
            (folder / name).unlink()
    parts = _parts(folder)
    if [path.name for path in parts] != [f"part-{n:05}.parquet" for n in range(len(parts))]:
        raise DataError(f"a part is missing in {folder}; name a new folder")
    items = 0
    for path in parts:
        with contextlib.closing(parquet.ItemFile(path)) as file:
            items += file.rows
    return len(parts), parquet.last_id(parts[-1]) if parts else "", items


def _groups(
    client: Client, name: str, after: str, rows: int
) -> Iterator[tuple[list[Item], NDArray[np.float32]]]:
    items: list[Item] = []
    vectors: list[NDArray[np.float32]] = []
    for batch in client.export_items(name, after=after):
        items.extend(batch.items)
        vectors.append(batch.embeddings)
        while len(items) >= rows:
            whole = np.concatenate(vectors)
            yield items[:rows], whole[:rows]
            items, vectors = items[rows:], [whole[rows:]]
    if items:
        yield items, np.concatenate(vectors)


# ---- import --------------------------------------------------------------------------------------


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what gallery.json beside or in `path` says; None where there is none.

    Raises:
        DataError: it is not one of ours, or of a later version.
    """
    file = (path if path.is_dir() else path.parent) / ABOUT
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); remove it, or export again") from error
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        raise DataError(
            f"{file} is no export of this version of twinserve, which reads version {_VERSION}"
        )
    return found


def create_like(client: Client, name: str, path: Path, model: str = "") -> Gallery:
    """Return the gallery, made as the files say where it is missing.

    Of files that say nothing, the dimension is that of their embeddings.

    Args:
        client: of the server.
        name: of the gallery.
        path: the files to be imported.
        model: the twin whose space it takes; "" is the one of the export, or the only one served.

    Raises:
        DataError: the files cannot be used.
        TwinserveError: whatever CreateGallery is refused for.
    """
    with contextlib.suppress(GalleryNotFound):
        return client.get_gallery(name)
    about = read_about(path) if path.is_dir() else None
    if about is None:
        with contextlib.closing(parquet.ItemFile(files_of(path)[0])) as file:
            about = file.about or {"dimension": file.dimension}
    hnsw = about.get("hnsw")
    return client.create_gallery(
        name,
        model=model or about.get("model", ""),
        dimension=about["dimension"],
        metric=about.get("metric"),
        metadata_keys=about.get("metadata_keys"),
        max_items=about.get("max_items", 0),
        max_bytes=about.get("max_bytes", 0),
        hnsw=None if hnsw is None else gallery_pb2.HnswConfig(**hnsw),
    )


def files_of(path: Path) -> list[Path]:
    """Return the Parquet files that a path stands for, by name.

    Raises:
        DataError: there is none, or the export in the folder is not complete.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; name a Parquet file, or a folder of some")
    if not path.is_dir():
        return [path]
    about = read_about(path)
    if about is not None and not about.get("complete"):
        raise DataError(
            f"the export in {path} is not complete; run it again, and it goes on where it stopped"
        )
    files = _parts(path) if about is not None else sorted(path.glob("*.parquet"))
    if about is not None and len(files) != about.get("parts"):
        raise DataError(
            f"{path} holds {len(files)} parts, and its export wrote {about.get('parts')}; copy the "
            "folder again"
        )
    if not files and about is None:
        raise DataError(f"no *.parquet lies in {path}")
    return files


def import_items(
    client: Client,
    name: str,
    path: Path,
    progress: Progress | None = None,
    *,
    batch: int = 0,
) -> ImportDone:
    """Enrol all rows of Parquet files, from where an import that was cut off had come.

    Items that are there are replaced. Rows without an id get one that follows from the file's
    content and the row, so that importing a file again adds none.

    Args:
        client: of the server.
        name: of the gallery, or an alias.
        path: a file, or a folder of files.
        progress: told how many rows are done.
        batch: rows of one Enroll; 0 means 1,000, or 4 MB of them.

    Raises:
        DataError: a file or a row that cannot be enrolled, named; what went before it is enrolled.
        SpaceMismatch: the embeddings are of another space than the gallery's.
        GalleryNotFound: there is none of that name.
        ConfigError: pyarrow is not installed.
    """
    gallery = client.get_gallery(name)
    files = [parquet.ItemFile(one) for one in files_of(path)]
    try:
        for file in files:
            _check_file(file, gallery)
        size = batch or max(1, min(BATCH_ROWS, BATCH_BYTES // (4 * gallery.dimension)))
        notes = _Notes.read(path if path.is_dir() else path.parent, gallery)
        total = sum(file.rows for file in files)
        sender = _Sender(client, gallery, notes, progress, total)
        with sender:
            for file in files:
                first = notes.begin(file)
                sender.skip(first)
                for rows in file.read(first, size, gallery.dimension):
                    sender.send(file, rows)
        notes.remove()
        return ImportDone(total, sender.skipped, dict(sender.changes))
    finally:
        for file in files:
            file.close()


def _check_file(file: parquet.ItemFile, gallery: Gallery) -> None:
    if file.space_id and file.space_id != gallery.space_id:
        raise SpaceMismatch(
            f"{file.path} holds embeddings of the space {file.space_id}, and gallery "
            f"{gallery.name!r} takes those of {gallery.space_id}; import into a gallery of that "
            "model, or embed the inputs anew"
        )
    if file.dimension not in (0, gallery.dimension):
        raise DataError(
            f"{file.path} holds embeddings of {file.dimension} values, and gallery "
            f"{gallery.name!r} takes {gallery.dimension}"
        )


@dataclass
class _Notes:
    """How many rows of each file were acknowledged, kept beside the files."""

    path: Path
    gallery: dict[str, str]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    _written: float = 0.0

    @classmethod
    def read(cls, folder: Path, gallery: Gallery) -> _Notes:
        about = _about(gallery)
        wanted = {key: about[key] for key in ("gallery", "created", "space_id")}
        notes = cls(folder / f".import-{gallery.name}.json", wanted)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(notes.path.read_text(encoding="utf-8"))
            if found["gallery"] == wanted:
                notes.id, notes.rows = str(found["id"]), dict(found["rows"])
        return notes

    def begin(self, file: parquet.ItemFile) -> int:
        """Return the first row that is not known to be enrolled."""
        known = os.stat(file.path)
        is_now = {"bytes": known.st_size, "changed": known.st_mtime_ns}
        noted = self.rows.get(file.path.name, {})
        if any(noted.get(key) != value for key, value in is_now.items()):
            noted = {**is_now, "rows": 0}
        self.rows[file.path.name] = noted
        return min(noted.get("rows", 0), file.rows)

    def note(self, file: parquet.ItemFile, rows: int) -> None:
        """Note that so many rows from the first on are enrolled; on disk within a second."""
        self.rows[file.path.name]["rows"] = rows
        if time.monotonic() - self._written >= _NOTE_SECONDS:
            self.write()

    def request_id(self, file: parquet.ItemFile, rows: parquet.Rows) -> str:
        """Return what these rows are sent under: the same until the import is done, then another.

        An import that was done may be wanted again within the day, and must not be taken for its
        own retry.
        """
        noted = self.rows[file.path.name]
        key = f"{file.path.name}/{noted['bytes']}/{noted['changed']}/{rows.first}+{len(rows)}"
        return str(uuid.uuid5(uuid.UUID(self.id), key))

    def write(self) -> None:
        # Where nothing may be written, the next run begins anew, and does nothing twice either.
        with contextlib.suppress(OSError):
            _write_json(
                self.path, {"gallery": self.gallery, "id": self.id, "rows": self.rows}, sync=False
            )
        self._written = time.monotonic()

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


class _Sender:
    """Sends rows, some batches under way at once, and notes what was acknowledged, in order."""

    def __init__(
        self,
        client: Client,
        gallery: Gallery,
        notes: _Notes,
        progress: Progress | None,
        total: int,
    ) -> None:
        self.changes: Counter[str] = Counter()
        self.skipped = 0
        self._client = client
        self._gallery = gallery
        self._notes = notes
        self._progress = progress
        self._total = total
        self._done = 0
        self._threads = ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="import")
        self._under_way: deque[tuple[parquet.ItemFile, int, Future[Counter[str]]]] = deque()

    def __enter__(self) -> _Sender:
        # Before the first call: whoever is killed after it must find the id that it was sent under.
        self._notes.write()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            while self._under_way:
                if kind is None:
                    self._take()
                else:
                    with contextlib.suppress(TwinserveError):
                        self._take()
        finally:
            self._threads.shutdown(cancel_futures=True)
            self._notes.write()

    def skip(self, rows: int) -> None:
        self.skipped += rows
        self._done += rows

    def send(self, file: parquet.ItemFile, rows: parquet.Rows) -> None:
        while len(self._under_way) >= UNDER_WAY:
            self._take()
        future = self._threads.submit(self._enroll, file, rows)
        self._under_way.append((file, rows.first + len(rows), future))

    def _take(self) -> None:
        file, end, future = self._under_way.popleft()
        try:
            changes = future.result()
        except BaseException:
            # What comes after a row that failed is not noted: the next run begins with that row.
            for _, _, other in self._under_way:
                other.cancel()
            self._under_way.clear()
            raise
        self.changes += changes
        self._done += sum(changes.values())
        self._notes.note(file, end)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _enroll(self, file: parquet.ItemFile, rows: parquet.Rows) -> Counter[str]:
        """Enrol one batch; the only place that knows how rows travel."""
        space_id = self._gallery.space_id
        key = self._notes.request_id(file, rows)
        results: Sequence[Enrolled | TwinserveError]
        try:
            results = self._client.enroll(
                self._gallery.name,
                [
                    EnrollItem(Vector(vector, space_id), item_id, subject, metadata)
                    for item_id, subject, metadata, vector in zip(
                        rows.ids, rows.subjects, rows.metadata, rows.embeddings, strict=True
                    )
                ],
                request_id=key,
                timeout=ENROLL_SECONDS,
            )
        except TwinserveError as error:
            results = error.items or (error,)
        changes: Counter[str] = Counter()
        for result in results:
            if isinstance(result, TwinserveError):
                found = re.match(r"items\[(\d+)\]", result.field)
                if found is None:
                    raise result
                raise file.at(rows.first + int(found[1]), result.message) from result
            changes[result.change] += 1
        return changes


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))


def _write_json(path: Path, content: dict[str, Any], *, sync: bool = True) -> None:
    """Replace a file in one step."""
    aside = path.with_name(f".{path.name}.partial")
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1, sort_keys=True)
        file.write("\n")
        if sync:
            file.flush()
            os.fsync(file.fileno())
    aside.rename(path)
    if sync:
        parquet.fsync_folder(path.parent)
