"""Metadata on the command line: words become values of the types that a gallery declares.

In: cells of a CSV, and `--filter KEY=VALUE` flags. Out: typed values, and the contract's filter. A
command line has texts only, so the gallery is asked for its keys; a key that it does not declare
stays a text, which the server keeps, or refuses to filter by with the keys that there are.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from twinserve.client import Client
from twinserve.errors import ConfigError, DataError
from twinserve.messages import MetadataValue, to_metadata_value
from twinserve.v1 import shared_pb2

_CONDITION = re.compile(r"(?P<key>[^=<>!]+)(?P<sign>>=|<(?!=)|=)(?P<value>.*)", re.DOTALL)
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_FORMS = {
    "integer": "a whole number, such as 42",
    "number": "a number, such as 0.5",
    "flag": "true or false",
    "time": "a date or time, such as 2026-01-31 or 2026-01-31T12:00:00+02:00",
}


def add_filter_flag(parser: argparse.ArgumentParser) -> None:
    """Add --filter."""
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only items with this value of a declared key; 'KEY>=VALUE' and 'KEY<VALUE' are "
        "ranges; repeat it to ask for all of them, and for any of the values of one KEY=",
    )


def filter_of(client: Client, gallery: str, conditions: Sequence[str]) -> shared_pb2.Filter | None:
    """Return the filter that --filter flags ask for; None where there are none.

    Raises:
        ConfigError: no KEY=VALUE, or a value that its key's type cannot take.
    """
    if not conditions:
        return None
    kinds = client.get_gallery(gallery).metadata_keys
    equal: dict[str, list[shared_pb2.MetadataValue]] = {}
    clauses = []
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None:
            raise ConfigError(
                f"--filter is {condition!r}; write KEY=VALUE, 'KEY>=VALUE' or 'KEY<VALUE'"
            )
        key, sign = found["key"], found["sign"]
        try:
            value = to_metadata_value(typed(found["value"], kinds.get(key, "text")))
        except ValueError as error:
            raise ConfigError(f"--filter {condition}: {key} is {error}") from error
        if sign == "=":
            equal.setdefault(key, []).append(value)
        else:
            bound = {"at_least": value} if sign == ">=" else {"below": value}
            clauses.append(shared_pb2.Clause(key=key, range=shared_pb2.Range(**bound)))
    for key, values in equal.items():
        clauses.append(shared_pb2.Clause(key=key, any_of=shared_pb2.ValueList(values=values)))
    filters = [shared_pb2.Filter(clause=clause) for clause in clauses]
    return shared_pb2.Filter(all=shared_pb2.FilterList(filters=filters))


def typed_row(
    where: str, cells: Mapping[str, str], kinds: Mapping[str, str]
) -> dict[str, MetadataValue]:
    """Return a row's cells as values of the types that a gallery declares for their columns.

    Raises:
        DataError: a cell that its column's type cannot take; `where` says in which row.
    """
    values = {}
    for key, cell in cells.items():
        try:
            values[key] = typed(cell, kinds.get(key, "text"))
        except ValueError as error:
            raise DataError(f"{where}: {key} is {error}, as the gallery declares it") from error
    return values


def shown(values: Mapping[str, MetadataValue]) -> str:
    """Return metadata as one cell of a table."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def typed(word: str, kind: str) -> MetadataValue:
    """Return a word as a value of a declared type; a time without a zone is in UTC.

    Raises:
        ValueError: it is none.
    """
    try:
        match kind:
            case "integer":
                return int(word)
            case "number":
                return float(word)
            case "flag":
                return _FLAGS[word.strip().lower()]
            case "time":
                moment = datetime.fromisoformat(word.strip())
                return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, KeyError):
        raise ValueError(f"{word!r}; give {_FORMS[kind]}") from None
    return word
