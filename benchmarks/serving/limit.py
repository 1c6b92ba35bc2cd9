"""The limit: onnxruntime on the same graph, with nothing around it.

As a program it opens a twin, tries both layouts (one session with all threads, spinning or not;
one session per core) at every batch size, says which was best as one line of JSON, and from then
on answers each line "SECONDS" on standard input with the rows per second of the best. So it takes
its turns beside the servers. A line "decode SECONDS FILE" times the decoding of a picture instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.peers.twin import Twin

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# Beyond it a batch only adds to the waiting, whatever it gains: such batches are not tried.
LONGEST_RUN = 1.0  # seconds


@dataclass(frozen=True)
class Layout:
    """How the cores are used: so many runs at a time, each of so many threads."""

    workers: int
    threads: int
    spinning: bool

    def __str__(self) -> str:
        kind = "spinning" if self.spinning else "not spinning"
        return f"{self.workers} x {self.threads} threads" + (f", {kind}" * (self.threads > 1))


@dataclass(frozen=True)
class Best:
    """The fastest way found, and what the others gave."""

    layout: Layout
    batch: int
    rows_per_second: float
    tried: dict[str, dict[int, float]]  # layout -> batch size -> rows per second


def layouts(cores: int) -> list[Layout]:
    """Return those that are tried; on one core there is but one."""
    if cores == 1:
        return [Layout(1, 1, False)]
    return [Layout(1, cores, True), Layout(1, cores, False), Layout(cores, 1, False)]


def others(best: Layout, cores: int) -> list[Layout]:
    """Return the layouts that a server may do better with than with the one best for the model.

    Beside a server, threads that spin take a core from it.
    """
    return [one for one in layouts(cores) if not one.spinning and one != best]


def rate(twins: Sequence[Twin], feed: dict[str, NDArray[Any]], batch: int, seconds: float) -> float:
    """Run one batch over and over in a thread per session; return the rows per second of all."""
    rows = [0] * len(twins)
    began = time.perf_counter()

    def work(place: int) -> None:
        session = twins[place].session
        while time.perf_counter() - began < seconds:
            session.run(None, feed)
            rows[place] += batch

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(twins))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rows) / (time.perf_counter() - began)


def find(opened: dict[Layout, list[Twin]], row: NDArray[Any], seconds: float) -> Best:
    """Try every layout at every batch size for so many seconds."""
    tried: dict[str, dict[int, float]] = {}
    best: tuple[float, Layout, int] | None = None
    for layout, twins in opened.items():
        found = tried.setdefault(str(layout), {})
        for size in SIZES:
            feed = twins[0].feed([row] * size)
            twins[0].session.run(None, feed)
            found[size] = rate(twins, feed, size, seconds)
            best = max(
                best or (0.0, layout, 0), (found[size], layout, size), key=lambda one: one[0]
            )
            if 2 * size * layout.workers / found[size] > LONGEST_RUN:
                break
    assert best is not None
    return Best(best[1], best[2], best[0], tried)


def main() -> None:
    """Find the best, then measure it whenever asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--twin", required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--row", type=Path, required=True, help="one prepared row, as .npy")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each try")
    given = parser.parse_args()
    row = np.load(given.row)
    opened = {
        layout: [
            Twin(given.twin, layout.threads, layout.spinning, given.tokenizer)
            for _ in range(layout.workers)
        ]
        for layout in layouts(given.cores)
    }
    best = find(opened, row, given.seconds)
    twins = opened[best.layout]
    # Sessions that are not used again would keep their threads and arenas.
    opened.clear()
    print(json.dumps(asdict(best)), flush=True)
    feed = twins[0].feed([row] * best.batch)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "decode":
            print(json.dumps(_decoding(given.twin, Path(words[2]), float(words[1]))), flush=True)
        else:
            print(json.dumps(rate(twins, feed, best.batch, float(words[0]))), flush=True)


def _decoding(twin: str, picture: Path, seconds: float) -> float:
    """Return the CPU seconds that decoding one picture takes."""
    from twinserve import manifest, preprocess
    from twinserve.manifest import ImageInput

    contract, data = manifest.read(twin).input, picture.read_bytes()
    assert isinstance(contract, ImageInput)
    preprocess.decode_image(data, contract)
    count, began = 0, time.perf_counter()
    cpu = time.thread_time()
    while time.perf_counter() - began < seconds:
        preprocess.decode_image(data, contract)
        count += 1
    return (time.thread_time() - cpu) / count


if __name__ == "__main__":
    main()
