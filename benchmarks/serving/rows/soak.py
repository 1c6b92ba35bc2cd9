"""Does memory stay where it is, over very many requests of varied size?"""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks.serving import figures, forms, servers, wire
from benchmarks.serving.report import Aim, Line, Report
from benchmarks.serving.rows import lengths
from benchmarks.serving.subjects import Subject

TABLE = "Memory over many requests"
CALLS, PIECES = 200_000, 20
# A machine of two cores embeds some hundred texts of varied length a second, and pixels 10,000.
CALLS_OF_TEXTS = 6_000
LARGEST, BODIES = 32, 97  # items of a call, and different calls
IN_FLIGHT, CONNECTIONS = 16, 4
PATIENCE = 120.0  # seconds that a piece may take
MOST_GROWTH = 0.02  # of the last half
SEED = 9


def measure(subject: Subject, report: Report, calls: int) -> None:
    """Send calls of 1 to 32 items, most of them small, and watch resident memory."""
    bodies = _bodies(subject)
    resident: list[int] = []
    with (
        servers.ours(subject.path, still=False) as ours,
        ours.connected(CONNECTIONS) as connections,
    ):
        for _ in range(PIECES):
            ended = wire.closed(connections, bodies, IN_FLIGHT, PATIENCE, most=calls // PIECES)
            if len(ended) != calls // PIECES:
                raise RuntimeError(f"{len(ended)} of {calls // PIECES} calls ended in {PATIENCE} s")
            failed = [call for call in ended if call.status != wire.OK]
            if failed:
                raise RuntimeError(f"{len(failed)} calls failed, first with {failed[0].status}")
            resident.append(ours.usage().resident)
    grown = figures.growth(resident[PIECES // 2 - 1], resident[-1])
    report.lines.append(
        Line(
            TABLE,
            str(subject),
            f"{calls:,} calls" + _of(subject),
            "ours",
            {
                "MiB at the half": f"{resident[PIECES // 2 - 1] / 2**20:.1f}",
                "MiB at the end": f"{resident[-1] / 2**20:.1f}",
                "growth": f"{grown:+.2%}",
            },
            aims=(
                Aim(f"the last half grows by less than 2 % ({grown:+.2%})", grown < MOST_GROWTH),
            ),
            windows={"resident": resident},
        )
    )


def _bodies(subject: Subject) -> list[bytes]:
    sizes = np.random.default_rng(SEED).geometric(0.3, BODIES).clip(1, LARGEST).tolist()
    if subject.tokenizer is None:
        inputs = [forms.given(subject, number) for number in range(LARGEST)]
        return [forms.CONTRACT.body(subject, inputs[:size]) for size in sizes]
    texts = iter(
        subject.text(length, seed).encode() for seed, length in enumerate(lengths.drawn(sum(sizes)))
    )
    return [forms.CONTRACT.body(subject, list(itertools.islice(texts, size))) for size in sizes]


def _of(subject: Subject) -> str:
    if subject.tokenizer is None:
        return " of pixels"
    return f" of texts of {lengths.SHORTEST} to {lengths.LONGEST} tokens"
