"""Names and versions of what is served."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from twinserve.errors import FailedPrecondition, ModelNotFound
from twinserve.server.models import Models


def engine(name: str, version: str) -> Any:
    """What Models asks of an engine."""
    manifest = SimpleNamespace(version=version, space_id=f"sp_{name}_{version}")
    return SimpleNamespace(name=name, version=f"{name}@{version}", manifest=manifest)


def test_the_bare_name_is_the_newest_version_by_its_numbers() -> None:
    models = Models([engine("a", "1.10.0"), engine("a", "1.9.0"), engine("a-b", "1")])
    assert models.resolve("a").version == "a@1.10.0"
    assert models.resolve("a@1.9.0").version == "a@1.9.0"
    assert [one.version for one in models] == ["a@1.9.0", "a@1.10.0", "a-b@1"]


def test_no_name_is_the_only_model_and_else_asks_for_one() -> None:
    assert Models([engine("a", "1")]).resolve("").version == "a@1"
    with pytest.raises(ModelNotFound, match="a@1, b@1") as refused:
        Models([engine("b", "1"), engine("a", "1")]).resolve("", "gallery.model")
    assert refused.value.field == "gallery.model"


def test_the_same_version_twice_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="given twice"):
        Models([engine("a", "1"), engine("a", "1")])
