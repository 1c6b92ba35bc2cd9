"""Readers of tables of pairs and triplets: items named once, and rows that join them.

In: a CSV whose cells are texts, paths of pictures, or rows of a file of vectors. Out: `Links`,
their items still named; then `PairData` or `TripletData`, with the items read as serving would.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError
from twinserve.feed import Rows
from twinserve.manifest import ImageInput, InputContract, TensorInput
from twinserve.tokens import Tokenizer
from twinserve.train.config import TrainConfig
from twinserve.train.data import IntArray
from twinserve.train.faults import Faults
from twinserve.train.forms import Kind, columns_of
from twinserve.train.pairs import FloatArray, PairData, TripletData
from twinserve.train.readers import decode_all, encode_all, pictures_beside
from twinserve.train.tables import read_table
from twinserve.train.vectors import rows_named

_SAME = ("1", "1.0", "same", "yes", "true")
_DIFFERENT = ("0", "0.0", "different", "no", "false")


@dataclass(frozen=True)
class Links:
    """Pairs or triplets as their table has them."""

    names: tuple[str, ...]  # [n] distinct items, in the table's order
    members: IntArray  # [rows, 2 or 3], index into the names
    targets: FloatArray | None  # [rows] of pairs, from 0 to 1; None of triplets
    lines: IntArray  # [rows], in the file
    parts: tuple[str, ...] = ()  # [rows] that the table names; empty where it names none

    def __len__(self) -> int:
        return len(self.members)

    @property
    def form(self) -> str:
        """What the rows are: pairs or triplets."""
        return "triplets" if self.targets is None else "pairs"

    def of_rows(self, rows: IntArray) -> Links:
        """Return some rows, int64 [k] in the order given; all names stay."""
        return Links(
            self.names,
            self.members[rows],
            None if self.targets is None else self.targets[rows],
            self.lines[rows],
            tuple(self.parts[row] for row in rows.tolist()) if self.parts else (),
        )

    def without(self, there: NDArray[np.bool_]) -> Links:
        """Leave out the rows with an item that is not there, [n]."""
        return self if there.all() else self.of_rows(np.flatnonzero(there[self.members].all(1)))

    def data(self, rows: Rows) -> PairData | TripletData:
        """Join the rows that were read for the names, and leave out items that no row needs."""
        if self.targets is None:
            whole: PairData | TripletData = TripletData(rows, self.names, self.members)
        else:
            whole = PairData(rows, self.names, self.members, self.targets)
        used = len(np.unique(self.members))
        return whole if used == len(self.names) else whole.of_rows(np.arange(len(self)))


def read_links(kind: Kind, config: TrainConfig, faults: Faults | None = None) -> Links:
    """Read a table of pairs or triplets.

    Args:
        kind: of the data, as `kind_of` tells.
        config: names path, columns and the scores' range.
        faults: takes lines that cannot be used; None raises at the first.

    Raises:
        DataError: not such a table; an empty item, or a judgement outside its range.
    """
    path, faults = Path(config.data), faults or Faults()
    columns = columns_of(kind, config)
    holds = (
        "two items and their judgement"
        if kind.form == "pairs"
        else ("an anchor, a positive and a negative")
    )
    place: dict[str, int] = {}
    members, targets, numbers, parts = [], [], [], []
    for line in read_table(path, columns, holds, faults, config.split_column):
        where = f"line {line.number} of {path}"
        items = line.cells[:2] if kind.form == "pairs" else line.cells
        if not all(items):
            faults.add("empty_item", f"{where} has an empty item; leave the line out")
            continue
        if kind.form == "pairs":
            target = _target(line.cells[2], where, config, faults)
            if target is None:
                continue
            targets.append(target)
        members.append([place.setdefault(item, len(place)) for item in items])
        numbers.append(line.number)
        parts.append(line.part)
    if not members:
        raise DataError(f"{path} holds no line that can be used; write {holds} a line")
    return Links(
        tuple(place),
        np.array(members, dtype=np.int64),
        np.array(targets, dtype=np.float32) if kind.form == "pairs" else None,
        np.array(numbers, dtype=np.int64),
        tuple(parts) if config.split_column else (),
    )


def read_items(
    links: Links,
    contract: InputContract,
    tokenizer: Tokenizer | None,
    config: TrainConfig,
    faults: Faults | None = None,
) -> tuple[Rows, NDArray[np.bool_]]:
    """Read the items of a table as a twin takes them.

    Args:
        links: name them.
        contract: of the twin.
        tokenizer: of a text twin.
        config: names the table, the vectors' file, and how many pictures may be broken.
        faults: takes items that cannot be read; None raises.

    Returns:
        the rows, [n]; and whether each could be read, [n]. One that could not is all zeros.

    Raises:
        DataError: items that cannot be read.
    """
    faults = faults or Faults()
    everything = np.ones(len(links.names), dtype=np.bool_)
    if isinstance(contract, ImageInput):
        table = Path(config.data)
        pixels = decode_all(
            pictures_beside(table, links.names),
            contract,
            str(table),
            config.max_broken_images,
            faults,
        )
        shape = (contract.height, contract.width, contract.channels)
        blank = np.zeros(shape, dtype=np.uint8)
        there = np.array([name in pixels for name in links.names])
        return np.stack([pixels.get(name, blank) for name in links.names]), there
    if isinstance(contract, TensorInput):
        shaped = contract if contract.shape else None
        return rows_named(config.items, links.names, faults, shaped)
    if tokenizer is None:
        raise DataError("texts need the twin's tokenizer, and there is none; train again")
    return encode_all(links.names, tokenizer), everything


def identities(names: Sequence[str], rows: Rows | None = None) -> IntArray:
    """Number items so that equal ones have equal numbers: int64 [n].

    Texts are equal when they differ in case, blanks and Unicode form alone; pictures and vectors
    when all their values are.

    Args:
        names: the texts themselves, where there are no rows.
        rows: pixels or vectors, [n, ...].
    """
    known: dict[str | bytes, int] = {}
    if rows is None:
        keys: list[str] | list[bytes] = [normalised(name) for name in names]
    else:
        keys = [hashlib.blake2b(np.ascontiguousarray(row).tobytes()).digest() for row in rows]
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def normalised(text: str) -> str:
    """Return a text without the differences that do not count: case, blanks, Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _target(cell: str, where: str, config: TrainConfig, faults: Faults) -> float | None:
    """Return a judgement from 0 to 1; None where it is none."""
    word = cell.lower()
    if not config.score_range:
        if word in _SAME or word in _DIFFERENT:
            return float(word in _SAME)
        faults.add(
            "bad_judgement",
            f"{where} judges {cell!r:.40}, which is neither 0 or 1 nor same or different; where "
            "pairs have scores, set score_range=0..5 (say)",
        )
        return None
    least, most = config.scores
    try:
        score = float(cell)
    except ValueError:
        score = math.nan
    if not least <= score <= most:
        faults.add(
            "bad_judgement",
            f"{where} has the score {cell!r:.40}, which does not lie in score_range "
            f"{config.score_range}; mend it, or set another range",
        )
        return None
    return (score - least) / (most - least)
