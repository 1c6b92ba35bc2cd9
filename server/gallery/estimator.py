"""Keeps what a gallery knows of strangers current, without anybody having to wait for it.

In: a gallery's view, whenever one was published or is searched. Out: `Strangers`, the last estimate
as it applies to that view. Small galleries are measured by the search that needs it; larger ones
by one thread for all galleries, which works in small pieces, rests twice as long as it works, and
then leaves a gallery alone for a while.

The one thing to know: an estimate is of one state, and is carried over to later ones by growth. A
stranger meets N items where the sample met M, and the chance of matching any of N is at most N / M
times that of matching any of M (union bound) where those that came are like those that were there.
Once a tenth has changed, or an item's subject, the gallery is measured again. Nothing of this is
on disk: after a restart it is measured anew.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from twinserve import identification
from twinserve.identification import SearchRate
from twinserve.server.gallery import impostors
from twinserve.server.gallery.hash_index import NOTHING
from twinserve.server.gallery.impostors import Estimate, Pace, seconds_to_measure
from twinserve.server.gallery.rows import RowsView
from twinserve.server.gallery.search import View

CHANGED = 0.1  # the share of a gallery that may change before it is measured again
REST = 2.0  # after each piece, for so many times as long as it took
GALLERY_REST = 4.0  # after each measurement of a gallery, likewise
REMEMBERED = 64


class Strangers:
    """An estimate as it applies to a state of `growth` times as many items. Any thread may ask.

    Searches ask the same again and again, and an answer costs about as much as a search of a small
    gallery, so the last ones are remembered.
    """

    def __init__(self, estimate: Estimate, growth: float) -> None:
        self._estimate = estimate
        self._growth = growth
        self._items = math.ceil(estimate.nearest.items * growth)
        self._answers: dict[tuple[str, float], SearchRate | None] = {}
        self._expected: dict[float, float] = {}

    @property
    def growth(self) -> float:
        """At least 1."""
        return self._growth

    def of(self, estimate: Estimate) -> bool:
        """Whether this is what that estimate says."""
        return self._estimate is estimate

    def at_rate(self, rate: float) -> SearchRate | None:
        """The largest threshold that keeps FPIR at `rate`; None where evidence does not reach."""
        return self._remembered(
            ("rate", rate),
            lambda: identification.at_rate(self._estimate.nearest, rate, self._items),
        )

    def at_threshold(self, threshold: float) -> SearchRate | None:
        """The FPIR of a threshold; None where too few subjects tell."""
        return self._remembered(
            ("threshold", threshold),
            lambda: identification.at_threshold(self._estimate.nearest, threshold, self._items),
        )

    def expected_matches(self, threshold: float) -> float:
        """How many subjects a probe of nobody matches on average."""
        known = self._expected  # another thread may begin a new one meanwhile
        if threshold not in known:
            nearest = self._estimate.nearest
            left_out = nearest.subjects / max(nearest.subjects - 1, 1)  # the probe's own subject
            if len(known) >= REMEMBERED:
                known = self._expected = {}
            within = self._estimate.subjects_within(threshold)
            known[threshold] = within * left_out * self._growth
        return known[threshold]

    def _remembered(
        self, question: tuple[str, float], answer: Callable[[], SearchRate | None]
    ) -> SearchRate | None:
        answers = self._answers  # another thread may begin a new one meanwhile
        if question in answers:
            return answers[question]
        found = answer()
        if len(answers) >= REMEMBERED:
            answers = self._answers = {}
        answers[question] = found
        return found


@dataclass(frozen=True, eq=False)
class Measured:
    """An estimate, and the state that it is of."""

    estimate: Estimate
    generation: object  # whose identity tells one numbering of rows from another
    row_count: int
    sequence: int

    def outdated(self, rows: RowsView) -> bool:
        """Whether so much has changed since that it should be measured again."""
        if rows.sequence <= self.sequence:
            return False
        if rows.generation is not self.generation:
            return True
        born = rows.count - self.row_count
        died = self.estimate.nearest.items + born - rows.item_count
        if born + died >= CHANGED * self.estimate.nearest.items:
            return True
        # A row of a vector that was there before under another subject: moved, or enrolled twice.
        fresh = slice(self.row_count, rows.count)
        earlier = rows.chains.earlier[fresh]
        again = earlier != NOTHING
        return bool((rows.subject[fresh][again] != rows.subject[earlier[again]]).any())


class Background(Protocol):
    """Who measures what takes long."""

    def consider(self, estimator: Estimator) -> None:
        """Have `estimator.refresh` called some time."""
        ...

    def forget(self, estimator: Estimator) -> None:
        """Hold on to it no longer: its gallery is gone."""
        ...


class Estimator:
    """One gallery's estimate."""

    def __init__(
        self, present: Callable[[], View], background: Background, inline_seconds: float
    ) -> None:
        """Know nothing yet.

        Args:
            present: returns the gallery's present state.
            background: measures what takes longer than `inline_seconds`.
            inline_seconds: what a search may spend on measuring.
        """
        self._present = present
        self._inline_seconds = inline_seconds
        self._background = background
        self._measuring = threading.Lock()  # held for small galleries only
        self._measured: Measured | None = None
        self._strangers: Strangers | None = None
        self._judged: tuple[Measured | None, int, bool] = (None, -1, True)
        self._closed = False
        self.due = 0.0  # on the refresher's clock
        self.measurements = 0

    def changed(self) -> None:
        """A state was published: have a large gallery looked at soon. Takes no time."""
        if seconds_to_measure(self._present()) > self._inline_seconds:
            self._background.consider(self)

    def is_ready(self, view: View) -> bool:
        """Whether `strangers` answers at once."""
        outdated = self._outdated(self._measured, view.rows)
        return not outdated or seconds_to_measure(view) > self._inline_seconds

    def strangers(self, view: View) -> Strangers | None:
        """What is known of strangers in a view; None where nothing is, or nothing yet."""
        measured = self._measured
        if self._outdated(measured, view.rows):
            if seconds_to_measure(view) <= self._inline_seconds:
                with self._measuring:
                    if self._outdated(self._measured, view.rows):
                        self._measure(view, lambda seconds: not self._closed)
            measured = self._measured
        if measured is None or not len(measured.estimate.nearest.subject):
            return None
        nearest, rows = measured.estimate.nearest, view.rows
        growth = max(1.0, rows.item_count / nearest.items, rows.subject_count / nearest.subjects)
        growth = math.ceil(growth * 100.0) / 100.0  # so that answers can be remembered a while
        known = self._strangers
        if known is None or known.growth != growth or not known.of(measured.estimate):
            known = self._strangers = Strangers(measured.estimate, growth)
        return known

    def refresh(self, pace: Pace) -> bool:
        """Measure the present state if that is worth it; `pace` may stop it. Whether it did."""
        if self._closed:
            return False
        view = self._present()
        if not self._outdated(self._measured, view.rows):
            return False
        return self._measure(view, lambda seconds: pace(seconds) and not self._closed)

    def close(self) -> None:
        """Measure no more; a measurement that is under way ends at its next piece."""
        self._closed = True
        self._background.forget(self)

    def _outdated(self, measured: Measured | None, rows: RowsView) -> bool:
        if measured is None:
            return True
        judged = self._judged  # so that searches of one state ask once
        if judged[0] is not measured or judged[1] != rows.sequence:
            judged = self._judged = (measured, rows.sequence, measured.outdated(rows))
        return judged[2]

    def _measure(self, view: View, pace: Pace) -> bool:
        estimate = impostors.measure(view, pace)
        if estimate is None:
            return False
        rows = view.rows
        self._measured = Measured(estimate, rows.generation, rows.count, rows.sequence)
        self.measurements += 1
        return True


