"""The README's quick blocks are run as they stand, in their order.

An author marks a fenced block by a comment on the line above it: `<!-- test: quick -->` runs a bash
or python block; `<!-- test: quick, server -->` runs it while a server of the demo's twin is up (its
addresses stand in for 127.0.0.1:50051, which is also the default, and for 127.0.0.1:9090). All
blocks share one folder, in which the repository's files lie and runs/demo/twin.onnx is a small
twin; PATH leads to this environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BLOCK = re.compile(
    r"^<!-- *test: *(?P<words>[a-z, ]+?) *-->\n+```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
KNOWN_WORDS = {"quick", "server"}
STARTERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@dataclass(frozen=True)
class Block:
    """One marked block: what runs it, what it needs, and its text."""

    language: str
    words: frozenset[str]
    text: str


def blocks(markdown: str) -> list[Block]:
    """Find the marked blocks.

    Raises:
        ValueError: a mark has no block, a word that nobody knows, or a language that cannot be run.
    """
    found = [
        Block(one["language"], frozenset(re.split(r"[, ]+", one["words"])), one["text"])
        for one in BLOCK.finditer(markdown)
    ]
    if markdown.count("<!-- test:") != len(found):
        raise ValueError("a test mark stands above no fenced block with a language")
    for block in found:
        if not block.words <= KNOWN_WORDS:
            raise ValueError(f"unknown words {sorted(block.words - KNOWN_WORDS)} in a test mark")
        if block.language not in STARTERS:
            raise ValueError(f"no way to run a block of {block.language}")
    return found


@contextmanager
def serving(twin: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run a server of the twin on free ports; gives its gRPC and HTTP addresses."""
    command = [sys.executable, "-m", "twinserve.cli", "serve", "--model", str(twin)]
    ports = ["--data-dir", str(folder), "--grpc-port", "0", "--http-port", "0"]
    with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = next((line for line in server.stdout if "SERVING" in line), "")
            addresses = re.search(r"grpc=(\S+) http=(\S+)", line)
            assert addresses, "the server ended before it was SERVING"
            yield addresses[1], addresses[2]
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def run(block: Block, folder: Path, addresses: tuple[str, str] | None) -> None:
    """Run one block, and show it with all it said when it fails."""
    text = block.text
    target = {"TWINSERVE_TARGET": addresses[0]} if addresses else {}
    if addresses:
        text = re.sub(r"\b(127\.0\.0\.1|localhost):50051\b", addresses[0], text)
        text = re.sub(r"\b(127\.0\.0\.1|localhost):9090\b", addresses[1], text)
    here = str(Path(sys.executable).parent)
    done = subprocess.run(
        [*STARTERS[block.language], text],
        cwd=folder,
        env={**os.environ, **target, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"this block of the README fails:\n{text}\n{done.stdout}{done.stderr}")


def test_the_readmes_quick_blocks_run_as_written(
    root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = blocks((root / "README.md").read_text())
    assert found, "no block of README.md is marked <!-- test: quick -->"

    clone = tmp_path / "clone"
    clone.mkdir()
    for entry in root.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "dist", "build"):
            (clone / entry.name).symlink_to(entry)
    twin = clone / "runs" / "demo" / "twin.onnx"
    if any("server" in block.words or "runs/demo" in block.text for block in found):
        twin.parent.mkdir(parents=True)
        twin.write_bytes(Path(request.getfixturevalue("twin_file")).read_bytes())

    if any("server" in block.words for block in found):
        with serving(twin, tmp_path / "data") as addresses:
            for block in found:
                run(block, clone, addresses if "server" in block.words else None)
    else:
        for block in found:
            run(block, clone, None)


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


def test_marked_blocks_are_found_and_others_are_left_alone() -> None:
    markdown = (
        "```bash\nmake demo\n```\n\n<!-- test: quick -->\n```bash\ntrue\nfalse\n```\n"
        "<!-- test: quick, server -->\n\n```python title=x\nprint(1)\n```\n"
    )
    assert blocks(markdown) == [
        Block("bash", frozenset({"quick"}), "true\nfalse\n"),
        Block("python", frozenset({"quick", "server"}), "print(1)\n"),
    ]


@pytest.mark.parametrize(
    ("markdown", "reason"),
    [
        ("<!-- test: quick -->\nno block", "no fenced block"),
        ("<!-- test: swift -->\n```bash\ntrue\n```\n", "unknown words"),
        ("<!-- test: quick -->\n```go\nmain\n```\n", "no way to run"),
    ],
)
def test_a_mark_that_would_run_nothing_is_refused(markdown: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        blocks(markdown)


def test_a_block_that_fails_is_shown_with_what_it_said(tmp_path: Path) -> None:
    block = Block("bash", frozenset({"quick"}), "echo before\nfalse\necho after\n")
    with pytest.raises(pytest.fail.Exception, match="before") as raised:
        run(block, tmp_path, None)
    assert "after\n\nbefore" in str(raised.value)
    assert not str(raised.value).rstrip().endswith("after")


def test_a_block_speaks_to_the_server_that_is_up(tmp_path: Path) -> None:
    text = "echo grpc localhost:50051 http://127.0.0.1:9090/metrics > said\n"
    run(Block("bash", frozenset({"server"}), text), tmp_path, ("127.0.0.1:7", "127.0.0.1:8"))
    assert (tmp_path / "said").read_text() == "grpc 127.0.0.1:7 http://127.0.0.1:8/metrics\n"
