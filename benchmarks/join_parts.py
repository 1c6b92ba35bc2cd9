r"""One table with a split column, of files that hold a part each.

    .venv/bin/python -m benchmarks.join_parts --columns sentence1,sentence2,score \
        --out stsb-en.csv train=stsb-en-train.csv report=stsb-en-dev.csv

Many data sets come as one file for training and others to measure on, without a header. What
`twinserve train` reads is one CSV whose column `split` names the part of each row; with no part
named `calibrate` it draws one of the rows that train.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path


def join(parts: Sequence[tuple[str, Path]], columns: Sequence[str], out: Path) -> int:
    """Write the rows of all files into one, and return how many there are.

    Args:
        parts: name of each part, and its file, a CSV without a header.
        columns: names of the columns that the files have.
        out: CSV with a header, the columns and `split`.

    Raises:
        ValueError: a row with another number of columns.
    """
    rows = []
    for part, path in parts:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if len(row) != len(columns):
                    raise ValueError(
                        f"line {reader.line_num} of {path} has {len(row)} columns, and --columns "
                        f"names {len(columns)}; name them all, or mend the line"
                    )
                rows.append((*row, part))
    with out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([(*columns, "split"), *rows])
    return len(rows)


def main() -> int:
    """Join the files that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="+", metavar="PART=FILE")
    parser.add_argument("--columns", required=True, help="names of the files' columns, by commas")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    parts = [(name, Path(path)) for name, _, path in (one.partition("=") for one in given.parts)]
    if not all(path.is_file() for _, path in parts):
        parser.error("each part is written PART=FILE, such as train=stsb-en-train.csv")
    try:
        print(f"{join(parts, given.columns.split(','), given.out)} rows in {given.out}")
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
