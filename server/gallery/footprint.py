"""How much room a gallery takes on disk: bytes of its files, by what they are for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DiskUsage:
    """Bytes of a gallery's files."""

    store: int = 0  # the database: the truth
    log: int = 0  # what was committed and is not in it yet, with its index
    index: int = 0  # files that can be made anew
    broken: int = 0  # copies of a damaged database

    @property
    def used(self) -> int:
        """What is in use: all but evidence of damage."""
        return self.store + self.log + self.index

    def __add__(self, other: DiskUsage) -> DiskUsage:
        return DiskUsage(
            self.store + other.store,
            self.log + other.log,
            self.index + other.index,
            self.broken + other.broken,
        )


def disk_usage(folder: Path) -> DiskUsage:
    """Look at the files of a gallery's folder; one that is gone takes nothing."""
    sizes = dict.fromkeys(("store", "log", "index", "broken"), 0)
    for path, size in _files(folder):
        sizes[_kind(path)] += size
    return DiskUsage(**sizes)


def _kind(name: str) -> str:
    if ".broken" in name:
        return "broken"
    if name == "store.db":
        return "store"
    return "log" if name.startswith("store.db-") else "index"


def _files(folder: Path) -> Iterable[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _files(Path(entry.path))
                    elif not entry.name.endswith("-shm"):  # memory that processes share
                        yield entry.name, entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # removed since it was listed
                    continue
    except FileNotFoundError:
        return
