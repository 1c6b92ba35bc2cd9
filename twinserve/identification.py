"""How often a search finds somebody for nobody, told from the gallery itself.

In: enrolled items used as probes, each with its distances to the nearest items of other subjects:
what a stranger would meet (leave one subject out). Out: the threshold that keeps the rate of
strangers with any match (FPIR) at what was asked for, with its 95 % bound; and for any threshold
that rate and the number of subjects that a stranger would match by chance.

Pairs of items are not independent, subjects are. So the bound is a jackknife over subjects: each is
left out as a prober and as the one who is met. The strangers to come are a draw of their own, so
its error counts twice, as in the bounds of calibration. benchmarks/bounds.py holds it against a
binomial bound, which takes probes for independent and is broken in every third gallery.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import FloatArray
from twinserve.errors import DataError

IntArray = NDArray[np.int64]

# A rate stands on the matches of at least so many subjects, counted as (sum n)^2 / sum n^2 over
# the matches n of each subject: one odd subject with many matches is one observation.
MIN_EFFECTIVE_SUBJECTS = 5.0
# Rate of a gallery without its only matching subject, as a share of the whole one's.
_LEAST_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class Impostors:
    """What enrolled items meet among other subjects; rows are probes, nearest first.

    Fewer other subjects than columns leave infinity, with subject -1.
    """

    subject: IntArray  # [n], of the probe
    distance: FloatArray  # [n, k], to the nearest item of each of the k nearest other subjects
    other: IntArray  # [n, k], those subjects
    subjects: int  # in the gallery when this was measured
    items: int  # likewise

    def __post_init__(self) -> None:
        if self.distance.ndim != 2 or self.distance.shape[1] < 2:
            raise DataError(
                f"distances have shape {list(self.distance.shape)}; at least the two nearest other "
                "subjects of each probe are needed, [n, k]"
            )


@dataclass(frozen=True)
class SearchRate:
    """How a threshold treats strangers."""

    threshold: float
    rate: float  # FPIR: the share of strangers with any match
    rate_upper: float  # 95 % bound
    expected_matches: float  # subjects that a stranger matches by chance, on average


def at_rate(impostors: Impostors, rate: float, items: int | None = None) -> SearchRate | None:
    """Return the largest threshold at which strangers are found with at most `rate`.

    Args:
        impostors: of the gallery.
        rate: FPIR in (0, 1).
        items: in the gallery now, where it has grown since; the rate grows no faster than that.

    Returns:
        None where the gallery carries no such rate.
    """
    if not len(impostors.subject):
        return None
    growth = _growth(impostors, items)
    ordered = np.sort(impostors.distance[:, 0])
    allowed = math.floor(rate / growth * len(ordered) + 1e-9)
    if allowed >= len(ordered):
        threshold = float(ordered[-1])
    else:
        # Ties with the first refused distance are refused with it.
        below = int(np.searchsorted(ordered, ordered[allowed], side="left"))
        if below == 0:
            return None
        middle = float((ordered[below - 1] + ordered[below]) / 2.0)
        threshold = middle if middle < ordered[below] else float(ordered[below - 1])
    if not math.isfinite(threshold):
        return None
    return at_threshold(impostors, threshold, items)


def at_threshold(
    impostors: Impostors, threshold: float, items: int | None = None
) -> SearchRate | None:
    """Say how often strangers are found at this threshold; None where too few subjects tell."""
    subject = impostors.subject
    matched = impostors.distance <= threshold  # [n, k]
    any_match = matched[:, 0]
    codes, position = np.unique(subject, return_inverse=True)
    matches = np.bincount(position[any_match], minlength=len(codes)).astype(np.float64)
    if not len(codes) or _effective(matches) < MIN_EFFECTIVE_SUBJECTS:
        return None
    growth = _growth(impostors, items)
    measured = float(any_match.mean())
    factor = _jackknife_factor(impostors, matched, codes, position, matches)
    return SearchRate(
        threshold=threshold,
        rate=min(1.0, measured * growth),
        rate_upper=min(1.0, measured * growth * factor),
        expected_matches=float(matched.sum(axis=1).mean()) * growth,
    )


def _growth(impostors: Impostors, items: int | None) -> float:
    """How much more a stranger meets than a probe did: its own subject's share, and new items.

    The chance of any match is at most the sum of the chances with each, so it grows no faster.
    """
    left_out = impostors.subjects / max(impostors.subjects - 1, 1)
    return left_out * max(1.0, (items or 0) / max(impostors.items, 1))


def _effective(counts: FloatArray) -> float:
    squares = float(counts @ counts)
    return float(counts.sum()) ** 2 / squares if squares else 0.0


def _jackknife_factor(
    impostors: Impostors,
    matched: NDArray[np.bool_],
    codes: IntArray,
    position: IntArray,
    matches: FloatArray,
) -> float:
    """Upper 95 % bound over the measured rate (Efron and Stein, 1981), on the scale of logarithms.

    Without subject s its probes are gone, and so are the matches that only s gave.
    """
    probes = np.bincount(position, minlength=len(codes)).astype(np.float64)
    # A subject that was drawn as nobody's probe can still be met.
    alone = matched[:, 0] & ~matched[:, 1]
    met, where = np.unique(impostors.other[alone, 0], return_inverse=True)
    lost_to = dict(zip(met.tolist(), np.bincount(where, minlength=len(met)).tolist(), strict=True))
    total, count = matches.sum(), float(len(position))
    lost = np.array([lost_to.pop(code, 0) for code in codes.tolist()], dtype=np.float64)
    left = (total - matches - lost) / np.maximum(count - probes, 1.0)
    others = np.array(list(lost_to.values()), dtype=np.float64)
    rates = np.concatenate([left, (total - others) / count])
    subjects = len(rates)
    logs = np.log(np.maximum(rates, _LEAST_SHARE * total / count))
    # Subjects that neither matched nor were met stand in `codes`, or change nothing.
    error = math.sqrt((subjects - 1) / subjects * float(((logs - logs.mean()) ** 2).sum()))
    # Strangers are a draw of their own, as wide as the gallery's: both errors add up.
    return math.exp(min(_student(subjects - 1) * math.sqrt(2.0) * error, 50.0))


def _student(freedom: int) -> float:
    """95th percentile of Student's t, by Cornish and Fisher's expansion: within 1 % from 3 on."""
    z = 1.6448536269514722
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom) ** (power + 1) for power, term in enumerate(terms))
