"""From a twin in torch to the bytes of one ONNX graph, from raw input to embedding.

In: a trained twin of any modality. Out: a serialised model whose inputs are those of
`feed.input_names` and whose output is `embedding`, with a dynamic batch and, for texts, a dynamic
length. Equal twins give equal bytes, on any day and in any folder: names come from the module, and
all that the exporter notes beside the graph (stack traces, paths, scopes) is taken out again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from twinserve.errors import GateFailed
from twinserve.export.signature import (
    BATCH,
    LENGTH,
    check_graph,
    check_size,
    check_vocabulary,
)
from twinserve.export.strip import strip
from twinserve.feed import input_names
from twinserve.manifest import OUTPUT, ImageInput, InputContract, TextInput
from twinserve.train.quiet import quiet
from twinserve.train.twins import Twin

OPSET = 20

# A batch or a length of one would be taken for a constant and burnt into the graph; equal ones
# would be taken for the same axis.
_TRACED_BATCH = 3
_TRACED_LENGTH = 7
# The exporter names a look-up "embedding" too, and does not see that the output is called so.
_TRACED_OUTPUT = "output of the twin"


def to_onnx(twin: Twin) -> bytes:
    """Return the twin as a serialised ONNX model without a manifest.

    The graph takes `image` (uint8 [batch, height, width, channels]), `tensor` ([batch, *shape]) or
    the contract's text inputs (int64 [batch, length] each), and gives float32 `embedding` [batch,
    dimension].

    Raises:
        ManifestError: above the 2 GB that one ONNX file can hold, or a tokenizer with ids beyond
            the encoder's embedding table.
        GateFailed: an operation that ONNX lacks, or a batch or length that the module fixes; see
            `check_graph`.
    """
    check_size(weights_bytes(twin))
    if isinstance(twin.contract, TextInput) and twin.tokenizer is not None:
        rows = vocabulary_rows(twin)
        if rows is not None:
            check_vocabulary(rows, twin.contract, twin.tokenizer)
    examples = _examples(twin.contract)
    axes = {0: torch.export.Dim(BATCH)}
    if isinstance(twin.contract, TextInput):
        # The longest is named, since positions are learned up to there and no further.
        axes[1] = torch.export.Dim(LENGTH, max=max(2, twin.contract.max_tokens))
    try:
        with quiet():
            program = torch.onnx.export(
                _Traced(twin),
                examples,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=list(input_names(twin.contract)),
                output_names=[_TRACED_OUTPUT],
                dynamic_shapes=(tuple(axes for _ in examples),),
                verbose=False,
            )
            model = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # the exporter wraps whatever a module may raise
        cause = error.__cause__ or error
        raise GateFailed(
            f"the twin cannot be written as ONNX ({type(cause).__name__}: "
            f"{str(cause).strip().splitlines()[0][:300] if str(cause).strip() else 'no reason'}); "
            "use operations that ONNX has, and none that fixes the batch or the length",
            metadata={"figure": "export"},
        ) from error
    strip(model)
    _rename(model.graph, {OUTPUT: f"{OUTPUT} within", _TRACED_OUTPUT: OUTPUT})
    written = bytes(model.SerializeToString(deterministic=True))
    # The exporter may freeze an axis without a word where the module insists on one.
    check_graph(written, twin.contract, twin.dimension)
    return written


def weights_bytes(twin: Twin) -> int:
    """Return the size of all weights and buffers."""
    state = _tensors(twin.state_dict())
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def vocabulary_rows(twin: Twin) -> int | None:
    """Return the rows of the table that token ids index, or None where it cannot be told.

    The largest table of a text encoder is its vocabulary; positions and types are fewer.
    """
    tables = [
        module.num_embeddings
        for module in twin.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    ]
    return max(tables, default=None)


def weights_digest(twin: Twin) -> str:
    """Return the sha256 of the fp32 source weights: names, types, shapes and bytes, sorted.

    What changes every embedding as a weight would, and is none, counts with them.
    """
    digest = hashlib.sha256(f"{twin.variant}\n".encode())
    for name, tensor in sorted(_tensors(twin.state_dict()).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class _Traced(nn.Module):
    """The twin behind one signature, whatever number of inputs it takes."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, *inputs: Tensor) -> Tensor:
        embedding: Tensor = self.twin(*inputs)
        return embedding


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    # How many batches batch norm has seen changes no embedding.
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.endswith("num_batches_tracked")
    }


def _examples(contract: InputContract) -> tuple[Tensor, ...]:
    if isinstance(contract, TextInput):
        shape = (_TRACED_BATCH, min(_TRACED_LENGTH, contract.max_tokens))
        # Ones are valid ids, a full mask, and valid types.
        return tuple(torch.ones(shape, dtype=torch.int64) for _ in contract.inputs)
    if isinstance(contract, ImageInput):
        pixels = (_TRACED_BATCH, contract.height, contract.width, contract.channels)
        return (torch.zeros(pixels, dtype=torch.uint8),)
    kind = getattr(torch, contract.data_type)
    return (torch.zeros((_TRACED_BATCH, *contract.shape), dtype=kind),)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names, also where graphs within this one look at them."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _rename(inner, names)
