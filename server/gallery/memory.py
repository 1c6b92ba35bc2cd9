"""A gallery's memory: rows and vectors, made from the store and kept in step with its commits.

In: what a committed transaction changed (`publish`), rebuilt segments (`swap`). Out: views, each
one state, which readers hold for as long as they like. One thread calls everything here but
`living`; it neither reads nor writes a file.

A vector is kept once, however many items have it: the digest of its bytes finds it, the bytes
decide. It is dead when its last item is gone, and an equal one that comes later is a new vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings
from twinserve.server.gallery import metadata
from twinserve.server.gallery.hash_index import NOTHING, HashIndex, Keys
from twinserve.server.gallery.rows import ALIVE, PIECE, Links, NewRows, Rows
from twinserve.server.gallery.search import View
from twinserve.server.gallery.segments import Growing, Segment, safe
from twinserve.server.gallery.transactions import Changes, Created, Put
from twinserve.server.gallery.types import GallerySettings, MetadataValue

Indices = NDArray[np.int64]


@dataclass(eq=False)
class Holders:
    """Who has the vectors of one segment."""

    newest: NDArray[np.int32]  # [n] the last row that has it, or NOTHING
    items: NDArray[np.int32]  # [n] how many live rows have it
    dead: int = 0  # vectors that no live row has any more

    @classmethod
    def nobody(cls, size: int) -> Holders:
        """No row has any vector yet."""
        return cls(np.full(size, NOTHING, dtype=np.int32), np.zeros(size, dtype=np.int32))


@dataclass(frozen=True, eq=False)
class Part:
    """A sealed segment and who has its vectors."""

    segment: Segment
    holders: Holders

    @property
    def alive(self) -> int:
        """Vectors that some item has."""
        return len(self.segment) - self.holders.dead


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Rows and segments of one state, as `Memory.restored` takes them."""

    sequence: int
    segments: tuple[Segment, ...]
    rows: Mapping[str, NDArray[Any]]  # as `RowsView.saved` gives them


