"""Whether held-out data can carry the false accept rates that are asked for, before a training.

In: how much there is. Out: the smallest rate that it carries at best and at worst, and what lacks.
The rule is that of `twinserve.calibration`: so many false accepts behind a rate, of so many pairs
of classes. Before a twin is there nobody knows which pairs it will confuse, so what is refused here
is what no twin could reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twinserve.calibration import MIN_EFFECTIVE_CLASS_PAIRS, MIN_FALSE_ACCEPTS
from twinserve.train.data import IntArray

# The fewest classes with so many pairs between them.
_LEAST_CLASSES = math.ceil((1 + math.sqrt(1 + 8 * MIN_EFFECTIVE_CLASS_PAIRS)) / 2)
_LARGEST_RATE = 0.5  # that has a threshold


@dataclass(frozen=True)
class Lacking:
    """A rate that cannot be carried."""

    asked: bool  # somebody asked for it
    message: str


def of_classes(counts: IntArray, rates: Sequence[float]) -> tuple[dict[str, Any], list[Lacking]]:
    """Judge labelled items that are to calibrate.

    Args:
        counts: items of each class, [classes].
        rates: false accept rates that are asked for.

    Returns:
        facts as plain values (a smallest rate is None where no rate is carried), and what lacks.
    """
    classes, items = len(counts), int(counts.sum())
    genuine = int((counts * (counts - 1)).sum()) // 2
    impostor = items * (items - 1) // 2 - genuine
    enough = classes * (classes - 1) / 2 >= MIN_EFFECTIVE_CLASS_PAIRS
    smallest = MIN_FALSE_ACCEPTS / impostor if enough and impostor > MIN_FALSE_ACCEPTS else None
    facts = {
        "classes": classes,
        "genuine_pairs": genuine,
        "impostor_pairs": impostor,
        "smallest_rate_at_best": smallest,
        "smallest_rate_at_worst": _at_worst(counts, impostor, smallest),
    }
    there = f"the calibrate part has {classes} classes and {impostor:,} impostor pairs"
    if smallest is None and not rates:
        message = (
            f"{there}, which carry no threshold at all: the twin will give distances and no "
            f"decisions. Hold out {_LEAST_CLASSES} classes at least (calibrate_fraction)"
        )
        return facts, [Lacking(False, message)]
    lacking = []
    for rate in rates:
        if smallest is not None and rate >= smallest * (1 - 1e-9):
            continue
        pairs = math.ceil(MIN_FALSE_ACCEPTS / rate)
        wanted = math.ceil(classes * math.sqrt(pairs / max(impostor, 1)))
        message = (
            f"{there}, and a false accept rate of {rate:g} (false_accept_rates) takes {pairs:,} of "
            f"them at least: hold out about {max(wanted, _LEAST_CLASSES)} classes like these "
            "(calibrate_fraction, or more data)"
            + (f", or ask for {smallest:.2g} and above" if smallest is not None else "")
        )
        lacking.append(Lacking(True, message))
    return facts, lacking


def _at_worst(counts: IntArray, impostor: int, at_best: float | None) -> float | None:
    """Return the rate that is carried even by a twin which confuses classes wholly, pair by pair.

    A rate's false accepts f of each pair of classes count as (sum f)^2 / sum f^2 pairs, which is at
    least sum f / max f; and no f is above the item pairs of the two largest classes.
    """
    if at_best is None:
        return None
    largest = math.prod(sorted(counts.tolist())[-2:])
    rate = max(at_best, MIN_EFFECTIVE_CLASS_PAIRS * largest / impostor)
    return rate if rate <= _LARGEST_RATE else None


def of_pairs(different: int, rates: Sequence[float]) -> tuple[dict[str, Any], list[Lacking]]:
    """Judge pairs that are to calibrate, by how many of them are of different items."""
    smallest = MIN_FALSE_ACCEPTS / different if different >= 2 * MIN_FALSE_ACCEPTS else None
    facts = {"impostor_pairs": different, "smallest_rate_at_best": smallest}
    there = f"the calibrate part has {different:,} pairs of different items"
    if smallest is None and not rates:
        message = (
            f"{there}, which carry no threshold: the twin will give distances and no decisions. "
            f"Hold out {2 * MIN_FALSE_ACCEPTS} at least (calibrate_fraction, or more data)"
        )
        return facts, [Lacking(False, message)]
    return facts, [
        Lacking(
            True,
            f"{there}, and a false accept rate of {rate:g} (false_accept_rates) takes "
            f"{math.ceil(MIN_FALSE_ACCEPTS / rate):,} at least: hold out more of them, or ask for "
            "a larger rate",
        )
        for rate in rates
        if smallest is None or rate < smallest * (1 - 1e-9)
    ]
