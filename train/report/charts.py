"""Charts as SVG: axes with ticks, lines, areas, marks. Colours are the page's, by class.

In: figures. Out: `Markup` of one chart with a title that screen readers read. A chart says what it
shows in words too, so that nothing hangs on seeing it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from twinserve.distance import FloatArray
from twinserve.train.report.markup import Content, Markup, tag

_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 26.0, 12.0, 48.0
_LINE = 17.0  # of a legend
_APART = 46.0  # between the middles of ticks, so that their texts do not touch


@dataclass(frozen=True)
class Axis:
    """Where values lie along one side of a chart."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    scale: Callable[[float], float] = float  # from a value to what is drawn evenly

    def place(self, value: float) -> float:
        """Return how far along the axis a value lies, 0 to 1, at an end if it lies beyond."""
        low, high = self.scale(self.low), self.scale(self.high)
        held = min(max(value, self.low), self.high)
        return (self.scale(held) - low) / (high - low)


def linear(label: str, low: float, high: float, form: str = "{:g}", count: int = 5) -> Axis:
    """Return an axis with even ticks at round values."""
    if not high > low:
        high = low + 1.0
    step = _round_step((high - low) / count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = tuple((k * step, form.format(round(k * step, 10))) for k in range(first, last + 1))
    return Axis(label, low, high, ticks)


def shares(label: str, high: float = 1.0) -> Axis:
    """Return an axis of shares as percentages, from 0 up."""
    axis = linear(label, 0.0, high)
    return Axis(label, 0.0, high, tuple((value, percent(value)) for value, _ in axis.ticks))


def decades(label: str, low: float) -> Axis:
    """Return a logarithmic axis of shares, from `low` to 1, a tick a decade."""
    first = math.ceil(math.log10(low) - 1e-9)
    ticks = tuple((10.0**power, percent(10.0**power)) for power in range(first, 1))
    return Axis(label, low, 1.0, ticks, math.log10)


def percent(value: float) -> str:
    """Return a share as a short percentage for a tick."""
    return f"{round(100 * value, 6):g} %"


class Chart:
    """One chart under construction; parts are drawn in the order of the calls.

    Args:
        x: the horizontal axis.
        y: the vertical one.
        width: in units of about a pixel.
        height: likewise.
    """

    def __init__(self, x: Axis, y: Axis, width: float = 520.0, height: float = 350.0) -> None:
        self.x, self.y = x, y
        self.width, self.height = width, height
        self._parts: list[Markup] = []
        self._legend: list[tuple[str, str]] = []
        self._drawn: list[tuple[float, float]] = []  # where lines and labels are

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return where a pair of values is drawn."""
        across = self.width - _LEFT - _RIGHT
        up = self.height - _TOP - _BOTTOM
        return _LEFT + across * self.x.place(x), self.height - _BOTTOM - up * self.y.place(y)

    def fitted(self, points: FloatArray, margin: float = 0.06) -> Self:
        """Stretch both axes over points, [n, 2], a unit as long across as it is up."""
        across, up = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        half = np.maximum(np.ptp(points, axis=0) / 2, 1e-9) * (1 + 2 * margin)
        unit = max(half[0] / across, half[1] / up)  # of values in half a pixel
        (x, y), wide, high = middle.tolist(), unit * across, unit * up
        self.x = dataclasses.replace(self.x, low=x - wide, high=x + wide)
        self.y = dataclasses.replace(self.y, low=y - high, high=y + high)
        return self

    def line(
        self, xs: Sequence[float], ys: Sequence[float], class_: str, name: str | None = None
    ) -> None:
        """Draw a line through points; a single one becomes a dot."""
        if len(xs) == 1:
            self.dot(xs[0], ys[0], class_)
        self._parts.append(tag("path", d=self._path(xs, ys), class_=f"line {class_}"))
        if name is not None:
            self._legend.append((name, f"line {class_}"))

    def area(
        self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], class_: str
    ) -> None:
        """Fill between two lines over the same points."""
        path = self._path([*xs, *reversed(xs)], [*low, *reversed(high)]) + "Z"
        self._parts.append(tag("path", d=path, class_=f"area {class_}"))

    def bars(self, edges: Sequence[float], tops: Sequence[float], class_: str, name: str) -> None:
        """Fill a histogram: n + 1 edges, n heights."""
        xs = [edge for pair in itertools.pairwise(edges) for edge in pair]
        ys = [top for top in tops for _ in range(2)]
        outline = [edges[0], *xs, edges[-1]], [self.y.low, *ys, self.y.low]
        self._parts.append(tag("path", d=self._path(*outline) + "Z", class_=f"area {class_}"))
        self._parts.append(tag("path", d=self._path(*outline), class_=f"line thin {class_}"))
        self._legend.append((name, f"line {class_}"))

    def dot(self, x: float, y: float, class_: str, name: str | None = None) -> None:
        """Draw one mark."""
        across, down = self.point(x, y)
        self._parts.append(tag("circle", cx=across, cy=down, r=4.5, class_=f"dot {class_}"))
        if name is not None:
            self._legend.append((name, f"dot {class_}"))

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Draw many small marks."""
        places = [self.point(x, y) for x, y in zip(xs, ys, strict=True)]
        marks = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3) for x, y in places]
        self._parts.append(tag("g", marks, class_="points"))

    def rule(self, x: float, label: str, level: int = 0, class_: str = "rule") -> None:
        """Draw a line across the chart at a value, its label `level` lines below the top."""
        across, _ = self.point(x, self.y.low)
        ends = {"y1": _TOP, "y2": self.height - _BOTTOM}
        self._parts.append(tag("line", x1=across, x2=across, **ends, class_=class_))
        left = across > self.width * 0.6
        self._drawn += [
            (across + (-1 if left else 1) * k, _TOP + 12.0 + 15.0 * level) for k in range(0, 80, 4)
        ]
        self._parts.append(
            tag(
                "text",
                label,
                x=across + (-5 if left else 5),
                y=_TOP + 12 + 15 * level,
                text_anchor="end" if left else "start",
                class_="label",
            )
        )

    def part(self, markup: Markup) -> None:
        """Add a part that the caller has drawn."""
        self._parts.append(markup)

    def svg(self, title: str, description: str) -> Markup:
        """Return the chart; the title and the description are for those who cannot see it.

        Titles within a page must differ: they give the parts their ids.
        """
        slug = re.sub(r"\W+", "-", title.lower()).strip("-")
        names = f"chart-{slug}", f"told-{slug}"
        return tag(
            "svg",
            tag("title", title, id=names[0]),
            tag("desc", description, id=names[1]),
            self._axes(),
            self._parts,
            self._legend_box(),
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            role="img",
            aria_labelledby=" ".join(names),
            class_="chart",
        )

    def _path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        points = [self.point(x, y) for x, y in zip(xs, ys, strict=True)]
        for (x1, y1), (x2, y2) in itertools.pairwise(points):
            steps = 1 + int(math.hypot(x2 - x1, y2 - y1) / 4)
            self._drawn += [
                (x1 + (x2 - x1) * k / steps, y1 + (y2 - y1) * k / steps) for k in range(steps)
            ]
        return "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points)

    def _axes(self) -> list[Markup]:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        parts = []
        free = -math.inf  # from where on the next tick's text fits
        for value, text in self.x.ticks:
            across, _ = self.point(value, self.y.low)
            parts.append(tag("line", x1=across, x2=across, y1=_TOP, y2=bottom, class_="grid"))
            if across >= free:
                parts.append(_text(text, across, bottom + 17, "middle"))
                free = across + _APART
        free = math.inf
        for value, text in self.y.ticks:
            _, down = self.point(self.x.low, value)
            parts.append(tag("line", x1=_LEFT, x2=right, y1=down, y2=down, class_="grid"))
            if down <= free:
                parts.append(_text(text, _LEFT - 7, down + 4, "end"))
                free = down - 14.0
        middle = (_TOP + bottom) / 2
        parts.append(_text(self.x.label, (_LEFT + right) / 2, self.height - 10, "middle", "axis"))
        parts.append(
            tag(
                "text",
                self.y.label,
                transform=f"translate(13 {middle:g}) rotate(-90)",
                text_anchor="middle",
                class_="axis",
            )
        )
        return parts

    def _legend_box(self) -> Content:
        """Lay the legend out in the corner where it covers the least."""
        if not self._legend:
            return None
        wide = 40.0 + 7.0 * max(len(name) for name, _ in self._legend)
        high = _LINE * len(self._legend)
        right, bottom = self.width - _RIGHT - wide, self.height - _BOTTOM - high
        corners = itertools.product((_TOP + 6.0, bottom - 4.0), (right, _LEFT + 10.0))
        down, across = min(corners, key=lambda at: self._covered(at[0], at[1], wide, high))
        parts: list[Markup] = []
        for index, (name, class_) in enumerate(self._legend):
            y = down + _LINE * index + 12.0
            if class_.startswith("dot"):
                parts.append(tag("circle", cx=across + 11, cy=y - 4, r=4.5, class_=class_))
            else:
                parts.append(
                    tag("line", x1=across, x2=across + 22, y1=y - 4, y2=y - 4, class_=class_)
                )
            parts.append(_text(name, across + 28, y, "start", "label"))
        return parts

    def _covered(self, down: float, across: float, wide: float, high: float) -> int:
        """Count the drawn points, taken every few pixels, that a box would cover."""
        return sum(
            across - 8 <= x <= across + wide and down - 8 <= y <= down + high + 4
            for x, y in self._drawn
        )


def _text(text: str, x: float, y: float, anchor: str, class_: str = "tick") -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def _round_step(rough: float) -> float:
    """Return the next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
