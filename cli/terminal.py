"""Errors and colours as a terminal shows them; in a pipe there are no colours.

NO_COLOR (set to anything) turns them off, FORCE_COLOR on, also in a pipe, as no-color.org and
force-color.org have it; a terminal that calls itself dumb gets none.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

_CODES = {"red": 31, "green": 32, "yellow": 33, "bold": 1}


def painted(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text in red, green, yellow or bold, where the stream shows colours.

    Args:
        text: what to print.
        colour: one of the four.
        stream: where it will be printed; standard output by default.
    """
    if not _shows_colours(sys.stdout if stream is None else stream):
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def warn(sentence: str) -> None:
    """Say on standard error what is wrong."""
    print(f"{painted('twinserve:', 'red', sys.stderr)} {sentence}", file=sys.stderr)


def _shows_colours(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
