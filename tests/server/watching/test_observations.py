"""Cells that many threads observe into: nothing lost, nothing twice, and cheap."""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_left

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from twinserve.server.watching.observations import PENDING, CounterCell, Counters, Histograms

BOUNDS = (0.1, 0.5, 1.0)


def read(family: Counters | Histograms) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus reads of a family: (name, labels) to value."""
    registry = CollectorRegistry()
    registry.register(family)
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
    }


def test_a_histogram_counts_as_by_hand_however_many_values_come() -> None:
    chance = random.Random(5)
    values = [chance.choice([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 9.0]) for _ in range(3 * PENDING + 7)]
    family = Histograms("h", "A text.", ("model",), BOUNDS)
    cell = family.labels("a")
    for value in values:
        cell.observe(value)
    by_hand = [0, 0, 0, 0]
    for value in values:
        by_hand[bisect_left(BOUNDS, value)] += 1  # a value on a bound belongs below it
    found = read(family)
    for place, bound in enumerate(("0.1", "0.5", "1.0", "+Inf")):
        key = ("h_bucket", (("le", bound), ("model", "a")))
        assert found[key] == sum(by_hand[: place + 1])
    assert found["h_count", (("model", "a"),)] == len(values)
    assert found["h_sum", (("model", "a"),)] == pytest.approx(sum(values))


def test_a_counter_adds_up_amounts() -> None:
    family = Counters("c", "A text.", ("model", "kind"))
    family.labels("a", "x").inc()
    family.labels("a", "x").inc(2.5)
    family.labels("a", "y").inc(0)
    found = read(family)
    assert found["c_total", (("kind", "x"), ("model", "a"))] == 3.5
    assert found["c_total", (("kind", "y"), ("model", "a"))] == 0


def test_threads_that_observe_and_threads_that_read_lose_nothing() -> None:
    family = Histograms("h", "A text.", (), (0.5,))
    counter = CounterCell()
    cell = family.labels()
    each, writers = 40_000, 6
    seen: list[int] = []
    done = threading.Event()

    def write() -> None:
        for _ in range(each):
            cell.observe(1)
            counter.inc()

    def watch() -> None:
        while not done.is_set():
            seen.append(cell.total().count)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    reader = threading.Thread(target=watch)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    assert cell.total().count == cell.total().sum == counter.read() == each * writers
    assert seen == sorted(seen), "a counter never falls"


def test_a_finaliser_that_observes_while_the_cell_is_read_does_not_hang() -> None:
    cell = CounterCell()

    class Dropped:
        def __del__(self) -> None:
            for _ in range(2 * PENDING):
                cell.inc()

    def fold() -> None:
        cell.inc()
        with cell._lock:  # as a reader holds it when the collector runs finalisers in its thread
            thing = Dropped()
            del thing

    thread = threading.Thread(target=fold, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert cell.read() == 2 * PENDING + 1


def test_what_waits_to_be_added_up_is_bounded() -> None:
    cell = CounterCell()
    for _ in range(10 * PENDING):
        cell.inc()
    assert len(cell._pending) < PENDING


def test_forgotten_labels_are_gone_and_the_others_stay() -> None:
    family = Counters("c", "A text.", ("reason", "model"))
    for model in ("a", "b"):
        family.labels("why", model).inc()
    family.forget("model", "a")
    family.forget("kind", "b")
    assert list(read(family)) == [("c_total", (("model", "b"), ("reason", "why")))]


def test_an_observation_costs_less_than_a_parse_of_the_smallest_call() -> None:
    cell = Histograms("h", "A text.", ("model",), BOUNDS).labels("a")
    best = float("inf")
    for _ in range(20):
        began = time.thread_time()
        for _ in range(5000):
            cell.observe(0.3)
        best = min(best, (time.thread_time() - began) / 5000)
    assert best < 5e-6, "some 0.2 µs of one quiet processor"
