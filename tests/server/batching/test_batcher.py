"""The batcher, with runs that the test holds in its hand, and callers in threads of their own."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from twinserve.errors import DeadlineExceeded, InternalFault, Unavailable
from twinserve.server.afterwards import Afterwards
from twinserve.server.batching.batcher import Batcher, Outputs, Reason, Ride, Rows
from twinserve.server.batching.costs import Measured, RunCosts
from twinserve.server.callers import Caller, Priority
from twinserve.server.completion import Completion, drive

Answer = Completion[tuple[Outputs, Ride]]


class Record:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Reason]] = []
        self.drops: list[tuple[int, str]] = []
        self.padding: list[tuple[int, int]] = []
        self.waits: list[float] = []

    def batch(self, rows: int, seconds: float, reason: Reason) -> None:
        self.batches.append((rows, reason))

    def queued(self, seconds: float) -> None:
        self.waits.append(seconds)

    def padded(self, tokens: int, padding: int) -> None:
        self.padding.append((tokens, padding))

    def dropped(self, rows: int, why: str) -> None:
        self.drops.append((rows, why))


class HeldRun:
    """A model that doubles its rows, each run once the test lets it."""

    def __init__(self) -> None:
        self.lets = threading.Semaphore(0)
        self.open = False
        self.seen: list[list[float]] = []
        self._changed = threading.Condition()

    def __call__(self, rows: Rows) -> Outputs:
        with self._changed:
            self.seen.append([float(row[0]) for row in rows])
            self._changed.notify_all()
        if not self.open:
            assert self.lets.acquire(timeout=10)
        return np.stack([row[:1] for row in rows]).astype(np.float32) * 2

    def begun(self, count: int) -> None:
        """Wait until so many runs have begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, 10)

    def let_all(self) -> None:
        self.open = True
        self.lets.release(1000)

    def hold(self) -> None:
        """Hold the runs that begin from now on."""
        self.open = False
        self.lets = threading.Semaphore(0)


Make = Callable[..., Batcher]


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def run() -> HeldRun:
    return HeldRun()


@pytest.fixture
def make(run: HeldRun, record: Record) -> Iterator[Make]:
    made: list[Batcher] = []

    def build(model: Callable[[Rows], Outputs] = run, **settings: Any) -> Batcher:
        made.append(Batcher(model, **({"max_batch": 64, "runners": 1} | settings), observer=record))
        return made[-1]

    yield build
    run.let_all()
    for batcher in made:
        batcher.close()


def rows(*values: float) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def texts(*lengths: int) -> list[np.ndarray]:
    return [np.full(length, 1000 + length) for length in lengths]


def wait(answer: Answer) -> tuple[Outputs, Ride]:
    """Wait in this thread for an answer."""
    done = threading.Event()
    if answer.when_done(done.set):
        assert done.wait(10)
    return answer.result()


def values(answer: Answer) -> list[float]:
    return [float(value) for value in wait(answer)[0].ravel()]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("never happened")


A, B = Caller("a"), Caller("b")


def test_a_lone_job_leaves_at_once_and_gets_its_own_rows(run: HeldRun, make: Make) -> None:
    run.let_all()
    outputs, ride = wait(make().submit(rows(1, 2, 3), A))
    assert outputs.ravel().tolist() == [2, 4, 6]
    assert (ride.rows, ride.reason) == (3, Reason.RUNNER_FREE)


def test_it_can_be_awaited_on_a_loop_and_driven_without_one(run: HeldRun, make: Make) -> None:
    run.let_all()
    batcher = make()

    async def doubled(value: float) -> float:
        outputs, _ = await batcher.submit(rows(value), A)
        return float(outputs[0, 0])

    assert asyncio.run(doubled(4)) == 8
    ended = threading.Event()
    told: list[tuple[float | None, str]] = []

    def end(value: float | None, error: BaseException | None) -> None:
        told.append((value, threading.current_thread().name))
        ended.set()

    drive(doubled(5), end)
    assert ended.wait(10)
    assert told[0][0] == 10
    assert told[0][1].startswith("run-model"), "the thread that ran the model goes on with the call"


def test_what_waits_while_the_runner_is_busy_leaves_as_one_run(
    run: HeldRun, record: Record, make: Make
) -> None:
    batcher = make()
    first = batcher.submit(rows(0), A)
    run.begun(1)
    others = [batcher.submit(rows(i), Caller(str(i))) for i in range(1, 8)]
    assert batcher.waiting == 7
    run.let_all()
    assert values(first) == [0]
    assert [values(other) for other in others] == [[2.0 * i] for i in range(1, 8)]
    batcher.close()
    assert [count for count, _ in record.batches] == [1, 7]
    assert len(record.waits) == 8


