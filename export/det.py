"""Detection error trade-off: false rejects over false accepts, in a terminal or as a PNG.

In: calibrations of a manifest. Out: text of plain characters, or a picture. Both axes are normal
deviates, where two normal distributions of equal spread give a straight line (Martin et al., "The
DET curve in assessment of detection task performance", 1997). The curve ends where the evidence
does; beside it stands its 95 % bound, false accepts being the rate that is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

from twinserve.manifest import ITEM, Calibration, OperatingPoint

MARKS = "ox+*#@"
BOUND = "."
TICKS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
# A rate that was never seen is no normal deviate; it is drawn at the edge.
_LEAST = 1e-6

_probit = NormalDist().inv_cdf


def curves(calibrations: Sequence[Calibration], full: int, most: int) -> dict[str, Calibration]:
    """Choose the calibrations that are worth a curve, by the name of their curve.

    Single items of the full dimension come first, then the largest subjects, then truncations.

    Args:
        calibrations: of one manifest; those without points have no curve.
        full: its dimension.
        most: how many curves, up to the number of marks.
    """
    ordered = sorted(
        (entry for entry in calibrations if entry.points),
        key=lambda entry: (
            entry.dimension != full and entry.aggregation != ITEM,
            -entry.dimension,
            entry.aggregation != ITEM,
            -_size(entry),
        ),
    )
    return {_name(entry, full): entry for entry in ordered[:most]}


def plot(chosen: dict[str, Calibration], width: int = 64, height: int = 18) -> str:
    """Draw curves with plain characters, several lines long and without a final newline.

    The bound is drawn for the first curve alone.

    Args:
        chosen: at least one calibration, by the name of its curve.
        width: characters of the frame's inside.
        height: lines of the frame's inside.
    """
    low, high = _span([point.false_accept_rate for point in _points(chosen)])
    floor, ceiling = _span([1.0 - point.true_accept_rate for point in _points(chosen)])
    cells = [[" "] * width for _ in range(height)]

    def put(far: float, frr: float, mark: str) -> None:
        column = _place(far, low, high, width)
        line = height - 1 - _place(frr, floor, ceiling, height)
        cells[line][column] = mark

    first = next(iter(chosen.values()))
    for far, frr in _dense([(p.false_accept_rate_upper, _missed(p)) for p in first.points], width):
        put(far, frr, BOUND)
    for mark, entry in reversed(list(zip(MARKS, chosen.values(), strict=False))):
        for point in entry.points:
            put(point.false_accept_rate, _missed(point), mark)

    labels = {height - 1 - _place(tick, floor, ceiling, height): tick
              for tick in TICKS if floor <= _deviate(tick) <= ceiling}  # fmt: skip
    lines = ["false rejects"]
    for number, line in enumerate(cells):
        label = f"{100 * labels[number]:g} %" if number in labels else ""
        edge = "+" if label else "|"
        lines.append(f"{label:>9} {edge}{''.join(line)}|".rstrip())
    axis, names = ["-"] * width, [" "] * (width + 12)
    for tick in TICKS:
        if low <= _deviate(tick) <= high:
            column = _place(tick, low, high, width)
            axis[column] = "+"
            name = f"{100 * tick:g} %"
            start = max(0, column - len(name) // 2)
            if "".join(names[max(0, start - 1) : start + len(name) + 1]).strip() == "":
                names[start : start + len(name)] = name
    lines.append(f"{'':>9} +{''.join(axis)}+")
    lines.append(f"{'':>11}{''.join(names)}".rstrip())
    lines.append(f"{'':>11}{'false accepts':>{width}}")
    legend = [f"{mark} {name}" for mark, name in zip(MARKS, chosen, strict=False)]
    legend.append(f"{BOUND} 95 % bound of the first")
    return "\n".join([*lines, *(f"{'':>11}{line}" for line in legend)])


def save_png(chosen: dict[str, Calibration], path: Path, title: str) -> None:
    """Draw the same as a picture; matplotlib is imported here and nowhere else.

    Args:
        chosen: at least one calibration, by the name of its curve.
        path: of the PNG.
        title: above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, entry) in enumerate(chosen.items()):
        color = f"C{number}"
        x = [_deviate(point.false_accept_rate) for point in entry.points]
        upper = [_deviate(point.false_accept_rate_upper) for point in entry.points]
        y = [_deviate(_missed(point)) for point in entry.points]
        axes.plot(x, y, color=color, label=name)
        axes.fill_betweenx(y, x, upper, color=color, alpha=0.15, linewidth=0)
    for span, axis in ((axes.get_xlim(), axes.xaxis), (axes.get_ylim(), axes.yaxis)):
        ticks = [tick for tick in TICKS if span[0] <= _deviate(tick) <= span[1]]
        axis.set_ticks([_deviate(tick) for tick in ticks], [f"{100 * t:g} %" for t in ticks])
    axes.set_xlabel("false accepts; shaded up to the 95 % bound")
    axes.set_ylabel("false rejects")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _name(calibration: Calibration, full: int) -> str:
    size = _size(calibration)
    name = f"{calibration.precision}, " + ("single items" if size == 1 else f"nearest of {size}")
    cut = "" if calibration.dimension == full else f", first {calibration.dimension} numbers"
    return name + cut


def _size(calibration: Calibration) -> int:
    """Return how many items a subject has."""
    size = calibration.aggregation.removeprefix("nearest_of_")
    return int(size) if size.isdigit() else 1


def _points(chosen: dict[str, Calibration]) -> list[OperatingPoint]:
    return [point for entry in chosen.values() for point in entry.points]


def _missed(point: OperatingPoint) -> float:
    return 1.0 - point.true_accept_rate


def _deviate(rate: float) -> float:
    return _probit(min(max(rate, _LEAST), 1.0 - _LEAST))


def _span(rates: Sequence[float]) -> tuple[float, float]:
    """Return the axis's ends as deviates: the ticks around the rates that were seen."""
    seen = [rate for rate in rates if 0.0 < rate < 1.0] or [0.5]
    low = max((tick for tick in TICKS if tick <= min(seen)), default=TICKS[0])
    high = min((tick for tick in TICKS if tick >= max(seen)), default=TICKS[-1])
    if low == high:
        low, high = TICKS[0], TICKS[-1]
    return _deviate(low), _deviate(high)


def _place(rate: float, low: float, high: float, count: int) -> int:
    share = (_deviate(rate) - low) / (high - low)
    return min(max(round(share * (count - 1)), 0), count - 1)


def _dense(corners: Sequence[tuple[float, float]], steps: int) -> list[tuple[float, float]]:
    """Put points between neighbouring corners, so that a line shows no gaps."""
    found = list(corners[:1])
    for (far, frr), (next_far, next_frr) in pairwise(corners):
        for step in range(1, steps + 1):
            share = step / steps
            found.append((far + share * (next_far - far), frr + share * (next_frr - frr)))
    return found
