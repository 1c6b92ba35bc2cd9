"""What a call can hand in, free of the wire format, and how it becomes a row of a batch.

A raw input is an encoded image, a text, an array or a ready vector. `prepare` checks it against the
twin's input contract and the limits and gives the row that the graph takes; a ready vector skips
the model and is only checked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve import distance
from twinserve.distance import Metric
from twinserve.errors import LimitExceeded, SpaceMismatch, WrongModality, WrongShape
from twinserve.manifest import ImageInput, Manifest, TensorInput
from twinserve.preprocess import check_pixels, decode_image
from twinserve.server.batcher import Row
from twinserve.server.config import Limits

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class ImageBytes:
    """An encoded picture."""

    data: bytes


@dataclass(frozen=True)
class Text:
    """A sentence."""

    text: str


@dataclass(frozen=True, eq=False)
class Array:
    """One item's array, without a batch axis."""

    array: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ready:
    """An embedding of the space named."""

    values: Vector  # [dimension]
    space_id: str


RawInput = ImageBytes | Text | Array | Ready


def digest(raw: RawInput) -> bytes:
    """Return what makes two inputs the same: a sha256 of kind and bytes."""
    hasher = hashlib.sha256(type(raw).__name__.encode())
    match raw:
        case ImageBytes(data):
            hasher.update(data)
        case Text(text):
            hasher.update(text.encode())
        case Array(array):
            hasher.update(f"{array.dtype.str}{array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).tobytes())
        case Ready(values, space_id):
            hasher.update(space_id.encode() + b"\0")
            hasher.update(values.tobytes())
    return hasher.digest()


def prepare(raw: RawInput, manifest: Manifest, limits: Limits) -> Row:
    """Turn a raw input (not a ready vector) into a row of the graph's input.

    Raises:
        InvalidInput: undecodable, over a limit, or of another modality, dtype or shape.
    """
    contract = manifest.input
    match raw, contract:
        case ImageBytes(data), ImageInput():
            if len(data) > limits.max_bytes:
                raise _too_large("image", len(data), limits.max_bytes)
            return decode_image(data, contract, limits.max_pixels)
        case Array(array), ImageInput():
            return check_pixels(array, contract)
        case Array(array), TensorInput():
            return _check_array(array, contract)
        case _:
            kind = {ImageBytes: "an image", Text: "a text", Array: "a tensor"}[type(raw)]
            takes = {"image": "images, or pixels as a tensor", "tensor": "tensors", "text": "texts"}
            raise WrongModality(
                f"the input is {kind}, and model {manifest.name} takes "
                f"{takes[manifest.modality]}; send that, or name another model"
            )


def check_ready(raw: Ready, dimension: int, space_id: str, metric: Metric) -> Vector:
    """Check a ready vector for a space: float32 [dimension].

    Raises:
        SpaceMismatch: of another space; both are named.
        WrongShape: of another dimension.
        NotFinite, ZeroVector: see `distance.check_vectors`.
    """
    if raw.space_id != space_id:
        raise SpaceMismatch(
            f"the embedding is of space {raw.space_id or '(none given)'}, space {space_id} is "
            "wanted; embed the input with the model of that space",
            metadata={"space_id": raw.space_id, "wanted_space_id": space_id},
        )
    if raw.values.shape != (dimension,):
        raise WrongShape(
            f"the embedding has {raw.values.size} values, space {space_id} has {dimension}; "
            "send it as Embed returned it"
        )
    distance.check_vectors(raw.values, metric)
    return raw.values


def _too_large(what: str, size: int, limit: int) -> LimitExceeded:
    return LimitExceeded(
        f"the {what} has {size} bytes, the limit is {limit}; send a smaller one",
        metadata={"limit": str(limit), "value": str(size)},
    )


def _check_array(array: NDArray[Any], contract: TensorInput) -> Row:
    if array.dtype != np.dtype(contract.data_type) or array.shape != contract.shape:
        raise WrongShape(
            f"the model takes {contract.data_type} {list(contract.shape)}, not {array.dtype} "
            f"{list(array.shape)}; send that, without a batch axis"
        )
    if array.dtype == np.float32:
        distance.check_vectors(array.reshape(1, -1), Metric.EUCLIDEAN)
    return array
