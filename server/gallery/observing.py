"""What the galleries tell whoever watches them: how long things took, and what checks found.

In: calls from the writing, building and checking threads, never from a search. Out: nothing; an
observer must return at once and raise nothing. The package knows no metrics library: the server
passes in what counts (server/watching), and who passes nothing is told nothing.
"""

from __future__ import annotations

import enum
from typing import Protocol


class BuildKind(enum.StrEnum):
    """Why a segment was made aside; to seal one takes no time, and is part of a publication."""

    BUILD = "build"  # sealed ones had no graph
    MERGE = "merge"  # too many segments, or too much of one was dead


class GalleryObserver(Protocol):
    """Told what happened; any thread calls it. `model` is the one of the gallery's settings."""

    def committed(self, model: str, seconds: float) -> None:
        """A group of writes is on disk; from the begin of its transaction to the end."""
        ...

    def published(self, model: str, seconds: float) -> None:
        """Memory says what the commit before said."""
        ...

    def built(self, model: str, kind: BuildKind, seconds: float, rows: int) -> None:
        """A segment of `rows` vectors was made aside."""
        ...

    def snapshotted(self, model: str, seconds: float) -> None:
        """What memory holds was written to index files."""
        ...

    def recalled(self, model: str, neighbours: int, found: int) -> None:
        """A live search was recomputed: of `neighbours` true ones it had found so many."""
        ...

    def scrubbed(self, size: int) -> None:
        """So many bytes of stored rows, or of a whole file, were read again and checked."""
        ...


class Unobserved:
    """Nobody watches."""

    def committed(self, model: str, seconds: float) -> None:
        """Ignore it."""

    def published(self, model: str, seconds: float) -> None:
        """Ignore it."""

    def built(self, model: str, kind: BuildKind, seconds: float, rows: int) -> None:
        """Ignore it."""

    def snapshotted(self, model: str, seconds: float) -> None:
        """Ignore it."""

    def recalled(self, model: str, neighbours: int, found: int) -> None:
        """Ignore it."""

    def scrubbed(self, size: int) -> None:
        """Ignore it."""


UNOBSERVED: GalleryObserver = Unobserved()
