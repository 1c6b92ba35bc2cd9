"""The batcher, with runs that the test holds in its hand."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from twinserve.errors import DeadlineExceeded, InternalFault
from twinserve.server.batcher import QUANTUM, Batcher, Outputs, Reason, Rows


class Record:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Reason]] = []
        self.drops: list[tuple[int, str]] = []
        self.padding: list[tuple[int, int]] = []

    def batch(self, rows: int, seconds: float, reason: Reason) -> None:
        self.batches.append((rows, reason))

    def queued(self, seconds: float) -> None:
        assert seconds >= 0

    def padded(self, tokens: int, padding: int) -> None:
        self.padding.append((tokens, padding))

    def dropped(self, rows: int, why: str) -> None:
        self.drops.append((rows, why))


class HeldRun:
    """A model that doubles its rows, once the test lets it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.seen: list[list[float]] = []

    def __call__(self, rows: Rows) -> Outputs:
        self.seen.append([float(row[0]) for row in rows])
        assert self.gate.wait(10)
        return np.stack(rows).astype(np.float32) * 2


def rows(*values: float) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def check(body: Callable[[HeldRun, Record, Callable[..., Batcher]], Awaitable[None]]) -> None:
    """Run a test's body on a loop with a held model."""

    async def main() -> None:
        run, record = HeldRun(), Record()
        with ThreadPoolExecutor(4) as pool:

            def make(max_batch: int = 64, runners: int = 1) -> Batcher:
                return Batcher(run, pool, max_batch=max_batch, runners=runners, observer=record)

            try:
                await body(run, record, make)
            finally:
                run.gate.set()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never happened")


def test_a_lone_job_leaves_at_once_and_gets_its_own_rows() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        run.gate.set()
        outputs, ride = await make().submit(rows(1, 2, 3))
        assert outputs.ravel().tolist() == [2, 4, 6]
        assert (ride.rows, ride.reason) == (3, Reason.RUNNER_FREE)

    check(body)


def test_what_waits_while_the_runner_is_busy_leaves_as_one_batch() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        batcher = make()
        first = asyncio.create_task(batcher.submit(rows(0)))
        await until(lambda: len(run.seen) == 1)
        others = [asyncio.create_task(batcher.submit(rows(i), client=str(i))) for i in range(1, 9)]
        await until(lambda: batcher.waiting == 8)
        run.gate.set()
        await first
        answers = await asyncio.gather(*others)
        assert [float(outputs[0, 0]) for outputs, _ in answers] == [2.0 * i for i in range(1, 9)]
        assert [count for count, _ in record.batches] == [1, 8]

    check(body)


def test_after_a_crowd_a_free_runner_lets_in_those_who_come_one_by_one() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        batcher = make()

        async def come(count: int) -> list[asyncio.Task[object]]:
            tasks = []
            for i in range(count):
                tasks.append(asyncio.create_task(batcher.submit(rows(i), client=str(i))))
                for _ in range(5):  # more turns than jobs that came together need
                    await asyncio.sleep(0)
            return tasks

        alone = await come(3)
        await until(lambda: len(run.seen) == 1 and batcher.waiting == 2)
        assert run.seen == [[0.0]], "without a crowd the first one does not wait"
        crowd = alone + await come(9)
        await asyncio.sleep(0.02)  # a run that lasts gives the wait its length
        run.gate.set()
        await asyncio.gather(*crowd)
        before = len(run.seen)
        await asyncio.gather(*await come(9))
        assert len(run.seen[before]) >= 4, "they share a run"

    check(body)


def test_the_crowd_is_forgotten_and_a_lone_job_waits_no_more() -> None:
    async def main() -> None:
        def slow(batch: Rows) -> Outputs:
            time.sleep(0.01)
            return np.stack(batch).astype(np.float32)

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(slow, pool, max_batch=64, runners=1, observer=Record())
            await asyncio.gather(*(batcher.submit(rows(i)) for i in range(16)))
            after = (await batcher.submit(rows(1)))[1].reason
            await asyncio.sleep(1.5)
            later = (await batcher.submit(rows(1)))[1].reason
        assert (after, later) == (Reason.WAIT_ENDED, Reason.RUNNER_FREE)

    asyncio.run(main())


