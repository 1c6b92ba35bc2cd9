"""Rows: versions of items in memory, append-only, with the declared keys as columns.

A row is one version of one item: its number in the store, its id, subject, filter columns, and the
label of its vector. A change of subject or metadata is a new row with the same label; a row is
never edited, only given the sequence at which it died. So a view of the past is a row count and a
sequence, and readers take no lock: the one writer appends behind every reader's count, and arrays
that must grow are copied, never resized under a reader.

A million items are a million rows, so everything lies in flat arrays, some 120 bytes an item, and
nothing here takes time in proportion to the items but what says so.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.server.gallery.hash_index import NOTHING, HashIndex, Keys
from twinserve.server.gallery.metadata import microseconds
from twinserve.server.gallery.texts import Texts
from twinserve.server.gallery.types import (
    All,
    AnyOf,
    Clause,
    Equals,
    Exists,
    Filter,
    InRange,
    MetadataType,
    MetadataValue,
    Not,
)

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

ALIVE = np.iinfo(np.int64).max
CACHED_FILTERS = 64
PIECE = 16_384  # rows at a time, so that other threads get their turn in between
LONGEST_CHAIN = 32  # rows of one label or subject that are followed; beyond, all are scanned
_COMPACT_ROWS = 10_000


def grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array itself if it holds `size` entries, else a copy of at least half as many again.

    What lies behind the old end is not set: nobody reads there before it was written.
    """
    if size <= len(array):
        return array
    larger = np.empty(max(size, len(array) * 3 // 2, 64), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@dataclass(frozen=True, eq=False)
class Links:
    """Rows on their way into the chains of their targets, such as the labels that they have."""

    earlier: NDArray[np.int32]  # [n] the row before each in its chain, or NOTHING
    targets: Indices  # [m] the targets
    newest: NDArray[np.int32]  # [m] the last row of each one's chain

    @classmethod
    def of(cls, newest: NDArray[np.int32], targets: Indices, rows: NDArray[np.int32]) -> Links:
        """Hang rows [n], ascending, behind what `newest` [targets] holds for their targets [n]."""
        if len(targets) == 1:  # by far the most common batch
            return cls(newest[targets], targets, rows)
        order = np.argsort(targets, kind="stable")
        ordered = targets[order]
        starts = np.ones(len(order), dtype=np.bool_)
        starts[1:] = ordered[1:] != ordered[:-1]
        sorted_rows = rows[order]
        before = np.empty(len(order), dtype=np.int32)
        before[1:] = sorted_rows[:-1]
        before[starts] = newest[ordered[starts]]
        earlier = np.empty_like(before)
        earlier[order] = before
        ends = np.roll(starts, -1)
        return cls(earlier, ordered[ends], sorted_rows[ends])

    def publish(self, newest: NDArray[np.int32]) -> None:
        """Let readers find the rows, whose `earlier` lie where they belong by now."""
        newest[self.targets] = self.newest


class Column:
    """One declared key's values: numbers in an array, texts by code. Append-only."""

    _KINDS: Mapping[MetadataType, type[np.generic]] = {
        MetadataType.TEXT: np.int64,
        MetadataType.INTEGER: np.int64,
        MetadataType.NUMBER: np.float64,
        MetadataType.FLAG: np.int64,
        MetadataType.TIME: np.int64,
    }

    def __init__(self, kind: MetadataType) -> None:
        self.kind = kind
        self.values: NDArray[Any] = np.zeros(0, dtype=self._KINDS[kind])
        self.present: Mask = np.zeros(0, dtype=np.bool_)
        self.texts: list[str] = []
        self._codes: dict[str, int] = {}

    def append(self, start: int, values: list[MetadataValue | None]) -> None:
        """Write rows [start, start + len(values)); None where the key is missing."""
        end = start + len(values)
        self.values = grown(self.values, end)
        self.present = grown(self.present, end)
        self.values[start:end] = 0
        self.present[start:end] = False
        for row, value in enumerate(values, start):
            if value is not None:
                self.values[row] = self._plain(value)
                self.present[row] = True

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, about."""
        some = self.texts[:1_000]
        each = sum(len(text) + 60 for text in some) // max(1, len(some))
        texts = each * len(self.texts)
        return self.values.nbytes + self.present.nbytes + texts

    def saved(self, name: str, rows: Indices) -> dict[str, NDArray[Any]]:
        """Some rows as arrays."""
        arrays: dict[str, NDArray[Any]] = {
            f"{name}.values": self.values[rows],
            f"{name}.present": self.present[rows],
        }
        if self.kind is MetadataType.TEXT:
            # Texts without NUL, as metadata are checked to be.
            text = "\0".join(self.texts[: 1 + int(arrays[f"{name}.values"].max(initial=-1))])
            arrays[f"{name}.texts"] = np.frombuffer(text.encode(), dtype=np.uint8)
        return arrays

    def restore(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Begin with the rows that `saved` gave."""
        self.values = arrays[f"{name}.values"].copy()
        self.present = arrays[f"{name}.present"].copy()
        if self.kind is MetadataType.TEXT and self.present.any():
            self.texts = arrays[f"{name}.texts"].tobytes().decode().split("\0")
            self._codes = {text: code for code, text in enumerate(self.texts)}

    def _plain(self, value: MetadataValue) -> int | float:
        if isinstance(value, str):
            code = self._codes.setdefault(value, len(self.texts))
            if code == len(self.texts):
                self.texts.append(value)
            return code
        return microseconds(value) if isinstance(value, datetime) else value

    def mask(self, test: Equals | AnyOf | InRange | Exists, start: int, end: int) -> Mask:
        """Which of the rows [start, end) pass."""
        present = self.present[start:end]
        if isinstance(test, Exists):
            return present.copy() if test.present else ~present
        values = self.values[start:end]
        if self.kind is MetadataType.TEXT:
            # Asked once per distinct text, then looked up by code.
            passing = np.fromiter((_text_passes(test, text) for text in list(self.texts)), np.bool_)
            if not len(passing):
                return np.zeros(end - start, dtype=np.bool_)
            known = values < len(passing)
            return np.asarray(present & known & passing[np.where(known, values, 0)])
        if isinstance(test, Equals):
            return np.asarray(present & (values == self._limit(test.value)))
        if isinstance(test, AnyOf):
            wanted = np.array([self._limit(value) for value in test.values], dtype=values.dtype)
            return present & np.isin(values, wanted)
        result = present.copy()
        if test.at_least is not None:
            result &= values >= self._limit(test.at_least)
        if test.below is not None:
            result &= values < self._limit(test.below)
        return result

    def _limit(self, value: MetadataValue) -> Any:
        plain = microseconds(value) if isinstance(value, datetime) else value
        return self.values.dtype.type(plain)


def _text_passes(test: Equals | AnyOf | InRange, text: str) -> bool:
    if isinstance(test, Equals):
        return text == test.value
    if isinstance(test, AnyOf):
        return text in test.values
    low, high = test.at_least, test.below
    return (low is None or text >= str(low)) and (high is None or text < str(high))


class Masks:
    """Bitmaps of filters over rows. Rows never change, so a bitmap is only ever extended."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = columns
        self._cached: OrderedDict[Filter, Mask] = OrderedDict()

    def mask(self, wanted: Filter, count: int) -> Mask:
        """Which of the first `count` rows pass; safe to call from many threads."""
        known = self._cached.get(wanted)
        start = 0 if known is None else len(known)
        if known is None or start < count:
            fresh = self._evaluate(wanted, start, count)
            known = fresh if known is None else np.concatenate([known, fresh])
            self._cached[wanted] = known
            while len(self._cached) > CACHED_FILTERS:
                try:
                    self._cached.popitem(last=False)
                except KeyError:  # another thread was faster
                    break
        return known[:count]

    def _evaluate(self, wanted: Filter, start: int, end: int) -> Mask:
        if isinstance(wanted, Clause):
            return self.columns[wanted.key].mask(wanted.test, start, end)
        if isinstance(wanted, Not):
            return ~self._evaluate(wanted.filter, start, end)
        everything = isinstance(wanted, All)
        result = np.full(end - start, everything, dtype=np.bool_)
        for part in wanted.filters:
            mask = self._evaluate(part, start, end)
            result = result & mask if everything else result | mask
        return result


class Subjects:
    """Names by code and back, and how many live items each has. Codes are given in order."""

    def __init__(self, texts: Texts, expected: int = 0) -> None:
        """Start empty; names are kept in `texts`."""
        self.texts = texts
        self.count = 0
        self.name_at: Indices = np.empty(0, dtype=np.int64)  # [>= count]
        self.items: NDArray[np.int32] = np.empty(0, dtype=np.int32)  # [>= count] alive now
        self.newest: NDArray[np.int32] = np.empty(0, dtype=np.int32)  # [>= count] the last row
        # Codes that are not found by the digest of their name, which another name had already.
        self.moved: list[int] = []
        self._index = HashIndex(expected)

    @property
    def nbytes(self) -> int:
        """Bytes that they take, without the names."""
        arrays = (self.name_at, self.items, self.newest)
        return self._index.nbytes + sum(array.nbytes for array in arrays)

    def code_of(self, name: str) -> int | None:
        """The code of a name, or None; any thread."""
        text = name.encode()
        key = _name_key(text)
        while True:
            code = int(self._index.get(np.array([key], dtype=np.uint64))[0])
            if code == NOTHING:
                return None
            if self.texts.at(int(self.name_at[code])) == text:
                return code
            key = _next_key(key)

    def name_of(self, code: int) -> str:
        """The name of a code; any thread."""
        return self.texts.at(int(self.name_at[code])).decode()

    def codes_for(self, names: Sequence[bytes], kept_at: Indices) -> Indices:
        """Codes [n] of names, new where there is none; only the writing thread calls this.

        `kept_at` [n]: the handle under which a name is kept already, or NOTHING.
        """
        keys = np.fromiter(map(_name_key, names), dtype=np.uint64, count=len(names))
        there = self._index.get(keys)
        if (there == NOTHING).all() and len(np.unique(keys)) == len(keys):
            # Most often all names are new; different keys are of different names.
            self._add(names, kept_at, keys)
            return np.arange(self.count - len(names), self.count)
        found = there.tolist()
        fresh: dict[bytes, int] = {}
        taken: dict[int, int] = {}  # key -> code, of this batch
        where: list[int] = []
        for position, (name, key) in enumerate(zip(names, keys.tolist(), strict=True)):
            code = found[position]
            if code != NOTHING and self.texts.at(int(self.name_at[code])) != name:
                known = self.code_of(name.decode())  # another name has this digest
                code = NOTHING if known is None else known
            if code == NOTHING:
                code = fresh.get(name, NOTHING)
            if code == NOTHING:
                code = self.count + len(fresh)
                if key in taken or found[position] != NOTHING:
                    key = self._free_key(key, code, taken)
                fresh[name] = taken[key] = code
                where.append(position)
            found[position] = code
        if fresh:
            self._add(list(fresh), kept_at[where], np.fromiter(taken, np.uint64, len(taken)))
        return np.array(found, dtype=np.int64)

    def _free_key(self, key: int, code: int, taken: Mapping[int, int]) -> int:
        """The key that a new code is found by: that of its name, or where it leads."""
        first = key
        while key in taken or self._index.get(np.array([key], np.uint64))[0] != NOTHING:
            key = _next_key(key)
        if key != first:
            self.moved.append(code)
        return key

    def _add(self, names: Sequence[bytes], kept_at: Indices, keys: Keys) -> None:
        missing = kept_at == NOTHING
        if missing.any():
            kept_at[missing] = self.texts.append(
                [name for name, absent in zip(names, missing.tolist(), strict=True) if absent]
            )
        self._extend(kept_at)
        # The index last: whoever finds a code there finds its name.
        self._index.put(keys, np.arange(self.count - len(names), self.count))

    def _extend(self, kept_at: Indices) -> None:
        start, end = self.count, self.count + len(kept_at)
        self.name_at = grown(self.name_at, end)
        self.items = grown(self.items, end)
        self.newest = grown(self.newest, end)
        self.name_at[start:end] = kept_at
        self.items[start:end] = 0
        self.newest[start:end] = NOTHING
        self.count = end

    def keys(self) -> Keys:
        """[count] the keys by which the names are found; any thread."""
        count = self.count
        keys, codes = self._index.items()
        within = codes < count  # another thread may be adding some
        ordered = np.zeros(count, dtype=np.uint64)
        ordered[codes[within]] = keys[within]
        return ordered

    @classmethod
    def restored(cls, texts: Texts, name_at: Indices, keys: Keys, moved: Indices) -> Subjects:
        """Subjects of no items yet, from the handles of their names, `keys` and `moved`."""
        subjects = cls(texts, len(name_at))
        subjects._extend(name_at)
        own = np.ones(len(keys), dtype=np.bool_)
        own[moved] = False
        for start in range(0, len(keys), PIECE):
            codes = start + np.flatnonzero(own[start : start + PIECE])
            subjects._index.put(keys[codes], codes)
        for code in moved.tolist():
            # Anew: the name that had its key, or one on the way to it, may be gone.
            key = subjects._free_key(_name_key(texts.at(int(name_at[code]))), code, {})
            subjects._index.put(np.array([key], np.uint64), np.array([code]))
        return subjects


def _name_key(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def _next_key(key: int) -> int:
    return (key * 6_364_136_223_846_793_005 + 1) % 2**64


@dataclass(eq=False)
class Chains:
    """Which row comes before each; the arrays of now, which views that are older share."""

    earlier: NDArray[np.int32]  # row -> the previous row of the same label, or NOTHING
    sibling: NDArray[np.int32]  # row -> the previous row of the same subject, or NOTHING


@dataclass(frozen=True, eq=False)
class RowsView:
    """The rows at one sequence. What it says of them stays as it is while others write."""

    sequence: int
    count: int
    item_count: int
    subject_count: int
    vector_count: int
    generation: object  # rows of one generation keep their places
    texts: Texts
    id_at: Indices  # [>= count] row -> handle of its id
    number: Indices  # [>= count] row -> number of its item in the store
    label: Indices  # [>= count] row -> label of its vector
    subject: NDArray[np.int32]  # [>= count] row -> code of its subject
    unnamed: Mask  # [>= count] enrolled without a subject
    died: Indices  # [>= count] sequence, or ALIVE
    chains: Chains
    subjects: Subjects
    masks: Masks

    @cached_property
    def alive(self) -> Mask:
        """[count] which rows are the present version of an item. In proportion to the rows."""
        return self.died[: self.count] > self.sequence

    @cached_property
    def live_rows(self) -> Indices:
        """The rows of `alive`, ascending."""
        return np.flatnonzero(self.alive)

    @property
    def has_dead(self) -> bool:
        """Whether any row is not the present version of an item."""
        return self.item_count < self.count

    def lives(self, rows: Indices) -> Mask:
        """Which of some rows are the present version of an item."""
        return np.asarray(self.died[rows] > self.sequence)

    def id_of(self, row: int) -> str:
        """The id of a row's item."""
        return self.texts.at(int(self.id_at[row])).decode()

    def subject_of(self, row: int) -> str:
        """The subject as enrolled."""
        return "" if self.unnamed[row] else self.subjects.name_of(int(self.subject[row]))

    def passing(self, wanted: Filter) -> Mask:
        """[count] which live rows pass a filter."""
        return self.alive & self.masks.mask(wanted, self.count)

    def count_subjects(self, rows: Indices) -> int:
        """How many subjects these rows have."""
        seen = np.zeros(self.subjects.count, dtype=np.bool_)
        seen[self.subject[rows]] = True
        return int(np.count_nonzero(seen))

    def saved(self) -> dict[str, NDArray[Any]]:
        """The live rows as flat arrays, from which `Rows.restored` makes them again."""
        live = self.live_rows
        codes = self.subject[live]
        moved = list(self.subjects.moved)
        used = np.zeros(self.subjects.count, dtype=np.bool_)
        used[codes] = True
        kept = np.flatnonzero(used)
        renumbered = np.cumsum(used) - 1
        arrays: dict[str, NDArray[Any]] = {
            "number": self.number[live],
            "label": self.label[live],
            "subject": renumbered[codes].astype(np.int32),
            "unnamed": self.unnamed[live],
            "subject_key": self.subjects.keys()[kept],
            "subject_moved": np.array(
                [renumbered[code] for code in moved if code < len(used) and used[code]],
                dtype=np.int64,
            ),
        }
        texts, (id_at, name_at) = self.texts.copied(self.id_at[live], self.subjects.name_at[kept])
        arrays |= {"texts": texts, "id_at": id_at, "name_at": name_at}
        for key, column in self.masks.columns.items():
            arrays |= column.saved(f"column.{key}", live)
        return arrays

    def of_subject(self, subject: str) -> Indices:
        """The live rows of a subject, ascending."""
        code = self.subjects.code_of(subject)
        return np.zeros(0, dtype=np.int64) if code is None else self.of_code(code)

    def of_code(self, code: int) -> Indices:
        """The live rows of the subject with this code, ascending."""
        found: list[int] = []
        row = int(self.subjects.newest[code])
        for _ in range(LONGEST_CHAIN):
            if row == NOTHING:
                rows = np.array(found[::-1], dtype=np.int64)
                return rows[self.lives(rows)]
            if row < self.count:
                found.append(row)
            row = int(self.chains.sibling[row])
        # Of a subject with very many items, scanning beats following its chain.
        rows = np.flatnonzero(self.subject[: self.count] == code)
        return rows[self.lives(rows)]

    def of_labels(
        self, newest: NDArray[np.int32], labels: Callable[[], Indices]
    ) -> tuple[Indices, Indices | None]:
        """All rows, dead ones included, whose vectors have labels [n] with `newest` rows [n].

        Returns rows [m], and [m] which of the n each belongs to; None where each has its one.
        """
        plain = len(newest) and int(newest.min()) > NOTHING and int(newest.max()) < self.count
        if plain and int(self.chains.earlier[newest].max()) == NOTHING:
            return newest.astype(np.int64), None
        places = np.flatnonzero(newest != NOTHING)
        rows = newest[places]
        found: list[NDArray[np.int32]] = []
        owners: list[Indices] = []
        for _ in range(LONGEST_CHAIN):
            if not len(rows):
                break
            within = rows < self.count
            found.append(rows[within])
            owners.append(places[within])
            rows = self.chains.earlier[rows]
            on = rows != NOTHING
            if not on.any():
                break
            rows, places = rows[on], places[on]
        else:
            return self._scan_for(labels())
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *found]), np.concatenate([none, *owners])

    def _scan_for(self, labels: Indices) -> tuple[Indices, Indices]:
        """`of_labels` where one vector is that of very many items."""
        unique, back = np.unique(labels, return_inverse=True)
        label = self.label[: self.count]
        place = np.minimum(np.searchsorted(unique, label), len(unique) - 1)
        rows = np.flatnonzero(unique[place] == label)
        place = place[rows]
        # A label that was asked for several times (by several probes) gets its rows each time.
        order = np.argsort(place, kind="stable")
        counts = np.bincount(place, minlength=len(unique))
        starts = np.cumsum(counts) - counts
        repeats = counts[back]
        owners = np.repeat(np.arange(len(labels)), repeats)
        offsets = np.arange(len(owners)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        return rows[order[starts[back][owners] + offsets]], owners


@dataclass(frozen=True, eq=False)
class NewRows:
    """What `Rows.append` takes: n items, in the order in which they were written."""

    numbers: Indices  # [n]
    ids: Sequence[bytes]
    id_at: Indices  # [n] handles of ids that are kept already, or NOTHING
    subjects: Sequence[bytes]  # b"" = the item is its own subject
    labels: Indices  # [n]
    metadata: Sequence[Mapping[str, MetadataValue]]  # empty where no key is declared
    unseen: bool = False  # none of the items has a row


class Rows:
    """The owner of the arrays; only the writing thread calls it."""

    def __init__(self, declared: Mapping[str, MetadataType]) -> None:
        self._declared = dict(declared)
        self.count = 0
        self.dead = 0
        self.texts = Texts()
        self.subjects = Subjects(self.texts)
        self.chains = Chains(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))
        self._generation = object()
        self._subject_count = 0
        self._columns = {key: Column(kind) for key, kind in self._declared.items()}
        self._masks = Masks(self._columns)
        self._number: Indices = np.empty(0, dtype=np.int64)
        self._id_at: Indices = np.empty(0, dtype=np.int64)
        self.label: Indices = np.empty(0, dtype=np.int64)
        self._subject: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._unnamed: Mask = np.empty(0, dtype=np.bool_)
        self._died: Indices = np.empty(0, dtype=np.int64)
        self._row_of = HashIndex()

    @property
    def live(self) -> int:
        """How many items there are."""
        return self.count - self.dead

    @property
    def nbytes(self) -> int:
        """Bytes that everything here takes, about."""
        arrays = (
            self._number,
            self._id_at,
            self.label,
            self._subject,
            self._unnamed,
            self._died,
            self.chains.earlier,
            self.chains.sibling,
        )
        columns = sum(column.nbytes for column in self._columns.values())
        parts = (self.texts.nbytes, self.subjects.nbytes, self._row_of.nbytes, columns)
        return sum(array.nbytes for array in arrays) + sum(parts)

    def rows_of(self, numbers: Indices) -> Indices:
        """The live rows [n] of items [n], by their numbers in the store; NOTHING for others."""
        return self._row_of.get(numbers.astype(np.uint64))

    def id_at(self, rows: Indices) -> Indices:
        """Handles of the ids of rows."""
        return self._id_at[rows]

    def append(self, new: NewRows) -> Indices:
        """Add rows and return their places; `hang` them and `kill` older versions next."""
        id_at = new.id_at.copy()
        missing = np.flatnonzero(id_at == NOTHING)
        if len(missing):
            id_at[missing] = self.texts.append([new.ids[i] for i in missing.tolist()])
        unnamed = np.array([not name for name in new.subjects], dtype=np.bool_)
        names = [name or item for name, item in zip(new.subjects, new.ids, strict=True)]
        codes = self.subjects.codes_for(names, np.where(unnamed, id_at, NOTHING))
        if not new.unseen:
            self._row_of.drop(new.numbers.astype(np.uint64))  # of the versions before
        rows = self._write(new.numbers, id_at, codes, unnamed, new.labels)
        for key, column in self._columns.items():
            column.append(int(rows[0]), [values.get(key) for values in new.metadata])
        return rows

    def hang(self, rows: Indices, earlier: NDArray[np.int32]) -> None:
        """Say which row comes before each of `rows` in the chain of its label."""
        self.chains.earlier[rows] = earlier

    def kill(self, rows: Indices, sequence: int) -> Indices:
        """End rows at `sequence`; return their labels [n]."""
        self._died[rows] = sequence
        self.dead += len(rows)
        numbers = self._number[rows].astype(np.uint64)
        gone = self._row_of.get(numbers) == rows  # not where a newer version took the place
        self._row_of.drop(numbers[gone])
        codes, counts = np.unique(self._subject[rows], return_counts=True)
        self.subjects.items[codes] -= counts.astype(np.int32)
        self._subject_count -= int(np.count_nonzero(self.subjects.items[codes] == 0))
        return self.label[rows]

    def _write(
        self, numbers: Indices, id_at: Indices, codes: Indices, unnamed: Mask, labels: Indices
    ) -> Indices:
        start, end = self.count, self.count + len(numbers)
        rows = np.arange(start, end)
        self._number = grown(self._number, end)
        self._id_at = grown(self._id_at, end)
        self.label = grown(self.label, end)
        self._subject = grown(self._subject, end)
        self._unnamed = grown(self._unnamed, end)
        self._died = grown(self._died, end)
        self.chains.earlier = grown(self.chains.earlier, end)
        self.chains.sibling = grown(self.chains.sibling, end)
        self._number[start:end] = numbers
        self._id_at[start:end] = id_at
        self.label[start:end] = labels
        self._subject[start:end] = codes
        self._unnamed[start:end] = unnamed
        self._died[start:end] = ALIVE
        self.chains.earlier[start:end] = NOTHING
        links = Links.of(self.subjects.newest, codes, rows.astype(np.int32))
        self.chains.sibling[start:end] = links.earlier
        links.publish(self.subjects.newest)
        touched, counts = np.unique(codes, return_counts=True)
        self._subject_count += int(np.count_nonzero(self.subjects.items[touched] == 0))
        self.subjects.items[touched] += counts.astype(np.int32)
        self._row_of.put(numbers.astype(np.uint64), rows)
        self.count = end
        return rows

    def crowded(self) -> bool:
        """Whether dead rows are as many as the live, and worth being left behind."""
        return self.dead >= max(_COMPACT_ROWS, self.live)

    @classmethod
    def restored(
        cls, declared: Mapping[str, MetadataType], arrays: Mapping[str, NDArray[Any]]
    ) -> Rows:
        """Rows from what `RowsView.saved` gave; each must be hung into the chain of its label."""
        rows = cls(declared)
        rows.texts = Texts(arrays["texts"].tobytes())
        names_of = (arrays[name] for name in ("name_at", "subject_key", "subject_moved"))
        rows.subjects = Subjects.restored(rows.texts, *names_of)
        names = ("number", "id_at", "subject", "unnamed", "label")
        for start in range(0, len(arrays["number"]), PIECE):
            numbers, id_at, codes, unnamed, labels = (
                arrays[name][start : start + PIECE] for name in names
            )
            rows._write(numbers, id_at, codes, unnamed, labels)
        for key, column in rows._columns.items():
            column.restore(f"column.{key}", arrays)
        return rows

    def view(self, sequence: int, vector_count: int) -> RowsView:
        """The rows as they stand, to be read at `sequence`."""
        return RowsView(
            sequence=sequence,
            count=self.count,
            item_count=self.live,
            subject_count=self._subject_count,
            vector_count=vector_count,
            generation=self._generation,
            texts=self.texts,
            id_at=self._id_at,
            number=self._number,
            label=self.label,
            subject=self._subject,
            unnamed=self._unnamed,
            died=self._died,
            chains=self.chains,
            subjects=self.subjects,
            masks=self._masks,
        )
