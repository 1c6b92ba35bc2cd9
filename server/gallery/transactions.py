"""What a write does to the store, inside one transaction: enrolments, removals, moves.

In: work that was checked before it was queued. Out: the answer, and `Changes`, which say what
memory has to repeat after the commit. Nothing of memory is read or changed in here, so a
transaction that fails leaves nothing to undo but the store's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

from twinserve import errors
from twinserve.errors import (
    AlreadyExists,
    GalleryFull,
    InvalidInput,
    ItemNotFound,
    SubjectNotFound,
    TwinserveError,
)
from twinserve.server.gallery import metadata, tokens
from twinserve.server.gallery.filters import matches
from twinserve.server.gallery.store import NewRecords, Record, Store
from twinserve.server.gallery.types import (
    Change,
    Enrolled,
    EnrollOutcome,
    Filter,
    Moved,
    NewItem,
    Removal,
)
from twinserve.server.storage.database import now


class Prepared(NamedTuple):
    """A checked item as it will be stored; `vector` None = keep the one there.

    `vector_key` is the digest of the vector's own bytes, by which equal vectors are found.
    """

    id: str
    subject: str
    metadata: str
    vector: bytes | None
    digest: bytes
    vector_key: bytes


@dataclass(frozen=True, eq=False)
class Batch(Sequence[Prepared]):
    """Checked items of different ids, each with a vector that is all its content, as columns."""

    ids: Sequence[str]
    subjects: Sequence[str]
    metadata: Sequence[str]
    vectors: bytes  # float32 rows end to end
    digests: Sequence[bytes]  # of the vectors

    @property
    def width(self) -> int:
        """Bytes of a vector."""
        return len(self.vectors) // len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Prepared: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prepared]: ...
    def __getitem__(self, place: int | slice) -> Prepared | list[Prepared]:
        """An item, or several, as rows."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        key = self.digests[place]
        start = self.width * place
        vector = self.vectors[start : start + self.width]
        return Prepared(
            self.ids[place], self.subjects[place], self.metadata[place], vector, key, key
        )


@dataclass(frozen=True, eq=False)
class EnrollWork:
    """An Enroll for the writing thread; errors of single items stand in their places."""

    items: Sequence[Prepared | TwinserveError]
    atomic: bool
    request_id: str
    request_digest: bytes


@dataclass(frozen=True, eq=False)
class RemoveWork:
    """A Remove for the writing thread; exactly one of the three targets is set."""

    ids: tuple[str, ...] | None
    subject: str | None
    filter: Filter | None
    request_id: str
    request_digest: bytes


@dataclass(frozen=True, eq=False)
class MoveWork:
    """A MoveItems for the writing thread; exactly one of `ids` and `filter` is set."""

    ids: tuple[str, ...] | None
    filter: Filter | None
    subject: str
    request_id: str
    request_digest: bytes


@dataclass(frozen=True, eq=False)
class RenameWork:
    """A RenameSubject for the writing thread."""

    subject: str
    new_subject: str
    merge: bool
    request_id: str
    request_digest: bytes


Work = EnrollWork | RemoveWork | MoveWork | RenameWork
Answer = EnrollOutcome | Removal | Moved
# What a kept answer says of the request that it answers.
_KINDS: dict[type[Work], str] = {
    EnrollWork: "enroll",
    RemoveWork: "remove",
    MoveWork: "move",
    RenameWork: "rename",
}


class Put(NamedTuple):
    """A record that is new or replaces one; `vector` None = the vector stayed."""

    record: Record
    vector: bytes | None
    vector_key: bytes
    replaces: bool


@dataclass(frozen=True, eq=False)
class Created:
    """New items, under numbers that none had before."""

    numbers: Sequence[int]  # ascending
    batch: Batch


@dataclass(eq=False)
class Changes:
    """What one request did to the store, to be repeated in memory after the commit."""

    sequence: int = 0
    created: Created | None = None
    put: list[Put] = field(default_factory=list)
    # numbers of items that are gone
    dropped: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.created.batch if self.created else ()) + len(self.put) + len(self.dropped)

    def numbers(self) -> list[int]:
        """Of the items that changed."""
        created = self.created.numbers if self.created else ()
        return [*created, *(put.record.number for put in self.put), *self.dropped]