def test_a_job_larger_than_a_batch_is_answered_whole_and_in_order() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        run.gate.set()
        outputs, ride = await make(max_batch=4).submit(rows(*range(11)))
        assert outputs.ravel().tolist() == [2.0 * i for i in range(11)]
        assert record.batches == [(4, Reason.FULL), (4, Reason.FULL), (3, Reason.RUNNER_FREE)]
        assert ride.rows == 4

    check(body)


def test_clients_take_turns_so_that_one_with_many_jobs_does_not_keep_another_waiting() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        batcher = make(max_batch=2 * QUANTUM)
        first = asyncio.create_task(batcher.submit(rows(-1), client="greedy"))
        await until(lambda: len(run.seen) == 1)
        flood = [asyncio.create_task(batcher.submit(rows(1), client="greedy")) for _ in range(99)]
        await until(lambda: batcher.waiting == 99)
        lone = asyncio.create_task(batcher.submit(rows(7), client="modest"))
        await until(lambda: batcher.waiting == 100)
        run.gate.set()
        await asyncio.gather(first, lone, *flood)
        assert 7.0 in run.seen[1], "the modest client's row rides in the very next batch"

    check(body)


def test_several_runners_run_at_a_time() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        batcher = make(runners=2)
        one = asyncio.create_task(batcher.submit(rows(1)))
        await until(lambda: len(run.seen) == 1)
        two = asyncio.create_task(batcher.submit(rows(2)))
        await until(lambda: len(run.seen) == 2)
        run.gate.set()
        await asyncio.gather(one, two)

    check(body)


def test_a_cancelled_job_is_dropped_before_it_costs_a_run() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        batcher = make()
        first = asyncio.create_task(batcher.submit(rows(1)))
        await until(lambda: len(run.seen) == 1)
        given_up = asyncio.create_task(batcher.submit(rows(2, 3)))
        kept = asyncio.create_task(batcher.submit(rows(4)))
        await until(lambda: batcher.waiting == 3)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert batcher.waiting == 1, "its rows stop counting at once"
        run.gate.set()
        await asyncio.gather(first, kept)
        assert run.seen == [[1.0], [4.0]]
        assert record.drops == [(2, "cancelled")]
        await asyncio.wait_for(batcher.drained(), 1)

    check(body)


def test_a_job_whose_deadline_passes_while_it_waits_is_dropped_with_its_error() -> None:
    async def body(run: HeldRun, record: Record, make: Callable[..., Batcher]) -> None:
        now = [100.0]
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(
                run, pool, max_batch=8, runners=1, observer=record, clock=lambda: now[0]
            )
            first = asyncio.create_task(batcher.submit(rows(1)))
            await until(lambda: len(run.seen) == 1)
            late = asyncio.create_task(batcher.submit(rows(2), deadline=101.0))
            await until(lambda: batcher.waiting == 1)
            now[0] = 101.5
            run.gate.set()
            await first
            with pytest.raises(DeadlineExceeded):
                await late
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(rows(3), deadline=101.0)
        assert run.seen == [[1.0]]
        assert record.drops == [(1, "expired")]
        assert batcher.waiting == 0

    check(body)


def test_a_wait_for_the_crowd_does_not_cost_a_job_its_deadline() -> None:
    async def main() -> None:
        def slow(batch: Rows) -> Outputs:
            time.sleep(0.005)
            return np.stack(batch).astype(np.float32)

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(slow, pool, max_batch=64, runners=1, observer=Record())
            reasons = []
            for _ in range(5):  # several tries, since a busy machine may stop us for long
                for _ in range(10):
                    await asyncio.gather(*(batcher.submit(rows(i)) for i in range(32)))
                deadline = time.monotonic() + 0.016
                with contextlib.suppress(DeadlineExceeded):
                    _, ride = await batcher.submit(rows(1), deadline=deadline)
                    reasons.append(ride.reason)
        assert Reason.DEADLINE in reasons

    asyncio.run(main())


