"""A twin of the dimension that a gallery shall have, made with onnx alone.

A gallery takes its space from a twin. What the twin computes is never asked for here, since all
that is enrolled and searched are ready embeddings: it multiplies eight numbers by a seeded matrix.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from twinserve import manifest
from twinserve.distance import Metric
from twinserve.manifest import Manifest, TensorInput

INPUTS = 8
SEED = 5


def made(folder: Path, dimension: int) -> Path:
    """Return the file of the twin; one that is there is taken as it is."""
    path = folder / f"twin-{dimension}.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write_atomically(path, _made(dimension))
    return path


def _made(dimension: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(SEED).standard_normal((INPUTS, dimension)).astype(np.float32)
    one = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["tensor", "weights"], ["embedding"])],
        "twin",
        [one("tensor", TensorProto.FLOAT, ["batch", INPUTS])],
        [one("embedding", TensorProto.FLOAT, ["batch", dimension])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data = model.SerializeToString(deterministic=True)
    contract = TensorInput((INPUTS,))
    digest = hashlib.sha256(weights.tobytes()).hexdigest()
    described = Manifest(
        name="gallery-twin",
        version="1",
        modality="tensor",
        input=contract,
        dimension=dimension,
        normalized=False,
        metric=Metric.COSINE,
        space_id=manifest.space_id(digest, contract, dimension, False),
        graph_digest=manifest.digest_of_graph(data),
    )
    return manifest.attach(data, described)