def test_a_job_larger_than_a_run_is_answered_whole_and_in_order(
    run: HeldRun, record: Record, make: Make
) -> None:
    run.let_all()
    batcher = make(max_batch=4)
    assert values(batcher.submit(rows(*range(11)), A)) == [2.0 * i for i in range(11)]
    batcher.close()
    assert record.batches == [(4, Reason.FULL), (4, Reason.FULL), (3, Reason.RUNNER_FREE)]


def test_several_runners_run_at_a_time_and_no_more(run: HeldRun, make: Make) -> None:
    batcher = make(runners=2, max_batch=1)
    answers = [batcher.submit(rows(i), A) for i in range(5)]
    run.begun(2)
    assert len(run.seen) == 2
    run.let_all()
    for answer in answers:
        wait(answer)


def test_the_next_run_begins_before_the_callers_are_done_with_theirs(
    run: HeldRun, make: Make
) -> None:
    batcher = make()
    slow = threading.Event()
    first = batcher.submit(rows(1), A)
    first.when_done(lambda: bool(slow.wait(10)))
    run.begun(1)
    second = batcher.submit(rows(2), A)
    run.let_all()
    assert values(second) == [4], "answered while the first one's caller holds its thread"
    slow.set()


def test_a_caller_that_fails_ends_no_runner(run: HeldRun, make: Make) -> None:
    run.let_all()
    batcher = make()

    def fail() -> None:
        raise RuntimeError("the caller's own")

    for i in range(20):
        batcher.submit(rows(i), A).when_done(fail)
    assert values(batcher.submit(rows(7), A)) == [14]


def test_a_client_that_cancels_in_the_middle_of_a_run_ends_no_runner(
    run: HeldRun, make: Make
) -> None:
    batcher = make()
    given_up = batcher.submit(rows(1), A)
    beside = batcher.submit(rows(2), B)
    run.begun(1)
    given_up.abandon()
    beside.abandon()
    run.let_all()
    with pytest.raises(asyncio.CancelledError):
        wait(given_up)
    assert values(batcher.submit(rows(3), A)) == [6]


def test_a_cancelled_job_is_dropped_before_it_costs_a_run(
    run: HeldRun, record: Record, make: Make
) -> None:
    batcher = make()
    first = batcher.submit(rows(1), A)
    run.begun(1)
    given_up, kept = batcher.submit(rows(2, 3), A), batcher.submit(rows(4), A)
    thread = threading.Thread(target=given_up.abandon)
    thread.start()
    thread.join()
    assert batcher.waiting == 1, "its rows stop counting at once"
    run.let_all()
    assert values(first) + values(kept) == [2, 8]
    assert run.seen == [[1.0], [4.0]]
    assert record.drops == [(2, "cancelled")]


def test_the_rest_of_a_job_that_is_cancelled_while_its_first_rows_run_is_dropped(
    run: HeldRun, record: Record, make: Make
) -> None:
    batcher = make(max_batch=2)
    job = batcher.submit(rows(1, 2, 3, 4, 5), A)
    run.begun(1)
    job.abandon()
    run.let_all()
    batcher.close()
    assert run.seen == [[1.0, 2.0]]
    assert record.drops == [(3, "cancelled")]


def test_a_task_that_is_cancelled_drops_its_job(run: HeldRun, record: Record, make: Make) -> None:
    batcher = make()
    busy = batcher.submit(rows(1), A)
    run.begun(1)

    async def main() -> None:
        async def call() -> None:
            answer = batcher.submit(rows(2, 3), A)
            submitted.set()
            await answer

        submitted = asyncio.Event()
        task = asyncio.create_task(call())
        await submitted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert batcher.waiting == 0
    assert record.drops == [(2, "cancelled")]
    run.let_all()
    wait(busy)


def test_a_job_whose_deadline_passes_while_it_waits_is_dropped_with_its_error(
    run: HeldRun, record: Record, make: Make
) -> None:
    now = [100.0]
    batcher = make(clock=lambda: now[0])
    first = batcher.submit(rows(1), A)
    run.begun(1)
    late = batcher.submit(rows(2), Caller("a", deadline=101.0))
    now[0] = 101.5
    run.let_all()
    wait(first)
    with pytest.raises(DeadlineExceeded):
        wait(late)
    with pytest.raises(DeadlineExceeded):
        batcher.submit(rows(3), Caller("a", deadline=101.0))
    assert run.seen == [[1.0]]
    assert record.drops == [(1, "expired")]
    assert batcher.waiting == 0


