"""How much of the limit is left when every call has one item? The row that peers are judged by."""

from __future__ import annotations

from benchmarks.serving import figures
from benchmarks.serving.h2load import Window
from benchmarks.serving.report import Aim, Line
from benchmarks.serving.stage import COMPARED_AT_THEIR_BEST, RAW, Stage

TABLE = "Calls of one item"
LEAST_SHARE = 0.97  # of reachable, where the model is what costs
# Windows of the same server differ by that much on a quiet machine.
NOISE = 0.02


def measure(stage: Stage, in_flight: int) -> None:
    """Ask raw onnxruntime and every server in turn, with so many calls in flight."""
    raw: list[float] = []
    # The others are far behind, and need not be asked at every load.
    asked = [
        name
        for name in stage.servers
        if in_flight == max(stage.setting.in_flight) or name in ("ours", *COMPARED_AT_THEIR_BEST)
    ]
    windows: dict[str, list[Window]] = {name: [] for name in asked}
    for order in stage.turns([RAW, *asked]):
        for name in order:
            if name == RAW:
                raw.append(stage.limit.rate(stage.setting.seconds))
            elif name in windows:
                try:
                    windows[name].append(stage.window(stage.servers[name], in_flight))
                except (RuntimeError, OSError) as error:
                    if name not in stage.setting.peers:
                        raise
                    # A peer that fails under this load is no reason to stop.
                    del windows[name]
                    stage.report.notes.append(f"{name} on {stage.subject}, {in_flight}: {error}")
    overhead = min(stage.overhead.values())
    can = [figures.reachable(one, overhead, stage.cores) for one in raw]
    load = f"{in_flight} in flight"
    stage.report.lines.append(
        Line(
            TABLE,
            str(stage.subject),
            load,
            RAW,
            {
                "per second": f"{figures.spread(raw):.0f}",
                "reachable": f"{figures.spread(can).median:.0f}",
                "how": f"{stage.limit.layout}, batches of {stage.limit.batch}",
            },
            windows={"raw": raw, "overhead": stage.overhead, "tried": stage.limit.tried},
        )
    )
    rates = {name: [one.rate for one in found] for name, found in windows.items()}
    for name, found in windows.items():
        against_raw = figures.ratios(rates[name], raw)
        against_can = figures.ratios(rates[name], can)
        against_bare = figures.ratios(rates[name], rates["bare"])
        costs = [1e6 * one.server_cpu for one in found]
        waits = [figures.percentile(one.latencies, 0.99) for one in found]
        stage.report.lines.append(
            Line(
                TABLE,
                str(stage.subject),
                load,
                name,
                {
                    "per second": f"{figures.spread(rates[name]):.0f}",
                    "of raw": f"{against_raw:.2f}",
                    "of reachable": f"{against_can:.2f}",
                    "of bare": f"{against_bare:.2f}",
                    "CPU us a call": f"{figures.spread(costs).median:.0f}",
                    "p99 ms": f"{1e3 * figures.spread(waits).median:.1f}",
                    **({"how": str(stage.layouts[name])} if name in stage.layouts else {}),
                },
                aims=_aims(stage, rates, against_can.median) if name == "ours" else (),
                windows={
                    "rates": rates[name],
                    "server_cpu": [one.server_cpu for one in found],
                    "generator_cpu": [one.own_cpu for one in found],
                    "p50": [figures.percentile(one.latencies, 0.5) for one in found],
                    "p99": waits,
                },
            )
        )


def _aims(stage: Stage, rates: dict[str, list[float]], share: float) -> tuple[Aim, ...]:
    aims = []
    if stage.subject.name == "tiny":
        ratio = figures.ratios(rates["ours"], rates["bare"])
        aims.append(Aim(f"not behind the bare server ({ratio:.2f})", ratio.median >= 1 - NOISE))
    else:
        aims.append(Aim(f">= {LEAST_SHARE} of reachable ({share:.3f})", share >= LEAST_SHARE))
    for name in stage.setting.peers:
        if name in rates:
            ratio = figures.ratios(rates["ours"], rates[name])
            aims.append(Aim(f"not behind {name} ({ratio:.2f})", ratio.median >= 1 - NOISE))
    return tuple(aims)
