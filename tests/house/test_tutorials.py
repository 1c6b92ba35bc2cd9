"""The commands of the tutorials name verbs, flags and settings that there are.

Running them takes minutes, and is done by `make tutorials`.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.house.commands import commands
from tests.house.documents import blocks
from twinserve.cli.__main__ import VERBS, parser_of
from twinserve.train.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
TUTORIALS = [page for page in PAGES if page.name != "README.md"]  # which lists them


def test_commands_are_found_in_loops_and_pipes_and_over_several_lines() -> None:
    script = (
        "twinserve train --data a \\\n    --set 'x=1' 2> bar.txt  # why\n"
        "for n in 1 2; do twinserve report runs/$n --json > out || echo twinserve; done\n"
        "cat <<'END'\ntwinserve no command\nEND\n"
        "curl -d '{\"a\":\n1}'\n"
    )
    assert commands(script) == [
        ["train", "--data", "a", "--set", "x=1"],
        ["report", "runs/1", "--json"],
    ]


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.name)
def test_every_command_of_a_tutorial_parses(tutorial: Path) -> None:
    found = [
        command
        for block in blocks(tutorial.read_text())
        if block.language == "bash"
        for command in commands(block.text)
    ]
    assert found, f"{tutorial.name} has no block that is run"
    for verb, *arguments in found:
        assert verb in VERBS
        parsed = parser_of(verb).parse_args(arguments)
        if hasattr(parsed, "set"):
            load_config(parsed.config, parsed.set)


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.name)
def test_the_programs_of_a_tutorial_compile_and_import_what_there_is(tutorial: Path) -> None:
    for block in blocks(tutorial.read_text()):
        if block.language != "python":
            continue
        for statement in ast.parse(block.text).body:
            if isinstance(statement, ast.ImportFrom):
                module = importlib.import_module(statement.module or "")
                assert [one.name for one in statement.names if not hasattr(module, one.name)] == []


def test_the_index_lists_every_tutorial() -> None:
    index = (ROOT / "docs" / "tutorials" / "README.md").read_text()
    assert [one.name for one in TUTORIALS if f"({one.name})" not in index] == []
