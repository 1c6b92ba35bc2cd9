"""Tables: the records of a CSV with the lines that they end on, or the rows of a Parquet.

In: a UTF-8 file, separated by commas, or by tabs where it is named .tsv; or a Parquet without
lists, whose rows count as lines, from 1. Out: cells, record by record, of the columns that are
asked for. What cannot be read stops with its line and what to do about it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinserve.arrow import arrow
from twinserve.errors import DataError
from twinserve.train.faults import Faults

SEPARATED = (".csv", ".tsv")
PARQUET = ".parquet"

# What the parts of a split are called in a column, beside their own names.
PART_WORDS = {
    "train": "train",
    **dict.fromkeys(("calibrate", "dev", "val", "valid", "validation"), "calibrate"),
    **dict.fromkeys(("report", "test"), "report"),
}


@dataclass(frozen=True)
class Column:
    """A column to find: by what was asked for, by a usual name, or by its place."""

    key: str  # the setting that names it, for the sentences
    asked: str  # a name in the header, or a number from 1; "" for none
    usual: tuple[str, ...]  # names that it often has, the likeliest first; lower case
    place: int  # where it stands without a header


@dataclass(frozen=True)
class Line:
    """One record: the cells of the columns asked for, without blanks around them."""

    number: int  # of its last line in the file
    cells: tuple[str, ...]
    part: str  # train, calibrate or report; "" where no column says


def is_table(path: Path) -> bool:
    """Whether a file is a table of items: a Parquet with a column of lists is one of vectors.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix != PARQUET or not path.is_file():
        return suffix in SEPARATED and not path.is_dir()
    pa, parquet = arrow()
    try:
        with parquet.ParquetFile(path) as file:
            return not any(pa.types.is_nested(field.type) for field in file.schema_arrow)
    except pa.ArrowException:
        return False  # its reader says what is wrong


def read_table(
    path: Path, columns: Sequence[Column], holds: str, faults: Faults, split_column: str = ""
) -> list[Line]:
    """Return the records of a table, without its header.

    The first line is a header if it holds a column's name: one asked for, or a usual one. Of three
    columns and more it takes two usual ones, since a pair may be judged "same".

    Args:
        path: of the file.
        columns: that are wanted.
        holds: what a record is, for the sentences: "one text and its label".
        faults: takes lines that lack a column or name no part.
        split_column: that names the part of each record; "" for none.

    Raises:
        DataError: as `records`; no records, no such column, or one column meant twice.
    """
    found = records(path, holds)
    if not found:
        raise DataError(f"{path} holds no lines; give {holds} a line")
    first = [cell.strip() for cell in found[0][1]]
    places = [place_of(path, first, column) for column in columns]
    for index, place in enumerate(places):
        if place in places[:index]:
            twin = columns[places.index(place)]
            raise DataError(
                f"{twin.key} and {columns[index].key} would both be column {place + 1} of {path}; "
                "say which columns they are"
            )
    if split_column:
        places.append(place_of(path, first, Column("split_column", split_column, (), 0)))
    if path.suffix.lower() == PARQUET or _is_header(first, columns, split_column):
        found = found[1:]
    lines = []
    for number, cells in found:
        if len(cells) <= max(places):
            faults.add(
                "short_line",
                f"line {number} of {path} has {len(cells)} columns, and needs {max(places) + 1}; "
                f"write {holds}, quoted where they hold commas",
            )
            continue
        taken = tuple(cells[place].strip() for place in places)
        part = ""
        if split_column:
            *values, word = taken
            taken, part = tuple(values), part_of(word)
            if not part:
                faults.add("unknown_part", f"line {number} of {path}: {no_part(word)}")
                continue
        lines.append(Line(number, taken, part))
    if not lines:
        raise DataError(f"{path} holds a header alone; give {holds} a line")
    return lines


def _is_header(first: Sequence[str], columns: Sequence[Column], split_column: str) -> bool:
    words = [cell for cell in first if not cell.isdigit()]
    asked = {split_column, *(column.asked for column in columns)} - {""}
    usual = {name for column in columns for name in column.usual}
    known = {word.lower() for word in words} & usual
    return bool({*words} & asked) or len(known) >= min(2, len(columns) - 1)


def part_of(word: str) -> str:
    """Return the part of a split that a cell names, or "" where it names none."""
    return PART_WORDS.get(word.strip().lower(), "")


def no_part(word: str) -> str:
    """Say that a cell names no part of a split."""
    return (
        f"split_column holds {word!r:.40}, which is no part; write train, calibrate (or dev, val) "
        "or report (or test)"
    )


def header(path: Path, holds: str) -> list[str]:
    """Return the cells of the first line, without blanks around them; [] of an empty file.

    Raises:
        DataError: as `records`.
    """
    found = records(path, holds, 1)
    return [cell.strip() for cell in found[0][1]] if found else []


def place_of(path: Path, first: Sequence[str], column: Column) -> int:
    """Return the index of a column: as asked for, by a usual name, or by its place.

    Raises:
        DataError: none is named as asked for.
    """
    if column.asked.isdigit() and int(column.asked) >= 1:
        return int(column.asked) - 1
    if column.asked:
        if column.asked not in first:
            raise DataError(
                f"{column.key} is {column.asked!r}, which is no column of {path}; its first line "
                f"is {', '.join(map(repr, first))[:200]}"
            )
        return first.index(column.asked)
    lowered = [cell.lower() for cell in first]
    named = (lowered.index(name) for name in column.usual if name in lowered)
    return next(named, column.place)


def records(path: Path, holds: str, most: int | None = None) -> list[tuple[int, list[str]]]:
    """Return (number of its last line, cells) of every record that is not blank.

    Of a Parquet the names of its columns come first, as a header would.

    Args:
        path: of the file.
        holds: what it should hold, for the sentences: "pairs", or "texts and labels".
        most: so many of the first records; None for all.

    Raises:
        DataError: no such file, a folder, not UTF-8, or not a CSV.
    """
    if path.suffix.lower() == PARQUET and path.is_file():
        return _rows(path, most)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give a CSV of {holds}") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); give a CSV of {holds}"
        ) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"line {line} of {path} is not UTF-8 at byte {error.start} of the file; save the file "
            "as UTF-8"
        ) from error
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((reader.line_num, cells))
            if len(found) == most:
                break
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} is no CSV ({error}); quote texts that hold commas, "
            "and double the quotes within"
        ) from error
    return found


def _rows(path: Path, most: int | None) -> list[tuple[int, list[str]]]:
    pa, parquet = arrow()
    try:
        with parquet.ParquetFile(path) as file:
            found = [(0, list(file.schema_arrow.names))]
            for batch in file.iter_batches(batch_size=most or 4096):
                columns = [column.to_pylist() for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    words = ["" if cell is None else str(cell) for cell in cells]
                    found.append((len(found), words))
                if most is not None and len(found) >= most:
                    break
    except pa.ArrowException as error:
        raise DataError(
            f"{path} is not a whole Parquet file ({' '.join(str(error).split())[:200]}); write it "
            "anew"
        ) from error
    return found[:most]
