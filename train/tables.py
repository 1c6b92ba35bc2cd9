"""Tables of text: the records of a CSV, with the lines that they end on.

In: a UTF-8 file, separated by commas, or by tabs where it is named .tsv. Out: cells, record by
record. What cannot be read stops with its line and what to do about it.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from twinserve.errors import DataError


def records(path: Path, holds: str) -> list[tuple[int, list[str]]]:
    """Return (number of its last line, cells) of every record that is not blank.

    Args:
        path: of the file.
        holds: what it should hold, for the sentences: "pairs", or "texts and labels".

    Raises:
        DataError: no such file, a folder, not UTF-8, or not a CSV.
    """
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
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} is no CSV ({error}); quote texts that hold commas, "
            "and double the quotes within"
        ) from error
    return found
