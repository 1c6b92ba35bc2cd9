"""The page on watching a server shows how an error's line is found; here it is found."""

from __future__ import annotations

from pathlib import Path

from tests.house.documents import Reading, blocks


def test_the_line_of_an_error_is_found_as_the_page_shows(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    found = blocks((root / "docs" / "observability.md").read_text())
    assert [block.language for block in found] == ["bash", "python", "bash"]
    with Reading("docs/observability.md", tmp_path) as reading:
        for block in found:
            reading.run(block)
