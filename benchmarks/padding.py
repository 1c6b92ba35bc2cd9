"""What cutting batches of texts into runs of like lengths is worth, with a text twin of your own.

    .venv/bin/python benchmarks/padding.py --model minilm.onnx --texts questions.txt

Two batchers over one session are asked in turn, A B A B: one pads every batch to its longest text,
first in first out, the other cuts it. Clients are coroutines of this process, each with one text in
flight; nothing is sent over a wire. Prints one JSON line each; ratios are of the medians over the
turns. Processor time is the whole process's, so that a machine with other work distorts it less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from twinserve.feed import Row
from twinserve.server.batching.batcher import Batcher, Outputs, Reason, Rows
from twinserve.server.batching.costs import RunCosts
from twinserve.server.batching.padding import padded
from twinserve.server.callers import Caller
from twinserve.server.config import CPU_BATCH_TOKENS
from twinserve.server.runtime.planning import Asked
from twinserve.server.runtime.providers import CPU, Device
from twinserve.server.runtime.runner import Runner


class Untold(RunCosts):
    """A table that learns nothing: a batcher with it takes all that waits."""

    def tell(self, rows: int, longest: int, seconds: float) -> None: ...


class Counted:
    """A runner that counts, and the observer that its batcher needs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.runs = self.tokens = self.padding = 0

    def run(self, rows: Rows) -> Outputs:
        lengths = [len(row) for row in rows]
        self.runs += 1
        self.tokens += sum(lengths)
        self.padding += padded(lengths) - sum(lengths)
        return self._runner.run(rows)

    def batch(self, rows: int, seconds: float, reason: Reason) -> None: ...
    def queued(self, seconds: float) -> None: ...
    def padded(self, tokens: int, padding: int) -> None: ...
    def dropped(self, rows: int, why: str) -> None: ...


@dataclass(frozen=True)
class Figures:
    """One way's answer to one load."""

    way: str
    texts: int
    runs: int
    padding: float  # tokens of padding for each token of a text
    texts_per_second: float
    cpu_ms: float  # processor time of a text
    p50_ms: float
    p99_ms: float
    longest_p99_ms: float  # of the longest tenth


def measure(way: str, runner: Runner, texts: Sequence[Row], clients: int) -> Figures:
    """Embed all texts, `clients` at a time."""
    counted = Counted(runner)
    taken: list[tuple[int, float]] = []
    left = iter(texts)
    batcher = Batcher(
        counted.run,
        max_batch=64,
        runners=1,
        observer=counted,
        max_tokens=CPU_BATCH_TOKENS if way == "cut" else None,
        costs=RunCosts() if way == "cut" else Untold(),
    )

    async def client(name: str) -> None:
        for ids in left:
            began = time.perf_counter()
            await batcher.submit([ids], Caller(name))
            taken.append((len(ids), time.perf_counter() - began))

    async def main() -> None:
        await asyncio.gather(*(client(str(i)) for i in range(clients)))

    began, processed = time.perf_counter(), time.process_time()
    asyncio.run(main())
    whole, processing = time.perf_counter() - began, time.process_time() - processed
    batcher.close()
    p50, p99 = np.quantile([seconds for _, seconds in taken], [0.5, 0.99]) * 1e3
    long = np.quantile([length for length, _ in taken], 0.9)
    longest = np.quantile([seconds for length, seconds in taken if length >= long], 0.99) * 1e3
    return Figures(
        way,
        len(texts),
        counted.runs,
        counted.padding / counted.tokens,
        len(texts) / whole,
        processing / len(texts) * 1e3,
        float(p50),
        float(p99),
        float(longest),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a text twin")
    parser.add_argument("--texts", type=Path, required=True, help="one text a line")
    parser.add_argument("--count", type=int, default=300, help="texts drawn from them")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skewed", action="store_true", help="texts of 4 to 256 tokens instead")
    arguments = parser.parse_args()
    runner = Runner(arguments.model, Device(CPU, {}), Asked(1, arguments.threads))
    assert runner.tokenizer is not None, "the twin takes no texts"
    lines = [line for line in arguments.texts.read_text().splitlines() if line.strip()]
    drawn = np.random.default_rng(0).choice(len(lines), arguments.count)
    texts = [runner.tokenizer.encode(lines[i], truncate=True).ids for i in drawn]
    if arguments.skewed:
        # Of made lengths, log-normal about 14: texts put together from what there is.
        generator = np.random.default_rng(1)
        pool = np.concatenate([ids[1:-1] for ids in texts])
        lengths = generator.lognormal(np.log(14), 0.9, arguments.count).clip(4, 256).astype(int)
        first, last = texts[0][:1], texts[0][-1:]
        texts = [
            np.concatenate([first, generator.choice(pool, length - 2), last]) for length in lengths
        ]
    found: dict[str, list[Figures]] = {"whole": [], "cut": []}
    for _ in range(arguments.turns):
        for way, figures in found.items():
            figures.append(measure(way, runner, texts, arguments.clients))
            print(json.dumps(asdict(figures[-1])), flush=True)
    for name in ("texts_per_second", "cpu_ms", "p50_ms", "p99_ms", "longest_p99_ms"):
        whole, cut = (
            statistics.median(getattr(one, name) for one in found[way]) for way in ("whole", "cut")
        )
        print(f"{name}: cut / whole = {cut / whole:.2f}")


if __name__ == "__main__":
    main()
