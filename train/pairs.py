"""Judged pairs and triplets of any modality, and the batches that are drawn of them.

In: distinct items, prepared as `feed` takes them, and rows that name two or three of them. Out:
parts by row number, and batches that depend on nothing but the seed and the step. A pass goes
through all rows once, in an order of its own, before the next one begins.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError
from twinserve.feed import Rows
from twinserve.train.components import components
from twinserve.train.data import IntArray, Labelled, take

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class _Items:
    """Distinct items, and int64 [rows, k] of which of them belong together."""

    rows: Rows  # [n], as of `Labelled`
    names: tuple[str, ...]  # [n]: the text itself, the path of the picture, or the vector's name
    members: IntArray  # [rows, k], index into the items

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def components(self) -> IntArray:
        """The connected component of each item: int64 [n]."""
        return components(self.members, len(self.names))

    @cached_property
    def digest(self) -> str:
        """sha256 over names, rows and judgements; texts count as written, not as cut to tokens."""
        digest = hashlib.sha256()
        head = {"names": self.names, "members": self.members.tolist(), **self._judgements()}
        digest.update(json.dumps(head, sort_keys=True).encode())
        if isinstance(self.rows, np.ndarray):
            digest.update(f"{self.rows.dtype.str}{self.rows.shape}".encode())
            digest.update(np.ascontiguousarray(self.rows).tobytes())
        return digest.hexdigest()

    @property
    def items(self) -> Labelled:
        """The items without what joins them, each a class of its own."""
        return Labelled(self.rows, np.arange(len(self.names)), self.names, self.names)

    def _judgements(self) -> dict[str, list[float]]:
        return {}

    def _of_members(self, chosen: IntArray) -> tuple[Rows, tuple[str, ...], IntArray]:
        """Return these rows of members, over the items that they name."""
        items, members = np.unique(self.members[chosen], return_inverse=True)
        names = tuple(self.names[item] for item in items.tolist())
        return take(self.rows, items), names, members.reshape(-1, self.members.shape[1])


@dataclass(frozen=True)
class PairData(_Items):
    """Judged pairs: `members` holds the two items of each, `targets` how alike they are."""

    targets: FloatArray  # [pairs], from 0 (different) to 1 (the same)

    @property
    def binary(self) -> bool:
        """Whether pairs are the same or not, and nothing between."""
        return bool(np.isin(self.targets, (0.0, 1.0)).all())

    def of_rows(self, chosen: IntArray) -> PairData:
        """Return these pairs, int64 [k], in the order given, and no items but theirs."""
        return PairData(*self._of_members(chosen), self.targets[chosen])

    def _judgements(self) -> dict[str, list[float]]:
        return {"targets": self.targets.tolist()}


@dataclass(frozen=True)
class TripletData(_Items):
    """Triplets: `members` holds anchor, positive and negative of each."""

    def of_rows(self, chosen: IntArray) -> TripletData:
        """Return these triplets, int64 [k], in the order given, and no items but theirs."""
        return TripletData(*self._of_members(chosen))

    @property
    def pairs(self) -> PairData:
        """Each triplet as two pairs: first all (anchor, positive), then all (anchor, negative)."""
        members = np.concatenate([self.members[:, [0, 1]], self.members[:, [0, 2]]])
        targets = np.repeat(np.array([1.0, 0.0], dtype=np.float32), len(self))
        return PairData(self.rows, self.names, members, targets)


@dataclass(frozen=True)
class LinkBatch:
    """Pairs or triplets to load; all first members stand before all second ones."""

    members: IntArray  # [batch, k], index into the items
    targets: FloatArray | None  # [batch] of pairs, None of triplets

    @property
    def items(self) -> IntArray:
        """What to load, so that one call of the twin sees all: int64 [k * batch]."""
        return self.members.T.reshape(-1)

    @property
    def turns(self) -> IntArray:
        """Quarter turns, which pairs do not take: zeros, int64 [k * batch]."""
        return np.zeros(self.members.size, dtype=np.int64)


class LinkBatches:
    """Batches of pairs or triplets, each a function of the seed and the step alone.

    A balanced batch takes half of its pairs from those of the same and half from those of different
    items; the scarcer kind then comes round more often. A batch is never larger than the data.

    Args:
        data: of the training part.
        size: rows of a batch.
        balanced: see above; of pairs alone.
        seed: equal seeds give equal batches.

    Raises:
        DataError: a balanced batch of pairs that are scored, all the same or all different.
    """

    def __init__(
        self, data: PairData | TripletData, *, size: int, balanced: bool = False, seed: int = 0
    ) -> None:
        self._members = data.members
        self._targets = data.targets if isinstance(data, PairData) else None
        size = min(size, len(data))
        pools = [np.arange(len(data))]
        if balanced:
            pools = _kinds(data)
        shares = [size - size // 2, size // 2] if balanced else [size]
        self._passes = [
            _Passes(pool, share, [seed, index])
            for index, (pool, share) in enumerate(zip(pools, shares, strict=True))
        ]

    def __getitem__(self, step: int) -> LinkBatch:
        rows = np.concatenate([one[step] for one in self._passes])
        return LinkBatch(
            self._members[rows], None if self._targets is None else self._targets[rows]
        )


class _Passes:
    """Endless passes over some rows, so many a step; each row once a pass."""

    def __init__(self, rows: IntArray, share: int, seed: list[int]) -> None:
        self._rows = rows
        self._share = share
        self._seed = seed
        self._order: tuple[int, IntArray] = (-1, rows)  # of the pass drawn last

    def __getitem__(self, step: int) -> IntArray:
        found = []
        start, lacking = step * self._share, self._share
        while lacking:
            number, place = divmod(start, len(self._rows))
            part = self._pass(number)[place : place + lacking]
            found.append(part)
            start, lacking = start + len(part), lacking - len(part)
        return np.concatenate(found) if found else self._rows[:0]

    def _pass(self, number: int) -> IntArray:
        if self._order[0] != number:
            generator = np.random.default_rng([*self._seed, number])
            self._order = number, generator.permutation(self._rows)
        return self._order[1]


def _kinds(data: PairData | TripletData) -> list[IntArray]:
    """Return the rows of pairs of the same items, and of those of different ones."""
    if not isinstance(data, PairData) or not data.binary:
        raise DataError(
            "balanced_pairs needs pairs judged 0 or 1, and these are "
            f"{'scored' if isinstance(data, PairData) else 'triplets'}; unset it"
        )
    kinds = [np.flatnonzero(data.targets == target) for target in (1.0, 0.0)]
    if not all(len(kind) for kind in kinds):
        raise DataError(
            f"balanced_pairs needs pairs of both kinds, and there are {len(kinds[0])} of the same "
            f"and {len(kinds[1])} of different items; add the others, or unset it"
        )
    return kinds
