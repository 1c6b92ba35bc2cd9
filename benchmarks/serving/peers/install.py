"""Makes an environment for each published peer, in a folder of your choice.

    .venv/bin/python -m benchmarks.serving.peers.install runs/peers --python /usr/bin/python3

Each has its own, since they pin each other's dependencies away. One that cannot be installed is
named, and the benchmark then reports it as absent. PyTriton 0.7 brings an interpreter of 3.11 that
fails on the standard library of later releases of 3.11: Debian 12's 3.11.2 suits it, 3.11.7 does
not.
"""

from __future__ import annotations

from benchmarks.serving.environments import install

# What the shared `twin` needs.
BESIDE = ("numpy", "onnxruntime", "tokenizers")
PACKAGES = {
    "mosec": ["mosec", *BESIDE],
    "litserve": ["litserve", *BESIDE],
    "pytriton": ["nvidia-pytriton", *BESIDE],
    "bentoml": ["bentoml", *BESIDE],
}


if __name__ == "__main__":
    install(__doc__ or "", PACKAGES)
