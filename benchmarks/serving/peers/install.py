"""Makes an environment for each published peer, in a folder of your choice.

    .venv/bin/python -m benchmarks.serving.peers.install runs/peers --python /usr/bin/python3

Each has its own, since they pin each other's dependencies away. One that cannot be installed is
named, and the benchmark then reports it as absent. PyTriton 0.7 brings an interpreter of 3.11 that
fails on the standard library of later releases of 3.11: Debian 12's 3.11.2 suits it, 3.11.7 does
not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "mosec": "mosec",
    "litserve": "litserve",
    "pytriton": "nvidia-pytriton",
    "bentoml": "bentoml",
}
# What the shared `twin` needs.
BESIDE = ("numpy", "onnxruntime", "tokenizers")


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
        command = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
        if subprocess.run([*command, PACKAGES[name], *BESIDE], check=False).returncode:
            missing.append(name)
    if missing:
        sys.exit(f"could not be installed: {', '.join(missing)}; remove their folders to try again")


if __name__ == "__main__":
    main()
