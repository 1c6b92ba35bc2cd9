"""Tensors of the Open Inference Protocol: what a twin takes and gives by its names, and how a
request's tensors become the raw inputs of the engine.

An image twin takes its graph's `image` (pixels) or `encoded_image` (files), a text twin `text`, any
other its graph's `tensor`; each with a batch axis in front. Token ids are not taken: they would go
past the tokenizer and its limits. The protocol has no errors of single rows, so the first row that
cannot be used fails the call, and its message names it.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import (
    EmptyInput,
    InvalidInput,
    LimitExceeded,
    TwinserveError,
    WrongModality,
    WrongShape,
)
from twinserve.manifest import IMAGE, OUTPUT, TENSOR, ImageInput, Manifest, TensorInput
from twinserve.oip import inference_pb2 as pb
from twinserve.server.config import Limits
from twinserve.server.inputs import Array, ImageBytes, RawInput, Text, Vector

ENCODED_IMAGE, TEXT = "encoded_image", "text"
BYTES = "BYTES"

# By the protocol's datatype: how elements lie in a raw block, and where typed contents hold them.
_ELEMENTS: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}
_CONTENTS = {
    "UINT8": "uint_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    BYTES: "bytes_contents",
}
_DATATYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}
_LENGTH = struct.Struct("<I")
# Extensions of Triton that would change what an input holds or an output gives.
_SHARED_MEMORY, _CLASSIFICATION = "shared_memory_region", "classification"


@dataclass(frozen=True)
class Port:
    """One tensor that a model takes or gives."""

    name: str
    datatype: str  # as the protocol writes it
    shape: tuple[int, ...]  # without the batch axis
    optional: bool = False  # another port stands for it


_TEXT_PORTS = (Port(TEXT, BYTES, ()),)


@functools.cache  # asked for by every call
def _image_ports(*shape: int) -> tuple[Port, ...]:
    return Port(IMAGE, "UINT8", shape), Port(ENCODED_IMAGE, BYTES, (), optional=True)


@functools.cache
def _tensor_ports(data_type: str, shape: tuple[int, ...]) -> tuple[Port, ...]:
    return (Port(TENSOR, _DATATYPES[data_type], shape),)


def inputs_of(manifest: Manifest) -> tuple[Port, ...]:
    """Return what a twin takes: one of these."""
    contract = manifest.input
    if isinstance(contract, ImageInput):
        return _image_ports(contract.height, contract.width, contract.channels)
    if isinstance(contract, TensorInput):
        return _tensor_ports(contract.data_type, contract.shape)
    return _TEXT_PORTS


def output_of(manifest: Manifest) -> Port:
    """Return what a twin gives."""
    return Port(OUTPUT, "FP32", (manifest.dimension,))


def read_inputs(
    request: pb.ModelInferRequest,
    manifest: Manifest,
    limits: Limits,
    prompt: str | None = None,
    truncate: bool | None = None,
) -> list[RawInput]:
    """Read the rows of a request.

    Args:
        request: with its one input tensor, in raw or in typed contents.
        manifest: of the twin.
        limits: of one call and of one input.
        prompt: name of a text's prompt; None is the twin's default.
        truncate: whether long texts are cut; None is the twin's own rule.

    Returns:
        at least one; arrays are views of the request's bytes.

    Raises:
        InvalidInput: a tensor that the twin does not take, or whose contents are not what its
            datatype and shape say; with its place in `field`.
    """
    tensor, port = _the_input(request, manifest)
    rows = _rows(tensor, port, limits)
    raw = _raw_block(request, tensor)
    if port.datatype != BYTES:
        array = (
            _from_contents(tensor.contents, port, rows)
            if raw is None
            else _from_block(raw, port, rows)
        )
        return [Array(row) for row in array]
    if raw is None:
        _check_contents(tensor.contents, port)
        contents: Sequence[bytes] = tensor.contents.bytes_contents
    else:
        # One more than wanted tells that there are too many, however many there are.
        contents = list(itertools.islice(_elements(raw), rows + 1))
    if len(contents) != rows:
        found = "more" if len(contents) > rows else f"only {len(contents)}"
        raise WrongShape(
            f"the shape of input {port.name} says {rows} rows, and it has {found} elements; send "
            "one element a row",
            field="inputs[0].contents" if raw is None else "raw_input_contents[0]",
        )
    if port.name == ENCODED_IMAGE:
        return [_image(data, row) for row, data in enumerate(contents)]
    return [_text(data, row, prompt, truncate) for row, data in enumerate(contents)]


def check_outputs(request: pb.ModelInferRequest) -> None:
    """Refuse to be asked for what the twins do not give; none named means all.

    Raises:
        InvalidInput: another output than the embedding, or in another form.
    """
    outputs = request.outputs
    for index, output in enumerate(outputs) if outputs else ():
        if output.name != OUTPUT:
            raise InvalidInput(
                f"output {output.name!r:.80} is not one of the model's; ask for {OUTPUT}, or for "
                "none by name",
                field=f"outputs[{index}].name",
            )
        for extension in (_CLASSIFICATION, _SHARED_MEMORY):
            if extension in output.parameters:
                raise _not_offered(extension, f"outputs[{index}].parameters[{extension}]")


def write_output(response: pb.ModelInferResponse, vectors: Sequence[Vector]) -> None:
    """Write embeddings as the one output: float32 [dimension] each, at least one.

    Always as a raw block: tritonclient reads no typed floats.
    """
    response.outputs.add(name=OUTPUT, datatype="FP32", shape=(len(vectors), len(vectors[0])))
    response.raw_output_contents.append(
        b"".join([vector.astype("<f4", copy=False).tobytes() for vector in vectors])
    )


def of_row(error: TwinserveError, row: int, name: str) -> TwinserveError:
    """Name the row that an error is of, in its message too: tritonclient shows no details."""
    return type(error)(
        f"row {row} of input {name}: {error.message}",
        field=f"inputs[0][{row}]",
        resource=error.resource,
        retry_after=error.retry_after,
        metadata=error.metadata,
    )


def _the_input(
    request: pb.ModelInferRequest, manifest: Manifest
) -> tuple[pb.ModelInferRequest.InferInputTensor, Port]:
    """Return the request's one input with the port that takes it."""
    ports = inputs_of(manifest)
    tensors = request.inputs
    if len(tensors) != 1:
        raise (InvalidInput if tensors else EmptyInput)(
            f"the request has {len(tensors)} inputs; the model takes one, {_listed(ports)}",
            field="inputs",
        )
    tensor = tensors[0]
    name, datatype = tensor.name, tensor.datatype
    for port in ports:
        if port.name == name:
            break
    else:
        why = " (no token ids: the model's own tokenizer reads texts)" * (ports[0].name == TEXT)
        raise WrongModality(
            f"input {name!r:.80} is not one of the model's; the model takes {_listed(ports)}{why}",
            field="inputs[0].name",
        )
    if datatype != port.datatype:
        raise WrongShape(
            f"input {port.name} is {datatype!r:.20}; the model takes {_listed(ports)}",
            field="inputs[0].datatype",
        )
    if _SHARED_MEMORY in tensor.parameters:
        raise _not_offered(_SHARED_MEMORY, f"inputs[0].parameters[{_SHARED_MEMORY}]")
    return tensor, port


