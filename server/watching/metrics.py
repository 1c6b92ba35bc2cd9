"""What the server tells Prometheus, and the figures that other reports take from the same cells.

One registry a server, no globals. Labels are bounded: model names are the operator's, methods and
reasons are ours, and nothing is labelled by client, item, subject or gallery. What happened is
counted here, from any thread; what is so at the moment is asked at each scrape (`gauges`). A HELP
text says the unit and what the figure is good for; `docs/metrics.md` repeats it and adds queries.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

from twinserve.server.batching.batcher import Reason, Ride
from twinserve.server.watching.ended_call import CallWatches
from twinserve.server.watching.observations import (
    Counters,
    Family,
    HistogramCell,
    Histograms,
    Total,
)

log = logging.getLogger(__name__)

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
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
DISTANCES = tuple(i / 10 for i in range(1, 21))
LOADING = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)

# Values of one gauge: what stands behind its labels, and the number.
Samples = Iterable[tuple[Sequence[str], float]]


class Metrics:
    """All metric families of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._families: list[Family[Any]] = []
        self._observers: dict[str, BatchObserver] = {}
        self._lock = threading.Lock()
        self.watches = CallWatches()  # told of every call that is counted
        self.requests = self.histogram(
            "request_seconds",
            "Seconds that a call spent inside the server, by method, code and model (empty where "
            "it needs none, or failed before one was found). The rate of its count is the traffic, "
            "together with refused_calls; its quantiles are what callers feel, less the network.",
            ("method", "code", "model"),
        )
        self.queue = self.histogram(
            "queue_seconds",
            "Seconds from prepared to taken into a run, a job each. Where this grows and "
            "inference does not, the server is short of runners.",
            ("model",),
        )
        self.preprocess = self.histogram(
            "preprocess_seconds",
            "Seconds to decode or tokenize a call's inputs, waiting for a thread included. Where "
            "this exceeds inference, send smaller pictures or give the server more processors.",
            ("model",),
        )
        self.inference = self.histogram(
            "inference_seconds",
            "Seconds of one run of the model. Its sum over time, divided by the runners, is the "
            "share of time that they are busy.",
            ("model",),
        )
        self.riding = self.histogram(
            "riding_seconds",
            "Seconds of the run that a call's inputs rode in, a call each (of several runs, the "
            "largest). With queue and preprocess this is where a call's time goes; above "
            "inference's mean, the larger runs carry most of the calls.",
            ("model",),
        )
        self.search = self.histogram(
            "search_seconds",
            "Seconds of a call inside the gallery: of Enroll (or a request of EnrollStream) up to "
            "the commit on disk, of Search and Verify the search alone.",
            ("method", "model"),
        )
        self.batch_rows = self.histogram(
            "batch_rows",
            "Rows of one run. Its mean, sum by count, says whether batching happens: near 1 under "
            "load, the model is so fast that there is nothing to collect.",
            ("model",),
            ROWS,
        )
        self.batch_tokens = self.histogram(
            "batch_tokens",
            "Tokens of one run of texts, padding included: what the run costs. Compare with "
            "--max-batch-tokens.",
            ("model",),
            TOKENS,
        )
        self.distances = self.histogram(
            "compared_distance",
            "Distances that Compare and Verify measured, in the metric's own unit, means of "
            "several left out. A shift of their distribution is a shift of the inputs, or of who "
            "they come from.",
            ("model",),
            DISTANCES,
        )
        self.nearest = self.histogram(
            "nearest_distance",
            "Distance of each searched probe to its nearest item, in the metric's own unit; "
            "searches for means of several left out. A shift is one of the probes, or of what is "
            "enrolled.",
            ("model",),
            DISTANCES,
        )
        self.search_decisions = self.counter(
            "search_decisions",
            "Probes searched, by what their threshold stood on. Many without evidence: calibrate "
            "the twin, or enrol more subjects.",
            ("evidence",),
        )
        self.batches = self.counter(
            "batches",
            "Runs, by why they left: runner_free with all that waited, full at the limit of rows "
            "or tokens, aged because somebody had waited for long, aside beside busy runners for a "
            "client of little. Mostly full: the server is at its limit.",
            ("model", "reason"),
        )
        self.tokens = self.counter(
            "tokens",
            "Tokens of texts that were run: their own (text), and those that fill up to the "
            "longest of a run (padding), which is work for nothing.",
            ("model", "kind"),
        )
        self.rejections = self.counter(
            "rejections",
            "Errors answered, a failed item each, by the reason that clients see. QUEUE_FULL: "
            "more load than capacity; IMAGE_UNDECODABLE and the like: a client's fault.",
            ("reason",),
        )
        self.refused_calls = self.counter(
            "refused_calls",
            "Calls refused before their work began, by the reason that clients see. QUEUE_FULL: "
            "--max-calls are inside, or --max-bytes (of both also CLIENT_OVER_SHARE); "
            "DEADLINE_EXCEEDED: what waits takes too much of the time that the call has; "
            "NOT_SERVING: the server stops; UNAUTHENTICATED, PERMISSION_DENIED and "
            "CLIENT_OVER_SHARE: no valid key, one of too low a role, and one over its rate. By "
            "HTTP also INVALID_INPUT, LIMIT_EXCEEDED, NOT_BUILT and NOT_FOUND: a body, header or "
            "path that no method can be given. They are in rejections too, and not in "
            "request_seconds.",
            ("reason",),
        )
        self.dropped = self.counter(
            "dropped_rows",
            "Rows dropped before they cost anything, by why: the caller cancelled, its deadline "
            "passed, or the run before failed. Many expired: deadlines shorter than the queue.",
            ("model", "why"),
        )
        self.model_loads = self.counter(
            "model_loads",
            "Loads of twins that ended, by outcome (loaded, failed).",
            ("outcome",),
        )
        # From 0 on, since a rate does not see a counter that begins with its first failure.
        for outcome in ("loaded", "failed"):
            self.model_loads.labels(outcome)
        self.model_load_seconds = self.histogram(
            "model_load_seconds",
            "Seconds from a twin's file to a warm model. A swap takes as long before it flips.",
            ("model",),
            LOADING,
        )
        build = _build()
        self.watch_each(
            "build_info",
            "1, with the versions that run; join it to tell releases apart.",
            tuple(build),
            lambda: [(tuple(build.values()), 1.0)],
        )

    def embedded(self, model: str, preprocess: float, ride: Ride | None) -> None:
        """Count where the time of a call's inputs went.

        Args:
            model: name of the model.
            preprocess: seconds.
            ride: of the call's largest run; None where none was needed.
        """
        self.preprocess.labels(model).observe(preprocess)
        if ride is not None:
            self.riding.labels(model).observe(ride.inference)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Export a gauge that is read at each scrape, in the scrape's thread."""
        self.watch_each(name, text, (), lambda: [((), read())])

    def watch_each(
        self, name: str, text: str, labels: Sequence[str], read: Callable[[], Samples]
    ) -> None:
        """Export a gauge of several values, read at each scrape, in the scrape's thread.

        Args:
            name: without the prefix.
            text: its HELP.
            labels: names of its labels.
            read: gives all values that stand at the moment, each with its labels.
        """
        self.registry.register(_Watched(f"twinserve_{name}", text, tuple(labels), read))

    def watch_together(
        self,
        families: Sequence[tuple[str, str, Sequence[str]]],
        read: Callable[[], Sequence[Samples]],
    ) -> None:
        """Export several gauges that one look tells, read at each scrape, in the scrape's thread.

        Args:
            families: of each its name without the prefix, its HELP and the names of its labels.
            read: gives the values of all of them, in this order.
        """
        self.registry.register(
            _WatchedTogether(
                [(f"twinserve_{name}", text, tuple(labels)) for name, text, labels in families],
                read,
            )
        )

    def histogram(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float] = SECONDS
    ) -> Histograms:
        """Add a histogram, of seconds unless other bounds are given."""
        family = Histograms(f"twinserve_{name}", text, labels, bounds)
        self._families.append(family)
        self.registry.register(family)
        return family

    def counter(self, name: str, text: str, labels: Sequence[str]) -> Counters:
        """Add a counter; it is exported as `twinserve_<name>_total`."""
        family = Counters(f"twinserve_{name}", text, labels)
        self._families.append(family)
        self.registry.register(family)
        return family

    def forget(self, model: str) -> None:
        """Let go of every label of a model name that is served no more."""
        with self._lock:
            self._observers.pop(model, None)
        for family in self._families:
            family.forget("model", model)

    def observer(self, model: str) -> BatchObserver:
        """Return what counts the runs of a model name; the same for all of its versions."""
        with self._lock:
            found = self._observers.get(model)
            if found is None:
                found = self._observers[model] = BatchObserver(self, model)
            return found

    def figures(self, model: str) -> ModelFigures:
        """Return what was counted of a model name since it was first served."""
        answered, failed = Total(0, 0.0), Total(0, 0.0)
        for (_, code, name), cell in self.requests.cells():
            if name == model:
                one = cell.total()
                if code == "OK":
                    answered = Total(answered.count + one.count, answered.sum + one.sum)
                else:
                    failed = Total(failed.count + one.count, failed.sum + one.sum)
        observer = self.observer(model)
        sizes, last = observer.runs()
        return ModelFigures(
            answered=answered,
            failed=failed,
            queue=self.queue.labels(model).total(),
            preprocess=self.preprocess.labels(model).total(),
            riding=self.riding.labels(model).total(),
            inference=self.inference.labels(model).total(),
            rows=int(self.batch_rows.labels(model).total().sum),
            runs=sizes,
            last_run=last,
        )


