"""From a distance and a rule to a yes or no, a likelihood ratio and a probability.

The server's Compare, Verify and Search all decide here, and nowhere else. Nothing is extrapolated:
a rate below the smallest with evidence gives NOT_CALIBRATED, never a guessed threshold.

Evidence is of two kinds: held-out classes, as the twin's file carries them (`Calibration`), and for
a search the gallery's own items against those of all other subjects in it (`Strangers`).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from twinserve.distance import Metric
from twinserve.errors import InvalidInput
from twinserve.manifest import ITEM, Calibration, OperatingPoint

# The rate of strangers with a match that a search without a rule and without a calibration keeps.
DEFAULT_FPIR = 0.01


class Outcome(enum.Enum):
    """The yes or no of a comparison or search."""

    MATCH = "match"
    NO_MATCH = "no match"
    NOT_CALIBRATED = "not calibrated"


@dataclass(frozen=True)
class Rule:
    """How a distance becomes a yes or no; at most one field is set, none means the default."""

    false_accept_rate: float | None = None
    threshold: float | None = None
    false_positive_identification_rate: float | None = None


@dataclass(frozen=True)
class Limit:
    """A threshold with what is known of its rate; `threshold` None means that none is derivable.

    The rate is that of the decision: where a probe is held against several items, of any accept.
    """

    threshold: float | None
    false_accept_rate: float | None = None
    false_accept_rate_upper: float | None = None

    def outcome(self, distance: float) -> Outcome:
        """Decide one distance: match iff distance <= threshold, in float64."""
        if self.threshold is None:
            return Outcome.NOT_CALIBRATED
        return Outcome.MATCH if distance <= self.threshold else Outcome.NO_MATCH


NOT_CALIBRATED = Limit(threshold=None)


class Evidence(enum.Enum):
    """What the threshold of a search was derived from."""

    NONE = "none"
    REQUEST = "request"
    MODEL = "model"
    GALLERY = "gallery"


class StrangersRate(Protocol):
    """A threshold, and the rate at which it lets strangers in (FPIR)."""

    @property
    def threshold(self) -> float:
        """A distance."""
        ...

    @property
    def rate(self) -> float:
        """As measured."""
        ...

    @property
    def rate_upper(self) -> float:
        """Its upper 95 % bound."""
        ...


class Strangers(Protocol):
    """How a probe of nobody fares in a gallery, as far as the gallery itself can tell."""

    def at_rate(self, rate: float) -> StrangersRate | None:
        """The largest threshold that keeps FPIR at `rate`; None where evidence does not reach."""
        ...

    def at_threshold(self, threshold: float) -> StrangersRate | None:
        """The FPIR of a threshold; None where too few subjects tell."""
        ...

    def expected_matches(self, threshold: float) -> float:
        """How many subjects a probe of nobody matches on average."""
        ...


@dataclass(frozen=True)
class SearchLimit:
    """A search's threshold with what is known of it; None = NOT_CALIBRATED, or not known.

    With a filter, figures of evidence GALLERY are those of the whole gallery: a probe of nobody
    meets fewer items, so its chances are at most these.
    """

    threshold: float | None
    evidence: Evidence = Evidence.NONE
    false_positive_identification_rate: float | None = None
    false_positive_identification_rate_upper: float | None = None
    expected_false_matches: float | None = None

    def outcome(self, distance: float) -> Outcome:
        """Decide one distance: match iff distance <= threshold, in float64."""
        return Limit(self.threshold).outcome(distance)


@dataclass(frozen=True)
class NearestOf:
    """What the distance to the nearest of a subject's m items is judged by.

    Attributes:
        calibration: for the threshold.
        compared: among how many items its rate has yet to be divided.
        likelihood: for the likelihood ratio; None where none is known for such a distance.
    """

    calibration: Calibration | None
    compared: int
    likelihood: Calibration | None


@dataclass(frozen=True)
class Likelihood:
    """What a distance says about "same subject"; both absent when not calibrated."""

    log_likelihood_ratio: float | None
    probability: float | None


def check_rule(rule: Rule, *, search: bool) -> None:
    """Refuse a rule outside its range, or one that does not apply to the call.

    Raises:
        InvalidInput: with the field's path inside the request.
    """
    for name in ("false_accept_rate", "false_positive_identification_rate"):
        value = getattr(rule, name)
        if value is not None and not 0.0 < value < 1.0:
            raise InvalidInput(
                f"{name} is {value}; give a rate between 0 and 1, such as 0.001",
                field=f"rule.{name}",
            )
    if rule.threshold is not None and not (math.isfinite(rule.threshold) and rule.threshold >= 0):
        raise InvalidInput(
            f"threshold is {rule.threshold}; give a finite distance of at least 0",
            field="rule.threshold",
        )
    if rule.false_positive_identification_rate is not None and not search:
        raise InvalidInput(
            "false_positive_identification_rate governs Search only; "
            "give false_accept_rate or threshold here",
            field="rule.false_positive_identification_rate",
        )


def check_prior(prior: float | None) -> float:
    """Return the prior to use.

    Raises:
        InvalidInput: outside (0, 1).
    """
    if prior is None:
        return 0.5
    if not 0.0 < prior < 1.0:
        raise InvalidInput(
            f"prior is {prior}; give a probability between 0 and 1, both excluded", field="prior"
        )
    return prior


def usable(calibration: Calibration | None, metric: Metric) -> Calibration | None:
    """Return the calibration if its distances are in `metric`; thresholds do not carry over."""
    return calibration if calibration is not None and calibration.metric is metric else None


def limit(rule: Rule, calibration: Calibration | None, compared: int = 1) -> Limit:
    """Derive the threshold that a pairwise rule asks for.

    Args:
        rule: of the request.
        calibration: of the twin in this precision, dimension and metric, or None.
        compared: m, the items of the subject that a probe is compared with. The chance that any
            of them matches must stay at the rate asked for, so each may match with
            1 - (1 - FAR)^(1/m).
    """
    if rule.threshold is not None:
        return _of_any(_stated(rule.threshold, calibration), compared)
    if calibration is None:
        return NOT_CALIBRATED
    rate = calibration.default_far if rule.false_accept_rate is None else rule.false_accept_rate
    pairwise_rate = -math.expm1(math.log1p(-rate) / max(compared, 1))
    point = _point_at(calibration, pairwise_rate)
    return NOT_CALIBRATED if point is None else _of_any(_of_point(point), compared)


def nearest_of(calibrations: Iterable[Calibration], metric: Metric, items: int) -> NearestOf:
    """Choose what judges the distance to the nearest of a subject's `items` items.

    The more items, the nearer the nearest: of anybody's, not only of the own subject's. Distances
    to the nearest of k, with the smallest k >= items that was measured, say how near, for fewer
    items come no nearer. Else the rate of single items is divided among them.

    The likelihood ratio comes from those distances too. That of single items would take a
    nearest-of-m distance for one that came about at the first try, and overstate "same"; so where
    only that is there, m > 1 items have no likelihood ratio.

    Args:
        calibrations: of the twin in the precision served and the gallery's dimension.
        metric: the gallery's.
        items: m, at least 1.
    """
    single: Calibration | None = None
    several: dict[int, Calibration] = {}
    for calibration in calibrations:
        if usable(calibration, metric) is None:
            continue
        if calibration.aggregation == ITEM:
            single = calibration
        elif found := re.fullmatch(r"nearest_of_(\d+)", calibration.aggregation):
            several[int(found[1])] = calibration
    if items <= 1:
        return NearestOf(single, 1, single)
    enough = [k for k in several if k >= items]
    if enough:
        nearest = several[min(enough)]
        return NearestOf(nearest, 1, nearest)
    return NearestOf(single, items, None)


def search_limit(
    rule: Rule,
    calibration: Calibration | None,
    items: int,
    subjects: int,
    strangers: Strangers | None,
) -> SearchLimit:
    """Derive the threshold of a search, and what it lets in.

    A rule on the probe as a whole (FPIR), or none, is answered by the gallery's own evidence where
    that reaches; else by the model's at FAR = FPIR / items, unless the gallery contradicts the
    model: where at that threshold its own items meet others significantly more often, the model's
    figures do not hold here. Else the search is NOT_CALIBRATED.

    Args:
        rule: of the request; without one, the model's default rate (`DEFAULT_FPIR` without
            calibration) is read as an FPIR.
        calibration: of single items, in this precision, dimension and metric, or None.
        items: that are searched.
        subjects: of those.
        strangers: the gallery's own evidence, or None.
    """
    if rule.threshold is not None or rule.false_accept_rate is not None:
        pairwise = limit(rule, calibration)
        if pairwise.threshold is None:
            return SearchLimit(None)
        own = rule.threshold is not None
        return _described(
            pairwise, Evidence.REQUEST if own else Evidence.MODEL, items, subjects, strangers
        )
    rate = rule.false_positive_identification_rate
    if rate is None:
        rate = DEFAULT_FPIR if calibration is None else calibration.default_far
    measured = None if strangers is None else strangers.at_rate(rate)
    if strangers is not None and measured is not None:
        return SearchLimit(
            measured.threshold,
            Evidence.GALLERY,
            measured.rate,
            measured.rate_upper,
            strangers.expected_matches(measured.threshold),
        )
    point = None if calibration is None else _point_at(calibration, rate / max(items, 1))
    if point is None or _contradicts(strangers, point.threshold, rate):
        return SearchLimit(None)
    return _described(_of_point(point), Evidence.MODEL, items, subjects, strangers)


def likelihood(distance: float, calibration: Calibration | None, prior: float) -> Likelihood:
    """Return the likelihood ratio of a distance, and the probability of "same" under `prior`."""
    if calibration is None:
        return Likelihood(None, None)
    ratio = calibration.intercept - calibration.slope * distance
    odds = ratio + math.log(prior / (1.0 - prior))
    # The two forms avoid overflow of exp on either side.
    if odds >= 0:
        probability = 1.0 / (1.0 + math.exp(-odds))
    else:
        probability = math.exp(odds) / (1.0 + math.exp(odds))
    return Likelihood(ratio, probability)


def _described(
    pairwise: Limit,
    evidence: Evidence,
    items: int,
    subjects: int,
    strangers: Strangers | None,
) -> SearchLimit:
    """State what a threshold lets in: as the gallery measures it, else as the model's FAR says."""
    threshold = pairwise.threshold
    assert threshold is not None
    measured = None if strangers is None else strangers.at_threshold(threshold)
    if strangers is not None and measured is not None:
        expected = strangers.expected_matches(threshold)
        return SearchLimit(threshold, evidence, measured.rate, measured.rate_upper, expected)
    far, upper = pairwise.false_accept_rate, pairwise.false_accept_rate_upper
    if far is None or upper is None:
        return SearchLimit(threshold, evidence)
    # The chance of any match is at most the sum of the chances with each. A subject is matched by
    # any of its items, so subjects add up over items as well.
    return SearchLimit(
        threshold,
        evidence,
        min(1.0, items * far),
        min(1.0, items * upper),
        min(float(subjects), items * far),
    )


