"""The examples run as their README says, with short trainings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{script}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_that_the_page_runs_is_run_here() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    named = set(re.findall(r"examples/(\w+/\w+\.py)", page))
    assert named == {"questions/ask.py", "verification/verify.py"}


def test_new_questions_are_asked_of_an_archive() -> None:
    said = run("questions/ask.py", "--seconds", "8")
    assert "190 questions archived under 19 intents" in said
    assert "57 new questions: the nearest has the same intent" in said
    share = float(said.split("the nearest has the same intent ")[1].split("%")[0])
    assert share > 40  # chance is 5 %
    assert "stated: " in said or "too small to tell" in said


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_claims_are_verified(precision: str) -> None:
    said = run(
        "verification/verify.py", "--seconds", "12", "--far", "0.05", "--precision", precision
    )
    own = float(said.split("claimed by themselves")[1].split("%")[0])
    others = float(said.split("claimed by others")[1].split("%")[0])
    assert own > others + 30
    assert "stated by the twin's file: " in said