def test_a_row_that_the_model_cannot_run_fails_only_its_own_job() -> None:
    async def main() -> None:
        def choosy(batch: Rows) -> Outputs:
            if any(row[0] < 0 for row in batch):
                raise ValueError("out of range")
            return np.stack(batch).astype(np.float32)

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(choosy, pool, max_batch=64, runners=1, observer=Record())
            answers = await asyncio.gather(
                *(batcher.submit(rows(i, i + 1)) for i in (1, -5, 3)), return_exceptions=True
            )
            assert isinstance(answers[1], InternalFault)
            for answer, first in ((answers[0], 1.0), (answers[2], 3.0)):
                assert not isinstance(answer, BaseException)
                assert answer[0].ravel().tolist() == [first, first + 1]

    asyncio.run(main())


def test_a_model_that_fails_fails_each_job_with_an_error_of_its_own_and_the_next_run_works() -> (
    None
):
    async def main() -> None:
        broken = True

        def run(batch: Rows) -> Outputs:
            if broken:
                raise RuntimeError("no memory")
            return np.stack(batch).astype(np.float32)

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(run, pool, max_batch=8, runners=1, observer=Record())
            failed = await asyncio.gather(
                batcher.submit(rows(1)), batcher.submit(rows(2)), return_exceptions=True
            )
            assert [type(error) for error in failed] == [InternalFault, InternalFault]
            assert failed[0] is not failed[1]
            broken = False
            outputs, _ = await batcher.submit(rows(5))
            assert outputs.ravel().tolist() == [5.0]
            await asyncio.wait_for(batcher.drained(), 1)

    asyncio.run(main())


class LengthRun:
    """A model of texts: remembers the lengths of every run, and gives each row's sum."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.seen: list[list[int]] = []

    def __call__(self, batch: Rows) -> Outputs:
        self.seen.append([len(row) for row in batch])
        assert self.gate.wait(10)
        return np.array([[row.sum()] for row in batch], np.float32)


def texts(*lengths: int) -> list[np.ndarray]:
    return [np.full(length, 1000 + length) for length in lengths]


def sums(*lengths: int) -> list[float]:
    return [float(length * (1000 + length)) for length in lengths]


def check_texts(
    body: Callable[[LengthRun, Record, Batcher], Awaitable[None]],
    max_batch: int = 64,
    max_tokens: int = 1000,
    runners: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run a test's body on a loop with a held model of texts."""

    async def main() -> None:
        run, record = LengthRun(), Record()
        with ThreadPoolExecutor(runners) as pool:
            batcher = Batcher(
                run,
                pool,
                max_batch=max_batch,
                runners=runners,
                observer=record,
                max_tokens=max_tokens,
                clock=clock,
            )
            try:
                await body(run, record, batcher)
            finally:
                run.gate.set()

    asyncio.run(main())


def test_a_long_text_does_not_make_the_short_ones_pay_for_its_padding() -> None:
    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(texts(3)))
        await until(lambda: len(run.seen) == 1)
        others = [
            asyncio.create_task(batcher.submit(texts(length), client=str(i)))
            for i, length in enumerate([5, 6, 300, 7, 5])
        ]
        await until(lambda: batcher.waiting == 5)
        run.gate.set()
        answers = await asyncio.gather(first, *others)
        assert [float(outputs[0, 0]) for outputs, _ in answers] == sums(3, 5, 6, 300, 7, 5)
        assert run.seen == [[3], [5, 5, 6, 7], [300]], "the short ones first, the long one alone"
        assert [ride.rows for _, ride in answers] == [1, 4, 4, 1, 4, 4]
        assert record.padding == [(3, 0), (23, 5), (300, 0)]

    check_texts(body)