class Transactions:
    """Applies work to one gallery's store; only the writing thread calls it."""

    def __init__(
        self,
        store: Store,
        name: str,
        key: str,
        max_items: int,
        replay_seconds: float,
        max_bytes: int = 0,
    ) -> None:
        """Write to `store`; `key` is the gallery's own id, which its tokens carry."""
        self._store = store
        self._name = name
        self._key = key
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._replay_microseconds = int(replay_seconds * 1e6)
        self._answers_purged = 0

    def apply(self, work: Work, changes: Changes) -> Answer:
        """Do the work, or give the answer that its request id had before; note what changed.

        Raises:
            TwinserveError: nothing of it may stay; the caller's savepoint takes it back.
        """
        replayed = self._replay(work)
        if replayed is not None:
            return replayed
        answer: Answer
        if isinstance(work, EnrollWork):
            answer = self._enroll(work, changes)
        elif isinstance(work, RemoveWork):
            answer = self._remove(work, changes)
        elif isinstance(work, MoveWork):
            answer = self._move(work, changes)
        else:
            answer = self._rename(work, changes)
        if changes:
            self._store.log(changes.sequence, changes.numbers())
        if work.request_id:
            kept = [_KINDS[type(work)], self._store.sequence, _content(answer)]
            self._store.remember(work.request_id, work.request_digest, json.dumps(kept), now())
        return answer

    def _replay(self, work: Work) -> Answer | None:
        if not work.request_id:
            return None
        oldest = now() - self._replay_microseconds
        stored = self._store.answer(work.request_id, oldest)
        if stored is None:
            return None
        digest, text = stored
        kind, sequence, content = json.loads(text)
        if digest != work.request_digest or kind != _KINDS[type(work)]:
            raise InvalidInput(
                f"request id {work.request_id!r} was used for another request within the last "
                "24 hours; make a new id for every request, and keep it for its retries only",
                field="request_id",
            )
        token = self._token(sequence)
        if kind == "enroll":
            return EnrollOutcome(tuple(_result_from_json(entry) for entry in content), token)
        return Removal(content, token) if kind == "remove" else Moved(content, token)

    def _enroll(self, work: EnrollWork, changes: Changes) -> EnrollOutcome:
        used = self._store.used_bytes() if self._max_bytes else 0
        room = self._max_items - self._store.count()
        if isinstance(work.items, Batch):
            there = self._store.find(work.items.ids)
            if not there and len(work.items) <= room:
                return self._create(work.items, used, changes)
        else:
            there = self._store.find([item.id for item in work.items if isinstance(item, Prepared)])
        results: list[Enrolled | TwinserveError] = []
        new_records: list[Record] = []
        new_vectors: list[bytes] = []
        moment = now()
        for number, item in enumerate(work.items):
            if isinstance(item, TwinserveError):
                results.append(item)
                continue
            old = there.get(item.id)
            if old is None:
                error = self._cannot_create(item, room, number)
                if error is not None:
                    results.append(error)
                    continue
                assert item.vector is not None
                room -= 1
                record = Record(
                    self._store.next_number,
                    item.id,
                    item.subject,
                    item.metadata,
                    item.digest,
                    moment,
                    moment,
                )
                self._store.next_number += 1
                new_records.append(record)
                new_vectors.append(item.vector)
                changes.put.append(Put(record, item.vector, item.vector_key, False))
                results.append(Enrolled(item.id, Change.CREATED))
                continue
            vector = None if item.digest == old.digest else item.vector
            same = (item.subject, item.metadata) == (old.subject, old.metadata)
            if vector is None and same:
                results.append(Enrolled(item.id, Change.UNCHANGED))
                continue
            record = Record(
                old.number,
                item.id,
                item.subject,
                item.metadata,
                old.digest if vector is None else item.digest,
                old.created,
                max(moment, old.updated + 1),
            )
            self._store.replace(record, vector)
            changes.put.append(Put(record, vector, item.vector_key, True))
            results.append(Enrolled(item.id, Change.REPLACED))
        if work.atomic:
            for result in results:
                if isinstance(result, TwinserveError):
                    raise result
        self._store.insert(new_records, new_vectors)
        self._check_bytes(used)
        return EnrollOutcome(tuple(results), self._state_after(changes))

    def _create(self, batch: Batch, used: int, changes: Changes) -> EnrollOutcome:
        """Enrol items none of which is there yet, as they most often come in bulk."""
        first = self._store.next_number
        self._store.next_number += len(batch)
        self._store.insert_all(
            NewRecords(first, batch.ids, batch.subjects, batch.metadata, batch.digests, now()),
            batch.vectors,
        )
        changes.created = Created(range(first, first + len(batch)), batch)
        self._check_bytes(used)
        results = tuple([Enrolled(item_id, Change.CREATED) for item_id in batch.ids])
        return EnrollOutcome(results, self._state_after(changes))

    def _check_bytes(self, before: int) -> None:
        """Refuse a whole request that leaves more than fits; one that adds nothing passes."""
        if not self._max_bytes:
            return
        used = self._store.used_bytes()
        if used > self._max_bytes and used > before:
            raise GalleryFull(
                f"gallery {self._name!r} takes {before} bytes on disk, would take {used} with this "
                f"request, and may take {self._max_bytes}; remove some items, send fewer, or make "
                "a gallery with a larger max_bytes",
                resource=("gallery", self._name),
                retry_after=60.0,
            )

    def _cannot_create(self, item: Prepared, room: int, number: int) -> TwinserveError | None:
        if item.vector is None:
            return no_item(self._name, item.id).at(f"items[{number}]")
        if room <= 0:
            return GalleryFull(
                f"gallery {self._name!r} holds {self._max_items} items, which is its "
                "limit; remove some, or make a gallery with a larger max_items",
                field=f"items[{number}]",
                resource=("gallery", self._name),
                retry_after=60.0,
            )
        return None

    def _remove(self, work: RemoveWork, changes: Changes) -> Removal:
        if work.ids is not None:
            records = list(self._store.find(work.ids).values())
        elif work.subject is not None:
            records = self._store.of_subject(work.subject)
        else:
            assert work.filter is not None
            records = self._passing(work.filter)
        self._store.delete(records)
        changes.dropped.extend(record.number for record in records)
        return Removal(len(records), self._state_after(changes))

    def _move(self, work: MoveWork, changes: Changes) -> Moved:
        if work.ids is not None:
            there = self._store.find(work.ids)
            for place, item_id in enumerate(work.ids):
                if item_id not in there:
                    raise no_item(self._name, item_id).at(f"ids.ids[{place}]")
            records = list(there.values())
        else:
            assert work.filter is not None
            records = self._passing(work.filter)
        moving = [record for record in records if record.subject != work.subject]
        self._relabel(moving, work.subject, changes)
        return Moved(len(moving), self._state_after(changes))

    def _rename(self, work: RenameWork, changes: Changes) -> Moved:
        records = self._store.of_subject(work.subject)
        if not records:
            raise no_subject(self._name, work.subject)
        if not work.merge and self._store.has_subject(work.new_subject):
            raise AlreadyExists(
                f"gallery {self._name!r} has items of subject {work.new_subject[:140]!r}; choose "
                "another name, or set merge to make both one subject",
                field="new_subject",
                resource=("subject", work.new_subject[:140]),
            )
        self._relabel(records, work.new_subject, changes)
        return Moved(len(records), self._state_after(changes))

    def _passing(self, wanted: Filter) -> list[Record]:
        return [
            record
            for record in self._store.every()
            if matches(wanted, metadata.decode(record.metadata))
        ]

    def _relabel(self, records: Iterable[Record], subject: str, changes: Changes) -> None:
        """Give items another subject; their vectors stay where they are, on disk and in memory."""
        moment = now()
        for old in records:
            record = old._replace(subject=subject, updated=max(moment, old.updated + 1))
            self._store.replace(record, None)
            changes.put.append(Put(record, None, b"", True))

    def _state_after(self, changes: Changes) -> str:
        """Count one state more where the request changed anything; return the token of it."""
        if changes:
            self._store.sequence += 1
            changes.sequence = self._store.sequence
        return self._token(self._store.sequence)

    def purge_answers(self) -> None:
        """Drop the answers that no retry can ask for any more, now and then."""
        moment = now()
        if moment - self._answers_purged > 600_000_000:  # ten minutes
            self._answers_purged = moment
            self._store.forget_answers(moment - self._replay_microseconds)

    def _token(self, sequence: int) -> str:
        return tokens.make_token(self._key, sequence)


