"""What a graph says of itself, and whether it fits the twin: names, types, ranks, open axes.

In: a serialised graph. Out: nothing, or an error that names what differs. A graph that fixes its
batch or its length, has a second output, or an embedding table smaller than its tokenizer would
fail only in service, on somebody's batch; here it fails before anything is measured. Needs no
torch.
"""

from __future__ import annotations

import numpy as np
import onnx

from twinserve.errors import GateFailed, ManifestError
from twinserve.export.session import GraphSession
from twinserve.feed import input_names
from twinserve.manifest import (
    MAX_BYTES,
    OUTPUT,
    ImageInput,
    InputContract,
    TextInput,
)
from twinserve.tokens import Tokenizer

BATCH, LENGTH = "batch", "length"

_TYPES = {
    "uint8": onnx.TensorProto.UINT8,
    "float32": onnx.TensorProto.FLOAT,
    "int64": onnx.TensorProto.INT64,
}

Signature = tuple[str, int, tuple[str | int, ...]]  # name, ONNX type, shape


def check_size(size: int) -> None:
    """Refuse weights that one protobuf cannot hold, before any time is spent on them.

    Args:
        size: of all weights, in bytes.

    Raises:
        ManifestError: above 2 GB.
    """
    if size > MAX_BYTES:
        raise ManifestError(
            f"the twin's weights are {size} bytes, above the 2 GB ({MAX_BYTES} bytes) that one "
            "ONNX file can hold; use a smaller encoder"
        )


def check_graph(model: bytes, contract: InputContract, dimension: int) -> None:
    """Check names, types, ranks, and axes that stay open.

    Raises:
        GateFailed: naming what differs.
    """
    graph = onnx.load_from_string(model).graph
    given = {weight.name for weight in graph.initializer}
    inputs = [_signature(value) for value in graph.input if value.name not in given]
    outputs = [_signature(value) for value in graph.output]
    wanted = expected_inputs(contract)
    _check_axes(inputs, wanted)
    if len(outputs) > 1:
        names = ", ".join(name for name, _, _ in outputs)
        _fail(
            "outputs",
            outputs,
            f"the graph has {len(outputs)} outputs ({names}), a twin has `{OUTPUT}` alone; take "
            "the others out of the graph",
        )
    _require("inputs", inputs, wanted)
    for name, _, shape in outputs:
        if len(shape) != 2:
            _fail(
                "outputs",
                outputs,
                f"output {name!r} has rank {len(shape)} {list(shape)}, an embedding has rank 2 "
                f"[{BATCH}, {dimension}]; pool the axes between inside the graph",
            )
    _require("outputs", outputs, [(OUTPUT, onnx.TensorProto.FLOAT, (BATCH, dimension))])


def expected_inputs(contract: InputContract) -> list[Signature]:
    """Return (name, ONNX type, shape) of each input that a twin of this contract takes."""
    if isinstance(contract, TextInput):
        return [(name, onnx.TensorProto.INT64, (BATCH, LENGTH)) for name in contract.inputs]
    (name,) = input_names(contract)
    if isinstance(contract, ImageInput):
        shape = (contract.height, contract.width, contract.channels)
        return [(name, onnx.TensorProto.UINT8, (BATCH, *shape))]
    return [(name, _TYPES[contract.data_type], (BATCH, *contract.shape))]


def check_tokenizer(model: bytes, contract: InputContract, tokenizer: str | None) -> None:
    """Check that a text twin has its tokenizer, and that the graph knows every id it can give.

    The graph is run on the largest id, so that it does not matter where its table lies.

    Raises:
        ManifestError: no tokenizer, one for a twin of another modality, an unreadable one, or ids
            beyond the embedding table.
    """
    if not isinstance(contract, TextInput):
        if tokenizer is not None:
            raise ManifestError("only a text twin carries a tokenizer; leave it out")
        return
    if tokenizer is None:
        raise ManifestError(
            "a text twin carries its tokenizer inside its file, and there is none; "
            "give its tokenizer.json"
        )
    largest = max(Tokenizer(tokenizer, contract).largest_id, contract.pad_id)
    session = GraphSession(model, contract)
    try:
        session([np.array([largest], dtype=np.int64)])
    except GateFailed as error:
        raise ManifestError(
            f"the tokenizer does not fit the encoder: its largest id is {largest}, and the graph "
            f"cannot look that up ({error.message[:200]}); give the tokenizer.json that the "
            "encoder was trained with"
        ) from error


def check_vocabulary(rows: int, contract: TextInput, tokenizer: str) -> None:
    """Check, before the export, that an embedding table of so many rows knows every id.

    Raises:
        ManifestError: ids beyond the table; both numbers are named.
    """
    largest = max(Tokenizer(tokenizer, contract).largest_id, contract.pad_id)
    if largest >= rows:
        raise ManifestError(
            f"the tokenizer does not fit the encoder: its largest id is {largest}, the encoder's "
            f"embedding table ends at id {rows - 1}; give the tokenizer.json that the encoder was "
            "trained with"
        )


def _check_axes(inputs: list[Signature], wanted: list[Signature]) -> None:
    """Say in words what else would be told by two lists of shapes."""
    shapes = {name: shape for name, _, shape in wanted}
    for name, _, shape in inputs:
        if len(shape) != len(shapes.get(name, ())):
            continue
        for axis, (found, open_axis) in enumerate(zip(shape, shapes[name], strict=True)):
            if isinstance(open_axis, str) and isinstance(found, int) and found > 0:
                _fail(
                    "inputs",
                    inputs,
                    f"the graph's inputs are fixed: {name!r} takes a {open_axis} of {found} only "
                    f"(axis {axis} of {list(shape)}); export with a dynamic {open_axis}, and use "
                    "no operation that takes it for a constant",
                )


def _signature(value: onnx.ValueInfoProto) -> Signature:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return value.name, kind.elem_type, shape


def _require(figure: str, found: list[Signature], expected: list[Signature]) -> None:
    if found != expected:
        _fail(
            figure,
            found,
            f"the graph's {figure} are {found} (name, ONNX type, shape), they must be {expected}",
            expected,
        )


def _fail(figure: str, found: object, sentence: str, expected: object = "") -> None:
    raise GateFailed(
        f"the gate failed: {sentence}; nothing was written",
        metadata={"figure": figure, "value": str(found), "limit": str(expected)},
    )