def test_texts_of_one_job_come_back_in_the_order_they_were_given() -> None:
    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        run.gate.set()
        lengths = [200, 4, 90, 5, 4, 199, 90, 3]
        outputs, _ = await batcher.submit(texts(*lengths))
        assert outputs.ravel().tolist() == sums(*lengths)
        assert len(run.seen) > 1
        assert all(max(seen) * len(seen) <= 1000 for seen in run.seen)

    check_texts(body)


def test_jobs_of_many_texts_from_many_clients_all_get_their_own() -> None:
    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        run.gate.set()
        generator = np.random.default_rng(4)
        calls = [generator.integers(1, 120, generator.integers(1, 40)).tolist() for _ in range(60)]
        answers = await asyncio.gather(
            *(batcher.submit(texts(*call), client=str(i % 7)) for i, call in enumerate(calls))
        )
        for call, (outputs, _) in zip(calls, answers, strict=True):
            assert outputs.ravel().tolist() == sums(*call)
        assert batcher.waiting == 0
        assert sum(map(len, run.seen)) == sum(map(len, calls))
        assert all(max(seen) * len(seen) <= 1000 and len(seen) <= 16 for seen in run.seen)

    check_texts(body, max_batch=16)


def test_a_batch_is_full_when_its_tokens_are_and_a_longer_text_runs_alone() -> None:
    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        run.gate.set()
        await batcher.submit(texts(*[40] * 30, 5000))
        assert run.seen == [[40] * 25, [40] * 5, [5000]]
        assert [reason for _, reason in record.batches] == [
            Reason.FULL,
            Reason.FULL,
            Reason.RUNNER_FREE,
        ]

    check_texts(body)


def test_a_client_whose_text_did_not_fit_is_first_in_the_next_batch() -> None:
    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(texts(1)))
        await until(lambda: len(run.seen) == 1)
        flood = [
            asyncio.create_task(batcher.submit(texts(90), client=f"short{i % 2}"))
            for i in range(60)
        ]
        await until(lambda: batcher.waiting == 60)
        long = asyncio.create_task(batcher.submit(texts(950), client="long"))
        await until(lambda: batcher.waiting == 61)
        run.gate.set()
        await asyncio.gather(first, long, *flood)
        place = next(i for i, seen in enumerate(run.seen) if 950 in seen)
        assert place <= 3, f"run {place} of {len(run.seen)}"

    check_texts(body)


def test_runs_of_one_batch_go_to_every_free_runner() -> None:
    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        job = asyncio.create_task(batcher.submit(texts(300, 4, 90)))
        await until(lambda: len(run.seen) == 2)
        assert sorted(run.seen) == [[4], [90]]
        run.gate.set()
        outputs, _ = await job
        assert outputs.ravel().tolist() == sums(300, 4, 90)

    check_texts(body, runners=2)


def test_a_bound_run_that_nobody_waits_for_any_more_is_not_run() -> None:
    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        short = asyncio.create_task(batcher.submit(texts(4), client="a"))
        long = asyncio.create_task(batcher.submit(texts(400), client="b"))
        # Both are bound together; the short one's run holds the runner.
        await until(lambda: len(run.seen) == 1)
        assert batcher.waiting == 0
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        run.gate.set()
        await short
        await asyncio.wait_for(batcher.drained(), 1)
        assert run.seen == [[4]]
        assert record.drops == [(1, "cancelled")]

    check_texts(body)


def test_a_bound_run_whose_deadline_has_passed_is_dropped_with_its_error() -> None:
    now = [100.0]

    async def body(run: LengthRun, record: Record, batcher: Batcher) -> None:
        short = asyncio.create_task(batcher.submit(texts(4), client="a"))
        long = asyncio.create_task(batcher.submit(texts(400), client="b", deadline=101.0))
        await until(lambda: len(run.seen) == 1)
        now[0] = 102.0
        run.gate.set()
        await short
        with pytest.raises(DeadlineExceeded):
            await long
        assert run.seen == [[4]]
        assert record.drops == [(1, "expired")]

    check_texts(body, clock=lambda: now[0])
