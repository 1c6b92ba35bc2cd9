"""`twinserve data check`: what it prints, and by which code it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train import drawings, questions
from twinserve.cli import __main__ as command_line


def test_good_data_exit_with_0_and_a_twin_that_fits_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = questions.write_csv(tmp_path / "q.csv", [*questions.rows()], ("text", "label"))
    assert command_line.main(["data", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "modality         text\n" in said
    assert "items per class  least 6, median 6, most 6\n" in said
    assert said.endswith("\nnothing here would spoil a training\n")


def test_what_would_spoil_a_training_exits_with_1_and_names_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = drawings.files(groups=1, classes=10, items=4)
    names = list(content)[:12]
    folder = drawings.write_folder(tmp_path, content | dict.fromkeys(names, b"x"))
    assert command_line.main(["data", "check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "STOPS  12 pictures cannot be decoded, and max_broken_images is 0" in said
    assert f"       {names[9]}: " in said
    assert "… and 2 more (--json has all)" in said
    assert command_line.main(["data", "check", str(folder), "--json"]) == 1
    finding = json.loads(capsys.readouterr().out)["findings"][0]
    assert (finding["kind"], finding["stops"], len(finding["items"])) == ("broken_image", True, 12)


def test_wrong_usage_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = questions.write_csv(tmp_path / "q.csv", [*questions.rows()], ("text", "label"))
    for arguments, named in (
        ([str(tmp_path / "none.csv")], "none.csv does not exist"),
        ([str(path), "--set", "twin=conv4"], "twin is 'conv4', which does not take the texts"),
        ([str(path), "--set", "sed=1"], "unknown setting 'sed'"),
    ):
        assert command_line.main(["data", "check", *arguments]) == 2
        assert named in capsys.readouterr().err


def test_a_check_needs_no_torch() -> None:
    program = "import sys, twinserve.train.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
