"""A twin's calibrations as a person wants to read them: what is decided, and on what evidence.

In: the calibrations of a manifest. Out: lines of text. Shared by `inspect`, which shows a file, and
`calibrate`, which has just made one.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinserve.calibration import required
from twinserve.export.layout import percent, rows, section, table
from twinserve.manifest import ITEM, Calibration, OperatingPoint

SHOWN_RATES = (0.1, 0.01, 0.001, 0.0001)
# A point that stands for a rate lies within half a step of the calibration's grid below it.
_NEAR_ENOUGH = 0.8
_EVIDENCE = {
    "run": "the run's own held-out classes",
    "labels": "labelled data of the user's",
    "pairs": "judged pairs of the user's; the rates are those of pairs drawn in the same way",
}


def describe_calibrations(
    calibrations: Sequence[Calibration], full: int, rates: Sequence[float] = ()
) -> list[str]:
    """Return a section per precision and dimension: single items first, then subjects of several.

    Args:
        calibrations: of one manifest.
        full: its dimension.
        rates: shown besides `SHOWN_RATES`.
    """
    sections = []
    for precision, dimension in dict.fromkeys((c.precision, c.dimension) for c in calibrations):
        own = [c for c in calibrations if (c.precision, c.dimension) == (precision, dimension)]
        singles = [entry for entry in own if entry.aggregation == ITEM]
        subjects = [entry for entry in own if entry.aggregation != ITEM]
        lines: list[str] = []
        for entry in singles:
            lines += _single(entry, sorted({*SHOWN_RATES, *rates}, reverse=True))
        if subjects:
            lines += ["", *_subjects(subjects)] if lines else _subjects(subjects)
        title = f"Calibration of {precision}"
        if dimension != full:
            title += f", first {dimension} numbers"
        sections.append(section(title, lines))
    return sections


def shortfall(calibration: Calibration, rate: float) -> str | None:
    """Say in a sentence what it would take to carry a rate, or None where it is carried."""
    need = required(calibration, rate)
    if need is None:
        return None
    if calibration.evidence == "pairs":
        return (
            f"FAR {rate:g} would take about {need.impostor_pairs:,} pairs that are not the same "
            f"(there are {calibration.impostor_pairs:,})"
        )
    return (
        f"FAR {rate:g} would take about {need.classes:,} classes of as many items (there are "
        f"{calibration.classes:,}), which make {need.impostor_pairs:,} impostor pairs (there are "
        f"{calibration.impostor_pairs:,})"
    )


def point_at(points: Sequence[OperatingPoint], rate: float) -> OperatingPoint | None:
    """Return the point that stands for a rate, or None where there is none near it."""
    fitting = [
        point
        for point in points
        if rate * _NEAR_ENOUGH <= point.false_accept_rate <= rate * (1 + 1e-9)
    ]
    return max(fitting, key=lambda point: point.false_accept_rate, default=None)


def _single(calibration: Calibration, rates: Sequence[float]) -> list[str]:
    vertices = "groups" if calibration.evidence == "pairs" else "classes"
    facts = [
        (
            "measured on",
            f"{calibration.classes} {vertices}, {calibration.genuine_pairs} genuine and "
            f"{calibration.impostor_pairs} impostor pairs",
        ),
        ("evidence", _EVIDENCE.get(calibration.evidence, calibration.evidence)),
        ("metric", calibration.metric.value),
        ("equal error rate", percent(calibration.equal_error_rate)),
        ("default rate", f"FAR {calibration.default_far:.3g}{_fallen_back(calibration)}"),
        (
            "likelihood ratio",
            f"ln LR = {calibration.intercept:.3f} - {calibration.slope:.3f} x distance "
            f"(even at {_even(calibration)})",
        ),
    ]
    if calibration.data_digest:
        facts.append(("data digest", calibration.data_digest))
    head = ("FAR asked", "FAR measured", "95 % bound", "TAR", "threshold")
    lines = [*rows(facts), "", *table(head, [_row(rate, calibration) for rate in rates])]
    if not calibration.points:
        return lines
    smallest = calibration.points[-1].false_accept_rate
    text = f"The smallest rate that the evidence carries is FAR {smallest:.2g}."
    return [*lines, "", text, *_smaller(calibration, rates)]


def _smaller(calibration: Calibration, rates: Sequence[float]) -> list[str]:
    """Say what the rates that are not carried would take, and a decade below those shown."""
    body = []
    for rate in (*rates, min(rates) / 10):
        need = required(calibration, rate)
        if need is not None:
            row = [f"{rate:g}", f"{need.impostor_pairs:,}"]
            # The vertices of judged pairs are no classes that somebody could go and get.
            body.append(row if calibration.evidence == "pairs" else [*row, f"{need.classes:,}"])
    if not body:
        return []
    count = f"{calibration.impostor_pairs:,} impostor pairs"
    head = ["FAR", "impostor pairs"]
    if calibration.evidence != "pairs":
        count += f" of {calibration.classes:,} classes"
        # They are a part of the classes in the data, which a reader would take them for.
        count += " set aside" if calibration.evidence == "run" else ""
        head.append("classes")
    return [f"Instead of the {count}, smaller rates would take about:", "", *table(head, body)]


def _fallen_back(calibration: Calibration) -> str:
    smallest = calibration.points[-1].false_accept_rate if calibration.points else 0.0
    least = calibration.default_far == smallest
    return ", the smallest that the evidence carries" if least else ""


def _even(calibration: Calibration) -> str:
    if calibration.slope == 0.0:
        return "no distance: they tell nothing"
    return f"distance {calibration.intercept / calibration.slope:.4f}"


def _row(rate: float, calibration: Calibration) -> tuple[str, ...]:
    point = point_at(calibration.points, rate)
    if point is None:
        return (f"{rate:g}", "too little evidence")
    return (
        f"{rate:g}",
        f"{point.false_accept_rate:.3g}",
        f"{point.false_accept_rate_upper:.3g}",
        percent(point.true_accept_rate),
        f"{point.threshold:.4f}",
    )


def _subjects(calibrations: Sequence[Calibration]) -> list[str]:
    shown = SHOWN_RATES[1:3]
    head = ["items", "classes", "EER", "least FAR"]
    for rate in shown:
        head += [f"TAR at {rate:.0e}".replace("e-0", "e-"), "bound", "threshold"]
    body = []
    for entry in calibrations:
        smallest = f"{entry.points[-1].false_accept_rate:.2g}" if entry.points else "none"
        row = [
            entry.aggregation.removeprefix("nearest_of_"),
            str(entry.classes),
            percent(entry.equal_error_rate),
            smallest,
        ]
        for rate in shown:
            point = point_at(entry.points, rate)
            if point is None:
                row += ["-", "-", "-"]
            else:
                row += [
                    percent(point.true_accept_rate),
                    f"{point.false_accept_rate_upper:.2g}",
                    f"{point.threshold:.4f}",
                ]
        body.append(row)
    return ["Subjects of several items, decided by the nearest of them:", "", *table(head, body)]
