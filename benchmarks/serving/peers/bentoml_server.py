"""BentoML: ASGI in front, adaptive batching in the service; JSON both ways, as users send it."""

from __future__ import annotations

import base64
import os
from typing import Any

import bentoml

from benchmarks.serving.peers.twin import MAX_BATCH, Twin


@bentoml.service(workers=int(os.environ.get("WORKERS", "1")))
class Embedder:
    """{"inputs": [base64 of one input]} in, a list of embeddings out."""

    def __init__(self) -> None:
        self.twin = Twin.from_environment()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=10_000)  # type: ignore[untyped-decorator]
    def embed(self, inputs: list[str]) -> list[list[float]]:
        found: Any = self.twin.run([self.twin.row(base64.b64decode(one)) for one in inputs])
        embeddings: list[list[float]] = found.tolist()
        return embeddings
