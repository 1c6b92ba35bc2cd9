"""What is so at the moment: queues, models and galleries, asked at each scrape.

The reads run in the scrape's thread, never on the loop and never in a runner's. Labels come from
what is served right now, so those of an unloaded model are gone with it. Galleries are added up:
clients make as many as they like, and a label each would grow without bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twinserve.server.admission import Admission
from twinserve.server.engine import Engine
from twinserve.server.gallery import GalleryStatus
from twinserve.server.gallery.galleries import Galleries
from twinserve.server.metrics import Metrics, Samples


def watch_models(metrics: Metrics, models: Iterable[Engine]) -> None:
    """Export what is loaded, and what waits for it."""

    def by_name(read: Callable[[Engine], float]) -> Callable[[], Samples]:
        # Versions of one name share its queue's labels: their figures are added up.
        def samples() -> Samples:
            values: dict[str, float] = {}
            for engine in models:
                values[engine.name] = values.get(engine.name, 0.0) + read(engine)
            return [((name,), value) for name, value in values.items()]

        return samples

    metrics.watch_each(
        "model_info",
        "1 for each loaded model, with what really runs it: the precision of its file, and the "
        "execution provider that the session has.",
        ("model", "precision", "provider"),
        lambda: [
            ((engine.version, engine.manifest.precision, engine.runner.device.provider), 1.0)
            for engine in models
        ],
    )
    metrics.watch_each(
        "queue_rows",
        "Rows that wait for a runner. Where it stays above 0, arrivals outrun the model.",
        ("model",),
        by_name(lambda engine: engine.batcher.waiting),
    )


def watch_admission(metrics: Metrics, admission: Admission) -> None:
    """Export how full the server is."""
    metrics.watch(
        "admitted_rows",
        "Rows admitted and not yet answered, over all models.",
        lambda: admission.rows,
    )


def watch_galleries(metrics: Metrics, galleries: Galleries) -> None:
    """Export how much the galleries hold, together."""

    def statuses() -> list[GalleryStatus]:
        return galleries.list("", 1_000_000)

    def total(name: str) -> Callable[[], float]:
        return lambda: float(sum(getattr(status, name) for status in statuses()))

    metrics.watch("galleries", "Galleries on this server.", lambda: len(statuses()))
    metrics.watch("gallery_items", "Live items of all galleries.", total("item_count"))
    metrics.watch(
        "gallery_index_debt",
        "Rows not yet in an HNSW index, of all galleries; searches scan them. Where it only "
        "grows, enrolments outrun the index: enrol more slowly.",
        total("index_debt"),
    )
    metrics.watch(
        "gallery_measuring_seconds",
        "Seconds spent in the background on measuring how strangers fare in large galleries.",
        lambda: galleries.measuring_seconds,
    )
