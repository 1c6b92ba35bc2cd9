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
from torch import Tensor, nn

from twinserve.export.signature import check_graph, check_size, check_vocabulary
from twinserve.export.strip import strip
from twinserve.manifest import OUTPUT, TextInput
from twinserve.train import tracing
from twinserve.train.twins import Twin


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
    model = tracing.trace(twin)
    strip(model)
    _rename(model.graph, {OUTPUT: f"{OUTPUT} within", tracing.OUTPUT: OUTPUT})
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


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    # How many batches batch norm has seen changes no embedding.
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.endswith("num_batches_tracked")
    }


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
