"""Small twins made with onnx alone, so that tests of the server need no training and no torch."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from twinserve import manifest as manifests
from twinserve.calibration import calibrate, pair_distances
from twinserve.distance import Metric
from twinserve.manifest import ImageInput, Manifest, TensorInput

SIZE = 28
DIMENSION = 16


def projection(inputs: int, dimension: int = DIMENSION, seed: int = 3) -> NDArray[np.float32]:
    """The weights of the small twins: float32 [inputs, dimension]."""
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((inputs, dimension)) / np.sqrt(inputs)
    return weights.astype(np.float32)


def small_image_twin(
    name: str = "small",
    version: str = "1",
    metric: Metric = Metric.EUCLIDEAN,
    *,
    calibrated: bool = True,
    seed: int = 3,
) -> bytes:
    """A twin that scales pixels to [0, 1] and projects them: uint8 [batch, 28, 28, 1]."""
    contract = ImageInput(SIZE, SIZE, 1, "L")
    weights = projection(SIZE * SIZE, seed=seed)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 1])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    return _finish(graph, weights, contract, "image", name, version, metric, calibrated)


def small_tensor_twin(name: str = "vectors", metric: Metric = Metric.COSINE) -> bytes:
    """A twin that projects float32 [batch, 8]."""
    weights = projection(8, seed=5)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["tensor", "weights"], ["embedding"])],
        "vectors",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return _finish(graph, weights, TensorInput((8,)), "tensor", name, "1", metric, False)


def embed_pixels(pixels: NDArray[np.uint8], seed: int = 3) -> NDArray[np.float32]:
    """What the small image twin gives, in numpy: uint8 [n, 28, 28, 1] -> float32 [n, 16]."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) * np.float32(1 / 255)
    return flat @ projection(SIZE * SIZE, seed=seed)


def classes_of_pixels(
    classes: int, each: int, seed: int = 11, noise: int = 40
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy copies of random pictures: uint8 [classes * each, 28, 28, 1], int64 labels."""
    generator = np.random.default_rng(seed)
    means = generator.integers(0, 256, (classes, 1, SIZE, SIZE, 1))
    drawn = means + generator.integers(-noise, noise + 1, (classes, each, SIZE, SIZE, 1))
    pixels = np.clip(drawn, 0, 255).astype(np.uint8).reshape(-1, SIZE, SIZE, 1)
    return pixels, np.repeat(np.arange(classes), each)


def _finish(
    graph: onnx.GraphProto,
    weights: NDArray[np.float32],
    contract: ImageInput | TensorInput,
    modality: str,
    name: str,
    version: str,
    metric: Metric,
    calibrated: bool,
) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data = model.SerializeToString(deterministic=True)
    calibrations = ()
    if calibrated:
        pixels, labels = classes_of_pixels(60, 8, noise=200)
        pairs = pair_distances(embed_pixels(pixels), labels, metric)
        calibrations = (calibrate(pairs, precision="fp32", dimension=DIMENSION, metric=metric),)
    digest = hashlib.sha256(weights.tobytes()).hexdigest()
    manifest = Manifest(
        name=name,
        version=version,
        modality=modality,
        input=contract,
        dimension=DIMENSION,
        normalized=False,
        metric=metric,
        space_id=manifests.space_id(digest, contract, DIMENSION, False),
        graph_digest=manifests.digest_of_graph(data),
        calibrations=calibrations,
    )
    return manifests.attach(data, manifest)
