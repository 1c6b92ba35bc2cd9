"""What every peer runs: one request's bytes to a row, rows to embeddings.

Needs numpy, onnxruntime and tokenizers alone, since it runs in the peers' own environments. The
settings come in the environment variable TWIN as JSON, since most peers start processes that get
no arguments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MAX_BATCH = 64
# What pads a text; all of BERT's family calls it 0, and the mask makes it nothing.
PAD = 0


class Twin:
    """A twin file in onnxruntime.

    Args:
        path: the twin file, an ordinary ONNX model.
        threads: of one run.
        spinning: whether the threads of a run spin while they wait for work.
        tokenizer: path of the tokenizer.json of a text twin; None takes pixels.
    """

    def __init__(self, path: str, threads: int, spinning: bool, tokenizer: str | None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        inputs = self.session.get_inputs()
        self.names = [one.name for one in inputs]
        self.shape = tuple(inputs[0].shape[1:])
        self.tokenizer: Any = None
        if tokenizer is not None:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(tokenizer)
            self.tokenizer.no_padding()

    @classmethod
    def from_environment(cls) -> Twin:
        """Open the twin that the variable TWIN describes."""
        return cls(**json.loads(os.environ["TWIN"]))

    def row(self, body: bytes) -> NDArray[Any]:
        """Turn the bytes of one input, pixels or UTF-8, into uint8 [h, w, c] or int64 [length]."""
        if self.tokenizer is None:
            return np.frombuffer(body, np.uint8).reshape(self.shape)
        return np.array(self.tokenizer.encode(body.decode()).ids, np.int64)

    def run(self, rows: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Embed rows as one batch, texts padded to the longest: float32 [batch, dimension]."""
        (embeddings,) = self.session.run(None, self.feed(rows))
        found: NDArray[np.float32] = embeddings
        return found

    def feed(self, rows: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Lay rows out as one batch."""
        if self.tokenizer is None:
            return {self.names[0]: np.stack(rows)}
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), PAD, np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: known[name] for name in self.names}
