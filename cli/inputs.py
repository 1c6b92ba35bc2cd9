"""From command line arguments to inputs: pictures in files and folders, or texts.

A folder stands for all pictures below it, in the order of their paths. Files named one by one are
taken whatever their ending; the server judges their content.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from twinserve.cli.exit_codes import FAULT, NO, OK
from twinserve.errors import ConfigError, DataError, TwinserveError

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
    if not path.exists():
        raise DataError(f"{path} does not exist; name a picture, or give --text for a text")
    return path


def several(arguments: Sequence[str], *, text: bool) -> list[Path | str]:
    """Return the inputs in order, every folder replaced by the pictures below it.

    Raises:
        DataError: a path that does not exist, or a folder without pictures.
    """
    if text:
        return list(arguments)
    found: list[Path | str] = []
    for argument in arguments:
        if Path(argument).is_dir():
            found.extend(pictures_below(Path(argument)))
        else:
            found.append(one(argument, text=False))
    return found


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
    found = re.match(r"(?:inputs|items|probes)\[(\d+)\]", error.field)
    return int(found[1]) if found else None
