"""Rows: versions of items in memory, append-only, with the declared keys as columns.

A row is one version of one item: its id, subject, filter columns, and the label of its vector. A
change of subject or metadata is a new row with the same label; a row is never edited, only given
the sequence at which it died. So a view of the past is a row count and a sequence, and readers
take no lock: the one writer appends behind every reader's count, and arrays that must grow are
copied, never resized under a reader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.server.gallery.metadata import microseconds
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
NOTHING = -1
CACHED_FILTERS = 64
_COMPACT_ROWS = 10_000


def grown(array: NDArray[Any], size: int, fill: int) -> NDArray[Any]:
    """The array itself if it holds `size` entries, else a copy of at least twice its length."""
    if size <= len(array):
        return array
    larger = np.full(max(size, 2 * len(array), 64), fill, dtype=array.dtype)
    larger[: len(array)] = array
    return larger


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
        self.values = grown(self.values, end, 0)
        self.present = grown(self.present, end, 0)
        for row, value in enumerate(values, start):
            if value is not None:
                self.values[row] = self._plain(value)
                self.present[row] = True

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


@dataclass(frozen=True, eq=False)
class RowsView:
    """The rows at one sequence. Everything in it stays as it is while others write."""

    sequence: int
    count: int
    item_count: int
    subject_count: int
    vector_count: int
    ids: list[str]
    label: Indices  # [>= count] row -> label of its vector
    subject: NDArray[np.int32]  # [>= count] row -> code of its subject
    unnamed: Mask  # [>= count] enrolled without a subject
    died: Indices  # [>= count] sequence, or ALIVE
    earlier: NDArray[np.int32]  # [>= count] the previous row of the same label, or NOTHING
    latest: NDArray[np.int32]  # [>= labels] label -> its newest row, or NOTHING
    names: list[str]
    codes: Mapping[str, int]
    masks: Masks

    @cached_property
    def alive(self) -> Mask:
        """[count] which rows are the present version of an item."""
        return self.died[: self.count] > self.sequence

    @cached_property
    def live_rows(self) -> Indices:
        """The rows of `alive`, ascending."""
        return np.flatnonzero(self.alive)

    @cached_property
    def subject_sizes(self) -> Indices:
        """[codes] how many live items each subject has."""
        return np.bincount(self.subject[self.live_rows], minlength=len(self.names))

    def passing(self, wanted: Filter) -> Mask:
        """[count] which live rows pass a filter."""
        return self.alive & self.masks.mask(wanted, self.count)

    def count_subjects(self, rows: Indices) -> int:
        """How many subjects these rows have."""
        seen = np.zeros(len(self.names), dtype=np.bool_)
        seen[self.subject[rows]] = True
        return int(seen.sum())

    def of_subject(self, subject: str) -> Indices:
        """The live rows of a subject."""
        code = self.codes.get(subject)
        if code is None:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero((self.subject[: self.count] == code) & self.alive)

    def subject_of(self, row: int) -> str:
        """The subject as enrolled."""
        return "" if self.unnamed[row] else self.names[self.subject[row]]

    def of_labels(self, labels: Indices) -> Indices:
        """All rows, dead ones included, whose vectors have these labels."""
        found = []
        rows = self.latest[labels]
        for _ in range(16):
            rows = rows[rows != NOTHING]
            if not len(rows):
                break
            found.append(rows[rows < self.count])
            rows = self.earlier[rows]
        else:  # thousands of items with one vector: scanning beats following the chain
            return np.flatnonzero(np.isin(self.label[: self.count], labels))
        return np.concatenate(found).astype(np.int64) if found else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class NewRow:
    """What `Rows.append` takes; `label` as given by the vectors."""

    id: str
    subject: str
    metadata: Mapping[str, MetadataValue]
    label: int


class Rows:
    """The owner of the arrays; only the writing thread calls it."""

    def __init__(self, declared: Mapping[str, MetadataType], labels: int = 0) -> None:
        """Start empty, with room for `labels` labels."""
        self._declared = dict(declared)
        self.count = 0
        self.dead = 0
        self.vector_count = 0
        self.references: NDArray[np.int32] = np.zeros(labels, dtype=np.int32)  # live rows by label
        # Graphs go on naming dead labels until they are rebuilt: those lead to nothing.
        self._latest: NDArray[np.int32] = np.full(labels, NOTHING, dtype=np.int32)
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        self._subject_items: list[int] = []
        self._subject_count = 0
        self._columns = {key: Column(kind) for key, kind in self._declared.items()}
        self._masks = Masks(self._columns)
        self._label: Indices = np.zeros(0, dtype=np.int64)
        self._subject: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._unnamed: Mask = np.zeros(0, dtype=np.bool_)
        self._died: Indices = np.zeros(0, dtype=np.int64)
        self._earlier: NDArray[np.int32] = np.zeros(0, dtype=np.int32)

    def label_of(self, item_id: str) -> int:
        """The label of a live item's vector."""
        return int(self._label[self._row_of[item_id]])

    def append(self, new: list[NewRow]) -> None:
        """Add rows. A new version of an item is appended first, then its old row is killed, so that
        a vector that both share never counts as dead in between.
        """
        if not new:
            return
        start, end = self.count, self.count + len(new)
        self._label = grown(self._label, end, NOTHING)
        self._subject = grown(self._subject, end, 0)
        self._unnamed = grown(self._unnamed, end, 0)
        self._died = grown(self._died, end, ALIVE)
        self._earlier = grown(self._earlier, end, NOTHING)
        labels = max(row.label for row in new) + 1
        self._latest = grown(self._latest, labels, NOTHING)
        self.references = grown(self.references, labels, 0)
        for row, item in enumerate(new, start):
            code = self._code(item.subject or item.id)
            self._subject_items[code] += 1
            self._subject_count += self._subject_items[code] == 1
            self.vector_count += self.references[item.label] == 0
            self.references[item.label] += 1
            self._label[row] = item.label
            self._subject[row] = code
            self._unnamed[row] = not item.subject
            self._died[row] = ALIVE
            self._earlier[row] = self._latest[item.label]
            self._latest[item.label] = row
            self._row_of[item.id] = row
            self._ids.append(item.id)
        for key, column in self._columns.items():
            column.append(start, [item.metadata.get(key) for item in new])
        self.count = end

    def row_of(self, item_id: str) -> int:
        """The live row of an item."""
        return self._row_of[item_id]

    def kill(self, row: int, sequence: int) -> int | None:
        """End a row at `sequence`; return its label if no live row holds that vector any more."""
        label, code = int(self._label[row]), int(self._subject[row])
        self._died[row] = sequence
        self.dead += 1
        if self._row_of.get(self._ids[row]) == row:
            del self._row_of[self._ids[row]]
        self._subject_items[code] -= 1
        self._subject_count -= self._subject_items[code] == 0
        self.references[label] -= 1
        if self.references[label] == 0:
            self.vector_count -= 1
            return label
        return None

    def compacted(self) -> Rows:
        """New rows without the dead ones once those are as many as the live, else self.

        Views, and a builder that reads `references`, keep what they hold.
        """
        if self.dead < max(_COMPACT_ROWS, self.count - self.dead):
            return self
        fresh = Rows(self._declared, labels=len(self.references))
        fresh.append(
            [
                NewRow(
                    id=self._ids[row],
                    subject="" if self._unnamed[row] else self._names[self._subject[row]],
                    metadata=self._values_at(self._columns, row),
                    label=int(self._label[row]),
                )
                for row in np.flatnonzero(self._died[: self.count] == ALIVE).tolist()
            ]
        )
        return fresh

    @staticmethod
    def _values_at(columns: Mapping[str, Column], row: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, column in columns.items():
            if column.present[row]:
                plain = column.values[row].item()
                values[key] = column.texts[plain] if column.kind is MetadataType.TEXT else plain
        return values

    def _code(self, subject: str) -> int:
        code = self._codes.get(subject)
        if code is None:
            code = len(self._names)
            self._names.append(subject)  # the name first: a reader may look the code up at once
            self._subject_items.append(0)
            self._codes[subject] = code
        return code

    def view(self, sequence: int) -> RowsView:
        """The rows as they stand, to be read at `sequence`."""
        return RowsView(
            sequence=sequence,
            count=self.count,
            item_count=len(self._row_of),
            subject_count=int(self._subject_count),
            vector_count=int(self.vector_count),
            ids=self._ids,
            label=self._label,
            subject=self._subject,
            unnamed=self._unnamed,
            died=self._died,
            earlier=self._earlier,
            latest=self._latest,
            names=self._names,
            codes=self._codes,
            masks=self._masks,
        )
