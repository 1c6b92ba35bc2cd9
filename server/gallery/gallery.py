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
import re
import sqlite3
import threading
import time
import uuid
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
    SubjectNotFound,
    TwinserveError,
    Unavailable,
    WrongShape,
)
from twinserve.server.gallery import builder, footprint, metadata, tokens
from twinserve.server.gallery.builder import Builder
from twinserve.server.gallery.estimator import Estimator, Refresher
from twinserve.server.gallery.filters import check_filter, matches
from twinserve.server.gallery.footprint import DiskUsage
from twinserve.server.gallery.observing import BuildKind, GalleryObserver
from twinserve.server.gallery.recall import Recomputed, Sampler
from twinserve.server.gallery.rows import NewRow, Rows
from twinserve.server.gallery.search import Question, View, go_on, rescore, search
from twinserve.server.gallery.segments import Growing, Segment, safe
from twinserve.server.gallery.store import Record, Store, as_twinserve_error
from twinserve.server.gallery.transactions import (
    Changes,
    EnrollWork,
    Prepared,
    Put,
    RemoveWork,
    Transactions,
    digest,
    digest_of_items,
    no_item,
)
from twinserve.server.gallery.types import (
    EnrollOutcome,
    Filter,
    GalleryLimits,
    GallerySettings,
    GalleryStatus,
    HnswSettings,
    Item,
    Nearest,
    NewItem,
    Removal,
    SearchOutcome,
)
from twinserve.server.gallery.writer import Job, Writer

