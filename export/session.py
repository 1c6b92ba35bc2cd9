"""The graph as serving will run it: bytes in onnxruntime on the CPU, called like the torch twin.

Calibration and the gate measure through this, so that thresholds belong to what is served.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from twinserve.distance import Embeddings
from twinserve.errors import GateFailed
from twinserve.feed import Rows, feed
from twinserve.manifest import OUTPUT, InputContract, TextInput
from twinserve.train.data import take

PROVIDER = "CPUExecutionProvider"
BATCH_SIZE = 64


class GraphSession:
    """An ONNX twin that embeds: rows of its contract -> float32 [batch, dimension].

    Args:
        model: a serialised graph, with or without a manifest.
        contract: which rows it takes; see `twinserve.feed`.
        threads: of one run; None leaves it to onnxruntime.

    Raises:
        GateFailed: onnxruntime cannot load the graph.
    """

    def __init__(self, model: bytes, contract: InputContract, threads: int | None = None) -> None:
        self.contract = contract
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(model, options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's own classes share no public base
            raise GateFailed(
                f"the gate failed: onnxruntime {ort.__version__} cannot load the graph "
                f"({str(error)[:300]}); nothing was written",
                metadata={"figure": "load"},
            ) from error

    @property
    def threads(self) -> int:
        """How many threads one run may use; 0 where onnxruntime chooses."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def __call__(self, rows: Rows) -> Embeddings:
        """Embed rows as one batch, texts padded to the longest.

        Raises:
            GateFailed: the graph does not take this batch.
        """
        try:
            (embeddings,) = self._session.run([OUTPUT], feed(rows, self.contract))
        except Exception as error:  # see above
            raise GateFailed(
                f"the gate failed: the graph refuses a batch of {len(rows)}"
                f"{self._length_of(rows)} ({str(error)[:300]}); nothing was written",
                metadata={"figure": "batch size", "value": str(len(rows))},
            ) from error
        return np.asarray(embeddings)

    def _length_of(self, rows: Rows) -> str:
        if not isinstance(self.contract, TextInput):
            return ""
        return f" with {max(len(row) for row in rows)} tokens"


def embed_all(session: GraphSession, rows: Rows, batch_size: int = BATCH_SIZE) -> Embeddings:
    """Embed any number of rows, at least one, in their order: [n, ...] -> [n, dimension].

    Texts are run sorted by length, so that little is padded.
    """
    if not isinstance(session.contract, TextInput):
        starts = range(0, len(rows), batch_size)
        return np.concatenate([session(rows[start : start + batch_size]) for start in starts])
    order = np.argsort([len(row) for row in rows], kind="stable")
    batches = np.split(order, range(batch_size, len(order), batch_size))
    embeddings = np.concatenate([session(take(rows, batch)) for batch in batches])
    return embeddings[np.argsort(order)]
