"""Write the tables of docs/abuse.md from the cases: `python -m tests.abuse.page`.

test_abuse.py fails while the page says something else than the cases, and while a server answers
something else than a case says.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from tests.abuse.cases import CASES, MIB, Case

# In the order of the page.
THEMES = (
    "keys",
    "tenants",
    "names",
    "inputs",
    "sizes",
    "http_requests",
    "json_bodies",
    "protocol",
    "headers",
    "connections",
)
for _name in THEMES:
    importlib.import_module(f"tests.abuse.{_name}")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "abuse.md"
_TABLE = re.compile(r"(<!-- table: tests/abuse/page.py -->\n).*?(<!-- end of table -->)", re.S)


def table() -> str:
    """Return a table of Markdown for each theme."""
    parts = []
    for theme in dict.fromkeys(case.theme for case in CASES):
        rows = [f"### {theme}", "", "| what is done | port | the answer |", "|---|---|---|"]
        for case in CASES:
            if case.theme == theme:
                cells = (_title(case), case.port, case.answer)
                rows.append(f"| {' | '.join(_cell(one) for one in cells)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def written(page: str) -> str:
    """Return the page with the tables of today."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{table()}\n\n{found[2]}", page)


def _title(case: Case) -> str:
    notes = ["long"] * case.is_long + [f"memory: {case.mib} MiB"] * (case.mib != MIB)
    return f"{case.title} ({', '.join(notes)})" if notes else case.title


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
