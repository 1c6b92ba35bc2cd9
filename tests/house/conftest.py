"""Ways to the files that the house's tests read: the root and the scripts in tools/."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """Give the repository's root."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tool(root: Path) -> Callable[[str], ModuleType]:
    """Load a script of tools/ as a module, by its file's name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            f"tools_{name}", root / "tools" / f"{name}.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load
