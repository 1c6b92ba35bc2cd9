"""What moves through the batcher: jobs, the runs they ride in, and what is told of both.

A job is the prepared rows of one call. It may be spread over several runs, and a run carries parts
of several jobs. Nothing here takes a lock: who changes a job holds the batcher's.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twinserve.feed import Row
from twinserve.server.callers import Caller, Priority
from twinserve.server.completion import Completion

Rows = Sequence[Row]
Outputs = NDArray[np.float32]


class Reason(enum.Enum):
    """Why a run left."""

    RUNNER_FREE = "runner_free"
    FULL = "full"
    AGED = "aged"
    ASIDE = "aside"


@dataclass(frozen=True)
class Ride:
    """What a job's largest run was like; times in seconds."""

    queue: float
    inference: float
    rows: int
    reason: Reason
    sound: bool = False  # whether all that the job was given passed the batcher's check


class Observer(Protocol):
    """Told of every run and of everything dropped; from any thread, several at a time."""

    def batch(self, rows: int, seconds: float, reason: Reason) -> None:
        """A run of `rows` took `seconds`."""

    def queued(self, seconds: float) -> None:
        """A job waited `seconds` for its first row to be taken."""

    def padded(self, tokens: int, padding: int) -> None:
        """A run of texts had `tokens` tokens of its own and `padding` more."""

    def dropped(self, rows: int, why: str) -> None:
        """`rows` waiting rows were dropped: cancelled, expired or failed."""


@dataclass(eq=False, slots=True)
class Job:
    """The rows of one call, until they are answered."""

    rows: Rows
    lengths: Sequence[int]  # of the rows in tokens; empty where rows are no texts
    caller: Caller
    submitted: float
    completion: Completion[tuple[Outputs, Ride]]
    # Rows that wait, as indices; of texts the shortest first.
    pending: list[int]
    generation: int = 0  # of texts: what waited at one time leaves before what came later
    done: int = 0
    sound: bool = True
    started: float | None = None
    outputs: Outputs | None = None
    ride: Ride | None = None

    def is_late(self, now: float) -> bool:
        """Whether nobody wants the answer any more."""
        return self.caller.deadline is not None and self.caller.deadline <= now


@dataclass(eq=False, slots=True)
class Run:
    """Rows that are bound to leave together."""

    priority: Priority
    reason: Reason = Reason.RUNNER_FREE
    parts: list[tuple[Job, list[int]]] = field(default_factory=list)  # a job comes once
    rows: int = 0
    tokens: int = 0  # without padding
    longest: int = 1  # what each row is padded to; 1 where rows are no texts
    lone: bool = False  # whether no other run goes beside it, and none is likely to
    sound: bool = False  # whether all that came of it passed the batcher's check

    def add(self, job: Job, indices: list[int]) -> None:
        """Carry some rows of a job."""
        self.parts.append((job, indices))
        self.rows += len(indices)
        if job.lengths:
            lengths = [job.lengths[i] for i in indices]
            self.tokens += sum(lengths)
            self.longest = max(self.longest, *lengths)
