"""milvus-lite's own gRPC server, asked through pymilvus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import milvus_lite
import pymilvus
from pymilvus import DataType, MilvusClient

from benchmarks.gallery.data import Vectors
from benchmarks.gallery.peers import clients
from benchmarks.gallery.peers.clients import EF_CONSTRUCTION, K, M

NAME = "items"
BATCH = 2_000


class Milvus:
    """One server."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[Any] | None = None
        self._port = clients.free_port()

    def start(self, folder: Path) -> str:
        command = [str(Path(sys.executable).parent / "milvus-lite"), "server"]
        command += ["--data-dir", str(folder), "--port", str(self._port)]
        command += ["--host", "127.0.0.1", "--max-workers", "32"]
        self._server = subprocess.Popen(command)
        clients.await_port(self._port, self._server)
        return f"milvus-lite {milvus_lite.__version__}, pymilvus {pymilvus.__version__}"

    def fill(self, items: Vectors, threads: int) -> None:
        client = _client(self._port)
        schema = client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=items.shape[1])
        graph = client.prepare_index_params()
        graph.add_index(
            "embedding",
            index_type="HNSW",
            metric_type="COSINE",
            params={"M": M, "efConstruction": EF_CONSTRUCTION},
        )
        client.create_collection(NAME, schema=schema)
        for start in range(0, len(items), BATCH):
            rows = [
                {"id": start + number, "embedding": row.tolist()}
                for number, row in enumerate(items[start : start + BATCH])
            ]
            client.insert(NAME, rows)
        client.flush(NAME)
        client.create_index(NAME, graph)
        client.load_collection(NAME)

    def place(self) -> Any:
        return self._port

    def widen(self, ef: int) -> None:
        pass  # each search says it

    def stop(self) -> None:
        clients.end(self._server)


def _client(port: int) -> MilvusClient:
    return MilvusClient(uri=f"http://127.0.0.1:{port}")


def connect(port: int, ef: int) -> clients.Ask:
    """Return a client of its own."""
    client = _client(port)

    def ask(probe: Vectors) -> list[int]:
        found = client.search(
            NAME,
            [probe.tolist()],
            anns_field="embedding",
            limit=K,
            search_params={"params": {"ef": ef}},
        )
        return [hit["id"] for hit in found[0]]

    return ask


if __name__ == "__main__":
    clients.serve(Milvus(), connect)
