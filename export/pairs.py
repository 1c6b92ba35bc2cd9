"""Judged pairs as a twin takes them.

In: a file of judged pairs (its items are texts inline, paths of pictures from the file's folder, or
vectors), or the calibrate part of a run. Out: distinct items, each prepared once, and which of them
each pair joins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings
from twinserve.errors import DataError, InvalidInput
from twinserve.export.calibrations import JudgedPairs
from twinserve.export.dependence import vertices
from twinserve.export.judged import Judged, of_arrays, of_table, refuse
from twinserve.feed import Row
from twinserve.manifest import ImageInput, InputContract, TensorInput, TextInput
from twinserve.preprocess import decode_image
from twinserve.tokens import Tokenizer
from twinserve.train.pairs import PairData

IntArray = NDArray[np.int64]
Prepare = Callable[[str], Row]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Judged pairs of distinct items; no pair stands here twice, and none joins an item to itself.

    Pairs of an item with itself are left out: their distance of zero says nothing of the twin.
    """

    rows: list[Row]  # [items]
    names: tuple[str, ...]  # [items]: the text, the path, or the place in the file
    first: IntArray  # [n], index into the items
    second: IntArray  # [n]
    same: NDArray[np.bool_]  # [n]
    subjects: IntArray | None  # [items], where the file names them
    digest: str

    def __len__(self) -> int:
        return len(self.same)

    def joined(self, embeddings: Embeddings) -> JudgedPairs:
        """Return the pairs with the embeddings of their items, float32 [items, dimension]."""
        return JudgedPairs(
            first=embeddings[self.first],
            second=embeddings[self.second],
            same=self.same,
            vertices=vertices(self.first, self.second, self.same, self.subjects),
        )


