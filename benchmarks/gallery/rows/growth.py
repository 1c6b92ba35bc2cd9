"""Does a search grow slower with the number of items than raw hnswlib's does?"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gallery.data import short
from benchmarks.gallery.stage import Stage, rates
from benchmarks.serving.figures import Spread, spread
from benchmarks.serving.report import Aim, Line, Report

TABLE = "Growth of a lone call's p50 with the number of items"


@dataclass(frozen=True)
class Point:
    """What one size gave: p50 of a call in seconds, turn by turn."""

    kind: str
    dimension: int
    count: int
    target: float
    raw: tuple[float, ...]
    ours: tuple[float, ...]


def points(stage: Stage) -> list[Point]:
    """Take what `calls` left."""
    found = []
    for target in stage.setting.targets:
        known = stage.found.get(f"p50 {target}")
        if known is not None:
            _, _, raw, ours = known
            data = stage.data
            found.append(
                Point(
                    data.kind,
                    data.dimension,
                    data.count,
                    target,
                    tuple(rates(raw, "p50")),
                    tuple(rates(ours, "p50")),
                )
            )
    return found


def measure(known: list[Point], report: Report) -> None:
    """Compare the smallest with the largest of each kind of data."""
    for key in dict.fromkeys((one.kind, one.dimension, one.target) for one in known):
        same = sorted(
            (one for one in known if (one.kind, one.dimension, one.target) == key),
            key=lambda one: one.count,
        )
        if len(same) < 2:
            continue
        small, large = same[0], same[-1]
        raw, ours = _grown(small.raw, large.raw), _grown(small.ours, large.ours)
        kind, dimension, target = key
        subject = f"{kind} x {dimension}"
        load = f"recall >= {target:g}, {short(small.count)} to {short(large.count)}"
        for who, grown, some in (("hnswlib", raw, "raw"), ("ours, served", ours, "ours")):
            before, after = getattr(small, some), getattr(large, some)
            aims: tuple[Aim, ...] = ()
            if who != "hnswlib":
                told = f"no faster than raw hnswlib's ({grown.median:.2f} and {raw.median:.2f})"
                aims = (Aim(told, grown.median <= raw.median),)
            figures = {
                "p50 ms, fewest": f"{_ms(before):.3f}",
                "p50 ms, most": f"{_ms(after):.3f}",
                "times": f"{grown:.2f}",
            }
            report.lines.append(Line(TABLE, subject, load, who, figures, aims))


def _grown(small: tuple[float, ...], large: tuple[float, ...]) -> Spread:
    """Return the ratio of the medians, and the least and most that single turns allow."""
    middle = spread(large).median / spread(small).median
    return Spread(middle, min(large) / max(small), max(large) / min(small))


def _ms(values: tuple[float, ...]) -> Spread:
    return spread([1e3 * value for value in values])
