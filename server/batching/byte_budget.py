"""How many bytes of large messages may be inside the server at a time, and how many one client's.

Rows bound the work and not the memory: a picture of 16 MiB is one row. A byte is inside from when
its message was read until the call has ended, and costs up to three (the message, that as it was
parsed, the input read out of it: 2.8 measured), which is why the bound is a quarter of the memory.
What a client is still sending is not inside yet. Clients share the bytes as they share rows
(admission.py): it is the same door, in bytes.
"""

from __future__ import annotations

from twinserve.errors import ClientOverShare, Exhausted
from twinserve.server.batching.admission import Admission

# The bound where none is given: of the memory that the machine grants, and in messages of the
# largest size at least.
SHARE, LEAST_MESSAGES = 1 / 4, 4
# Bytes beside the largest message that the bound must hold: a stream's small ones are counted with
# it, up to what the front counts as large.
BESIDE_MESSAGE = 1 << 20
# To decode a picture of so many bytes on one core: when there should be room again.
_SECONDS_PER_BYTE = 20e-9


def fitting(granted: int, largest: int) -> int:
    """Return the bound for a machine.

    Args:
        granted: bytes of memory that it has for this process; 0 is not known.
        largest: bytes of one message at the most.
    """
    return max(int(granted * SHARE), LEAST_MESSAGES * largest)


class ByteBudget:
    """Bytes of messages that are inside, bounded; may be asked from any thread.

    Args:
        max_bytes: the bound, at least one message as large as they may be.
    """

    def __init__(self, max_bytes: int) -> None:
        self._door = Admission(max_bytes, lambda: _SECONDS_PER_BYTE)

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._door.max_rows

    @property
    def bytes(self) -> int:
        """What is inside."""
        return self._door.rows

    @property
    def crowded(self) -> bool:
        """Whether more than half is taken: the rest is for what is on its way already."""
        return 2 * self._door.rows > self._door.max_rows

    def take(self, size: int, client: str) -> None:
        """Count so many bytes, until they are given back.

        Raises:
            QueueFull, ClientOverShare: with the time in which there should be room.
            LimitExceeded: more than there is room for in an empty server.
        """
        try:
            self._door.admit(size, client)
        except Exhausted as error:
            raise _in_bytes(error, size) from None

    def give_back(self, size: int, client: str) -> None:
        """Count so many bytes less."""
        self._door.change(-size, client)


def _in_bytes(error: Exhausted, size: int) -> Exhausted:
    """Say of bytes what the door says of rows."""
    limit, wait = error.metadata["limit"], error.retry_after or 0.0
    whose, what = "messages", "the limit is"
    if isinstance(error, ClientOverShare):
        whose, what = "messages of this client", "its share is"
    return type(error)(
        f"with this message of {size} bytes {error.metadata['value']} bytes of {whose} would be "
        f"inside, and {what} {limit}, so it is refused; retry in {wait:.2f} s, or send fewer or "
        "smaller messages at a time",
        retry_after=wait,
        metadata=error.metadata,
    )
