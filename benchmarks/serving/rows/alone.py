"""How much longer does a lone caller wait than the bare server would let it?"""

from __future__ import annotations

from benchmarks.serving import figures
from benchmarks.serving.report import Aim, Line
from benchmarks.serving.stage import Stage

TABLE = "One call at a time"
MOST_MORE = 0.00015  # seconds, of the tiny net
MOST_SHARE = 1.05  # of the others


def measure(stage: Stage) -> None:
    """Ask ours and the bare server in turn, one call at a time."""
    waits: dict[str, list[float]] = {"ours": [], "bare": []}
    for order in stage.turns(list(waits)):
        for name in order:
            window = stage.window(stage.servers[name], 1)
            waits[name].append(figures.percentile(window.latencies, 0.5))
    more = figures.spread([a - b for a, b in zip(*waits.values(), strict=True)])
    share = figures.ratios(waits["ours"], waits["bare"])
    if stage.subject.name == "tiny":
        aim = Aim(
            f"p50 at most {1e3 * MOST_MORE:.2f} ms above the bare server's "
            f"({1e3 * more.median:+.2f} ms)",
            more.median <= MOST_MORE,
        )
    else:
        aim = Aim(
            f"p50 at most {MOST_SHARE} of the bare server's ({share.median:.3f})",
            share.median <= MOST_SHARE,
        )
    for name, found in waits.items():
        shown = {"p50 ms": f"{figures.spread([1e3 * one for one in found]):.2f}"}
        if name == "ours":
            shown["of bare"] = f"{share:.2f}"
            shown["ms more"] = f"{1e3 * more.median:+.2f}"
        stage.report.lines.append(
            Line(
                TABLE, str(stage.subject), "1 in flight", name, shown,
                aims=(aim,) if name == "ours" else (), windows={"p50": found},
            )
        )  # fmt: skip
