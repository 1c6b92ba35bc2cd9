"""Galleries in temporary folders, and the brute force that they are held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Metric, paired
from twinserve.server.gallery import (
    Filter,
    Galleries,
    Gallery,
    GalleryLimits,
    GallerySettings,
    MetadataType,
    MetadataValue,
    NewItem,
)
from twinserve.server.gallery.filters import matches

KEYS = (
    ("colour", MetadataType.TEXT),
    ("count", MetadataType.INTEGER),
    ("weight", MetadataType.NUMBER),
    ("seen", MetadataType.FLAG),
    ("at", MetadataType.TIME),
)
# Everything happens at sizes that a test can afford: graphs, seals and merges included.
SMALL = GalleryLimits(exact_scan_below=20, segment_rows=16)


def settings(
    name: str = "faces", dimension: int = 4, metric: Metric = Metric.EUCLIDEAN, **more: object
) -> GallerySettings:
    return GallerySettings(
        name=name,
        model="twin",
        space_id="space",
        dimension=dimension,
        metric=metric,
        metadata_keys=KEYS,
        **more,  # type: ignore[arg-type]
    )


@contextmanager
def opened(folder: Path, limits: GalleryLimits = GalleryLimits()) -> Iterator[Galleries]:  # noqa: B008
    galleries = Galleries(folder, limits)
    galleries.open()
    try:
        yield galleries
    finally:
        galleries.close()


@contextmanager
def one_gallery(
    folder: Path,
    wanted: GallerySettings,
    limits: GalleryLimits = GalleryLimits(),  # noqa: B008
) -> Iterator[Gallery]:
    with opened(folder, limits) as galleries:
        galleries.create(wanted)
        yield galleries.get(wanted.name)


def new(
    item_id: str,
    vector: object,
    subject: str = "",
    metadata: Mapping[str, MetadataValue] | None = None,
    digest: bytes = b"",
) -> NewItem:
    embedding = None if vector is None else np.asarray(vector, dtype=np.float32)
    return NewItem(item_id, subject, metadata or {}, embedding, digest)


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


@dataclass
class Known:
    """An item as the model of a test knows it."""

    subject: str
    metadata: Mapping[str, MetadataValue]
    embedding: NDArray[np.float32]


def brute_force(
    known: Mapping[str, Known],
    probe: NDArray[np.float32],
    metric: Metric,
    k: int,
    wanted: Filter | None = None,
    by_subject: bool = True,
    max_distance: float = np.inf,
    mean_of: int = 1,
) -> list[tuple[str, float]]:
    """(id, distance) by the definition: all distances, sorted, first of each subject.

    Or the mean of the first `mean_of` of each, one added after the other, and sorted again.
    """
    passing = [i for i, m in known.items() if wanted is None or matches(wanted, m.metadata)]
    if not passing:
        return []
    distances = paired(np.stack([known[i].embedding for i in passing]), probe[None], metric)
    ordered = sorted(zip(distances.tolist(), passing, strict=True))
    found: list[tuple[float, str]] = []
    groups: dict[str, list[tuple[float, str]]] = {}
    for distance, item_id in ordered:
        group = item_id if not by_subject else known[item_id].subject or item_id
        groups.setdefault(group, []).append((distance, item_id))
    for near in groups.values():
        nearest, item_id = near[0]
        total = 0.0
        for distance, _ in near[:mean_of]:
            total += distance
        found.append((max(nearest, total / len(near[:mean_of])), item_id))
    return [(item_id, distance) for distance, item_id in sorted(found) if distance <= max_distance][
        :k
    ]
