"""What verbs print: aligned tables for people, one JSON document for programs."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from twinserve.cli.terminal import painted, warn
from twinserve.errors import TwinserveError


def print_json(value: Any) -> None:
    """Print a result: dataclasses, arrays, enums and errors included."""
    json.dump(plain(value), sys.stdout, ensure_ascii=False, indent=2)
    print()


def plain(value: Any) -> Any:
    """Return the value as JSON takes it; an error is an object with code, reason and message."""
    if isinstance(value, TwinserveError):
        fault: dict[str, Any] = {
            "code": value.code.name,
            "reason": value.reason,
            "message": value.message,
        }
        if value.field:
            fault["field"] = value.field
        if value.metadata:
            fault["metadata"] = value.metadata
        return {"error": fault}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = ""
) -> None:
    """Print rows in columns; numbers lean right, everything else left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(header)]
    right = [
        bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        for i in range(len(header))
    ]
    for number, line in enumerate(([name.upper() for name in header], *cells)):
        text = "  ".join(
            text.rjust(width) if lean else text.ljust(width)
            for text, width, lean in zip(line, widths, right, strict=True)
        ).rstrip()
        print(indent + (text if number else painted(text, "bold")))


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print names and values in two columns, leaving out what is None."""
    shown = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {_cell(value)}")


def complain(what: object, error: TwinserveError) -> None:
    """Say on standard error which item failed, and why."""
    warn(f"{what or repr(what)}: {error.message}")


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4f}"
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
    return str(value)
