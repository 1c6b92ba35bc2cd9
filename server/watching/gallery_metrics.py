"""What happened in the galleries, by model: commits, builds, recomputed searches, the scrub.

The galleries tell it as their observer (server/gallery/observing.py), from their own threads, and
know no Prometheus. What is so at the moment is asked by `gauges`.
"""

from __future__ import annotations

from twinserve.server.gallery.observing import BuildKind
from twinserve.server.watching.metrics import Metrics

MAKING = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0, 300.0, 1200.0)


class GalleryMetrics:
    """A GalleryObserver that counts."""

    def __init__(self, metrics: Metrics) -> None:
        """Add the families to a server's metrics."""
        self._commit = metrics.histogram(
            "gallery_commit_seconds",
            "Seconds from the start of a group of writes to its commit on disk. Mostly the disk's "
            "flush: where this grows, the disk has become slower, or is shared with others.",
            ("model",),
        )
        self._publish = metrics.histogram(
            "gallery_publish_seconds",
            "Seconds from a commit until memory says the same, which answers wait for too. Where "
            "it nears the commit's, many items change at a time.",
            ("model",),
        )
        self._build = metrics.histogram(
            "gallery_build_seconds",
            "Seconds to make a segment aside, by kind: build (a graph for those that had none), "
            "merge (fewer segments, or without dead vectors).",
            ("model", "kind"),
            MAKING,
        )
        self._built_rows = metrics.counter(
            "gallery_built_rows",
            "Vectors of the segments made, by kind as of gallery_build_seconds. Merged ones many "
            "times the built ones: items are replaced or removed faster than they are enrolled.",
            ("model", "kind"),
        )
        self._snapshot = metrics.histogram(
            "gallery_snapshot_seconds",
            "Seconds to write a gallery's index files, from which the next start is quick.",
            ("model",),
            MAKING,
        )
        self._neighbours = metrics.counter(
            "gallery_recall_neighbours",
            "True nearest neighbours of live searches that were recomputed exactly.",
            ("model",),
        )
        self._found = metrics.counter(
            "gallery_recall_found",
            "Those of gallery_recall_neighbours that the searches had found, by distance. The rate "
            "of this by the rate of those is the recall.",
            ("model",),
        )
        self._scrubbed = metrics.counter(
            "gallery_scrubbed_bytes",
            "Bytes of stored rows and files that were read again and verified. Where it stands "
            "still, the scrub is off or rests between two passes.",
            (),
        )
        self._scrubbed.labels()

    def committed(self, model: str, seconds: float) -> None:
        """A group of writes is on disk."""
        self._commit.labels(model).observe(seconds)

    def published(self, model: str, seconds: float) -> None:
        """Memory says what the commit before said."""
        self._publish.labels(model).observe(seconds)

    def built(self, model: str, kind: BuildKind, seconds: float, rows: int) -> None:
        """A segment was made."""
        self._build.labels(model, kind.value).observe(seconds)
        self._built_rows.labels(model, kind.value).inc(rows)

    def snapshotted(self, model: str, seconds: float) -> None:
        """What memory holds was written to index files."""
        self._snapshot.labels(model).observe(seconds)

    def recalled(self, model: str, neighbours: int, found: int) -> None:
        """A live search was recomputed."""
        self._neighbours.labels(model).inc(neighbours)
        self._found.labels(model).inc(found)

    def scrubbed(self, size: int) -> None:
        """So many bytes were read again and checked."""
        self._scrubbed.labels().inc(size)
