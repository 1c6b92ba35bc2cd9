"""mosec: HTTP with a front end in Rust, workers in processes of their own; raw bytes both ways."""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker

from benchmarks.serving.peers.twin import MAX_BATCH, Twin


class Embedder(Worker):  # type: ignore[misc]
    """Bytes of one input in, float32 out."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = Twin.from_environment()

    def deserialize(self, data: bytes) -> Any:
        return self.twin.row(data)

    def forward(self, data: list[Any]) -> list[Any]:
        return list(self.twin.run(data))

    def serialize(self, data: Any) -> bytes:
        body: bytes = data.tobytes()
        return body


if __name__ == "__main__":
    server = Server()
    # It waits that many milliseconds for more; 1 is the least.
    server.append_worker(
        Embedder, num=int(os.environ["WORKERS"]), max_batch_size=MAX_BATCH, max_wait_time=1
    )
    server.run()
