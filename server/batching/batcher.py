"""The dynamic batcher: rows of many calls, one run of the model.

In: jobs, each the prepared rows of one call, from any thread. Out: their embeddings, with what the
ride cost. A run is bound when a runner is free (`turns.Turns` says of which rows), so that a lone
call leaves at once and a loaded server's runs grow by themselves. The thread that ran the model
answers: it sets the jobs' completions and so goes on with their calls. Before that it hands its
place to the next thread, so there are more threads than runs at a time. A model that is nearly free
is run by the thread that read the calls (`afterwards`). All state is under one lock, which nobody
holds while a model runs, a completion is set or the observer is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from twinserve.errors import DeadlineExceeded, InternalFault, Unavailable
from twinserve.server.afterwards import Afterwards
from twinserve.server.batching.costs import NEARLY_FREE, RunCosts
from twinserve.server.batching.jobs import Job, Observer, Outputs, Reason, Ride, Rows, Run
from twinserve.server.batching.turns import QUANTUM, Turns
from twinserve.server.callers import Caller, Priority
from twinserve.server.completion import Completion

__all__ = ["Batcher", "Observer", "Outputs", "Reason", "Ride", "Rows"]

log = logging.getLogger(__name__)

# Seconds after which a waiting job goes before its turn.
AGEING = 1.0
# By what the table's word on a queue's time is multiplied, at the least and at the most. Each turn
# that finds jobs too late all the same, and each run that answers some too late, raises the factor,
# and each job that is answered lowers it: 1,600 of these for one of those leave it where it is, so
# that less than one refusal in a hundred comes late even where as many calls are answered.
_SURE, _SUREST, _RAISED, _LOWERED = 1.25, 2.0, 1.25, 1.25 ** (-1 / 1600)
# Of calls that the table refuses though nothing waits, one of so many is let in.
_TRIED = 8
# Weight of the newest run in the pace, and the most that it counts for, as a multiple of the known.
_NEWEST_PACE, _MOST_PACE = 0.1, 3.0
# Weight of the newest job in the mean of what they cost.
_NEWEST_JOB = 0.02
# Seconds that the thread which reads calls may be kept by a run; what takes longer is handed over.
_HERE = 0.01


class Batcher:
    """Collects rows into runs and carries them out, in threads of its own.

    Args:
        run: rows -> float32 [batch, dimension]; called from several threads at a time.
        max_batch: most rows of one run.
        runners: runs at a time.
        observer: told of runs and drops, from any thread.
        max_tokens: most tokens of one run, padding included, where rows are texts; a longer text
            runs alone. None where all rows have one shape.
        costs: what runs cost; kept current.
        ageing: seconds after which a waiting job goes before its turn.
        afterwards: where the thread that reads calls puts off what it runs itself.
        run_lone: carries out a run beside which no other goes, such as those; None is `run`.
        are_sound: checks all that came of a run at once; the rides say what it found. Jobs that
            need not be checked one by one cost a tenth less.
        name: of the threads.
        clock: seconds, monotonic; deadlines are points of it.
    """

    def __init__(
        self,
        run: Callable[[Rows], Outputs],
        *,
        max_batch: int,
        runners: int,
        observer: Observer,
        max_tokens: int | None = None,
        costs: RunCosts | None = None,
        ageing: float = AGEING,
        afterwards: Afterwards | None = None,
        run_lone: Callable[[Rows], Outputs] | None = None,
        are_sound: Callable[[Outputs], bool] = lambda outputs: False,
        name: str = "model",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.costs = RunCosts() if costs is None else costs
        self.runners = runners
        self._run = run
        self._texts = max_tokens is not None
        self._most = max_batch if max_tokens is None else max_tokens
        self._observer = observer
        self._clock = clock
        self._afterwards = afterwards or Afterwards()
        self._run_lone = run_lone
        self._are_sound = are_sound
        self._put_off = False  # what waits is run by the thread that reads calls
        self._lock = threading.Lock()
        late: list[tuple[Job, int]] = []  # dropped in a turn, not yet told
        self._late = late
        self._turns = Turns(
            max_batch=max_batch,
            max_tokens=max_tokens,
            costs=self.costs,
            ageing=ageing,
            # Not through self: an unloaded model is freed at once, not at some garbage collection.
            expired=lambda job, rows: late.append((job, rows)),
        )
        self._free = runners
        # Whether a job came while a run went on, or others waited, since one last left alone: then
        # the next probably does so too.
        self._overlaps = False
        self._aside = True  # whether a run may leave aside: no more run than there are runners
        # Where threads wait for a turn. The last to wait is the first to go: what a run needs is
        # still near to it, and it takes up to a tenth less time than one that slept for long.
        self._idle: list[threading.Condition] = []
        self._closed = False
        self._foreseen = 0
        self._sure = _SURE
        self._seconds_per_row = 0.001
        self._cost_per_job = 1.0  # of late, in rows or tokens
        # Seconds from the end of one run to the next, by row or token, while more waited than one
        # took: what the table does not know, such as the time that replies take.
        self._pace = 0.0
        self._behind_since: float | None = None
        # A thread that answers leaves its place to another, and one more runs aside.
        self._threads = [
            threading.Thread(target=self._work, name=f"run-{name}-{i}", daemon=True)
            for i in range(2 * runners + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Rows that are not bound yet."""
        return self._turns.rows

    def queue(self) -> tuple[int, float]:
        """Return the tokens that wait, 0 where rows are no texts, and the oldest job's seconds."""
        with self._lock:
            waiting = self._turns.waiting()
        age = 0.0 if waiting.since is None else self._clock() - waiting.since
        return waiting.tokens, max(age, 0.0)

    @property
    def seconds_per_row(self) -> float:
        """What a row of the usual length costs in a run of good size; a millisecond if unknown."""
        return self._seconds_per_row / self.runners

    def behind(self, coming: int = 0) -> float:
        """Seconds that all that waits should take, and a run after it; read without the lock.

        Args:
            coming: calls that go before and are not here yet; each is taken for a usual one.
        """
        return self._seconds_behind(self._turns.cost, coming)

    def behind_of(self, client: str, priority: Priority, coming: int = 0) -> float:
        """Seconds until the turn of a call that came now, by what goes before it; see `behind`."""
        with self._lock:
            ahead = self._turns.ahead(1, priority, client)
        return self._seconds_behind(ahead, coming)

    def _seconds_behind(self, cost: float, coming: int) -> float:
        cost += coming * self._cost_per_job
        return self._sure * self._queue_seconds(cost) + self._turns.lead

    def _queue_seconds(self, cost: float) -> float:
        return max(self.costs.queue_seconds(cost, self.runners), cost * self._pace)

    def submit(self, rows: Rows, caller: Caller) -> Completion[tuple[Outputs, Ride]]:
        """Run some rows, together with whatever else is waiting.

        Args:
            rows: at least one; all of the model's input shape, or ids of texts.
            caller: whose turn these rows take, and until when anybody wants the answer.

        Returns:
            to be awaited: float32 [len(rows), dimension], and the job's ride; or
            DeadlineExceeded, when the deadline passed before the work began, or InternalFault, when
            the run failed and the log says why. Abandoned, its rows are dropped.

        Raises:
            DeadlineExceeded: the deadline has passed.
            Unavailable: the batcher is closed.
        """
        now = self._clock()
        if caller.deadline is not None and caller.deadline <= now:
            raise _expired()
        lengths = [len(row) for row in rows] if self._texts else []
        order = list(range(len(rows)))
        if len(lengths) > 1:
            order.sort(key=lengths.__getitem__)
        completion: Completion[tuple[Outputs, Ride]] = Completion(lambda: self._cancelled(job))
        job = Job(rows, lengths, caller, now, completion, order)
        with self._lock:
            if self._closed:
                raise Unavailable("the model is being unloaded; retry, or name another")
            self._overlaps = self._overlaps or self._free < self.runners or self._turns.rows > 0
            self._turns.push(job)
            cost = sum(lengths) if self._texts else len(rows)
            self._cost_per_job += _NEWEST_JOB * (cost - self._cost_per_job)
            if (
                self._idle
                and (self._free or (self._aside and self._turns.goes_aside(job)))
                and not self._is_put_off(job)
            ):
                self._wake()
        return completion

    def _is_put_off(self, job: Job) -> bool:
        """Leave a job to the thread that reads calls, if this is it and the job is nearly free."""
        if not self._free or len(job.rows) > QUANTUM:
            return False
        # Nothing is free that was never measured.
        seconds = self.costs.seconds(len(job.rows), max(job.lengths, default=1))
        if not 0 < seconds <= len(job.rows) * NEARLY_FREE:
            return False
        self._put_off = self._put_off or self._afterwards.put(self._run_here)
        return self._put_off

    def _run_here(self, nothing_left: bool) -> bool:
        """Carry out a run in the thread that reads calls; see `Afterwards`."""
        with self._lock:
            seconds = self.costs.queue_seconds(self._turns.cost, 1)
            if not nothing_left and self._free and seconds < _HERE / 2:
                return False
            run = None
            longest = min(seconds, self.costs.largest_seconds(self._most))
            if not self._free or longest > _HERE:
                if self._idle:
                    self._wake()
            else:
                run = self._bind(here=True)
            # What is left is next, once it was seen what came meanwhile.
            self._put_off = run is not None and self._turns.rows > 0
            put_off = self._put_off
            late, waited = self._begun(run)
        self._tell(late, waited)
        if run is not None:
            self._work_on(run, self._run_lone or self._run)
        return not put_off

    def foresee(self, rows: int, longest: int, caller: Caller) -> None:
        """Refuse what the table says cannot be done by its deadline; cheap, before any preparing.

        The queue that goes before it counts as if all of it left in the largest runs, and its own
        run at half, or at what `Turns.lead` asks for: a table is a mean, and where little waits a
        call that is let in and comes too late costs less than one that is refused and would not
        have. Where some are let in and come too late, the queue counts for more. Of what is
        refused though nothing waits every `_TRIED`th is let in all the same, so that a table that
        is wrong is found out.

        Args:
            rows: of the job.
            longest: tokens of its texts, at least; 1 where rows are no texts.
            caller: whose it is.

        Raises:
            DeadlineExceeded: as said.
        """
        if caller.deadline is None:
            return
        left = caller.deadline - self._clock()
        own = max(0.5 * self.costs.seconds(rows, longest) / self.runners, self._turns.lead)
        # All that waits, whoever's turn it is; mostly that is little enough.
        if self._sure * self._queue_seconds(self._turns.cost) + own <= left:
            return
        with self._lock:
            ahead = self._turns.ahead(rows * longest, caller.priority, caller.client)
            needed = self._sure * self._queue_seconds(ahead) + own
            if needed <= left:
                return
            tried = False
            if left > 0 and not self._turns.rows:
                self._foreseen += 1
                tried = not self._foreseen % _TRIED
        if not tried:
            raise DeadlineExceeded(
                f"{max(left, 0.0):.3f} s are left until the deadline, and the work needs at least "
                f"{needed:.3f} s, the queue before it included; allow more time, or send less at a "
                "time"
            )

    def close(self) -> None:
        """Let all work finish, then end the threads; may be called again, from any other thread."""
        with self._lock:
            self._closed = True
            self._wake_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _work(self) -> None:
        place = threading.Condition(self._lock)
        while (run := self._next(place)) is not None:
            if run.lone and self._run_lone is not None:
                # The table is to tell what runs cost that go on side by side.
                self._work_on(run, self._run_lone, telling=False)
            else:
                self._work_on(run, self._run)

    def _work_on(self, run: Run, run_with: Callable[[Rows], Outputs], telling: bool = True) -> None:
        began = time.perf_counter()
        try:
            results = self._carry_out(run, run_with, telling)
        except Exception:
            # Nothing of ours may end the thread: the jobs get an error, the next ones a run.
            log.exception("a run of %d rows failed outside the model", run.rows)
            results = [_failed(None) for _ in run.parts]
        self._end(run, results, time.perf_counter() - began)

    def _next(self, place: threading.Condition) -> Run | None:
        """Wait at a place of this thread's own and bind a run; None when closed and empty."""
        while True:
            with self._lock:
                while not (run := self._bind()) and not self._late:
                    if self._closed and not self._turns.rows:
                        self._wake_all()
                        return None
                    self._idle.append(place)
                    place.wait()
                late, waited = self._begun(run)
            self._tell(late, waited)
            if run is not None:
                return run

    def _wake(self) -> None:
        """Let one of the threads that wait look for a run; there must be one, under the lock."""
        self._idle.pop().notify()

    def _wake_all(self) -> None:
        while self._idle:
            self._wake()

    def _begun(self, run: Run | None) -> tuple[list[tuple[Job, int]], list[float]]:
        """Note who rides from now on; return who was dropped, and how long the others waited."""
        late = self._late.copy()
        self._late.clear()
        if late:
            self._were_late()
        waited = []
        for job, _ in run.parts if run else ():
            if job.started is None:
                job.started = self._clock()
                waited.append(job.started - job.submitted)
        return late, waited

    def _were_late(self) -> None:
        self._sure = min(_SUREST, self._sure * _RAISED)

    def _tell(self, late: list[tuple[Job, int]], waited: list[float]) -> None:
        for job, rows in late:
            self._observer.dropped(rows, "expired")
            self._answer(job, _expired())
        for seconds in waited:
            self._observer.queued(seconds)

    def _bind(self, here: bool = False) -> Run | None:
        """Take what a runner's place is free for, or what goes aside of busy ones.

        Args:
            here: for the thread that reads calls, which leaves no part of it to other runners.
        """
        if not self._turns.rows:
            return None
        run = None
        if self._free:
            free = 1 if here else self._free
            run = self._turns.take(self._clock(), free, here)
            if run is not None:
                if self._free == self.runners and self._aside and not self._turns.rows:
                    run.lone, self._overlaps = not self._overlaps, False
                self._free -= 1
                if self._free and self._turns.rows and self._idle and not here:
                    self._wake()
        elif self._aside:
            run = self._turns.take_aside(self._clock())
            self._aside = run is None
        return run

    def _carry_out(
        self, run: Run, run_with: Callable[[Rows], Outputs], telling: bool
    ) -> list[Outputs | InternalFault]:
        """Run the parts as one; where that fails, each alone, so that one fails for itself only."""
        parts = [[job.rows[i] for i in indices] for job, indices in run.parts]
        began = time.perf_counter()
        try:
            outputs = _checked(run_with, [row for part in parts for row in part])
        except Exception as error:
            log.exception("a run of %d jobs failed", len(parts))
            return [_failed(error)] if len(parts) == 1 else [self._alone(part) for part in parts]
        if telling:
            self.costs.tell(run.rows, run.longest, time.perf_counter() - began)
        run.sound = self._are_sound(outputs)
        if len(parts) == 1:
            return [outputs]
        ends = np.cumsum([len(part) for part in parts])
        return list(np.split(outputs, ends[:-1]))

    def _alone(self, rows: Rows) -> Outputs | InternalFault:
        try:
            return _checked(self._run, rows)
        except Exception as error:
            return _failed(error)

    def _end(self, run: Run, results: Sequence[Outputs | InternalFault], seconds: float) -> None:
        """Give the place to the next thread, then answer the jobs that are whole."""
        failed: list[tuple[Job, int, InternalFault]] = []
        whole: list[Job] = []
        with self._lock:
            for (job, indices), part in zip(run.parts, results, strict=True):
                fault = part if isinstance(part, InternalFault) else _kept(job, indices, part)
                if fault is not None:
                    failed.append((job, self._turns.drop(job), fault))
                    continue
                assert job.started is not None
                job.sound = job.sound and run.sound
                if job.ride is None or run.rows > job.ride.rows:
                    job.ride = Ride(
                        job.started - job.submitted, seconds, run.rows, run.reason, job.sound
                    )
                elif job.ride.sound and not job.sound:
                    job.ride = replace(job.ride, sound=False)
                job.done += len(indices)
                if job.done == len(job.rows):
                    whole.append(job)
            if whole and self._sure > _SURE:
                self._sure = max(_SURE, self._sure * _LOWERED ** len(whole))
            now = self._clock()
            if any(_waited_too_long(job, now) for job in whole):
                self._were_late()
            self._seconds_per_row += 0.1 * (seconds / run.rows - self._seconds_per_row)
            self._turns.ended(run)
            self._keep_pace(run)
            if self._aside:
                self._free += 1
            else:
                # Whichever ends first makes up for the one that left aside.
                self._aside = True
            if self._turns.rows and self._idle and not self._put_off:
                self._wake()
        if len(whole) > 1:
            _few_first(whole)
        self._observer.batch(run.rows, seconds, run.reason)
        if self._texts:
            self._observer.padded(run.tokens, run.rows * run.longest - run.tokens)
        for job, rows, fault in failed:
            if rows:
                self._observer.dropped(rows, "failed")
            self._answer(job, fault)
        for job in whole:
            self._answer(job, None)

    def _keep_pace(self, run: Run) -> None:
        """Take in that a run has ended; where little waits, that tells nothing of a queue."""
        now = self._clock()
        behind = self._turns.rows >= run.rows
        if self._behind_since is not None and behind:
            cost = run.rows * run.longest if self._texts else run.rows
            pace = (now - self._behind_since) / cost
            known = max(self._pace, self.costs.queue_seconds(1, self.runners))
            if known:
                pace = min(pace, _MOST_PACE * known)
            self._pace += _NEWEST_PACE * (pace - self._pace)
        self._behind_since = now if behind else None

    def _answer(self, job: Job, error: Exception | None) -> None:
        """Set a job's completion; what its waiter does in this thread cannot end it."""
        try:
            if error is not None:
                job.completion.set_error(error)
            else:
                assert job.outputs is not None
                assert job.ride is not None
                job.completion.set_result((job.outputs, job.ride))
        except Exception:
            log.exception("a call failed after its embedding")

    def _cancelled(self, job: Job) -> None:
        with self._lock:
            rows = self._turns.drop(job)
        if rows:
            self._observer.dropped(rows, "cancelled")


