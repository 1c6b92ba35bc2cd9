"""Files of vectors: .npz, .npy with files of its labels and ids beside it, and Parquet.

In: a path. Out: `VectorFile`, and from it `Labelled`, or the rows that a table names by number or
id. Vectors with NaN in them, and labels that are none, are refused by their row.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.arrow import arrow
from twinserve.errors import DataError
from twinserve.manifest import TensorInput
from twinserve.train.data import Labelled
from twinserve.train.faults import Faults
from twinserve.train.forms import LABEL_NAMES, ROW_NAMES
from twinserve.train.labels import classes, label_of
from twinserve.train.tables import Column, no_part, part_of, place_of

VECTOR_NAMES = ("embedding", "vector", "vectors", "features")


@dataclass(frozen=True)
class VectorFile:
    """Vectors as their file holds them; what it does not hold is None."""

    path: Path
    vectors: NDArray[Any]  # [n, *shape]
    labels: tuple[str, ...] | None  # [n]
    ids: tuple[str, ...] | None  # [n]
    parts: tuple[str, ...] | None = None  # [n], words that name the parts of the split


@dataclass(frozen=True)
class VectorColumns:
    """Settings that say where labels lie: see `TrainConfig`."""

    labels: str = ""  # file, of a .npy
    vector_column: str = ""  # of a Parquet, as the next two
    label_column: str = ""
    split_column: str = ""


def load_vectors(
    path: Path | str,
    contract: TensorInput | None = None,
    columns: VectorColumns = VectorColumns(),
    faults: Faults | None = None,
) -> Labelled:
    """Read labelled vectors: an npz with `vectors`, float32 [n, *shape], and `labels`, integers or
    words [n]; an npy with its labels in a file beside it; or a Parquet with a column of each.

    Args:
        path: of the file.
        contract: the shape and type that they must have; None takes any shape of float32.
        columns: where the labels lie.
        faults: takes rows with NaN, and labels that are none; None raises at the first.

    Raises:
        DataError: not such a file, an array missing, of another type or shape, or with NaN in it,
            or labels that are none.
        ConfigError: pyarrow is not installed.
    """
    path, faults = Path(path), faults or Faults()
    found = read_vectors(path, columns, labelled=True)
    labels = found.labels
    assert labels is not None
    vectors = _checked(found, contract)
    kept = _finite(vectors, path, faults)
    names: list[str] = []
    for row, label in enumerate(labels):
        name = label_of(label, f"row {row} of {path}", faults)
        names.append(name)
        kept[row] &= bool(name)
    parts: tuple[str, ...] = ()
    if found.parts is not None:
        parts = tuple(part_of(word) for word in found.parts)
        for row, (word, part) in enumerate(zip(found.parts, parts, strict=True)):
            if not part:
                faults.add("unknown_part", f"row {row} of {path}: {no_part(word)}")
                kept[row] = False
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise DataError(f"no vector of {path} can be used; mend it first")
    class_names, indices = classes([names[row] for row in rows])
    return Labelled(
        vectors if kept.all() else vectors[rows],
        indices,
        class_names,
        tuple(map(str, rows)),
        tuple(parts[row] for row in rows) if parts else (),
    )


def rows_named(
    path: Path | str,
    names: Sequence[str],
    faults: Faults,
    contract: TensorInput | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read the vectors that a table names: by id where the file has ids, else by number from 0.

    Args:
        path: of the file.
        names: distinct, as they stand in the table.
        faults: takes names of no vector, and vectors with NaN.
        contract: as of `load_vectors`.

    Returns:
        the vectors, [n, *shape], zero where there is none; and whether there is one, [n].

    Raises:
        DataError: as `load_vectors`.
    """
    path = Path(path)
    found = read_vectors(path, VectorColumns(), labelled=False)
    vectors = _checked(found, contract)
    if found.ids is None:
        place = {str(row): row for row in range(len(vectors))}
        known = f"rows are counted from 0 to {len(vectors) - 1}"
    else:
        place = {name: row for row, name in enumerate(found.ids)}
        known = f"its ids are like {found.ids[0]!r:.40}"
        if len(place) < len(found.ids):
            raise DataError(f"{path} holds the same id twice; ids name one vector each")
    rows = np.array([place.get(name, -1) for name in names], dtype=np.int64)
    for index in np.flatnonzero(rows < 0).tolist():
        faults.add("no_vector", f"{names[index]!r:.60} is no vector of {path}; {known}")
    chosen = vectors[np.maximum(rows, 0)]
    chosen[rows < 0] = 0
    there = _finite(chosen, path, faults, names) & (rows >= 0)
    return chosen, there


