"""The door of a server, kept true to its file of keys."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

from twinserve.errors import ConfigError
from twinserve.server.security import keys
from twinserve.server.security.door import KeyDoor
from twinserve.server.security.watched_files import WatchedFiles

log = logging.getLogger(__name__)


def open_door(path: Path) -> tuple[KeyDoor, WatchedFiles]:
    """Return the door that the keys of a file open, and what keeps the two the same.

    A file that is damaged, or gone, changes nothing: the keys that were read last stay valid, and
    the log says so. One without keys lets nobody in.

    Raises:
        ConfigError: the file cannot be used.
    """

    def reload() -> None:
        try:
            found = keys.read(path)
        except ConfigError as error:
            log.error("%s; the keys that were read before stay valid", error)
            return
        door.replace(found)
        log.info("%d keys are valid now, of %s", len(found), path)

    files = WatchedFiles([path], reload)
    door = KeyDoor(keys.read(path))
    if path.stat().st_mode & stat.S_IWOTH:
        log.warning("any user of this machine may write %s; chmod o-w it", path)
    return door, files