def choosy(batch: Rows) -> Outputs:
    if any(row[0] < 0 for row in batch):
        raise ValueError("out of range")
    return np.stack(batch).astype(np.float32)


def test_a_row_that_the_model_cannot_run_fails_only_its_own_job(make: Make) -> None:
    begin = threading.Event()

    def held(batch: Rows) -> Outputs:
        assert begin.wait(10)
        return choosy(batch)

    batcher = make(held)
    batcher.submit(rows(0), A)
    answers = [batcher.submit(rows(i, i + 1), A) for i in (1, -5, 3)]
    begin.set()
    assert values(answers[0]) == [1, 2]
    assert values(answers[2]) == [3, 4]
    with pytest.raises(InternalFault):
        wait(answers[1])


def test_a_job_that_fails_in_one_run_of_several_is_answered_once_and_its_rest_dropped(
    record: Record, make: Make
) -> None:
    batcher = make(choosy, max_batch=2)
    with pytest.raises(InternalFault):
        wait(batcher.submit(rows(1, 2, -3, 4, 5, 6), A))
    assert values(batcher.submit(rows(9), A)) == [9]
    batcher.close()
    assert sum(count for count, _ in record.batches) + sum(n for n, _ in record.drops) == 7
    assert {why for _, why in record.drops} <= {"failed"}


def test_a_model_that_fails_fails_each_job_with_an_error_of_its_own_and_the_next_run_works(
    make: Make,
) -> None:
    broken, begin = [True], threading.Event()

    def model(batch: Rows) -> Outputs:
        assert begin.wait(10)
        if broken[0]:
            raise RuntimeError("no memory")
        return np.stack(batch).astype(np.float32)

    batcher = make(model)
    answers = [batcher.submit(rows(i), A) for i in range(3)]
    begin.set()
    failed = []
    for answer in answers:
        with pytest.raises(InternalFault) as error:
            wait(answer)
        failed.append(error.value)
    assert len({id(error) for error in failed}) == 3
    broken[0] = False
    assert values(batcher.submit(rows(5), A)) == [5]


def test_an_output_of_the_wrong_size_is_an_error_of_the_jobs_and_not_of_the_runner(
    make: Make,
) -> None:
    left_out = [1]

    def model(batch: Rows) -> Outputs:
        return np.stack(batch).astype(np.float32)[left_out[0] :]

    batcher = make(model)
    with pytest.raises(InternalFault):
        wait(batcher.submit(rows(1, 2), A))
    left_out[0] = 0
    assert values(batcher.submit(rows(3), A)) == [3]


def test_outputs_that_do_not_fit_together_fail_their_job_and_end_no_runner(make: Make) -> None:
    width = [1]

    def model(batch: Rows) -> Outputs:
        width[0] += 1
        return np.ones((len(batch), width[0]), np.float32)

    batcher = make(model, max_batch=2)
    for _ in range(4):  # a runner has three threads
        with pytest.raises(InternalFault):
            wait(batcher.submit(rows(1, 2, 3), A))
    assert wait(batcher.submit(rows(1), A))[0].shape[0] == 1
    assert all(thread.is_alive() for thread in batcher._threads)


def test_texts_of_one_job_come_back_in_the_order_they_were_given(
    run: HeldRun, record: Record, make: Make
) -> None:
    run.let_all()
    batcher = make(max_tokens=1000)
    lengths = [200, 4, 90, 5, 4, 199, 90, 3]
    answer = batcher.submit(texts(*lengths), A)
    assert values(answer) == [2.0 * (1000 + length) for length in lengths]
    batcher.close()
    assert len(run.seen) > 1
    assert sum(tokens for tokens, _ in record.padding) == sum(lengths)


def test_a_long_text_does_not_make_the_short_ones_pay_for_its_padding(
    run: HeldRun, record: Record, make: Make
) -> None:
    batcher = make(max_tokens=1000)
    first = batcher.submit(texts(3), A)
    run.begun(1)
    others = [
        batcher.submit(texts(length), Caller(str(i))) for i, length in enumerate([5, 6, 300, 7, 5])
    ]
    run.let_all()
    rides = [wait(answer)[1] for answer in (first, *others)]
    batcher.close()
    assert [ride.rows for ride in rides] == [1, 4, 4, 1, 4, 4]
    assert record.padding == [(3, 0), (23, 5), (300, 0)]


