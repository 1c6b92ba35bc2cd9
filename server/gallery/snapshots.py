"""The index folder of one gallery: what memory held at some state, for a start to take up.

In: sealed segments (`write_segment`, before their graph is built) and views (`save`). Out: a
`Snapshot` (`load`), or nothing with the reason. Everything here is a cache of the store:

    index/segment-<id>.arrays   labels, vectors and more of a segment; mapped while serving
    index/segment-<id>.graph    its HNSW graph, as hnswlib writes it
    index/rows-<sequence>.arrays   the live rows, with subjects and declared keys
    index/manifest.json         which of these belong together, their checksums, of which state

The crash it survives: the manifest is renamed into place last, and names only files that were
flushed before; a file that it does not name is thrown away at the next start. A snapshot counts
only if every byte is as written and the store knows its id (store.py); else memory is made from the
store, as if there were none. Only the builder's thread writes here, or the end of the server.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve import formats
from twinserve.errors import InternalFault, TwinserveError
from twinserve.server.gallery import array_file, child_process, fail_points
from twinserve.server.gallery.array_file import NotAsWritten, Stretches, Written
from twinserve.server.gallery.memory import Snapshot
from twinserve.server.gallery.search import View
from twinserve.server.gallery.segments import Graph, Segment, keys_of, stitched
from twinserve.server.gallery.types import GallerySettings

VERSION = formats.SNAPSHOT
HNSWLIB = importlib.metadata.version("hnswlib")  # the format of its files is its own
_ROWS_AT_A_TIME = 4_096


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says, of a snapshot that was found whole or was just written."""

    id: int
    sequence: int
    segments: tuple[str, ...]
    graphs: frozenset[str]  # those of the segments that have one


