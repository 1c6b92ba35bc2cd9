"""The charts of a run: ROC, DET, distances, learning curves, and the map of the space.

In: what was measured. Out: SVG, each with its figures in words.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinserve.calibration import PairDistances
from twinserve.distance import FloatArray
from twinserve.train.data import Labelled
from twinserve.train.report.charts import Axis, Chart, decades, linear, percent, shares
from twinserve.train.report.exhibits import class_name, data_uri, is_pictures
from twinserve.train.report.markup import Markup, joined, tag
from twinserve.train.report.space import SpaceMap
from twinserve.train.verification import Verification, deviate

_DET_TICKS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
_BINS = 60
# Colours repeat after so many classes, with another mark.
_COLORS = 6
_SIDE = 34.0  # of a class's picture on the map
_LONGEST_SIGN = 26
_MARKS = ("M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z", "M-4 -4H4V4H-4Z", "M0 -5L5 4H-5Z")


def roc_chart(measured: Verification) -> Markup:
    """Draw TAR over FAR on a logarithmic axis, with its band and the EER."""
    curve, eer = measured.curve, measured.equal_error_rate.value
    chart = Chart(
        decades("false accept rate (FAR)", min(curve.false_accept_rate[0], 0.1)),
        shares("true accept rate (TAR)"),
    )
    if curve.low:
        chart.area(curve.false_accept_rate, curve.low, curve.high, "genuine")
    chance = np.geomspace(chart.x.low, 1.0, 60).tolist()
    chart.line(chance, chance, "chance", "chance")
    chart.line(curve.false_accept_rate, curve.true_accept_rate, "genuine", "this twin")
    chart.dot(eer, 1.0 - eer, "impostor", f"EER {share_text(eer)}")
    return chart.svg(
        "ROC on the report classes",
        f"True accept rate over false accept rate; equal error rate {share_text(eer)}. "
        + " ".join(
            f"At FAR {percent(one.false_accept_rate)} TAR is "
            f"{share_text(one.true_accept_rate.value)}."
            for one in measured.true_accept_rates
        ),
    )


def det_chart(measured: Verification) -> Markup:
    """Draw FRR over FAR on normal deviates (Martin et al., 1997), with its band and the EER."""
    curve, eer = measured.curve, measured.equal_error_rate.value
    # No rate is known better than to one pair.
    least = 1.0 / measured.impostor_pairs, 1.0 / measured.genuine_pairs
    missed = [1.0 - tar for tar in curve.true_accept_rate]
    shown = [index for index, far in enumerate(curve.false_accept_rate) if far < 1.0]
    fars = [curve.false_accept_rate[index] for index in shown]
    x = _deviates("false accept rate (FAR)", fars, least[0])
    y = _deviates("false reject rate (FRR)", [missed[index] for index in shown], least[1])
    chart = Chart(x, y)
    if curve.low:
        low, high = ([1.0 - bound[index] for index in shown] for bound in (curve.high, curve.low))
        chart.area(fars, low, high, "genuine")
    equal = np.geomspace(max(x.low, y.low, 1e-6), min(x.high, y.high), 40).tolist()
    if equal[-1] > equal[0]:
        chart.line(equal, equal, "chance", "FAR = FRR")
    chart.line(fars, [missed[index] for index in shown], "genuine", "this twin")
    chart.dot(eer, eer, "impostor", f"EER {share_text(eer)}")
    return chart.svg(
        "DET on the report classes",
        "False reject rate over false accept rate, both as normal deviates; the curve crosses "
        f"the diagonal at {share_text(eer)}.",
    )


def distance_chart(pairs: PairDistances, metric: str, measured: Verification) -> Markup:
    """Draw histograms of genuine and impostor distances, each of area one, and the thresholds."""
    top = float(max(pairs.genuine.max(), pairs.impostor.max(), 1e-6))
    edges = np.linspace(0.0, top, _BINS + 1)
    tops = [
        np.histogram(distances, bins=edges, density=True)[0]
        for distances in (pairs.genuine, pairs.impostor)
    ]
    highest = float(max(map(np.max, tops)))
    chart = Chart(
        linear(f"{metric} distance", 0.0, top),
        Axis("density", 0.0, highest * 1.1, ()),
        width=1080.0,
        height=330.0,
    )
    for name, density in zip(("genuine", "impostor"), tops, strict=True):
        chart.bars(edges.tolist(), density.tolist(), name, f"{name} pairs")
    thresholds = [
        (one.threshold, percent(one.false_accept_rate))
        for one in measured.true_accept_rates
        if one.threshold is not None
    ]
    for level, (threshold, rate) in enumerate(thresholds):
        chart.rule(threshold, f"FAR {rate}", level)
    return chart.svg(
        "Distances on the report classes",
        f"Genuine pairs lie at {np.median(pairs.genuine):.3g} in the median, impostor pairs at "
        f"{np.median(pairs.impostor):.3g}. "
        + " ".join(f"The threshold at FAR {rate} is {value:.4g}." for value, rate in thresholds),
    )


def score_chart(
    distances: FloatArray, scores: FloatArray, metric: str, correlation: float
) -> Markup:
    """Draw distances of judged pairs over their scores: [pairs] each."""
    low, high = float(min(scores.min(), 0.0)), float(max(scores.max(), 1.0))
    chart = Chart(
        linear("score, from different (0) to the same (1)", low, high),
        linear(f"{metric} distance", 0.0, float(distances.max()) * 1.05),
        width=1080.0,
        height=380.0,
    )
    chart.points(scores.tolist(), distances.tolist())
    return chart.svg(
        "Distance over score",
        f"{len(scores)} judged pairs; the rank correlation of closeness with scores is "
        f"{correlation:.3f}.",
    )


def learning_charts(log: Path, best_step: int) -> list[tuple[str, Markup]]:
    """Draw what log.csv holds, by title: loss, distances, active share, calibrate part."""
    columns = _columns(log)
    steps = columns.get("step", [])
    if not steps:
        return []
    wanted = (
        ("Loss", "loss", (("loss", "loss", "genuine"),), False),
        (
            "Mean distances in the batches",
            "distance",
            (("genuine", "genuine pairs", "genuine"), ("impostor", "impostor pairs", "impostor")),
            False,
        ),
        ("Share of pairs or triplets that still cost", "share", (("active", "active", "genuine"),),
         True),
        (
            "On the calibrate part",
            "share",
            (("one_shot", "one-shot accuracy", "genuine"),
             ("average_precision", "average precision", "genuine"),
             ("right_order", "triplets in the right order", "genuine"),
             ("recall_at_1", "recall@1 of partners", "genuine"),
             ("equal_error_rate", "equal error rate", "impostor")),
            True,
        ),
        ("Spearman on the calibrate part", "correlation",
         (("spearman", "Spearman", "genuine"),), False),
    )  # fmt: skip
    return [
        (title, _learning_chart(columns, title, label, lines, of_shares, best_step))
        for title, label, lines, of_shares in wanted
        if any(_known(columns.get(key, [])) for key, _, _ in lines)
    ]


def map_chart(drawn: SpaceMap, part: Labelled) -> Markup:
    """Draw items as marks by class; a class has its name, and a picture where it has pictures."""
    chart = Chart(
        Axis("first principal component", -1.0, 1.0, ()),
        Axis("second principal component", -1.0, 1.0, ()),
        width=1080.0,
        height=640.0,
    ).fitted(drawn.points)
    labels = part.labels[drawn.items]
    known = np.unique(labels).tolist()
    for index, label in enumerate(known):
        style = f"mark c{index % _COLORS}"
        path = _MARKS[index // _COLORS % len(_MARKS)]
        members = np.flatnonzero(labels == label)
        name = class_name(part, int(drawn.items[members[0]]))
        marks = []
        for member in members.tolist():
            x, y = chart.point(*drawn.points[member].tolist())
            marks.append(tag("path", d=path, transform=f"translate({x:.1f} {y:.1f})"))
        chart.part(tag("g", tag("title", name), marks, class_=style))
    signs = _Signs(chart, drawn, part)
    for index, label in enumerate(known):
        chart.part(signs.sign(labels == label, f"c{index % _COLORS}"))
    return chart.svg(
        "Map of the space",
        f"{len(drawn.items)} items of {len(known)} report classes on their first two principal "
        f"components, which hold {share_text(drawn.explained)} of the variance.",
    )


def share_text(value: float) -> str:
    """Return a share as a percentage with three digits or so."""
    return f"{100 * value:.1f} %" if value >= 0.01 or value == 0 else f"{100 * value:.2g} %"


class _Signs:
    """Names of classes, each as near to the middle of its items as the others leave room."""

    def __init__(self, chart: Chart, drawn: SpaceMap, part: Labelled) -> None:
        self._chart, self._drawn, self._part = chart, drawn, part
        self._pictures = is_pictures(part)
        self._taken: list[tuple[float, float, float]] = []  # middle, and half the width

    def sign(self, own: NDArray[np.bool_], color: str) -> Markup:
        """Draw a class's name, and its most central item where items are pictures."""
        points = self._drawn.points[own]
        middle = points.mean(axis=0)
        nearest = np.argmin(np.linalg.norm(points - middle, axis=1))
        central = int(self._drawn.items[own][nearest])
        name = class_name(self._part, central).rpartition("/")[2]
        short = name if len(name) <= _LONGEST_SIGN else f"{name[: _LONGEST_SIGN - 1]}…"
        x, y = self._place(*self._chart.point(*middle.tolist()), 3.8 * len(short) + 4.0)
        text = tag("text", short, text_anchor="middle", class_=f"sign {color}", x=x, y=y + 4)
        if not self._pictures:
            return text
        uri = data_uri(np.asarray(self._part.rows[central]), largest=48)
        corner = {"x": x - _SIDE / 2, "y": y - 12 - _SIDE, "width": _SIDE, "height": _SIDE}
        frame = tag("rect", **corner, rx=3, class_=f"frame {color}")
        return joined([tag("image", href=uri, **corner), frame, text])

    def _place(self, x: float, y: float, half: float) -> tuple[float, float]:
        """Find the place nearest to one wanted, up or down, that no other sign takes."""
        high = _SIDE + 20.0 if self._pictures else 16.0
        for step in range(40):
            at = y + (-1) ** step * (step + 1) // 2 * 8.0
            if all(
                abs(x - other) > half + width or abs(at - level) > high
                for other, level, width in self._taken
            ):
                break
        self._taken.append((x, at, half))
        return x, at


