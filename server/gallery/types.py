"""The words that the galleries speak with their callers: settings, items, filters, outcomes.

Frozen values only, free of gRPC, SQLite and HNSW. The one thing to know: an item whose `subject`
is empty is its own subject, under the name of its id.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from twinserve.decision import Strangers
from twinserve.distance import Metric
from twinserve.errors import TwinserveError

MetadataValue = str | int | float | bool | datetime


class MetadataType(enum.StrEnum):
    """The type that a declared metadata key holds; each stands for one Python type, strictly."""

    TEXT = "text"  # str
    INTEGER = "integer"  # int, within 64 bits, not bool
    NUMBER = "number"  # float, finite
    FLAG = "flag"  # bool
    TIME = "time"  # datetime with a time zone; microseconds are kept


@dataclass(frozen=True)
class HnswSettings:
    """Parameters of the graph index (Malkov and Yashunin, arXiv 1603.09320)."""

    m: int = 16
    ef_construction: int = 200
    ef: int = 64


@dataclass(frozen=True)
class GallerySettings:
    """What a gallery is made with; nothing in it changes afterwards.

    `max_items` 0 means the server's own limit, `max_bytes` 0 none: of the pages that the database
    uses. Only `metadata_keys` can be filtered by.
    """

    name: str
    model: str
    space_id: str
    dimension: int
    metric: Metric
    hnsw: HnswSettings = HnswSettings()
    metadata_keys: tuple[tuple[str, MetadataType], ...] = ()
    max_items: int = 0
    max_bytes: int = 0


@dataclass(frozen=True)
class GalleryLimits:
    """Bounds of one server's galleries; tests make them small to force every path.

    Below `exact_scan_below` live vectors a gallery is scanned exactly and has no HNSW at all.
    `segment_rows` is the size at which the growing segment is sealed. `max_index_debt` counts
    vectors that wait for HNSW; beyond it Enroll is refused until the index has caught up.
    `snapshot_rows` is how many rows have to change before the index is written to disk again.
    How strangers fare is measured by the search that needs it where that takes at most
    `measure_inline_seconds`, else in the background, `measure_rest_seconds` apart at least.
    Live searches are recomputed exactly for at most `recall_share` of the time (0: never), and
    stored rows are read again at `scrub_bytes_per_second` (0: never), one pass a day.
    """

    max_galleries: int = 1_000
    max_items: int = 10_000_000
    max_dimension: int = 16_384
    max_subject_bytes: int = 256
    max_metadata_entries: int = 64
    max_metadata_key_bytes: int = 128
    max_metadata_bytes: int = 16_384
    exact_scan_below: int = 10_000
    segment_rows: int = 8_192
    max_index_debt: int = 500_000
    max_waiting_rows: int = 200_000
    build_threads: int = 1
    snapshot_rows: int = 20_000
    replay_seconds: float = 86_400.0
    measure_inline_seconds: float = 0.02
    measure_rest_seconds: float = 1.0
    recall_share: float = 0.01
    scrub_bytes_per_second: int = 8_000_000


@dataclass(frozen=True)
class GalleryStatus:
    """A gallery as it stands.

    `index_debt`: live vectors that HNSW does not hold yet. `dead_count`: vectors of its segments
    that no item holds. `memory_bytes`: about what its rows, vectors and graphs take. `aliases` that
    stand for it now are known to `Galleries` only. `disk_bytes` are those of all its files, the log
    and what can be made anew included.
    """

    settings: GallerySettings
    item_count: int
    subject_count: int
    index_debt: int
    create_time: datetime
    aliases: tuple[str, ...] = ()
    disk_bytes: int = 0
    segment_count: int = 0
    dead_count: int = 0
    memory_bytes: int = field(default=0, compare=False)  # nothing of what the gallery is


@dataclass(frozen=True)
class Item:
    """One enrolled thing, without its embedding. `subject` "" = its own subject."""

    id: str
    subject: str
    metadata: Mapping[str, MetadataValue]
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, eq=False)
class NewItem:
    """What is to be enrolled.

    Attributes:
        id: [A-Za-z0-9._:-]{1,128}; "" = the server makes one.
        subject: at most 256 bytes of UTF-8; "" = its own subject.
        metadata: replaces what the item had.
        embedding: float32 [dimension]; None = only subject and metadata change, and the item
            must be there.
        digest: of the input's bytes and the space. The same digest, subject and metadata as
            before leave the item UNCHANGED; b"" = the digest of the embedding itself.
    """

    id: str
    subject: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    embedding: NDArray[np.float32] | None = None
    digest: bytes = b""


@dataclass(frozen=True, eq=False)
class PackedItems(Sequence[NewItem]):
    """Items to be enrolled, all with their embeddings, as columns.

    Enrols what the same items one by one would, and a thousand of them cost no thousand objects.

    Attributes:
        ids, subjects, metadata: [n], as in `NewItem`.
        embeddings: float32 [n, dimension].
    """

    ids: Sequence[str]
    subjects: Sequence[str]
    metadata: Sequence[Mapping[str, MetadataValue]]
    embeddings: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> NewItem: ...
    @overload
    def __getitem__(self, place: slice) -> list[NewItem]: ...
    def __getitem__(self, place: int | slice) -> NewItem | list[NewItem]:
        """An item, or several, as they would be sent one by one."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        return NewItem(
            self.ids[place], self.subjects[place], self.metadata[place], self.embeddings[place]
        )