def read_vectors(path: Path, columns: VectorColumns, *, labelled: bool) -> VectorFile:
    """Read a file of vectors as it stands, whatever its kind.

    Raises:
        DataError: not such a file, or it lacks its labels where it should be `labelled`.
        ConfigError: pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if columns.split_column and suffix != ".parquet":
        raise DataError(
            f"split_column is {columns.split_column!r}, and {path} has no columns; write the "
            "labels and the column into a CSV, and name the vectors' file by `items`"
        )
    if suffix == ".parquet":
        return _of_parquet(path, columns, labelled)
    if suffix == ".npy":
        vectors = _load(path, "npy of vectors")
        labels = _beside(path, "labels", columns.labels, len(vectors), needed=labelled)
        return VectorFile(path, vectors, labels, _beside(path, "ids", "", len(vectors)))
    arrays = _load(path, "npz of vectors" + (" and labels" if labelled else ""))
    for name in ("vectors", "labels") if labelled else ("vectors",):
        if name not in arrays:
            raise DataError(
                f"{path} has no array {name!r}; save it with "
                "numpy.savez(path, vectors=vectors, labels=labels)"
            )
    count = len(np.atleast_1d(arrays["vectors"]))
    words = {
        name: _words(arrays[name], f"{name} in {path}", count)
        for name in ("labels", "ids")
        if name in arrays and (labelled or name == "ids")
    }
    return VectorFile(path, arrays["vectors"], words.get("labels"), words.get("ids"))


def _checked(file: VectorFile, contract: TensorInput | None) -> NDArray[Any]:
    vectors, path = file.vectors, file.path
    kind = "float32" if contract is None else contract.data_type
    if vectors.dtype != kind:
        raise DataError(
            f"vectors in {path} are {vectors.dtype}, they must be {kind}; "
            f"save vectors.astype(numpy.{kind})"
        )
    if vectors.ndim < 2 or 0 in vectors.shape:
        raise DataError(f"vectors in {path} have shape {vectors.shape}; give [items, coordinates]")
    if contract is not None and vectors.shape[1:] != contract.shape:
        raise DataError(
            f"vectors in {path} have shape {vectors.shape[1:]} each, the twin takes "
            f"{contract.shape}; give the vectors that it was made for"
        )
    return vectors


def _finite(
    vectors: NDArray[Any], path: Path, faults: Faults, names: Sequence[str] = ()
) -> NDArray[np.bool_]:
    """Return which vectors hold numbers alone: [n]."""
    finite: NDArray[np.bool_] = np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1)
    broken = np.flatnonzero(~finite)
    if len(broken):
        shown = ", ".join(names[row] if names else str(row) for row in broken[:10].tolist())
        faults.add(
            "nan_vectors",
            f"{len(broken)} of the vectors in {path} hold NaN or infinity, the first is row "
            f"{shown}; leave them out",
        )
    return finite


def _load(path: Path, holds: str) -> Any:
    """Return what numpy reads: an array of an .npy, a dictionary of an .npz."""
    kind = path.suffix.lower().removeprefix(".")
    save = "save(path, vectors)" if kind == "npy" else "savez(path, vectors=vectors, labels=labels)"
    try:
        # A handle of our own: numpy leaves its own open where the file is cut short.
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if kind == "npy":
                if not isinstance(loaded, np.ndarray):
                    raise ValueError("it is an archive")
                return loaded
            with loaded as arrays:
                return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give an {holds}") from error
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an {kind} of plain arrays ({str(error)[:200]}); save it "
            f"with numpy.{save}"
        ) from error


def _beside(
    path: Path, what: str, asked: str, count: int, needed: bool = False
) -> tuple[str, ...] | None:
    """Return the labels or ids of a .npy, from a file of their own."""
    usual = [path.with_name(f"{path.stem}_{what}{suffix}") for suffix in (".npy", ".txt")]
    found = [Path(asked)] if asked else [file for file in usual if file.is_file()]
    if not found:
        if needed:
            raise DataError(
                f"{path} has no {what} beside it ({usual[0].name} or {usual[1].name}); write them "
                f"there, one a vector, or name their file by `{what}`"
            )
        return None
    file = found[0]
    if file.suffix.lower() == ".npy":
        return _words(_load(file, f"npy of {what}"), f"{what} in {file}", count)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); give UTF-8 text, one a line") from error
    return _words(np.array(lines, dtype=np.str_), f"{what} in {file}", count)


def _words(values: NDArray[Any], where: str, count: int) -> tuple[str, ...]:
    """Return labels or ids as words: integers are, and text is; numbers with fractions are not."""
    if values.shape != (count,):
        raise DataError(f"{where} have shape {values.shape} for {count} vectors; give one a vector")
    if values.dtype.kind not in "iuUS":
        raise DataError(
            f"{where} are {values.dtype}, which is no type of a label; give whole numbers or words"
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return tuple(map(str, values.tolist()))


def _of_parquet(path: Path, columns: VectorColumns, labelled: bool) -> VectorFile:
    pa, parquet = arrow()
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a Parquet of vectors")
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            vector = names[_find(path, names, "columns[1]", columns.vector_column, VECTOR_NAMES)]
            wanted = {"vectors": vector}
            if labelled:
                asked = columns.label_column
                place = _find(path, names, "label_column", asked, LABEL_NAMES)
                wanted["labels"] = names[place]
                if columns.split_column:
                    place = _find(path, names, "split_column", columns.split_column, ())
                    wanted["parts"] = names[place]
            elif named := [name for name in ("id", *ROW_NAMES) if name in names]:
                wanted["ids"] = named[0]
            table = file.read(columns=list(wanted.values()))
    except pa.ArrowException as error:
        raise DataError(
            f"{path} is not a whole Parquet file ({' '.join(str(error).split())[:200]}); write it "
            "anew"
        ) from error
    words = {
        key: tuple("" if value is None else str(value) for value in table[name].to_pylist())
        for key, name in wanted.items()
        if key != "vectors"
    }
    vectors = _lists(pa, table[vector].combine_chunks(), f"{path}: column {vector}")
    return VectorFile(path, vectors, words.get("labels"), words.get("ids"), words.get("parts"))


def _find(path: Path, names: list[str], key: str, asked: str, usual: tuple[str, ...]) -> int:
    place = place_of(path, names, Column(key, asked, usual, -1))
    if not 0 <= place < len(names):
        raise DataError(
            f"{path} has the columns {', '.join(names)[:200]}, and none of them is "
            f"{' or '.join(usual) or asked}; name it by {key}"
        )
    return place


def _lists(pa: Any, column: Any, where: str) -> NDArray[np.float32]:
    """Return a column of lists of numbers as float32 [n, coordinates]."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise DataError(f"{where} holds {kind}; write lists of float32, all of one length")
    if column.null_count:
        raise DataError(f"{where} lacks {column.null_count} of its vectors; drop those rows")
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    flat = column.flatten()
    if len(lengths) != 1 or flat.null_count:
        raise DataError(
            f"{where} holds lists of {lengths.min()} to {lengths.max()} numbers, "
            f"{flat.null_count} of them missing; write lists of one length"
            if len(lengths)
            else f"{where} holds no vectors"
        )
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is named
        numbers: NDArray[np.float32] = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers.reshape(len(column), -1)
