"""Files that may change while the server runs: keys and certificates.

They are looked at every few seconds instead of subscribed to, since that also sees what Kubernetes
does to a mounted secret (a link that moves) and what a network file system brings.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds

_Stamp = tuple[int, int, int, int] | None


class WatchedFiles:
    """Some files that belong together, and what to do when one of them is another.

    Make it before the files are read for the first time, so that no change is missed.

    Args:
        paths: of the files.
        changed: called in the thread of whoever calls `check`.
    """

    def __init__(self, paths: Iterable[Path], changed: Callable[[], None]) -> None:
        self._paths = tuple(paths)
        self._changed = changed
        self._stamps = self._now()

    def check(self) -> None:
        """Call `changed` where a file is not what it was; its errors are logged."""
        stamps = self._now()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._changed()
        except Exception:
            log.exception("the change of %s has no effect", ", ".join(map(str, self._paths)))

    def _now(self) -> Sequence[_Stamp]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def check_all(files: Sequence[WatchedFiles]) -> None:
    """Look at the files now: what an operator asks for by SIGHUP."""
    for one in files:
        one.check()


async def watch(files: Sequence[WatchedFiles], seconds: float = EVERY) -> None:
    """Look at the files until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        # In the loop's own thread, so that no two look at once; it takes microseconds.
        check_all(files)