def _listed(ports: Sequence[Port]) -> str:
    return " or ".join(f"{port.name} ({port.datatype})" for port in ports)


def _rows(tensor: pb.ModelInferRequest.InferInputTensor, port: Port, limits: Limits) -> int:
    """Return how many rows a tensor of this port's shape has."""
    shape = tuple(tensor.shape)
    # Clients of Triton give elements of a row an axis of their own.
    fits = shape[1:] == port.shape or (port.datatype == BYTES and shape[1:] == (1,))
    if not shape or not fits or shape[0] < 0:
        wanted = ", ".join(["batch", *map(str, port.shape)])
        raise WrongShape(
            f"input {port.name} has the shape {list(shape[:8])}; send [{wanted}]",
            field="inputs[0].shape",
        )
    if not shape[0]:
        raise EmptyInput(
            f"input {port.name} has no rows; send 1 to {limits.max_items}", field="inputs[0].shape"
        )
    if shape[0] > limits.max_items:
        raise LimitExceeded(
            f"input {port.name} has {shape[0]} rows, the limit is {limits.max_items} a call; send "
            "several calls",
            field="inputs[0].shape",
            metadata={"limit": str(limits.max_items), "value": str(shape[0])},
        )
    return shape[0]


def _raw_block(
    request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor
) -> bytes | None:
    """Return the input's raw block, or None where it has typed contents."""
    blocks = request.raw_input_contents
    typed = tensor.HasField("contents")
    if not blocks:
        if not typed:
            raise EmptyInput(
                "the input has neither contents nor raw_input_contents; send one of them",
                field="inputs[0].contents",
            )
        return None
    if typed:
        raise InvalidInput(
            "the request has both contents and raw_input_contents; send one of them",
            field="inputs[0].contents",
        )
    if len(blocks) != 1:
        raise InvalidInput(
            f"raw_input_contents has {len(blocks)} entries for 1 input; send one for each input",
            field="raw_input_contents",
        )
    return blocks[0]


