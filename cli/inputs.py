"""From command line arguments to inputs: pictures in files and folders, or texts.

A folder stands for all pictures below it, in the order of their paths, and a pattern such as
"photos/**/*.jpg" for the files that are named like it, also where the shell was kept from expanding
it. `-` reads a list from standard input, `--csv` a column of a table. Files named one by one are
taken whatever their ending; the server judges their content.
"""

from __future__ import annotations

import argparse
import csv
import glob
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from twinserve.cli.exit_codes import FAULT, NO, OK
from twinserve.errors import ConfigError, DataError, TwinserveError
from twinserve.suggestions import did_you_mean

T = TypeVar("T")
A = TypeVar("A")

_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"))


def add_text_flag(parser: argparse.ArgumentParser) -> None:
    """Add --text, which turns the inputs from paths into texts."""
    parser.add_argument(
        "--text", action="store_true", help="the inputs are texts, not paths of pictures"
    )


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Add --csv, --column and -0: other places to take inputs from than the arguments."""
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="take inputs from a column of this table, too"
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="of --csv: paths (from the table's folder) or, with --text, texts (path, text, or the "
        "only one)",
    )
    add_null_flag(parser)


def add_null_flag(parser: argparse.ArgumentParser) -> None:
    """Add -0, for lists of `find -print0`."""
    parser.add_argument(
        *("-0", "--null"),
        action="store_true",
        help="with the input -, which reads a list from standard input: entries end in NUL, as of "
        "find -print0, instead of line ends",
    )


def add_prompt_flag(parser: argparse.ArgumentParser) -> None:
    """Add --prompt, the name of the prompt that is put before texts."""
    parser.add_argument(
        "--prompt",
        metavar="NAME",
        help="with texts: one of the model's prompts, put before each; '' for none (the model's "
        "default)",
    )


def check_prompt(arguments: argparse.Namespace) -> None:
    """Refuse a prompt without texts to put it before.

    Raises:
        ConfigError: as said.
    """
    if arguments.prompt is not None and not arguments.text:
        raise ConfigError(
            f"--prompt {arguments.prompt!r} was given without --text, and only texts take one; "
            "leave it out, or give --text"
        )


def add_batch_flag(parser: argparse.ArgumentParser) -> None:
    """Add --batch, the number of items in one call."""
    parser.add_argument(
        "--batch",
        type=positive,
        default=64,
        metavar="N",
        help="items in one call (%(default)s)",
    )


def positive(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def size(text: str) -> int:
    """Parse a number of bytes such as 512M or 10GiB (of 1024 each), for argparse."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no size; give bytes, or 512M, or 10GiB")
    return int(found[1]) << _UNITS[found[2].upper()]


def one(argument: str, *, text: bool) -> Path | str:
    """Return one input: a text, or the path of a picture.

    Raises:
        DataError: no such file, or a folder.
    """
    if text:
        return argument
    path = Path(argument)
    if path.is_dir():
        raise DataError(f"{path} is a folder; name one picture, or give --text for a text")
    if path.suffix.lower() == ".csv":
        raise DataError(f"{path} is a table and no picture; give --csv {path}")
    if not path.exists():
        raise DataError(f"{path} does not exist; name a picture, or give --text for a text")
    return path


def several(arguments: Sequence[str], *, text: bool, null: bool = False) -> list[Path | str]:
    """Return the inputs in order: folders and patterns replaced by pictures, - by what it reads.

    Args:
        arguments: paths, patterns such as "photos/**/*.jpg", texts, or - for standard input.
        text: whether they are texts.
        null: whether standard input has NUL between its entries, instead of line ends.

    Raises:
        DataError: a path that does not exist, or a folder or pattern without pictures.
    """
    found: list[Path | str] = []
    for argument in arguments:
        named = _standard_input(null) if argument == "-" else [argument]
        if text:
            found.extend(named)
        else:
            for path in named:
                found.extend(pictures(path))
    return found


def gathered(arguments: argparse.Namespace, named: Sequence[str]) -> list[Path | str]:
    """Return all inputs that the flags of `add_source_flags` and the arguments name.

    Raises:
        ConfigError: none.
        DataError: one that cannot be found.
    """
    if arguments.column and arguments.csv is None:
        raise ConfigError(f"--column {arguments.column} was given without --csv; name the file")
    found = several(named, text=arguments.text, null=arguments.null)
    if arguments.csv is not None:
        found += column_of(arguments.csv, arguments.column, text=arguments.text)
    if not found:
        check_order(arguments)
        raise ConfigError(
            "there is no input; name a picture, a folder, a pattern in quotes, --text with texts, "
            "--csv, or - for a list on standard input"
        )
    return found


