"""Pictures of a run: the ROC, and the distances of genuine and impostor pairs.

In: measured pair distances. Out: PNG files. Figures are plain objects (no pyplot), so that nothing
is shared between calls and no display is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinserve.calibration import PairDistances, equal_error_rate, roc, threshold_at
from twinserve.distance import Metric

GENUINE, IMPOSTOR = "#1b7f5c", "#c1442e"


def draw_roc(pairs: PairDistances, path: Path) -> None:
    """Draw TAR over FAR, with FAR on a logarithmic axis from one impostor pair upwards."""
    curve = roc(pairs.genuine, pairs.impostor)
    eer = equal_error_rate(pairs.genuine, pairs.impostor)
    figure, axes = _axes()
    lowest = 1.0 / len(pairs.impostor)
    shown = curve.false_accept_rate >= lowest
    axes.plot(curve.false_accept_rate[shown], curve.true_accept_rate[shown], color=GENUINE, lw=2)
    chance = np.geomspace(lowest, 1.0, 200)
    axes.plot(chance, chance, color="grey", lw=1, ls=":", label="chance")
    axes.plot([eer], [1.0 - eer], "o", color=IMPOSTOR, label=f"EER {eer:.1%}")
    axes.set(
        xscale="log",
        xlim=(lowest, 1.0),
        ylim=(0.0, 1.01),
        xlabel="false accept rate (FAR)",
        ylabel="true accept rate (TAR)",
        title=_title("ROC on the report classes", pairs),
    )
    axes.grid(alpha=0.3, which="major")
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def draw_distances(pairs: PairDistances, metric: Metric, path: Path) -> None:
    """Draw histograms of genuine and impostor distances, each with area one."""
    figure, axes = _axes()
    top = float(max(pairs.genuine.max(), pairs.impostor.max()))
    edges = np.linspace(0.0, max(top, 1e-6), 81)
    for distances, color, label in (
        (pairs.genuine, GENUINE, "genuine"),
        (pairs.impostor, IMPOSTOR, "impostor"),
    ):
        axes.hist(distances, bins=list(edges), density=True, color=color, alpha=0.55, label=label)
    for rate, style in ((0.1, ":"), (0.01, "--")):
        threshold = threshold_at(pairs.impostor, rate)
        if threshold is not None:
            axes.axvline(
                threshold, color="black", lw=1, ls=style, label=f"threshold at FAR {rate:g}"
            )
    axes.set(
        xlim=(0.0, max(top, 1e-6)),
        xlabel=f"{metric.value} distance",
        ylabel="density",
        title=_title("Distances on the report classes", pairs),
    )
    axes.legend(loc="upper right", frameon=False)
    _save(figure, path)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(what: str, pairs: PairDistances) -> str:
    return f"{what}\n{len(pairs.genuine):,} genuine, {len(pairs.impostor):,} impostor pairs"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=120)
