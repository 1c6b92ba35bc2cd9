"""Who rides next: the waiting jobs of one model, and the order in which they leave.

In this precedence: what is expired is dropped; a head that has waited past the ageing limit goes
first, of whatever class (strict priority starves), though at most in one run of `AGED_EVERY`; the
most urgent class goes before the others; within it the client that was served least is the seed,
and those who are no more than a quantum ahead of it are of the same round, served by deadline.
Texts of a run are of like length: what waits is cut into runs so that all of them cost the least
(`padding.cut`), and of those with texts that are due the shortest leaves.

While all runners are busy, one run at a time may leave aside, beside theirs: a job that is more
urgent than all that runs, or of a client with little inside beside one that has much, where nothing
more urgent waits or runs. It takes its share of the processors, instead of waiting for the end of a
run that the other made long.

Being served is counted in what it costs, rows or padded tokens, on a clock of each client's own
that cannot fall behind its class's (start-time fair queueing, Goyal, Vin and Cheng, 1996): a client
that was idle has saved nothing up, and one that took what nobody else wanted owes nothing for it.

Nothing here takes a lock; the batcher holds its own around every call.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from twinserve.server.batching import padding
from twinserve.server.batching.costs import RunCosts
from twinserve.server.batching.jobs import Job, Reason, Run
from twinserve.server.callers import Priority

# What a client may be ahead of the least served and still be of its round, in rows and in tokens.
# Small enough that a client with many calls waiting leaves room in every run, large enough that
# calls of several rows stay together, and that a client owes nothing soon for one long text (at 64
# tokens, clients with one text each at a time waited a fifth longer at the 99th percentile).
QUANTUM, QUANTUM_TOKENS = 4, 1024
# At most one run of so many goes to the aged: when nearly all are, they must not undo the order.
AGED_EVERY = 4
# Rows of texts among which like lengths are looked for.
WINDOW = 128
# A call's rows are spread over free runners where that saves this many seconds.
SPLIT_GAIN = 0.001
# A job must be within this many runs of late from its deadline, to be worth its time under load: a
# run, and a quarter for what surrounds it.
_LEAD = 1.25
# Seconds of a run while which nothing is read, where a client with little is inside beside one with
# much; and for how long after it was seen, since between two calls it is not there.
BRIEF, BRIEF_FOR = 0.002, 0.05
# A client has much inside if it has so many times what the other has.
MUCH = 8
# Clients that are remembered though nothing of theirs waits, beyond those that wait.
_REMEMBERED = 4096


# A text that waits: length, round and generation, urgency and number of its job, index, the job.
_Text = tuple[int, tuple[int, int], float, int, int, Job]


class _Line:
    """The waiting jobs of one client in one class, the most urgent first."""

    __slots__ = ("client", "heap", "rows", "tag")

    def __init__(self, client: str, tag: float) -> None:
        self.client = client
        self.heap: list[tuple[float, int, Job]] = []
        self.rows = 0
        self.tag = tag  # what the client was served, on the clock of its class

    def head(self) -> tuple[float, int, Job] | None:
        """Return the most urgent job that still waits; spent ones are let go of."""
        while self.heap and not self.heap[0][2].pending:
            heapq.heappop(self.heap)
        return self.heap[0] if self.heap else None

    def compact(self) -> None:
        """Let go of spent jobs inside the heap, where they are many."""
        if len(self.heap) > 2 * self.rows + 64:
            self.heap = [entry for entry in self.heap if entry[2].pending]
            heapq.heapify(self.heap)


class _Class:
    """The lines of one class of priority."""

    __slots__ = ("generation", "lines", "rows", "served", "time", "tokens")

    def __init__(self) -> None:
        self.lines: dict[str, _Line] = {}
        self.rows = 0
        self.tokens = 0
        self.generation = 0  # that of the texts that leave now
        self.time = 0.0  # the least that a waiting client was served, when last one was
        self.served: dict[str, float] = {}  # of clients that wait no more, where ahead of `time`

    def line(self, client: str) -> _Line:
        line = self.lines.get(client)
        if line is None:
            line = _Line(client, max(self.served.pop(client, 0.0), self.time))
            self.lines[client] = line
        return line

    def leave(self, line: _Line) -> None:
        """Remember what a client without waiting rows is ahead."""
        del self.lines[line.client]
        if len(self.served) > _REMEMBERED:
            self.served = {c: tag for c, tag in self.served.items() if tag > self.time}
            if len(self.served) > _REMEMBERED:
                self.served.clear()
        if line.tag > self.time:
            self.served[line.client] = line.tag


@dataclass(frozen=True)
class Waiting:
    """What a queue holds."""

    rows: int
    tokens: int  # of texts, without padding
    since: float | None  # when the oldest job came; None where nothing waits


class Turns:
    """The queue of one model.

    Args:
        max_batch: most rows of one run.
        max_tokens: most tokens of one run, padding included, where rows are texts; a longer text
            runs alone. None where all rows have one shape.
        costs: the measured table; says how large a run need be.
        ageing: seconds after which a waiting head goes before its turn.
        expired: told of every job that is dropped because its deadline has passed.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_tokens: int | None,
        costs: RunCosts,
        ageing: float,
        expired: Callable[[Job, int], None],
    ) -> None:
        self._max_batch = max_batch
        self._max_tokens = max_tokens
        self._costs = costs
        self._ageing = ageing
        self._expired = expired
        self._classes = {priority: _Class() for priority in Priority}
        self._sequence = 0
        self._since_aged = AGED_EVERY
        self._inside: dict[str, int] = {}  # rows by client, waiting or running
        self._crowds: set[str] = set()  # clients beside whom another may have little
        self._brief_until = 0.0  # on the clock of deadlines
        self._running = dict.fromkeys(Priority, 0)  # runs by class
        self.rows = 0  # that wait

    def waiting(self) -> Waiting:
        """Return what waits; looks at every job."""
        jobs = (
            job
            for among in self._classes.values()
            for line in among.lines.values()
            for _, _, job in line.heap
            if job.pending
        )
        tokens = sum(among.tokens for among in self._classes.values())
        return Waiting(self.rows, tokens, min((job.submitted for job in jobs), default=None))

    def push(self, job: Job) -> None:
        """Let a job wait for its turn."""
        caller = job.caller
        # Without a deadline, or with a far one, a job is as urgent as one that will have aged, so
        # that none of its client's keeps it waiting for good.
        urgency = job.submitted + self._ageing
        if caller.deadline is not None:
            urgency = min(urgency, caller.deadline)
        self._sequence += 1
        among = self._classes[caller.priority]
        job.generation = among.generation + 1
        line = among.line(caller.client)
        heapq.heappush(line.heap, (urgency, self._sequence, job))
        count = len(job.pending)
        line.rows += count
        among.rows += count
        among.tokens += sum(job.lengths)
        self.rows += count
        inside = self._inside[caller.client] = self._inside.get(caller.client, 0) + count
        if inside >= MUCH:
            self._crowds.add(caller.client)
        elif (
            self._crowds
            and job.submitted >= self._brief_until - BRIEF_FOR / 2  # asked now and then, not always
            and self._has_little(job, self._largest())
        ):
            self._brief_until = job.submitted + BRIEF_FOR

    @property
    def cost(self) -> float:
        """What waits, in rows or tokens."""
        return sum(self._cost(among) for among in self._classes.values())

    def drop(self, job: Job) -> int:
        """Let a job wait no more; returns the rows of it that did."""
        count = len(job.pending)
        if count:
            self._spend(job, job.pending)
            self._leave(job.caller.client, count)
            line = self._classes[job.caller.priority].lines.get(job.caller.client)
            if line is not None:
                line.compact()
        return count

    def ahead(self, cost: float, priority: Priority, client: str) -> float:
        """Return what would be run before a job that came now, in rows or tokens.

        Of each other client of its class no more counts than is served by the job's own turn.
        """
        before = 0.0
        for urgency, among in self._classes.items():
            if urgency < priority:
                before += self._cost(among)
        among = self._classes[priority]
        mine = among.lines.get(client)
        own = self._line_cost(among, mine) if mine else 0.0
        turn = own + cost + self._quantum
        if self._cost(among) <= turn:
            return before + self._cost(among)
        return (
            before
            + own
            + sum(
                min(self._line_cost(among, line), turn)
                for line in among.lines.values()
                if line is not mine
            )
        )

    @property
    def lead(self) -> float:
        """Seconds before its deadline by which a job must leave, to be worth a place in a run.

        Where more waits than leaves next, what would be done too late is left to the others.
        """
        if self.rows < self._costs.recent_rows + 1:
            return 0.0
        # No longer than the next run, whose size the last ones need not have had.
        longest = self._costs.seconds(1, math.ceil(self.cost))
        return _LEAD * min(self._costs.recent_seconds, longest or math.inf)

    def take(self, now: float, free: int = 1, here: bool = False) -> Run | None:
        """Bind the next run, or return None where nothing waits.

        Args:
            now: a point of the clock of deadlines.
            free: runners that could take a run now, this one included.
            here: whether nothing is read while the run goes on: then it is a brief one where a
                client has little beside one that has much, so that it is read soon. Others gain
                nothing by it, and lose rows a second.
        """
        brief = here and now < self._brief_until
        now += self.lead
        aged = self._look(now)
        urgency = next((urgency for urgency, one in self._classes.items() if one.rows), None)
        if urgency is None:
            return None
        among = self._classes[urgency]
        self._since_aged += 1
        seed = None
        if aged is not None and self._since_aged >= AGED_EVERY:
            seed = aged
            # It goes first only where it would not have gone anyway.
            among = self._classes[seed.caller.priority]
        among.time = max(among.time, min(line.tag for line in among.lines.values()))
        run = Run(seed.caller.priority if seed else urgency)
        if self._max_tokens is None:
            self._fill(run, among, seed, now, free, self._enough(self._max_batch, brief))
        else:
            self._fill_like(run, among, seed, now, free, self._enough(self._max_tokens, brief))
        if seed is not None:
            self._since_aged = 0
            if run.reason is Reason.RUNNER_FREE:
                run.reason = Reason.AGED
        self._running[run.priority] += 1
        return run

    def goes_aside(self, job: Job) -> bool:
        """Whether a job should not wait for the runs that keep all runners busy."""
        priority = job.caller.priority
        if self._is_urgent(priority):
            return True
        return self._is_first(priority) and self._has_little(job, self._largest())

    def take_aside(self, now: float) -> Run | None:
        """Bind a run for beside the others: the first rows of a job that goes aside, if any."""
        # Once for all lines: they may be thousands, and this is asked after every run.
        largest = self._largest()
        for priority, among in self._classes.items():
            urgent = self._is_urgent(priority)
            if not urgent and not (largest and self._is_first(priority)):
                continue
            for line in list(among.lines.values()):
                entry = line.head()
                if entry is None or entry[2].is_late(now):
                    continue
                job = entry[2]
                if not urgent and not self._has_little(job, largest):
                    continue
                run = Run(priority, Reason.ASIDE)
                indices = self._first(job)
                cost = len(indices) * (job.lengths[indices[-1]] if job.lengths else 1)
                self._carry(run, job, indices, cost)
                self._running[priority] += 1
                return run
        return None

    def _first(self, job: Job) -> list[int]:
        """Return a job's first rows: a quantum of them, within the limits of a run."""
        indices = job.pending[: min(QUANTUM, self._max_batch)]
        if self._max_tokens is not None:
            # The shortest come first.
            while len(indices) > 1 and len(indices) * job.lengths[indices[-1]] > self._max_tokens:
                indices.pop()
        return indices

    def _is_urgent(self, priority: Priority) -> bool:
        """Whether all that runs is less urgent."""
        return not any(count for other, count in self._running.items() if other <= priority)

    def _is_first(self, priority: Priority) -> bool:
        """Whether nothing that is more urgent waits or runs: having little goes over no class."""
        return not any(
            among.rows or self._running[other]
            for other, among in self._classes.items()
            if other < priority
        )

    def _largest(self) -> int:
        """Return the most rows that a client has inside; 0 where none has `MUCH`."""
        return max((self._inside[client] for client in self._crowds), default=0)

    def _has_little(self, job: Job, largest: int) -> bool:
        mine = self._inside.get(job.caller.client, 0)
        return mine <= QUANTUM and largest >= MUCH * max(mine, 1)

    def ended(self, run: Run) -> None:
        """Count a run's rows as inside no more."""
        self._running[run.priority] -= 1
        for job, indices in run.parts:
            self._leave(job.caller.client, len(indices))

    def _leave(self, client: str, count: int) -> None:
        left = self._inside[client] - count
        if left < MUCH:
            self._crowds.discard(client)
        if left:
            self._inside[client] = left
        else:
            del self._inside[client]

    @property
    def _quantum(self) -> int:
        return QUANTUM if self._max_tokens is None else QUANTUM_TOKENS

    def _cost(self, among: _Class) -> float:
        return among.rows if self._max_tokens is None else among.tokens

    def _line_cost(self, among: _Class, line: _Line) -> float:
        """Return what a line's rows cost; of texts, as if all of the class were of one length."""
        if self._max_tokens is None:
            return line.rows
        return line.rows * among.tokens / max(among.rows, 1)

    def _look(self, now: float) -> Job | None:
        """Drop what is expired at the head of each line; return the head that has aged most."""
        oldest: Job | None = None
        for among in self._classes.values():
            for line in list(among.lines.values()):
                while (entry := line.head()) is not None and entry[2].is_late(now):
                    self._drop_late(entry[2])
                if entry is None:
                    continue
                job = entry[2]
                aged = job.submitted + self._ageing <= now
                if aged and (oldest is None or job.submitted < oldest.submitted):
                    oldest = job
        return oldest

    def _drop_late(self, job: Job) -> None:
        count = len(job.pending)
        self._spend(job, job.pending)
        self._leave(job.caller.client, count)
        self._expired(job, count)

    def _spend(self, job: Job, indices: list[int]) -> None:
        """Count rows of a job as waiting no more."""
        count = len(indices)
        among = self._classes[job.caller.priority]
        line = among.lines[job.caller.client]
        if job.lengths:
            among.tokens -= sum(job.lengths[i] for i in indices)
        if count == len(job.pending):
            job.pending = []
        elif job.pending[:count] == indices:
            del job.pending[:count]
        else:
            gone = set(indices)
            job.pending = [i for i in job.pending if i not in gone]
        line.rows -= count
        among.rows -= count
        self.rows -= count
        if not line.rows:
            among.leave(line)

    def _carry(self, run: Run, job: Job, indices: list[int], cost: float) -> None:
        among = self._classes[job.caller.priority]
        among.lines[job.caller.client].tag += cost
        run.add(job, indices)
        self._spend(job, indices)

    def _enough(self, most: int, brief: bool) -> int:
        """Return the rows, or tokens, that a run need hold."""
        enough = min(most, math.ceil(min(self._costs.enough(), most)))
        if not brief:
            return enough
        # Calls of a few rows stay together; a text that is longer runs alone.
        least = 1 if self._max_tokens else QUANTUM
        return min(enough, max(least, int(self._costs.tokens_in(BRIEF))))

    def _fill(
        self, run: Run, among: _Class, seed: Job | None, now: float, free: int, enough: int
    ) -> None:
        """Bind rows of one shape: all that wait, or as many as a run need hold, in turn."""
        limit = self._share(among.rows, enough, free)
        if among.rows <= limit:
            for line in list(among.lines.values()):
                for _, _, job in sorted(line.heap):
                    if not job.pending:
                        continue  # cancelled; with its last job the line itself may be gone
                    if job.is_late(now):
                        self._drop_late(job)
                    else:
                        self._carry(run, job, job.pending, len(job.pending))
            return
        chosen: dict[Job, list[int]] = {}

        def choose(line: _Line, job: Job, most: int) -> None:
            indices = job.pending[: min(most, limit - rows)]
            chosen.setdefault(job, []).extend(indices)
            line.tag += len(indices)
            self._spend(job, indices)

        rows = 0
        if seed is not None:
            choose(among.lines[seed.caller.client], seed, QUANTUM)
            rows = sum(map(len, chosen.values()))
        heads = []
        for line in among.lines.values():
            entry = line.head()
            assert entry is not None
            heads.append((int(line.tag / QUANTUM), *entry[:2], line))
        heapq.heapify(heads)
        while rows < limit and heads:
            line = heads[0][3]
            rival = heads[1:3]
            # A client's turn lasts until its quantum is spent, or another's job is more urgent.
            while rows < limit and (entry := line.head()) is not None:
                key = (int(line.tag / QUANTUM), *entry[:2])
                if any(other[:3] < key for other in rival):
                    break
                job = entry[2]
                if job.is_late(now):
                    self._drop_late(job)
                    continue
                before = len(job.pending)
                choose(line, job, QUANTUM)
                rows += before - len(job.pending)
            if entry is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (int(line.tag / QUANTUM), *entry[:2], line))
        self._complete(chosen, among, limit, enough)
        for job, indices in chosen.items():
            run.add(job, indices)
        if among.rows and limit == enough:
            run.reason = Reason.FULL

    def _complete(
        self, chosen: dict[Job, list[int]], among: _Class, limit: int, enough: int
    ) -> None:
        """Let a job that the end of a run would cut ride whole, unless it keeps others waiting.

        Where only its own client waits, and the run gets no more than twice as large as it need be:
        one run less, and the job is answered after the first.
        """
        if limit < enough or len(among.lines) != 1:
            return
        rows = sum(map(len, chosen.values()))
        for job, indices in chosen.items():
            rest = job.pending
            if rest and rows + len(rest) <= min(2 * enough, self._max_batch):
                indices.extend(rest)
                rows += len(rest)
                among.lines[job.caller.client].tag += len(rest)
                self._spend(job, rest)

    def _fill_like(
        self, run: Run, among: _Class, seed: Job | None, now: float, free: int, enough: int
    ) -> None:
        """Bind texts of like length: the run of the cheapest cut that the seed is in.

        Of the runs with texts of the seed's round and generation the shortest: the most are
        answered soonest, and yet all of them before any that came later or has its turn later.
        """
        window = self._window(among, seed, now)
        if not window:
            return
        counts = padding.cut(
            [row[0] for row in window],
            self._share(among.tokens, enough, free),
            max_rows=self._max_batch,
            run_tokens=self._costs.fixed_tokens or padding.RUN_TOKENS,
        )
        due = min(row[1] for row in window)
        among.generation = max(among.generation, due[1])
        end = 0
        for count in counts:
            rows = window[end : end + count]
            end += count
            if any(row[5] is seed if seed is not None else row[1] == due for row in rows):
                break
        chosen: dict[Job, list[int]] = {}
        for _, _, _, _, index, job in rows:
            chosen.setdefault(job, []).append(index)
        longest = rows[-1][0]
        for job, indices in chosen.items():
            self._carry(run, job, indices, longest * len(indices))
        if among.rows and (len(rows) == self._max_batch or (len(rows) + 1) * longest > enough):
            run.reason = Reason.FULL

    def _window(self, among: _Class, seed: Job | None, now: float) -> list[_Text]:
        """Return the texts to choose from, by length and then by turn: all, or those next in turn.

        A text's round is what its client would have been served before it.
        """
        window: list[_Text] = []
        if among.rows <= WINDOW:
            for line in among.lines.values():
                tag = line.tag
                for urgency, number, job in sorted(line.heap) if len(line.heap) > 1 else line.heap:
                    if job.is_late(now):
                        continue
                    for index in job.pending:
                        length = job.lengths[index]
                        turn = int(tag / QUANTUM_TOKENS), job.generation
                        window.append((length, turn, urgency, number, index, job))
                        tag += length
        else:
            for row in self._in_turn(among, seed, now):
                window.append(row)
                if len(window) >= WINDOW:
                    break
        window.sort(key=_place)
        return window

    def _share(self, waiting: int, enough: int, free: int) -> int:
        """Return the most of `waiting` that one run is to take, where `free` runners could run."""
        if free > 1:
            share = -(-waiting // free)
            saved = self._costs.seconds(min(waiting, enough)) - self._costs.seconds(share)
            if saved > SPLIT_GAIN:
                return min(enough, share)
        return enough

    def _in_turn(self, among: _Class, seed: Job | None, now: float) -> Iterator[_Text]:
        """Give a class's texts in their order, as if all before had been served; binds nothing."""
        heads: list[tuple[int, float, int, int, float, Job, list[tuple[float, int, Job]]]] = []

        def offer(rest: list[tuple[float, int, Job]], at: int, tag: float) -> None:
            while rest and (at >= len(rest[0][2].pending) or rest[0][2].is_late(now)):
                heapq.heappop(rest)
                at = 0
            if rest:
                urgency, number, job = rest[0]
                turn = int(tag / QUANTUM_TOKENS)
                heapq.heappush(heads, (turn, urgency, number, at, tag, job, rest))

        if seed is not None:
            yield seed.lengths[seed.pending[0]], (-1, 0), 0.0, 0, seed.pending[0], seed
        for line in among.lines.values():
            # Of a copy, since what is given may not be taken.
            offer(line.heap.copy(), 0, line.tag)
        while heads:
            turn, urgency, number, at, tag, job, rest = heapq.heappop(heads)
            index = job.pending[at]
            if job is not seed or at:
                yield job.lengths[index], (turn, job.generation), urgency, number, index, job
            offer(rest, at + 1, tag + job.lengths[index])


def _place(text: _Text) -> tuple[int, tuple[int, int], float, int, int]:
    return text[:5]