def read_pairs(
    path: Path | str,
    contract: InputContract,
    tokenizer: Tokenizer | None = None,
    *,
    same_above: float | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Pairs:
    """Read judged pairs and prepare their items.

    Args:
        path: a CSV (a .tsv is split at tabs), or an npz for a tensor twin.
        contract: of the twin.
        tokenizer: of a text twin.
        same_above: pairs are judged by a score, and from this one on they count as the same.
        advance: is told how many more items are prepared.

    Raises:
        DataError: not such a file, an unknown column, a judgement that is none, rows that cannot be
            used (with their lines), or a pair judged both ways.
    """
    path = Path(path)
    if isinstance(contract, TensorInput):
        if path.suffix.lower() != ".npz":
            raise DataError(
                f"{path} is no .npz; this twin takes vectors, so its pairs come as one, with the "
                "arrays first, second and same"
            )
        judged, vectors = of_arrays(path, contract, same_above)
        prepare: Prepare = vectors.__getitem__

    else:
        if path.suffix.lower() in (".npz", ".npy"):
            raise DataError(
                f"{path} holds arrays; this twin takes "
                f"{'pictures' if isinstance(contract, ImageInput) else 'texts'}, so its pairs come "
                "as a CSV with the columns first, second and same"
            )
        judged = of_table(path, same_above)
        prepare = _preparer(path, contract, tokenizer)
    if not judged:
        raise DataError(f"{path} holds no pairs; give a row per pair: first, second, same")
    return _gathered(path, _distinct(path, judged, same_above), prepare, advance)


def pairs_of(data: PairData) -> Pairs:
    """Take pairs of a run as they are to calibrate; their targets are 0 or 1.

    A pair that stands there several times counts once, and one judged both ways not at all.
    """
    ends = np.sort(data.members, axis=1)
    known, first, place = np.unique(ends, axis=0, return_index=True, return_inverse=True)
    times = np.bincount(place.reshape(-1))
    share = np.bincount(place.reshape(-1), weights=data.targets) / times
    kept = np.isin(share, (0.0, 1.0)) & (known[:, 0] != known[:, 1])
    chosen = np.sort(first[kept])  # in the order of the data
    kept_ends, same = data.members[chosen], data.targets[chosen] == 1.0
    rows = list(data.rows)
    return Pairs(
        rows=rows,
        names=data.names,
        first=kept_ends[:, 0].copy(),
        second=kept_ends[:, 1].copy(),
        same=same,
        subjects=None,
        digest=_digest(rows, kept_ends, same),
    )


@dataclass(frozen=True)
class _Pair:
    """Two different items, judged once."""

    where: str
    ends: tuple[str, str]
    same: bool
    subjects: tuple[str, str] | None


def _gathered(
    path: Path, kept: Sequence[_Pair], prepare: Prepare, advance: Callable[[int], None]
) -> Pairs:
    places: dict[str, int] = {}
    wheres: list[str] = []
    for pair in kept:
        for name in pair.ends:
            if places.setdefault(name, len(places)) == len(wheres):
                wheres.append(pair.where)
    rows, faults = [], []
    for name, where in zip(places, wheres, strict=True):
        try:
            rows.append(prepare(name))
        except InvalidInput as error:
            faults.append(f"{where}: {error.message}")
        advance(1)
    refuse(path, faults, len(places), "items")
    ends = np.array([[places[name] for name in pair.ends] for pair in kept], dtype=np.int64)
    same = np.array([pair.same for pair in kept], dtype=np.bool_)
    return Pairs(
        rows=rows,
        names=tuple(places),
        first=ends[:, 0].copy(),
        second=ends[:, 1].copy(),
        same=same,
        subjects=_subjects(path, kept, places),
        digest=_digest(rows, ends, same),
    )


def _digest(rows: Sequence[Row], ends: IntArray, same: NDArray[np.bool_]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest())
    digest.update(ends.tobytes() + same.tobytes())
    return digest.hexdigest()


def _distinct(path: Path, judged: Sequence[Judged], same_above: float | None) -> list[_Pair]:
    """Keep each pair once, whichever way round it stands, and none of an item with itself.

    Of a pair that was scored several times the mean counts.
    """
    least = 1.0 if same_above is None else same_above
    together: dict[tuple[str, ...], list[Judged]] = {}
    for pair in judged:
        if pair.ends[0] != pair.ends[1]:
            together.setdefault(tuple(sorted(pair.ends)), []).append(pair)
        elif pair.score < least:
            raise DataError(
                f"{pair.where} of {path} calls {pair.ends[0]!r:.60} different from itself; "
                "are the judgements what they seem?"
            )
    kept = []
    for one, *others in together.values():
        for other in others:
            if same_above is None and other.score != one.score:
                raise DataError(
                    f"{one.where} and {other.where} of {path} judge one pair both ways, "
                    f"{one.ends[0]!r:.40} and {one.ends[1]!r:.40}; keep the right one"
                )
        score = sum(pair.score for pair in (one, *others)) / (1 + len(others))
        kept.append(_Pair(one.where, one.ends, score >= least, one.subjects))
    return kept


def _subjects(path: Path, kept: Sequence[_Pair], places: dict[str, int]) -> IntArray | None:
    if not kept or kept[0].subjects is None:
        return None
    numbers: dict[str, int] = {}
    found = np.full(len(places), -1, dtype=np.int64)
    for pair in kept:
        one, other = pair.subjects or ("", "")
        if (one == other) != pair.same:
            raise DataError(
                f"{pair.where} of {path} calls the pair {'the same' if pair.same else 'different'} "
                f"and names the subjects {one!r:.40} and {other!r:.40}; keep what is right"
            )
        for name, subject in zip(pair.ends, (one, other), strict=True):
            number = numbers.setdefault(subject, len(numbers))
            if found[places[name]] not in (-1, number):
                raise DataError(
                    f"{pair.where} of {path} gives {name!r:.60} the subject {subject!r:.40}, "
                    "and an earlier line another one; an item has one subject"
                )
            found[places[name]] = number
    return found


def _preparer(path: Path, contract: ImageInput | TextInput, tokenizer: Tokenizer | None) -> Prepare:
    if isinstance(contract, TextInput):
        if tokenizer is None:
            raise DataError("a text twin's pairs need its tokenizer, and the file holds none")
        known = tokenizer
        return lambda text: known.encode(text).ids

    def picture(name: str) -> Row:
        try:
            return decode_image((path.parent / name).read_bytes(), contract)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(
                f"{name!r:.80} cannot be read ({reason}); this twin takes pictures, so first and "
                f"second are paths from the folder of {path.name}"
            ) from error

    return picture