class Snapshots:
    """One gallery's index folder. Not for several threads at once."""

    def __init__(self, folder: Path, settings: GallerySettings, key: str) -> None:
        """`key` is the gallery's own id: a snapshot of another gallery is none of ours."""
        self.folder = folder
        self._settings = settings
        self._key = key
        self._written: dict[str, Written] = {}  # by file name, of whole files
        self.manifest: Manifest | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        with contextlib.suppress(OSError):
            return sum(entry.stat().st_size for entry in os.scandir(self.folder))
        return 0

    # -- segments ---------------------------------------------------------------------------------

    def write_segment(self, old: Sequence[Segment], labels: NDArray[np.int64]) -> Segment:
        """One segment of vectors that others hold, in a file that is mapped; no graph yet.

        On a full disk, or one that cannot be written, the segment is in memory instead.
        """
        dimension = self._settings.dimension
        try:
            return self._mapped(self._write_vectors(old, labels))
        except OSError as error:
            logging.getLogger(__name__).warning(
                "gallery %s: the vectors of a segment could not be written to %s (%s); they stay "
                "in memory, and the next start builds their index again. Free space on the disk",
                self._settings.name,
                self.folder,
                error,
            )
            vectors, lengths = stitched(old, labels, dimension)
            return Segment(labels, keys_of(old, labels), vectors, lengths)

    def put_into_file(self, segment: Segment) -> Segment | None:
        """A segment that is in memory, graph included, mapped instead; None where that cannot be
        written.
        """
        try:
            name = self._write_vectors([segment], segment.labels)
        except OSError:  # said when it was made, and by whoever fails to write a snapshot
            return None
        return self._mapped(name, segment.graph)

    def _write_vectors(self, old: Sequence[Segment], labels: NDArray[np.int64]) -> str:
        dimension = self._settings.dimension
        count = len(labels)

        def stretches() -> Iterator[NDArray[np.int64]]:
            for start in range(0, count, _ROWS_AT_A_TIME):
                yield labels[start : start + _ROWS_AT_A_TIME]

        def vectors() -> Iterator[NDArray[Any]]:
            for some in stretches():
                yield stitched(old, some, dimension)[0]

        lengths = np.concatenate([stitched_lengths(old, some) for some in stretches()])
        with np.errstate(over="ignore", under="ignore"):
            scale = lengths.astype(np.float32)
            squares = (lengths**2).astype(np.float32)
        name = f"segment-{secrets.token_hex(8)}"
        self.folder.mkdir(exist_ok=True)
        file = f"{name}.arrays"
        self._written[file] = array_file.write(
            self.folder / file,
            {
                "labels": labels,
                "keys": keys_of(old, labels),
                "lengths": lengths,
                "scale": scale,
                "squares": squares,
                "vectors": Stretches(np.dtype(np.float32), (count, dimension), vectors),
            },
            {"gallery": self._key, "dimension": dimension},
        )
        return name

    def _mapped(self, name: str, graph: Graph | None = None) -> Segment:
        arrays, _ = array_file.mapped(self.folder / f"{name}.arrays")
        segment = Segment(
            arrays["labels"], arrays["keys"], arrays["vectors"], arrays["lengths"], graph, name
        )
        # What would be worked out on demand, and then take memory.
        segment.__dict__.update(scale=arrays["scale"], squares=arrays["squares"])
        return segment

    # -- saving -----------------------------------------------------------------------------------

    def save(self, view: View, note: Callable[[int, int], None], *, aside: bool) -> Manifest | None:
        """Write what a start from this view needs, and make it the snapshot; None if that failed.

        Args:
            view: the state.
            note: has the store remember the snapshot's id, durably, before it counts, beside that
                of the one before (0: none).
            aside: let a child process write the graphs, since hnswlib stops every thread of the
                process that it writes in; False at the end, when nobody waits any more.
        """
        try:
            return self._save(view, note, aside=aside)
        except (OSError, TwinserveError) as error:
            logging.getLogger(__name__).warning(
                "gallery %s: no snapshot of the index could be written to %s (%s); the store is "
                "whole, and the next start takes longer",
                self._settings.name,
                self.folder,
                error,
            )
            return None

    def _save(self, view: View, note: Callable[[int, int], None], *, aside: bool) -> Manifest:
        self.folder.mkdir(exist_ok=True)
        segments = []
        for segment in view.segments:
            name = segment.file or self._write_vectors([segment], segment.labels)
            entry: dict[str, Any] = {"name": name, "count": len(segment)}
            entry["arrays"] = _as_json(self._written[f"{name}.arrays"])
            if segment.graph is not None:
                entry["graph"] = _as_json(self._write_graph(segment.graph, name, aside=aside))
            segments.append(entry)
        fail_points.reach("before_snapshot_rows")
        rows_file = f"rows-{view.sequence}.arrays"
        self._written[rows_file] = array_file.write(
            self.folder / rows_file, view.rows.saved(), {"gallery": self._key}
        )
        array_file.fsync_folder(self.folder)
        manifest = Manifest(
            secrets.randbits(62),
            view.sequence,
            tuple(segment["name"] for segment in segments),
            frozenset(segment["name"] for segment in segments if "graph" in segment),
        )
        note(manifest.id, 0 if self.manifest is None else self.manifest.id)
        self._write_manifest(
            {
                "version": VERSION,
                "id": manifest.id,
                "sequence": manifest.sequence,
                "items": view.rows.item_count,
                "segments": segments,
                "rows": {"name": rows_file, **_as_json(self._written[rows_file])},
                **self._facts(),
            }
        )
        self.manifest = manifest
        return manifest

    def _write_graph(self, graph: Graph, name: str, *, aside: bool) -> Written:
        file = f"{name}.graph"
        if file in self._written:
            return self._written[file]
        path = self.folder / file
        unfinished = path.with_name(file + ".tmp")
        try:
            if aside:
                child_process.call(graph.saving(unfinished), _patience(graph.file_size))
            else:
                graph.saving(unfinished)()
            size, check = _sum_of(unfinished)
            # hnswlib says nothing of a disk that was full.
            if size != graph.file_size:
                raise OSError(f"{file} has {size} of {graph.file_size} bytes; is the disk full?")
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            unfinished.rename(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._written[file] = Written(size, check)
        return self._written[file]

    def _write_manifest(self, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=1, sort_keys=True)
        aside = self.folder / "manifest.json.tmp"
        with aside.open("w", encoding="ascii") as file:
            file.write(f"{text}\n{zlib.crc32(text.encode()):08x}\n")
            file.flush()
            os.fsync(file.fileno())
        fail_points.reach("before_manifest_rename")
        aside.rename(self.folder / "manifest.json")
        fail_points.reach("after_manifest_rename")
        array_file.fsync_folder(self.folder)

    def tidy(self, used: Sequence[Segment]) -> None:
        """Remove files that neither the snapshot nor a segment in use needs."""
        kept = {"manifest.json"}
        if self.manifest is not None:
            kept.add(f"rows-{self.manifest.sequence}.arrays")
        for name in (*(self.manifest.segments if self.manifest else ()), *_files(used)):
            kept |= {f"{name}.arrays", f"{name}.graph"}
        entries: list[os.DirEntry[str]] = []
        with contextlib.suppress(OSError):  # no segment was written yet
            entries = [entry for entry in os.scandir(self.folder) if entry.name not in kept]
        for entry in entries:
            with contextlib.suppress(OSError):  # a chore: the next one tries again
                os.unlink(entry.path)
                self._written.pop(entry.name, None)

    def discard(self) -> None:
        """Forget the snapshot, so that it can never count again."""
        self.manifest = None
        with contextlib.suppress(OSError):
            (self.folder / "manifest.json").unlink(missing_ok=True)

    # -- loading ----------------------------------------------------------------------------------

    def load(self, known: Sequence[int], oldest: int, newest: int) -> Snapshot | None:
        """The snapshot, if it is whole and of a state that the store knows; else None.

        Args:
            known: ids of snapshots that the store knows.
            oldest: the first sequence from which the store can tell what changed.
            newest: its present sequence.
        """
        try:
            content = self._read_manifest()
            if content is None:
                return None
            if content["id"] not in known or not oldest <= content["sequence"] <= newest:
                raise NotAsWritten("it is of another state than the store")
            return self._load(content)
        except (
            NotAsWritten,
            InternalFault,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            OSError,
        ) as error:
            logging.getLogger(__name__).warning(
                "gallery %s: the snapshot of the index is not used (%s); it is built again from "
                "the store",
                self._settings.name,
                error or type(error).__name__,
            )
            self.discard()
            return None

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        if not path.exists():
            return None
        text, _, sum_ = path.read_text(encoding="ascii").strip().rpartition("\n")
        if f"{zlib.crc32(text.encode()):08x}" != sum_:
            raise NotAsWritten("manifest.json is not as written")
        content: dict[str, Any] = json.loads(text)
        facts = self._facts()
        different = [name for name, value in facts.items() if content.get(name) != value]
        if content.get("version") != VERSION or different:
            raise NotAsWritten(f"it was made with other settings: {', '.join(different)}")
        return content

    def _load(self, content: dict[str, Any]) -> Snapshot:
        settings = self._settings
        files: dict[str, Written] = {}
        for entry in content["segments"]:
            files[f"{entry['name']}.arrays"] = Written(**entry["arrays"])
            if "graph" in entry:
                files[f"{entry['name']}.graph"] = Written(**entry["graph"])
        rows_file = content["rows"].pop("name")
        files[rows_file] = Written(**content["rows"])
        if any(Path(name).name != name for name in files):
            raise NotAsWritten("manifest.json names files elsewhere")
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:  # checksums need no lock
            list(threads.map(lambda item: self._verify(*item), files.items()))
        segments = []
        for entry in content["segments"]:
            graph = None
            if "graph" in entry:
                graph = Graph.load(
                    self.folder / f"{entry['name']}.graph",
                    entry["count"],
                    settings.dimension,
                    settings.metric,
                    settings.hnsw,
                )
            segments.append(self._mapped(entry["name"], graph))
        rows, _ = array_file.mapped(self.folder / rows_file)
        self._written = files
        self.manifest = Manifest(
            content["id"],
            content["sequence"],
            tuple(entry["name"] for entry in content["segments"]),
            frozenset(entry["name"] for entry in content["segments"] if "graph" in entry),
        )
        return Snapshot(content["sequence"], tuple(segments), rows)

    def _verify(self, name: str, written: Written) -> None:
        path = self.folder / name
        if name.endswith(".arrays"):
            array_file.verify(path, written)
        elif _sum_of(path) != (written.size, written.check):
            raise NotAsWritten(f"{name} is not as written")

    def _facts(self) -> dict[str, Any]:
        """What must be the same for a snapshot to be of use."""
        settings = self._settings
        return {
            "gallery": self._key,
            "hnswlib": HNSWLIB,
            "space_id": settings.space_id,
            "dimension": settings.dimension,
            "metric": settings.metric.value,
            "hnsw": [settings.hnsw.m, settings.hnsw.ef_construction],
            "keys": [[key, kind.value] for key, kind in settings.metadata_keys],
        }


def stitched_lengths(segments: Sequence[Segment], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Lengths [n] of ascending labels that the segments hold."""
    parts = []
    for segment in segments:
        first, last = np.searchsorted(labels, [segment.labels[0], segment.labels[-1] + 1])
        parts.append(segment.lengths[segment.local(labels[first:last])])
    return np.concatenate(parts)


def _files(segments: Sequence[Segment]) -> list[str]:
    return [segment.file for segment in segments if segment.file]


def _as_json(written: Written) -> dict[str, int]:
    return {"size": written.size, "check": written.check}


def _sum_of(path: Path) -> tuple[int, int]:
    sum_ = size = 0
    with path.open("rb") as file:
        while data := file.read(array_file.BLOCK):
            sum_ = zlib.crc32(data, sum_)
            size += len(data)
    return size, sum_


def _patience(size: int) -> float:
    """Seconds after which a child that writes `size` bytes is surely stuck."""
    return 60.0 + size / 2e6
