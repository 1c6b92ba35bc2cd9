"""onnxruntime sends usage data to its maker by default; below twinserve it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SESSION = "import sys, twinserve, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"


def test_a_session_leaves_no_device_id_in_the_home_folder(tmp_path: Path, twin_file: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [sys.executable, "-c", SESSION, str(twin_file)],
        env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=True,
        capture_output=True,
    )
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
