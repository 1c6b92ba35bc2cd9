"""Print what the server needs beside itself, one requirement a line, from pyproject.toml.

In: the runtime (`cpu` or `gpu`) as the only argument. Out: the base dependencies and those of the
extra, followed through the extras that it names. The Dockerfile uses it so that a change of our
code does not compile the dependencies again.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extra: str) -> list[str]:
    """Flatten `project` (the [project] table) to the requirements of one extra.

    Raises:
        KeyError: there is no such extra.
    """
    name = str(project["name"])
    extras = project["optional-dependencies"]
    base = project["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(base, list)
    found = list(base)
    waiting = [extra]
    while waiting:
        for requirement in extras[waiting.pop()]:
            if requirement.startswith(f"{name}["):
                waiting += requirement.removeprefix(f"{name}[").rstrip("]").split(",")
            else:
                found.append(requirement)
    return found


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["gpu"]):
        sys.exit("server_requirements: say cpu or gpu, the runtime that the server shall have")
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print("\n".join(requirements(table, sys.argv[1])))
