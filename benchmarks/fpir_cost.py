"""What it costs to know how strangers fare in a gallery, and what searches feel of it.

    .venv/bin/python benchmarks/fpir_cost.py --items 1000,10000,100000

For each size: the time of one measurement without rests and with them, and the latency of searches
(one probe, top 10, one at a time) while nothing is measured and while the background measures
without end, in turns A B A B, so that a machine whose speed drifts slows both; the ratio is of the
medians over the turns. Prints one JSON line a size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from twinserve.distance import Metric
from twinserve.server.gallery import Galleries, Gallery, GalleryLimits, GallerySettings, NewItem
from twinserve.server.gallery.estimator import REST
from twinserve.server.gallery.impostors import measure


@dataclass(frozen=True)
class Figures:
    """One size of gallery."""

    items: int
    dimension: int
    probes: int
    measured_s: float  # one measurement without rests
    rested_s: float  # one with rests, as in the background
    pieces: int
    longest_piece_ms: float
    quiet_p50_ms: float
    quiet_p99_ms: float
    busy_p50_ms: float
    busy_p99_ms: float
    ratio_p50: float
    ratio_p99: float


def filled(galleries: Galleries, items: int, dimension: int) -> Gallery:
    """A gallery of random unit vectors, each its own subject, its graph built."""
    generator = np.random.default_rng(0)
    name = f"g{items}"
    galleries.create(GallerySettings(name, "model", "space", dimension, Metric.COSINE))
    gallery = galleries.get(name)
    for start in range(0, items, 1000):
        vectors = generator.normal(size=(min(1000, items - start), dimension)).astype(np.float32)
        gallery.enroll(
            [NewItem(f"i{start + n}", embedding=vector) for n, vector in enumerate(vectors)]
        ).result()
    while gallery.status().index_debt:
        time.sleep(0.1)
    return gallery


def latencies(gallery: Gallery, probes: np.ndarray, seconds: float) -> list[float]:
    """Search for one probe after the other; milliseconds each."""
    found = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        probe = probes[len(found) % len(probes)][None]
        gallery.search(probe, k=10)
        found.append((time.perf_counter() - began) * 1e3)
    return found


def of_size(gallery: Gallery, items: int, dimension: int, turns: int, seconds: float) -> Figures:
    """Measure one size."""
    view = gallery.view
    pieces: list[float] = []
    measure(view)  # what is computed once a view is not what we ask for
    began = time.perf_counter()
    estimate = measure(view, lambda took: pieces.append(took) is None)
    measured = time.perf_counter() - began
    assert estimate is not None
    stop = threading.Event()
    began = time.perf_counter()
    measure(view, lambda took: not stop.wait(REST * took))
    rested = time.perf_counter() - began
    probes = np.random.default_rng(1).normal(size=(512, dimension)).astype(np.float32)
    latencies(gallery, probes, seconds / 2)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for turn in range(2 * turns):
        busy = turn % 2 == 1
        stop = threading.Event()

        def work(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                measure(view, lambda took: not stop.wait(REST * took))

        thread = threading.Thread(target=work)
        if busy:
            thread.start()
        some = latencies(gallery, probes, seconds)
        stop.set()
        if busy:
            thread.join()
        p50, p99 = np.quantile(some, [0.5, 0.99])
        found[busy].append((float(p50), float(p99)))
    medians = {
        busy: [statistics.median(column) for column in zip(*rows, strict=True)]
        for busy, rows in found.items()
    }
    return Figures(
        items,
        dimension,
        len(estimate.nearest.subject),
        measured,
        rested,
        len(pieces),
        max(pieces) * 1e3,
        *medians[False],
        *medians[True],
        medians[True][0] / medians[False][0],
        medians[True][1] / medians[False][1],
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", default="1000,10000,100000", help="sizes (%(default)s)")
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5, help="of each kind (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn (%(default)s)")
    arguments = parser.parse_args()
    # Nothing is measured but what this asks for.
    limits = GalleryLimits(measure_inline_seconds=1e9)
    with tempfile.TemporaryDirectory() as folder:
        galleries = Galleries(Path(folder), limits)
        galleries.open()
        try:
            for items in map(int, arguments.items.split(",")):
                gallery = filled(galleries, items, arguments.dimension)
                # The first search has it measured inline, under the limits above.
                gallery.search(np.ones((1, arguments.dimension), dtype=np.float32), k=1)
                figures = of_size(
                    gallery, items, arguments.dimension, arguments.turns, arguments.seconds
                )
                rounded = {
                    name: round(value, 3) if isinstance(value, float) else value
                    for name, value in asdict(figures).items()
                }
                print(json.dumps(rounded), flush=True)
        finally:
            galleries.close()


if __name__ == "__main__":
    main()
