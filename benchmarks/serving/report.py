"""What a run found: lines of tables, kept as JSON and shown as text or Markdown.

A line is one server under one load. Its figures are what the table shows; its windows are the raw
numbers behind them, so that nothing in the table must be taken on trust.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

MET, MISSED = "met", "missed"


@dataclass(frozen=True)
class Aim:
    """What a figure should reach."""

    text: str
    met: bool

    def __str__(self) -> str:
        return f"{self.text}: {MET if self.met else MISSED}"


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    table: str
    subject: str
    load: str
    who: str
    figures: dict[str, str]  # heading -> as it is shown
    aims: tuple[Aim, ...] = ()
    windows: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """The lines of one run, and what they were measured on."""

    machine: str
    setting: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is absent, and why

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what `save` wrote."""
        found = json.loads(path.read_text())
        lines = [
            Line(**{**line, "aims": tuple(Aim(**aim) for aim in line["aims"])})
            for line in found.pop("lines")
        ]
        return cls(**found, lines=lines)

    def with_lines_of(self, newer: Report) -> Report:
        """Return this run, with what another measured of the same tables and twins in its place."""
        again = {(line.table, line.subject) for line in newer.lines}
        lines: list[Line] = []
        put: set[tuple[str, str]] = set()
        for line in self.lines:
            table = line.table, line.subject
            if table not in again:
                lines.append(line)
            elif table not in put:
                put.add(table)
                lines += [one for one in newer.lines if (one.table, one.subject) == table]
        known = {(line.table, line.subject) for line in lines}
        lines += [line for line in newer.lines if (line.table, line.subject) not in known]
        return replace(self, lines=lines)

    def text(self, subject: str = "twin") -> str:
        """Return the tables for a terminal; `subject` heads the first column."""
        return "\n".join(_blocks(self.lines, _aligned, subject))

    def markdown(self, subject: str = "twin") -> str:
        """Return the tables, the aims and what is absent, for the documentation."""
        told = ", ".join(f"{name} {value}" for name, value in self.setting.items())
        parts = [f"Measured on {self.machine}; {told}.", "", *_blocks(self.lines, _piped, subject)]
        aims = [
            f"- {line.table}, {line.subject}, {line.load}: {aim}"
            for line in self.lines
            for aim in line.aims
        ]
        if aims:
            parts += ["### Aims", "", *aims, ""]
        if self.notes:
            parts += ["### Not measured", "", *(f"- {note}" for note in self.notes), ""]
        return "\n".join(parts)


FIGURES = "figures"


def put_into(page: str, tables: str, mark: str = FIGURES) -> str:
    """Return a page with the tables between its two marks, in place of what stood there.

    The marks are the comments `<!-- figures: begin -->` and `<!-- figures: end -->`, or those of
    another `mark` than "figures".

    Raises:
        ValueError: a page without the marks.
    """
    first, last = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the page has no line {first} with a line {last} after it")
    return f"{before}{first}\n\n{tables}\n{last}{after}"


def _blocks(lines: Sequence[Line], draw: Any, subject: str) -> Iterable[str]:
    for table in dict.fromkeys(line.table for line in lines):
        mine = [line for line in lines if line.table == table]
        headings = list(dict.fromkeys(name for line in mine for name in line.figures))
        rows = [[subject, "load", "who", *headings]]
        for line in mine:
            figures = [line.figures.get(name, "") for name in headings]
            rows.append([line.subject, line.load, line.who, *figures])
        yield from (f"### {table}", "", *draw(rows), "")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _piped(rows: list[list[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]


def main(subject: str = "twin", mark: str = FIGURES) -> None:
    """Print the Markdown of a run that was kept, or put it into a page.

    Args:
        subject: heading of the first column.
        mark: of the place in the page; see `put_into`.
    """
    parser = argparse.ArgumentParser(description="the tables of a run, as Markdown")
    parser.add_argument("results", type=Path)
    parser.add_argument("--into", type=Path, help="a page with the two marks")
    parser.add_argument(
        "--newer", type=Path, help="a later run of some parts: its lines are put in, for good"
    )
    given = parser.parse_args()
    report = Report.read(given.results)
    if given.newer:
        report = report.with_lines_of(Report.read(given.newer))
        report.save(given.results)
    tables = report.markdown(subject)
    if given.into is None:
        print(tables)
    else:
        given.into.write_text(put_into(given.into.read_text(), tables, mark))


if __name__ == "__main__":
    main()