def _checked(run_with: Callable[[Rows], Outputs], rows: Rows) -> Outputs:
    outputs = run_with(rows)
    if outputs.ndim != 2 or len(outputs) != len(rows):
        raise ValueError(f"the model gave {list(outputs.shape)} for {len(rows)} rows")
    return outputs


def _few_first(jobs: list[Job]) -> None:
    """Put the jobs of clients with few of them first: an answer takes a while to send."""
    count = Counter(job.caller.client for job in jobs)
    if len(count) > 1:
        jobs.sort(key=lambda job: count[job.caller.client])


def _waited_too_long(job: Job, now: float) -> bool:
    """Whether a job was answered too late, and would not have been but for the queue."""
    if not job.is_late(now) or job.completion.done:
        return False
    assert job.started is not None
    # A run that is longer than all the time that the job had is no fault of what went before.
    return job.started - job.submitted > now - job.started


def _kept(job: Job, indices: list[int], part: Outputs) -> InternalFault | None:
    """Put rows of a job in their places; a fault where they do not fit beside those before."""
    try:
        if len(indices) == len(job.rows) and not (job.lengths and len(indices) > 1):
            job.outputs = part
            return None
        if job.outputs is None:
            job.outputs = np.empty((len(job.rows), part.shape[1]), np.float32)
        if part.shape[1] != job.outputs.shape[1]:
            wide = job.outputs.shape[1], part.shape[1]
            raise ValueError(f"the model gave embeddings of {wide[0]} numbers, then of {wide[1]}")
        job.outputs[indices] = part
    except Exception as error:  # such as no memory; the place must be given on all the same
        log.exception("a job of %d rows cannot be put together", len(job.rows))
        return _failed(error)
    return None


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed before the work began; allow more time, or send less at a time"
    )


def _failed(error: Exception | None) -> InternalFault:
    fault = InternalFault("the model failed on this input; the server's log says why")
    # Its frames hold the jobs, which hold the fault; the log has them.
    fault.__cause__ = None if error is None else error.with_traceback(None)
    return fault
