"""Histograms and counters that cost a fifth of a microsecond to observe, from any thread.

A call of the server makes half a dozen observations; prometheus_client's own, each under a lock of
Python's, would cost as much as parsing the call. Here an observation is appended to a deque, which
the interpreter does in one step, and what was appended is added up once a few hundred have come, or
when somebody reads. Every observation is counted exactly once. Prometheus reads the families as
collectors at each scrape, and whoever else reports figures reads the same cells.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

# Observations of one cell that may wait to be added up: adding up that many takes some 50 µs.
PENDING = 512


@dataclass(frozen=True)
class Total:
    """How often, and how much together."""

    count: int
    sum: float


class _Cell:
    """Observations of one set of label values, on their way to being added up."""

    __slots__ = ("_append", "_lock", "_pending")

    def __init__(self) -> None:
        self._pending: deque[float] = deque()
        self._append = self._pending.append
        self._lock = threading.Lock()

    def _crowded(self) -> None:
        # Somebody else at it is as good; and a finaliser that observes may run inside `_settle`.
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Add up what has come; the lock is held, and others go on appending."""
        taken = [self._pending.popleft() for _ in range(len(self._pending))]
        if taken:
            self._add(np.array(taken, np.float64))

    def _add(self, values: np.ndarray) -> None:
        raise NotImplementedError


class CounterCell(_Cell):
    """A number that only grows."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        super().__init__()
        self._value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Grow by `amount`, at least 0."""
        self._append(amount)
        if len(self._pending) >= PENDING:
            self._crowded()

    def read(self) -> float:
        """Return the value with everything that was counted before this call."""
        with self._lock:
            self._settle()
            return self._value

    def _add(self, values: np.ndarray) -> None:
        self._value += float(values.sum())


class HistogramCell(_Cell):
    """Finite values, counted by bucket."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: np.ndarray) -> None:
        super().__init__()
        self._bounds = bounds
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._append(value)
        if len(self._pending) >= PENDING:
            self._crowded()

    def read(self) -> tuple[list[int], float]:
        """Return how many values lie up to each bound, and up to infinity; and their sum."""
        with self._lock:
            self._settle()
            return np.cumsum(self._counts).tolist(), self._sum

    def total(self) -> Total:
        """Return how many values there were, and their sum."""
        counts, whole = self.read()
        return Total(counts[-1], whole)

    def _add(self, values: np.ndarray) -> None:
        places = np.searchsorted(self._bounds, values)  # a value on a bound belongs below it
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())


Cell = TypeVar("Cell", bound=_Cell)


class Family(Generic[Cell]):
    """One metric with its label names, and a cell for each set of label values.

    Args:
        name: as exported; of a counter without `_total`.
        text: its HELP.
        labels: names of the labels.
        make: a new cell.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], make: Callable[[], Cell]
    ) -> None:
        self.name = name
        self.text = text
        self.label_names = tuple(labels)
        self._make = make
        self._cells: dict[tuple[str, ...], Cell] = {}
        self._lock = threading.Lock()

    def labels(self, *values: str) -> Cell:
        """Return the cell of these label values, in the order of the names."""
        cell = self._cells.get(values)
        if cell is None:
            assert len(values) == len(self.label_names), f"{self.name} takes {self.label_names}"
            with self._lock:
                cell = self._cells.setdefault(values, self._make())
        return cell

    def cells(self) -> list[tuple[tuple[str, ...], Cell]]:
        """Return every cell with its label values."""
        with self._lock:
            return list(self._cells.items())

    def forget(self, name: str, value: str) -> None:
        """Let go of the cells whose label `name` has this value."""
        if name not in self.label_names:
            return
        place = self.label_names.index(name)
        with self._lock:
            for values in [values for values in self._cells if values[place] == value]:
                del self._cells[values]

    def collect(self) -> Iterable[Metric]:
        """Give Prometheus what stands in the cells."""
        raise NotImplementedError


class Counters(Family[CounterCell]):
    """Counters of one name."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        super().__init__(name, text, labels, CounterCell)

    def collect(self) -> Iterable[Metric]:
        """Give Prometheus what stands in the cells."""
        metric = CounterMetricFamily(self.name, self.text, labels=self.label_names)
        for values, cell in self.cells():
            metric.add_metric(values, cell.read())
        yield metric


class Histograms(Family[HistogramCell]):
    """Histograms of one name, all with the same bounds.

    Args:
        name: as exported.
        text: its HELP.
        labels: names of the labels.
        bounds: of the buckets, rising; the one up to infinity is added.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        exact = np.array(bounds, np.float64)
        super().__init__(name, text, labels, lambda: HistogramCell(exact))
        self._named = [*(str(float(bound)) for bound in bounds), "+Inf"]

    def collect(self) -> Iterable[Metric]:
        """Give Prometheus what stands in the cells."""
        metric = HistogramMetricFamily(self.name, self.text, labels=self.label_names)
        for values, cell in self.cells():
            counts, whole = cell.read()
            metric.add_metric(values, list(zip(self._named, counts, strict=True)), whole)
        yield metric
