"""Threads that work aside: what they do can wait, and what callers wait for cannot."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

NICENESS = 5  # a quarter of a processor that others want too; of one that is free, all


def step_back() -> None:
    """Let other threads go before the calling one, and those that it starts.

    A thread that wakes up, say when its commit is on the disk, otherwise waits some milliseconds
    for a processor while a graph is built on one and the others are in use.
    """
    if sys.platform == "linux":  # where niceness is a thread's own
        with contextlib.suppress(OSError):  # where it may not be set, it is the old order
            mine = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, mine) + NICENESS
            os.setpriority(os.PRIO_PROCESS, mine, niceness)
