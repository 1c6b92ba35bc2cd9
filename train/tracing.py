"""From a twin in torch to an ONNX model, as torch's own exporter writes it.

In: a twin in eval mode. Out: the model, with its batch and a text's length open unless the module
insists on one; `export.to_onnx` cleans it. Stands here, not with the exporter, so that a training
can try a twin of the user's own before its first step: an operation that ONNX lacks would otherwise
show after hours. What cannot be written is told with the operation and the user's own line.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from twinserve.errors import GateFailed
from twinserve.feed import input_names
from twinserve.manifest import ImageInput, InputContract, TextInput
from twinserve.train.quiet import quiet
from twinserve.train.twins import Twin

if TYPE_CHECKING:  # torch brings it when it exports, and most trainings do not
    import onnx

OPSET = 20
BATCH, LENGTH = "batch", "length"
# The exporter names a look-up "embedding" too, and does not see that the output is called so.
OUTPUT = "output of the twin"

# A batch or a length of one would be taken for a constant and burnt into the graph; equal ones
# would be taken for the same axis.
_TRACED_BATCH = 3
_TRACED_LENGTH = 7
_NODE = re.compile(r"translating node %(\w+)")
_OPERATOR = re.compile(r"target=torch\.ops\.([\w.]+)|<OpOverload\(op='([\w.]+)'")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def trace(twin: Twin) -> onnx.ModelProto:
    """Write a twin as an ONNX model; its output is called `OUTPUT`.

    Raises:
        GateFailed: an operation that ONNX lacks, or Python that looks at the values of tensors;
            names the operation and the line where they can be told.
    """
    program: Any = None
    try:
        # The exporter prints the graph of what it cannot trace.
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                _Traced(twin),
                examples(twin.contract),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=list(input_names(twin.contract)),
                output_names=[OUTPUT],
                dynamic_shapes=_open_axes(twin.contract),
                verbose=False,
            )
            model: onnx.ModelProto = program.model_proto
    except Exception as error:  # the exporter wraps whatever a module may raise
        raise GateFailed(
            f"the twin cannot be written as ONNX ({_told(error, twin)}); use operations that ONNX "
            "has, no `if` on the values of tensors, and nothing that fixes the batch or the length",
            metadata={"figure": "export"},
        ) from error
    return model


def fixed_axis(model: onnx.ModelProto, contract: InputContract) -> str | None:
    """Return which axis a module insisted on, with its size, such as "a batch of 3"; or None."""
    names = (BATCH, LENGTH) if isinstance(contract, TextInput) else (BATCH,)
    for value in model.graph.input:
        for name, axis in zip(names, value.type.tensor_type.shape.dim, strict=False):
            if not axis.dim_param:
                return f"a {name} of {axis.dim_value}"
    return None


def examples(contract: InputContract) -> tuple[Tensor, ...]:
    """Return inputs of the contract's shapes and types, one batch, in their order."""
    if isinstance(contract, TextInput):
        shape = (_TRACED_BATCH, min(_TRACED_LENGTH, contract.max_tokens))
        # Ones are valid ids, a full mask, and valid types.
        return tuple(torch.ones(shape, dtype=torch.int64) for _ in contract.inputs)
    if isinstance(contract, ImageInput):
        pixels = (_TRACED_BATCH, contract.height, contract.width, contract.channels)
        return (torch.zeros(pixels, dtype=torch.uint8),)
    kind = getattr(torch, contract.data_type)
    return (torch.zeros((_TRACED_BATCH, *contract.shape), dtype=kind),)


def line_of(text: str) -> str:
    """Return "my_net.py, line 12" of the innermost line in a stack trace that is not torch's."""
    library = Path(torch.__file__).parent
    own = [
        (Path(file), line)
        for file, line in _FRAME.findall(text)
        if not Path(file).is_relative_to(library) and not file.startswith("torch/")
    ]
    return f"{own[-1][0].name}, line {own[-1][1]}" if own else ""


class _Traced(nn.Module):
    """The twin behind one signature, whatever number of inputs it takes."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, *inputs: Tensor) -> Tensor:
        embedding: Tensor = self.twin(*inputs)
        return embedding


def _open_axes(contract: InputContract) -> tuple[tuple[dict[int, Any], ...]]:
    axes = {0: torch.export.Dim(BATCH)}
    if isinstance(contract, TextInput):
        # The longest is named, since positions are learned up to there and no further.
        axes[1] = torch.export.Dim(LENGTH, max=max(2, contract.max_tokens))
    return (tuple(axes for _ in examples(contract)),)


def _told(error: Exception, twin: Twin) -> str:
    """Say what stopped the exporter: the operation and the line, else its own first words."""
    cause = error.__cause__ or error
    said = str(cause).strip()
    place = line_of(said)
    if node := _NODE.search(said):
        place = place or _line_of_node(node[1], twin)
        operators = ["".join(found) for found in _OPERATOR.findall(f"{said} {cause.__cause__}")]
        words = f"ONNX has no {operators[0].removesuffix('.default')}" if operators else said
    elif "data-dependent" in said:
        words = "the Python around it looks at the values of a tensor, which a graph cannot"
    else:
        words = f"{type(cause).__name__}: {said.splitlines()[0][:300] if said else 'no reason'}"
    return f"{words}; {place}" if place else words


def _line_of_node(name: str, twin: Twin) -> str:
    """Find where a node of the exporter's graph was called, by tracing once more."""
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            traced = torch.export.export(
                _Traced(twin),
                examples(twin.contract),
                dynamic_shapes=_open_axes(twin.contract),
                strict=False,
            ).run_decompositions()
    except Exception:  # the sentence does without the line, then
        return ""
    nodes = (node for node in traced.graph.nodes if node.name == name)
    return next((line_of(str(node.meta.get("stack_trace", ""))) for node in nodes), "")
