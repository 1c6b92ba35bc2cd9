"""What flows through a graph on real rows: the values between its nodes, batch by batch.

In: a graph and rows. Out: arrays by the names of the values asked for. Value ranges, shapes and the
cost of nodes are all read off these, so that no shape inference has to guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from twinserve.export.session import PROVIDER
from twinserve.feed import Feed, Rows, feed
from twinserve.manifest import InputContract, TextInput

BATCH_SIZE = 16


def feeds(rows: Rows, contract: InputContract, size: int = BATCH_SIZE) -> Iterator[Feed]:
    """Lay rows out in batches, texts by length, so that little is padding."""
    ordered: Rows = rows
    if isinstance(contract, TextInput):
        ordered = sorted(rows, key=len)
    for start in range(0, len(ordered), size):
        yield feed(ordered[start : start + size], contract)


def watch(
    model: onnx.ModelProto, contract: InputContract, rows: Rows, names: Sequence[str]
) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Run rows through a graph and give the named values of each batch.

    Args:
        model: unoptimised copies of its nodes are run, so that every name stays.
        contract: of the rows.
        rows: at least one.
        names: of values between nodes, or of outputs.
    """
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in opened.graph.output}
    opened.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(opened.SerializeToString(), options, providers=[PROVIDER])
    for batch in feeds(rows, contract):
        yield dict(zip(names, session.run(list(names), batch), strict=True))
