"""int8 forms of a graph, by onnxruntime's quantiser.

Two ways. *Static*, for convolutional nets: weights int8 per channel, activations uint8 in ranges
found on rows of the training part. *Dynamic*, where products with matrices do the work (encoders of
texts, MLPs): the same weights, activations in ranges found anew in each run, since a transformer's
activations have outliers that no fixed range suits.

One thing to know: weights use 7 of their 8 bits (`reduce_range`). x86 processors without VNNI add
two uint8-int8 products in 16 bits, and 2 * 255 * 127 does not fit: with full weights the sum
saturates in silence and embeddings differ from machine to machine. 2 * 255 * 64 fits, so the file
means the same everywhere.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from twinserve.errors import GateFailed
from twinserve.export.precision.cost import CONVOLUTIONS, PRODUCTS, multiply_adds
from twinserve.export.precision.watching import feeds
from twinserve.export.strip import strip
from twinserve.feed import Feed, Rows
from twinserve.manifest import InputContract
from twinserve.train.data import take

# Rows whose activations set the ranges: a seeded draw of those given.
RANGE_ROWS = 128
# A convolution of so few channels (of pixels, that is) gains nothing from int8 and loses most.
PIXEL_CHANNELS = 4
# What may stay uint8 between two quantised convolutions.
_PASSED_ON = ("Relu", "MaxPool", "Add")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A graph ready to be quantised, and what quantising is about in it."""

    model: onnx.ModelProto  # fp32, optimised, each node with a name of its own
    costs: dict[str, int]  # multiply-adds by node, of all convolutions and products
    kept: frozenset[str]  # nodes of `costs` that stay in float in any case
    static: bool

    @property
    def candidates(self) -> tuple[str, ...]:
        """The nodes that may be quantised, in the graph's order."""
        return tuple(name for name in self.costs if name not in self.kept)

    def share(self, in_float: Collection[str] = ()) -> float:
        """Return the share of multiply-adds done in int8, if these nodes are left in float."""
        lowered = sum(self.costs[name] for name in self.candidates if name not in in_float)
        return lowered / max(1, sum(self.costs.values()))


def prepare(model: bytes, contract: InputContract, rows: Rows) -> Prepared:
    """Optimise a graph as quantising wants it, and choose the way.

    Raises:
        GateFailed: a graph with nothing in it to quantise.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, taken = Path(folder, "given.onnx"), Path(folder, "taken.onnx")
        given.write_bytes(model)
        # Symbolic shape inference stumbles over optional inputs, and nothing here needs it.
        quant_pre_process(str(given), str(taken), skip_symbolic_shape=True)
        prepared = onnx.load(str(taken))
    _name_nodes(prepared.graph)
    _rectify_before_pooling(prepared.graph)
    del prepared.graph.value_info[:]  # the shapes of what was turned around
    costs = multiply_adds(prepared, contract, rows)
    if not costs:
        raise GateFailed(
            "int8 needs convolutions or products with constant matrices, and the graph has none; "
            "leave it in fp32",
            metadata={"figure": "nodes"},
        )
    kinds = {node.name: node.op_type for node in prepared.graph.node}
    convolved = sum(cost for name, cost in costs.items() if kinds[name] in CONVOLUTIONS)
    static = 2 * convolved > sum(costs.values())
    channels = {
        node.name: _input_channels(node, prepared.graph)
        for node in prepared.graph.node
        if node.op_type in CONVOLUTIONS
    }
    if static:
        kept = {name for name in costs if channels.get(name, 0) <= PIXEL_CHANNELS}
    else:
        kept = {name for name in costs if kinds[name] not in PRODUCTS}
    if kept == set(costs):
        kept = {name for name in costs if kinds[name] not in CONVOLUTIONS + PRODUCTS}
    return Prepared(prepared, costs, frozenset(kept), static)


def quantise(
    prepared: Prepared, contract: InputContract, rows: Rows, in_float: Collection[str] = ()
) -> bytes:
    """Return the graph in int8; equal inputs give equal bytes.

    Args:
        prepared: of `prepare`.
        contract: of the rows.
        rows: real ones, of the training part if there is one; see `RANGE_ROWS`.
        in_float: names of candidates that stay in float.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, taken = Path(folder, "given.onnx"), Path(folder, "taken.onnx")
        onnx.save(prepared.model, str(given))
        if prepared.static:
            _static(prepared, given, taken, _Reader(_drawn(rows), contract), in_float)
        else:
            _dynamic(prepared, given, taken, in_float)
        quantised = onnx.load(str(taken))
    _drop_unused_domains(quantised)
    strip(quantised)
    return bytes(quantised.SerializeToString(deterministic=True))


def _static(
    prepared: Prepared, given: Path, taken: Path, reader: _Reader, in_float: Collection[str]
) -> None:
    lowered = [name for name in prepared.candidates if name not in in_float]
    passed_on = [node.name for node in prepared.model.graph.node if node.op_type in _PASSED_ON]
    quantize_static(
        str(given),
        str(taken),
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*CONVOLUTIONS, *PRODUCTS, *_PASSED_ON],
        nodes_to_quantize=[*lowered, *passed_on],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )


def _dynamic(prepared: Prepared, given: Path, taken: Path, in_float: Collection[str]) -> None:
    lowered = [name for name in prepared.candidates if name not in in_float]
    quantize_dynamic(
        str(given),
        str(taken),
        op_types_to_quantize=list(PRODUCTS),
        nodes_to_quantize=lowered,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


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


def _rectify_before_pooling(graph: onnx.GraphProto) -> None:
    """Turn max pooling followed by ReLU around, which changes no value.

    A ReLU right behind a convolution costs nothing in int8, and its output needs no range for what
    is negative: the numbers that remain are spent on what counts.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    given = {value.name for value in graph.output}
    for pool in graph.node:
        if pool.op_type != "MaxPool" or len(pool.output) != 1 or pool.output[0] in given:
            continue
        (relu, *others) = readers.get(pool.output[0], [pool])
        if others or relu.op_type != "Relu":
            continue
        # The two nodes change kinds, so that both stay where they stand in the order.
        pooling = onnx.NodeProto()
        pooling.CopyFrom(pool)
        pool.op_type, relu.op_type = "Relu", "MaxPool"
        del pool.attribute[:]
        relu.attribute.extend(pooling.attribute)
        pool.name, relu.name = relu.name, pooling.name


def _input_channels(node: onnx.NodeProto, graph: onnx.GraphProto) -> int:
    for weight in graph.initializer:
        if weight.name == node.input[1]:
            groups = next((one.i for one in node.attribute if one.name == "group"), 1)
            return int(weight.dims[1] * groups)
    return 0


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Leave only the operator sets that are used, so that other tools open the file."""
    used = {node.domain for node in model.graph.node} | {""}
    kept: list[Any] = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice off the user's terminal; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
