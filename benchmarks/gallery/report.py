"""The tables of a run, shown, put into a page or merged with those of a later run.

    .venv/bin/python -m benchmarks.gallery.report gallery.json --into docs/benchmarks.md

The same report as the serving benchmarks', with data in the place of twins and marks of its own.
"""

from __future__ import annotations

from benchmarks.serving import report

SUBJECT, MARK = "data", "gallery figures"

if __name__ == "__main__":
    report.main(SUBJECT, MARK)
