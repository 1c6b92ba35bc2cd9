"""Writes the table of errors by reason, from the docstrings of twinserve/errors.py."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from twinserve.errors import Code, TwinserveError

INTRODUCTION = """\
# Errors by reason

Every error carries a `google.rpc.ErrorInfo` of the domain `twinserve`, whose `reason` never changes
its meaning: programs switch on it, people look it up here. The message beside it names the value,
the limit and the field. The Python client raises the class of the last column.
"""


def page() -> str:
    """Write the page: a table for each status code, in the order of their numbers."""
    parts = [INTRODUCTION]
    for code in Code:
        rows = [row(one) for one in reasons() if one.code is code]
        if rows:
            head = ["| reason | when | what to do | class |", "|---|---|---|---|"]
            parts += [f"## {code.name}", "\n".join(head + rows)]
    return "\n\n".join(parts) + "\n"


def reasons() -> list[type[TwinserveError]]:
    """Return every class of errors that has a reason of its own, parents first."""
    return list(_below(TwinserveError))


def explained(error: type[TwinserveError]) -> tuple[str, str]:
    """Return when an error is raised, and what to do about it.

    Raises:
        ValueError: its docstring does not say so.
    """
    when, _, rest = (inspect.getdoc(error) or "").partition("\n\nDo: ")
    if not rest:
        raise ValueError(f"the docstring of {error.__name__} has no paragraph that begins with Do:")
    return " ".join(when.split()), " ".join(rest.split())


def row(error: type[TwinserveError]) -> str:
    """Write the row of one reason, which can be linked to by its name in small letters."""
    when, do = explained(error)
    anchor = f'<a id="{error.reason.lower()}"></a>'
    return f"| {anchor}`{error.reason}` | {when} | {do} | `{error.__name__}` |"


def _below(error: type[TwinserveError]) -> Iterator[type[TwinserveError]]:
    for one in error.__subclasses__():
        if "reason" in vars(one) or one.__name__ == "InternalFault":
            yield one
        yield from _below(one)
