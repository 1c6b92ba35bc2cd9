"""Joins products of one input with several matrices into one product, without changing its value.

A transformer makes queries, keys and values of one input. In int8 one wide product costs less than
three narrow ones: the input is gone through once, and so are the sums after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

Joined = tuple[onnx.NodeProto, onnx.NodeProto]  # a product, and the sum with its bias


def join(graph: onnx.GraphProto) -> None:
    """Join MatMul nodes that share an input, each with a constant matrix and its own bias after it,
    in place; the values behind the biases keep their names.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    groups: dict[str, list[Joined]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            bias = _bias_after(node, readers, weights)
            if bias is not None and len(weights[node.input[1]].dims) == 2:
                groups.setdefault(node.input[0], []).append((node, bias))
    instead: dict[str, list[onnx.NodeProto]] = {}  # of nodes, by name
    for value, pairs in groups.items():
        if len(pairs) > 1:
            instead.update({node.name: [] for pair in pairs for node in pair})
            # What the first product needs is there; whoever reads a sum comes later.
            instead[pairs[0][0].name] = _joined(graph, value, pairs, weights)
    nodes = [new for node in graph.node for new in instead.get(node.name, [node])]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    for weight in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(weight)


def _bias_after(
    node: onnx.NodeProto,
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    weights: Mapping[str, onnx.TensorProto],
) -> onnx.NodeProto | None:
    """Return the only reader of a product, if it adds a constant to each column."""
    following = readers.get(node.output[0], [])
    if len(following) != 1 or following[0].op_type != "Add":
        return None
    constants = [weights[name] for name in following[0].input if name in weights]
    columns = weights[node.input[1]].dims[-1:]
    return following[0] if [list(one.dims) for one in constants] == [list(columns)] else None


def _joined(
    graph: onnx.GraphProto,
    value: str,
    pairs: Sequence[Joined],
    weights: Mapping[str, onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """Return the nodes that give the sums of all pairs, and put their constants into the graph."""
    matrices = [numpy_helper.to_array(weights[product.input[1]]) for product, _ in pairs]
    biases = [
        numpy_helper.to_array(weights[name])
        for _, add in pairs
        for name in add.input
        if name in weights
    ]
    widths = np.array([matrix.shape[1] for matrix in matrices], dtype=np.int64)
    named = f"{pairs[0][0].name} joined"
    for name, array in (
        (f"{named} matrix", np.concatenate(matrices, axis=1)),
        (f"{named} bias", np.concatenate(biases)),
        (f"{named} widths", widths),
    ):
        graph.initializer.append(numpy_helper.from_array(array, name))
    make = onnx.helper.make_node
    return [
        make("MatMul", [value, f"{named} matrix"], [f"{named} product"], name=named),
        make("Add", [f"{named} product", f"{named} bias"], [f"{named} sum"], name=f"{named} add"),
        make(
            "Split",
            [f"{named} sum", f"{named} widths"],
            [add.output[0] for _, add in pairs],
            name=f"{named} split",
            axis=-1,
        ),
    ]