@dataclass(frozen=True)
class ModelFigures:
    """What was counted of one model; sums are seconds."""

    answered: Total  # calls that were answered OK
    failed: Total  # calls that were not, as far as their model is known
    queue: Total  # jobs
    preprocess: Total  # calls
    riding: Total  # calls, each with the time of its largest run
    inference: Total  # runs
    rows: int
    runs: dict[int, Total]  # by rows of the run
    last_run: float  # Unix time; 0 before the first


class BatchObserver:
    """Told by one model's batcher, from its threads, what it does."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        # Cells are looked up once; that they are there also shows the series before its first call.
        self._rows = metrics.batch_rows.labels(model)
        self._seconds = metrics.inference.labels(model)
        self._queue = metrics.queue.labels(model)
        self._reasons = {reason: metrics.batches.labels(model, reason.value) for reason in Reason}
        self._tokens = metrics.tokens.labels(model, "text")
        self._padding = metrics.tokens.labels(model, "padding")
        self._batch_tokens = metrics.batch_tokens.labels(model)
        self._dropped = {
            why: metrics.dropped.labels(model, why) for why in ("cancelled", "expired", "failed")
        }
        metrics.preprocess.labels(model)
        metrics.riding.labels(model)
        self._sizes: dict[int, HistogramCell] = {}  # seconds by rows, at most max_batch of them
        self._last = 0.0

    def batch(self, rows: int, seconds: float, reason: Reason) -> None:
        """A batch ran."""
        self._rows.observe(rows)
        self._seconds.observe(seconds)
        self._reasons[reason].inc()
        size = self._sizes.get(rows)
        if size is None:
            size = self._sizes.setdefault(rows, HistogramCell(np.empty(0)))
        size.observe(seconds)
        self._last = time.time()

    def queued(self, seconds: float) -> None:
        """A job waited."""
        self._queue.observe(seconds)

    def padded(self, tokens: int, padding: int) -> None:
        """A run of texts was padded."""
        self._tokens.inc(tokens)
        self._padding.inc(padding)
        self._batch_tokens.observe(tokens + padding)

    def dropped(self, rows: int, why: str) -> None:
        """Rows were dropped."""
        self._dropped[why].inc(rows)

    def runs(self) -> tuple[dict[int, Total], float]:
        """Return the runs by their rows, and the Unix time of the last one's end."""
        sizes = {rows: cell.total() for rows, cell in sorted(self._sizes.copy().items())}
        return sizes, self._last