class Change(enum.StrEnum):
    """What an enrolment did to its item."""

    CREATED = "created"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


class Enrolled(NamedTuple):
    """The answer for one enrolled item."""

    id: str
    change: Change


@dataclass(frozen=True)
class EnrollOutcome:
    """One result per item, in order; `token` names the state that holds them all."""

    results: tuple[Enrolled | TwinserveError, ...]
    token: str


@dataclass(frozen=True)
class Removal:
    """How many items went, and the state without them."""

    removed: int
    token: str


@dataclass(frozen=True)
class Moved:
    """How many items have another subject now, and the state in which they do."""

    moved: int
    token: str


@dataclass(frozen=True)
class ItemCount:
    """How many items were chosen, of how many subjects, in the state that `token` names."""

    items: int
    subjects: int
    token: str


@dataclass(frozen=True)
class Hit:
    """The item that decided for its subject; `subject` as enrolled ("" = the item itself).

    `items` is among how many it is the nearest: those that its subject has in the whole gallery, or
    1 where hits are items.
    """

    item_id: str
    subject: str
    distance: float
    items: int = 1


@dataclass(frozen=True)
class Hits:
    """Nearest first, ties by id. `exact`: these are provably the nearest."""

    hits: tuple[Hit, ...]
    exact: bool


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """Hits of n probes, of one state, nearest first, ties by id.

    Those of probe i are at starts[i]:starts[i + 1] of the four lists: ids and subjects as UTF-8
    (b"" = the item itself), distances, and among how many items each is the nearest (`Hit.items`).
    `exact[i]`: these are provably the nearest. As objects they are `results`, which costs as much
    as the search itself.

    `items` is the number of items that were searched, those that pass the filter, and `subjects`
    the number of theirs. `token` names the state that was read. `strangers` says how a probe of
    nobody fares in the whole gallery; None where nothing is known of that yet.
    """

    starts: list[int]  # [n + 1]
    ids: list[bytes]
    subject_names: list[bytes]
    distances: list[float]
    sizes: list[int]
    exact: list[bool]  # [n]
    items: int
    subjects: int
    token: str
    strangers: Strangers | None = None

    @cached_property
    def results(self) -> tuple[Hits, ...]:
        """One `Hits` per probe."""
        return tuple(
            Hits(
                tuple(
                    Hit(
                        self.ids[at].decode(),
                        self.subject_names[at].decode(),
                        self.distances[at],
                        self.sizes[at],
                    )
                    for at in range(start, end)
                ),
                exact,
            )
            for start, end, exact in zip(self.starts, self.starts[1:], self.exact, strict=False)
        )


@dataclass(frozen=True)
class Nearest:
    """The nearest item of one subject, out of `items_compared`; `distance` may be a mean."""

    distance: float
    item_id: str
    items_compared: int
    token: str


# Filters -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equals:
    """The key holds this value."""

    value: MetadataValue


@dataclass(frozen=True)
class AnyOf:
    """The key holds one of these values; none of them: nothing passes."""

    values: tuple[MetadataValue, ...]


@dataclass(frozen=True)
class InRange:
    """at_least <= value < below; None leaves a side open. Text is ordered by code point."""

    at_least: MetadataValue | None = None
    below: MetadataValue | None = None


@dataclass(frozen=True)
class Exists:
    """The key is there (or, with `present` False, is not)."""

    present: bool = True


Test = Equals | AnyOf | InRange | Exists


@dataclass(frozen=True)
class Clause:
    """One test of one declared key. An item without the key fails all but Exists(False)."""

    key: str
    test: Test


@dataclass(frozen=True)
class All:
    """Every part passes; no parts: everything passes."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class Any_:
    """At least one part passes; no parts: nothing passes."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """The part does not pass."""

    filter: Filter


Filter = Clause | All | Any_ | Not
