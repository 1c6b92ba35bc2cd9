"""Write the table of docs/settings.md from the flags of `twinserve serve`.

In: nothing. Out: the page with a table that is the parser's; tests/cli/test_serve.py fails while it
is not. Run it after a flag was added or changed.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from twinserve import settings
from twinserve.server import config

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_TABLE = re.compile(r"(<!-- table: tools/settings_table.py -->\n).*?(<!-- end of table -->)", re.S)


def table() -> str:
    """Return a row of Markdown for each setting: its three names, default and meaning."""
    parser = argparse.ArgumentParser(prog="twinserve serve")
    config.add_arguments(parser)
    rows = ["| flag | in the environment | in the file | default | what it is |"]
    rows.append("|---|---|---|---|---|")
    for name, action in settings.options(parser).items():
        flag = f"--{name.replace('_', '-')}"
        value = (
            ""
            if action.nargs == 0
            else f" {action.metavar or '|'.join(action.choices or ['VALUE'])}"
        )
        what = (action.help or "").removesuffix(" (%(default)s)")  # has a column of its own
        cells = (
            f"`{flag}{value}`",
            f"`{settings.variable(name)}`",
            f"`{name}`",
            _default(name, action),
        )
        rows.append(f"| {' | '.join(_cell(one) for one in (*cells, what))} |")
    return "\n".join(rows)


def written(page: str) -> str:
    """Return the page with the table of today."""
    return _TABLE.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", page)


def _default(name: str, action: argparse.Action) -> str:
    if name in config.NEEDED:
        return "needed"
    if action.default in (None, "", []):
        return "none"
    if isinstance(action.default, bool):
        return f"`{str(action.default).lower()}`"
    return f"`{action.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    _PAGE.write_text(written(_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
