"""Takes out of a graph what is not needed to run it: notes, paths, stack traces, inner shapes.

So that equal twins give equal bytes, and that a file says nothing of the machine that made it.
"""

from __future__ import annotations

from typing import Any

import onnx

import twinserve


def strip(model: onnx.ModelProto) -> None:
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