def _deviates(label: str, rates: Sequence[float], least: float) -> Axis:
    """Return an axis of normal deviates over the rates seen, between the ticks around them."""
    seen = [max(rate, least) for rate in rates if rate < 1.0] or [0.5]
    low = max((tick for tick in _DET_TICKS if tick <= min(seen)), default=_DET_TICKS[0])
    high = min((tick for tick in _DET_TICKS if tick >= max(seen)), default=_DET_TICKS[-1])
    if low == high:
        low, high = _DET_TICKS[0], _DET_TICKS[-1]
    ticks = tuple((tick, percent(tick)) for tick in _DET_TICKS if low <= tick <= high)
    return Axis(label, low, high, ticks, deviate)


def _columns(log: Path) -> dict[str, list[float]]:
    """Read log.csv as columns; what is no number is NaN, and a missing file is empty."""
    try:
        with open(log, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return {}
    return {key: [_number(row.get(key)) for row in rows] for key in (rows[0] if rows else ())}


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _learning_chart(
    columns: dict[str, list[float]],
    title: str,
    label: str,
    lines: Sequence[tuple[str, str, str]],
    of_shares: bool,
    best_step: int,
) -> Markup:
    every = [value for key, _, _ in lines for value in _known(columns.get(key, []))]
    top = max(*every, 1e-6)
    x = linear("step", 0.0, max(*_known(columns["step"]), 1.0), "{:,.0f}", 4)
    y = shares(label, 1.0) if of_shares else linear(label, min(0.0, *every), top * 1.15)
    chart = Chart(x, y, height=270.0)
    chart.rule(best_step, "best twin", class_="rule best")
    told = []
    for key, name, class_ in lines:
        points = [
            (step, value)
            for step, value in zip(columns["step"], columns.get(key, []), strict=False)
            if math.isfinite(step) and math.isfinite(value)
        ]
        if points:
            chart.line(
                [step for step, _ in points],
                [value for _, value in points],
                class_,
                name if len(lines) > 1 else None,
            )
            told.append(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}")
    return chart.svg(title, f"{'; '.join(told)}, over {len(columns['step'])} evaluations.")