def test_a_modest_client_goes_aside_of_a_greedy_one(run: HeldRun, make: Make) -> None:
    batcher = make(max_batch=8)
    greedy = [batcher.submit(rows(i), Caller("greedy")) for i in range(40)]
    run.begun(1)
    modest = batcher.submit(rows(77), Caller("modest"))
    run.begun(2)
    assert run.seen[1] == [77.0], "beside the run that keeps the only runner busy"
    run.let_all()
    assert wait(modest)[1].reason is Reason.ASIDE
    for answer in greedy:
        wait(answer)


def test_a_run_aside_is_made_up_for_by_the_first_that_ends(run: HeldRun, make: Make) -> None:
    batcher = make(max_batch=8)
    greedy = [batcher.submit(rows(i), Caller("greedy")) for i in range(40)]
    run.begun(1)
    modest = batcher.submit(rows(77), Caller("modest"))
    run.begun(2)
    run.lets.release()
    until(lambda: modest.done or greedy[0].done)
    # One of the two has ended, and the other is all that a single runner carries.
    assert len(run.seen) == 2
    run.let_all()
    for answer in (modest, *greedy):
        wait(answer)


def test_an_urgent_call_goes_aside_of_a_run_of_others(run: HeldRun, make: Make) -> None:
    batcher = make()
    bulk = batcher.submit(rows(1), Caller("a", priority=Priority.LOW))
    run.begun(1)
    urgent = batcher.submit(rows(2), Caller("a", priority=Priority.HIGH))
    run.begun(2)
    run.let_all()
    assert values(urgent) == [4]
    assert values(bulk) == [2]


def test_close_ends_the_threads_once_all_is_answered_and_may_be_called_again(
    run: HeldRun, make: Make
) -> None:
    batcher = make(max_batch=2, name="closing")
    answers = [batcher.submit(rows(i), A) for i in range(9)]
    run.begun(1)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(lambda: batcher._closed)
    with pytest.raises(Unavailable):
        batcher.submit(rows(1), A)
    run.let_all()
    closing.join(10)
    assert not closing.is_alive()
    assert [values(answer) for answer in answers] == [[2.0 * i] for i in range(9)]
    batcher.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("run-closing")]


# What cannot be done by its deadline.

SLOW = [Measured(rows, 1, 0.1 * rows) for rows in (1, 8, 64)]  # 0.1 s a row


def test_a_deadline_that_the_queue_does_not_leave_is_refused_at_once(
    run: HeldRun, make: Make
) -> None:
    batcher = make(costs=RunCosts(SLOW), clock=lambda: 50.0)
    for _ in range(41):
        batcher.submit(rows(1), A)
    run.begun(1)
    waiting = 0.1 * batcher.waiting
    batcher.foresee(1, 1, Caller("a", deadline=50.0 + 1.4 * waiting))
    with pytest.raises(DeadlineExceeded, match="queue before it"):
        batcher.foresee(1, 1, Caller("a", deadline=50.0 + 0.5 * waiting))
    # Its turn comes sooner: of the other's rows, only a quantum goes before.
    batcher.foresee(1, 1, Caller("b", deadline=50.0 + 0.5 * waiting))
    with pytest.raises(DeadlineExceeded):
        batcher.foresee(1, 1, Caller("b", deadline=50.0 + 0.2))
    # And sooner still before less urgent work.
    batcher.foresee(1, 1, Caller("a", deadline=50.0 + 0.2, priority=Priority.HIGH))


def test_a_deadline_that_can_be_met_is_never_refused(make: Make) -> None:
    batcher = make(costs=RunCosts(SLOW), clock=lambda: 50.0)
    for rows_ in (1, 7, 64):
        for _ in range(50):
            batcher.foresee(rows_, 1, Caller("a", deadline=50.0 + 0.1 * rows_))


def test_without_a_table_no_deadline_is_refused(make: Make) -> None:
    make(clock=lambda: 50.0).foresee(1000, 1, Caller("a", deadline=50.001))


def refused_of(batcher: Batcher, count: int, deadline: float) -> int:
    """Ask for so many rows, one at a time, and count how often there is no time for it."""
    refused = 0
    for _ in range(count):
        try:
            batcher.foresee(1, 1, Caller("a", deadline=deadline))
        except DeadlineExceeded:
            refused += 1
    return refused


