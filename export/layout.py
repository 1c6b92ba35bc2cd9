"""Plain text in columns, as wide as a terminal likes; for whatever describes a twin to a person."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
_INDENT = 2
_SHOWN_RECORDS = 20
# An object of a document longer than this on one line is laid out below its name.
_LONG = 60


def section(title: str, lines: Sequence[str]) -> str:
    """Return a title with lines below it, indented."""
    return "\n".join([title, *(f"{'':{_INDENT}}{line}".rstrip() for line in lines)])


def rows(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Lay names and values out in two columns; long values go on in the second."""
    width = max((len(key) for key, _ in pairs), default=0)
    lines = []
    for key, value in pairs:
        # A digest is never broken: it would be read wrong, and found by no search.
        first, *others = textwrap.wrap(
            value, WIDTH - width - 2 * _INDENT, break_long_words=False, break_on_hyphens=False
        ) or [""]
        lines += [f"{key:<{width}}  {first}", *(f"{'':<{width}}  {other}" for other in others)]
    return lines


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lay cells out in columns that lean right; a row may be shorter than the head."""
    body = [[*row, *[""] * (len(head) - len(row))] for row in body]
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *body)
    ]


def percent(value: object) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else "unknown"


def words(key: str) -> str:
    """Return a key of a document as words; a file's name stays what it is."""
    return key.replace("_", " ") if key.isidentifier() else key


def plain(value: object) -> str:
    """Return a value of a document on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(value[key])}" for key in sorted(value, key=number_first))
    return "none" if value is None else str(value)


def anything(values: Mapping[str, Any]) -> list[str]:
    """Lay out a part of a document whose form is not known here: nothing of it is left out.

    Plain values become rows, lists of objects tables (of many the first), and objects follow under
    their names.
    """
    simple, nested = [], []
    for key, value in values.items():
        long = len(plain(value)) > _LONG or any(map(_is_nested, mapping(value).values()))
        if isinstance(value, Mapping) and long:
            nested += ["", f"{words(str(key))}:", *(f"  {line}" for line in anything(value))]
        elif _is_table(value):
            nested += ["", f"{words(str(key))}:", *(f"  {line}" for line in _records(value))]
        else:
            simple.append((words(str(key)), plain(value)))
    lines = [*rows(simple), *nested]
    return lines[1:] if lines[:1] == [""] else lines


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object of a document, or an empty one where something else stands there."""
    return value if isinstance(value, Mapping) else {}


def numbers(value: object) -> dict[str, float]:
    """Return the numbers of an object of a document, by their keys."""
    return {key: entry for key, entry in mapping(value).items() if isinstance(entry, int | float)}


def number_first(key: object) -> tuple[int, str]:
    """Sort keys that are numbers by value, and before the others."""
    text = str(key)
    return (int(text), "") if text.isdigit() else (1 << 62, text)


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping) or _is_table(value)


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _records(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay a list of objects out as a table; where that is too wide, as one line each."""
    # Words lead, counts follow, measured figures come last: the document itself has no order.
    keys = sorted(_keys(records), key=lambda key: max(_rank(record.get(key)) for record in records))
    body = [[plain(record[key]) if key in record else "" for key in keys] for record in records]
    lines = table([words(key) for key in keys], body[:_SHOWN_RECORDS])
    if max(map(len, lines)) > WIDTH - 3 * _INDENT:
        shown = map(plain, records[:_SHOWN_RECORDS])
        lines = [line for record in shown for line in textwrap.wrap(record, WIDTH - 3 * _INDENT)]
    more = len(records) - _SHOWN_RECORDS
    return [*lines, f"and {more} more, which --json shows"] if more > 0 else lines


def _keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def _rank(value: object) -> int:
    order: tuple[tuple[type, int], ...] = ((str, 0), (bool, 3), (int, 1), (float, 2))
    return next((rank for kind, rank in order if isinstance(value, kind)), 0)
