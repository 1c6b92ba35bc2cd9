"""What the gate of a precision measured: figures, each with its limit, and how they are told.

A figure that is not a number fails: comparisons are written so that NaN never passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Half a percentage point: what a precision may cost in EER, TAR, recall@1 and Spearman.
RATE_LIMIT = 0.005
# A larger loss of TAR or recall@1 passes where a bootstrap over classes cannot tell it from none,
# but never one above this: a few classes cannot tell any loss from none, and twice the limit is as
# much as a reader who was promised half a point would still call noise.
NOISY_LIMIT = 0.01


@dataclass(frozen=True)
class Limits:
    """How far one precision's vectors may stand from the source's."""

    cosine_mean: float  # of candidate to source, over rows
    cosine_1st_percentile: float
    cosine_worst: float
    relative_difference: float  # mean |candidate - source| / |source|, where lengths are free
    neighbour_agreement: float  # share of rows; see `measures.neighbour_agreement`
    distance_spearman: float  # of the two precisions' distances over the same pairs


LIMITS = {
    "fp16": Limits(0.9999, 0.999, 0.998, 0.02, 0.99, 0.995),
    "int8": Limits(0.985, 0.97, 0.9, 0.2, 0.95, 0.97),
}


@dataclass(frozen=True)
class Figure:
    """One measured value and the limit that it is held to: the one or the other."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    where: str = ""  # such as "at FAR 0.01"
    within_noise: bool = False  # beyond the limit, but no further than a bootstrap explains

    @property
    def excess(self) -> float:
        """How far the value lies beyond its limit; negative or 0 within it."""
        if self.at_least is not None:
            return self.at_least - self.value
        return self.value - (math.nan if self.at_most is None else self.at_most)

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return self.within_noise or self.excess <= 0

    def __str__(self) -> str:
        limit = f"at least {self.at_least:.4g}" if self.at_least is not None else ""
        limit = f"at most {self.at_most:.4g}" if self.at_most is not None else limit
        return f"{self.name} is {self.value:.4g}{' ' if self.where else ''}{self.where}, {limit}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest; what is empty is left out."""
        limit = {"at_least": self.at_least, "at_most": self.at_most}
        notes: dict[str, Any] = {"where": self.where} if self.where else {}
        if self.within_noise:
            notes["within_noise"] = True
        kept = {key: value for key, value in limit.items() if value is not None}
        return {"figure": self.name, "value": rounded(self.value), **kept, **notes}


@dataclass(frozen=True)
class Quality:
    """What the gate measured of one candidate."""

    judged_by: str
    figures: tuple[Figure, ...]
    # By dimension, per threshold: FAR and TAR of source, candidate and mixed pairs.
    operating_points: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[Figure, ...]:
        """The figures beyond their limits."""
        return tuple(figure for figure in self.figures if not figure.passed)

    def value(self, name: str) -> float:
        """Return the value of a figure; NaN where it was not measured."""
        return next((figure.value for figure in self.figures if figure.name == name), math.nan)

    def plain(self, *names: str) -> dict[str, float]:
        """Return the values of those figures of these names that were measured."""
        found = {figure.name: rounded(figure.value) for figure in reversed(self.figures)}
        return {name: found[name] for name in names if name in found}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "judged_by": self.judged_by,
            "figures": [figure.to_dict() for figure in self.figures],
            "operating_points": self.operating_points,
        }


def worst(figures: Sequence[Figure]) -> list[Figure]:
    """Keep the one furthest beyond its limit, noise counted last; none of none."""
    return sorted(figures, key=lambda one: (not one.passed, one.excess))[-1:]


def rounded(value: float) -> float:
    """Return a value to four digits, as reports hold it."""
    return float(f"{value:.4g}")