class Refresher:
    """The thread that measures large galleries, one at a time.

    Args:
        rest: seconds between two looks at a gallery, at least.
    """

    def __init__(self, rest: float) -> None:
        self._rest = rest
        self._waiting: dict[int, Estimator] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self.seconds = 0.0  # spent so far
        self._thread = threading.Thread(target=self._run, name="gallery-impostors", daemon=True)
        self._thread.start()

    def consider(self, estimator: Estimator) -> None:
        """Look at a gallery when it is due."""
        with self._changed:
            self._waiting[id(estimator)] = estimator
            self._changed.notify()

    def forget(self, estimator: Estimator) -> None:
        """Let go of a gallery, which may be large and its turn far away."""
        with self._changed:
            self._waiting.pop(id(estimator), None)
            self._changed.notify()  # the thread may hold it, waiting for its turn

    def close(self) -> None:
        """Drop the measurement that is running, and end the thread."""
        self._stop.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (estimator := self._next()) is not None:
            began = time.monotonic()
            try:
                estimator.refresh(self._pace)
            except Exception:  # one gallery's trouble must not leave the others unmeasured
                logging.getLogger(__name__).exception("measuring the impostors of a gallery failed")
            ended = time.monotonic()
            self.seconds += ended - began
            estimator.due = ended + max(self._rest, GALLERY_REST * (ended - began))
            del estimator  # or a deleted gallery would stay in memory until the next one's turn

    def _next(self) -> Estimator | None:
        with self._changed:
            while not self._stop.is_set():
                first = min(self._waiting.values(), key=lambda one: one.due, default=None)
                if first is None:
                    self._changed.wait()
                elif (patience := first.due - time.monotonic()) > 0:
                    self._changed.wait(patience)
                else:
                    return self._waiting.pop(id(first))
            return None

    def _pace(self, seconds: float) -> bool:
        return not self._stop.wait(REST * seconds)
