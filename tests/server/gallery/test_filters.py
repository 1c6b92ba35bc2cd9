"""What is wrong with a filter is said with its place in the request."""

from __future__ import annotations

import pytest

from twinserve.errors import InvalidInput, UndeclaredKey
from twinserve.server.gallery import (
    All,
    Any_,
    AnyOf,
    Clause,
    Equals,
    Exists,
    Filter,
    InRange,
    MetadataType,
    Not,
)
from twinserve.server.gallery.filters import check_filter

DECLARED = {
    "count": MetadataType.INTEGER,
    "weight": MetadataType.NUMBER,
    "seen": MetadataType.FLAG,
}
GOOD = Clause("count", Equals(1))


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (Clause("size", Exists()), "filter.clause.key"),
        (Clause("count", Equals("1")), "filter.clause.equals"),
        (Clause("weight", AnyOf((0.5, 1))), "filter.clause.any_of.values[1]"),
        (Clause("count", InRange(at_least="1")), "filter.clause.range.at_least"),
        (Clause("count", InRange(at_least=1, below=2.5)), "filter.clause.range.below"),
        (Clause("count", InRange()), "filter.clause.range"),
        (Clause("seen", InRange(at_least=True)), "filter.clause.range"),
        (Not(Clause("size", Exists())), "filter.not.clause.key"),
        (
            All((GOOD, Any_((GOOD, GOOD, Not(Clause("count", Equals("1"))))))),
            "filter.all.filters[1].any.filters[2].not.clause.equals",
        ),
    ],
)
def test_an_error_names_the_part_of_the_filter_it_is_in(wanted: Filter, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_filter(wanted, DECLARED)
    assert caught.value.field == field
    assert isinstance(caught.value, UndeclaredKey) == field.endswith(".key")


def test_a_filter_of_good_parts_passes() -> None:
    check_filter(All((GOOD, Not(Any_((GOOD, Clause("seen", Equals(True))))))), DECLARED)
