"""Files of judged pairs, as their rows stand there.

In: a CSV with the columns first, second and same (or score), with or without a header, or an npz
with arrays of these names. Out: one `Judged` per row, its items still named rather than read.
Nothing is passed over in silence: a row that cannot be used stops the reading, with its line.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError
from twinserve.feed import Row
from twinserve.manifest import TensorInput
from twinserve.train.tables import records

ENDS, JUDGEMENTS, SUBJECTS = (
    ("first", "second"),
    ("same", "score"),
    ("first_subject", "second_subject"),
)
COLUMNS = (*ENDS, *JUDGEMENTS, *SUBJECTS)
_WORDS = {
    **dict.fromkeys(("1", "1.0", "yes", "true"), 1.0),
    **dict.fromkeys(("0", "0.0", "no", "false"), 0.0),
}
_SHOWN_FAULTS = 3


@dataclass(frozen=True)
class Judged:
    """One pair as it stands in the file."""

    where: str  # such as line 3
    ends: tuple[str, str]
    score: float  # of a yes or no 1 and 0
    subjects: tuple[str, str] | None


def of_table(path: Path, same_above: float | None) -> list[Judged]:
    """Return the pairs of a CSV, or of a .tsv, split at tabs.

    Args:
        path: of the file.
        same_above: from this score on a pair counts as the same; None where it is judged yes or no.

    Raises:
        DataError: no such file, an unknown column, a judgement that is none, rows that cannot be
            used; with their lines.
    """
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; --pairs takes a CSV, and --data a folder of labelled pictures"
        )
    rows = records(path, "pairs")
    if not rows:
        return []
    first_line, head = rows[0]
    names = [cell.strip().lower() for cell in head]
    if len(set(names) & set(COLUMNS)) >= 2:  # one of them may be a text's whole content
        _check_columns(f"line {first_line} of {path}", names)
        rows = rows[1:]
    else:
        _check_pair(path, head, first_line, same_above)
        names = list((*ENDS, "same", *SUBJECTS)[: len(head)])
    if "score" in names and same_above is None:
        raise DataError(
            f"{path} judges its pairs by a score; say from which one on a pair counts as the same, "
            "such as --same-above 4"
        )
    place = {name: index for index, name in enumerate(names)}
    judgement = place["score"] if "score" in place else place["same"]
    judged, faults = [], []
    for line, cells in rows:
        if len(cells) != len(names):
            faults.append(f"line {line}: it has {len(cells)} columns, not {len(names)}")
            continue
        try:
            score = _judgement(cells[judgement], same_above)
        except ValueError as error:
            faults.append(f"line {line}: {error}")
            continue
        subjects = None
        if SUBJECTS[0] in place:
            subjects = (cells[place[SUBJECTS[0]]].strip(), cells[place[SUBJECTS[1]]].strip())
            if not all(subjects):
                faults.append(f"line {line}: a subject is empty")
                continue
        ends = (cells[place["first"]], cells[place["second"]])
        judged.append(Judged(f"line {line}", ends, score, subjects))
    refuse(path, faults, len(rows), "rows")
    return judged


def _check_pair(path: Path, cells: Sequence[str], line: int, same_above: float | None) -> None:
    """Refuse a first row that is neither a header nor a pair."""
    header = f"a header names its columns {', '.join(COLUMNS)}"
    if len(cells) not in (3, 5):
        raise DataError(
            f"line {line} of {path} has {len(cells)} columns; without a header a pair has 3 "
            f"(first, second, same) or 5 (with the two subjects), and {header}"
        )
    try:
        _judgement(cells[2], same_above)
    except ValueError as error:
        raise DataError(
            f"line {line} of {path} is neither a pair ({error}) nor a header; {header}"
        ) from error


def _check_columns(where: str, names: Sequence[str]) -> None:
    known = f"known ones are {', '.join(COLUMNS)}"
    for index, name in enumerate(names):
        if name not in COLUMNS:
            raise DataError(f"{where}: column {name!r:.60} is unknown; {known}")
        if name in names[:index]:
            raise DataError(f"{where}: column {name!r} stands there twice")
    missing = [name for name in ENDS if name not in names]
    if len({*JUDGEMENTS} & {*names}) != 1:
        missing.append("same (or score, and only one of them)")
    if len({*SUBJECTS} & {*names}) == 1:
        missing += [name for name in SUBJECTS if name not in names]
    if missing:
        raise DataError(f"{where}: column {missing[0]} is missing; {known}")


def _judgement(cell: str, same_above: float | None) -> float:
    """Read one judgement; ValueError where it is none."""
    cell = cell.strip()
    if same_above is None:
        if cell.lower() not in _WORDS:
            raise ValueError(
                f"same is {cell!r:.40}, which is neither 0 or 1 nor yes or no; a score needs "
                "--same-above"
            )
        return _WORDS[cell.lower()]
    try:
        score = float(cell)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"the score is {cell!r:.40}, which is no number")
    return score


def of_arrays(
    path: Path, contract: TensorInput, same_above: float | None
) -> tuple[list[Judged], dict[str, Row]]:
    """Return the pairs of an npz, and its items by the place where each first stands.

    Raises:
        DataError: as `of_table`; or arrays that the twin does not take.
    """
    arrays = _arrays(path)
    names = list(arrays)
    _check_columns(str(path), names)
    count = len(arrays["first"])
    for name, array in arrays.items():
        if len(array) != count:
            raise DataError(f"{name} in {path} has {len(array)} rows, and first has {count}")
        if name in ENDS:
            wanted = (count, *contract.shape)
            if array.shape != wanted or array.dtype != np.dtype(contract.data_type):
                raise DataError(
                    f"{name} in {path} is {array.dtype} {list(array.shape)}; "
                    f"this twin takes {contract.data_type} {list(wanted)}"
                )
            bad = np.flatnonzero(~np.isfinite(array.reshape(count, -1)).all(axis=1))
            if len(bad):
                raise DataError(f"{name}[{bad[0]}] in {path} holds a NaN or an infinity")
        elif array.ndim != 1:
            raise DataError(f"{name} in {path} is {list(array.shape)}, not one value per pair")
    if "score" in names and same_above is None:
        raise DataError(f"{path} judges its pairs by a score; give --same-above")
    known: dict[bytes, str] = {}
    rows: dict[str, Row] = {}
    ends: dict[str, list[str]] = {name: [] for name in ENDS}
    for end in ENDS:
        for index, row in enumerate(arrays[end]):
            name = known.setdefault(row.tobytes(), f"{end}[{index}]")
            rows.setdefault(name, row)
            ends[end].append(name)
    judgements = arrays["score" if "score" in names else "same"]
    judged, faults = [], []
    for index in range(count):
        try:
            score = _judgement(str(judgements[index].item()), same_above)
        except ValueError as error:
            faults.append(f"row {index}: {error}")
            continue
        subjects = None
        if SUBJECTS[0] in arrays:
            subjects = (str(arrays[SUBJECTS[0]][index]), str(arrays[SUBJECTS[1]][index]))
        judged.append(
            Judged(f"row {index}", (ends["first"][index], ends["second"][index]), score, subjects)
        )
    refuse(path, faults, count, "rows")
    return judged, rows


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        # Opened here, since numpy leaves the file open where it turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: np.atleast_1d(archive[name]) for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give an npz of pairs") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an npz ({str(error)[:120]})") from error


def refuse(path: Path, faults: Sequence[str], count: int, what: str) -> None:
    """Refuse a file of whose `count` rows or items some cannot be used, naming the first.

    Raises:
        DataError: where there are faults.
    """
    if not faults:
        return
    shown = "; ".join(faults[:_SHOWN_FAULTS])
    more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
    raise DataError(f"{len(faults)} of {count} {what} of {path} cannot be used: {shown}{more}")
