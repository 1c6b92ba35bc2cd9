"""A candidate on live traffic: a share of a model's calls goes to another one too, and is compared.

In: the inputs and the embeddings of calls that were answered. Out: a report. The caller's answer is
on its way by then: a thread of its own asks the candidate, one call at a time and with the lowest
priority, and when it falls behind, calls are skipped and counted, never kept waiting.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from twinserve import decision, distance
from twinserve.decision import Limit, Rule
from twinserve.distance import Metric
from twinserve.errors import Exhausted, TwinserveError
from twinserve.server.callers import Caller, Priority
from twinserve.server.completion import Completion, drive
from twinserve.server.engine import Embedded, Engine
from twinserve.server.inputs import Array, ImageBytes, RawInput, Ready, Text, Vector

log = logging.getLogger(__name__)

# What may wait for the candidate, and how much of one call it is given.
MAX_CALLS, MAX_BYTES, MAX_ITEMS = 16, 64 << 20, 32
RECENT_CALLS = 1000  # whose times are kept
_PARTNERS = 8  # earlier items that a new one is paired with

# Nobody's: as a client it would take its part of the room from the callers.
_CALLER = Caller(priority=Priority.LOW)


@dataclass(frozen=True)
class Report:
    """How a candidate fares; times in seconds, drifts are cosine distances."""

    candidate: str
    model: str
    share: float
    comparable: bool  # both embed into one space
    false_accept_rate: float | None  # of the decisions below; None: one of both is not calibrated
    calls: int = 0
    items: int = 0
    skipped: int = 0  # calls
    failed: int = 0  # items
    first_error: str = ""
    mean_drift: float | None = None
    worst_drift: float | None = None
    pairs: int = 0
    pairs_decided_otherwise: int = 0
    pairs_matched: int = 0  # by the model
    model_p50: float = 0.0
    model_p99: float = 0.0
    candidate_p50: float = 0.0
    candidate_p99: float = 0.0


@dataclass(frozen=True)
class _Call:
    raws: tuple[RawInput, ...]
    vectors: tuple[Vector, ...]  # of the model
    space_id: str
    dimension: int
    seconds: float
    bytes: int


class Shadow:
    """One shadow run, from its making until `stop`.

    Args:
        model: whose calls are mirrored.
        candidate: what is tried.
        share: of the calls, in (0, 1].
    """

    def __init__(self, model: Engine, candidate: Engine, share: float) -> None:
        self.model = model
        self.candidate = candidate
        self.share = share
        self._limits = _limits(model, candidate)
        self._waiting: deque[_Call] = deque()
        self._bytes = 0
        self._due = 0.0  # calls to mirror, of those that were seen; whole ones are taken off
        self._stopped = False
        self._condition = threading.Condition()
        self._drift_sum = 0.0
        self._drifts = 0
        self._partners: deque[tuple[Vector, Vector]] = deque(maxlen=_PARTNERS)
        self._model_seconds: deque[float] = deque(maxlen=RECENT_CALLS)
        self._candidate_seconds: deque[float] = deque(maxlen=RECENT_CALLS)
        self._report = Report(
            candidate.version,
            model.version,
            share,
            comparable=model.manifest.space_id == candidate.manifest.space_id,
            false_accept_rate=None if self._limits is None else self._limits[0].false_accept_rate,
        )
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def mirror(self, raws: Sequence[RawInput], embedded: Embedded) -> None:
        """Take note of an answered call; returns at once, in the thread that answers it."""
        with self._condition:
            self._due += self.share
            # Sums of shares such as 0.1 fall short of whole numbers by some 1e-16.
            if self._stopped or self._due < 1.0 - 1e-9:
                return
            self._due -= 1.0
            if len(self._waiting) >= MAX_CALLS or self._bytes > MAX_BYTES:
                self._report = replace(self._report, skipped=self._report.skipped + 1)
                return
        call = _call(raws, embedded)
        if call is None:
            return
        with self._condition:
            self._waiting.append(call)
            self._bytes += call.bytes
            self._condition.notify()

    def report(self) -> Report:
        """Say how it went so far."""
        with self._condition:
            return replace(
                self._report,
                mean_drift=self._drift_sum / self._drifts if self._drifts else None,
                model_p50=_quantile(self._model_seconds, 0.5),
                model_p99=_quantile(self._model_seconds, 0.99),
                candidate_p50=_quantile(self._candidate_seconds, 0.5),
                candidate_p99=_quantile(self._candidate_seconds, 0.99),
            )

    def stop(self) -> Report:
        """Mirror no more, let the call that runs finish, and return the last report."""
        with self._condition:
            self._stopped = True
            self._waiting.clear()
            self._condition.notify()
        self._thread.join()
        return self.report()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._stopped:
                    self._condition.wait()
                if self._stopped:
                    return
                call = self._waiting.popleft()
                self._bytes -= call.bytes
            try:
                self._compare(call)
            except Exception:  # a fault of ours must not end the run
                log.exception("a mirrored call was not compared")

    def _compare(self, call: _Call) -> None:
        candidate = self.candidate
        # A dimension that the candidate does not know is compared as its full one.
        known = call.dimension in candidate.spaces.values()
        finished: Completion[Embedded] = Completion()

        def ended(value: Embedded | None, error: BaseException | None) -> None:
            if value is not None:
                finished.set_result(value)
            else:
                finished.set_error(error or asyncio.CancelledError())

        drive(candidate.embed(call.raws, _CALLER, call.dimension if known else None), ended)
        answered = threading.Event()
        if finished.when_done(answered.set):
            answered.wait()
        try:
            embedded = finished.result()
        except Exhausted:
            with self._condition:
                self._report = replace(self._report, skipped=self._report.skipped + 1)
            return
        except Exception as error:  # whatever the candidate did, it failed
            self._count(call, [error] * len(call.raws), 0.0, "")
            return
        self._count(call, embedded.outcomes, _seconds(embedded), embedded.space_id)

    def _count(
        self, call: _Call, outcomes: Sequence[Vector | Exception], seconds: float, space_id: str
    ) -> None:
        failed = [one for one in outcomes if isinstance(one, Exception)]
        both = [
            (mine, other)
            for mine, other in zip(call.vectors, outcomes, strict=True)
            if not isinstance(other, Exception)
        ]
        drifts = np.empty(0)
        if both and space_id == call.space_id:
            drifts = distance.paired(
                np.stack([mine for mine, _ in both]),
                np.stack([other for _, other in both]),
                Metric.COSINE,
            )
        decided = self._decide(call, both)
        with self._condition:
            old = self._report
            self._report = replace(
                old,
                calls=old.calls + 1,
                items=old.items + len(outcomes),
                failed=old.failed + len(failed),
                first_error=old.first_error or (str(failed[0])[:500] if failed else ""),
                worst_drift=max([old.worst_drift or 0.0, *drifts.tolist()])
                if len(drifts)
                else old.worst_drift,
                pairs=old.pairs + decided[0],
                pairs_decided_otherwise=old.pairs_decided_otherwise + decided[1],
                pairs_matched=old.pairs_matched + decided[2],
            )
            self._drift_sum += float(drifts.sum())
            self._drifts += len(drifts)
            if not failed:
                self._model_seconds.append(call.seconds)
                self._candidate_seconds.append(seconds)

    def _decide(self, call: _Call, both: Sequence[tuple[Vector, Vector]]) -> tuple[int, int, int]:
        """Pair items with earlier ones: (pairs, decided otherwise, matched by the model).

        Each decides in its own space by its own threshold, so this holds between any two twins.
        """
        if self._limits is None or call.dimension != self.model.manifest.dimension:
            return 0, 0, 0
        counts = [0, 0, 0]
        for mine, other in both:
            if self._partners:
                # Of two ways to one yes or no, count where they part.
                said = []
                for vector, partners, engine, limit in (
                    (mine, [one for one, _ in self._partners], self.model, self._limits[0]),
                    (other, [two for _, two in self._partners], self.candidate, self._limits[1]),
                ):
                    apart = distance.paired(
                        np.broadcast_to(vector, (len(partners), len(vector))),
                        np.stack(partners),
                        engine.manifest.metric,
                    )
                    said.append(apart <= (limit.threshold or 0.0))
                counts[0] += len(self._partners)
                counts[1] += int((said[0] != said[1]).sum())
                counts[2] += int(said[0].sum())
            self._partners.append((mine, other))
        return counts[0], counts[1], counts[2]


def _limits(model: Engine, candidate: Engine) -> tuple[Limit, Limit] | None:
    """Thresholds of both at the model's default rate; None where one is not calibrated for it."""
    found = []
    rate: float | None = None
    for engine in (model, candidate):
        manifest = engine.manifest
        calibration = manifest.calibration(manifest.dimension)
        limit = decision.limit(
            Rule(false_accept_rate=rate), decision.usable(calibration, manifest.metric)
        )
        if limit.threshold is None:
            return None
        if calibration is not None and rate is None:
            rate = calibration.default_far
        found.append(limit)
    return found[0], found[1]


def _call(raws: Sequence[RawInput], embedded: Embedded) -> _Call | None:
    """Keep what the model embedded, as far as there is room; None where it embedded nothing."""
    kept = [
        (raw, outcome)
        for raw, outcome in zip(raws, embedded.outcomes, strict=True)
        if not isinstance(raw, Ready) and not isinstance(outcome, TwinserveError)
    ][:MAX_ITEMS]
    if not kept:
        return None
    return _Call(
        tuple(raw for raw, _ in kept),
        tuple(outcome for _, outcome in kept),
        embedded.space_id,
        len(kept[0][1]),
        _seconds(embedded),
        sum(_size(raw) for raw, _ in kept),
    )


def _size(raw: RawInput) -> int:
    if isinstance(raw, ImageBytes):
        return len(raw.data)
    if isinstance(raw, Text):
        return len(raw.text)
    return raw.array.nbytes if isinstance(raw, Array) else 0


def _seconds(embedded: Embedded) -> float:
    ride = embedded.ride
    return embedded.preprocess + (0.0 if ride is None else ride.queue + ride.inference)


def _quantile(seconds: deque[float], share: float) -> float:
    return float(np.quantile(seconds, share)) if seconds else 0.0
