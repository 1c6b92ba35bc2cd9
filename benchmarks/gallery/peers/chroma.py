"""Chroma's server, asked through its HTTP client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings

from benchmarks.gallery.data import Vectors
from benchmarks.gallery.peers import clients
from benchmarks.gallery.peers.clients import EF_CONSTRUCTION, K, M

NAME = "items"
BATCH = 2_000


class Chroma:
    """One server."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[Any] | None = None
        self._port = clients.free_port()
        self._ef = 0

    def start(self, folder: Path) -> str:
        self._folder = folder
        self._run()
        return f"Chroma {chromadb.__version__}"

    def _run(self) -> None:
        command = [str(Path(sys.executable).parent / "chroma"), "run", "--path", str(self._folder)]
        # It would write several lines for every search.
        self._server = subprocess.Popen(
            [*command, "--port", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RUST_LOG": "error"},
        )
        clients.await_port(self._port, self._server)

    def fill(self, items: Vectors, threads: int) -> None:
        graph: Any = {"space": "cosine", "ef_construction": EF_CONSTRUCTION, "max_neighbors": M}
        graph["num_threads"] = threads
        collection = _client(self._port).create_collection(
            NAME, configuration={"hnsw": graph}, embedding_function=None
        )
        for start in range(0, len(items), BATCH):
            some = items[start : start + BATCH]
            ids = [str(number) for number in range(start, start + len(some))]
            collection.add(ids=ids, embeddings=some)

    def place(self) -> Any:
        return self._port

    def widen(self, ef: int) -> None:
        if ef != self._ef:
            collection = _client(self._port).get_collection(NAME, embedding_function=None)
            collection.modify(configuration={"hnsw": {"ef_search": ef}})
            # An index that is loaded keeps the breadth that it was loaded with.
            clients.end(self._server)
            self._run()
            self._ef = ef

    def stop(self) -> None:
        clients.end(self._server)


def _client(port: int) -> Any:
    return chromadb.HttpClient("127.0.0.1", port, settings=Settings(anonymized_telemetry=False))


def connect(port: int, ef: int) -> clients.Ask:
    """Return a client of its own."""
    collection = _client(port).get_collection(NAME, embedding_function=None)

    def ask(probe: Vectors) -> list[int]:
        found = collection.query(query_embeddings=[probe], n_results=K, include=[])
        return [int(item_id) for item_id in found["ids"][0]]

    return ask


if __name__ == "__main__":
    clients.serve(Chroma(), connect)
