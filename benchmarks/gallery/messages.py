"""Requests as bytes, with gRPC's prefix, in files that a generator of load maps.

Ready embeddings are written here by hand, field by field: a Python message of a thousand vectors
takes longer to fill than the server takes to enrol it, and a million of them must be made.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from benchmarks.gallery.data import Ids, K, Vectors
from benchmarks.serving import wire
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import shared_pb2

BUCKETS = 100
KEY = "bucket"
SERVICE = "/twinserve.v1.GalleryService/"


def enrol(
    gallery: str,
    ids: Sequence[str],
    vectors: Vectors,
    space_id: str,
    buckets: Sequence[int] | None = None,
) -> bytes:
    """Return an EnrollRequest of ready embeddings, with gRPC's prefix.

    Args:
        gallery: its name.
        ids: of the items.
        vectors: float32 [items, dimension].
        space_id: theirs.
        buckets: an integer of each item's metadata, under `KEY`; None for no metadata.
    """
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    parts = [_field(1, gallery.encode())]
    for number, item_id in enumerate(ids):
        item = _field(1, item_id.encode())
        if buckets is not None:
            value = shared_pb2.MetadataValue(integer=int(buckets[number])).SerializeToString()
            item += _field(3, _field(1, KEY.encode()) + _field(2, value))
        parts.append(_field(2, _field(1, item)))
    parts += (_field(5, rows.tobytes()), _field(6, space_id.encode()))
    return wire.prefixed(b"".join(parts))


def search(
    gallery: str,
    probes: Vectors,
    space_id: str,
    ef: int,
    *,
    kept: shared_pb2.Filter | None = None,
    by_subject: bool = False,
    exact: bool = False,
) -> bytes:
    """Return a SearchRequest for the 10 nearest items, or subjects, with gRPC's prefix."""
    request = pb.SearchRequest(
        gallery=gallery,
        probes=[
            shared_pb2.Input(
                embedding=shared_pb2.Embedding(values=probe.tolist(), space_id=space_id)
            )
            for probe in probes
        ],
        top_k=K,
        filter=kept,
        group_by=pb.GROUP_BY_SUBJECT if by_subject else pb.GROUP_BY_ITEM,
        ef=ef,
        exact=exact,
    )
    return wire.prefixed(request.SerializeToString())


def kept(first: int, share: int) -> shared_pb2.Filter:
    """Return the filter that keeps the buckets [first, first + share) of a hundred."""
    return shared_pb2.Filter(
        clause=shared_pb2.Clause(
            key=KEY,
            range=shared_pb2.Range(
                at_least=shared_pb2.MetadataValue(integer=first),
                below=shared_pb2.MetadataValue(integer=first + share),
            ),
        )
    )


def found(reply: bytes) -> Ids:
    """Read the items of a SearchResponse, with its prefix: int64 [probes, 10], -1 for none.

    Raises:
        RuntimeError: a probe was not answered.
    """
    response = pb.SearchResponse.FromString(reply[5:])
    ids = np.full((len(response.results), K), -1, np.int64)
    for number, result in enumerate(response.results):
        if result.WhichOneof("result") != "hits":
            raise RuntimeError(f"a probe was not answered: {result.error.message}")
        for place, hit in enumerate(result.hits.hits):
            ids[number, place] = int(hit.item.id)
    return ids


def keep(path: Path, bodies: Iterable[bytes]) -> Path:
    """Write bodies to a file, end to end; each has its length in its prefix."""
    with path.open("wb") as out:
        for body in bodies:
            out.write(body)
    return path


class Bodies(Sequence[bytes]):
    """The bodies of such a file, mapped, and copied out one at a time."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._places = [0]
        while self._places[-1] < len(self._map):
            place = self._places[-1]
            (size,) = struct.unpack_from(">I", self._map, place + 1)
            self._places.append(place + 5 + size)

    def __len__(self) -> int:
        return len(self._places) - 1

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        """Return a body, or several."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        return self._map[self._places[number] : self._places[number + 1]]


def _field(number: int, payload: bytes) -> bytes:
    """Write a length-delimited field (protobuf's wire type 2)."""
    size, length = bytearray(), len(payload)
    while length >= 128:
        size.append(length & 127 | 128)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2]) + bytes(size) + payload
