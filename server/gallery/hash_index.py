"""A map from 64-bit keys to small numbers in two flat arrays, of 12 bytes a slot.

Open addressing (Knuth, The Art of Computer Programming 3, 6.4), whole batches at a time. A key's
probes go 1, 3, 6, 10 … slots on, which meets every slot of a table whose size is a power of two
and gathers no long runs: a batch takes as many passes as its longest chain has probes. One thread
writes, others may look up meanwhile: a slot's key is written before its value, a value never moves
within a table, and a larger table is put in place by one assignment.

Keys are digests: whoever needs certainty compares what lies behind the value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Indices = NDArray[np.int64]

NOTHING = -1
_EMPTY = -1  # the end of every chain of probes
_GONE = -2  # taken once: chains go on behind it
_FULLEST = 0.6  # of the slots, those that are gone included
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio: consecutive keys end up far apart
_PIECE = 16_384
_MOST = np.iinfo(np.int32).max


class HashIndex:
    """Keys [n] -> values [n], 0 <= value < 2^31."""

    def __init__(self, expected: int = 0) -> None:
        """Start empty, with room for `expected` keys."""
        self._count = 0  # slots in use
        self._gone = 0
        self._table = _table(expected)

    def __len__(self) -> int:
        return self._count

    def items(self) -> tuple[Keys, Indices]:
        """All keys and their values, in no order."""
        table_keys, table_values = self._table
        used = table_values >= 0
        return table_keys[used], table_values[used].astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes that the table takes."""
        return sum(array.nbytes for array in self._table)

    def get(self, keys: Keys) -> Indices:
        """Values of keys [n]; NOTHING where a key is not there."""
        table_keys, table_values = self._table
        mask = np.uint64(len(table_keys) - 1)
        found = np.full(len(keys), NOTHING, dtype=np.int64)
        open_ = np.arange(len(keys))
        slots, step = _first_slots(keys, mask), np.uint64(1)
        while len(open_):
            values = table_values[slots]
            same = (table_keys[slots] == keys[open_]) & (values >= 0)
            found[open_[same]] = values[same]
            go_on = ~same & (values != _EMPTY)
            open_, slots = open_[go_on], (slots[go_on] + step) & mask
            step += np.uint64(1)
        return found

    def put(self, keys: Keys, values: Indices) -> None:
        """Add keys [n], which are distinct and not there yet."""
        if not len(keys):
            return
        if int(values.max()) > _MOST:
            raise OverflowError(f"{int(values.max())} does not fit an index of 31 bits")
        if self._count + self._gone + len(keys) > _FULLEST * len(self._table[0]):
            self._rebuild(self._count + len(keys))
        _insert(self._table, keys, values)
        self._count += len(keys)

    def drop(self, keys: Keys) -> None:
        """Remove keys [n]; those that are not there are nothing."""
        table_keys, table_values = self._table
        mask = np.uint64(len(table_keys) - 1)
        open_, slots, step = keys, _first_slots(keys, mask), np.uint64(1)
        while len(open_):
            values = table_values[slots]
            same = (table_keys[slots] == open_) & (values >= 0)
            table_values[slots[same]] = _GONE
            gone = int(np.count_nonzero(same))
            self._count -= gone
            self._gone += gone
            go_on = ~same & (values != _EMPTY)
            open_, slots = open_[go_on], (slots[go_on] + step) & mask
            step += np.uint64(1)

    def _rebuild(self, expected: int) -> None:
        table_keys, table_values = self._table
        fresh = _table(expected)
        for start in range(0, len(table_keys), _PIECE):  # other threads get their turn in between
            keys, values = table_keys[start : start + _PIECE], table_values[start : start + _PIECE]
            used = values >= 0
            _insert(fresh, keys[used], values[used].astype(np.int64))
        self._table, self._gone = fresh, 0


def _table(expected: int) -> tuple[Keys, NDArray[np.int32]]:
    size = 16
    while size * _FULLEST <= expected:
        size *= 2
    return np.zeros(size, dtype=np.uint64), np.full(size, _EMPTY, dtype=np.int32)


def _first_slots(keys: Keys, mask: np.uint64) -> Keys:
    mixed = keys * _SPREAD  # modulo 2^64, as products of arrays are
    return (mixed ^ (mixed >> np.uint64(32))) & mask


def _insert(table: tuple[Keys, NDArray[np.int32]], keys: Keys, values: Indices) -> None:
    table_keys, table_values = table
    mask = np.uint64(len(table_keys) - 1)
    slots, step = _first_slots(keys, mask), np.uint64(1)
    while len(keys):
        free = table_values[slots] < 0
        # Several keys may want one slot: the last that wrote its key there has it.
        table_keys[slots[free]] = keys[free]
        won = free & (table_keys[slots] == keys)
        table_values[slots[won]] = values[won]
        lost = ~won
        keys, values, slots = keys[lost], values[lost], (slots[lost] + step) & mask
        step += np.uint64(1)
