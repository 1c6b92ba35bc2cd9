"""How one input travels to each server, and how the embedding comes back.

The input is the same bytes for all: a picture's pixels, or a text in UTF-8. What differs is what is
put around them: our contract, plain HTTP, JSON with base64, or Triton's protocol.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import wire
from benchmarks.serving.subjects import SEED, Subject
from twinserve.oip import inference_pb2
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2

EMBED = "/twinserve.v1.EmbeddingService/Embed"

Embedding = NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """One way to ask for embeddings.

    Attributes:
        grpc: over HTTP/2 with gRPC's framing, else plain HTTP/1.1.
        path: of the call.
        encode: a twin and the bytes of inputs -> the body, without gRPC's prefix.
        decode: a reply's body, without prefix -> float32 [inputs, dimension].
        headers: of the request.
    """

    grpc: bool
    path: str
    encode: Callable[[Subject, Sequence[bytes]], bytes]
    decode: Callable[[bytes], Embedding]
    headers: tuple[str, ...] = ()

    def body(self, subject: Subject, inputs: Sequence[bytes]) -> bytes:
        """Return what is put on the wire."""
        message = self.encode(subject, inputs)
        return wire.prefixed(message) if self.grpc else message


def given(subject: Subject, number: int = 0) -> bytes:
    """Return the input of the single-item rows: pixels of noise, or a text of 32 tokens.

    Others by number, since ours embeds what repeats within a call but once.
    """
    if subject.tokenizer is None:
        return subject.pixels(SEED + number).tobytes()
    return subject.text(seed=SEED + number).encode()


def contract_inputs(subject: Subject, inputs: Sequence[bytes]) -> list[shared_pb2.Input]:
    """Return inputs as the contract's messages."""
    if subject.tokenizer is not None:
        return [shared_pb2.Input(text=one.decode()) for one in inputs]
    shape = subject.pixels().shape
    return [
        shared_pb2.Input(
            tensor=shared_pb2.Tensor(data_type=shared_pb2.DATA_TYPE_UINT8, shape=shape, data=one)
        )
        for one in inputs
    ]


def pictures(inputs: Sequence[bytes]) -> bytes:
    """Return a call of encoded pictures, with gRPC's prefix."""
    request = pb.EmbedRequest(inputs=[shared_pb2.Input(image=one) for one in inputs])
    return wire.prefixed(request.SerializeToString())


def _contract(subject: Subject, inputs: Sequence[bytes]) -> bytes:
    return pb.EmbedRequest(inputs=contract_inputs(subject, inputs)).SerializeToString()


def _contract_reply(body: bytes) -> Embedding:
    reply = pb.EmbedResponse.FromString(body)
    for one in reply.results:
        if one.WhichOneof("result") != "embedding":
            raise RuntimeError(f"an input was not embedded: {one.error.message or 'no result'}")
    return np.array([one.embedding.values for one in reply.results], np.float32)


def _only(inputs: Sequence[bytes]) -> bytes:
    (one,) = inputs
    return one


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _oip(subject: Subject, inputs: Sequence[bytes]) -> bytes:
    row = subject.row()
    if subject.tokenizer is None:
        kind, raw = "UINT8", b"".join(inputs)
    else:
        # Triton has no tokenizer: the ids are made by the client, which spares that server work.
        kind, raw = "INT64", row.tobytes() * len(inputs)
    request = inference_pb2.ModelInferRequest(model_name="twin", raw_input_contents=[raw])
    request.inputs.add(name="given", datatype=kind, shape=(len(inputs), *row.shape))
    return request.SerializeToString()


def _oip_reply(body: bytes) -> Embedding:
    reply = inference_pb2.ModelInferResponse.FromString(body)
    shape = tuple(reply.outputs[0].shape)
    return np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(shape)


CONTRACT = Form(True, EMBED, _contract, _contract_reply)
BYTES = Form(
    False,
    "/inference",
    lambda subject, inputs: _only(inputs),
    lambda body: np.frombuffer(body, np.float32)[None],
)
LITSERVE = Form(
    False,
    "/predict",
    lambda subject, inputs: json.dumps({"input": _base64(_only(inputs))}).encode(),
    lambda body: np.array([json.loads(body)["embedding"]], np.float32),
    ("content-type: application/json",),
)
BENTOML = Form(
    False,
    "/embed",
    lambda subject, inputs: json.dumps({"inputs": [_base64(one) for one in inputs]}).encode(),
    lambda body: np.array(json.loads(body), np.float32),
    ("content-type: application/json",),
)
TRITON = Form(True, "/inference.GRPCInferenceService/ModelInfer", _oip, _oip_reply)
