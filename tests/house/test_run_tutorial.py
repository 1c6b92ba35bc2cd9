"""Tutorials are run whole, in an empty folder, and what they say is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TUTORIAL = """# Two steps
<!-- needs: names.txt -->

<!-- test: long -->
```bash
sort names.txt > sorted.txt
cat sorted.txt
```

<!-- output -->
```
ada
bob
```

<!-- test: quick -->
```python
print(len(open("sorted.txt").read()))
```

<!-- output -->
```
9
```
"""


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    (tmp_path / "given.txt").write_text("bob\nada\n")
    path = tmp_path / "steps.md"
    path.write_text(TUTORIAL)
    return path


@pytest.fixture
def runner(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("run_tutorial")


def test_blocks_run_in_order_and_what_they_say_is_shown_and_written(
    tutorial: Path, runner: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tutorial.parent
    put = ["--put", f"names.txt={folder / 'given.txt'}"]
    status = runner.main(
        [str(tutorial), *put, "--keep", str(folder / "kept"), "--write", str(folder / "written")]
    )
    shown = capsys.readouterr().out
    assert status == 0
    assert "$ sort names.txt > sorted.txt\n$ cat sorted.txt\n\nada\nbob\n" in shown
    assert "+8" in shown
    assert "2 blocks ran, 0 left out, 1 said something else" in shown
    assert (folder / "kept" / "steps" / "sorted.txt").read_text() == "ada\nbob\n"
    assert (folder / "written" / "steps.md").read_text() == TUTORIAL.replace("9", "8")
    assert runner.main([str(tutorial), *put, "--strict"]) == 1


def test_a_block_that_fails_ends_its_tutorial(
    tutorial: Path, runner: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (tutorial.parent / "given.txt").unlink()
    (tutorial.parent / "given.txt").mkdir()  # which cannot be sorted
    status = runner.main([str(tutorial), "--put", f"names.txt={tutorial.parent / 'given.txt'}"])
    shown = capsys.readouterr().out
    assert status == 1
    assert "this block of steps.md fails" in shown
    assert ">>>" not in shown


def test_what_a_tutorial_needs_is_asked_for_before_it_runs(
    tutorial: Path, runner: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main([str(tutorial)]) == 1
    assert "steps.md needs names.txt: give --put names.txt=PATH" in capsys.readouterr().out
    assert runner.main([str(tutorial), "--skip-missing"]) == 0
    assert "left out" in capsys.readouterr().out
    tutorial.write_text(TUTORIAL.replace("names.txt", "docs/data.md"))
    assert runner.main([str(tutorial)]) == 0, "what the repository has is found there"
