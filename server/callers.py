"""Whose call it is, how urgent, and until when its answer is of use."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Priority(enum.IntEnum):
    """Classes of urgency, the most urgent first; a call's metadata key `twinserve-priority`."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(frozen=True)
class Caller:
    """One call's part in the queue."""

    client: str = ""  # who shares: the key's id, else the connection
    deadline: float | None = None  # a point of time.monotonic
    priority: Priority = Priority.NORMAL
