"""Keeping estimates current: by the search that needs one, or in the background, without a wait."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.gallery.folders import new, one_gallery, opened, settings
from twinserve import identification
from twinserve.server.gallery import Gallery, GalleryLimits, impostors
from twinserve.server.gallery.estimator import Estimator, Refresher, Strangers

INLINE = GalleryLimits(measure_inline_seconds=60.0)
BACKGROUND = GalleryLimits(measure_inline_seconds=0.0, measure_rest_seconds=0.0)
PROBE = np.zeros((1, 4), dtype=np.float32)


def until(true: Callable[[], object]) -> None:
    """Wait for the background thread, which has nothing else to do."""
    end = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < end, "it did not come about within 20 s"
        time.sleep(0.005)


def vectors(count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def enroll(gallery: Gallery, count: int, prefix: str = "i", seed: int = 1) -> None:
    items = [new(f"{prefix}{n}", v) for n, v in enumerate(vectors(count, seed))]
    gallery.enroll(items).result()


def strangers(gallery: Gallery) -> Strangers:
    known = gallery.search(PROBE, k=1).strangers
    assert isinstance(known, Strangers)
    return known


def measured_by_hand(gallery: Gallery, rate: float) -> identification.SearchRate:
    estimate = impostors.measure(gallery.view)
    assert estimate is not None
    point = identification.at_rate(estimate.nearest, rate)
    assert point is not None
    return point


def test_a_search_right_after_enrolment_is_already_governed(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        assert gallery.search(PROBE, k=1).strangers is None
        enroll(gallery, 200)
        point = strangers(gallery).at_rate(0.1)
        assert point == measured_by_hand(gallery, 0.1)
        measurements = gallery.estimator.measurements
        for _ in range(3):
            assert strangers(gallery).at_rate(0.1) == point
        assert gallery.estimator.measurements == measurements


def test_a_gallery_is_measured_again_once_a_tenth_has_changed(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 100)
        strangers(gallery)
        enroll(gallery, 9, "more", seed=2)
        strangers(gallery)
        assert gallery.estimator.measurements == 1
        enroll(gallery, 1, "last", seed=3)
        strangers(gallery)
        assert gallery.estimator.measurements == 2
        gallery.remove(ids=[f"i{n}" for n in range(5)]).result()
        strangers(gallery)
        assert gallery.estimator.measurements == 2
        # Six gone and five come: as many as before, and yet a tenth is not what it was.
        gallery.remove(ids=["i5"]).result()
        enroll(gallery, 5, "new", seed=4)
        strangers(gallery)
        assert gallery.estimator.measurements == 3


def test_an_item_that_changes_its_subject_has_the_gallery_measured_again(
    quick_folder: Path,
) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 100)
        before = strangers(gallery)
        gallery.enroll([new("i7", None, "", {"count": 3})]).result()  # only a fact changes
        strangers(gallery)
        assert gallery.estimator.measurements == 1
        gallery.enroll([new("i7", None, "i8")]).result()
        after = strangers(gallery)
        assert gallery.estimator.measurements == 2
        assert after is not before
        gallery.enroll([new("twice", vectors(100)[50], "somebody else")]).result()
        nearest = strangers(gallery)
        assert gallery.estimator.measurements == 3
        assert nearest.expected_matches(0.0) > 0


class Nobody:
    """A background in which nothing happens: it only notes who was to be measured."""

    def __init__(self) -> None:
        self.considered: list[Estimator] = []

    def consider(self, estimator: Estimator) -> None:
        self.considered.append(estimator)

    def forget(self, estimator: Estimator) -> None:
        if estimator in self.considered:
            self.considered.remove(estimator)


def test_until_it_is_measured_again_growth_makes_the_statement_larger(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 200)
        estimator = Estimator(lambda: gallery.view, Nobody(), inline_seconds=0.0)
        assert estimator.strangers(gallery.view) is None
        assert estimator.refresh(lambda seconds: True)
        small = estimator.strangers(gallery.view)
        assert small is not None
        assert small.growth == 1.0
        at = small.at_rate(0.2)
        assert at is not None
        expected = small.expected_matches(at.threshold)
        enroll(gallery, 300, "more", seed=2)
        grown = estimator.strangers(gallery.view)
        assert grown is not None
        assert grown.growth == pytest.approx(2.5)
        larger = grown.at_threshold(at.threshold)
        assert larger is not None
        assert larger.rate == pytest.approx(2.5 * at.rate)
        assert larger.rate_upper == pytest.approx(min(1.0, 2.5 * at.rate_upper))
        assert grown.expected_matches(at.threshold) == pytest.approx(2.5 * expected)
        tighter = grown.at_rate(0.2)
        assert tighter is not None
        assert tighter.threshold < at.threshold
        # Fewer than were measured: what held for more holds for them.
        gallery.remove(ids=[f"more{n}" for n in range(300)]).result()
        gallery.remove(ids=[f"i{n}" for n in range(150)]).result()
        fewer = estimator.strangers(gallery.view)
        assert fewer is not None
        assert fewer.growth == 1.0


def test_a_large_gallery_is_put_forward_at_each_change_and_never_measured_by_a_search(
    quick_folder: Path,
) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 50)
        background = Nobody()
        estimator = Estimator(lambda: gallery.view, background, inline_seconds=0.0)
        estimator.changed()
        assert background.considered == [estimator]
        assert estimator.strangers(gallery.view) is None
        assert estimator.measurements == 0
        assert estimator.refresh(lambda seconds: True)
        assert estimator.strangers(gallery.view) is not None
        # Nothing has changed since, so there is nothing to do.
        assert not estimator.refresh(lambda seconds: True)
        assert estimator.measurements == 1
        small = Estimator(lambda: gallery.view, background, inline_seconds=60.0)
        small.changed()
        assert background.considered == [estimator]


def test_a_measurement_ends_at_its_next_piece_when_its_gallery_is_closed(
    quick_folder: Path,
) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 800)
        estimator = Estimator(lambda: gallery.view, Nobody(), inline_seconds=0.0)
        pieces = 0

        def pace(seconds: float) -> bool:
            nonlocal pieces
            pieces += 1
            estimator.close()
            return True

        assert not estimator.refresh(pace)
        assert pieces == 1
        assert not estimator.refresh(pace)
        assert pieces == 1
        assert estimator.strangers(gallery.view) is None


def test_an_estimate_of_another_numbering_of_rows_is_outdated(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 60)
        view = gallery.view
        estimator = Estimator(lambda: view, Nobody(), inline_seconds=60.0)
        estimator.strangers(view)
        renumbered = replace(
            view, rows=replace(view.rows, generation=object(), sequence=view.sequence + 1)
        )
        estimator.strangers(renumbered)
        assert estimator.measurements == 2
        # A reader who still holds an earlier state is answered from the later measurement.
        estimator.strangers(view)
        assert estimator.measurements == 2


def test_the_background_measures_what_was_enrolled_and_again_after_a_restart(
    quick_folder: Path,
) -> None:
    with one_gallery(quick_folder, settings(), BACKGROUND) as gallery:
        enroll(gallery, 300)
        until(lambda: gallery.search(PROBE, k=1).strangers)
        point = strangers(gallery).at_rate(0.1)
        assert point == measured_by_hand(gallery, 0.1)
        enroll(gallery, 300, "more", seed=2)
        until(lambda: strangers(gallery).at_rate(0.1) == measured_by_hand(gallery, 0.1))
        again = strangers(gallery).at_rate(0.1)
        assert again != point
    with opened(quick_folder, BACKGROUND) as galleries:
        reopened = galleries.get("faces")
        until(lambda: reopened.search(PROBE, k=1).strangers)
        found = strangers(reopened).at_rate(0.1)
        assert found is not None
        assert again is not None
        assert found.threshold == pytest.approx(again.threshold)


def test_a_gallery_that_changes_all_the_time_is_not_measured_all_the_time(
    quick_folder: Path,
) -> None:
    patient = GalleryLimits(measure_inline_seconds=0.0, measure_rest_seconds=3600.0)
    with one_gallery(quick_folder, settings(), patient) as gallery:
        enroll(gallery, 10)
        until(lambda: gallery.estimator.due)
        for number in range(30):
            enroll(gallery, 10, f"{number}-", seed=number)
        assert gallery.estimator.measurements == 1
        assert strangers(gallery).growth == pytest.approx(31.0)


def test_one_gallery_that_rests_keeps_no_other_from_being_measured(quick_folder: Path) -> None:
    patient = GalleryLimits(measure_inline_seconds=0.0, measure_rest_seconds=3600.0)
    with opened(quick_folder, patient) as galleries:
        for name in ("first", "second"):
            galleries.create(settings(name))
            enroll(galleries.get(name), 40)
            until(lambda name=name: galleries.get(name).estimator.measurements)
            enroll(galleries.get(name), 40, "more")


def test_closing_ends_the_thread_while_it_measures_and_a_deleted_gallery_is_left_alone(
    quick_folder: Path,
) -> None:
    with opened(quick_folder, BACKGROUND) as galleries:
        galleries.create(settings())
        gallery = galleries.get("faces")
        enroll(gallery, 2000)
        galleries.delete("faces")
        measured = gallery.estimator.measurements
        assert not gallery.estimator.refresh(lambda seconds: True)
        assert gallery.estimator.measurements == measured
        galleries.create(settings())
        enroll(galleries.get("faces"), 2000)
    names = [thread.name for thread in threading.enumerate()]
    assert "gallery-impostors" not in names


def test_a_deleted_gallery_is_let_go_of_whether_it_was_measured_or_waits_for_its_turn(
    quick_folder: Path,
) -> None:
    patient = GalleryLimits(measure_inline_seconds=0.0, measure_rest_seconds=3600.0)
    with opened(quick_folder, patient) as galleries:
        for waits in (False, True):
            galleries.create(settings())
            gallery = galleries.get("faces")
            enroll(gallery, 50)
            until(lambda gallery=gallery: gallery.estimator.due)
            if waits:
                enroll(gallery, 50, "more")  # its next turn is an hour away
            gone = weakref.ref(gallery)
            del gallery
            galleries.delete("faces")

            def collected(gone: weakref.ref[Gallery] = gone) -> bool:
                gc.collect()
                return gone() is None

            until(collected)


def test_an_answer_is_not_lost_to_another_thread_that_asks_much(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 50)
        known = strangers(gallery)
        expected = known.at_rate(0.3)
        assert expected is not None
        done = threading.Event()

        def ask() -> None:
            number = 0
            while not done.is_set():
                number += 1
                known.at_threshold(number * 1e-6)

        asking = threading.Thread(target=ask)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        asking.start()
        try:
            found = [known.at_rate(0.3) for _ in range(3000)]
        finally:
            done.set()
            asking.join()
            sys.setswitchinterval(interval)
        assert found.count(expected) == len(found)


def test_trouble_in_one_measurement_does_not_end_the_background(
    quick_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refresher = Refresher(0.0)
    try:
        with one_gallery(quick_folder, settings(), INLINE) as gallery:
            enroll(gallery, 50)

            def broken() -> object:
                raise RuntimeError("no view today")

            refresher.consider(Estimator(broken, refresher, 0.0))  # type: ignore[arg-type]
            sound = Estimator(lambda: gallery.view, refresher, 0.0)
            refresher.consider(sound)
            until(lambda: sound.measurements)
    finally:
        refresher.close()
    assert "measuring the impostors of a gallery failed" in caplog.text


def test_answers_are_remembered_up_to_a_bound(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), INLINE) as gallery:
        enroll(gallery, 300)
        known = strangers(gallery)
        first = known.at_rate(0.1)
        assert first is not None
        assert known.at_rate(0.1) is first
        for number in range(1000):
            known.at_threshold(number / 1000)
        assert known.at_rate(0.1) == first
        assert known.at_rate(0.1) is not first
