"""The one door: how much work may be inside the server at a time, and how much of it one client's.

Work counts in rows, from before it is decoded until it is answered, and again as a probe while it
is searched for, so that nothing can pile up in a stage that no bound covers (enrolments wait in the
gallery's writer, which has a bound of its own). A text counts a row for every `ROW_TOKENS` tokens.
A client that is alone inside leaves an eighth of the room for others to come in by, and once more
than half of the room is taken, none may hold more than its equal part. The queues never refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from twinserve.errors import ClientOverShare, LimitExceeded, QueueFull

# Tokens of a text that count as one row.
ROW_TOKENS = 64
# The part of the room that a client alone may fill beyond its first call, and the part above which
# the clients inside are held to equal parts.
_ALONE, _CROWDED = 7 / 8, 1 / 2
# Bounds of the time after which a refused caller is told to come again, in seconds.
_SOONEST, _LATEST = 0.05, 30.0


class Admission:
    """Work admitted and not yet answered, bounded; may be asked from any thread.

    Args:
        max_rows: the bound.
        seconds_per_row: what a row costs lately, to tell refused callers when to come again.
    """

    def __init__(self, max_rows: int, seconds_per_row: Callable[[], float]) -> None:
        self._max_rows = max_rows
        self._seconds_per_row = seconds_per_row
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # rows by client
        self.rows = 0

    @property
    def max_rows(self) -> int:
        """The bound."""
        return self._max_rows

    def admit(self, rows: int, client: str = "") -> Held:
        """Hold `rows` places while the block of the returned context runs.

        Args:
            rows: what the work counts; see `ROW_TOKENS` for texts.
            client: whose it is; "" is nobody's, which is held to no share.

        Raises:
            LimitExceeded: more than there is room for in an empty server.
            QueueFull, ClientOverShare: with the time in which there should be room.
        """
        if rows > self._max_rows:
            raise LimitExceeded(
                f"the call counts {rows} rows (of texts, one for every {ROW_TOKENS} tokens) and "
                f"the server takes {self._max_rows} at a time; send it in parts, or start the "
                "server with a larger --max-rows",
                metadata={"limit": str(self._max_rows), "value": str(rows)},
            )
        with self._lock:
            total = self.rows
            mine = self._held.get(client, 0) if client else 0
            clients = len(self._held) + (client not in self._held)
            limit = self._limit(mine, clients, total + rows) if client else self._max_rows
            admitted = total + rows <= self._max_rows and (not mine or mine + rows <= limit)
            if admitted:
                self.rows += rows
                if client:
                    self._held[client] = mine + rows
        if admitted:
            return Held(self, rows, client)
        over = mine + rows - limit if mine else 0
        wait = max(total + rows - self._max_rows, over) * self._seconds_per_row()
        wait = min(max(wait, _SOONEST), _LATEST)
        advice = f"retry in {wait:.2f} s or send fewer at a time"
        if clients == 1 or total + rows > self._max_rows:
            room = limit if mine and over > 0 else self._max_rows
            raise QueueFull(
                f"{total} rows are waiting or running and the limit is {room}, so {rows} more are "
                f"refused; {advice}",
                retry_after=wait,
                metadata={"limit": str(room), "value": str(total + rows)},
            )
        raise ClientOverShare(
            f"{mine} rows of this client are waiting or running, and its share beside "
            f"{clients - 1} other clients is {limit}, so {rows} more are refused; {advice}",
            retry_after=wait,
            metadata={"limit": str(limit), "value": str(mine + rows)},
        )

    def _limit(self, mine: int, clients: int, total: int) -> int:
        """Return what a client may hold that already holds `mine`."""
        if clients == 1:
            return int(self._max_rows * _ALONE)
        if total <= self._max_rows * _CROWDED:
            return self._max_rows
        return max(1, self._max_rows // clients)

    def change(self, rows: int, client: str) -> None:
        """Count so many rows more of a client's, or fewer."""
        with self._lock:
            self.rows += rows
            if client:
                left = self._held.get(client, 0) + rows
                if left:
                    self._held[client] = left
                else:
                    self._held.pop(client, None)


class Held:
    """Places that one call holds until its block is left."""

    __slots__ = ("_admission", "_client", "rows")

    def __init__(self, admission: Admission, rows: int, client: str) -> None:
        self._admission = admission
        self._client = client
        self.rows = rows

    def settle(self, rows: int) -> None:
        """Count the work as what it proved to be; nobody is refused for it any more."""
        if rows != self.rows:
            self._admission.change(rows - self.rows, self._client)
            self.rows = rows

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.change(-self.rows, self._client)
