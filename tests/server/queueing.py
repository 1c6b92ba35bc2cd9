"""A queue in simulated time: clients in a closed loop, runs that take what a rule says.

Nothing sleeps and no thread runs, so that what comes out is the order's doing alone.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from twinserve.server.batching.costs import RunCosts
from twinserve.server.batching.jobs import Job, Run
from twinserve.server.batching.turns import Turns
from twinserve.server.callers import Caller, Priority
from twinserve.server.completion import Completion


class Queue:
    """Turns with a clock that the test moves."""

    def __init__(
        self,
        *,
        max_batch: int = 64,
        max_tokens: int | None = None,
        ageing: float = 1.0,
        costs: RunCosts | None = None,
    ) -> None:
        self.now = 0.0
        self.expired: list[Job] = []
        self.turns = Turns(
            max_batch=max_batch,
            max_tokens=max_tokens,
            costs=costs or RunCosts(),
            ageing=ageing,
            expired=lambda job, rows: self.expired.append(job),
        )

    def come(
        self,
        client: str = "",
        *,
        lengths: list[int] | None = None,
        rows: int = 1,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Job:
        """Let a job in, now."""
        lengths = lengths or []
        count = len(lengths) or rows
        order = sorted(range(count), key=lambda i: lengths[i] if lengths else i)
        caller = Caller(client, deadline, priority)
        job = Job([np.zeros(1)] * count, lengths, caller, self.now, Completion(), order)
        self.turns.push(job)
        return job

    def take(self, free: int = 1) -> Run | None:
        """Bind a run, now."""
        return self.turns.take(self.now, free)

    def runs(self) -> Iterator[Run]:
        """Bind runs, all at once, until nothing waits."""
        while (run := self.take()) is not None:
            yield run


def closed_loop(
    queue: Queue,
    clients: dict[str, int],
    come: Callable[[str], Job],
    seconds: Callable[[Run], float],
    *,
    lasting: float,
    runners: int = 1,
    thinking: Callable[[], float] = lambda: 0.0,
) -> dict[str, list[float]]:
    """Keep so many jobs of each client under way; return the seconds each took, by client.

    Args:
        queue: empty.
        clients: the jobs that each has under way at a time.
        come: lets a client's next job in.
        seconds: what a run takes.
        lasting: simulated seconds.
        runners: runs at a time.
        thinking: seconds between an answer and the client's next job.
    """
    taken: dict[str, list[float]] = defaultdict(list)
    # (time, number, what): a client's next job, or a run's end.
    events: list[tuple[float, int, str | Run]] = []
    number = 0
    for client, streams in clients.items():
        for _ in range(streams):
            number += 1
            heapq.heappush(events, (0.0, number, client))
    left: dict[Job, int] = {}
    free = runners
    while events and events[0][0] < lasting:
        queue.now, _, what = heapq.heappop(events)
        if isinstance(what, str):
            job = come(what)
            left[job] = len(job.pending)
        else:
            free += 1
            for job, indices in what.parts:
                left[job] -= len(indices)
                if not left[job]:
                    del left[job]
                    taken[job.caller.client].append(queue.now - job.submitted)
                    number += 1
                    next_time = queue.now + thinking()
                    heapq.heappush(events, (next_time, number, job.caller.client))
        # What comes at the same moment is there before a run is bound.
        while free and (not events or events[0][0] > queue.now):
            run = queue.take(free)
            if run is None:
                break
            free -= 1
            number += 1
            heapq.heappush(events, (queue.now + seconds(run), number, run))
    return taken
