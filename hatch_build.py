"""Writes into the package which commit it is built from, for `twinserve --version`.

The commit is told by git, or by TWINSERVE_BUILD_COMMIT where there is no clone (a container's build
stage); in a wheel that is built from an sdist it is the sdist's. Where nobody knows it, nothing is
written.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_MODULE = "twinserve/_build.py"


class CommitHook(BuildHookInterface):
    """Adds `twinserve/_build.py`, without leaving it in the working tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the module to what is built, unless this is an editable installation."""
        commit = os.environ.get("TWINSERVE_BUILD_COMMIT") or self._commit()
        if version == "editable" or commit is None or (Path(self.root) / _MODULE).exists():
            return
        handle, name = tempfile.mkstemp(suffix=".py")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f'"""Written by the build."""\n\nCOMMIT = {commit!r}\n')
        self._written = Path(name)
        build_data["force_include"][name] = _MODULE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary file."""
        written = getattr(self, "_written", None)
        if written is not None:
            written.unlink(missing_ok=True)

    def _commit(self) -> str | None:
        if not (Path(self.root) / ".git").exists():
            return None
        asked = ["git", "-C", self.root, "rev-parse", "--short=12", "HEAD"]
        try:
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
