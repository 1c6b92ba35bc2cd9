"""Makes an environment for each peer that a benchmark compares with, since they pin each other's
dependencies away.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def install(description: str, packages: Mapping[str, Sequence[str]]) -> None:
    """Install, as the command line says, what is not there yet.

    Args:
        description: of the command.
        packages: by the name of each peer, what pip is told.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable, help="makes the environments")
    parser.add_argument("--peers", nargs="+", choices=packages, default=list(packages))
    given = parser.parse_args()
    # What is compiled is compiled for this very processor.
    settings = {key: value for key, value in os.environ.items() if key != "HNSWLIB_NO_NATIVE"}
    missing = []
    for name in given.peers:
        environment = given.folder / name
        if environment.exists():
            continue
        subprocess.run([given.python, "-m", "venv", str(environment)], check=True)
        command = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
        if subprocess.run([*command, *packages[name]], check=False, env=settings).returncode:
            missing.append(name)
    if missing:
        sys.exit(f"could not be installed: {', '.join(missing)}; remove their folders to try again")
