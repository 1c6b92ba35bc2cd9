"""Decisions: match iff distance <= threshold, and nothing is extrapolated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from twinserve.decision import (
    DEFAULT_FPIR,
    NOT_CALIBRATED,
    Evidence,
    Limit,
    NearestOf,
    Outcome,
    Rule,
    SearchLimit,
    check_prior,
    check_rule,
    likelihood,
    limit,
    nearest_of,
    search_limit,
    usable,
)
from twinserve.distance import Metric
from twinserve.errors import InvalidInput
from twinserve.manifest import Calibration, OperatingPoint

POINTS = (
    OperatingPoint(0.1, 0.13, 0.50, 0.99),
    OperatingPoint(0.01, 0.02, 0.30, 0.90),
    OperatingPoint(0.001, 0.004, 0.20, 0.70),
)
CALIBRATION = Calibration(
    precision="fp32",
    dimension=8,
    aggregation="item",
    metric=Metric.COSINE,
    points=POINTS,
    default_far=0.01,
    slope=20.0,
    intercept=6.0,
    equal_error_rate=0.05,
    classes=24,
    genuine_pairs=4000,
    impostor_pairs=100_000,
)


@dataclass(frozen=True)
class Point:
    threshold: float
    rate: float
    rate_upper: float


class Gallery:
    """Strangers who match at thresholds in proportion: FPIR = share * threshold, from `least`."""

    def __init__(self, share: float, least: float, factor: float = 1.5) -> None:
        self.share, self.least, self.factor = share, least, factor

    def at_rate(self, rate: float) -> Point | None:
        return self.at_threshold(rate / self.share)

    def at_threshold(self, threshold: float) -> Point | None:
        rate = min(1.0, self.share * threshold)
        return None if rate < self.least else Point(threshold, rate, rate * self.factor)

    def expected_matches(self, threshold: float) -> float:
        return 2.0 * self.share * threshold


def test_a_distance_at_the_threshold_is_a_match_and_the_next_float_is_not() -> None:
    bound = Limit(0.3)
    assert bound.outcome(0.3) is Outcome.MATCH
    assert bound.outcome(math.nextafter(0.3, 1.0)) is Outcome.NO_MATCH
    assert bound.outcome(0.0) is Outcome.MATCH


def test_without_a_threshold_there_is_no_yes_and_no_no() -> None:
    assert NOT_CALIBRATED.outcome(0.0) is Outcome.NOT_CALIBRATED


def test_no_rule_means_the_default_operating_point() -> None:
    assert limit(Rule(), CALIBRATION) == Limit(0.30, 0.01, 0.02)


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [(0.1, 0.50), (0.5, 0.50), (0.0999, 0.30), (0.01, 0.30), (0.009, 0.20), (0.001, 0.20)],
)
def test_a_rate_takes_the_nearest_point_on_the_safe_side(rate: float, threshold: float) -> None:
    assert limit(Rule(false_accept_rate=rate), CALIBRATION).threshold == threshold


def test_a_rate_below_the_evidence_is_not_calibrated() -> None:
    assert limit(Rule(false_accept_rate=0.00099), CALIBRATION) is NOT_CALIBRATED


def test_without_calibration_only_a_stated_threshold_decides() -> None:
    assert limit(Rule(), None) is NOT_CALIBRATED
    assert limit(Rule(false_accept_rate=0.01), None) is NOT_CALIBRATED
    assert limit(Rule(threshold=0.25), None) == Limit(0.25)


@pytest.mark.parametrize(
    ("threshold", "rate"), [(0.05, 0.001), (0.20, 0.001), (0.21, 0.01), (0.4, 0.1), (0.6, None)]
)
def test_a_stated_threshold_reports_the_rate_of_the_next_point_above(
    threshold: float, rate: float | None
) -> None:
    found = limit(Rule(threshold=threshold), CALIBRATION)
    assert (found.threshold, found.false_accept_rate) == (threshold, rate)


def test_a_subject_of_m_items_is_compared_at_the_corrected_rate() -> None:
    # At m = 10 a rate of 0.0956 for the subject is 1 - (1 - 0.0956)^(1/10) = 0.01 for each item.
    subject_rate = 1 - (1 - 0.01) ** 10
    rule = Rule(false_accept_rate=subject_rate)
    assert limit(rule, CALIBRATION, compared=1).threshold == 0.30
    assert limit(rule, CALIBRATION, compared=10).threshold == 0.30
    assert limit(rule, CALIBRATION, compared=11).threshold == 0.20
    slightly_less = Rule(false_accept_rate=subject_rate * 0.999)
    assert limit(slightly_less, CALIBRATION, compared=10).threshold == 0.20
    assert limit(rule, CALIBRATION, compared=1000) is NOT_CALIBRATED


def test_the_rate_stated_for_a_subject_of_m_items_is_that_of_any_accept() -> None:
    asked = 1 - (1 - 0.01) ** 10
    for rule in (Rule(false_accept_rate=asked), Rule(threshold=0.30)):
        found = limit(rule, CALIBRATION, compared=10)
        assert found.threshold == 0.30
        assert found.false_accept_rate == pytest.approx(asked)
        assert found.false_accept_rate_upper == pytest.approx(1 - (1 - 0.02) ** 10)
    certain = replace(CALIBRATION, points=(OperatingPoint(0.5, 1.0, 0.9, 1.0),))
    assert limit(Rule(threshold=0.9), certain, compared=3).false_accept_rate_upper == 1.0
    assert limit(Rule(threshold=0.95), certain, compared=3).false_accept_rate is None


def test_the_correction_keeps_tiny_rates_exact() -> None:
    point = OperatingPoint(1e-12, 2e-12, 0.1, 0.5)
    deep = Calibration(**{**vars(CALIBRATION), "points": (point,)})
    assert limit(Rule(false_accept_rate=1e-12), deep).threshold == 0.1
    assert limit(Rule(false_accept_rate=0.99e-12), deep) is NOT_CALIBRATED


def test_a_search_is_decided_by_the_gallerys_own_evidence_where_it_reaches() -> None:
    gallery = Gallery(share=0.1, least=0.02)
    rule = Rule(false_positive_identification_rate=0.02)
    for calibration in (CALIBRATION, None):
        found = search_limit(rule, calibration, 1000, 500, gallery)
        assert found.evidence is Evidence.GALLERY
        assert found.threshold == pytest.approx(0.2)
        assert found.false_positive_identification_rate == pytest.approx(0.02)
        assert found.false_positive_identification_rate_upper == pytest.approx(0.03)
        assert found.expected_false_matches == pytest.approx(0.04)


def test_without_a_rule_the_default_rate_is_read_as_the_rate_of_the_search() -> None:
    gallery = Gallery(share=0.1, least=0.001)
    assert search_limit(Rule(), CALIBRATION, 10, 10, gallery).threshold == pytest.approx(0.1)
    low = replace(CALIBRATION, default_far=0.002)
    assert search_limit(Rule(), low, 10, 10, gallery).threshold == pytest.approx(0.02)
    uncalibrated = search_limit(Rule(), None, 10, 10, gallery)
    assert uncalibrated.threshold == pytest.approx(DEFAULT_FPIR / 0.1)
    assert uncalibrated.evidence is Evidence.GALLERY


def test_beyond_the_gallerys_evidence_the_models_rate_is_divided_among_the_items() -> None:
    rule = Rule(false_positive_identification_rate=0.1)
    for gallery in (None, Gallery(share=0.1, least=0.5)):
        thresholds = [
            search_limit(rule, CALIBRATION, items, items, gallery).threshold
            for items in (1, 10, 100, 1000)
        ]
        assert thresholds == [0.50, 0.30, 0.20, None]
    assert search_limit(Rule(), CALIBRATION, 10, 10, None).threshold == 0.20
    assert search_limit(rule, None, 1, 1, None) == SearchLimit(None)


def test_the_models_evidence_states_at_most_its_rate_times_the_items() -> None:
    rule = Rule(false_positive_identification_rate=0.1)
    found = search_limit(rule, CALIBRATION, items=10, subjects=5, strangers=None)
    assert found.evidence is Evidence.MODEL
    assert found.false_positive_identification_rate == pytest.approx(10 * 0.01)
    assert found.false_positive_identification_rate_upper == pytest.approx(10 * 0.02)
    # Each of the five subjects is matched by any of its two items.
    assert found.expected_false_matches == pytest.approx(10 * 0.01)
    rate = found.false_positive_identification_rate
    assert rate is not None
    assert rate <= 0.1 * (1 + 1e-9)


def test_a_gallery_that_contradicts_the_model_leaves_the_search_without_a_threshold() -> None:
    # The model promises 10 % at 0.30; the gallery's own items meet others there in 60 % or 12 %.
    rule = Rule(false_positive_identification_rate=0.1)
    contradicting = Gallery(share=2.0, least=0.3)
    assert search_limit(rule, CALIBRATION, 10, 10, contradicting) == SearchLimit(None)
    by_chance = Gallery(share=0.4, least=0.11)
    found = search_limit(rule, CALIBRATION, 10, 10, by_chance)
    assert (found.threshold, found.evidence) == (0.30, Evidence.MODEL)
    assert found.false_positive_identification_rate == pytest.approx(0.12)


def test_a_pairwise_rule_in_a_search_stays_pairwise_and_says_what_it_lets_in() -> None:
    rule = Rule(false_accept_rate=0.01)
    assert search_limit(rule, CALIBRATION, 10_000, 10_000, None) == SearchLimit(
        0.30, Evidence.MODEL, 1.0, 1.0, 100.0
    )
    measured = search_limit(rule, CALIBRATION, 10_000, 10_000, Gallery(share=1.0, least=0.01))
    assert (measured.threshold, measured.evidence) == (0.30, Evidence.MODEL)
    assert measured.false_positive_identification_rate == pytest.approx(0.3)
    assert measured.expected_false_matches == pytest.approx(0.6)
    assert search_limit(rule, None, 10, 10, Gallery(1.0, 0.01)) == SearchLimit(None)


def test_a_threshold_of_the_requests_own_says_what_it_lets_in() -> None:
    rule = Rule(threshold=0.4)
    assert search_limit(rule, None, 9, 9, None) == SearchLimit(0.4, Evidence.REQUEST)
    measured = search_limit(rule, None, 9, 9, Gallery(share=1.0, least=0.01))
    assert (measured.threshold, measured.evidence) == (0.4, Evidence.REQUEST)
    assert measured.false_positive_identification_rate == pytest.approx(0.4)
    by_model = search_limit(rule, CALIBRATION, 9, 5, Gallery(share=1.0, least=0.9))
    assert by_model.false_positive_identification_rate == pytest.approx(0.9)  # 9 items at 0.1
    assert by_model.expected_false_matches == pytest.approx(0.9)
    everybody = search_limit(Rule(threshold=0.4), CALIBRATION, 900, 5, None)
    assert everybody.expected_false_matches == 5.0, "no more subjects than there are"


def test_a_search_is_decided_at_its_threshold_like_a_pair() -> None:
    assert SearchLimit(0.3).outcome(0.3) is Outcome.MATCH
    assert SearchLimit(0.3).outcome(math.nextafter(0.3, 1)) is Outcome.NO_MATCH
    assert SearchLimit(None).outcome(0.0) is Outcome.NOT_CALIBRATED


def test_a_subject_of_several_items_is_judged_by_the_nearest_of_at_least_as_many() -> None:
    of_2, of_8 = (replace(CALIBRATION, aggregation=f"nearest_of_{k}") for k in (2, 8))
    known = [of_8, CALIBRATION, of_2]
    assert nearest_of(known, Metric.COSINE, 1) == NearestOf(CALIBRATION, 1, CALIBRATION)
    assert nearest_of(known, Metric.COSINE, 2) == NearestOf(of_2, 1, of_2)
    assert nearest_of(known, Metric.COSINE, 3) == NearestOf(of_8, 1, of_8)
    assert nearest_of(known, Metric.COSINE, 8) == NearestOf(of_8, 1, of_8)


def test_more_items_than_were_measured_divide_the_rate_and_have_no_likelihood_ratio() -> None:
    of_2 = replace(CALIBRATION, aggregation="nearest_of_2")
    judged = nearest_of([CALIBRATION, of_2], Metric.COSINE, 3)
    assert judged == NearestOf(CALIBRATION, 3, None)
    rule = Rule(false_accept_rate=0.01)
    assert limit(rule, judged.calibration, judged.compared).threshold == 0.20
    assert nearest_of([CALIBRATION, of_2], Metric.EUCLIDEAN, 2) == NearestOf(None, 2, None)
    assert nearest_of([], Metric.COSINE, 1) == NearestOf(None, 1, None)


def test_a_calibration_of_another_metric_is_not_used() -> None:
    assert usable(CALIBRATION, Metric.COSINE) is CALIBRATION
    assert usable(CALIBRATION, Metric.EUCLIDEAN) is None
    assert usable(None, Metric.COSINE) is None


def test_probability_is_the_ratio_plus_the_prior() -> None:
    at_even_odds = likelihood(0.3, CALIBRATION, prior=0.5)  # llr = 6 - 20 * 0.3 = 0
    assert at_even_odds.log_likelihood_ratio == pytest.approx(0.0, abs=1e-12)
    assert at_even_odds.probability == pytest.approx(0.5)
    rare = likelihood(0.3, CALIBRATION, prior=0.01)
    assert rare.log_likelihood_ratio == at_even_odds.log_likelihood_ratio
    assert rare.probability == pytest.approx(0.01)
    # By Bayes: odds 3:1 times e^2.
    near = likelihood(0.2, CALIBRATION, prior=0.75)
    assert near.log_likelihood_ratio == pytest.approx(2.0)
    odds = 3 * math.exp(2)
    assert near.probability == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("distance", [0.0, 1e3, 1e100, 1e300])
@pytest.mark.parametrize("prior", [1e-300, 0.5, 1 - 1e-16])
def test_probability_never_overflows(distance: float, prior: float) -> None:
    steep = Calibration(**{**vars(CALIBRATION), "slope": 1e4, "intercept": 1e4})
    probability = likelihood(distance, steep, prior).probability
    assert probability is not None
    assert 0.0 <= probability <= 1.0


def test_without_calibration_there_is_no_likelihood() -> None:
    found = likelihood(0.1, None, 0.5)
    assert (found.log_likelihood_ratio, found.probability) == (None, None)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["false_accept_rate", "false_positive_identification_rate"])
def test_a_rate_outside_zero_to_one_is_refused(name: str, rate: float) -> None:
    with pytest.raises(InvalidInput, match="rate between 0 and 1") as caught:
        check_rule(Rule(**{name: rate}), search=True)
    assert caught.value.field == f"rule.{name}"


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
def test_a_threshold_that_is_no_distance_is_refused(threshold: float) -> None:
    with pytest.raises(InvalidInput, match="finite distance"):
        check_rule(Rule(threshold=threshold), search=False)


def test_the_rate_of_a_search_is_refused_elsewhere() -> None:
    rule = Rule(false_positive_identification_rate=0.01)
    check_rule(rule, search=True)
    with pytest.raises(InvalidInput, match="Search only"):
        check_rule(rule, search=False)


def test_good_rules_pass() -> None:
    for rule in (Rule(), Rule(false_accept_rate=1e-9), Rule(threshold=0.0)):
        check_rule(rule, search=False)


def test_the_prior_is_a_half_unless_given() -> None:
    assert check_prior(None) == 0.5
    assert check_prior(0.01) == 0.01
    for prior in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(InvalidInput, match="both excluded"):
            check_prior(prior)
