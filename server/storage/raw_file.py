"""The bytes of a database file that SQLite has open in this process, read without its help.

The one thing to know: POSIX locks belong to the process, and closing any descriptor of a file drops
all of them, SQLite's too. Another program that looks into the database then takes itself for the
only one, and on leaving removes the log that we still write to. So a file in use is opened here
once, and closed after SQLite has closed it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

COPIED_BYTES = 1 << 20  # at a time


class RawFile:
    """One file, opened when it is first asked for. Any thread may call it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._closed = False
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> int:
        """Read a part and return its length in bytes; 0 at the end, and once it is closed.

        Raises:
            OSError: the disk does not give it back.
        """
        return len(self._part(offset, size))

    def drop_cached(self) -> None:
        """Have the kernel forget what it holds of the file, so that reads come from the disk."""
        with self._lock, contextlib.suppress(OSError):  # only a hint
            descriptor = self._opened()
            if descriptor is not None and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def copy_to(self, target: Path, proceed: Callable[[], bool]) -> bool:
        """Copy the file as it lies there; whether all of it was, as `proceed` may end it.

        Raises:
            OSError: it cannot be read, or the copy not be written; no part of a copy stays.
        """
        unfinished = target.with_name(target.name + ".unfinished")
        try:
            with unfinished.open("wb") as copy:
                offset = 0
                while part := self._part(offset, COPIED_BYTES):
                    if not proceed():
                        return False
                    copy.write(part)
                    offset += len(part)
            unfinished.rename(target)
            return True
        finally:
            unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it; only after all connections to the database are closed."""
        with self._lock:
            self._closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _part(self, offset: int, size: int) -> bytes:
        with self._lock:
            descriptor = self._opened()
            return b"" if descriptor is None else os.pread(descriptor, size, offset)

    def _opened(self) -> int | None:
        if self._descriptor is None and not self._closed:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        return self._descriptor
