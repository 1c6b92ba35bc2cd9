"""One gallery: the store on disk and the arrays in memory, kept in step.

In: items and probes. Out: outcomes. Disk first, then memory: a future resolves after the commit
returned and the view that holds the change was swapped in, so whoever has an answer can read what
it says. All changes of memory happen on the writing thread; readers take the view, which is one
reference, and hold no lock while they read.

What the crash story asks of this module is only order: commit, publish, answer. A process that
dies between any two of these leaves a store that says everything, from which memory is made again.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, check_vectors
from twinserve.errors import (
    DeadlineExceeded,
    GalleryNotFound,
    IndexDebtTooHigh,
    InvalidInput,
    LimitExceeded,
    StoreDamaged,
    TwinserveError,
    Unavailable,
    WrongShape,
)
from twinserve.server.gallery import builder, fail_points, footprint, metadata, tokens
from twinserve.server.gallery.array_file import NotAsWritten
from twinserve.server.gallery.backup import copy_store
from twinserve.server.gallery.builder import Builder
from twinserve.server.gallery.estimator import Estimator, Refresher
from twinserve.server.gallery.export import Exported, export_items, item_of
from twinserve.server.gallery.filters import check_filter, matches
from twinserve.server.gallery.footprint import DiskUsage
from twinserve.server.gallery.memory import Memory
from twinserve.server.gallery.observing import BuildKind, GalleryObserver
from twinserve.server.gallery.preparing import Preparer
from twinserve.server.gallery.recall import Recomputed, Sampler
from twinserve.server.gallery.search import Question, View, go_on, means_of, quick, rescore, search
from twinserve.server.gallery.segments import Probes, Segment
from twinserve.server.gallery.snapshots import Snapshots
from twinserve.server.gallery.store import Store, as_twinserve_error
from twinserve.server.gallery.transactions import (
    Batch,
    Changes,
    Created,
    EnrollWork,
    MoveWork,
    Prepared,
    Put,
    RemoveWork,
    RenameWork,
    Transactions,
    digest,
    digest_of_items,
    digests,
    no_item,
    no_subject,
)
from twinserve.server.gallery.types import (
    EnrollOutcome,
    Filter,
    GalleryLimits,
    GallerySettings,
    GalleryStatus,
    HnswSettings,
    Item,
    ItemCount,
    Moved,
    Nearest,
    NewItem,
    PackedItems,
    Removal,
    SearchOutcome,
)
from twinserve.server.gallery.writer import Job, Writer

MAX_REQUEST_ID_BYTES = 128
RETRY_DEBT_SECONDS = 1.0
LIST_ROWS = 1_000
SEAL_WHEN_IDLE = (
    512  # vectors of the growing segment that are worth a graph once nothing is written
)
PRESSED = 4  # full segments that wait for a graph
RETRY_SNAPSHOT_SECONDS = 60.0  # after one that could not be written
SNAPSHOT_SHARE = 0.05  # of the items, those that have to change before another snapshot is worth it


@dataclass(frozen=True, eq=False)
class SwapWork:
    """A rebuilt segment to be taken in."""

    old: tuple[Segment, ...]
    new: Segment | None


class Gallery:
    """A gallery that is open. Made by `Galleries`, never directly."""

    def __init__(
        self,
        settings: GallerySettings,
        create_time: int,
        folder: Path,
        limits: GalleryLimits,
        writer: Writer,
        graph_builder: Builder,
        refresher: Refresher,
        sampler: Sampler,
        observer: GalleryObserver,
    ) -> None:
        """Open the store in `folder` and make memory from it.

        Raises:
            StoreDamaged: the store is damaged; a copy was put aside.
        """
        self.settings = settings
        self._create_time = create_time
        self._key = folder.name
        self._limits = limits
        self._writer = writer
        self._builder = graph_builder
        self._observer = observer
        self._declared = dict(settings.metadata_keys)
        self._preparer = Preparer(settings, limits)
        self._store = Store(folder / "store.db", settings.name)
        self._transactions = Transactions(
            self._store,
            settings.name,
            self._key,
            settings.max_items or limits.max_items,
            limits.replay_seconds,
            settings.max_bytes,
        )
        self._gone = False
        self._failed = False  # memory could not be made to say what the store says
        self.damaged: StoreDamaged | None = None  # found while serving (scrub.py)
        self._published = threading.Condition()
        self._snapshots = Snapshots(folder / "index", settings, self._key)
        self._changed_rows = 0  # since the snapshot
        self._snapshot_due = 0.0  # monotonic seconds; not before
        self._quiet = False  # nothing was written for a while
        try:
            self._memory = self._restored() or self._loaded()
        except BaseException:
            self._store.close()
            raise
        self._set_view()
        self.estimator = Estimator(lambda: self._view, refresher, limits.measure_inline_seconds)
        self.recomputed = Recomputed(settings.name, settings.model, sampler)
        self._builder.consider(self)
        self.estimator.changed()

    # -- reading ----------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """What tells this gallery from every other, one of the same name before or after it too."""
        return self._key

    @property
    def hnsw(self) -> HnswSettings:
        """Parameters of the graph index."""
        return self.settings.hnsw

    @property
    def store(self) -> Store:
        """Its file, for the scrub."""
        return self._store

    @property
    def view(self) -> View:
        """The present state: one reference, unchanged while others write.

        Raises:
            Unavailable: memory lags behind the store for good; only a restart helps.
        """
        self._check_serving()
        return self._view

    @property
    def out_of_service(self) -> bool:
        """Whether everything but deletion raises Unavailable, until a restart."""
        return self._failed

    def status(self) -> GalleryStatus:
        """The gallery as it stands."""
        view = self.view
        return GalleryStatus(
            settings=self.settings,
            item_count=view.rows.item_count,
            subject_count=view.rows.subject_count,
            index_debt=self._debt(view),
            create_time=metadata.moment(self._create_time),
            disk_bytes=self.disk_usage().used,
            segment_count=len(view.segments),
            dead_count=self._memory.dead,
            memory_bytes=self._memory.nbytes,
        )

    def disk_usage(self) -> DiskUsage:
        """Bytes of its files, by kind."""
        return footprint.disk_usage(self._store.path.parent)

    def copy(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Copy the store as it is now into a new file; see `backup.copy_store`."""
        copy_store(self._store, target, self.settings.dimension, progress)

    def export(
        self, after: str, size: int, *, filter: Filter | None = None, embeddings: bool = True
    ) -> Exported:
        """The next items by id, of about `size` bytes, with their vectors; see `export_items`."""
        if filter is not None:
            check_filter(filter, self._declared)
        self._check_serving()
        with self._store.reading() as reader:
            return export_items(
                reader, after, size, self.settings.dimension, filter=filter, embeddings=embeddings
            )

    def get_item(self, item_id: str) -> tuple[Item, NDArray[np.float32] | None]:
        """An item, and its embedding float32 [dimension], bit for bit as enrolled.

        Raises:
            ItemNotFound: no such item.
        """
        self._check_serving()
        with self._store.reading() as reader:
            found = reader.item(item_id)
        if found is None:
            raise no_item(self.settings.name, item_id)
        record, embedding = found
        return item_of(record), np.frombuffer(embedding, dtype="<f4").astype(np.float32)

    def items(self, ids: Sequence[str]) -> list[Item]:
        """Items with their metadata, in the order of `ids`; those gone meanwhile are left out."""
        self._check_serving()
        with self._store.reading() as reader:
            found = {record.id: record for record in reader.items(ids)}
        return [item_of(found[item_id]) for item_id in ids if item_id in found]

    def count(self, *, filter: Filter | None = None, subject: str = "") -> ItemCount:
        """How many items pass the filter and are of the subject ("" = of any), in one state.

        Raises:
            UndeclaredKey, InvalidInput: the filter cannot be answered.
        """
        if filter is not None:
            check_filter(filter, self._declared)
        view = self.view
        rows, token = view.rows, self._token(view.sequence)
        if subject:
            chosen = rows.of_subject(subject)
            if filter is not None:
                chosen = chosen[rows.passing(filter)[chosen]]
        elif filter is not None:
            chosen = np.flatnonzero(rows.passing(filter))
        else:
            return ItemCount(rows.item_count, rows.subject_count, token)
        return ItemCount(len(chosen), rows.count_subjects(chosen), token)

    def list_items(
        self, *, after: str = "", limit: int, filter: Filter | None = None, subject: str = ""
    ) -> tuple[list[Item], str]:
        """Up to `limit` items whose id is greater than `after`, ordered by id, bytewise.

        Only those of the subject, where one is named. Fewer than `limit` means that there are no
        more. Also the token of a state that holds what was listed.

        Raises:
            UndeclaredKey, InvalidInput: the filter cannot be answered.
        """
        if filter is not None:
            check_filter(filter, self._declared)
        token = self._token(self.view.sequence)
        found: list[Item] = []
        with self._store.reading() as reader:
            while len(found) < limit:
                rows = limit - len(found) if filter is None else max(limit, LIST_ROWS)
                records = (
                    reader.of_subject_after(subject, after, rows)
                    if subject
                    else reader.after(after, rows)
                )
                for record in records:
                    item = item_of(record)
                    if filter is None or matches(filter, item.metadata):
                        found.append(item)
                        if len(found) == limit:
                            break
                if len(records) < rows:
                    break
                after = records[-1].id
        return found, token

    def search(
        self,
        probes: Embeddings,
        *,
        k: int,
        filter: Filter | None = None,
        max_distance: float | None = None,
        by_subject: bool = True,
        exact: bool = False,
        ef: int | None = None,
        mean_of: int = 1,
        proceed: Callable[[], None] = go_on,
        threads: int = 1,
    ) -> SearchOutcome:
        """The k nearest subjects (or items) of each probe.

        Args:
            probes: float32 [n, dimension].
            k: how many, at least 1; more than there are is fine.
            filter: only items that pass are searched.
            max_distance: nothing farther is answered.
            by_subject: one hit per subject, its nearest item; else one per item.
            exact: compare with every item, however many.
            ef: breadth of the graph search, instead of the gallery's.
            mean_of: with `by_subject`, a subject's distance is the mean of so many of its nearest
                items, of as many as it has; the item named is the nearest.
            proceed: called between pieces of the work; what it raises ends the search.
            threads: that the graphs may be asked on, where there are many probes.

        Raises:
            WrongShape, NotFinite, ZeroVector: the probes cannot be compared.
            InvalidInput: k, ef, mean_of, max_distance or the filter is out of range.
        """
        ready = self._ready(probes)
        if k < 1:
            raise InvalidInput(f"k is {k}; ask for at least 1", field="top_k")
        _check_mean(mean_of)
        if ef is not None and ef < 1:
            raise InvalidInput(f"ef is {ef}; give at least 1, or leave it out", field="ef")
        if max_distance is not None and not max_distance >= 0:
            raise InvalidInput(
                f"max_distance is {max_distance}; give a distance of at least 0",
                field="max_distance",
            )
        if filter is not None:
            check_filter(filter, self._declared)
        question = Question(
            k, by_subject, max_distance, exact, ef or self.settings.hnsw.ef, mean_of
        )
        view = self.view
        exact_below = self._limits.exact_scan_below
        found, items, subjects = search(
            view, ready, question, filter, exact_below, proceed, threads
        )
        if self.recomputed.wanted and not question.averages and not found.exact[:1].all():
            first = found.of(0)
            self.recomputed.offer(view, probes[0], question, filter, first.distances.tolist())
        rows, texts = view.rows, view.rows.texts
        codes = rows.subject[found.rows]
        names = [
            b"" if unnamed else texts.at(handle)
            for unnamed, handle in zip(
                rows.unnamed[found.rows].tolist(),
                rows.subjects.name_at[codes].tolist(),
                strict=True,
            )
        ]
        sizes = rows.subjects.items[codes].tolist() if by_subject else [1] * len(names)
        return SearchOutcome(
            starts=found.starts.tolist(),
            ids=[texts.at(handle) for handle in rows.id_at[found.rows].tolist()],
            subject_names=names,
            distances=found.distances.tolist(),
            sizes=sizes,
            exact=found.exact.tolist(),
            items=items,
            subjects=subjects,
            token=self._token(view.sequence),
            strangers=self.estimator.strangers(view),
        )

    def is_quick(
        self,
        probes: int,
        *,
        k: int,
        filter: Filter | None,
        exact: bool,
        ef: int | None,
        mean_of: int,
    ) -> bool:
        """Whether a search takes a few milliseconds at most; of what may not, it says False."""
        if exact or filter is not None or mean_of > 1 or not self.estimator.is_ready(self.view):
            return False
        breadth = ef or self.settings.hnsw.ef
        return quick(self.view, probes, k, breadth, self._limits.exact_scan_below)

    def verify(self, subject: str, probe: NDArray[np.float32], mean_of: int = 1) -> Nearest:
        """The nearest item of a subject to a probe, float32 [dimension]; always exact.

        The distance is the mean of so many of its nearest items, of as many as it has.

        Raises:
            SubjectNotFound: no item has this subject (or, without one, this id).
            WrongShape, NotFinite, ZeroVector: the probe cannot be compared.
            InvalidInput: mean_of is below 1.
        """
        _check_mean(mean_of)
        if probe.ndim != 1:
            raise WrongShape(
                f"the probe has shape {list(probe.shape)}; send [{self.settings.dimension}]"
            )
        self._ready(probe[None, :])
        view = self.view
        rows = view.rows.of_subject(subject)
        if not len(rows):
            raise no_subject(self.settings.name, subject)
        distances = rescore(view, probe, view.rows.label[rows])
        _, item_id = min(
            (distance, view.rows.id_of(row))
            for distance, row in zip(distances.tolist(), rows.tolist(), strict=True)
        )
        near = np.sort(distances)[:mean_of]
        distance = float(means_of(near, np.array([len(near)]))[0])
        return Nearest(distance, item_id, len(rows), self._token(view.sequence))

    def wait_for(self, token: str, timeout_s: float) -> None:
        """Return once reads see the state that a token names; "" names any.

        Raises:
            InvalidInput: the token is not one of this gallery.
            DeadlineExceeded: the state was not reached in time.
        """
        if not token:
            return
        wanted = tokens.read_token(self._key, token)
        if self.view.sequence >= wanted:
            return
        with self._published:
            reached = self._published.wait_for(
                lambda: self._view.sequence >= wanted or self._gone or self._failed, timeout_s
            )
            self._check_serving()
            if not reached:
                raise DeadlineExceeded(
                    f"gallery {self.settings.name!r} did not reach the state of the consistency "
                    f"token within {timeout_s:.3f} s; try again with a longer deadline",
                    field="at_least",
                )

    # -- writing ----------------------------------------------------------------------------------

    def enroll(
        self,
        items: Sequence[NewItem],
        *,
        atomic: bool = False,
        request_id: str = "",
        request_digest: bytes = b"",
    ) -> Future[EnrollOutcome]:
        """Add or replace items. The future resolves when that is on disk and can be found.

        A bad item gives an error in its place of the results, or with `atomic` as the future's
        exception, and then nothing is enrolled. With a `request_id`, a retry of the same body
        (`request_digest`) within 24 hours gives the first answer again.

        Raises:
            IndexDebtTooHigh, QueueFull: try again after `retry_after` seconds.
            InvalidInput: the request id is too long.

        The future raises DiskFull, StoreDamaged, GalleryNotFound, or InvalidInput where the
        request id came with another body.
        """
        self._check_request_id(request_id)
        batch = self._preparer.batch(items) if isinstance(items, PackedItems) else None
        prepared = batch or self._preparer.prepared(items)
        vectors = (
            len(batch)
            if batch
            else sum(1 for item in prepared if isinstance(item, Prepared) and item.vector)
        )
        if vectors:
            debt, bound = self._debt(self._view), self._limits.max_index_debt
            if debt + vectors > max(bound, 2 * self._limits.segment_rows):
                raise IndexDebtTooHigh(
                    f"{debt} vectors of gallery {self.settings.name!r} wait to be indexed, and at "
                    f"most {bound} may; slow down and try again",
                    resource=("gallery", self.settings.name),
                    retry_after=RETRY_DEBT_SECONDS,
                )
        body = request_digest or (digest_of_items(items) if request_id else b"")
        work = EnrollWork(prepared, atomic, request_id, body)
        return self._writer.submit(self, work, rows=max(1, len(prepared)))

    def remove(
        self,
        *,
        ids: Sequence[str] | None = None,
        subject: str | None = None,
        filter: Filter | None = None,
        request_id: str = "",
        request_digest: bytes = b"",
    ) -> Future[Removal]:
        """Remove items by ids, by subject or by filter; ids that are not there count as nothing.

        Raises:
            InvalidInput: not exactly one target, or a filter that cannot be answered.
        """
        self._check_request_id(request_id)
        if sum(target is not None for target in (ids, subject, filter)) != 1:
            raise InvalidInput(
                "say what to remove: ids, a subject or a filter, exactly one of them",
                field="target",
            )
        if subject == "":
            raise InvalidInput(
                "the subject to remove is empty; name one, or remove by ids", field="subject"
            )
        if filter is not None:
            check_filter(filter, self._declared)
        if not request_digest and request_id:
            request_digest = hashlib.blake2b(repr((ids, subject, filter)).encode()).digest()
        work = RemoveWork(
            None if ids is None else tuple(ids), subject, filter, request_id, request_digest
        )
        return self._writer.submit(self, work, rows=1)

    def move(
        self,
        subject: str,
        *,
        ids: Sequence[str] | None = None,
        filter: Filter | None = None,
        request_id: str = "",
        request_digest: bytes = b"",
    ) -> Future[Moved]:
        """Give items another subject, chosen by ids or by filter; "" makes each its own.

        Their embeddings stay. An id that is not there fails the whole move, as the future's
        ItemNotFound. An item that has the subject already is left as it is, and not counted.

        Raises:
            InvalidInput: not exactly one of ids and filter, or a filter that cannot be answered.
            LimitExceeded: the subject is too long.
        """
        self._check_request_id(request_id)
        if (ids is None) == (filter is None):
            raise InvalidInput(
                "say what to move: ids or a filter, exactly one of them", field="source"
            )
        self._preparer.check_subject(subject, "subject")
        if filter is not None:
            check_filter(filter, self._declared)
        if not request_digest and request_id:
            request_digest = hashlib.blake2b(repr((ids, filter, subject)).encode()).digest()
        chosen = None if ids is None else tuple(ids)
        work = MoveWork(chosen, filter, subject, request_id, request_digest)
        return self._writer.submit(self, work, rows=max(1, len(chosen or ())))

    def rename(
        self,
        subject: str,
        new_subject: str,
        *,
        merge: bool = False,
        request_id: str = "",
        request_digest: bytes = b"",
    ) -> Future[Moved]:
        """Give all items of a subject another one, in one step.

        The future raises SubjectNotFound where the subject has no item, and AlreadyExists where
        the new one has some and `merge` is False.

        Raises:
            InvalidInput: a subject is empty, or both are one.
            LimitExceeded: the new subject is too long.
        """
        self._check_request_id(request_id)
        for value, name in ((subject, "subject"), (new_subject, "new_subject")):
            if not value:
                raise InvalidInput(f"{name} is empty; name a subject", field=name)
        if subject == new_subject:
            raise InvalidInput(
                f"subject and new_subject are both {subject[:140]!r}; give another new name",
                field="new_subject",
            )
        self._preparer.check_subject(new_subject, "new_subject")
        if not request_digest and request_id:
            body = repr((subject, new_subject, merge)).encode()
            request_digest = hashlib.blake2b(body).digest()
        work = RenameWork(subject, new_subject, merge, request_id, request_digest)
        return self._writer.submit(self, work, rows=1)

    # -- the writing thread -----------------------------------------------------------------------

    def write(self, jobs: Sequence[Job]) -> None:
        """One transaction for all jobs, each whole or not at all; then publish, then answer."""
        requests = []
        for job in jobs:
            if isinstance(job.work, SwapWork):
                self._swap(job.work)
                job.future.set_result(None)
            elif job.future.set_running_or_notify_cancel():
                if self._gone:
                    job.future.set_exception(self._no_gallery())
                elif self._failed:
                    job.future.set_exception(self._unavailable())
                elif self.damaged is not None:
                    job.future.set_exception(self.damaged.again())
                else:
                    requests.append(job)
        if not requests:
            return
        answers: list[tuple[Job, Any]] = []
        all_changes: list[Changes] = []
        began = time.monotonic()
        try:
            self._store.begin()
            self._transactions.purge_answers()
            for job in requests:
                changes = Changes()
                try:
                    with self._store.request():
                        answer = self._transactions.apply(job.work, changes)
                except TwinserveError as error:
                    answers.append((job, error))
                    continue
                answers.append((job, answer))
                if changes:
                    all_changes.append(changes)
            fail_points.reach("before_commit")
            self._store.commit()
        except (sqlite3.Error, OSError) as error:
            self._undo(error, requests)
            return
        except BaseException:
            self._store.rollback()
            raise
        fail_points.reach("after_commit")
        committed = time.monotonic()
        self._observer.committed(self.settings.model, committed - began)
        if all_changes:
            try:
                self._publish(all_changes)
                self._observer.published(self.settings.model, time.monotonic() - committed)
            except Exception:  # the commit stands, so the answers do too; memory has to follow
                logging.getLogger(__name__).exception(
                    "gallery %s: memory does not follow the store; reading it anew",
                    self.settings.name,
                )
                self._reload()
        fail_points.reach("after_publish")
        for job, answer in answers:
            if isinstance(answer, TwinserveError):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)

    def idle(self) -> None:
        """Nothing was written for a while: chores that would keep a write waiting."""
        if self._gone or self._failed:
            return
        manifest = self._snapshots.manifest
        self._store.shorten_log(None if manifest is None else manifest.sequence)
        self._store.checkpoint()
        self._quiet = True
        if self._indexed(self._view) and self._memory.growing >= SEAL_WHEN_IDLE:
            # Else every search would go on scanning what is too little to fill a segment.
            self._memory.seal()
            self._set_view()
        self._builder.consider(self)

    def finish(self) -> None:
        """Write a snapshot at the end, when no search waits any more, so that the next start is
        fast; the builder is at rest, the writer not yet.
        """
        if self._gone or self._failed:
            return
        try:
            if self._worth_saving(least=1_000):
                self._save_snapshot(aside=False)
        except Exception:  # the store is whole, and the other galleries have to be closed too
            logging.getLogger(__name__).exception(
                "gallery %s: no snapshot at the end; the next start takes longer",
                self.settings.name,
            )

    def close(self) -> None:
        """Close the store; called on the writing thread, after the last job."""
        self._gone = True
        self.estimator.close()
        self.recomputed.close()
        with self._published:
            self._published.notify_all()
        self._store.close()

    def _undo(self, error: Exception, requests: Sequence[Job]) -> None:
        worded = as_twinserve_error(error, self.settings.name)
        try:
            self._store.rollback()
        except sqlite3.Error as second:
            # What cannot be undone must not be added to either.
            worded = as_twinserve_error(second, self.settings.name)
        for job in requests:
            job.future.set_exception(worded.again())

    # -- memory, after the commit -----------------------------------------------------------------

    def _publish(self, all_changes: Sequence[Changes]) -> None:
        self._quiet = False
        self._changed_rows += sum(map(len, all_changes))
        self._memory.publish(all_changes)
        self._set_view()
        self._builder.consider(self)
        self.estimator.changed()

    def _reload(self) -> None:
        try:
            self._snapshots.discard()
            self._memory = self._loaded()
            self._set_view()
        except Exception:
            logging.getLogger(__name__).exception(
                "gallery %s could not be read anew; it is out of service until the server is "
                "restarted",
                self.settings.name,
            )
            with self._published:
                self._failed = True
                self._published.notify_all()
            return
        self._builder.consider(self)
        self.estimator.changed()

    def _swap(self, work: SwapWork) -> None:
        if self._gone or self._failed:
            return
        fail_points.reach("before_swap")
        if self._memory.swap(work.old, work.new):
            self._set_view()
        self._builder.consider(self)

    def _set_view(self) -> None:
        view = self._memory.view(self._store.sequence)
        with self._published:
            # One reference, so that the builder never counts one state's segments in another.
            self._planned = (view, self._memory.parts)
            self._view = view
            self._published.notify_all()

    def _restored(self) -> Memory | None:
        """Memory from the snapshot and what changed since; None where that cannot be had."""
        store = self._store
        snapshot = self._snapshots.load(store.snapshots, store.changes_since, store.sequence)
        if snapshot is None:
            return None
        try:
            memory = Memory.restored(self.settings, self._limits.segment_rows, snapshot)
            for changed in store.changed_after(snapshot.sequence):
                there = {record.number for record in changed.records}
                numbers = np.arange(changed.first, changed.last + 1)
                known = set(numbers[memory.holds(numbers)].tolist())
                puts = [
                    Put(record, vector, digest(vector), record.number in known)
                    for record, vector in zip(changed.records, changed.embeddings, strict=True)
                ]
                self._changed_rows += len(numbers)
                gone = sorted(known - there)
                memory.publish([Changes(store.sequence, put=puts, dropped=gone)])
            if memory.items != store.count():
                raise NotAsWritten(f"it leads to {memory.items} items of {store.count()}")
        except (NotAsWritten, LookupError, ValueError, TypeError) as error:
            logging.getLogger(__name__).warning(
                "gallery %s: the snapshot of the index is not used (%s: %s); it is built again "
                "from the store",
                self.settings.name,
                type(error).__name__,
                error,
            )
            self._snapshots.discard()
            return None
        return memory

    def _loaded(self) -> Memory:
        """Memory made anew from the store alone."""
        memory = Memory(self.settings, self._limits.segment_rows)
        for loaded in self._store.load(self.settings.dimension):
            records, vectors = loaded.records, loaded.embeddings
            batch = Batch(
                [record.id for record in records],
                [record.subject for record in records],
                [record.metadata for record in records],
                vectors,
                digests(vectors, len(records)),
            )
            created = Created([record.number for record in records], batch)
            memory.publish([Changes(self._store.sequence, created)])
        return memory

    # -- what the builder asks --------------------------------------------------------------------

    def plan(self) -> tuple[View, builder.Rebuild] | None:
        """The next segment worth rebuilding; any thread."""
        if self._gone or self._failed:
            return None
        view, parts = self._planned  # what grew when the view was made is not among the sealed
        alive = [part.alive for part in parts]
        rebuild = builder.plan(
            view, len(parts), alive, self._limits.exact_scan_below, quiet=self._quiet
        )
        return None if rebuild is None else (view, rebuild)

    def living(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """Labels of these segments that an item still holds; any thread."""
        return Memory.living(self._planned[1], segments)

    def gathered(self, old: Sequence[Segment], labels: NDArray[np.int64]) -> Segment:
        """The vectors of labels in one segment, for a graph to be built; the builder's thread."""
        return self._snapshots.write_segment(old, labels)

    def offer(self, old: Sequence[Segment], new: Segment | None) -> Future[None] | None:
        """Take in a rebuilt segment; any thread. The future resolves when that is done."""
        if self._gone:
            return None
        return self._writer.submit(self, SwapWork(tuple(old), new))

    def pressed(self) -> bool:
        """Whether so much waits to be indexed that merging has to give way; any thread."""
        return self._debt(self._view) > PRESSED * self._limits.segment_rows

    def rest(self) -> None:
        """Nothing is left to build: the moment for a snapshot; the builder's thread."""
        if self._gone or self._failed:
            return
        if time.monotonic() >= self._snapshot_due:
            began = time.monotonic()
            written = self._put_into_files() and (
                not self._worth_saving(self._limits.snapshot_rows)
                or self._save_snapshot(aside=True)
            )
            # At most a tenth of the time, however often the index changes.
            pause = 9 * (time.monotonic() - began)
            self._snapshot_due = time.monotonic() + (
                pause if written else max(pause, RETRY_SNAPSHOT_SECONDS)
            )
        self._snapshots.tidy([part.segment for part in self._planned[1]])

    def _put_into_files(self) -> bool:
        """Write the vectors of graphs that found no room on the disk before; False: still none."""
        for part in self._planned[1]:
            segment = part.segment
            if segment.graph is None or segment.file:
                continue
            moved = self._snapshots.put_into_file(segment)
            if moved is None:
                return False
            done = self.offer([segment], moved)
            if done is not None:
                done.result()
        return True

    def _worth_saving(self, least: int) -> bool:
        view, parts = self._planned
        graphs = {part.segment.file for part in parts if part.segment.graph is not None}
        if not graphs:
            return False  # too small for a graph
        manifest = self._snapshots.manifest
        if manifest is None or manifest.graphs != graphs:
            return True
        return self._changed_rows >= max(least, int(SNAPSHOT_SHARE * view.rows.item_count))

    def _save_snapshot(self, *, aside: bool) -> bool:
        changed, view = self._changed_rows, self._planned[0]
        began = time.monotonic()

        def note(snapshot: int, before: int) -> None:
            try:
                self._writer.call(lambda: self._store.note_snapshot(snapshot, before)).result()
            except (sqlite3.Error, OSError) as error:
                raise as_twinserve_error(error, self.settings.name) from error

        def count_anew() -> None:
            self._changed_rows -= changed  # what changed since counts on

        if self._snapshots.save(view, note, aside=aside) is None:
            return False
        self._writer.call(count_anew).result()
        self._observer.snapshotted(self.settings.model, time.monotonic() - began)
        return True

    def built(self, kind: BuildKind, seconds: float, rows: int) -> None:
        """Tell whoever watches that a segment was made; any thread."""
        self._observer.built(self.settings.model, kind, seconds, rows)

    # -- checks -----------------------------------------------------------------------------------

    @property
    def _metric(self) -> Any:
        return self.settings.metric

    def _indexed(self, view: View) -> bool:
        """Whether the gallery is searched through graphs."""
        return view.safe and view.rows.vector_count > self._limits.exact_scan_below

    def _debt(self, view: View) -> int:
        if not self._indexed(view):
            return 0  # scanned exactly, so nothing waits for a graph
        return sum(len(segment) for segment in view.segments if segment.graph is None)

    def _token(self, sequence: int) -> str:
        return tokens.make_token(self._key, sequence)

    def _ready(self, probes: Embeddings) -> Probes:
        dimension = self.settings.dimension
        if probes.ndim != 2 or probes.shape[1] != dimension or probes.dtype != np.float32:
            raise WrongShape(
                f"the probes are {probes.dtype} {list(probes.shape)}; gallery "
                f"{self.settings.name!r} compares float32 [n, {dimension}]"
            )
        ready = Probes(probes, self._metric)
        if not ready.are_sound:
            check_vectors(probes, self._metric)
        return ready

    def _check_request_id(self, request_id: str) -> None:
        if self._gone:
            raise self._no_gallery()
        self._check_serving()
        if self.damaged is not None:
            raise self.damaged.again()
        size = len(metadata.encode_text(request_id, "the request id"))
        if size > MAX_REQUEST_ID_BYTES:
            raise LimitExceeded(
                f"the request id takes {size} bytes; use at most {MAX_REQUEST_ID_BYTES}, such as "
                "a UUID",
                field="request_id",
            )

    def _check_serving(self) -> None:
        if self._failed:
            raise self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"gallery {self.settings.name!r} is out of service: its memory could not be brought "
            "up to its store, which is whole; restart the server, and see its log",
            resource=("gallery", self.settings.name),
        )

    def _no_gallery(self) -> GalleryNotFound:
        return GalleryNotFound(
            f"gallery {self.settings.name!r} was deleted or closed",
            resource=("gallery", self.settings.name),
        )


def _check_mean(mean_of: int) -> None:
    if mean_of < 1:
        raise InvalidInput(f"mean_of is {mean_of}; give at least 1", field="mean_of")
