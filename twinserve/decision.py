"""From a distance and a rule to a yes or no, a likelihood ratio and a probability.

The server's Compare, Verify and Search all decide here, and nowhere else. Nothing is extrapolated:
a rate below the smallest with evidence gives NOT_CALIBRATED, never a guessed threshold.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from twinserve.distance import Metric
from twinserve.errors import InvalidInput
from twinserve.manifest import Calibration, OperatingPoint


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
    """A threshold with what is known of its rate; `threshold` None means that none is derivable."""

    threshold: float | None
    false_accept_rate: float | None = None
    false_accept_rate_upper: float | None = None

    def outcome(self, distance: float) -> Outcome:
        """Decide one distance: match iff distance <= threshold, in float64."""
        if self.threshold is None:
            return Outcome.NOT_CALIBRATED
        return Outcome.MATCH if distance <= self.threshold else Outcome.NO_MATCH


@dataclass(frozen=True)
class Likelihood:
    """What a distance says about "same subject"; both absent when not calibrated."""

    log_likelihood_ratio: float | None
    probability: float | None


NOT_CALIBRATED = Limit(threshold=None)


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
        return _stated(rule.threshold, calibration)
    if calibration is None:
        return NOT_CALIBRATED
    rate = calibration.default_far if rule.false_accept_rate is None else rule.false_accept_rate
    pairwise_rate = -math.expm1(math.log1p(-rate) / max(compared, 1))
    point = _point_at(calibration, pairwise_rate)
    return NOT_CALIBRATED if point is None else _of_point(point)


def search_limit(rule: Rule, calibration: Calibration | None, items: int) -> Limit:
    """Derive the threshold of a search over `items` items.

    A search meets an impostor per item, so a rule on the probe as a whole (FPIR) asks for a
    pairwise rate of about FPIR / N, and is NOT_CALIBRATED where evidence does not reach that far.
    Without a rule, the default operating point's rate is read as an FPIR.
    """
    if rule.threshold is not None or rule.false_accept_rate is not None:
        return limit(rule, calibration)
    if calibration is None:
        return NOT_CALIBRATED
    rate = rule.false_positive_identification_rate
    if rate is None:
        rate = calibration.default_far
    point = _point_at(calibration, -math.expm1(math.log1p(-rate) / max(items, 1)))
    return NOT_CALIBRATED if point is None else _of_point(point)


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
