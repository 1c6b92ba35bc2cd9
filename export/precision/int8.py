"""int8 forms of a graph: static QDQ by onnxruntime's quantiser, around the nodes that do the work.

Weights are int8 per channel, activations uint8 in ranges found once, on rows of the training part.
Ranges found anew in each run ("dynamic") would span the whole batch, so that an embedding changed
with the company it is computed in: on MiniLM as much as through int8 itself. Here it does not.

One thing to know: weights use 7 of their 8 bits (`reduce_range`). x86 processors without VNNI add
two uint8-int8 products in 16 bits, and 2 * 255 * 127 does not fit: with full weights the sum
saturates in silence and embeddings differ from machine to machine. 2 * 255 * 64 fits, so the file
means the same everywhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from twinserve.errors import GateFailed
from twinserve.export.precision.cost import CONVOLUTIONS, PRODUCTS, multiply_adds
from twinserve.export.precision.joining import join
from twinserve.export.precision.smoothing import smooth
from twinserve.export.precision.watching import feeds
from twinserve.export.strip import strip
from twinserve.feed import Feed, Rows
from twinserve.manifest import InputContract
from twinserve.train.data import take
from twinserve.train.quiet import quiet

# Rows whose activations set the ranges: a seeded draw of those given.
RANGE_ROWS = 128
# A convolution of so few channels (of pixels, that is) gains nothing from int8 and loses most.
PIXEL_CHANNELS = 4
# What may stay uint8 between two quantised convolutions.
_PASSED_ON = ("Relu", "MaxPool", "Add")


class Quantiser:
    """Makes int8 forms of one graph, with any of its nodes left in float.

    Args:
        model: serialised in fp32.
        contract: of the rows.
        rows: real ones, of the training part if there is one; a seeded draw of `RANGE_ROWS` of
            them sets the ranges.

    Raises:
        GateFailed: a graph with nothing in it to quantise.
    """

    def __init__(self, model: bytes, contract: InputContract, rows: Rows) -> None:
        self._contract = contract
        self._rows = _drawn(rows)
        self._model = _optimised(model)
        join(self._model.graph)
        self._ranges: bytes | None = None  # found with the first form, and the same in each
        self.costs = multiply_adds(self._model, contract, self._rows)
        self.candidates = _candidates(self._model.graph, self.costs)
        if not self.candidates:
            raise GateFailed(
                "int8 needs convolutions or products with constant matrices, and the graph has "
                "none; leave it in fp32",
                metadata={"figure": "nodes"},
            )
        smooth(self._model, contract, self._rows, self.candidates)

    @property
    def range_rows(self) -> int:
        """How many rows set the ranges."""
        return len(self._rows)

    def share(self, in_float: Collection[str] = ()) -> float:
        """Return the share of multiply-adds done in int8, if these candidates stay in float."""
        lowered = sum(self.costs[name] for name in self.candidates if name not in in_float)
        return lowered / sum(self.costs.values())

    def quantise(self, in_float: Collection[str] = ()) -> bytes:
        """Return the graph in int8; equal inputs give equal bytes.

        Args:
            in_float: names of candidates that stay in float.
        """
        lowered = [name for name in self.candidates if name not in in_float]
        if self._ranges is None and in_float:
            self.quantise()  # ranges are found with all candidates in their places
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        _order_pooling(model.graph, lowered)
        with tempfile.TemporaryDirectory() as folder, quiet():
            given, taken, ranges = (Path(folder, name) for name in ("given", "taken", "ranges"))
            given.write_bytes(model.SerializeToString())
            if self._ranges is not None:
                ranges.write_bytes(self._ranges)
            quantize_static(
                str(given),
                str(taken),
                _Reader(self._rows, self._contract),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*CONVOLUTIONS, *PRODUCTS, *_PASSED_ON],
                nodes_to_quantize=[*lowered, *_passed_on(model.graph, lowered)],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
                # What a product gives meets floats next: additions, norms, soft-maxima.
                extra_options={"OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
                calibration_cache_path=ranges,
            )
            self._ranges = ranges.read_bytes()
            quantised = onnx.load(str(taken))
        _drop_unused_domains(quantised)
        strip(quantised)
        return bytes(quantised.SerializeToString(deterministic=True))


def _optimised(model: bytes) -> onnx.ModelProto:
    """Fold and fuse as quantising wants it, and give each node a name of its own."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        given, taken = Path(folder, "given"), Path(folder, "taken")
        given.write_bytes(model)
        # Symbolic shape inference stumbles over optional inputs, and nothing here needs it.
        quant_pre_process(str(given), str(taken), skip_symbolic_shape=True)
        optimised = onnx.load(str(taken))
    _name_nodes(optimised.graph)
    return optimised


