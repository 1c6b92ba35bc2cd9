"""The order in which waiting jobs leave, rule by rule, and what it comes to in simulated time."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from tests.server.queueing import Queue, closed_loop
from twinserve.server.batching.costs import Measured, RunCosts
from twinserve.server.batching.jobs import Job, Reason, Run
from twinserve.server.batching.turns import AGED_EVERY, QUANTUM
from twinserve.server.callers import Priority

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def table(fixed: float, per_token: float, longest: int = 1) -> RunCosts:
    """A table in which runs take a fixed time and a time per token."""
    return RunCosts(
        Measured(rows, length, fixed + per_token * rows * length)
        for rows in (1, 4, 16, 64)
        for length in {1, longest}
    )


def jobs(run: Run | None) -> list[Job]:
    assert run is not None
    return [job for job, _ in run.parts]


def test_all_that_waits_leaves_together() -> None:
    queue = Queue()
    waiting = [queue.come(client) for client in "aabc"]
    run = queue.take()
    assert set(jobs(run)) == set(waiting)
    assert run is not None
    assert run.reason is Reason.RUNNER_FREE
    assert queue.turns.rows == 0
    assert queue.take() is None


def test_what_is_expired_is_dropped_before_it_costs_anything_in_every_class() -> None:
    queue = Queue()
    late = [queue.come(str(p), deadline=1.0, priority=p) for p in Priority]
    kept = queue.come("0", deadline=3.0)
    queue.now = 1.5
    assert jobs(queue.take()) == [kept]
    assert set(queue.expired) == set(late)
    assert queue.turns.rows == 0


def test_an_expired_job_behind_its_clients_others_does_not_ride() -> None:
    queue = Queue(ageing=1.0)
    patient = queue.come("a")  # as urgent as a deadline at 1.0
    late = queue.come("a", deadline=1.4)
    queue.now = 1.5
    assert jobs(queue.take()) == [patient]
    assert queue.expired == [late]


@pytest.mark.parametrize("others", [0, 1])
def test_a_cancelled_job_that_expires_behind_its_clients_others_is_passed_over(others: int) -> None:
    # What a client does whose call comes too late: it cancels, and then the deadline has passed.
    queue = Queue(ageing=1.0)
    waiting = [queue.come("a"), *(queue.come("b") for _ in range(others))]
    gone = queue.come("a", deadline=1.4)
    queue.turns.drop(gone)
    queue.now = 1.5
    assert set(jobs(queue.take())) == set(waiting)
    assert queue.expired == []
    assert queue.turns.rows == 0


@pytest.mark.parametrize("order", list(itertools.permutations(Priority)))
def test_the_most_urgent_class_leaves_first(order: tuple[Priority, ...]) -> None:
    queue = Queue()
    come = {priority: queue.come("a", priority=priority) for priority in order}
    assert [jobs(run) for run in queue.runs()] == [[come[HIGH]], [come[NORMAL]], [come[LOW]]]


def test_a_head_past_the_ageing_limit_leaves_before_a_more_urgent_class() -> None:
    queue = Queue(ageing=1.0)
    low = queue.come("a", priority=LOW)
    queue.now = 0.9
    first = queue.come("b", priority=HIGH)
    assert jobs(queue.take()) == [first]
    queue.now = 1.1
    queue.come("b", priority=HIGH)
    run = queue.take()
    assert jobs(run) == [low]
    assert run is not None
    assert run.reason is Reason.AGED


def test_the_aged_have_one_run_of_a_few_so_that_the_urgent_go_on() -> None:
    queue = Queue(ageing=1.0, max_batch=1)
    for i in range(8):
        queue.come(f"low{i}", priority=LOW)
    queue.now = 5.0
    for i in range(100):
        queue.come(f"high{i}", priority=HIGH)
    classes = [jobs(queue.take())[0].caller.priority for _ in range(4 * AGED_EVERY)]
    assert classes.count(LOW) == 4
    assert all(classes[i : i + AGED_EVERY].count(LOW) == 1 for i in range(3 * AGED_EVERY))


def test_a_job_without_a_deadline_is_not_kept_waiting_for_good_by_its_own_client() -> None:
    queue = Queue(ageing=1.0, max_batch=1)
    patient = queue.come("a")
    waited = 0
    while True:
        queue.now += 0.1
        queue.come("a", deadline=queue.now + 0.5)
        if jobs(queue.take()) == [patient]:
            break
        waited += 1
        assert waited < 12


def test_within_a_round_the_earliest_deadline_leaves_first() -> None:
    queue = Queue(max_batch=1)
    third = queue.come("c")
    second = queue.come("a", deadline=0.8)
    first = queue.come("b", deadline=0.5)
    assert [jobs(run) for run in queue.runs()] == [[first], [second], [third]]


def test_a_client_with_tight_deadlines_does_not_keep_another_waiting() -> None:
    queue = Queue(max_batch=QUANTUM)
    for _ in range(100):
        queue.come("greedy", deadline=0.5)
    modest = queue.come("modest")
    runs = [jobs(queue.take()) for _ in range(2)]
    assert modest in runs[0] + runs[1]


def test_clients_are_served_alike_whatever_they_have_waiting() -> None:
    queue = Queue(max_batch=8)
    for client, count in {"a": 1000, "b": 100, "c": 50}.items():
        for _ in range(count):
            queue.come(client)
    served = dict.fromkeys("abc", 0)
    for _ in range(15):
        for job in jobs(queue.take()):
            served[job.caller.client] += 1
    assert sum(served.values()) == 120
    assert all(abs(count - 40) <= QUANTUM for count in served.values())


def test_a_client_that_was_idle_has_saved_nothing_up() -> None:
    queue = Queue(max_batch=4)
    queue.come("late")
    queue.take()
    for _ in range(400):
        queue.come("busy")
    for _ in range(50):
        queue.take()
    for _ in range(100):
        queue.come("late")
    clients = [job.caller.client for _ in range(10) for job in jobs(queue.take())]
    assert abs(clients.count("late") - 20) <= 2 * QUANTUM


def test_a_client_that_took_what_nobody_wanted_owes_nothing() -> None:
    queue = Queue(max_batch=4)
    for _ in range(200):
        queue.come("busy")
    for _ in range(40):
        queue.take()
    for _ in range(60):
        queue.come("other")
    clients = [job.caller.client for _ in range(10) for job in jobs(queue.take())]
    assert abs(clients.count("busy") - 20) <= 2 * QUANTUM


def test_leaving_the_queue_in_between_wipes_no_debt() -> None:
    queue = Queue(max_batch=40)
    for client in ("a", "b"):
        for _ in range(20):
            queue.come(client)
    for _ in range(20):
        queue.come("b")
    queue.take()  # all 20 of a, 20 of b
    queue.take()  # the other 20 of b, which waits no more
    for _ in range(100):
        queue.come("a")
        queue.come("b")
    clients = [job.caller.client for job in jobs(queue.take())]
    assert clients.count("a") - clients.count("b") >= 20 - 2 * QUANTUM


def test_a_run_is_as_large_as_pays_and_no_larger() -> None:
    queue = Queue(max_batch=64, costs=table(0.002, 0.01))
    for _ in range(64):
        queue.come("a")
    run = queue.take()
    assert run is not None
    # 2 ms a run on 10 ms a row: beyond 7 rows, the fixed price is under 3 %.
    assert run.rows == 7
    assert run.reason is Reason.FULL


def test_short_runs_are_not_cut_though_nothing_would_be_lost() -> None:
    queue = Queue(max_batch=64, costs=table(1e-7, 2e-5))
    for _ in range(64):
        queue.come("a")
    assert len(jobs(queue.take())) == 64


def test_a_run_while_which_nothing_is_read_is_brief_for_one_with_little_beside_a_crowd() -> None:
    def rows_of_run(clients: str, here: bool, later: float = 0.0) -> int:
        queue = Queue(costs=table(0.0001, 0.0002))
        for client in clients:
            queue.come(client)
        queue.now += later
        run = queue.turns.take(queue.now, here=here)
        assert run is not None
        return run.rows

    crowd = "a" * 60
    assert rows_of_run(crowd, here=True) > 20, "nobody else waits to be read"
    assert rows_of_run("ab" * 30, here=True) > 20, "both have much"
    assert rows_of_run("abcdefgh" * 6, here=True) > 20, "all have as much"
    assert rows_of_run(crowd + "b", here=False) > 20, "others are read meanwhile"
    assert rows_of_run(crowd + "b", here=True, later=1.0) > 20, "it was long ago"
    brief = rows_of_run(crowd + "b", here=True, later=0.01)
    assert brief * 0.0002 < 0.0025
    assert brief >= 4


@pytest.mark.parametrize("others", [0, 1])
def test_a_job_that_a_run_would_cut_rides_whole_unless_another_client_waits(others: int) -> None:
    queue = Queue(max_batch=64, costs=table(0.002, 0.01))  # 7 rows are enough
    first, second = queue.come("a", rows=5), queue.come("a", rows=5)
    for _ in range(others):
        queue.come("b", rows=5)
    run = queue.take()
    assert run is not None
    if others:
        assert run.rows == 7
    else:
        assert [(job, len(indices)) for job, indices in run.parts] == [(first, 5), (second, 5)]
    assert sum(run.rows for run in queue.runs()) == 5 * (2 + others) - run.rows


def test_a_job_of_many_rows_does_not_make_a_run_more_than_twice_as_long_as_pays() -> None:
    queue = Queue(max_batch=64, costs=table(0.002, 0.01))
    queue.come("a", rows=20)
    assert [run.rows for run in queue.runs()] == [7, 13]


def test_a_call_of_many_rows_is_spread_over_free_runners() -> None:
    queue = Queue(max_batch=64, costs=table(0.03, 0.01))
    queue.come("a", rows=32)
    first, second = queue.take(free=2), queue.take(free=1)
    assert first is not None
    assert second is not None
    assert (first.rows, second.rows) == (16, 16)
    assert sorted(first.parts[0][1] + second.parts[0][1]) == list(range(32))


def test_a_dropped_job_takes_no_turn() -> None:
    queue = Queue(max_batch=1)
    first, second = queue.come("a", rows=3), queue.come("a")
    queue.take()
    assert queue.turns.drop(first) == 2
    assert queue.turns.drop(first) == 0
    assert jobs(queue.take()) == [second]
    assert queue.take() is None


def test_dropped_jobs_are_let_go_of_behind_one_that_waits() -> None:
    queue = Queue(max_batch=1)
    queue.come("a", deadline=0.1)
    for _ in range(10_000):
        queue.turns.drop(queue.come("a"))
    (line,) = queue.turns._classes[NORMAL].lines.values()
    assert len(line.heap) < 100


def test_clients_that_come_once_are_forgotten() -> None:
    queue = Queue(max_batch=8)
    for i in range(30_000):
        queue.come(f"once{i}")
        if i % 8 == 7:
            run = queue.take()
            assert run is not None
            queue.turns.ended(run)
    among = queue.turns._classes[NORMAL]
    assert not among.lines
    assert len(among.served) < 10_000
    assert not queue.turns._inside


# Texts.


def lengths(run: Run | None) -> list[int]:
    assert run is not None
    return sorted(job.lengths[i] for job, indices in run.parts for i in indices)


def test_texts_of_like_length_share_a_run_and_the_short_ones_leave_first() -> None:
    queue = Queue(max_tokens=1000)
    for i, length in enumerate([5, 300, 6, 7, 5]):
        queue.come(str(i), lengths=[length])
    assert [lengths(run) for run in queue.runs()] == [[5, 5, 6, 7], [300]]


def test_an_aged_text_takes_its_own_length_along() -> None:
    queue = Queue(max_tokens=1000, ageing=1.0)
    queue.come("long", lengths=[300])
    queue.come("other", lengths=[290])
    queue.now = 1.1
    for i in range(50):
        queue.come(str(i), lengths=[5])
    run = queue.take()
    assert lengths(run) == [290, 300]
    assert run is not None
    assert run.reason is Reason.AGED


def test_texts_are_charged_with_their_padding() -> None:
    queue = Queue(max_tokens=4096, max_batch=64)
    for _ in range(200):
        queue.come("long", lengths=[256])
        queue.come("short", lengths=[16])
    served = {"long": 0, "short": 0}
    for _ in range(20):
        run = queue.take()
        assert run is not None
        for job, indices in run.parts:
            served[job.caller.client] += len(indices) * run.longest
        if served["short"] >= 200 * 16:
            break
    assert served["short"] >= 0.5 * min(served["long"], 200 * 16)


@pytest.mark.parametrize("seed", range(5))
def test_every_row_leaves_once_within_the_limits(seed: int) -> None:
    generator = np.random.default_rng(seed)
    queue = Queue(max_batch=16, max_tokens=500, ageing=0.3, costs=table(0.004, 0.0003, 64))
    waiting: dict[Job, set[int]] = {}
    for _ in range(400):
        queue.now += 0.01
        for _ in range(generator.integers(0, 4)):
            count = int(generator.integers(1, 12))
            job = queue.come(
                str(generator.integers(0, 9)),
                lengths=generator.integers(1, 200, count).tolist(),
                priority=Priority(int(generator.integers(0, 3))),
            )
            waiting[job] = set(range(count))
        run = queue.take(int(generator.integers(1, 3)))
        if run is None:
            continue
        assert run.rows <= 16
        assert run.rows == 1 or run.rows * run.longest <= 500
        for job, indices in run.parts:
            assert waiting[job].issuperset(indices)
            waiting[job] -= set(indices)
            assert run.longest >= max(job.lengths[i] for i in indices)
        queue.turns.ended(run)
    for run in queue.runs():
        for job, indices in run.parts:
            waiting[job] -= set(indices)
        queue.turns.ended(run)
    assert not any(waiting.values())
    assert queue.turns.rows == 0
    assert queue.turns.cost == 0
    assert not queue.turns._inside


# Aside.


def test_a_client_with_little_goes_aside_of_one_with_much_and_no_other_does() -> None:
    queue = Queue(max_batch=4)
    for _ in range(16):
        queue.come("greedy")
    assert queue.take() is not None
    assert queue.turns.take_aside(0.0) is None
    modest = queue.come("modest")
    assert queue.turns.goes_aside(modest)
    run = queue.turns.take_aside(0.0)
    assert jobs(run) == [modest]
    assert run is not None
    assert run.reason is Reason.ASIDE


def test_equal_clients_do_not_go_aside() -> None:
    queue = Queue(max_batch=4)
    for i in range(32):
        queue.come(str(i))
    assert queue.take() is not None
    assert queue.turns.take_aside(0.0) is None


@pytest.mark.parametrize("waits", [True, False])
def test_a_client_with_little_goes_aside_of_nothing_more_urgent(waits: bool) -> None:
    queue = Queue(max_batch=8)
    for _ in range(16 if waits else 8):
        queue.come("greedy")
    assert queue.take() is not None
    assert bool(queue.turns.rows) is waits
    modest = queue.come("modest", priority=LOW)
    assert not queue.turns.goes_aside(modest)
    assert queue.turns.take_aside(0.0) is None


def test_an_urgent_job_goes_aside_of_less_urgent_runs_only() -> None:
    queue = Queue(max_batch=1)
    queue.come("a")
    queue.take()
    for priority in (NORMAL, LOW):
        assert not queue.turns.goes_aside(queue.come("a", priority=priority))
    urgent = queue.come("a", priority=HIGH)
    assert jobs(queue.turns.take_aside(0.0)) == [urgent]
    assert not queue.turns.goes_aside(queue.come("a", priority=HIGH)), "one runs already"


@pytest.mark.parametrize("max_batch", [1, 2, 64])
def test_a_run_aside_holds_no_more_rows_than_a_run_may(max_batch: int) -> None:
    queue = Queue(max_batch=max_batch)
    queue.come("a", rows=max_batch)
    queue.take()
    queue.come("b", rows=9, priority=HIGH)
    run = queue.turns.take_aside(0.0)
    assert run is not None
    assert run.rows == min(max_batch, QUANTUM)


def test_a_run_aside_holds_no_more_tokens_than_a_run_may_unless_its_one_text_does() -> None:
    for lengths, rows in (([100, 100, 100], 2), ([10, 90, 300], 2), ([10, 10, 10], 3), ([500], 1)):
        queue = Queue(max_tokens=256)
        queue.come("a", lengths=[8])
        queue.take()
        queue.come("b", lengths=lengths, priority=HIGH)
        run = queue.turns.take_aside(0.0)
        assert run is not None
        assert run.rows == rows, lengths


def test_whether_a_run_goes_aside_is_told_in_one_pass_over_the_clients() -> None:
    queue = Queue(max_batch=4)
    for i in range(20_000):
        queue.come(str(i))
    assert queue.take() is not None
    began = time.perf_counter()
    assert queue.turns.take_aside(0.0) is None
    # It is asked under the lock after every run; by the square it takes 6 s, else 2 ms.
    assert time.perf_counter() - began < 2


# Simulated.


def p99(seconds: list[float]) -> float:
    return float(np.quantile(seconds, 0.99))


@pytest.mark.parametrize("runners", [1, 2])
def test_beside_a_client_with_a_hundred_streams_one_waits_at_most_twice_as_long(
    runners: int,
) -> None:
    def waits(clients: dict[str, int]) -> list[float]:
        queue = Queue(max_batch=64)
        generator = np.random.default_rng(7)
        return closed_loop(
            queue,
            clients,
            queue.come,
            lambda run: 0.01,
            lasting=8.0,
            runners=runners,
            thinking=lambda: generator.exponential(0.001),
        )["modest"]

    alone, beside = waits({"modest": 1}), waits({"modest": 1, "greedy": 100})
    assert len(beside) > 300
    assert p99(beside) <= 2 * p99(alone) + 1e-9


@pytest.mark.parametrize("runners", [1, 2])
def test_texts_of_mixed_length_beat_a_padded_first_in_first_out_batcher(runners: int) -> None:
    fixed, per_token = 0.0037, 0.00031  # all-MiniLM-L6-v2 on one core

    def play(cut: bool) -> tuple[float, float]:
        queue = Queue(
            max_tokens=2048 if cut else None, costs=table(fixed, per_token, 256) if cut else None
        )
        generator = np.random.default_rng(3)
        size: dict[Job, int] = {}
        taken: list[tuple[int, float]] = []

        def come(client: str) -> Job:
            length = int(np.clip(generator.lognormal(np.log(14), 0.9), 4, 256))
            job = queue.come(client, lengths=[length] if cut else None)
            size[job] = length
            return job

        def seconds(run: Run) -> float:
            longest = max(size[job] for job in jobs(run))
            lasts = fixed + per_token * run.rows * longest
            taken.extend((size[job], queue.now + lasts - job.submitted) for job in jobs(run))
            return lasts

        clients = {str(i): 1 for i in range(32)}
        closed_loop(queue, clients, come, seconds, lasting=30.0, runners=runners)
        return len(taken) / 30, p99([waited for length, waited in taken if length >= 128])

    (ours, our_longest), (padded, padded_longest) = play(True), play(False)
    assert ours >= 1.5 * padded
    assert our_longest <= 2 * padded_longest
