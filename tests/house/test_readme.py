"""The blocks of the README, the gallery walk-through and the page on data are run as they stand.

How an author marks them is told in `documents`. All blocks of a document share one folder, in which
the repository's files lie; README's finds a small twin as runs/demo/twin.onnx too.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests import twins
from tests.house.documents import Reading, blocks, can_run, needs


def clone_of(root: Path, folder: Path) -> Path:
    """Make a folder in which the repository's files seem to lie."""
    clone = folder / "clone"
    clone.mkdir()
    for entry in root.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "dist", "build"):
            (clone / entry.name).symlink_to(entry)
    return clone


def test_the_readmes_quick_blocks_run_as_written(
    root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = blocks((root / "README.md").read_text())
    assert found, "no block of README.md is marked <!-- test: quick -->"

    clone = clone_of(root, tmp_path)
    twin = clone / "runs" / "demo" / "twin.onnx"
    if any("server" in block.words or "runs/demo" in block.text for block in found):
        twin.parent.mkdir(parents=True)
        twin.write_bytes(Path(request.getfixturevalue("twin_file")).read_bytes())

    with Reading("README.md", clone) as reading:
        if any("server" in block.words for block in found):
            reading.serve("twinserve serve --model runs/demo/twin.onnx --data-dir runs/demo/data")
        for block in found:
            reading.run(block)


def test_the_gallery_walkthrough_runs_as_written_and_says_what_it_shows(
    root: Path, tmp_path: Path
) -> None:
    found = blocks((root / "docs" / "gallery-walkthrough.md").read_text())
    assert sum(block.output is not None for block in found) >= 20
    with Reading("docs/gallery-walkthrough.md", clone_of(root, tmp_path)) as reading:
        for block in found:
            if can_run(block):
                reading.run(block)


def test_every_form_of_data_is_checked_as_its_page_shows(root: Path, tmp_path: Path) -> None:
    with Reading("docs/data.md", tmp_path) as reading:
        for block in blocks((root / "docs" / "data.md").read_text()):
            if can_run(block):
                reading.run(block)


def test_the_page_on_http_runs_as_written(root: Path, tmp_path: Path) -> None:
    clone = clone_of(root, tmp_path)
    text = (root / "docs" / "http.md").read_text()
    assert needs(text) == ["texts.onnx"]
    (clone / "texts.onnx").write_bytes(twins.small_text_twin())
    with Reading("docs/http.md", clone) as reading:
        for block in blocks(text):
            if can_run(block):
                reading.run(block)


def test_every_block_of_the_gallery_walkthrough_is_run_or_shown_as_output(root: Path) -> None:
    text = (root / "docs" / "gallery-walkthrough.md").read_text()
    found = blocks(text)
    fences = len(re.findall(r"^```", text, re.MULTILINE)) // 2
    assert fences == len(found) + sum(block.output is not None for block in found)


def test_every_make_command_that_the_readme_names_exists(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"(?:^|`|\$ )make ([a-z-]+)", (root / "README.md").read_text(), re.MULTILINE)
    )
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_extra_that_the_readme_names_exists(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    named = re.findall(r"twinserve\[([a-z,]+)\]", (root / "README.md").read_text())
    assert {extra for one in named for extra in one.split(",")} <= set(
        project["optional-dependencies"]
    )
