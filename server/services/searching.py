"""Searches of galleries, one or several calls at a time: from probes to the bytes of the replies.

In: asks that waited together, of one gallery and one question (`services/gathering.py`). Out: each
one's reply. It runs in a reader's thread; what each call says of its decision is its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twinserve import decision
from twinserve.distance import Embeddings
from twinserve.errors import DeadlineExceeded, TwinserveError
from twinserve.manifest import Calibration
from twinserve.server.batching.jobs import Ride
from twinserve.server.gallery import Filter, SearchOutcome
from twinserve.server.gallery.gallery import Gallery
from twinserve.server.services import codec, gallery_codec, search_reply
from twinserve.server.services.gathering import MOST_HERE
from twinserve.server.watching.metrics import Metrics

MOST_TOGETHER = 64  # probes
MANY = 8  # probes that are worth a second thread in the graph
ALONE = 16  # probes of a call that need no company


@dataclass(frozen=True)
class Question:
    """What a call asks of each probe; calls that ask the same may go together."""

    k: int
    filter: Filter | None
    max_distance: float | None
    by_subject: bool
    exact: bool
    ef: int | None
    mean_of: int


@dataclass(eq=False)
class Ask:
    """One call that waits for its search."""

    probes: Embeddings  # [n, d]
    places: Sequence[int]  # [n] which of the call's inputs they are
    errors: Mapping[int, TwinserveError]  # of its other inputs
    rule: decision.Rule
    full: bool  # items with metadata and times
    calibrations: Sequence[Calibration]
    model_version: str
    ride: Ride | None
    preprocess: float  # seconds
    deadline: float | None  # on the clock of time.monotonic
    began: float  # on that of time.perf_counter
    given_up: bool = False

    @property
    def late(self) -> bool:
        """Whether nobody waits any more."""
        return self.given_up or (self.deadline is not None and time.monotonic() >= self.deadline)

    def is_quick(self, gallery: Gallery, question: Question) -> bool:
        """Whether it takes a few milliseconds at most, and reads no file of the gallery."""
        # Others come along, so what counts is a whole run of such searches.
        return (
            not self.full
            and len(self.probes) <= MOST_HERE
            and gallery.is_quick(
                MOST_HERE,
                k=question.k,
                filter=question.filter,
                exact=question.exact,
                ef=question.ef,
                mean_of=question.mean_of,
            )
        )

    def company(self, gallery: Gallery, question: Question) -> Hashable:
        """Asks with an equal key may go together; an exact search takes long, so it goes alone."""
        if question.exact or len(self.probes) > ALONE:
            return self
        return gallery, question


@dataclass(frozen=True)
class Reply:
    """A SearchResponse as it goes on the wire, on what evidence it decided, and its timing."""

    data: bytes
    evidence: decision.Evidence
    timing: bytes


def answer(
    gallery: Gallery, question: Question, metrics: Metrics, asks: Sequence[Ask]
) -> list[Reply | Exception]:
    """Search for the probes of all asks at once; whose time has passed gets an error.

    Raises:
        DeadlineExceeded: nobody waits any more.
        InvalidInput: the question cannot be answered.
    """

    def proceed() -> None:
        if all(ask.late for ask in asks):
            raise DeadlineExceeded(
                "the deadline passed while the gallery was searched; allow more time, or send "
                "fewer probes at a time"
            )

    probes = asks[0].probes if len(asks) == 1 else np.concatenate([ask.probes for ask in asks])
    outcome = gallery.search(
        probes,
        k=question.k,
        filter=question.filter,
        max_distance=question.max_distance,
        by_subject=question.by_subject,
        exact=question.exact,
        ef=question.ef,
        mean_of=question.mean_of,
        proceed=proceed,
        threads=2 if len(asks) > 1 and len(probes) >= MANY else 1,
    )
    ended = time.perf_counter()
    model = gallery.settings.model
    timer, seen = metrics.search.labels("Search", model), metrics.nearest.labels(model)
    replies: list[Reply | Exception] = []
    first = 0
    for ask in asks:
        timer.observe(ended - ask.began)
        try:
            replies.append(
                _reply(gallery, question, outcome, first, ask, ended - ask.began, proceed)
            )
        except TwinserveError as error:
            replies.append(error)
        for probe in range(first, first + len(ask.probes)):
            if question.mean_of == 1 and outcome.starts[probe] < outcome.starts[probe + 1]:
                seen.observe(outcome.distances[outcome.starts[probe]])
        first += len(ask.probes)
    return replies


def _reply(
    gallery: Gallery,
    question: Question,
    outcome: SearchOutcome,
    first: int,
    ask: Ask,
    seconds: float,
    proceed: Callable[[], None],
) -> Reply:
    # Also in the thread: the first to ask for a rate has the gallery's evidence evaluated, and a
    # reply of thousands of hits takes a while to write.
    metric = gallery.settings.metric
    calibration = decision.nearest_of(ask.calibrations, metric, 1).calibration
    limit = decision.search_limit(
        ask.rule, calibration, outcome.items, outcome.subjects, outcome.strangers
    )
    start, end = outcome.starts[first], outcome.starts[first + len(ask.probes)]
    judges: dict[int, Calibration | None] = dict.fromkeys(outcome.sizes[start:end])
    if question.mean_of == 1:  # calibrations are of the nearest alone
        for size in judges:
            judges[size] = decision.nearest_of(ask.calibrations, metric, size).likelihood
    details: dict[bytes, bytes] = {}
    if ask.full:
        wanted = [item_id.decode() for item_id in outcome.ids[start:end]]
        details = {
            item.id.encode(): gallery_codec.item_details(item) for item in gallery.items(wanted)
        }
    places = {place: first + number for number, place in enumerate(ask.places)}
    results = []
    for place in range(len(places) + len(ask.errors)):
        if place in ask.errors:
            results.append(search_reply.error(ask.errors[place]))
            continue
        if len(places) > ALONE:
            proceed()
        results.append(search_reply.result(outcome, places[place], limit, judges, details))
    timing = codec.timing_message(ask.ride, ask.preprocess, seconds).SerializeToString()
    data = search_reply.response(results, outcome.token, ask.model_version, timing)
    return Reply(data, limit.evidence, timing)
