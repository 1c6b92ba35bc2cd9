"""What was read and is not begun yet: one client after the other has its turn.

The front takes all events that are ready before it works on any message, so that what waits is
here, where it can be counted, and not in grpcio's core, where the first come would be the first
served however many they are. A client with one call goes before the second of one with a hundred.
Belongs to the front's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], None]

# Weight of the newest measurement in the mean, and the most that one counts for as a multiple.
_NEWEST, _MOST = 0.1, 3.0
# Seconds after which a call whose message has not come is expected no more: its client's line is
# slow, and others need not be refused for it.
SLOW = 0.25


@dataclass(eq=False, slots=True)
class Expected:
    """A call that was let in and is not begun."""

    client: str
    since: float
    counts: bool = True  # until its message is begun, or is `SLOW` to come


class Intake:
    """Work by client, taken in turn, and how fast it goes.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lines: dict[str, deque[Work]] = {}
        self._turn: deque[str] = deque()  # clients with work, the next one first
        self._since: float | None = None  # from when on there always was work
        self.waiting = 0
        self._arriving: deque[Expected] = deque()  # the oldest first
        self._expected: dict[str, int] = {}  # calls by client
        self.expected = 0  # calls that were let in and are not begun
        self.pace = 0.0  # seconds from one to the next, while some waited

    @property
    def seconds(self) -> float:
        """What should pass until a message that came now would have its turn."""
        return self.waiting * self.pace

    def expect(self, client: str) -> Expected:
        """Count a call that was let in, until its message is begun or is `SLOW` to come."""
        now = self._clock()
        arriving = self._arriving
        while arriving and (not arriving[0].counts or arriving[0].since + SLOW < now):
            self.begun(arriving.popleft())
        one = Expected(client, now)
        self._arriving.append(one)
        self._expected[client] = self._expected.get(client, 0) + 1
        self.expected += 1
        return one

    def begun(self, one: Expected) -> None:
        """Count a call no more; its message is begun, or will not be."""
        if not one.counts:
            return
        one.counts = False
        left = self._expected[one.client] - 1
        if left:
            self._expected[one.client] = left
        else:
            del self._expected[one.client]
        self.expected -= 1

    def before(self, client: str) -> int:
        """Return how many of the expected calls have their turn before one of this client."""
        mine = self._expected.get(client, 0)
        # Of each other client no more goes before it than of its own.
        return min(self.expected, (mine + 1) * len(self._expected))

    def put(self, client: str, work: Work) -> None:
        """Let some work wait for its client's turn."""
        line = self._lines.get(client)
        if line is None:
            line = self._lines[client] = deque()
            self._turn.append(client)
        line.append(work)
        self.waiting += 1

    def work(self, seconds: float) -> None:
        """Do what waits, for so many seconds; at least one."""
        began = self._clock()
        done = 0
        while self._turn:
            self._take()()
            done += 1
            now = self._clock()
            if now - began >= seconds:
                break
        if not done:
            self._since = None
            return
        if self._since is not None:
            each = (now - self._since) / done
            if self.pace:
                each = min(each, _MOST * self.pace)
            self.pace += (_NEWEST if self.pace else 1.0) * (each - self.pace)
        self._since = now if self._turn else None

    def _take(self) -> Work:
        client = self._turn.popleft()
        line = self._lines[client]
        work = line.popleft()
        self.waiting -= 1
        if line:
            self._turn.append(client)
        else:
            del self._lines[client]
        return work
