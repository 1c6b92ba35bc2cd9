"""From a twin in torch to the bytes of one ONNX graph: the twin branch alone, normalisation inside.

In: a trained twin. Out: a serialised model whose input is raw (uint8 pixels) and whose output is
`embedding`, with a dynamic batch. Equal twins give equal bytes, on any day and in any folder: names
come from the module, and all that the exporter notes beside the graph (stack traces, paths, scopes)
is taken out again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor

import twinserve
from twinserve.errors import GateFailed, ManifestError, NotBuilt
from twinserve.manifest import MAX_BYTES, OUTPUT, ImageInput, InputContract
from twinserve.train.twins import Twin

OPSET = 20
IMAGE = "image"
BATCH = "batch"

# A batch of one would be taken for a constant and burnt into the graph.
_TRACED_BATCH = 3


def to_onnx(twin: Twin) -> bytes:
    """Return the twin as a serialised ONNX model without a manifest.

    The graph takes uint8 `image` [batch, height, width, channels] and gives float32 `embedding`
    [batch, dimension].

    Raises:
        ManifestError: above the 2 GB that one ONNX file can hold.
        GateFailed: an operation that ONNX lacks, or a batch that the module fixes; see
            `check_graph`.
        NotBuilt: a modality that cannot be exported yet.
    """
    check_size(twin)
    example = torch.zeros(_example_shape(twin.contract), dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                twin,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[IMAGE],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                verbose=False,
            )
            model = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # the exporter wraps whatever a module may raise
        cause = error.__cause__ or error
        raise GateFailed(
            f"the twin cannot be written as ONNX ({type(cause).__name__}: "
            f"{str(cause).strip().splitlines()[0][:300] if str(cause).strip() else 'no reason'}); "
            "use operations that ONNX has, and no shape that depends on the batch",
            metadata={"figure": "export"},
        ) from error
    _strip(model)
    written = bytes(model.SerializeToString(deterministic=True))
    # The exporter may freeze a batch without a word where the module insists on one.
    check_graph(written, twin.contract, twin.dimension)
    return written


def check_size(twin: Twin) -> None:
    """Refuse weights that one protobuf cannot hold, before any time is spent on them.

    Raises:
        ManifestError: above 2 GB.
    """
    size = sum(
        tensor.numel() * tensor.element_size() for tensor in _tensors(twin.state_dict()).values()
    )
    if size > MAX_BYTES:
        raise ManifestError(
            f"the twin's weights are {size} bytes, above the 2 GB ({MAX_BYTES} bytes) that one "
            "ONNX file can hold; use a smaller encoder"
        )


def check_graph(model: bytes, contract: InputContract, dimension: int) -> None:
    """Check what the graph says of itself: names, types, ranks, and a batch that stays open.

    Raises:
        GateFailed: naming what differs.
    """
    graph = onnx.load_from_string(model).graph
    given = {weight.name for weight in graph.initializer}
    inputs = [_signature(value) for value in graph.input if value.name not in given]
    outputs = [_signature(value) for value in graph.output]
    shape = _example_shape(contract)[1:]
    _require("inputs", inputs, [(IMAGE, onnx.TensorProto.UINT8, (BATCH, *shape))])
    _require("outputs", outputs, [(OUTPUT, onnx.TensorProto.FLOAT, (BATCH, dimension))])


def weights_digest(twin: Twin) -> str:
    """Return the sha256 of the fp32 source weights: names, types, shapes and bytes, sorted.

    Turning brightness around is no weight, but changes every embedding as a weight would.
    """
    digest = hashlib.sha256(f"ink_inverted {twin.ink_inverted}\n".encode())
    for name, tensor in sorted(_tensors(twin.state_dict()).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    # How many batches batch norm has seen changes no embedding.
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.endswith("num_batches_tracked")
    }


def _example_shape(contract: InputContract) -> tuple[int, ...]:
    if not isinstance(contract, ImageInput):
        raise NotBuilt(
            f"twins of {type(contract).__name__} cannot be exported yet; image twins can be"
        )
    return (_TRACED_BATCH, contract.height, contract.width, contract.channels)


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[str | int, ...]]:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return value.name, kind.elem_type, shape


def _require(figure: str, found: object, expected: object) -> None:
    if found != expected:
        raise GateFailed(
            f"the gate failed: the graph's {figure} are {found} (name, ONNX type, shape), "
            f"they must be {expected}; nothing was written",
            metadata={"figure": figure, "value": str(found), "limit": str(expected)},
        )


def _strip(model: onnx.ModelProto) -> None:
    """Take out every note that is not needed to run the graph."""
    model.producer_name = "twinserve"
    model.producer_version = twinserve.__version__
    model.ClearField("doc_string")
    model.ClearField("domain")
    del model.metadata_props[:]
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:]
        del function.value_info[:]
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.name = "twin"
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    del graph.value_info[:]  # shapes of what lies between can be inferred again
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for weight in graph.initializer:
        weight.ClearField("doc_string")
        del weight.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _strip_graph(inner)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice off the user's terminal; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
