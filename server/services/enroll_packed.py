"""Requests to enrol whose embeddings come end to end, read as columns.

In: an EnrollRequest with `embeddings`. Out: its items, or what is wrong with each. A thousand items
in one request are what this form is for, so each is looked at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinserve import distance
from twinserve.errors import InvalidInput, TwinserveError, WrongShape
from twinserve.server import inputs
from twinserve.server.gallery import GallerySettings, PackedItems
from twinserve.server.services import gallery_codec
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared


@dataclass(frozen=True, eq=False)
class Packed:
    """The items of a request, and their embeddings, float32 [items, dimension]."""

    messages: list[shared.Item]
    embeddings: NDArray[np.float32]
    errors: dict[int, TwinserveError]  # of embeddings that no gallery takes

    def items(self) -> PackedItems:
        """Return the items.

        Raises:
            InvalidInput: one has a key without a value.
        """
        metadata = [
            gallery_codec.metadata(found, f"items[{number}].item") if found else {}
            for number, found in enumerate([message.metadata for message in self.messages])
        ]
        return PackedItems(
            [message.id for message in self.messages],
            [message.subject for message in self.messages],
            metadata,
            self.embeddings,
        )


def read(request: pb.EnrollRequest, settings: GallerySettings) -> Packed:
    """Read a request with embeddings.

    Raises:
        InvalidInput: an item has an input beside.
        WrongShape: the embeddings are not as many bytes as the items need.
        SpaceMismatch: they are of another space.
    """
    messages: list[shared.Item] = []
    for number, asked in enumerate(request.items):
        if asked.HasField("input"):
            raise InvalidInput(
                f"items[{number}] has an input, and the request has embeddings of all items; "
                "send one of the two",
                field=f"items[{number}].input",
            )
        messages.append(asked.item)
    count, dimension = len(messages), settings.dimension
    data = request.embeddings
    if len(data) != 4 * count * dimension:
        raise WrongShape(
            f"embeddings has {len(data)} bytes; {count} items of {dimension} "
            f"float32 values take {4 * count * dimension}; send each item's vector, end to end",
            field="embeddings",
        )
    inputs.check_space(request.space_id, settings.space_id, "space_id")
    vectors = np.frombuffer(data, "<f4").reshape(count, dimension)
    vectors = vectors.astype(np.float32, copy=False)
    errors: dict[int, TwinserveError] = {}
    if not distance.are_sound(vectors, settings.metric):
        for number, vector in enumerate(vectors):
            try:
                distance.check_vectors(vector, settings.metric)
            except TwinserveError as error:
                errors[number] = error.at(f"items[{number}]")
    return Packed(messages, vectors, errors)