def test_a_table_that_is_wrong_is_found_out_since_some_are_let_in(run: HeldRun, make: Make) -> None:
    batcher = make(costs=RunCosts(SLOW), clock=lambda: 50.0)
    assert 24 <= refused_of(batcher, 32, 50.01) < 32
    for _ in range(8):
        batcher.submit(rows(1), A)
    run.begun(1)
    assert refused_of(batcher, 32, 50.01) == 32, "those that wait will tell"


def test_where_calls_come_too_late_all_the_same_a_queue_counts_for_more_until_they_do_not(
    run: HeldRun, make: Make
) -> None:
    now = [50.0]
    costs = RunCosts(SLOW)
    costs.tell = lambda rows, longest, seconds: None  # type: ignore[method-assign]
    batcher = make(costs=costs, clock=lambda: now[0], max_batch=1)

    def refused() -> bool:
        """Whether a call is that has two fifths more time than the table says a queue takes."""
        run.hold()
        begun = len(run.seen)
        for _ in range(40):
            batcher.submit(rows(1), A)
        run.begun(begun + 1)
        found = refused_of(batcher, 1, now[0] + 0.14 * batcher.waiting) == 1
        run.let_all()
        until(lambda: not batcher.waiting and batcher._free == 1)
        return found

    assert not refused()
    for _ in range(10):
        run.hold()
        begun = len(run.seen)
        first = batcher.submit(rows(1), A)
        run.begun(begun + 1)
        late = batcher.submit(rows(1), Caller("a", deadline=now[0] + 0.001))
        now[0] += 0.002
        run.let_all()
        with pytest.raises(DeadlineExceeded):
            wait(late)
        wait(first)
    assert refused()
    for answer in [batcher.submit(rows(1), A) for _ in range(4000)]:
        wait(answer)
    assert not refused()


def test_a_job_that_waits_alone_is_dropped_for_no_run_that_was_longer(make: Make) -> None:
    costs = RunCosts([Measured(1, 1, 0.03), Measured(8, 1, 0.24)])
    for _ in range(400):
        costs.tell(1, 1, 0.055)  # of runs that shared the processors
    batcher = make(lambda given: np.stack(given), costs=costs, clock=lambda: 50.0)
    assert values(batcher.submit(rows(7), Caller("a", deadline=50.04))) == [7.0]


def test_answers_that_come_after_their_deadline_make_a_queue_count_for_more(
    run: HeldRun, make: Make
) -> None:
    now = [50.0]
    batcher = make(costs=RunCosts(SLOW), clock=lambda: now[0], max_batch=1)

    def behind() -> float:
        run.hold()
        begun = len(run.seen)
        for _ in range(11):
            batcher.submit(rows(1), A)
        run.begun(begun + 1)
        found = batcher.behind() / batcher.waiting
        run.let_all()
        until(lambda: not batcher.waiting and batcher._free == 1)
        return found

    before = behind()
    run.hold()
    begun = len(run.seen)
    lone = batcher.submit(rows(1), Caller("a", deadline=now[0] + 0.5))
    run.begun(begun + 1)
    now[0] += 1.0  # its run takes longer than all the time that it had
    run.lets.release()
    wait(lone)
    assert behind() == pytest.approx(before, rel=0.01), "no queue was at fault"
    run.hold()
    begun = len(run.seen)
    batcher.submit(rows(1), A)
    run.begun(begun + 1)
    queued = batcher.submit(rows(1), Caller("a", deadline=now[0] + 0.5))
    now[0] += 0.4
    run.lets.release()
    run.begun(begun + 2)
    now[0] += 0.2
    run.let_all()
    wait(queued)
    assert behind() > 1.2 * before


def test_calls_that_are_on_their_way_count_as_usual_ones(run: HeldRun, make: Make) -> None:
    batcher = make(costs=RunCosts(SLOW), clock=lambda: 50.0, max_batch=1)
    assert batcher.behind() == batcher.behind_of("a", Priority.NORMAL) == 0.0
    few = batcher.behind(10)
    assert 0.0 < few == batcher.behind_of("a", Priority.NORMAL, 10)
    for _ in range(200):
        batcher.submit(rows(1, 2, 3), A)
    run.begun(1)
    waits = batcher.behind()
    assert batcher.behind(10) - waits > 2 * few, "calls of late had three rows each"