ITEM_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_REQUEST_ID_BYTES = 128
RETRY_DEBT_SECONDS = 1.0
LIST_ROWS = 1_000


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
        self._store = Store(folder / "store.db", settings.name)
        self._transactions = Transactions(
            self._store,
            settings.name,
            self._key,
            settings.max_items or limits.max_items,
            limits.replay_seconds,
        )
        self._gone = False
        self._failed = False  # memory could not be made to say what the store says
        self.damaged: StoreDamaged | None = None  # found while serving (scrub.py)
        self._published = threading.Condition()
        self._rows: Rows
        self._sealed: list[Segment]
        self._growing: Growing
        self._label_of_vector: dict[bytes, int]
        self._extreme: set[int]  # living labels of vectors that float32 cannot rank
        try:
            self._load()
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
            segment_count=len(view.segments),
            dead_count=sum(len(segment) for segment in view.segments) - view.rows.vector_count,
            memory_bytes=footprint.memory_bytes(view, self.settings.hnsw),
        )

    def disk_usage(self) -> DiskUsage:
        """Bytes of its files, by kind."""
        return footprint.disk_usage(self._store.path.parent)

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
        return _item(record), np.frombuffer(embedding, dtype="<f4").astype(np.float32)

    def items(self, ids: Sequence[str]) -> list[Item]:
        """Items with their metadata, in the order of `ids`; those gone meanwhile are left out."""
        self._check_serving()
        with self._store.reading() as reader:
            found = {record.id: record for record in reader.items(ids)}
        return [_item(found[item_id]) for item_id in ids if item_id in found]

    def list_items(
        self, *, after: str = "", limit: int, filter: Filter | None = None
    ) -> tuple[list[Item], str]:
        """Up to `limit` items whose id is greater than `after`, ordered by id, bytewise.

        Fewer than `limit` means that there are no more. Also the token of a state that holds
        what was listed.

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
                records = reader.after(after, rows)
                for record in records:
                    item = _item(record)
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
        proceed: Callable[[], None] = go_on,
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
            proceed: called between pieces of the work; what it raises ends the search.

        Raises:
            WrongShape, NotFinite, ZeroVector: the probes cannot be compared.
            InvalidInput: k, ef, max_distance or the filter is out of range.
        """
        self._check_probes(probes)
        if k < 1:
            raise InvalidInput(f"k is {k}; ask for at least 1", field="top_k")
        if ef is not None and ef < 1:
            raise InvalidInput(f"ef is {ef}; give at least 1, or leave it out", field="ef")
        if max_distance is not None and not max_distance >= 0:
            raise InvalidInput(
                f"max_distance is {max_distance}; give a distance of at least 0",
                field="max_distance",
            )
        if filter is not None:
            check_filter(filter, self._declared)
        question = Question(k, by_subject, max_distance, exact, ef or self.settings.hnsw.ef)
        view = self.view
        exact_below = self._limits.exact_scan_below
        hits, items, subjects = search(view, probes, question, filter, exact_below, proceed)
        if self.recomputed.wanted and hits and not hits[0].exact:
            distances = [hit.distance for hit in hits[0].hits]
            self.recomputed.offer(view, probes[0], question, filter, distances)
        return SearchOutcome(
            tuple(hits),
            items,
            subjects,
            self._token(view.sequence),
            self.estimator.strangers(view),
        )

    def verify(self, subject: str, probe: NDArray[np.float32]) -> Nearest:
        """The nearest item of a subject to a probe, float32 [dimension]; always exact.

        Raises:
            SubjectNotFound: no item has this subject (or, without one, this id).
            WrongShape, NotFinite, ZeroVector: the probe cannot be compared.
        """
        if probe.ndim != 1:
            raise WrongShape(
                f"the probe has shape {list(probe.shape)}; send [{self.settings.dimension}]"
            )
        self._check_probes(probe[None, :])
        view = self.view
        rows = view.rows.of_subject(subject)
        if not len(rows):
            raise SubjectNotFound(
                f"gallery {self.settings.name!r} has no subject {subject!r}; enrol an item of it "
                "first",
                resource=("subject", subject),
            )
        distances = rescore(view, probe, view.rows.label[rows])
        distance, item_id = min(
            (distance, view.rows.ids[row])
            for distance, row in zip(distances.tolist(), rows.tolist(), strict=True)
        )
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
        prepared: list[Prepared | TwinserveError] = []
        seen: set[str] = set()
        checked = self._all_sound(items)
        for number, item in enumerate(items):
            try:
                ready = self._prepare(item, checked)
                if ready.id in seen:  # named by id: the caller may count otherwise than we do
                    raise InvalidInput(
                        f"item {ready.id!r} is in the request twice; send it once",
                        field="item.id",
                    )
                seen.add(ready.id)
                prepared.append(ready)
            except TwinserveError as error:
                where = f"items[{number}]" + (f".{error.field}" if error.field else "")
                prepared.append(error.at(where))
        vectors = sum(1 for item in prepared if isinstance(item, Prepared) and item.vector)
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
        work = EnrollWork(tuple(prepared), atomic, request_id, body)
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
            self._store.commit()
        except (sqlite3.Error, OSError) as error:
            self._undo(error, requests)
            return
        except BaseException:
            self._store.rollback()
            raise
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
        for job, answer in answers:
            if isinstance(answer, TwinserveError):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)

    def idle(self) -> None:
        """Move the log into the file while nothing waits."""
        if not self._gone:
            self._store.checkpoint()

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
        for changes in all_changes:
            self._put(changes)
            for item_id in changes.dropped:
                self._kill(self._rows.row_of(item_id), changes.sequence)
        self._rows = self._rows.compacted()
        self._set_view()
        self._builder.consider(self)
        self.estimator.changed()

    def _reload(self) -> None:
        try:
            self._load()
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

    def _put(self, changes: Changes) -> None:
        if not changes.put:
            return
        labels = self._labels(changes.put)
        new, old = [], []
        for put, label in zip(changes.put, labels, strict=True):
            record = put.record
            if put.replaces:
                old.append(self._rows.row_of(record.id))
            if put.vector is None:
                label = self._rows.label_of(record.id)
            new.append(
                NewRow(
                    record.id,
                    record.subject,
                    metadata.decode(record.metadata) if self._declared else {},
                    label,
                )
            )
        self._rows.append(new)
        for row in old:
            self._kill(row, changes.sequence)

    def _labels(self, puts: Sequence[Put]) -> list[int]:
        """A label per vector, the same for the same bytes; -1 where there is none."""
        labels: list[int] = []
        fresh: dict[bytes, list[int]] = {}
        fresh_bytes: list[bytes] = []
        for position, put in enumerate(puts):
            if put.vector is None:
                labels.append(-1)
                continue
            key = put.vector_key
            known = self._label_of_vector.get(key)
            labels.append(-1 if known is None else known)
            if known is None:
                if key not in fresh:
                    fresh_bytes.append(put.vector)
                fresh.setdefault(key, []).append(position)
        if fresh:
            array = np.frombuffer(b"".join(fresh_bytes), dtype="<f4")
            given = self._add_vectors(array.reshape(len(fresh), -1))
            for (key, positions), label in zip(fresh.items(), given.tolist(), strict=True):
                self._label_of_vector[key] = label
                for position in positions:
                    labels[position] = label
        return labels

    def _add_vectors(self, vectors: Embeddings) -> NDArray[np.int64]:
        labels = []
        start = 0
        while start < len(vectors):
            if not self._growing.room:
                self._seal()
            stop = start + self._growing.room
            before = self._growing.count
            fresh = self._growing.append(vectors[start:stop])
            labels.append(fresh)
            lengths = self._growing.lengths[before : self._growing.count]
            if not safe(lengths, self._metric):
                self._extreme.update(
                    label
                    for label, length in zip(fresh.tolist(), lengths, strict=True)
                    if not safe(np.array([length]), self._metric)
                )
            start = stop
        return np.concatenate(labels)

    def _seal(self) -> None:
        next_label = self._growing.next_label
        if self._growing.count:
            self._sealed.append(self._growing.segment())
        self._growing = Growing(next_label, self._limits.segment_rows, self.settings.dimension)

    def _kill(self, row: int, sequence: int) -> None:
        label = self._rows.kill(row, sequence)
        if label is not None:
            # Nobody holds this vector any more: an equal one that comes later is a new label.
            vector = self._vector(label)
            self._extreme.discard(label)
            del self._label_of_vector[digest(vector.astype("<f4", copy=False).tobytes())]

    def _vector(self, label: int) -> NDArray[np.float32]:
        first = int(self._growing.labels[0])
        if label >= first:
            return np.asarray(self._growing.vectors[label - first])
        for segment in reversed(self._sealed):
            if label >= segment.labels[0]:
                local = int(segment.local(np.array([label]))[0])
                return np.asarray(segment.vectors[local])
        raise AssertionError(f"no segment holds label {label}")

    def _swap(self, work: SwapWork) -> None:
        if self._gone or self._failed:
            return
        old = work.old
        first = next((n for n, segment in enumerate(self._sealed) if segment is old[0]), None)
        # The builder plans again on any publication, also while its last swap still waits here: so
        # a swap may come for segments that an earlier one took away. All of them, or nothing.
        if first is not None and _same(self._sealed[first : first + len(old)], old):
            self._sealed[first : first + len(old)] = [work.new] if work.new else []
            self._set_view()
        self._builder.consider(self)

    def _set_view(self) -> None:
        view, sealed = self._make_view(), len(self._sealed)
        with self._published:
            self._view = view
            # One reference, so that the builder never counts one state's segments in another.
            self._planned = (view, sealed)
            self._published.notify_all()

    def _make_view(self) -> View:
        segments = list(self._sealed)
        if self._growing.count:
            segments.append(self._growing.segment())
        return View(
            rows=self._rows.view(self._store.sequence),
            segments=tuple(segments),
            dimension=self.settings.dimension,
            metric=self._metric,
            safe=not self._extreme,
        )

    def _load(self) -> None:
        """Make memory anew: everything from disk, as one sealed segment for one graph."""
        self._rows = Rows(self._declared)
        self._sealed = []
        self._growing = Growing(0, self._limits.segment_rows, self.settings.dimension)
        self._label_of_vector = {}
        self._extreme = set()
        embeddings: list[NDArray[np.float32]] = []
        new: list[NewRow] = []
        for loaded in self._store.load(self.settings.dimension):
            block = np.frombuffer(loaded.embeddings, dtype="<f4")
            block = block.reshape(-1, self.settings.dimension)
            fresh = []
            for position, record in enumerate(loaded.records):
                key = digest(block[position].tobytes())
                label = self._label_of_vector.get(key)
                if label is None:
                    label = self._label_of_vector[key] = len(self._label_of_vector)
                    fresh.append(position)
                values = metadata.decode(record.metadata) if self._declared else {}
                new.append(NewRow(record.id, record.subject, values, label))
            embeddings.append(block if len(fresh) == len(block) else block[fresh])
        if not new:
            return
        vectors = np.concatenate(embeddings).astype(np.float32, copy=False)
        self._growing = Growing(0, max(len(vectors), 1), self.settings.dimension)
        self._add_vectors(vectors)
        self._rows.append(new)
        if len(vectors) >= self._limits.segment_rows:
            self._seal()
        else:
            rest = Growing(0, self._limits.segment_rows, self.settings.dimension)
            rest.append(vectors)
            self._growing = rest

    # -- what the builder asks --------------------------------------------------------------------

    def plan(self) -> tuple[View, builder.Rebuild] | None:
        """The next segment worth rebuilding; any thread."""
        if self._gone or self._failed:
            return None
        view, sealed = self._planned  # what grew when the view was made is not among the sealed
        alive = [len(self.living([segment])) for segment in view.segments[:sealed]]
        rebuild = builder.plan(view, sealed, alive, self._limits.exact_scan_below)
        return None if rebuild is None else (view, rebuild)

    def living(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """Labels of these segments that an item still holds; any thread."""
        references = self._rows.references
        return np.concatenate(
            [segment.labels[references[segment.labels] > 0] for segment in segments]
        )

    def offer(self, old: Sequence[Segment], new: Segment | None) -> None:
        """Take in a rebuilt segment; any thread."""
        if not self._gone:
            self._writer.submit(self, SwapWork(tuple(old), new))

    def built(self, kind: BuildKind, seconds: float, rows: int) -> None:
        """Tell whoever watches that a segment was made; any thread."""
        self._observer.built(self.settings.model, kind, seconds, rows)

    # -- checks -----------------------------------------------------------------------------------

    @property
    def _metric(self) -> Any:
        return self.settings.metric

    def _debt(self, view: View) -> int:
        if not view.safe or view.rows.vector_count <= self._limits.exact_scan_below:
            return 0  # scanned exactly, so nothing waits for a graph
        return sum(len(segment) for segment in view.segments if segment.graph is None)

    def _token(self, sequence: int) -> str:
        return tokens.make_token(self._key, sequence)

    def _check_probes(self, probes: Embeddings) -> None:
        dimension = self.settings.dimension
        if probes.ndim != 2 or probes.shape[1] != dimension or probes.dtype != np.float32:
            raise WrongShape(
                f"the probes are {probes.dtype} {list(probes.shape)}; gallery "
                f"{self.settings.name!r} compares float32 [n, {dimension}]"
            )
        check_vectors(probes, self._metric)

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

    def _all_sound(self, items: Sequence[NewItem]) -> bool:
        """Whether all embeddings pass their check; one question, since most requests are good."""
        embeddings = [item.embedding for item in items if item.embedding is not None]
        shape = (self.settings.dimension,)
        if not embeddings or any(
            embedding.shape != shape or embedding.dtype != np.float32 for embedding in embeddings
        ):
            return False
        try:
            check_vectors(np.stack(embeddings), self._metric)
        except TwinserveError:
            return False
        return True

    def _prepare(self, item: NewItem, checked: bool) -> Prepared:
        if item.id and not ITEM_ID.fullmatch(item.id):
            raise InvalidInput(
                f"item id {item.id[:140]!r} is not 1 to 128 of the characters A-Z a-z 0-9 . _ : -",
                field="item.id",
            )
        size = len(metadata.encode_text(item.subject, "the subject"))
        if size > self._limits.max_subject_bytes:
            raise LimitExceeded(
                f"the subject takes {size} bytes; use at most {self._limits.max_subject_bytes}",
                field="item.subject",
            )
        try:
            text = metadata.encode(item.metadata, self._declared, self._limits)
        except TwinserveError as error:
            raise error.at(f"item.{error.field or 'metadata'}") from None
        if item.embedding is None:
            if not item.id:
                raise InvalidInput(
                    "an item without an embedding changes one that is there; name its id",
                    field="item.id",
                )
            return Prepared(item.id, item.subject, text, None, b"", b"")
        embedding = item.embedding
        if embedding.shape != (self.settings.dimension,) or embedding.dtype != np.float32:
            raise WrongShape(
                f"the embedding is {embedding.dtype} {list(embedding.shape)}; gallery "
                f"{self.settings.name!r} takes float32 [{self.settings.dimension}]",
                field="input",
            )
        if not checked:
            try:
                check_vectors(embedding[None, :], self._metric)
            except TwinserveError as error:
                raise error.at("input") from None
        vector = embedding.astype("<f4", copy=False).tobytes()
        key = digest(vector)
        return Prepared(
            item.id or uuid.uuid4().hex, item.subject, text, vector, item.digest or key, key
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


def _same(some: Sequence[Segment], others: Sequence[Segment]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _item(record: Record) -> Item:
    return Item(
        record.id,
        record.subject,
        metadata.decode(record.metadata),
        metadata.moment(record.created),
        metadata.moment(record.updated),
    )
