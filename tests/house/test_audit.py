"""make audit: findings fail, and what could not be looked up is said and does not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KNOWN: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.fixture
def audit(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", root / "tools" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_findings_fail_and_name_what_mends_them(audit: ModuleType) -> None:
    status, said = audit.judge({"dependencies": [KNOWN, BAD, SKIPPED]})
    assert status == 1
    assert said[1] == "b 2: PYSEC-1, mended in 2.1"


def test_packages_that_were_not_looked_up_are_not_called_clean(audit: ModuleType) -> None:
    assert audit.judge({"dependencies": [KNOWN]}) == (
        0,
        ["nothing is known against the 1 pinned packages"],
    )
    status, (said,) = audit.judge({"dependencies": [SKIPPED, SKIPPED]})
    assert status == 0
    assert "2 of 2 pinned packages were not looked up" in said


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        (json.dumps({"dependencies": [BAD]}), 1, "PYSEC-1"),
        ("", 0, "nothing was looked up: pip-audit ended early (no network)"),
    ],
)
def test_an_unreachable_service_is_said_and_is_no_failure(
    audit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    status: int,
    said: str,
) -> None:
    program = tmp_path / "bin" / "pip-audit"
    program.parent.mkdir()
    program.touch()
    monkeypatch.setattr(audit, "VENV", tmp_path)
    done = subprocess.CompletedProcess([], 1, output, "Traceback\nno network")
    monkeypatch.setattr(audit.subprocess, "run", lambda *a, **k: done)
    assert audit.main() == status
    assert said in capsys.readouterr().err