def _candidates(graph: onnx.GraphProto, costs: Mapping[str, int]) -> tuple[str, ...]:
    """Name the nodes worth quantising: those of the kind that does most of the work."""
    nodes = {node.name: node for node in graph.node if node.name in costs}
    convolved = sum(cost for name, cost in costs.items() if nodes[name].op_type in CONVOLUTIONS)
    kinds = CONVOLUTIONS if 2 * convolved > sum(costs.values()) else PRODUCTS
    weights = {weight.name: weight for weight in graph.initializer}
    return tuple(
        name
        for name, node in nodes.items()
        if node.op_type in kinds
        and not (kinds is CONVOLUTIONS and _input_channels(node, weights) <= PIXEL_CHANNELS)
    )


def _passed_on(graph: onnx.GraphProto, lowered: Collection[str]) -> list[str]:
    """Name the nodes that pass on what lowered ones give, and so may stay in uint8.

    After a node in float they may not: onnxruntime pools uint8 fast only in the layout in which its
    own int8 convolutions leave it, and otherwise a hundred times slower.
    """
    flowing: set[str] = set()  # values in uint8
    passed = []
    for node in graph.node:
        if node.op_type in _PASSED_ON and flowing.intersection(node.input):
            passed.append(node.name)
            flowing.update(node.output)
        elif node.name in lowered and node.op_type in CONVOLUTIONS:
            flowing.update(node.output)  # a product gives floats
    return passed


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Rows as onnxruntime's calibrators ask for them."""

    def __init__(self, rows: Rows, contract: InputContract) -> None:
        self._feeds = feeds(rows, contract)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _drawn(rows: Rows) -> Rows:
    if len(rows) <= RANGE_ROWS:
        return rows
    return take(rows, np.sort(np.random.default_rng(0).permutation(len(rows))[:RANGE_ROWS]))


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own: they are told apart by it."""
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _order_pooling(graph: onnx.GraphProto, lowered: Collection[str]) -> None:
    """Put ReLU before max pooling behind a convolution in int8, and after it behind one in float.

    The two commute, so no value changes. In int8, a ReLU right behind a convolution costs nothing,
    and no numbers are spent on what is negative. In float, onnxruntime would move the quantising
    ahead of a pooling that comes last, into a layout in which pooling uint8 is some fifty times
    slower.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in graph.node for name in node.output}
    given = {value.name for value in graph.output}
    for first in graph.node:
        maker = makers.get(first.input[0]) if first.input else None
        if maker is None or maker.op_type not in CONVOLUTIONS or first.output[0] in given:
            continue
        wanted = ("Relu", "MaxPool") if maker.name in lowered else ("MaxPool", "Relu")
        following = readers.get(first.output[0], [])
        if len(following) == 1 and (following[0].op_type, first.op_type) == wanted:
            _exchange(first, following[0])
    del graph.value_info[:]  # shapes between the two


def _exchange(first: onnx.NodeProto, second: onnx.NodeProto) -> None:
    """Let two nodes do each other's work, each at its own place."""
    kept = onnx.NodeProto()
    kept.CopyFrom(first)
    for node, other in ((first, second), (second, kept)):
        node.op_type, node.name = other.op_type, other.name
        del node.attribute[:]
        node.attribute.extend(other.attribute)


def _input_channels(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> int:
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    return int(weights[node.input[1]].dims[1] * groups)


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Leave only the operator sets that are used, so that other tools open the file."""
    used = {node.domain for node in model.graph.node} | {""}
    kept: list[Any] = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
