"""Any other ONNX graph of one input: arrays of a fixed shape go in as they are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from twinserve.errors import ConfigError
from twinserve.export.evidence import Source
from twinserve.export.imports.onnx_file import (
    SOURCE,
    OnnxFile,
    Original,
    check_batch,
    choose_output,
    graph_digest,
    origin_of,
)
from twinserve.export.imports.source import Imported
from twinserve.export.imports.surgery import Surgery
from twinserve.feed import Rows
from twinserve.manifest import TensorInput
from twinserve.train.heads import unit
from twinserve.train.pretrained.folders import metric_of, truncations_of
from twinserve.train.pretrained.settings import Answers, Settings

# What a client sends for each element type of the graph.
_SENT: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float32",
    TensorProto.DOUBLE: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int64",
}
_BATCH = 64


def import_vectors(file: OnnxFile, settings: Settings, answers: Answers) -> Imported:
    """Make a tensor twin of a graph.

    Raises:
        ConfigError: a fixed batch, an open axis besides the batch, several outputs, an element
            type that no client sends, or an output of another rank than 2.
        DataError: a graph that onnxruntime cannot run.
    """
    check_batch(file, settings)
    (port,) = file.inputs
    if port.kind not in _SENT:
        raise ConfigError(
            f"the graph takes {port}; a client sends {', '.join(sorted(set(_SENT.values())))}"
        )
    if port.shape is None or len(port.shape) < 2:
        raise ConfigError(f"the graph takes {port}; a twin takes [batch, ...]")
    shape = [axis for axis in port.shape[1:] if isinstance(axis, int)]
    if len(shape) != len(port.shape) - 1:
        raise ConfigError(
            f"the graph takes {port}, with an open axis besides the batch; a tensor twin takes "
            "arrays of one shape: export the graph with that axis fixed"
        )
    contract = TensorInput(tuple(shape), _SENT[port.kind])
    output = choose_output(file, settings, ("embedding", "embeddings"))
    original = Original(file, output)
    found = original.run({port.name: np.zeros((1, *shape), dtype=contract.data_type)}).shape
    if len(found) != 2:
        raise ConfigError(
            f"the output {output.name} has rank {len(found)} ({list(found)}), an embedding has "
            "rank 2 [batch, dimension]; name another with --output"
        )
    dimension = found[1]
    normalized = answers.guess(
        "unit length",
        settings.normalize,
        False,
        "vectors are given as the graph gives them",
        "--normalize",
    )
    metric = metric_of(None, settings, answers, "", normalized=normalized)
    truncations = truncations_of(None, dimension, settings, answers, "")

    def embed(rows: Rows) -> NDArray[np.float32]:
        batches = [
            original.run({port.name: np.asarray(rows[start : start + _BATCH])})
            for start in range(0, len(rows), _BATCH)
        ]
        vectors = np.concatenate(batches)
        return unit(torch.from_numpy(vectors)).numpy() if normalized else vectors

    surgery = Surgery(file.model)
    surgery.take_vectors(contract, port.name, port.kind)
    value = surgery.output(output.name, output.kind)
    graph = surgery.finish(surgery.unit(value) if normalized else value, dimension)
    return Imported(
        graph=graph,
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=normalized,
        weights_digest=graph_digest(graph),
        source=Source(embed, SOURCE),
        truncations=truncations,
        origin=origin_of(file, output),
    )
