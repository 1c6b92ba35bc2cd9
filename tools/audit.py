"""Look up what is known of weaknesses in the pinned packages; `make audit` and `make check` run it.

In: constraints.txt. Out: the findings and exit status 1, or one sentence and 0. The advisories are
on the network: where they cannot be reached, or know nothing of our packages, as on a mirror, that
is said, and it is no failure. pip-audit itself ends with 0 there, as if all were well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-audit"
PINS = ROOT / "constraints.txt"


def judge(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return the exit status and what to say of a report of pip-audit's, which is JSON."""
    packages = report["dependencies"]
    said = [
        f"{one['name']} {one['version']}: {found['id']}"
        + (f", mended in {', '.join(found['fix_versions'])}" if found.get("fix_versions") else "")
        for one in packages
        for found in one.get("vulns", ())
    ]
    unknown = sum("skip_reason" in one for one in packages)
    looked_up = len(packages) - unknown
    if said:
        return 1, [f"{len(said)} known weaknesses in the pinned packages:", *said]
    if unknown:
        return 0, [
            f"{unknown} of {len(packages)} pinned packages were not looked up, since the advisory "
            "service does not answer for them here; run make audit where it can be reached"
        ]
    return 0, [f"nothing is known against the {looked_up} pinned packages"]


def main() -> int:
    """Run pip-audit in an environment of its own; return the exit status."""
    program = VENV / "bin" / "pip-audit"
    if not program.exists():
        make = [sys.executable, str(ROOT / "tools" / "environment.py"), "--requirements"]
        made = subprocess.run(
            [*make, str(ROOT / "tools" / "audit-requirements.txt"), str(VENV)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            _say([f"nothing was looked up: pip-audit cannot be installed ({_last(made.stderr)})"])
            return 0
    command = [str(program), "--requirement", str(PINS), "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off", "--timeout", "5"],
        capture_output=True,
        text=True,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        _say([f"nothing was looked up: pip-audit ended early ({_last(done.stderr)})"])
        return 0
    status, said = judge(report)
    _say(said)
    return status


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it says nothing"


def _say(lines: list[str]) -> None:
    for line in lines:
        print(f"audit: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
