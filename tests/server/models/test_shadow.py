"""A shadow run over made-up engines: shares, slowness, failures and decisions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twinserve.distance import Metric
from twinserve.errors import InternalFault, QueueFull, TwinserveError
from twinserve.manifest import Calibration, OperatingPoint
from twinserve.server.batching.admission import Admission
from twinserve.server.batching.jobs import Reason, Ride
from twinserve.server.callers import Caller, Priority
from twinserve.server.engine import Embedded
from twinserve.server.inputs import Array, RawInput, Ready
from twinserve.server.models.shadow import MAX_CALLS, MAX_ITEMS, Shadow

Vector = np.ndarray


def calibration(threshold: float) -> Calibration:
    """One operating point, at the rate 0.01."""
    fields: dict[str, Any] = dict.fromkeys(Calibration.__dataclass_fields__)
    fields |= {"metric": Metric.EUCLIDEAN, "default_far": 0.01, "points": ()}
    point: dict[str, Any] = dict.fromkeys(OperatingPoint.__dataclass_fields__, 0.01)
    fields["points"] = (OperatingPoint(**point | {"threshold": threshold}),)
    return Calibration(**fields)


class Candidate:
    """An engine whose embeddings are the inputs, through `change`; it may be held up."""

    def __init__(
        self,
        name: str,
        space: str = "sp",
        change: Callable[[Vector], Vector | TwinserveError] = lambda vector: vector,
        threshold: float | None = None,
    ) -> None:
        self.version = f"{name}@1"
        self.spaces = {space: 2}
        self.manifest = SimpleNamespace(
            space_id=space,
            dimension=2,
            metric=Metric.EUCLIDEAN,
            calibration=lambda _: None if threshold is None else calibration(threshold),
        )
        self._change = change
        self.callers: list[Caller] = []
        self.go = threading.Event()
        self.go.set()
        self.fault: Exception | None = None

    async def embed(
        self, raws: Sequence[RawInput], caller: Caller, dimension: int | None = None
    ) -> Embedded:
        self.callers.append(caller)
        self.go.wait()
        if self.fault is not None:
            raise self.fault
        return answer(self, raws)


def answer(engine: Candidate, raws: Sequence[RawInput], seconds: float = 0.5) -> Embedded:
    outcomes = tuple(
        raw.values if isinstance(raw, Ready) else engine._change(raw.array)  # type: ignore[union-attr]
        for raw in raws
    )
    ride = Ride(queue=0.0, inference=seconds, rows=len(raws), reason=Reason.RUNNER_FREE)
    return Embedded(outcomes, engine.manifest.space_id, 0.0, ride)


def inputs(*rows: Sequence[float]) -> list[RawInput]:
    return [Array(np.array(row, np.float32)) for row in rows]


def run(model: Any, candidate: Any, share: float = 1.0) -> Shadow:
    return Shadow(model, candidate, share)


def settled(shadow: Shadow, calls: int) -> Any:
    for _ in range(2000):
        report = shadow.report()
        if report.calls + report.skipped >= calls:
            return report
        time.sleep(0.005)
    raise AssertionError("10 s have passed")


@pytest.mark.parametrize(("share", "mirrored"), [(1.0, 40), (0.25, 10), (0.1, 4)])
def test_just_the_share_of_the_calls_is_mirrored(share: float, mirrored: int) -> None:
    model, candidate = Candidate("a"), Candidate("b")
    shadow = run(model, candidate, share)
    for i in range(40):
        shadow.mirror(inputs([1, i]), answer(model, inputs([1, i])))
        if i % 8 == 7:
            settled(shadow, int((i + 1) * share))
    assert shadow.stop().calls == mirrored
    assert {caller.priority for caller in candidate.callers} == {Priority.LOW}


def test_the_drift_is_the_cosine_distance_of_both() -> None:
    angle = 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    model, candidate = Candidate("a"), Candidate("b", change=lambda v: turn @ v if v[1] else v)
    shadow = run(model, candidate)
    some = inputs([1, 0], [0, 2])
    shadow.mirror(some, answer(model, some, 0.5))
    report = settled(shadow, 1)
    shadow.stop()
    assert report.worst_drift == pytest.approx(1 - np.cos(angle), rel=1e-4)
    assert report.mean_drift == pytest.approx((1 - np.cos(angle)) / 2, rel=1e-4)
    assert (report.items, report.model_p50, report.candidate_p99) == (2, 0.5, 0.5)


def test_a_candidate_that_is_behind_is_not_waited_for() -> None:
    model, candidate = Candidate("a"), Candidate("b")
    candidate.go.clear()
    shadow = run(model, candidate)
    for i in range(100):
        shadow.mirror(inputs([1, i]), answer(model, inputs([1, i])))
    assert shadow.report().skipped >= 100 - MAX_CALLS - 1
    candidate.go.set()
    report = settled(shadow, 100)
    shadow.stop()
    assert report.calls + report.skipped == 100
    assert report.calls >= MAX_CALLS


def test_items_that_the_candidate_cannot_do_are_counted_with_the_first_reason() -> None:
    def choosy(vector: Vector) -> Vector | TwinserveError:
        return InternalFault(f"no {vector[0]:.0f}") if vector[0] > 1 else vector

    model, candidate = Candidate("a"), Candidate("b", change=choosy)
    shadow = run(model, candidate)
    some = inputs([1, 0], [2, 0], [3, 0])
    shadow.mirror(some, answer(model, some))
    settled(shadow, 1)
    candidate.fault = ValueError("all of them")
    shadow.mirror(some, answer(model, some))
    settled(shadow, 2)
    candidate.fault = QueueFull("the server is busy", retry_after=1.0)
    shadow.mirror(some, answer(model, some))
    report = settled(shadow, 3)
    shadow.stop()
    assert (report.calls, report.items, report.failed, report.skipped) == (2, 6, 5, 1)
    assert report.first_error == "no 2"


def test_what_the_model_did_not_embed_is_not_mirrored() -> None:
    model, candidate = Candidate("a"), Candidate("b")
    shadow = run(model, candidate)
    ready = Ready(np.array([1, 0], np.float32), "sp")
    shadow.mirror([ready], answer(model, [ready]))
    mixed = [ready, *inputs(*([1, i] for i in range(100)))]
    shadow.mirror(mixed, answer(model, mixed))
    report = settled(shadow, 1)
    assert (shadow.stop().calls, report.items) == (1, MAX_ITEMS)


def test_decisions_are_compared_each_in_its_own_space() -> None:
    # The candidate's space is twice as wide, and its threshold is not: 3 becomes 6, above 5.
    model = Candidate("a", "sp_a", threshold=4.0)
    candidate = Candidate("b", "sp_b", change=lambda vector: 2 * vector, threshold=5.0)
    shadow = run(model, candidate)
    some = inputs([0, 0], [1, 0], [3, 0])  # apart: 1; 3 and 2
    shadow.mirror(some, answer(model, some))
    report = settled(shadow, 1)
    shadow.stop()
    assert not report.comparable
    assert report.mean_drift is None
    assert report.false_accept_rate == 0.01
    assert (report.pairs, report.pairs_matched, report.pairs_decided_otherwise) == (3, 3, 1)


def test_a_stopped_run_lets_go_of_its_thread() -> None:
    model, candidate = Candidate("a"), Candidate("b")
    before = threading.active_count()
    shadow = run(model, candidate)
    assert threading.active_count() == before + 1
    shadow.stop()
    shadow.mirror(inputs([1, 0]), answer(model, inputs([1, 0])))
    assert threading.active_count() == before
    assert shadow.report().calls == 0


def test_a_candidate_takes_no_callers_share_of_the_room() -> None:
    model, candidate = Candidate("a"), Candidate("b")
    shadow = run(model, candidate)
    shadow.mirror(inputs([1, 0]), answer(model, inputs([1, 0])))
    settled(shadow, 1)
    shadow.stop()
    admission = Admission(16, lambda: 0.01)
    admission.admit(9, "a")
    admission.admit(1, candidate.callers[0].client)
    admission.admit(4, "a")  # as one of two clients it would be held to 8
    assert admission.rows == 14