def test_a_call_that_would_leave_too_late_for_its_run_is_not_let_in_to_be_dropped(
    run: HeldRun, make: Make
) -> None:
    costs = RunCosts(SLOW)
    costs.recent_rows, costs.recent_seconds = 1.0, 1.0
    batcher = make(costs=costs, clock=lambda: 50.0)
    batcher.submit(rows(1), A)
    run.begun(1)
    batcher.submit(rows(1), A)
    batcher.foresee(1, 1, Caller("a", deadline=50.45))
    batcher.submit(rows(1), A)  # behind, from here on
    with pytest.raises(DeadlineExceeded):
        batcher.foresee(1, 1, Caller("a", deadline=50.45))


def test_what_the_table_does_not_know_of_a_queues_pace_is_learnt_from_the_ends_of_runs(
    run: HeldRun, make: Make
) -> None:
    now = [50.0]
    table = RunCosts([Measured(rows, 1, 0.001 * rows) for rows in (1, 8, 64)])
    batcher = make(costs=table, clock=lambda: now[0], max_batch=1)
    answers = [batcher.submit(rows(1), A) for _ in range(100)]
    run.begun(1)
    assert batcher.behind() < 0.2
    for done in range(1, 91):
        now[0] += 0.1  # though runs are short: replies take the rest
        run.lets.release()
        wait(answers[done - 1])
        run.begun(done + 1)
    learnt = batcher.behind() / batcher.waiting
    assert 0.06 < learnt <= 0.127
    with pytest.raises(DeadlineExceeded):
        batcher.foresee(1, 1, Caller("a", deadline=now[0] + 0.2))


def test_a_client_with_one_call_in_a_run_is_answered_before_one_with_many(
    run: HeldRun, make: Make
) -> None:
    batcher = make()
    first = batcher.submit(rows(0), A)
    run.begun(1)
    order: list[str] = []

    def note(name: str, answer: Answer) -> None:
        async def waited() -> None:
            await answer
            order.append(name)

        drive(waited(), lambda value, error: None)

    for name in ("many", "many", "many", "one"):
        note(name, batcher.submit(rows(1), Caller(name)))
    run.let_all()
    wait(first)
    wait(batcher.submit(rows(2), Caller("last")))
    assert order == ["one", "many", "many", "many"]


# Many threads.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_tokens", [None, 300])
def test_threads_that_submit_and_abandon_get_each_answer_once_and_their_own(
    seed: int, max_tokens: int | None, make: Make, record: Record
) -> None:
    count = 20_000 if seed == 0 and max_tokens is None else 2_000
    failing = 0.5  # rows with this fraction make a run fail

    def model(batch: Rows) -> Outputs:
        heads = np.array([row[0] for row in batch])
        if (heads % 1 == failing).any():
            raise ValueError("out of range")
        return heads[:, None].astype(np.float32)

    batcher = make(model, max_batch=16, runners=3, max_tokens=max_tokens, ageing=0.01)
    told: list[int] = [0] * count
    wrong: list[str] = []
    rows_given = [0] * 8

    def work(thread: int) -> None:
        chance = random.Random(f"{seed} {thread}")
        open_ones: list[Answer] = []
        for number in range(thread, count, 8):
            size = chance.choice([1, 1, 1, 2, 5])
            lengths = [chance.randint(1, 40) if max_tokens else 1 for _ in range(size)]
            fails = chance.random() < 0.02
            marks = [number * 8 + i + (failing if fails and not i else 0) for i in range(size)]
            job = [np.full(n, mark, np.float64) for n, mark in zip(lengths, marks, strict=True)]
            caller = Caller(
                str(chance.randint(0, 4)),
                time.monotonic() + chance.random() if chance.random() < 0.2 else None,
                Priority(chance.randint(0, 2)),
            )
            rows_given[thread] += size
            answer = batcher.submit(job, caller)

            def check(
                number: int = number, marks: list[float] = marks, answer: Answer = answer,
                fails: bool = fails,
            ) -> None:  # fmt: skip
                told[number] += 1
                try:
                    outputs, _ = answer.result()
                except (asyncio.CancelledError, DeadlineExceeded):
                    return
                except InternalFault:
                    if not fails:
                        wrong.append(f"{number} failed")
                    return
                if outputs.ravel().tolist() != marks or fails:
                    wrong.append(f"{number}: {outputs.ravel().tolist()}")

            if not answer.when_done(check):
                check()
            open_ones.append(answer)
            if chance.random() < 0.1:
                chance.choice(open_ones[-20:]).abandon()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    batcher.close()
    assert wrong == []
    assert told == [1] * count, "each job is answered exactly once"
    assert batcher.waiting == 0
    ran = sum(rows for rows, _ in record.batches)
    assert ran + sum(rows for rows, _ in record.drops) == sum(rows_given)


