"""What is left of the limit when a call brings a whole batch?"""

from __future__ import annotations

from benchmarks.serving import figures
from benchmarks.serving.report import Aim, Line
from benchmarks.serving.stage import RAW, Stage

TABLE = "Calls of 32 items"
ITEMS, IN_FLIGHT = 32, 4
LEAST = {"tiny": 0.85, "minilm": 0.98, "resnet18": 0.98}  # of raw


def measure(stage: Stage) -> None:
    """Ask raw onnxruntime, ours and the bare server in turn."""
    # ResNet-18 does some four such calls a second.
    stretch = 2.0 if stage.subject.name == "resnet18" else 1.0
    raw: list[float] = []
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for order in stage.turns([RAW, *rates]):
        for name in order:
            if name == RAW:
                raw.append(stage.limit.rate(stage.setting.seconds))
            else:
                window = stage.window(stage.servers[name], IN_FLIGHT, ITEMS, stretch)
                rates[name].append(ITEMS * window.rate)
    for name, found in rates.items():
        share, least = figures.ratios(found, raw), LEAST[stage.subject.name]
        aim = Aim(f">= {least} of raw ({share.median:.3f})", share.median >= least)
        stage.report.lines.append(
            Line(
                TABLE,
                str(stage.subject),
                f"{IN_FLIGHT} in flight",
                name,
                {"rows per second": f"{figures.spread(found):.0f}", "of raw": f"{share:.2f}"},
                aims=(aim,) if name == "ours" and stage.subject.precision == "fp32" else (),
                windows={"rates": found, "raw": raw},
            )
        )
