"""Errors: programs switch on codes and reasons, so both are complete, stable and distinct."""

from __future__ import annotations

import pytest

from twinserve import errors
from twinserve.errors import Code, LimitExceeded, NotFound, TwinserveError


def tree(root: type[TwinserveError] = TwinserveError) -> list[type[TwinserveError]]:
    found = [root]
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found += tree(child)
    return found


def test_every_error_has_a_reason_of_its_own() -> None:
    reasons = [kind.reason for kind in tree() if kind is not errors.InternalFault]
    assert len(reasons) == len(set(reasons))
    assert all(reason == reason.upper() and " " not in reason for reason in reasons)


def test_every_class_stands_in_the_drawing_at_the_top_of_the_module() -> None:
    drawing = errors.__doc__ or ""
    assert [kind.__name__ for kind in tree() if kind.__name__ not in drawing] == []


def test_children_keep_the_code_of_their_parent() -> None:
    for kind in tree(errors.InvalidInput):
        assert kind.code is Code.INVALID_ARGUMENT
    for kind in tree(NotFound):
        assert kind.code is Code.NOT_FOUND
    for kind in tree(errors.Exhausted):
        assert kind.code is Code.RESOURCE_EXHAUSTED


def test_codes_have_the_numbers_of_google_rpc() -> None:
    from google.rpc import code_pb2

    for code in Code:
        assert code_pb2.Code.Value(code.name) == code.value


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_a_copy_is_a_new_instance_that_says_the_same(kind: type[TwinserveError]) -> None:
    first = kind(
        "too much of it",
        field="inputs[1].image",
        resource=("model", "m"),
        retry_after=2.5,
        metadata={"limit": "7"},
    )
    second = first.again()
    assert second is not first
    assert type(second) is kind
    assert str(second) == "too much of it"
    assert vars(second) == vars(first)
    second.metadata["limit"] = "8"
    assert first.metadata == {"limit": "7"}


def test_an_error_can_be_placed_at_a_field() -> None:
    error = LimitExceeded("too many", metadata={"limit": "3"}).at("pairs[2].first")
    assert error.field == "pairs[2].first"
    assert error.metadata == {"limit": "3"}
