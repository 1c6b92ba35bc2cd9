"""Surgery on a foreign ONNX graph: a twin's inputs in front, pooling and unit length behind.

In: a model of any recent opset. Out: the same nodes between our own, with the inputs of
`feed.input_names` and the one output `embedding`. The foreign names move under "source/", so that
none can clash with ours. What is added here is checked by the gate, which runs the untouched model
in onnxruntime and does the rest in numpy and torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from twinserve.errors import ConfigError, DataError
from twinserve.export.signature import BATCH, LENGTH
from twinserve.export.strip import strip
from twinserve.manifest import IMAGE, OUTPUT, TENSOR, ImageInput, TensorInput
from twinserve.train.encoders import Dense
from twinserve.train.heads import NORM_EPS

# Below it, axes and the like are given in ways that would need a second form of all that follows.
MIN_OPSET = 13
_PREFIX = "source/"
# As in train.pooling: below all that a network gives, and finite in fp16.
_LOWEST = -65504.0


class Surgery:
    """One graph under change; call `finish` last.

    Args:
        model: the foreign one, which is left as it is.

    Raises:
        DataError: an opset so old that it cannot be brought up.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        if _opset(model) < MIN_OPSET:
            model = _brought_up(model)
        self.opset = _opset(model)
        self.model = compose.add_prefix(model, _PREFIX)
        self._before: list[onnx.NodeProto] = []
        self._after: list[onnx.NodeProto] = []
        self._count = 0
        self._inputs: list[onnx.ValueInfoProto] = []

    # What goes in.

    def take_texts(self, names: Sequence[tuple[str, str, int]]) -> None:
        """Feed the contract's text inputs: (our name, the graph's name, its element type) each."""
        for ours, theirs, kind in names:
            self._declare(ours, TensorProto.INT64, [BATCH, LENGTH])
            self._feed(ours, theirs, kind, TensorProto.INT64)

    def take_vectors(self, contract: TensorInput, theirs: str, kind: int) -> None:
        """Feed arrays of the contract's shape and type."""
        given = helper.np_dtype_to_tensor_dtype(np.dtype(contract.data_type))
        self._declare(TENSOR, given, [BATCH, *contract.shape])
        self._feed(TENSOR, theirs, kind, given)

    def take_pixels(
        self,
        contract: ImageInput,
        theirs: str,
        kind: int,
        *,
        channels_first: bool,
        crop: tuple[int, int] | None,
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Feed pixels: uint8 [batch, height, width, channels], scaled, less mean, by std."""
        self._declare(
            IMAGE, TensorProto.UINT8, [BATCH, contract.height, contract.width, contract.channels]
        )
        value = IMAGE
        if crop is not None:
            top = (contract.height - crop[0]) // 2
            left = (contract.width - crop[1]) // 2
            value = self._node(
                "Slice",
                [
                    value,
                    self._ints([top, left]),
                    self._ints([top + crop[0], left + crop[1]]),
                    self._ints([1, 2]),
                ],
                before=True,
            )
        if channels_first:
            value = self._node("Transpose", [value], perm=[0, 3, 1, 2], before=True)
        if kind != TensorProto.UINT8:
            shape = (-1, 1, 1) if channels_first else (-1,)
            value = self._node("Cast", [value], to=TensorProto.FLOAT, before=True)
            value = self._node("Mul", [value, self._floats(scale)], before=True)
            if any(mean):
                value = self._node("Sub", [value, self._floats(mean, shape)], before=True)
            if any(entry != 1.0 for entry in std):
                value = self._node("Div", [value, self._floats(std, shape)], before=True)
        self._feed(value, theirs, kind, TensorProto.UINT8 if kind == TensorProto.UINT8 else 1)

    # What comes out.

    def output(self, name: str, kind: int) -> str:
        """Return the graph's output of this name as float32."""
        value = _PREFIX + name
        return value if kind == TensorProto.FLOAT else self._cast(value)

    def places(self, states: str) -> str:
        """Lay a feature map out as states: [batch, width, rows, columns] -> [batch, n, width]."""
        flat = self._node("Reshape", [states, self._ints([0, 0, -1])])
        return self._node("Transpose", [flat], perm=[0, 2, 1])

    def flat(self, vectors: str) -> str:
        """Drop trailing axes of one: [batch, width, 1, 1] -> [batch, width]."""
        return self._node("Flatten", [vectors], axis=1)

    def pool(self, states: str, mask: str, modes: Sequence[str]) -> str:
        """Pool token states [batch, length, width] by each mode of `train.pooling`."""
        counted = self._cast(mask)  # [batch, length]
        pooled = [getattr(self, f"_{mode}")(states, counted) for mode in modes]
        return pooled[0] if len(pooled) == 1 else self._node("Concat", pooled, axis=-1)

    def pool_places(self, states: str, mode: str) -> str:
        """Pool a picture's states [batch, n, width], all of which count: cls, mean or max."""
        if mode == "cls":
            return self._cls(states, "")
        return self._reduce("ReduceMean" if mode == "mean" else "ReduceMax", states, 1)

    def dense(self, vectors: str, layer: Dense) -> str:
        """Add a layer behind pooling."""
        inputs = [vectors, self._array(layer.weight.numpy())]
        if layer.bias is not None:
            inputs.append(self._array(layer.bias.numpy()))
        value = self._node("Gemm", inputs, transB=1)
        match layer.activation:
            case "Identity":
                return value
            case "Tanh":
                return self._node("Tanh", [value])
            case "ReLU":
                return self._node("Relu", [value])
            case "Sigmoid":
                return self._node("Sigmoid", [value])
            case "SiLU":
                return self._node("Mul", [value, self._node("Sigmoid", [value])])
            case "GELU":
                half = self._node("Mul", [value, self._floats(0.5)])
                inner = self._node("Mul", [value, self._floats(1 / math.sqrt(2))])
                shifted = self._node("Add", [self._node("Erf", [inner]), self._floats(1.0)])
                return self._node("Mul", [half, shifted])
        raise ConfigError(f"the activation {layer.activation!r} has no form in ONNX here")

    def cut(self, vectors: str, dimension: int) -> str:
        """Keep the leading coordinates."""
        bounds = [self._ints([0]), self._ints([dimension]), self._ints([1])]
        return self._node("Slice", [vectors, *bounds])

    def unit(self, vectors: str) -> str:
        """Scale rows to length one."""
        squares = self._node("Mul", [vectors, vectors])
        norm = self._node("Sqrt", [self._sum(squares, 1, keep=1)])
        return self._node("Div", [vectors, self._node("Max", [norm, self._floats(NORM_EPS)])])

    def finish(self, vectors: str, dimension: int) -> bytes:
        """Make `vectors` the one output, drop all that does not lead there, and serialise.

        Two equal models give equal bytes.
        """
        self._after.append(helper.make_node("Identity", [vectors], [OUTPUT]))
        graph = self.model.graph
        nodes = [*self._before, *graph.node, *self._after]
        nodes, used = _leading_to(OUTPUT, nodes)
        weights = [weight for weight in graph.initializer if weight.name in used]
        sparse = [weight for weight in graph.sparse_initializer if weight.values.name in used]
        del graph.node[:], graph.initializer[:], graph.sparse_initializer[:]
        del graph.input[:], graph.output[:], graph.value_info[:]
        graph.node.extend(nodes)
        for index, node in enumerate(graph.node):
            node.name = f"{index}/{node.op_type}"
        graph.initializer.extend(weights)
        graph.sparse_initializer.extend(sparse)
        graph.input.extend(self._inputs)
        graph.output.append(
            helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, dimension])
        )
        strip(self.model)
        return bytes(self.model.SerializeToString(deterministic=True))

    # Poolings, as train.pooling has them: states [batch, length, width], counted [batch, length].

    def _cls(self, states: str, counted: str) -> str:
        return self._node("Gather", [states, self._scalar(0)], axis=1)

    def _mean(self, states: str, counted: str) -> str:
        return self._weighed(states, counted, self._sum(counted, 1, keep=1))

    def _mean_sqrt_len(self, states: str, counted: str) -> str:
        return self._weighed(states, counted, self._node("Sqrt", [self._sum(counted, 1, keep=1)]))

    def _weightedmean(self, states: str, counted: str) -> str:
        weights = self._node("Mul", [self._places_of(counted), counted])
        return self._weighed(states, weights, self._sum(weights, 1, keep=1))

    def _lasttoken(self, states: str, counted: str) -> str:
        # Places rise to the text's length and stay there, so that padding has to be masked again.
        last = self._node("Equal", [self._places_of(counted), self._sum(counted, 1, keep=1)])
        chosen = self._node("Mul", [self._cast(last), counted])
        return self._weighed(states, chosen, self._floats(1.0))

    def _max(self, states: str, counted: str) -> str:
        real = self._node("Cast", [self._across(counted)], to=TensorProto.BOOL)
        hidden = self._node("Where", [real, states, self._floats(_LOWEST)])
        return self._reduce("ReduceMax", hidden, 1)

    def _weighed(self, states: str, weights: str, divisor: str) -> str:
        product = self._node("Mul", [states, self._across(weights)])
        total = self._sum(product, 1, keep=0)
        return self._node("Div", [total, self._node("Max", [divisor, self._floats(1.0)])])

    def _places_of(self, counted: str) -> str:
        return self._node("CumSum", [counted, self._scalar(1)])

    def _across(self, values: str) -> str:
        """[batch, length] -> [batch, length, 1]."""
        return self._node("Unsqueeze", [values, self._ints([2])])

    # Small change.

    def _sum(self, value: str, axis: int, *, keep: int) -> str:
        return self._node("ReduceSum", [value, self._ints([axis])], keepdims=keep)

    def _reduce(self, operation: str, value: str, axis: int) -> str:
        # Of reductions other than ReduceSum, the axes became an input in opset 18.
        if self.opset >= 18:
            return self._node(operation, [value, self._ints([axis])], keepdims=0)
        return self._node(operation, [value], axes=[axis], keepdims=0)

    def _cast(self, value: str) -> str:
        return self._node("Cast", [value], to=TensorProto.FLOAT)

    def _declare(self, name: str, kind: int, shape: list[str | int]) -> None:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def _feed(self, value: str, theirs: str, kind: int, given: int) -> None:
        if kind == given:
            node = helper.make_node("Identity", [value], [_PREFIX + theirs])
        else:
            node = helper.make_node("Cast", [value], [_PREFIX + theirs], to=kind)
        self._before.append(node)

    def _node(self, operation: str, inputs: list[str], *, before: bool = False, **more: Any) -> str:
        self._count += 1
        name = f"twin/{self._count}"
        node = helper.make_node(operation, inputs, [name], **more)
        (self._before if before else self._after).append(node)
        return name

    def _array(self, values: NDArray[Any]) -> str:
        self._count += 1
        name = f"twin/{self._count}"
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _floats(self, values: float | Sequence[float], shape: tuple[int, ...] = ()) -> str:
        array = np.asarray(values, dtype=np.float32)
        return self._array(array.reshape(shape) if shape else array)

    def _ints(self, values: Sequence[int]) -> str:
        return self._array(np.array(values, dtype=np.int64))

    def _scalar(self, value: int) -> str:
        return self._array(np.array(value, dtype=np.int64))


def _opset(model: onnx.ModelProto) -> int:
    return max(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        default=1,
    )


def _brought_up(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # the converter raises what its C++ does
        raise DataError(
            f"the graph has opset {_opset(model)}, twinserve needs {MIN_OPSET}, and it cannot be "
            f"brought up ({str(error)[:200]}); export the model again with a newer opset"
        ) from error


def _leading_to(
    output: str, nodes: Sequence[onnx.NodeProto]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that an output needs, in their order, and all names that they read."""
    needed = {output}
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read_by(node))
    return kept[::-1], needed


def _read_by(node: onnx.NodeProto) -> Iterable[str]:
    """All names that a node reads, those that its inner graphs take from around them included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for entry in inner.node:
                yield from _read_by(entry)
            yield from (value.name for value in inner.output)
