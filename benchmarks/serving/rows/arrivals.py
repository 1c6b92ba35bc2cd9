"""How long do callers wait when they come by chance, and the server is busy 70 % of the time?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving import figures, wire
from benchmarks.serving.report import Aim, Line
from benchmarks.serving.servers import Server
from benchmarks.serving.stage import Stage
from twinserve.v1 import embedding_service_pb2 as pb

TABLE = "Poisson arrivals at 70 % load"
BUSY = 0.7
CONNECTIONS = 8
SEED = 5


def times(rate: float, seconds: float, seed: int = SEED) -> list[float]:
    """Return the instants of a Poisson process, in seconds from its start."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, round(rate * seconds * 1.2) + 10)
    instants = np.cumsum(gaps)
    found: list[float] = instants[instants < seconds].tolist()
    return found


@dataclass(frozen=True)
class Turn:
    """What one server did in one turn."""

    capacity: float  # calls a second, 32 in flight, just before
    idle: float  # p50 of one call at a time, just before
    waits: tuple[float, ...]
    batch: float  # median seconds of the runs that answered; 0 where the reply does not tell
    failed: int
    late: float  # p99 of what the generator was late by


def measure(stage: Stage) -> None:
    """Ask ours and the bare server in turn, at the rate that keeps ours so busy at the time."""
    found: dict[str, list[Turn]] = {"ours": [], "bare": []}
    rates = []
    for number, order in enumerate(stage.turns(list(found))):
        before = {name: _before(stage, stage.servers[name]) for name in order}
        rates.append(BUSY * before["ours"][0])
        due = times(rates[-1], 2 * stage.setting.seconds, SEED + number)
        for name in order:
            found[name].append(_turn(stage, name, *before[name], due))
    for name, turns in found.items():
        p50, p99 = (
            figures.spread([1e3 * figures.percentile(turn.waits, share) for turn in turns])
            for share in (0.5, 0.99)
        )
        idle = figures.spread([1e3 * turn.idle for turn in turns])
        batch = figures.spread([1e3 * turn.batch for turn in turns])
        most = 3 * idle.median + batch.median
        aim = Aim(
            f"p99 below three idle p50 and one batch ({p99.median:.1f} of {most:.1f} ms)",
            p99.median < most,
        )
        ours = name == "ours"
        stage.report.lines.append(
            Line(
                TABLE,
                str(stage.subject),
                f"{figures.spread(rates).median:.0f} a second",
                name,
                {
                    "p50 ms": f"{p50:.1f}",
                    "p99 ms": f"{p99:.1f}",
                    "idle p50 ms": f"{idle:.1f}",
                    "batch ms": f"{batch.median:.1f}" if ours else "",
                    "failed": str(sum(turn.failed for turn in turns)),
                    "sent late, p99 ms": f"{1e3 * max(turn.late for turn in turns):.2f}",
                },
                aims=(aim,) if ours else (),
                windows={
                    "rates": rates,
                    "capacities": [turn.capacity for turn in turns],
                    "waits": [_sketch(turn.waits) for turn in turns],
                },
            )
        )


def _before(stage: Stage, server: Server) -> tuple[float, float]:
    """Return what a server carries, and how soon it answers one call, just now."""
    full = stage.window(server, 32, stretch=0.5)
    alone = stage.window(server, 1, stretch=0.5)
    return full.rate, figures.percentile(alone.latencies, 0.5)


def _turn(stage: Stage, name: str, capacity: float, idle: float, due: list[float]) -> Turn:
    server = stage.servers[name]
    body = stage.body(server).read_bytes()
    with server.turn(), server.connected(CONNECTIONS) as connections:
        calls = wire.paced(connections, [body], due)
    answered = [call for call in calls if call.status == wire.OK]
    batch = 0.0
    if name == "ours":
        rides = [pb.EmbedResponse.FromString(call.reply[5:]).timing for call in answered]
        batch = figures.percentile([ride.inference_us / 1e6 for ride in rides], 0.5)
    return Turn(
        capacity,
        idle,
        tuple(call.seconds for call in answered),
        batch,
        len(calls) - len(answered),
        figures.percentile([call.sent - call.due for call in calls], 0.99),
    )


def _sketch(values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of many values, which need not all be kept."""
    return {str(share): figures.percentile(values, share) for share in (0.1, 0.5, 0.9, 0.99, 0.999)}
