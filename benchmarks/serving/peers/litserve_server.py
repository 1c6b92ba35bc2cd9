"""LitServe: FastAPI in front, workers in processes; JSON both ways, as its users send it."""

from __future__ import annotations

import base64
import os
from typing import Any

import litserve

from benchmarks.serving.peers.twin import MAX_BATCH, Twin


class Embedder(litserve.LitAPI):  # type: ignore[misc]
    """{"input": base64 of one input} in, {"embedding": [...]} out."""

    def setup(self, device: str) -> None:
        self.twin = Twin.from_environment()

    def decode_request(self, request: dict[str, str], **_: Any) -> Any:
        return self.twin.row(base64.b64decode(request["input"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, rows: list[Any], **_: Any) -> Any:
        return self.twin.run(rows)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any, **_: Any) -> dict[str, list[float]]:
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Embedder(max_batch_size=MAX_BATCH, batch_timeout=0.001),
        accelerator="cpu",
        workers_per_device=int(os.environ["WORKERS"]),
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="error",
        generate_client_file=False,
    )
