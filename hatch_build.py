"""Writes into sdist and wheel which commit they are of: twinserve/_build.py, COMMIT and TIME.

The commit is git's, of this very folder, with `-dirty` behind it where files differ from it; or,
where there is no git (a container's build), that of TWINSERVE_BUILD_COMMIT and _TIME in the
environment. A wheel built from an sdist keeps the sdist's file. TIME is the commit's own (ISO 8601,
UTC), so that building the same commit twice gives the same bytes. A checkout, and an editable
install, has no such file: what it runs is whatever stands there now.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "twinserve/_build.py"


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds one generated file to what is packed, and leaves the tree alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it packs; `version` is `editable` for pip install -e."""
        root = Path(self.root)
        if version == "editable" or (root / PLACE).exists():
            return
        facts = _of_git(root) or _of_environment()
        if facts is None:
            return
        commit, time = facts
        # hatchling reads the file after this returns; the folder goes in `finalize`.
        self.folder = tempfile.TemporaryDirectory()
        written = Path(self.folder.name) / "_build.py"
        written.write_text(
            '"""Which commit this was built from; written by hatch_build.py."""\n\n'
            f"COMMIT = {commit!r}\nTIME = {time!r}\n".replace("'", '"')
        )
        build_data["force_include"][str(written)] = PLACE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling when all is packed."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


def _of_git(root: Path) -> tuple[str, str] | None:
    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "TZ": "UTC", "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        # An unpacked sdist inside of somebody's repository is not of that repository's commit.
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        commit = ask("rev-parse", "HEAD")
        time = ask("log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%cd")
        return commit + ("-dirty" if ask("status", "--porcelain") else ""), time
    except (OSError, subprocess.CalledProcessError):
        return None


def _of_environment() -> tuple[str, str] | None:
    commit = os.environ.get("TWINSERVE_BUILD_COMMIT", "")
    return (commit, os.environ.get("TWINSERVE_BUILD_TIME", "")) if commit else None
