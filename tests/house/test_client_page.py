"""docs/client.md: its table of errors is whole."""

from __future__ import annotations

import re
from pathlib import Path

from twinserve.client.retries import RetryPolicy
from twinserve.errors import StoreDamaged, TwinserveError

PAGE = "docs/client.md"


def test_its_table_of_errors_names_every_branch_and_what_is_tried_again(root: Path) -> None:
    section = (root / PAGE).read_text(encoding="utf-8").partition("\n## Errors\n")[2]
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| .* \| (.*) \|$",
        section.partition("\n## ")[0],
        re.MULTILINE,
    )
    told = {name: again for names, again in rows for name in re.findall(r"\w+", names)}
    branches = {
        kind
        for kind in TwinserveError.__subclasses__()
        if kind.__module__ == "twinserve.errors" and kind is not StoreDamaged
    }
    assert set(told) == {kind.__name__ for kind in branches}
    policy = RetryPolicy(unavailable_for=1.0)
    for kind in branches:
        again = policy.pause(kind("so", retry_after=0.1), 0, 0.0) is not None
        assert again == (told[kind.__name__] != "no"), kind
