"""Fused forms of a text twin's graph, kept only where they are measured to be faster here.

In: an fp32 graph. Out: the same arithmetic with onnxruntime's fused transformer operators, and how
many times faster it runs, both graphs taking turns in one process. A timing would let the machine
decide a file's bytes, so that nobody tries this unless asked to.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from twinserve.errors import GateFailed
from twinserve.export.session import GraphSession
from twinserve.export.strip import strip
from twinserve.feed import Rows
from twinserve.train.data import take
from twinserve.train.quiet import quiet

# Below this a measured gain is no reason for operators that onnxruntime alone knows.
LEAST_GAIN = 1.05
BATCH_SIZES = (1, 16)
ROUNDS = 21
MAX_SECONDS = 20.0

Fuse = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Speed:
    """Time of the plain graph over that of the fused one, run by run: above 1 is faster."""

    batch_size: int
    rounds: int
    ratio: float  # median
    low: float  # quartiles
    high: float


@dataclass(frozen=True)
class Trial:
    """What came of trying a fused graph."""

    kept: bool
    reason: str
    speeds: tuple[Speed, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "kept": self.kept,
            "reason": self.reason,
            "least_gain": LEAST_GAIN,
            "speeds": [
                {
                    "batch_size": speed.batch_size,
                    "rounds": speed.rounds,
                    "ratio": round(speed.ratio, 3),
                    "low": round(speed.low, 3),
                    "high": round(speed.high, 3),
                }
                for speed in self.speeds
            ],
        }


def fuse(graph: bytes) -> bytes:
    """Return the graph with what onnxruntime's transformer optimiser finds to fuse.

    Raises:
        GateFailed: the optimiser cannot read the graph.
    """
    from onnxruntime.transformers import optimizer  # some seconds to import

    try:
        # It prints, too, and standard output belongs to --json.
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            fused = optimizer.optimize_model(
                onnx.load_from_string(graph), model_type="bert", opt_level=0, use_gpu=False
            ).model
    except Exception as error:  # the optimiser raises whatever it runs into
        raise GateFailed(
            f"the graph cannot be fused ({type(error).__name__}: {str(error)[:200]}); export "
            "without --optimize",
            metadata={"figure": "fusion"},
        ) from error
    strip(fused)
    return bytes(fused.SerializeToString(deterministic=True))


def speeds(plain: GraphSession, fused: GraphSession, rows: Rows) -> tuple[Speed, ...]:
    """Time both graphs in turns, on single rows and on batches of real ones.

    Args:
        plain: on one thread, as is `fused`.
        fused: what may be faster.
        rows: real ones, at least one.
    """
    return tuple(_speed(plain, fused, rows, size) for size in BATCH_SIZES)


def judge(measured: tuple[Speed, ...]) -> Trial:
    """Keep what is faster at every batch size; a gain in one does not pay for a loss in another."""
    slowest = min(measured, key=lambda speed: speed.ratio)
    kept = slowest.ratio >= LEAST_GAIN
    reason = (
        f"{slowest.ratio:.2f} times as fast at batch size {slowest.batch_size}, the least gain "
        f"that counts is {LEAST_GAIN:.2f}"
    )
    return Trial(kept, reason, measured)


def _speed(plain: GraphSession, fused: GraphSession, rows: Rows, size: int) -> Speed:
    ratios: list[float] = []
    end = time.perf_counter() + MAX_SECONDS / len(BATCH_SIZES)
    for turn in range(ROUNDS + 1):
        batch = take(rows, (np.arange(size) + turn * size) % len(rows))
        # Who runs second finds the batch in the cache, so they take turns at that too.
        first, second = (plain, fused) if turn % 2 else (fused, plain)
        seconds = {id(first): _seconds(first, batch), id(second): _seconds(second, batch)}
        if turn:  # the first round warms both up
            ratios.append(seconds[id(plain)] / seconds[id(fused)])
        if len(ratios) >= 5 and time.perf_counter() > end:
            break
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return Speed(size, len(ratios), middle, low, high)


def _seconds(session: GraphSession, batch: Rows) -> float:
    start = time.perf_counter()
    session(batch)
    return time.perf_counter() - start
