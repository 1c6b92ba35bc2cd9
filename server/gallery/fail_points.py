"""Places at which a test lets this process die by SIGKILL, as a crash would have it.

In: the environment variable TWINSERVE_FAIL_POINT, read once at import: `after_commit`, or
`after_commit:3` for the third time that the place is reached. Without it, which is always but in
tests, `reach` compares two values and returns.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "TWINSERVE_FAIL_POINT"
POINTS = (
    "before_commit",
    "after_commit",
    "after_publish",
    "before_swap",
    "before_snapshot_rows",  # vectors and graphs of a snapshot are there, its rows not yet
    "before_manifest_rename",
    "after_manifest_rename",
)

_armed = ""
_left = 0


def arm(value: str) -> None:
    """Name the place to die at, as the variable does; "" = nowhere.

    Raises:
        ValueError: there is no such place, or the count is no number.
    """
    global _armed, _left
    name, _, count = value.partition(":")
    if name and name not in POINTS:
        raise ValueError(f"{VARIABLE} is {value!r}; name one of {', '.join(POINTS)}")
    _armed, _left = name, int(count or 1)


def reach(point: str) -> None:
    """Die here if this is the place, and the time."""
    global _left
    if point != _armed:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE, ""))