def no_item(gallery: str, item_id: str) -> ItemNotFound:
    """Say that a gallery lacks an item."""
    return ItemNotFound(
        f"gallery {gallery!r} has no item {item_id[:140]!r}; list its items, or "
        "enrol it with an input",
        resource=("item", item_id[:140]),
    )


def no_subject(gallery: str, subject: str) -> SubjectNotFound:
    """Say that a gallery has no item of a subject."""
    return SubjectNotFound(
        f"gallery {gallery!r} has no subject {subject[:140]!r}; enrol an item of it first",
        resource=("subject", subject[:140]),
    )


def digest(data: bytes | memoryview) -> bytes:
    """Digest of a vector's bytes, by which equal ones are found."""
    return hashlib.blake2b(data, digest_size=16).digest()


def digests(vectors: bytes, count: int) -> list[bytes]:
    """`digest` of each of so many vectors that lie end to end."""
    view, width = memoryview(vectors), len(vectors) // count
    return [digest(view[start : start + width]) for start in range(0, len(vectors), width)]


def digest_of_items(items: Sequence[NewItem]) -> bytes:
    """Digest of what an Enroll asks for, where its caller gives none."""
    whole = hashlib.blake2b(digest_size=16)
    for item in items:
        vector = b"" if item.embedding is None else item.embedding.tobytes()
        parts = repr((item.id, item.subject, sorted(item.metadata.items()))).encode()
        whole.update(b"%d.%d." % (len(parts), len(vector)) + parts + vector + item.digest)
    return whole.digest()


def _content(answer: Answer) -> int | list[Any]:
    """What is kept of an answer, beside its state."""
    if isinstance(answer, EnrollOutcome):
        return [_result_as_json(result) for result in answer.results]
    return answer.removed if isinstance(answer, Removal) else answer.moved


def _result_as_json(result: Enrolled | TwinserveError) -> list[Any]:
    if isinstance(result, Enrolled):
        return [result.id, result.change.value]
    facts = {"field": result.field, "retry_after": result.retry_after, "metadata": result.metadata}
    return [type(result).__name__, result.message, facts, result.resource]


def _result_from_json(entry: list[Any]) -> Enrolled | TwinserveError:
    if len(entry) == 2:
        return Enrolled(entry[0], Change(entry[1]))
    name, message, facts, resource = entry
    kind: type[TwinserveError] = getattr(errors, name, TwinserveError)
    return kind(message, resource=None if resource is None else tuple(resource), **facts)
