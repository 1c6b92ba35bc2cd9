"""Galleries: named sets of items of one space, durable on disk and searched in memory.

In: embeddings with ids, subjects and metadata (`Gallery.enroll`, `remove`, `move`, `rename`, whose
futures resolve once the change is on disk and visible) and probes (`search`, `verify`, blocking
reads for threads). Out: frozen values of `types`. `Galleries` owns the folder and is the door.

Truth is on disk (`store`, SQLite), the index in memory is derived from it (`rows`, `segments`);
neither knows the other, and only `gallery` knows both. No gRPC and no onnxruntime in here.
"""

from twinserve.server.gallery.galleries import Galleries
from twinserve.server.gallery.gallery import Gallery
from twinserve.server.gallery.types import (
    All,
    Any_,
    AnyOf,
    Change,
    Clause,
    Enrolled,
    EnrollOutcome,
    Equals,
    Exists,
    Filter,
    GalleryLimits,
    GallerySettings,
    GalleryStatus,
    Hit,
    Hits,
    HnswSettings,
    InRange,
    Item,
    ItemCount,
    MetadataType,
    MetadataValue,
    Moved,
    Nearest,
    NewItem,
    Not,
    PackedItems,
    Removal,
    SearchOutcome,
    Test,
)

__all__ = [
    "All",
    "AnyOf",
    "Any_",
    "Change",
    "Clause",
    "EnrollOutcome",
    "Enrolled",
    "Equals",
    "Exists",
    "Filter",
    "Galleries",
    "Gallery",
    "GalleryLimits",
    "GallerySettings",
    "GalleryStatus",
    "Hit",
    "Hits",
    "HnswSettings",
    "InRange",
    "Item",
    "ItemCount",
    "MetadataType",
    "MetadataValue",
    "Moved",
    "Nearest",
    "NewItem",
    "Not",
    "PackedItems",
    "Removal",
    "SearchOutcome",
    "Test",
]