class _Watched:
    """A gauge that is asked at each scrape; one that cannot answer does not spoil the others."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Samples]
    ) -> None:
        self._name, self._text, self._labels, self._read = name, text, labels, read

    def collect(self) -> Iterable[Metric]:
        metric = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        try:
            for values, value in self._read():
                metric.add_metric(values, value)
        except Exception:
            log.exception("%s could not be read", self._name)
        yield metric


class _WatchedTogether:
    """Gauges that are asked at once at each scrape."""

    def __init__(
        self,
        families: Sequence[tuple[str, str, tuple[str, ...]]],
        read: Callable[[], Sequence[Samples]],
    ) -> None:
        self._families, self._read = families, read

    def collect(self) -> Iterable[Metric]:
        metrics = [GaugeMetricFamily(name, text, labels=one) for name, text, one in self._families]
        try:
            for metric, samples in zip(metrics, self._read(), strict=True):
                for values, value in samples:
                    metric.add_metric(values, value)
        except Exception:
            log.exception("%s and its likes could not be read", self._families[0][0])
        yield from metrics


def _build() -> dict[str, str]:
    return {
        "version": _version("twinserve"),
        "python": platform.python_version(),
        "onnxruntime": _version("onnxruntime", "onnxruntime-gpu"),
        "grpcio": _version("grpcio"),
    }


def _version(*packages: str) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""