def _contradicts(strangers: Strangers | None, threshold: float, rate: float) -> bool:
    """Whether the gallery's own rate at a threshold lies above `rate` beyond chance."""
    measured = None if strangers is None else strangers.at_threshold(threshold)
    if measured is None:
        return False
    # On the scale of logarithms, where the bound was drawn, the lower one lies as far below.
    return measured.rate**2 / measured.rate_upper > rate


def _of_any(single: Limit, compared: int) -> Limit:
    """State the rate at which any of `compared` items is accepted, where each is at its own."""

    def of_any(rate: float | None) -> float | None:
        if compared <= 1 or rate is None or rate >= 1.0:
            return rate
        return -math.expm1(compared * math.log1p(-rate))

    return Limit(
        single.threshold,
        of_any(single.false_accept_rate),
        of_any(single.false_accept_rate_upper),
    )


def _of_point(point: OperatingPoint) -> Limit:
    return Limit(point.threshold, point.false_accept_rate, point.false_accept_rate_upper)


def _point_at(calibration: Calibration, rate: float) -> OperatingPoint | None:
    """Return the point of the largest rate at most `rate`: the nearest one on the safe side."""
    # A rate that is a point's own must find it although both passed through floating point.
    fitting = [p for p in calibration.points if p.false_accept_rate <= rate * (1 + 1e-9)]
    return max(fitting, key=lambda p: p.false_accept_rate, default=None)


def _stated(threshold: float, calibration: Calibration | None) -> Limit:
    """A threshold of the caller's own, with the rate of the next point at or above it."""
    if calibration is None:
        return Limit(threshold)
    above = [p for p in calibration.points if p.threshold >= threshold]
    point = min(above, key=lambda p: p.threshold, default=None)
    if point is None:
        return Limit(threshold)
    return Limit(threshold, point.false_accept_rate, point.false_accept_rate_upper)
