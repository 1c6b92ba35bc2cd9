"""Names and versions of what is served."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from twinserve.errors import FailedPrecondition, ModelNotFound, SpaceMismatch
from twinserve.server.models.holding import Models
from twinserve.server.models.table import Served, Table


def engine(name: str, version: str, precision: str = "fp32", space: str = "") -> Any:
    """What Models asks of an engine; one truncation to 8 dimensions."""
    space = space or f"sp_{name}_{version}"
    manifest = SimpleNamespace(version=version, space_id=space, precision=precision)
    return SimpleNamespace(
        name=name,
        version=f"{name}@{version}",
        manifest=manifest,
        spaces={space: 16, f"{space}_8": 8},
    )


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


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (engine("a", "1"), "twice; leave one of the two out"),
        (engine("a", "1", "int8"), "in two precisions, fp32 and int8; .* --model a-int8="),
        (engine("a", "1", space="sp_else"), "by two different twins"),
    ],
)
def test_two_files_of_one_name_and_version_are_refused_with_the_way_out(
    other: Any, says: str
) -> None:
    with pytest.raises(FailedPrecondition, match=f"a@1 is given {says}"):
        Models([engine("a", "1"), other])


def test_precisions_under_names_of_their_own_are_served_side_by_side() -> None:
    models = Models([engine("a", "1"), engine("a-int8", "1", "int8", "sp_a_1")])
    assert models.resolve("a").manifest.precision == "fp32"
    assert models.resolve("a-int8").manifest.precision == "int8"


def test_a_gallery_is_served_by_any_precision_of_its_twin_its_own_name_first() -> None:
    full, small = engine("a", "1"), engine("a-int8", "1", "int8", "sp_a_1")
    both = Models([full, small])
    assert both.of_space("a", "sp_a_1") is full
    assert both.of_space("a-int8", "sp_a_1") is small
    assert Models([small]).of_space("a", "sp_a_1") is small
    newer = engine("a", "2")
    assert Models([full, newer]).of_space("a", "sp_a_1") is full, "the name moved on, not the space"


def test_a_truncated_space_is_given_by_the_twin_that_was_trained_for_it() -> None:
    one = engine("a", "1")
    assert Models([engine("b", "1"), one]).of_space("a", "sp_a_1_8") is one


def test_a_space_that_nobody_gives_any_more_is_refused_with_both_ids() -> None:
    with pytest.raises(SpaceMismatch, match=r"sp_old.*sp_a_1") as refused:
        Models([engine("a", "1")]).of_space("a", "sp_old")
    assert refused.value.metadata == {"space_id": "sp_a_1", "wanted_space_id": "sp_old"}


def test_who_found_a_model_in_the_moment_of_its_unload_gets_the_one_after_it() -> None:
    old, new = engine("a", "1"), engine("a", "2")
    models = Models([new])
    after = models.table

    class Unloaded(Served):
        def enter(self) -> bool:
            # Between the look into the table and the hold, the unload has passed.
            models.table = after
            assert self.retire(0.0)
            return super().enter()

    models.table = Table((Unloaded(old),))
    with models.using("a") as held:
        assert held is new


def test_a_retired_model_is_idle_once_the_last_holder_has_left() -> None:
    one = Served(engine("a", "1"))
    assert one.enter()
    assert one.enter()
    assert not one.retire(0.0)
    assert not one.enter()
    one.leave()
    assert not one.retire(0.0)
    one.leave()
    assert one.retire(0.0)
    one.revive()
    assert one.enter()


def test_an_alias_goes_before_the_newest_version_of_its_name() -> None:
    served = tuple(Served(engine("a", version)) for version in ("1", "2"))
    table = Table(served, {"a": "a@1", "live": "a@2"})
    assert table.find("a").engine.version == "a@1"
    assert table.find("").engine.version == "a@1"
    assert table.find("live").engine.version == "a@2"
    assert table.aliases_of("a@1") == ("a",)
