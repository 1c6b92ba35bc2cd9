"""`twinserve --version`: what an installation is made of, told at once."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import twinserve
from twinserve.cli import version

Run = Callable[..., tuple[int, str, str]]


def test_the_first_line_is_the_version(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"twinserve {twinserve.__version__}"
    for part in ("Python", "onnxruntime", "cpu", "grpcio", "hnswlib", "manifest 1.1", "gallery 2"):
        assert part in out


def test_grpc_prints_no_lines_of_its_own_unless_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "INFO")
    run("--version")
    assert os.environ["GRPC_VERBOSITY"] == "INFO"
    monkeypatch.delenv("GRPC_VERBOSITY")
    run("--version")
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"


def test_the_facts_are_those_of_the_modules_themselves(run: Run) -> None:
    import onnxruntime

    from twinserve import manifest
    from twinserve.server.gallery import store
    from twinserve.server.storage import data_folder

    found = json.loads(run("--version", "--json")[1])
    assert found["version"] == twinserve.__version__
    assert found["onnxruntime"]["version"] == onnxruntime.__version__
    compiled = onnxruntime.get_available_providers()
    assert ("cuda" in found["onnxruntime"]["providers"]) is ("CUDAExecutionProvider" in compiled)
    assert found["packages"]["grpcio"] == importlib.metadata.version("grpcio")
    assert found["formats"]["manifest"] == ".".join(map(str, manifest.SCHEMA))
    assert found["formats"]["gallery"] == store.SCHEMA_VERSION
    assert found["formats"]["catalog"] == data_folder.SCHEMA_VERSION


def test_a_clone_knows_its_commit_and_anything_else_says_that_it_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = Path(twinserve.__file__).parents[1]
    if (root / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", version.facts()["commit"])
        monkeypatch.setitem(sys.modules, "twinserve._build", SimpleNamespace(COMMIT="abc-dirty"))
        monkeypatch.setattr(twinserve, "_build", sys.modules["twinserve._build"], raising=False)
        assert version.facts()["commit"] == "abc-dirty", "a build's goes before the clone's"
        monkeypatch.undo()
    monkeypatch.setattr(version, "__file__", str(tmp_path / "twinserve" / "cli" / "version.py"))
    assert version.facts()["commit"] is None


def test_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import sys\n"
        "from twinserve.cli.__main__ import main\n"
        "main(['--version'])\n"
        "heavy = {'numpy', 'grpc', 'onnxruntime', 'torch', 'hnswlib', 'PIL'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=30)
