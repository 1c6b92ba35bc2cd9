"""How much arithmetic each node of a graph does: its multiply-adds per row.

In: a graph and a few rows. Out: multiply-adds by node name, of convolutions and of products with a
constant matrix, which are what int8 kernels take over. Shapes are measured, not inferred.
"""

from __future__ import annotations

import math

import onnx

from twinserve.export.precision.watching import watch
from twinserve.feed import Rows
from twinserve.manifest import InputContract

PRODUCTS = ("MatMul", "Gemm")
CONVOLUTIONS = ("Conv",)


def multiply_adds(model: onnx.ModelProto, contract: InputContract, rows: Rows) -> dict[str, int]:
    """Count the multiply-adds of each node with constant weights, in the graph's order.

    Args:
        model: every node has a name.
        contract: of the rows.
        rows: a few; the longest of texts decides.
    """
    weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type in CONVOLUTIONS + PRODUCTS and node.input[1] in weights
    ]
    if not nodes:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for values in watch(model, contract, rows[-1:], [node.output[0] for node in nodes]):
        shapes = {name: value.shape for name, value in values.items()}
    return {
        node.name: math.prod(shapes[node.output[0]][1:]) * _terms(node, weights[node.input[1]])
        for node in nodes
    }


def _terms(node: onnx.NodeProto, weight: tuple[int, ...]) -> int:
    """Return how many products each element of the output sums."""
    if node.op_type in CONVOLUTIONS:
        return math.prod(weight[1:])  # [outputs, inputs / group, *kernel]
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return weight[-1] if turned else weight[-2]