def check_order(arguments: argparse.Namespace) -> None:
    """Refuse a file where the gallery is due, of a verb that was given nothing else.

    Raises:
        ConfigError: as said.
    """
    gallery = getattr(arguments, "gallery", "")
    if gallery and Path(gallery).exists():
        raise ConfigError(f"{gallery} stands where the gallery is due; name the gallery before it")


def pictures(argument: str) -> list[Path]:
    """Return the pictures that an argument stands for: a file, a folder, or a pattern.

    Raises:
        DataError: none.
    """
    path = Path(argument)
    if path.is_dir():
        return pictures_below(path)
    if is_pattern(argument):
        found = sorted(Path(name) for name in glob.iglob(argument, recursive=True))
        files = [one for one in found if one.is_file()]
        if not files:
            raise DataError(f"no file is named like {argument}")
        return files
    return [Path(one(argument, text=False))]


def is_pattern(argument: str) -> bool:
    """Say whether an argument is a pattern, and not the odd name of a file that there is."""
    return glob.has_magic(argument) and not Path(argument).exists()


def fixed_part(pattern: str) -> Path:
    """Return the folder in which all files lie that a pattern can name."""
    fixed = []
    for part in Path(pattern).parent.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def column_of(table: Path, column: str | None, *, text: bool) -> list[Path | str]:
    """Return the cells of one column: texts, or paths of pictures from the table's folder.

    Raises:
        DataError: no such column, or an empty cell.
    """
    header, rows = read_table(table)
    name = column or (header[0] if len(header) == 1 else "text" if text else "path")
    if name not in header:
        other = "path" if text else "text"
        hint = did_you_mean(name, header)
        if column is None and other in header:
            hint = "; leave --text out" if text else "; give --text for its texts"
        raise DataError(
            f"{table} has the columns {', '.join(header) or 'none'}, and not {name}{hint}"
            + ("" if column or hint else "; name one with --column")
        )
    found: list[Path | str] = []
    for number, row in rows:
        cell = row[name]
        if not cell:
            raise DataError(f"row {number} of {table} has an empty {name}")
        found.append(cell if text else Path(one(str(table.parent / cell), text=False)))
    return found


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return a CSV's header and its rows, each with its line's number as a spreadsheet counts.

    Raises:
        DataError: a row with more or fewer cells than the header.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or ())
        rows = []
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                raise DataError(
                    f"row {number} of {path} does not have {len(header)} cells as the header has"
                )
            rows.append((number, row))
    return header, rows


def _standard_input(null: bool) -> list[str]:
    """Return what standard input lists, without empty entries."""
    if sys.stdin.isatty():
        print("reading from the keyboard; end with Ctrl-D", file=sys.stderr)
    text = sys.stdin.read()
    return [entry for entry in (text.split("\0") if null else text.splitlines()) if entry]


def pictures_below(folder: Path) -> list[Path]:
    """Return all pictures below a folder, by path.

    Raises:
        DataError: none.
    """
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()
    )
    if not found:
        raise DataError(f"no picture lies below {folder}; looked for {', '.join(sorted(ENDINGS))}")
    return found


def batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into runs of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def answers(
    call: Callable[[Sequence[T]], Iterable[A | TwinserveError]], batch: Sequence[T]
) -> list[A | TwinserveError]:
    """Return one answer or error per item of a batch, also where all of them failed.

    Then the call itself carries the items' errors; a fault of the call as a whole is raised.
    """
    try:
        return list(call(batch))
    except TwinserveError as error:
        places = {_place(item): item for item in error.items or (error,)}
        if None in places:
            raise
        return [places.get(place, error) for place in range(len(batch))]


def exit_code(answers: Sequence[object]) -> int:
    """Return 0 where no item failed, 1 where some did, 2 where all did."""
    failed = sum(isinstance(answer, TwinserveError) for answer in answers)
    return OK if not failed else FAULT if failed == len(answers) else NO


def _place(error: TwinserveError) -> int | None:
    found = re.match(r"(?:inputs|items|pairs|probes)\[(\d+)\]", error.field)
    return int(found[1]) if found else None