# A row takes a tenth of a millisecond, and nothing besides.
NEARLY_FREE = [Measured(1, 1, 1e-4), Measured(32, 1, 32e-4)]


def doubled(threads: list[int]) -> Callable[[Rows], Outputs]:
    """A model that notes which threads it was run in."""

    def model(rows: Rows) -> Outputs:
        threads.append(threading.get_ident())
        return np.stack([row[:1] for row in rows]).astype(np.float32) * 2

    return model


def test_what_is_nearly_free_is_run_by_the_thread_that_reads_calls_once_it_has_read_them(
    make: Make, record: Record
) -> None:
    ran: list[int] = []
    afterwards = Afterwards()
    afterwards.belong_here()
    batcher = make(doubled(ran), costs=RunCosts(NEARLY_FREE), afterwards=afterwards)
    answers = [batcher.submit(rows(value), Caller("a")) for value in range(5)]
    assert not any(answer.done for answer in answers)
    # There is more to read, and little waits so far.
    afterwards.run(nothing_left=False)
    assert not ran
    answers.append(batcher.submit(rows(5), Caller("b")))
    afterwards.run(nothing_left=True)
    assert [values(answer) for answer in answers] == [[2.0 * value] for value in range(6)]
    assert ran == [threading.get_ident()]
    assert record.batches == [(6, Reason.RUNNER_FREE)]
    assert not afterwards.waiting


def test_it_is_run_although_more_is_read_once_enough_waits(make: Make, record: Record) -> None:
    afterwards = Afterwards()
    afterwards.belong_here()
    batcher = make(doubled([]), costs=RunCosts(NEARLY_FREE), afterwards=afterwards)
    answers = [batcher.submit(rows(value), Caller("a")) for value in range(50)]
    afterwards.run(nothing_left=False)
    assert record.batches
    for value, answer in enumerate(answers):
        assert values(answer) == [2.0 * value]


@pytest.mark.parametrize(
    ("costs", "count"),
    [
        pytest.param([], 1, id="what was never measured"),
        pytest.param([Measured(1, 1, 0.01), Measured(32, 1, 0.3)], 1, id="a net that is not free"),
        pytest.param(NEARLY_FREE, 32, id="a call of many rows"),
    ],
)
def test_nothing_else_keeps_the_thread_that_reads_calls(
    make: Make, costs: list[Measured], count: int
) -> None:
    ran: list[int] = []
    afterwards = Afterwards()
    afterwards.belong_here()
    batcher = make(doubled(ran), costs=RunCosts(costs), afterwards=afterwards)
    assert values(batcher.submit(rows(*range(count)), Caller("a"))) == [
        2.0 * i for i in range(count)
    ]
    assert not afterwards.waiting
    assert threading.get_ident() not in ran


def test_a_call_of_another_thread_waits_for_nobody_to_read(make: Make) -> None:
    ran: list[int] = []
    afterwards = Afterwards()
    afterwards.belong_here()
    batcher = make(doubled(ran), costs=RunCosts(NEARLY_FREE), afterwards=afterwards)
    found: list[list[float]] = []
    caller = threading.Thread(
        target=lambda: found.append(values(batcher.submit(rows(3), Caller("a"))))
    )
    caller.start()
    caller.join(10)
    assert found == [[6.0]]
    assert threading.get_ident() not in ran


def test_a_long_queue_leaves_run_by_run_so_that_calls_are_read_in_between(make: Make) -> None:
    ran: list[int] = []
    afterwards = Afterwards()
    afterwards.belong_here()
    batcher = make(doubled(ran), costs=RunCosts(NEARLY_FREE), afterwards=afterwards, runners=2)
    answers = [batcher.submit(rows(value), Caller("a")) for value in range(300)]
    times = 0
    while afterwards.waiting:
        before = batcher.waiting
        afterwards.run(nothing_left=True)
        times += 1
        assert 0 < before - batcher.waiting <= 64
    assert times >= 5
    for value, answer in enumerate(answers):
        assert values(answer) == [2.0 * value]
    assert set(ran) == {threading.get_ident()}


