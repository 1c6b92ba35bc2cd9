"""Short ways to say messages of the contract, and to read the details of an error."""

from __future__ import annotations

import io
from typing import TypeVar

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray
from PIL import Image

from twinserve.v1 import (
    embedding_service_pb2_grpc,
    gallery_service_pb2_grpc,
    model_service_pb2_grpc,
    shared_pb2,
)

Detail = TypeVar("Detail", bound=Message)


class Stubs:
    """The three services on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)
        self.gallery = gallery_service_pb2_grpc.GalleryServiceStub(channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(channel)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [height, width, 1 or 3] without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()


def image(pixels: NDArray[np.uint8]) -> shared_pb2.Input:
    return shared_pb2.Input(image=png(pixels))


def tensor(array: NDArray[np.generic]) -> shared_pb2.Input:
    kinds = {
        "uint8": shared_pb2.DATA_TYPE_UINT8,
        "float32": shared_pb2.DATA_TYPE_FLOAT32,
        "int64": shared_pb2.DATA_TYPE_INT64,
    }
    return shared_pb2.Input(
        tensor=shared_pb2.Tensor(
            data_type=kinds[str(array.dtype)], shape=array.shape, data=array.tobytes()
        )
    )


def ready(vector: NDArray[np.floating], space_id: str) -> shared_pb2.Input:
    return shared_pb2.Input(
        embedding=shared_pb2.Embedding(values=vector.tolist(), space_id=space_id)
    )


def detail(status: status_pb2.Status, kind: type[Detail]) -> Detail:
    """Return the first detail of a kind."""
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")


def reason(status: status_pb2.Status) -> str:
    info = detail(status, details.ErrorInfo)
    assert info.domain == "twinserve"
    return info.reason


def field(status: status_pb2.Status) -> str:
    return detail(status, details.BadRequest).field_violations[0].field


class Refused:
    """A context that expects a call to fail, and holds its status afterwards."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code
        self._raises = pytest.raises(grpc.RpcError)
        self.status = status_pb2.Status()

    def __enter__(self) -> Refused:
        self._info = self._raises.__enter__()
        return self

    def __exit__(self, *exception: object) -> bool:
        swallowed = self._raises.__exit__(*exception)  # type: ignore[arg-type]
        error = self._info.value
        assert error.code() is self._code, f"{error.code()}: {error.details()}"
        status = rpc_status.from_call(error)
        assert status is not None, "a refusal has details"
        assert len(status.message) > 20, "a refusal is a sentence"
        self.status = status
        return bool(swallowed)
