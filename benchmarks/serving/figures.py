"""The arithmetic of the tables: percentiles, shares, and what a server can reach at all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """What several windows of one thing gave."""

    median: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """Format as "median (low to high)", each in the form given."""
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median of some values, at least one, and how far they lie apart."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(first: Sequence[float], second: Sequence[float]) -> Spread:
    """Return first / second, turn by turn, so that a machine whose speed drifts slows both.

    Raises:
        ValueError: of different lengths.
    """
    return spread([one / other for one, other in zip(first, second, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed (nearest rank).

    Raises:
        ValueError: no values, or a share outside (0, 1].
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"the {share} percentile of {len(values)} values does not exist")
    # Rounded first: 0.07 * 100 is 7.000000000000001, and would take the eighth.
    return sorted(values)[math.ceil(round(share * len(values), 9)) - 1]


def reachable(raw: float, overhead: float, cores: int) -> float:
    """Return the requests per second that a server can reach beside its own wire and its load.

    A request costs `cores / raw` CPU seconds in the model, and `overhead` outside of it.

    Args:
        raw: rows per second of the model alone, on all cores.
        overhead: CPU seconds of a request in a server that only echoes, and in the load generator.
        cores: that all of them share.
    """
    return raw / (1 + raw * overhead / cores)


def with_decoding(raw: float, decoding: float, cores: int) -> float:
    """Return the rows per second of decoding and running, both on the same cores.

    Args:
        raw: rows per second of the model alone, on all cores.
        decoding: CPU seconds of one picture's decoding.
        cores: that both share.
    """
    return cores / (decoding + cores / raw)


def growth(before: float, after: float) -> float:
    """Return by which share something grew: 0.02 is 2 %."""
    return after / before - 1
