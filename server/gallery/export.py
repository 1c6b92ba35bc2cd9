"""Reading a gallery out: its items by id with their vectors, a stretch at a time.

In: a reader of the store, the id after which to go on, how many bytes to read about. Out: the items
and vectors of one state, and where to go on. No state is held between two stretches, so that a
slow client keeps nothing from being written or cleared away; an item that nobody touches meanwhile
is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

from twinserve.server.gallery import metadata
from twinserve.server.gallery.filters import matches
from twinserve.server.gallery.store import Reader, Record
from twinserve.server.gallery.types import Filter, Item

MOST_ROWS = 1_000  # items of a stretch; some metadata take longer to decode than to read
SCANNED_ROWS = 10_000  # items that a filter is asked about in one stretch
_BESIDE = 64  # bytes that an item takes on the wire beside its texts, about


@dataclass(frozen=True)
class Exported:
    """A stretch: items by id, their vectors (float32 bytes, end to end), and where to go on.

    `last` is the id of the last item that was looked at, whether it passed the filter or not;
    `done` says that there is none after it.
    """

    items: list[Item]
    embeddings: bytes
    last: str
    done: bool


def export_items(
    reader: Reader,
    after: str,
    size: int,
    dimension: int,
    *,
    filter: Filter | None = None,
    embeddings: bool = True,
) -> Exported:
    """Read the items whose id is greater than `after`, bytewise, up to about `size` bytes.

    Raises:
        StoreDamaged: an item or a vector is not as it was written.
    """
    each = _BESIDE + (4 * dimension if embeddings else 0)
    most = max(1, min(MOST_ROWS, size // each))
    chosen: list[Record] = []
    items: list[Item] = []
    scanned = 0
    done = False
    limit = most if filter is None else MOST_ROWS
    with reader.snapshot():
        while size > 0 and len(items) < most and scanned < SCANNED_ROWS and not done:
            records = reader.after(after, limit)
            taken = 0
            for record in records:
                if size <= 0 or len(items) == most:
                    break
                taken += 1
                after = record.id
                item = item_of(record)
                if filter is None or matches(filter, item.metadata):
                    chosen.append(record)
                    items.append(item)
                    size -= each + len(record.id) + len(record.subject) + len(record.metadata)
            scanned += taken
            done = taken == len(records) < limit
        vectors = reader.embeddings(chosen, dimension) if embeddings else []
    return Exported(items, b"".join(vectors), after, done)


def item_of(record: Record) -> Item:
    """The item that a record holds, without its vector."""
    return Item(
        record.id,
        record.subject,
        metadata.decode(record.metadata),
        metadata.moment(record.created),
        metadata.moment(record.updated),
    )
