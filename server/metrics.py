"""What the server tells Prometheus.

One registry a server, no globals. Labels are bounded: model names and versions are the operator's,
methods and reasons are ours, and nothing is labelled by client, item or subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from twinserve.server.batcher import Reason

SECONDS = (
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
DISTANCES = tuple(i / 10 for i in range(1, 21))


class Metrics:
    """All metric families of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._histogram(
            "request_seconds", "Time of a call inside the server.", ("method", "code")
        )
        self.queue = self._histogram(
            "queue_seconds", "Time between prepared and taken into a batch.", ("model",)
        )
        self.preprocess = self._histogram(
            "preprocess_seconds", "Time to decode and resize a call's inputs.", ("model",)
        )
        self.inference = self._histogram("inference_seconds", "Time of one run.", ("model",))
        self.search = self._histogram(
            "search_seconds", "Time of a call inside the gallery.", ("method",)
        )
        self.batch_rows = Histogram(
            "twinserve_batch_rows", "Rows of one run.", ("model",), buckets=ROWS,
            registry=self.registry,
        )  # fmt: skip
        self.distances = Histogram(
            "twinserve_compared_distance",
            "Distances that Compare and Verify measured; their drift shows drift of the inputs.",
            ("model",),
            buckets=DISTANCES,
            registry=self.registry,
        )
        self.search_decisions = self._counter(
            "search_decisions", "Probes searched, by what their threshold stood on.", ("evidence",)
        )
        self.batches = self._counter("batches", "Runs, by why they left.", ("model", "reason"))
        self.tokens = self._counter(
            "tokens", "Tokens of texts that were run: their own, and padding.", ("model", "kind")
        )
        self.rejections = self._counter("rejections", "Errors answered, by reason.", ("reason",))
        self.dropped = self._counter(
            "dropped_rows", "Rows dropped before they cost anything.", ("model", "why")
        )
        self.model_info = Gauge(
            "twinserve_model_info",
            "1 for each loaded model, with what really runs it.",
            ("model", "precision", "provider"),
            registry=self.registry,
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Export a gauge that is read at each scrape."""
        self.registry.register(_Watched(f"twinserve_{name}", text, read))

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"twinserve_{name}", text, labels, buckets=SECONDS, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"twinserve_{name}", text, labels, registry=self.registry)


class BatchObserver:
    """Tells Prometheus what one model's batcher does."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        # Children are looked up once: labels() costs more than the observation.
        self._rows = metrics.batch_rows.labels(model)
        self._seconds = metrics.inference.labels(model)
        self._queue = metrics.queue.labels(model)
        self._reasons = {reason: metrics.batches.labels(model, reason.value) for reason in Reason}
        self._tokens = metrics.tokens.labels(model, "text")
        self._padding = metrics.tokens.labels(model, "padding")
        self._dropped = {
            why: metrics.dropped.labels(model, why) for why in ("cancelled", "expired", "failed")
        }

    def batch(self, rows: int, seconds: float, reason: Reason) -> None:
        """A batch ran."""
        self._rows.observe(rows)
        self._seconds.observe(seconds)
        self._reasons[reason].inc()

    def queued(self, seconds: float) -> None:
        """A job waited."""
        self._queue.observe(seconds)

    def padded(self, tokens: int, padding: int) -> None:
        """A run of texts was padded."""
        self._tokens.inc(tokens)
        self._padding.inc(padding)

    def dropped(self, rows: int, why: str) -> None:
        """Rows were dropped."""
        self._dropped[why].inc(rows)


class _Watched:
    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(self._name, self._text, value=self._read())
