"""Filters: checked against the declared keys, and asked of one item's metadata.

`rows` answers the same question for whole columns at once; the random-operations test holds the
two to each other.
"""

from __future__ import annotations

from collections.abc import Mapping

from twinserve.errors import InvalidInput, UndeclaredKey
from twinserve.server.gallery.metadata import check_value
from twinserve.server.gallery.types import (
    All,
    Any_,
    AnyOf,
    Clause,
    Equals,
    Exists,
    Filter,
    InRange,
    MetadataType,
    MetadataValue,
    Not,
)

MAX_DEPTH = 16
MAX_PARTS = 1_000


def check_filter(wanted: Filter, declared: Mapping[str, MetadataType]) -> None:
    """Refuse a filter that these declared keys cannot answer.

    Raises:
        UndeclaredKey: a clause names a key that was not declared for the gallery.
        InvalidInput: a value of another type than the key's, nested or long beyond the limits.
            The field says where, as the request's filter is nested.
    """
    parts = [(wanted, 1, "filter")]
    seen = 0
    while parts:
        part, depth, field = parts.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_PARTS:
            raise InvalidInput(
                f"the filter is nested deeper than {MAX_DEPTH} or has more than {MAX_PARTS} parts; "
                "simplify it, for example with any_of",
                field="filter",
            )
        if isinstance(part, Clause):
            seen += _check_clause(part, declared, f"{field}.clause")
        elif isinstance(part, Not):
            parts.append((part.filter, depth + 1, f"{field}.not"))
        else:
            kind = "all" if isinstance(part, All) else "any"
            parts.extend(
                (inner, depth + 1, f"{field}.{kind}.filters[{i}]")
                for i, inner in enumerate(part.filters)
            )


def _check_clause(clause: Clause, declared: Mapping[str, MetadataType], field: str) -> int:
    wanted = declared.get(clause.key)
    if wanted is None:
        known = ", ".join(sorted(declared)) or "none"
        raise UndeclaredKey(
            f"the gallery declares no metadata key {clause.key!r}, so it cannot be filtered by; "
            f"declared: {known}",
            field=f"{field}.key",
            metadata={"key": clause.key},
        )
    test = clause.test
    values: dict[str, MetadataValue | None] = {}  # by where they stand in the clause
    if isinstance(test, Equals):
        values = {"equals": test.value}
    elif isinstance(test, AnyOf):
        values = {f"any_of.values[{i}]": value for i, value in enumerate(test.values)}
    elif isinstance(test, InRange):
        values = {"range.at_least": test.at_least, "range.below": test.below}
        if wanted is MetadataType.FLAG:
            raise InvalidInput(
                f"key {clause.key!r} is a flag, which has no range; use equals",
                field=f"{field}.range",
            )
        if test.at_least is None and test.below is None:
            raise InvalidInput(
                f"the range of key {clause.key!r} is open on both sides; use exists",
                field=f"{field}.range",
            )
    for place, value in values.items():
        if value is None:
            continue
        kind = check_value(value)
        if kind is not wanted:
            raise InvalidInput(
                f"key {clause.key!r} is declared as {wanted.value}, and the filter compares it "
                f"with {kind.value} {value!r}",
                field=f"{field}.{place}",
            )
    return len(values)


def matches(wanted: Filter, metadata: Mapping[str, MetadataValue]) -> bool:
    """Whether one item's metadata pass a checked filter."""
    if isinstance(wanted, All):
        return all(matches(part, metadata) for part in wanted.filters)
    if isinstance(wanted, Any_):
        return any(matches(part, metadata) for part in wanted.filters)
    if isinstance(wanted, Not):
        return not matches(wanted.filter, metadata)
    test = wanted.test
    value = metadata.get(wanted.key)
    if isinstance(test, Exists):
        return (value is not None) == test.present
    if value is None:
        return False
    if isinstance(test, Equals):
        return value == test.value
    if isinstance(test, AnyOf):
        return value in test.values
    low, high = test.at_least, test.below
    return (low is None or value >= low) and (high is None or value < high)  # type: ignore[operator]
