"""Makes the environment in which sentence-transformers' trainer stands beside ours.

    .venv/bin/python -m benchmarks.training_peers runs/training-peers

It holds sentence-transformers and what its trainer takes, and sees the project's own packages
behind them, so that both trainers run on the same torch and transformers. The project itself never
depends on it.
"""

from __future__ import annotations

from benchmarks.serving.environments import install

PACKAGES = {"sentence-transformers": ["sentence-transformers>=6", "datasets", "accelerate"]}


if __name__ == "__main__":
    install(__doc__ or "", PACKAGES, beside_ours=True)
