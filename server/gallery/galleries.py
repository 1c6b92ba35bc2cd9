"""The folder of galleries: one catalogue, one writer and one of each background thread, for all.

    data_dir/lock, catalog.db          data_folder.py; its rows of galleries, aliases: catalog.py
    data_dir/galleries/<folder>/store.db   one gallery's truth (store.py)
    data_dir/trash/<folder>            deleted, to be removed

The crash story of deletion: (1) in one commit the row leaves the catalogue and its folder is
recorded as deleted, and with that the gallery is gone for good; (2) the folder is renamed into
trash in one step; (3) the files go; (4) the record goes. `open` finishes what a crash left of (2)
to (4). No folder is removed for want of a row: the catalogue may be an old copy, or lost. Only one
that never held an item, the rest of an unfinished creation, is; any other refuses the start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from twinserve.errors import (
    AlreadyExists,
    FailedPrecondition,
    GalleryFull,
    GalleryNotFound,
    InvalidInput,
    LimitExceeded,
    NotFound,
    QueueFull,
    SpaceMismatch,
    StoreDamaged,
    TwinserveError,
    Unavailable,
)
from twinserve.server.gallery import backup, metadata, store
from twinserve.server.gallery.builder import Builder
from twinserve.server.gallery.catalog import Catalog, Entry
from twinserve.server.gallery.estimator import Refresher
from twinserve.server.gallery.footprint import DiskUsage
from twinserve.server.gallery.gallery import MAX_REQUEST_ID_BYTES, Gallery
from twinserve.server.gallery.observing import UNOBSERVED, GalleryObserver
from twinserve.server.gallery.recall import Sampler
from twinserve.server.gallery.scrub import Scrub
from twinserve.server.gallery.types import GalleryLimits, GallerySettings, GalleryStatus
from twinserve.server.gallery.writer import Writer
from twinserve.server.storage.data_folder import DataFolder
from twinserve.server.storage.database import now

DECLARED_KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MAX_DECLARED_KEYS = 64
# An empty database takes less than a fifth of the least limit.
MIN_BYTES, MAX_BYTES = 1 << 20, (1 << 63) - 1
BACKUP_SECONDS = 10.0  # after which to ask again while another backup is made


class Galleries:
    """All galleries of one data folder. Calls are blocking and safe from any thread.

    Args:
        data: the folder, held by the caller; or its path, and then `open` takes and `close` gives
            it back.
        limits: of all galleries.
        observer: is told how long things took, and what checks found.
    """

    def __init__(
        self,
        data: Path | DataFolder,
        limits: GalleryLimits = GalleryLimits(),  # noqa: B008 - frozen
        observer: GalleryObserver = UNOBSERVED,
    ) -> None:
        self._data = data
        self._root = data.root if isinstance(data, DataFolder) else Path(data)
        self._limits = limits
        self._observer = observer
        self._lock = threading.RLock()  # guards creation and deletion; never held by a read
        self._open: dict[str, tuple[Gallery, Entry]] = {}
        # Those whose store is damaged or missing: refused one by one, while the others serve.
        self._refused: dict[str, tuple[StoreDamaged, Entry]] = {}
        # Names of galleries by alias. Never changed, only replaced: readers take no lock.
        self._aliases: Mapping[str, str] = {}
        self._own_folder: DataFolder | None = None
        self._catalog: Catalog | None = None
        self._writer: Writer | None = None
        self._builder: Builder | None = None
        self._refresher: Refresher | None = None
        self._backing_up = threading.Lock()  # held while a backup is made: one at a time
        self._sampler: Sampler | None = None
        self._scrub: Scrub | None = None

    def open(self) -> None:
        """Take the folder and open every gallery in it.

        One whose store is damaged or missing is refused by `get` from then on, with the reason;
        it does not keep the others from serving. They answer when this returns; large ones scan
        exactly until their graph, which is built in the background, is there.

        Raises:
            FailedPrecondition: another server holds the folder.
            StoreDamaged: the catalogue is damaged; a copy was put beside it. Or it does not name
                a gallery that holds items.
        """
        (self._root / "galleries").mkdir(parents=True, exist_ok=True)
        folder = self._data
        if not isinstance(folder, DataFolder):
            folder = self._own_folder = DataFolder(self._root)
        try:
            self._catalog = Catalog(folder.catalog)
            self._writer = Writer(self._limits.max_waiting_rows)
            self._builder = Builder(self._limits.build_threads)
            self._refresher = Refresher(self._limits.measure_rest_seconds)
            self._sampler = Sampler(self._limits.recall_share, self._observer)
            entries = self._catalog.entries()
            self._sweep(self._catalog, {entry.folder for entry in entries})
            self._aliases = self._catalog.aliases()
            for entry in entries:
                try:
                    self._open[entry.settings.name] = (self._opened(entry), entry)
                except StoreDamaged as error:
                    self._refused[entry.settings.name] = (error, entry)
                    logging.getLogger(__name__).error(
                        "gallery %s is refused: %s", entry.settings.name, error.message
                    )
            self._scrub = Scrub(
                lambda: [gallery for gallery, _ in self._open.copy().values()],
                self._limits.scrub_bytes_per_second,
                self._observer,
            )
            self._scrub.start()
        except BaseException:
            self.close()
            raise

    def create(self, settings: GallerySettings, request_id: str = "") -> GalleryStatus:
        """Make a gallery; the same settings again return the one that is there.

        Raises:
            InvalidInput: a setting is out of range, or the request id was used for other ones.
            AlreadyExists: a gallery of this name has other settings; the message names them. Or
                the name is an alias.
            GalleryFull: as many galleries as the server may hold.
            DiskFull: it could not be written.
            StoreDamaged: the gallery of this name is there, and damaged.
        """
        self._check_settings(settings)
        if len(metadata.encode_text(request_id, "the request id")) > MAX_REQUEST_ID_BYTES:
            raise LimitExceeded(
                f"the request id is longer than {MAX_REQUEST_ID_BYTES} bytes; use a UUID",
                field="request_id",
            )
        with self._lock, self._wording(settings.name):
            catalog = self._running()
            answer = None
            if request_id:
                oldest = now() - int(self._limits.replay_seconds * 1e6)
                answer = catalog.answer(request_id, oldest)
            if answer is not None and _differing(answer[0], settings):
                raise InvalidInput(
                    f"request id {request_id!r} was used for other settings within the last 24 "
                    "hours; make a new id for every request, and keep it for its retries only",
                    field="request_id",
                )
            self._check_not_refused(settings.name)
            there = self._open.get(settings.name)
            if there is not None and (answer is None or there[1].created == answer[1]):
                gallery, entry = there
                _check_same(entry.settings, settings)
                if request_id and answer is None:
                    catalog.remember(request_id, entry.settings, entry.created)
                return self._with_aliases(gallery.status())
            if answer is not None:  # the first answer, though the gallery was deleted since
                return GalleryStatus(settings, 0, 0, 0, metadata.moment(answer[1]))
            if settings.name in self._aliases:
                raise AlreadyExists(
                    f"{self._alias_and_gallery(settings.name)}; use another name, or delete the "
                    "alias first",
                    field="gallery.name",
                    resource=("alias", settings.name),
                )
            held = len(self._open) + len(self._refused)
            if held >= self._limits.max_galleries:
                raise GalleryFull(
                    f"the server holds {held} galleries, which is its limit; delete one",
                    retry_after=60.0,
                )
            return self._create(catalog, settings, request_id)

    def get(self, name: str) -> Gallery:
        """The gallery of this name, or that an alias of this name stands for now.

        Raises:
            GalleryNotFound: there is none.
            StoreDamaged: its store was damaged or missing at the start.
        """
        while True:
            meant = self._aliases.get(name, name)
            found = self._open.get(meant)
            if found is not None:
                return found[0]
            # An alias may have moved in between, and the gallery that it left have gone.
            if self._aliases.get(name, name) == meant:
                break
        self._check_not_refused(meant)
        raise GalleryNotFound(
            f"there is no gallery {name[:80]!r}; create it, or list the galleries there are",
            resource=("gallery", name[:80]),
        )

    def meaning(self, name: str) -> str:
        """Return the name of the gallery that an alias stands for; any other name as it is."""
        return self._aliases.get(name, name)

    def status(self, name: str) -> GalleryStatus:
        """The gallery of this name or alias as it stands, with its aliases; raises as `get`."""
        return self._with_aliases(self.get(name).status())

    def list(
        self,
        after: str = "",
        limit: int = 1_000,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> list[GalleryStatus]:
        """Up to `limit` galleries whose name is greater than `after` and is wanted, by name;
        refused ones not, for nothing can be said of their content.
        """
        opened = dict(self._open)
        names = sorted(
            name
            for name in opened
            if name > after and wanted(name) and not opened[name][0].out_of_service
        )
        return [self._with_aliases(opened[name][0].status()) for name in names[:limit]]

    def set_alias(self, alias: str, gallery: str) -> str:
        """Let an alias stand for a gallery from now on; it is on disk when this returns.

        Who asked `get` before goes on with what it was given.

        Returns:
            The gallery that it stood for before; "" where it is new.

        Raises:
            InvalidInput: no name that an alias can have.
            AlreadyExists: a gallery has this name.
            FailedPrecondition: `gallery` is an alias itself, or has another metric than the one
                that the alias stands for; SpaceMismatch: another space.
            GalleryNotFound, StoreDamaged: as `get`.
            GalleryFull: as many aliases as the server may hold.
        """
        if not NAME.fullmatch(alias):
            raise InvalidInput(
                f"alias {alias[:80]!r} is not 1 to 63 of a-z 0-9 . _ -, beginning with a letter or "
                "digit",
                field="alias",
            )
        with self._lock, self._wording(gallery):
            catalog = self._running()
            if alias in self._open or alias in self._refused:
                raise AlreadyExists(
                    f"{alias!r} is the name of a gallery; give the alias another name",
                    field="alias",
                    resource=("gallery", alias),
                )
            self._check_no_alias(gallery, "gallery")
            wanted = self.get(gallery).settings
            previous = self._aliases.get(alias, "")
            if previous == gallery:
                return previous
            there = self._open.get(previous) or self._refused.get(previous)
            if there is not None:
                self._check_comparable(alias, there[1].settings, wanted)
            elif len(self._aliases) >= self._limits.max_galleries:
                raise GalleryFull(
                    f"the server holds {len(self._aliases)} aliases of galleries, which is its "
                    "limit; delete one",
                    retry_after=60.0,
                )
            catalog.set_alias(alias, gallery)
            self._aliases = {**self._aliases, alias: gallery}
            return previous

    def delete_alias(self, alias: str) -> None:
        """End an alias; its gallery stays.

        Raises:
            NotFound: there is none of this name.
        """
        with self._lock, self._wording(alias):
            catalog = self._running()
            if alias not in self._aliases:
                known = alias in self._open or alias in self._refused
                raise NotFound(
                    f"there is no alias {alias[:80]!r}"
                    + ("; a gallery has this name" if known else "; it may be deleted already"),
                    field="alias",
                    resource=("alias", alias[:80]),
                )
            catalog.drop_alias(alias)
            self._aliases = {one: name for one, name in self._aliases.items() if one != alias}

    def settings(self) -> tuple[GallerySettings, ...]:
        """What every gallery was made with, the refused ones too."""
        held = (*self._open.copy().values(), *self._refused.copy().values())
        return tuple(entry.settings for _, entry in held)

    def delete(self, name: str) -> None:
        """Delete a gallery with everything in it, a damaged one too; writes that wait for it fail.

        Raises:
            GalleryNotFound: there is none.
            FailedPrecondition: aliases stand for it, or the name is an alias itself.
        """
        with self._lock, self._wording(name):
            catalog = self._running()
            self._check_no_alias(name, "name")
            aliases = self._aliases_of(name)
            if aliases:
                raise FailedPrecondition(
                    f"gallery {name!r} is what the {'alias' if len(aliases) == 1 else 'aliases'} "
                    f"{', '.join(aliases)} stand{'s' if len(aliases) == 1 else ''} for; let "
                    "another gallery take its place there, or delete the alias, then delete the "
                    "gallery",
                    resource=("gallery", name),
                    metadata={"aliases": ",".join(aliases)},
                )
            if name in self._refused:
                entry = self._refused[name][1]
                catalog.drop(entry)
                del self._refused[name]
                self._finish_deletion(catalog, entry.folder)
                return
            gallery = self.get(name)
            entry = self._open[name][1]
            catalog.drop(entry)
            del self._open[name]
            assert self._writer is not None
            self._writer.call(gallery.close).result()
            self._finish_deletion(catalog, entry.folder)

    def backup(
        self, names: Sequence[str], parent: Path, folder: str, progress: backup.Progress
    ) -> Path:
        """Copy galleries (none named: all) into `parent/folder`, while others read and write.

        The folder is a data folder of its own, from which a server starts. Every gallery is copied
        as it was at one moment after the call; all that was acknowledged before is in it. See
        `backup.make`; `progress` hears the gallery, the bytes done and their total, and ends the
        backup by raising.

        Raises:
            GalleryNotFound: there is no such gallery, or it was deleted meanwhile.
            StoreDamaged: a gallery named is refused, or a copy did not pass its check.
            FailedPrecondition: all were asked for, and one is refused; or `make` says so.
            QueueFull: another backup is being made.
            Unavailable: the galleries were closed meanwhile.
            InvalidInput, AlreadyExists, DiskFull: see `backup.make`.
        """
        if not self._backing_up.acquire(blocking=False):
            raise QueueFull(
                "another backup is being made; wait until it is done", retry_after=BACKUP_SECONDS
            )
        try:
            with self._lock:
                self._running()
                chosen = self._chosen(names)
                copied = {entry.settings.name for _, entry in chosen}
                aliases = {a: name for a, name in self._aliases.items() if name in copied}
            sources = [
                backup.Source(entry, gallery.copy, backup.size_of(self._store_of(entry)))
                for gallery, entry in chosen
            ]

            def tell(name: str, done: int, total: int) -> None:
                self._check_there(chosen)
                progress(name, done, total)

            @contextlib.contextmanager
            def finishing() -> Iterator[None]:
                with self._lock:
                    self._check_there(chosen)
                    yield

            return backup.make(parent, folder, sources, aliases, tell, finishing)
        except GalleryNotFound:
            self._running()  # closed with all others, then, rather than deleted
            raise
        finally:
            self._backing_up.release()

    def close(self) -> None:
        """Finish the writes that wait, close all files, and give the folder back."""
        with self._lock:
            # Those that only read first; the builder still offers what the writer takes in.
            for reader in (self._scrub, self._sampler, self._refresher):
                if reader is not None:
                    reader.close()
            if self._builder is not None:
                self._builder.close()
            if self._writer is not None:
                for gallery, _ in self._open.values():
                    gallery.finish()
                self._writer.close()
            for gallery, _ in self._open.values():
                gallery.close()
            self._open = {}
            self._refused = {}
            self._aliases = {}
            self._builder = self._refresher = self._writer = self._catalog = None
            self._sampler = self._scrub = None
            if self._own_folder is not None:
                self._own_folder.close()
                self._own_folder = None

    @property
    def measuring_seconds(self) -> float:
        """Time spent so far, in the background, on measuring how strangers fare."""
        return 0.0 if self._refresher is None else self._refresher.seconds

    @property
    def durability_lag(self) -> float:
        """Age in seconds of the oldest enrolment or removal that is not yet on disk; 0 if none."""
        return 0.0 if self._writer is None else self._writer.lag

    @property
    def waiting_rows(self) -> int:
        """Rows of enrolments and removals that wait for the writing thread."""
        return 0 if self._writer is None else self._writer.waiting_rows

    @property
    def damaged(self) -> int:
        """How many galleries are refused, or take no changes, since their store is damaged."""
        found = sum(gallery.damaged is not None for gallery, _ in self._open.copy().values())
        return len(self._refused) + found

    @property
    def last_scrub(self) -> float:
        """Unix time at which everything stored had last been read again; 0 before the first."""
        return 0.0 if self._scrub is None else self._scrub.last_pass

    def lowest_recall(self) -> dict[str, float]:
        """By model, the lowest recall of its galleries, over the last searches compared."""
        return {} if self._sampler is None else self._sampler.lowest()

    def disk_usage(self) -> DiskUsage:
        """Bytes of the files of all galleries that are open."""
        found = [gallery.disk_usage() for gallery, _ in self._open.copy().values()]
        return sum(found, DiskUsage())

    # -- parts ------------------------------------------------------------------------------------

    def _chosen(self, names: Sequence[str]) -> tuple[tuple[Gallery, Entry], ...]:
        if names:
            wanted = {self.get(name).settings.name for name in names}
            return tuple(self._open[name] for name in sorted(wanted))
        for name, (error, _) in self._refused.items():
            raise FailedPrecondition(
                f"gallery {name!r} cannot be copied ({error.message}), and a backup of all would "
                "leave it out; name the galleries to copy, or put that one right first",
                resource=("gallery", name),
            )
        return tuple(self._open[name] for name in sorted(self._open))

    def _store_of(self, entry: Entry) -> Path:
        return self._root / "galleries" / entry.folder / "store.db"

    def _check_there(self, chosen: Sequence[tuple[Gallery, Entry]]) -> None:
        self._running()
        for gallery, entry in chosen:
            there = self._open.get(entry.settings.name)
            if there is None or there[0] is not gallery:
                raise GalleryNotFound(
                    f"gallery {entry.settings.name!r} was deleted while it was copied, so no "
                    "backup was made; make it anew without that one",
                    resource=("gallery", entry.settings.name),
                )

    def _create(
        self, catalog: Catalog, settings: GallerySettings, request_id: str
    ) -> GalleryStatus:
        entry = Entry(settings, uuid.uuid4().hex, now())
        folder = self._root / "galleries" / entry.folder
        folder.mkdir()
        try:
            store.Store.create(folder / "store.db", settings.name).close()
            _fsync_folder(folder)
            _fsync_folder(folder.parent)
            gallery = self._opened(entry)
            try:
                catalog.add(entry, request_id)
            except BaseException:
                gallery.close()
                raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._open[settings.name] = (gallery, entry)
        return self._with_aliases(gallery.status())

    def _opened(self, entry: Entry) -> Gallery:
        assert self._writer is not None
        assert self._builder is not None
        assert self._refresher is not None
        assert self._sampler is not None
        folder = self._root / "galleries" / entry.folder
        return Gallery(
            entry.settings,
            entry.created,
            folder,
            self._limits,
            self._writer,
            self._builder,
            self._refresher,
            self._sampler,
            self._observer,
        )

    def _aliases_of(self, name: str) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, meant in self._aliases.items() if meant == name))

    def _with_aliases(self, status: GalleryStatus) -> GalleryStatus:
        return dataclasses.replace(status, aliases=self._aliases_of(status.settings.name))

    def _alias_and_gallery(self, alias: str) -> str:
        return f"{alias!r} is an alias, which stands for gallery {self._aliases[alias]!r}"

    def _check_no_alias(self, name: str, field: str) -> None:
        if name in self._aliases:
            raise FailedPrecondition(
                f"{self._alias_and_gallery(name)}; here galleries are named by their own names, so "
                "name that",
                field=field,
                resource=("alias", name),
            )

    @staticmethod
    def _check_comparable(alias: str, there: GallerySettings, wanted: GallerySettings) -> None:
        """Refuse to let calls through an alias compare other distances from one to the next."""
        advice = "delete the alias first, and calls through it fail until it is set again"
        if wanted.space_id != there.space_id:
            raise SpaceMismatch(
                f"alias {alias!r} stands for gallery {there.name!r} of space {there.space_id}, and "
                f"gallery {wanted.name!r} is of space {wanted.space_id}: vectors that fit the one "
                f"mean nothing in the other; {advice}",
                field="gallery",
                resource=("alias", alias),
                metadata={"space_id": wanted.space_id, "wanted_space_id": there.space_id},
            )
        if wanted.metric is not there.metric:
            raise FailedPrecondition(
                f"alias {alias!r} stands for gallery {there.name!r} with {there.metric.value} "
                f"distances, and gallery {wanted.name!r} has {wanted.metric.value} ones: a "
                f"threshold for the one means nothing in the other; {advice}",
                field="gallery",
                resource=("alias", alias),
            )

    def _check_not_refused(self, name: str) -> None:
        refused = self._refused.get(name)
        if refused is not None:
            raise refused[0].again()

    def _running(self) -> Catalog:
        if self._catalog is None:
            raise Unavailable("the galleries are not open; the server is starting or stopping")
        return self._catalog

    def _discard(self, folder: str) -> None:
        trash = self._root / "trash"
        trash.mkdir(exist_ok=True)
        target = trash / folder
        with contextlib.suppress(FileNotFoundError):
            (self._root / "galleries" / folder).rename(target)
        shutil.rmtree(target, ignore_errors=True)

    def _finish_deletion(self, catalog: Catalog, folder: str) -> None:
        try:
            self._discard(folder)
            catalog.forget(folder)
        except (sqlite3.Error, OSError) as error:
            # The gallery is gone all the same, and whoever deleted it must not hear otherwise.
            logging.getLogger(__name__).warning(
                "the files of a deleted gallery, %s, could not be removed (%s); the next start "
                "tries again",
                folder,
                error,
            )

    def _sweep(self, catalog: Catalog, known: set[str]) -> None:
        for folder in catalog.deleted():
            self._finish_deletion(catalog, folder)
        deleted = set(catalog.deleted())
        unnamed = [
            path
            for path in sorted((self._root / "galleries").iterdir())
            if re.fullmatch(r"[0-9a-f]{32}", path.name) and path.name not in known | deleted
        ]
        lost = [path.name for path in unnamed if not store.never_used(path / "store.db")]
        if lost:
            raise StoreDamaged(
                f"{self._root / 'galleries'} holds {len(lost)} galleries with items that "
                f"catalog.db does not name, the first in the folder {lost[0]}: catalog.db was "
                "lost or is an older copy. Put back the catalog.db that belongs to them, or move "
                "these folders elsewhere to go on without them, and start again",
                resource=("database", "catalog.db"),
            )
        for path in unnamed:
            logging.getLogger(__name__).info("removing the rest of an unfinished creation")
            with contextlib.suppress(OSError):  # a chore: the next start tries again
                self._discard(path.name)
        shutil.rmtree(self._root / "trash", ignore_errors=True)

    @contextlib.contextmanager
    def _wording(self, name: str) -> Iterator[None]:
        try:
            yield
        except TwinserveError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise store.as_twinserve_error(error, name) from error

    def _check_settings(self, settings: GallerySettings) -> None:
        limits = self._limits
        if not NAME.fullmatch(settings.name):
            raise InvalidInput(
                f"gallery name {settings.name[:80]!r} is not 1 to 63 of a-z 0-9 . _ -, beginning "
                "with a letter or digit",
                field="gallery.name",
            )
        ranges = (
            ("dimension", settings.dimension, 1, limits.max_dimension),
            ("hnsw.m", settings.hnsw.m, 2, 256),
            ("hnsw.ef_construction", settings.hnsw.ef_construction, 1, 10_000),
            ("hnsw.ef", settings.hnsw.ef, 1, 10_000),
            ("max_items", settings.max_items, 0, limits.max_items),
            ("max_bytes", settings.max_bytes, MIN_BYTES if settings.max_bytes else 0, MAX_BYTES),
            ("number of metadata_keys", len(settings.metadata_keys), 0, MAX_DECLARED_KEYS),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise InvalidInput(
                    f"{name} is {value}; give {low} to {high}",
                    field=f"gallery.{name.removeprefix('number of ')}",
                )
        keys = [key for key, _ in settings.metadata_keys]
        for number, key in enumerate(keys):
            field = f"gallery.metadata_keys[{number}].key"
            if not DECLARED_KEY.fullmatch(key):
                raise InvalidInput(
                    f"metadata key {key[:80]!r} is not 1 to 63 of a-z 0-9 _, beginning with a "
                    "letter; only such keys can be declared for filters",
                    field=field,
                )
            if key in keys[:number]:
                raise InvalidInput(
                    f"metadata key {key!r} is declared twice; declare it once", field=field
                )


def _differing(some: GallerySettings, others: GallerySettings) -> list[str]:
    """Names of the settings that differ; declared keys mean the same in any order."""
    some, others = (
        dataclasses.replace(one, metadata_keys=tuple(sorted(one.metadata_keys)))
        for one in (some, others)
    )
    return [
        field.name
        for field in dataclasses.fields(GallerySettings)
        if getattr(some, field.name) != getattr(others, field.name)
    ]


def _check_same(there: GallerySettings, wanted: GallerySettings) -> None:
    differences = [
        f"{name} is {getattr(there, name)!s}, not {getattr(wanted, name)!s}"
        for name in _differing(there, wanted)
    ]
    if differences:
        raise AlreadyExists(
            f"gallery {there.name!r} exists with other settings: {'; '.join(differences)}. Use "
            "another name, or delete it first",
            resource=("gallery", there.name),
        )


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
