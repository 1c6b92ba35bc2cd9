"""Does memory stay where it is, over very many requests of varied size?"""

from __future__ import annotations

import numpy as np

from benchmarks.serving import figures, forms, servers, wire
from benchmarks.serving.report import Aim, Line, Report
from benchmarks.serving.subjects import Subject

TABLE = "Memory over many requests"
CALLS, PIECES = 200_000, 20
LARGEST, BODIES = 32, 97
IN_FLIGHT, CONNECTIONS = 16, 4
PATIENCE = 120.0  # seconds that a piece may take
MOST_GROWTH = 0.02  # of the last half
SEED = 9


def measure(subject: Subject, report: Report, calls: int = CALLS) -> None:
    """Send calls of 1 to 32 items, most of them small, and watch resident memory."""
    sizes = np.random.default_rng(SEED).geometric(0.3, BODIES).clip(1, LARGEST)
    inputs = [forms.given(subject, number) for number in range(LARGEST)]
    bodies = [forms.CONTRACT.body(subject, inputs[:size]) for size in sizes]
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
            f"{calls} calls",
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
