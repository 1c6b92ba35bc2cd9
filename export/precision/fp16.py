"""fp16 forms of a graph: half the bytes, and faster where the hardware has it, which GPUs do.

On a CPU onnxruntime mostly emulates fp16, slower than fp32; the gate measures there all the same.
Inputs and outputs keep their types. What comes before the first weights (pixel normalisation) and
after the last ones (pooling, length) stays in float32, as do nodes whose values on real rows come
near the largest number that fp16 has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from twinserve.errors import GateFailed
from twinserve.export.precision.cost import CONVOLUTIONS, PRODUCTS
from twinserve.export.precision.watching import watch
from twinserve.export.strip import strip
from twinserve.feed import Rows
from twinserve.manifest import InputContract

LARGEST = 65504.0
# Other rows than those watched may reach further.
HEADROOM = 4.0
# Values so large stand for infinity (attention masks), and may be any large number.
AS_GOOD_AS_INFINITE = 1e30
_WEIGHTED = (*CONVOLUTIONS, *PRODUCTS, "Gather", "LayerNormalization")


def to_fp16(model: bytes, contract: InputContract, rows: Rows) -> tuple[bytes, int]:
    """Return the graph in fp16, and how many of its nodes stayed in float32 for their values.

    Args:
        model: serialised in fp32, every node named.
        contract: of the rows.
        rows: real ones, whose values are watched.

    Raises:
        GateFailed: a graph without weights.
    """
    given = onnx.load_from_string(model)
    for index, node in enumerate(given.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    inner = _between_weights(given.graph)
    if not inner:
        raise GateFailed(
            "fp16 needs convolutions or products with constant matrices, and the graph has none; "
            "leave it in fp32",
            metadata={"figure": "nodes"},
        )
    large = _out_of_range(given, contract, rows) & inner
    kept = [node.name for node in given.graph.node if node.name not in inner - large]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers too small for fp16, which the gate judges
        converted = convert_float_to_float16(
            given,
            keep_io_types=True,
            max_finite_val=LARGEST,
            node_block_list=kept,
        )
    _drop_round_trips(converted.graph)
    strip(converted)
    return bytes(converted.SerializeToString(deterministic=True)), len(large)


def _drop_round_trips(graph: onnx.GraphProto) -> None:
    """Let neighbours that stay in float32 meet in float32.

    The converter puts fp16 between any two nodes, where a large value would become infinite.
    """
    halved = {node.output[0]: node.input[0] for node in _casts(graph, onnx.TensorProto.FLOAT16)}
    whole = {
        node.output[0]: halved[node.input[0]]
        for node in _casts(graph, onnx.TensorProto.FLOAT)
        if node.input[0] in halved
    }
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        node.input[:] = [whole.get(name, name) for name in node.input]
    makers = {name: node for node in graph.node for name in node.output}
    for name in outputs & whole.keys():  # an output keeps its name, its maker gives it directly
        maker, inner = makers[whole[name]], whole[name]
        for node in graph.node:
            node.input[:] = [name if one == inner else one for one in node.input]
        maker.output[:] = [name if one == inner else one for one in maker.output]
        graph.node.remove(makers[name])
    read = {name for node in graph.node for name in node.input} | outputs
    unread = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
    for node in unread:
        graph.node.remove(node)


def _casts(graph: onnx.GraphProto, kind: int) -> list[onnx.NodeProto]:
    return [
        node
        for node in graph.node
        if node.op_type == "Cast"
        and any(one.name == "to" and one.i == kind for one in node.attribute)
    ]


def _between_weights(graph: onnx.GraphProto) -> set[str]:
    """Names of nodes that have weights before or at them, and weights behind or at them."""
    constants = {weight.name for weight in graph.initializer}
    weighted = {
        node.name
        for node in graph.node
        if node.op_type in _WEIGHTED and constants.intersection(node.input)
    }
    makers = {name: node for node in graph.node for name in node.output}
    after: set[str] = set()  # in the graph's order every maker comes first
    for node in graph.node:
        sources = {makers[name].name for name in node.input if name in makers}
        if node.name in weighted or sources & after:
            after.add(node.name)
    before: set[str] = set()
    needed: set[str] = set()  # values that lead to weights
    for node in reversed(graph.node):
        if node.name in weighted or needed.intersection(node.output):
            before.add(node.name)
            needed.update(node.input)
    return after & before


def _out_of_range(model: onnx.ModelProto, contract: InputContract, rows: Rows) -> set[str]:
    """Names of nodes that take or give a value too large for fp16."""
    constants = {
        weight.name: numpy_helper.to_array(weight)
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT
    }
    large = {name for name, value in constants.items() if _largest([value]) > LARGEST}
    names = [name for node in model.graph.node for name in node.output if name]
    for values in watch(model, contract, rows, names):
        for name, value in values.items():
            if value.dtype == np.float32 and _largest([value]) > LARGEST / HEADROOM:
                large.add(name)
    return {
        node.name for node in model.graph.node if large.intersection([*node.input, *node.output])
    }


def _largest(values: Iterable[np.ndarray]) -> float:
    """The largest absolute value short of what stands for infinity; NaN counts as infinite."""
    found = 0.0
    for value in values:
        sizes = np.abs(value[np.abs(value) < AS_GOOD_AS_INFINITE])
        found = max(found, float(sizes.max(initial=0.0)))
    return found