def test_runs_that_would_keep_the_thread_are_handed_over(make: Make) -> None:
    ran: list[int] = []
    afterwards = Afterwards()
    afterwards.belong_here()
    costs = RunCosts([Measured(1, 1, 0.0009), Measured(256, 1, 0.014)])
    batcher = make(doubled(ran), costs=costs, afterwards=afterwards, max_batch=512)
    answers = [batcher.submit(rows(value), Caller("a")) for value in range(300)]
    afterwards.run(nothing_left=True)
    assert not afterwards.waiting
    for value, answer in enumerate(answers):
        assert values(answer) == [2.0 * value]
    assert threading.get_ident() not in ran


def test_what_runs_there_runs_with_the_threads_of_lone_runs(make: Make) -> None:
    afterwards = Afterwards()
    afterwards.belong_here()
    batcher = make(
        lambda given: np.stack([2 * row[:1] for row in given]),
        run_lone=lambda given: np.stack([3 * row[:1] for row in given]),
        costs=RunCosts(NEARLY_FREE),
        afterwards=afterwards,
    )
    answer = batcher.submit(rows(0, 1), Caller("a"))
    afterwards.run(nothing_left=True)
    assert values(answer) == [0, 3]


def test_a_run_that_no_other_goes_beside_has_the_threads_of_lone_runs(
    run: HeldRun, make: Make
) -> None:
    lone: list[int] = []

    def run_lone(given: Rows) -> Outputs:
        lone.append(len(given))
        return run(given)

    batcher = make(runners=2, max_batch=4, run_lone=run_lone)
    first = batcher.submit(rows(1), A)
    run.begun(1)
    beside = batcher.submit(rows(2), A)
    run.begun(2)
    assert lone == [1], "only the first was alone"
    run.let_all()
    assert values(first) + values(beside) == [2, 4]
    until(lambda: batcher._free == 2)
    assert values(batcher.submit(rows(3), A)) == [6]
    assert lone == [1], "jobs came side by side a moment ago: the next may do so again"
    until(lambda: batcher._free == 2)
    assert values(batcher.submit(rows(3), A)) == [6]
    assert lone == [1, 1], "alone once more"
    until(lambda: batcher._free == 2)
    many = batcher.submit(rows(*range(9)), A)  # runs of 4: others wait when the first leaves
    assert values(many) == [2.0 * value for value in range(9)]
    assert 4 not in lone


def test_the_thread_that_waited_last_goes_first(make: Make) -> None:
    ran: list[int] = []

    def model(given: Rows) -> Outputs:
        ran.append(threading.get_ident())
        return np.stack([row[:1] for row in given]).astype(np.float32)

    batcher = make(model, runners=2)
    threads = 2 * batcher.runners + 1
    until(lambda: len(batcher._idle) == threads)
    for _ in range(20):
        wait(batcher.submit(rows(1), A))
        until(lambda: len(batcher._idle) == threads)
    assert len(ran) == 20
    assert len(set(ran)) == 1, "one caller after the other: one warm thread"


def test_what_lone_runs_cost_is_not_told_as_what_runs_cost_side_by_side(make: Make) -> None:
    batcher = make(doubled([]), run_lone=doubled([]))
    wait(batcher.submit(rows(1), A))
    assert batcher.costs.seconds(1) == 0
    same = make(doubled([]))
    wait(same.submit(rows(1), A))
    assert same.costs.seconds(1) > 0


def test_a_model_that_fails_there_fails_its_jobs_and_the_next_run_works(make: Make) -> None:
    afterwards = Afterwards()
    afterwards.belong_here()
    fails = [True]

    def model(given: Rows) -> Outputs:
        if fails[0]:
            raise ValueError("no")
        return np.stack([row[:1] for row in given])

    batcher = make(model, costs=RunCosts(NEARLY_FREE), afterwards=afterwards)
    answer = batcher.submit(rows(1), Caller("a"))
    afterwards.run(nothing_left=True)
    with pytest.raises(InternalFault):
        wait(answer)
    fails[0] = False
    again = batcher.submit(rows(1), Caller("a"))
    afterwards.run(nothing_left=True)
    assert values(again) == [1.0]


def test_what_is_put_off_is_answered_though_the_batcher_closes_first(make: Make) -> None:
    afterwards = Afterwards()
    afterwards.belong_here()
    batcher = make(doubled([]), costs=RunCosts(NEARLY_FREE), afterwards=afterwards)
    answer = batcher.submit(rows(4), Caller("a"))
    batcher.close()
    assert values(answer) == [8.0]
    afterwards.run(nothing_left=True)
    assert not afterwards.waiting
