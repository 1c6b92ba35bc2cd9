"""Search rates from the gallery itself: counted by hand, and kept by strangers."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.errors import DataError
from twinserve.identification import Impostors, _student, at_rate, at_threshold


def gallery(
    subjects: int, each: int, seed: int, strangers: int = 400
) -> tuple[Impostors, np.ndarray]:
    """Clusters on a plane: their impostors, and the nearest distances of fresh strangers."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(subjects + strangers, 4))
    items = centres[:subjects].repeat(each, axis=0) + 0.1 * generator.normal(
        size=(subjects * each, 4)
    )
    owner = np.arange(subjects).repeat(each)
    probes = centres[subjects:] + 0.1 * generator.normal(size=(strangers, 4))
    between = np.linalg.norm(items[:, None] - items[None], axis=-1)
    to_subject = between.reshape(len(items), subjects, each).min(axis=-1)
    to_subject[np.arange(len(items)), owner] = np.inf
    order = np.argsort(to_subject, axis=1)[:, :4]
    impostors = Impostors(
        subject=owner,
        distance=np.take_along_axis(to_subject, order, axis=1),
        other=order,
        subjects=subjects,
        items=len(items),
    )
    nearest = np.linalg.norm(probes[:, None] - items[None], axis=-1).min(axis=1)
    return impostors, nearest


def line(nearest: list[float], second: float = 9.0, subjects: int | None = None) -> Impostors:
    """One probe per subject, with these distances to its neighbour."""
    count = len(nearest)
    return Impostors(
        subject=np.arange(count),
        distance=np.array([[value, second] for value in nearest]),
        other=np.array([[(i + 1) % count, (i + 2) % count] for i in range(count)]),
        subjects=count if subjects is None else subjects,
        items=count,
    )


def test_the_threshold_lies_between_the_last_accepted_and_the_first_refused() -> None:
    found = at_rate(line([float(i) for i in range(1, 101)]), 0.1)
    assert found is not None
    # 9 of 100 probes match; a stranger meets 100 subjects where a probe met 99.
    assert found.threshold == 9.5
    assert found.rate == pytest.approx(0.09 * 100 / 99)
    assert found.rate < found.rate_upper < 1.0


def test_matches_of_too_few_subjects_say_nothing() -> None:
    assert at_rate(line([float(i) for i in range(1, 101)]), 0.04) is None
    odd = line([float(i) for i in range(1, 101)])
    one_subject = Impostors(
        subject=np.where(np.arange(100) < 30, 0, odd.subject),
        distance=odd.distance,
        other=odd.other,
        subjects=71,
        items=100,
    )
    assert at_rate(one_subject, 0.2) is None


def test_ties_are_refused_together() -> None:
    found = at_rate(line([1.0] * 6 + [2.0] * 20 + [3.0] * 74), 0.1)
    assert found is not None
    assert found.threshold == 1.5


def test_the_same_vector_under_two_names_leaves_no_threshold() -> None:
    assert at_rate(line([0.0] * 50 + [1.0] * 50), 0.1) is None


def test_a_gallery_of_one_subject_says_nothing() -> None:
    alone = Impostors(
        subject=np.zeros(3, dtype=np.int64),
        distance=np.full((3, 2), np.inf),
        other=np.full((3, 2), -1),
        subjects=1,
        items=3,
    )
    assert at_rate(alone, 0.5) is None
    assert at_threshold(alone, 1.0) is None


def test_an_empty_gallery_says_nothing() -> None:
    nothing = Impostors(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, 2), np.int64), 0, 0)
    assert at_threshold(nothing, 1.0) is None
    assert at_rate(nothing, 0.1) is None


def test_growth_tightens_the_threshold_and_raises_the_stated_rate() -> None:
    impostors = line([float(i) for i in range(1, 201)])
    then, now = at_rate(impostors, 0.1), at_rate(impostors, 0.1, items=400)
    assert then is not None
    assert now is not None
    assert now.threshold < then.threshold
    assert now.rate <= 0.1
    grown = at_threshold(impostors, then.threshold, items=400)
    assert grown is not None
    assert grown.rate == pytest.approx(2 * then.rate)


def test_expected_matches_count_every_other_subject_within_the_threshold() -> None:
    impostors = line([1.0] * 50 + [5.0] * 50, second=1.5)
    found = at_threshold(impostors, 2.0)
    assert found is not None
    # Half of the probes have two subjects within reach, the others one (their second nearest).
    assert found.expected_matches == pytest.approx((2 * 50 + 50) / 100 * 100 / 99)


def test_a_subject_whom_everybody_meets_widens_the_bound() -> None:
    spread = line([1.0] * 20 + [5.0] * 80)
    hub = Impostors(
        subject=spread.subject,
        distance=spread.distance,
        other=np.where(spread.distance == 1.0, 99, spread.other),
        subjects=100,
        items=100,
    )
    calm, wild = at_threshold(spread, 2.0), at_threshold(hub, 2.0)
    assert calm is not None
    assert wild is not None
    assert wild.rate == calm.rate
    assert wild.rate_upper > 1.5 * calm.rate_upper


def test_strangers_stay_under_the_stated_bound_and_near_the_rate() -> None:
    kept = cells = 0
    shares: list[float] = []
    for seed in range(20):
        for subjects, each in ((60, 2), (120, 1), (40, 5)):
            impostors, strangers = gallery(subjects, each, seed)
            for rate in (0.3, 0.1):
                found = at_rate(impostors, rate)
                if found is None:
                    continue
                cells += 1
                realised = float(np.mean(strangers <= found.threshold))
                kept += realised <= found.rate_upper
                shares.append(realised / rate)
    assert cells > 80
    assert kept / cells >= 0.9
    assert 0.8 < float(np.mean(shares)) < 1.2


def test_one_other_subject_is_not_enough_columns() -> None:
    with pytest.raises(DataError, match="at least the two nearest"):
        Impostors(np.zeros(2, np.int64), np.zeros((2, 1)), np.zeros((2, 1), np.int64), 2, 2)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(3, 2.353), (4, 2.132), (9, 1.833), (30, 1.697), (1000, 1.646)]
)
def test_the_percentiles_of_student_match_the_tables(freedom: int, expected: float) -> None:
    assert _student(freedom) == pytest.approx(expected, rel=0.01)
