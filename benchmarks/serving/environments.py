"""Makes an environment for each peer that a benchmark compares with, since they pin each other's
dependencies away.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path


def install(
    description: str, packages: Mapping[str, Sequence[str]], *, beside_ours: bool = False
) -> None:
    """Install, as the command line says, what is not there yet.

    Args:
        description: of the command.
        packages: by the name of each peer, what pip is told.
        beside_ours: whether peers see the packages of the environment that runs this behind their
            own, so that both run on one torch, which is not downloaded again.
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
        if beside_ours:
            _see(environment)
        command = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
        if subprocess.run([*command, *packages[name]], check=False, env=settings).returncode:
            missing.append(name)
    if missing:
        sys.exit(f"could not be installed: {', '.join(missing)}; remove their folders to try again")


def _see(environment: Path) -> None:
    """Let an environment import what this one can, its editable packages too."""
    asked = [str(environment / "bin/python"), "-c", "import site; print(site.getsitepackages()[0])"]
    packages = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    ours = sysconfig.get_path("purelib")
    line = f"import site; site.addsitedir({ours!r})\n"
    (Path(packages) / "ours.pth").write_text(line, encoding="utf-8")