class Memory:
    """Rows, segments, and which vector lies where."""

    def __init__(self, settings: GallerySettings, segment_rows: int) -> None:
        """Start empty."""
        self._declared = dict(settings.metadata_keys)
        self._dimension = settings.dimension
        self._metric = settings.metric
        self._segment_rows = segment_rows
        self._rows = Rows(self._declared)
        self.parts: tuple[Part, ...] = ()  # the sealed ones; never changed, only replaced
        self._growing = Growing(0, segment_rows, settings.dimension)
        self._growing_holders = Holders.nobody(segment_rows)
        self._label_of = HashIndex()  # digest of a vector that some item has -> its label
        self._extreme: set[int] = set()  # labels of living vectors that float32 cannot rank
        self._vector_count = 0

    @classmethod
    def restored(cls, settings: GallerySettings, segment_rows: int, snapshot: Snapshot) -> Memory:
        """The state of a snapshot."""
        memory = cls(settings, segment_rows)
        memory._rows = Rows.restored(memory._declared, snapshot.rows)
        memory.parts = tuple(
            Part(segment, Holders.nobody(len(segment))) for segment in snapshot.segments
        )
        if memory.parts:
            first = int(memory.parts[-1].segment.labels[-1]) + 1
            memory._growing = Growing(first, segment_rows, settings.dimension)
        memory._hang_all()
        for part in memory.parts:
            held = part.holders.items > 0
            part.holders.dead = int(np.count_nonzero(~held))
            memory._vector_count += part.alive
            memory._note_extremes(part.segment.labels[held], part.segment.lengths[held])
            for start in range(0, len(held), PIECE):
                piece = slice(start, start + PIECE)
                keys, first_of = np.unique(part.segment.keys[piece][held[piece]], return_index=True)
                labels = part.segment.labels[piece][held[piece]][first_of]
                new = memory._label_of.get(keys) == NOTHING
                memory._label_of.put(keys[new], labels[new])
        return memory

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are not mapped from a file, about."""
        total = self._rows.nbytes + self._label_of.nbytes + self._growing.nbytes
        for part in self.parts:
            total += 8 * len(part.segment)
            if not part.segment.file:
                total += part.segment.vectors.nbytes + 24 * len(part.segment)
            if part.segment.graph is not None:
                total += part.segment.graph.nbytes
        return total

    @property
    def dead(self) -> int:
        """Vectors that lie in a segment although no item has them any more."""
        growing = self._growing_holders.dead
        return growing + sum(part.holders.dead for part in self.parts)

    @property
    def items(self) -> int:
        """How many items there are."""
        return self._rows.live

    def holds(self, numbers: Indices) -> NDArray[np.bool_]:
        """Which of some items, by their numbers in the store, are there."""
        return np.asarray(self._rows.rows_of(numbers) != NOTHING)

    @property
    def growing(self) -> int:
        """How many vectors the growing segment holds."""
        return self._growing.count

    def view(self, sequence: int) -> View:
        """The present state, to be read at `sequence`."""
        segments = [part.segment for part in self.parts]
        newest = [part.holders.newest for part in self.parts]
        if self._growing.count:
            segments.append(self._growing.segment())
            newest.append(self._growing_holders.newest[: self._growing.count])
        return View(
            rows=self._rows.view(sequence, self._vector_count),
            segments=tuple(segments),
            newest=tuple(newest),
            dimension=self._dimension,
            metric=self._metric,
            safe=not self._extreme,
        )

    # -- what a commit changed --------------------------------------------------------------------

    def publish(self, all_changes: Sequence[Changes]) -> None:
        """Repeat what committed transactions did, in their order."""
        sequence = all_changes[-1].sequence
        for stretch in _stretches(all_changes):
            if isinstance(stretch, Created):
                self._create(stretch)
            else:
                puts, dropped = stretch
                self._apply(puts, np.array(dropped, dtype=np.int64), sequence)
        if self._rows.crowded():
            self._leave_the_dead()

    def _create(self, created: Created) -> None:
        """Add items that are new."""
        batch = created.batch
        digests = np.frombuffer(b"".join(batch.digests), dtype="<u8").reshape(len(batch), -1)
        labels = self._labels(self._vectors(batch.vectors), digests[:, 0].astype(np.uint64))
        fresh = self._rows.append(
            NewRows(
                numbers=np.array(created.numbers, dtype=np.int64),
                ids=[item_id.encode() for item_id in batch.ids],
                id_at=np.full(len(batch), NOTHING, dtype=np.int64),
                subjects=[subject.encode() for subject in batch.subjects],
                labels=labels,
                metadata=self._decoded(batch.metadata),
                unseen=True,
            )
        )
        self._hang(fresh, labels)

    def _apply(self, puts: Sequence[Put], dropped: Indices, sequence: int) -> None:
        """One stretch of changes, in which no item occurs twice."""
        rows = self._rows
        killed = rows.rows_of(dropped)
        if puts:
            numbers = np.fromiter((put.record.number for put in puts), np.int64, len(puts))
            old = rows.rows_of(numbers)
            there = old != NOTHING
            labels = self._labels_of(puts, old)
            id_at = np.full(len(puts), NOTHING, dtype=np.int64)
            id_at[there] = rows.id_at(old[there])
            fresh = rows.append(
                NewRows(
                    numbers=numbers,
                    ids=[put.record.id.encode() for put in puts],
                    id_at=id_at,
                    subjects=[put.record.subject.encode() for put in puts],
                    labels=labels,
                    metadata=self._decoded([put.record.metadata for put in puts]),
                )
            )
            # The new rows take hold before the old ones let go: so a vector that both have never
            # counts as dead in between.
            self._hang(fresh, labels)
            killed = np.concatenate([old[there], killed])
        if len(killed):
            self._let_go(rows.kill(killed, sequence))

    def _decoded(self, texts: Sequence[str]) -> list[dict[str, MetadataValue]]:
        """The metadata of items; nothing where no key is declared, of which memory would know."""
        return [metadata.decode(text) for text in texts] if self._declared else []

    def _vectors(self, data: bytes) -> Embeddings:
        """Float32 [n, dimension] of rows as the store keeps them, end to end."""
        vectors = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
        return vectors.reshape(-1, self._dimension)

    def _labels_of(self, puts: Sequence[Put], old: Indices) -> Indices:
        """[n] the labels of the items' vectors; some keep theirs, of the rows `old` [n]."""
        labels = np.full(len(puts), NOTHING, dtype=np.int64)
        kept = [number for number, put in enumerate(puts) if put.vector is None]
        labels[kept] = self._rows.label[old[kept]]
        given = [number for number, put in enumerate(puts) if put.vector is not None]
        if given:
            vectors = self._vectors(b"".join(puts[number].vector or b"" for number in given))
            digests = b"".join(puts[number].vector_key[:8] for number in given)
            keys = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
            labels[given] = self._labels(vectors, keys)
        return labels

    def _labels(self, vectors: Embeddings, keys: Keys) -> Indices:
        """A label [n] per vector [n, dimension], the same for the same bytes; `keys` [n] theirs."""
        labels = self._label_of.get(keys)
        if (labels == NOTHING).all() and len(np.unique(keys)) == len(keys):
            labels = self._add(vectors, keys)
            self._label_of.put(keys, labels)
            return labels
        known, labels = labels.tolist(), np.full(len(keys), NOTHING, dtype=np.int64)
        first: dict[int, int] = {}  # key -> the first place that has it and is new
        lonely: list[int] = []  # new ones whose digest belongs to other bytes
        for place, key in enumerate(keys.tolist()):
            vector = vectors[place].tobytes()
            if known[place] != NOTHING and self._bytes_of(known[place]) == vector:
                labels[place] = known[place]
            elif known[place] != NOTHING or vectors[first.get(key, place)].tobytes() != vector:
                lonely.append(place)
            else:
                first.setdefault(key, place)
        places = list(first.values()) + lonely
        if places:
            fresh = self._add(vectors[places], keys[places])
            labels[places] = fresh
            self._label_of.put(keys[places[: len(first)]], fresh[: len(first)])
        for place in np.flatnonzero(labels == NOTHING).tolist():
            labels[place] = labels[first[int(keys[place])]]
        return labels

    def _add(self, vectors: Embeddings, keys: Keys) -> Indices:
        labels = []
        start = 0
        while start < len(vectors):
            if not self._growing.room:
                self.seal()
            stop = start + self._growing.room
            before = self._growing.count
            labels.append(self._growing.append(vectors[start:stop], keys[start:stop]))
            self._note_extremes(labels[-1], self._growing.lengths[before : self._growing.count])
            start = stop
        self._vector_count += len(vectors)
        return np.concatenate(labels)

    def _note_extremes(self, labels: Indices, lengths: NDArray[np.float64]) -> None:
        if safe(lengths, self._metric):
            return
        self._extreme.update(
            label
            for label, length in zip(labels.tolist(), lengths, strict=True)
            if not safe(np.array([length]), self._metric)
        )

    def _hang(self, rows: Indices, labels: Indices) -> None:
        """Let rows [n] hold the vectors of their labels [n]."""
        for holders, places, local in self._located(labels):
            # Ascending, so that a chain leads from later rows to earlier ones.
            links = Links.of(holders.newest, local, rows[places].astype(np.int32))
            self._rows.hang(rows[places], links.earlier)
            links.publish(holders.newest)
            np.add.at(holders.items, local, np.int32(1))

    def _hang_all(self) -> None:
        """Hang every row of fresh `Rows`, piece by piece."""
        rows = self._rows
        for start in range(0, rows.count, PIECE):
            piece = np.arange(start, min(start + PIECE, rows.count))
            self._hang(piece, rows.label[piece])

    def _let_go(self, labels: Indices) -> None:
        """Take one row each from the vectors of labels [n], which may repeat."""
        for holders, _, local in self._located(labels):
            np.subtract.at(holders.items, local, np.int32(1))
            touched = np.unique(local)
            dead = touched[holders.items[touched] == 0]
            holders.dead += len(dead)
            self._vector_count -= len(dead)
        gone = np.unique(labels)
        gone = gone[self._items_of(gone) == 0]
        keys = self._keys_of(gone)
        mine = self._label_of.get(keys) == gone
        self._label_of.drop(keys[mine])
        if self._extreme:
            self._extreme.difference_update(gone.tolist())

    def _leave_the_dead(self) -> None:
        """New rows without the dead ones. Views keep what they hold."""
        rows = self._rows
        saved = rows.view(ALIVE - 1, 0).saved()
        self._rows = Rows.restored(self._declared, saved)
        self.parts = tuple(
            Part(part.segment, Holders(*_nobody(len(part.segment)), part.holders.dead))
            for part in self.parts
        )
        growing = self._growing_holders
        self._growing_holders = Holders(*_nobody(self._segment_rows), growing.dead)
        self._hang_all()

    # -- segments ---------------------------------------------------------------------------------

    def seal(self) -> None:
        """Close the growing segment, and begin another."""
        next_label, count = self._growing.next_label, self._growing.count
        if count:
            holders = self._growing_holders
            holders = Holders(holders.newest[:count], holders.items[:count], holders.dead)
            self.parts = (*self.parts, Part(self._growing.segment(), holders))
        self._growing = Growing(next_label, self._segment_rows, self._dimension)
        self._growing_holders = Holders.nobody(self._segment_rows)

    def swap(self, old: Sequence[Segment], new: Segment | None) -> bool:
        """Put `new` in the place of `old`; False where these are not there any more."""
        parts = self.parts
        first = next((n for n, part in enumerate(parts) if part.segment is old[0]), None)
        # The builder plans again on any publication, also while its last swap still waits: so a
        # swap may come for segments that an earlier one took away. All of them, or nothing.
        if first is None:
            return False
        replaced = parts[first : first + len(old)]
        if len(replaced) != len(old) or any(
            part.segment is not segment for part, segment in zip(replaced, old, strict=True)
        ):
            return False
        fresh: tuple[Part, ...] = ()
        if new is not None:
            holders = Holders.nobody(len(new))
            for part in replaced:
                here = (new.labels >= part.segment.labels[0]) & (
                    new.labels <= part.segment.labels[-1]
                )
                local = part.segment.local(new.labels[here])
                holders.newest[here] = part.holders.newest[local]
                holders.items[here] = part.holders.items[local]
            holders.dead = int(np.count_nonzero(holders.items == 0))
            fresh = (Part(new, holders),)
        self.parts = (*parts[:first], *fresh, *parts[first + len(old) :])
        return True

    @staticmethod
    def living(parts: Sequence[Part], segments: Sequence[Segment]) -> Indices:
        """Labels of sealed segments that an item has; any thread.

        `parts` as a view was made with them: while the dead rows are left behind, those of now say
        of nobody that it lives.
        """
        holders = {id(part.segment): part.holders for part in parts}
        labels = []
        for segment in segments:
            held = holders.get(id(segment))
            labels.append(segment.labels if held is None else segment.labels[held.items > 0])
        return np.concatenate(labels)

    # -- where vectors lie ------------------------------------------------------------------------

    def _located(self, labels: Indices) -> Iterator[tuple[Holders, Indices, Indices]]:
        """Divide labels [n] by segment: its holders, which of the n, and where in the segment."""
        for segment, holders, places in self._owned(labels):
            yield holders, places, segment.local(labels[places])

    def _owned(self, labels: Indices) -> Iterator[tuple[Segment, Holders, Indices]]:
        first = int(self._growing.labels[0])
        later = labels >= first
        if later.any():
            yield self._growing.segment(), self._growing_holders, np.flatnonzero(later)
            if later.all():
                return
        starts = np.array([part.segment.labels[0] for part in self.parts])
        owners = np.searchsorted(starts, labels, side="right") - 1
        for number in np.unique(owners[~later]).tolist():
            part = self.parts[number]
            yield part.segment, part.holders, np.flatnonzero((owners == number) & ~later)

    def _items_of(self, labels: Indices) -> NDArray[np.int32]:
        items = np.zeros(len(labels), dtype=np.int32)
        for holders, places, local in self._located(labels):
            items[places] = holders.items[local]
        return items

    def _keys_of(self, labels: Indices) -> Keys:
        keys = np.zeros(len(labels), dtype=np.uint64)
        for segment, _, places in self._owned(labels):
            keys[places] = segment.keys[segment.local(labels[places])]
        return keys

    def _bytes_of(self, label: int) -> bytes:
        (owner,) = self._owned(np.array([label]))
        vector = owner[0].vectors[int(owner[0].local(np.array([label]))[0])]
        return bytes(vector.tobytes())


def _nobody(size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    holders = Holders.nobody(size)
    return holders.newest, holders.items


def _stretches(
    all_changes: Sequence[Changes],
) -> Iterator[Created | tuple[list[Put], list[int]]]:
    """Changes in as few stretches as can be, none with the same item twice."""
    puts: list[Put] = []
    dropped: list[int] = []
    seen: set[int] = set()
    for changes in all_changes:
        if changes.created is not None:
            if seen:
                yield puts, dropped
                puts, dropped, seen = [], [], set()
            yield changes.created
        numbers = [put.record.number for put in changes.put] + changes.dropped
        if not seen.isdisjoint(numbers):
            yield puts, dropped
            puts, dropped, seen = [], [], set()
        puts.extend(changes.put)
        dropped.extend(changes.dropped)
        seen.update(numbers)
    if seen:
        yield puts, dropped
