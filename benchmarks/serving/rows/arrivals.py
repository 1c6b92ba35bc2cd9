"""How long do callers wait when they come by chance, and the server is busy 70 % of the time?"""

from __future__ import annotations

import numpy as np

from benchmarks.serving import figures, wire
from benchmarks.serving.report import Aim, Line
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


def measure(stage: Stage) -> None:
    """Ask ours alone; `singles` and `alone` were there before."""
    if not stage.capacity or not stage.alone:
        raise RuntimeError("this row stands on singles and alone; measure those too")
    rate = BUSY * stage.capacity
    body = stage.body(stage.ours).read_bytes()
    due = times(rate, 3 * stage.setting.seconds)
    with stage.ours.turn(), stage.ours.connected(CONNECTIONS) as connections:
        calls = wire.paced(connections, [body], due)
    answered = [call for call in calls if call.status == wire.OK]
    waits = [call.seconds for call in answered]
    rides = [pb.EmbedResponse.FromString(call.reply[5:]).timing for call in answered]
    batch = figures.percentile([ride.inference_us / 1e6 for ride in rides], 0.5)
    p50, p99 = (figures.percentile(waits, share) for share in (0.5, 0.99))
    late = figures.percentile([call.sent - call.due for call in calls], 0.99)
    most = 3 * stage.alone + batch
    stage.report.lines.append(
        Line(
            TABLE,
            str(stage.subject),
            f"{rate:.0f} a second",
            "ours",
            {
                "p50 ms": f"{1e3 * p50:.2f}",
                "p99 ms": f"{1e3 * p99:.2f}",
                "idle p50 ms": f"{1e3 * stage.alone:.2f}",
                "batch ms": f"{1e3 * batch:.2f}",
                "failed": str(len(calls) - len(answered)),
                "sent late, p99 ms": f"{1e3 * late:.2f}",
            },
            aims=(
                Aim(
                    f"p99 below three idle p50 and one batch ({1e3 * p99:.1f} of "
                    f"{1e3 * most:.1f} ms)",
                    p99 < most,
                ),
            ),
            windows={"rate": rate, "waits": _sketch(waits)},
        )
    )


def _sketch(values: list[float]) -> dict[str, float]:
    """Return the percentiles of many values, which need not all be kept."""
    return {str(share): figures.percentile(values, share) for share in (0.1, 0.5, 0.9, 0.99, 0.999)}
