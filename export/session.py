"""The graph as serving will run it: bytes in onnxruntime on the CPU, called like the torch twin.

Calibration and the gate measure through this, so that thresholds belong to what is served.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from twinserve.distance import Embeddings
from twinserve.errors import GateFailed
from twinserve.manifest import OUTPUT

PROVIDER = "CPUExecutionProvider"
BATCH_SIZE = 64


class GraphSession:
    """An ONNX twin that embeds: uint8 [batch, ...] -> float32 [batch, dimension].

    Raises:
        GateFailed: onnxruntime cannot load the graph.
    """

    def __init__(self, model: bytes) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
        try:
            self._session = ort.InferenceSession(model, options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's own classes share no public base
            raise GateFailed(
                f"the gate failed: onnxruntime {ort.__version__} cannot load the graph "
                f"({str(error)[:300]}); nothing was written",
                metadata={"figure": "load"},
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, inputs: NDArray[np.uint8]) -> Embeddings:
        """Embed one batch as it is.

        Raises:
            GateFailed: the graph does not take this batch.
        """
        try:
            (embeddings,) = self._session.run([OUTPUT], {self._input: inputs})
        except Exception as error:  # see above
            raise GateFailed(
                f"the gate failed: the graph refuses a batch of {len(inputs)} "
                f"({str(error)[:300]}); nothing was written",
                metadata={"figure": "batch size", "value": str(len(inputs))},
            ) from error
        return np.asarray(embeddings)


def embed_all(session: GraphSession, inputs: NDArray[np.uint8]) -> Embeddings:
    """Embed any number of inputs in batches of `BATCH_SIZE`: [n, ...] -> [n, dimension]."""
    starts = range(0, len(inputs), BATCH_SIZE)
    return np.concatenate([session(inputs[start : start + BATCH_SIZE]) for start in starts])