def _from_block(raw: bytes, port: Port, rows: int) -> NDArray[Any]:
    """Read a raw block: [rows, *shape]."""
    kind = _ELEMENTS[port.datatype]
    wanted = rows * math.prod(port.shape) * kind.itemsize
    if len(raw) != wanted:
        raise WrongShape(
            f"input {port.name} has {len(raw)} bytes, its shape of {port.datatype} takes {wanted}; "
            "send its elements little-endian and row-major",
            field="raw_input_contents[0]",
        )
    return np.frombuffer(raw, kind).reshape(rows, *port.shape)


def _from_contents(contents: pb.InferTensorContents, port: Port, rows: int) -> NDArray[Any]:
    """Read typed contents: [rows, *shape]."""
    _check_contents(contents, port)
    elements = getattr(contents, _CONTENTS[port.datatype])
    kind = _ELEMENTS[port.datatype]
    wanted = rows * math.prod(port.shape)
    if len(elements) != wanted:
        raise WrongShape(
            f"input {port.name} has {len(elements)} elements, its shape takes {wanted}; send them "
            "row-major",
            field="inputs[0].contents",
        )
    values = np.array(elements)
    if kind.kind == "u" and values.max() > np.iinfo(kind).max:
        raise WrongShape(
            f"input {port.name} holds {values.max()}, which {port.datatype} cannot; send 0 to "
            f"{np.iinfo(kind).max}",
            field="inputs[0].contents",
        )
    return values.astype(kind).reshape(rows, *port.shape)


def _check_contents(contents: pb.InferTensorContents, port: Port) -> None:
    """Refuse elements in the place of another datatype."""
    wrong = [
        field.name for field, _ in contents.ListFields() if field.name != _CONTENTS[port.datatype]
    ]
    if wrong:
        raise WrongShape(
            f"input {port.name} is {port.datatype} and has {wrong[0]}; send "
            f"{_CONTENTS[port.datatype]}, or raw_input_contents",
            field=f"inputs[0].contents.{wrong[0]}",
        )


def _elements(raw: bytes) -> Iterator[bytes]:
    """Yield the elements of a raw block of BYTES: each its length in 4 bytes, then itself."""
    position = 0
    while position < len(raw):
        start = position + _LENGTH.size
        length = _LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else 0
        position = start + length
        if position > len(raw):
            raise WrongShape(
                f"an element of BYTES reaches to byte {position} of {len(raw)}; send each element "
                "as its length in 4 bytes, little-endian, and then its bytes",
                field="raw_input_contents[0]",
            )
        yield raw[start:position]


def _image(data: bytes, row: int) -> ImageBytes:
    if not data:
        raise of_row(
            EmptyInput("the image holds no bytes; send the file's content"), row, ENCODED_IMAGE
        )
    return ImageBytes(data)


def _text(data: bytes, row: int, prompt: str | None, truncate: bool | None) -> Text:
    if not data:
        raise of_row(EmptyInput("the text is empty; send at least one character"), row, TEXT)
    try:
        return Text(data.decode(), prompt, truncate)
    except UnicodeDecodeError as error:
        wrong = InvalidInput(f"byte {error.start} is not valid UTF-8; send texts in UTF-8")
        raise of_row(wrong, row, TEXT) from error


def _not_offered(extension: str, field: str) -> InvalidInput:
    return InvalidInput(
        f"{extension} is not offered here; leave it out, ServerMetadata lists what is", field=field
    )
