"""The Makefile, CI's entry and the committed tree, as a newcomer meets them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

COMMANDS = {
    "install",
    "demo",
    "serve",
    "test",
    "test-long",
    "tutorials",
    "docs",
    "triton",
    "node",
    "deploying",
    "check",
    "buf",
    "contract-released",
    "stubs",
    "wheel",
    "release-check",
    "clean",
    "help",
}


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, apart from the make that may have started these tests."""
    return subprocess.run(
        ["make", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)},
    )


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """Copy what the Makefile reads, with stamps that say that all is installed."""
    (tmp_path / "tools").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "tools/environment.py", "Makefile"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    for stamp in (".all", ".dev"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def test_make_alone_lists_every_command(root: Path) -> None:
    done = make(root)
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert listed >= COMMANDS


def test_make_install_says_how_to_enter_what_it_made(clone: Path) -> None:
    done = make(clone, "install", "PYTHON=true")
    assert done.returncode == 0
    assert done.stdout == "type: source .venv/bin/activate\n"


def test_make_serve_without_a_twin_says_to_run_the_demo_first(clone: Path) -> None:
    done = make(clone, "serve", "PYTHON=true")
    assert done.returncode != 0
    assert "runs/demo/twin.onnx is not there yet: run make demo first" in done.stderr


def test_make_without_a_fitting_python_says_which_ones_fit(clone: Path) -> None:
    done = make(clone, "test", "PYTHON=")
    assert done.returncode != 0
    assert "twinserve: no Python 3.11 or 3.12 here" in done.stderr


def test_ci_runs_the_readmes_commands_and_the_docs_with_what_tests_use_at_hand(root: Path) -> None:
    lines = (root / ".ci" / "run").read_text().splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("make ")] == [
        ["make", "triton"],
        ["make", "node"],
        ["make", "deploying"],
        ["make", "test"],
        ["make", "check"],
        ["make", "docs"],
    ]


def test_no_committed_file_names_a_registry_or_a_place_of_the_development_machines(
    root: Path,
) -> None:
    """Written with brackets, so that this file is not its own finding."""
    if not (root / ".git").exists():
        pytest.skip("not a clone, so what is committed cannot be told")
    hosts = r"npmjs[.]|pypi[.]org|pythonhosted[.]org|download[.]pytorch|ghcr[.]io|docker[.]io"
    places = r"/work[/]|/root[/]|/tmp/v[/]|/opt/(wheels|pypi)|[.][.]/shared"
    unwanted = re.compile(f"{hosts}|{places}".encode())
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True
    ).stdout.decode()
    found = {
        f"{name}: {match[0].decode()}"
        for name in tracked.split("\0")
        if name
        and (root / name).is_file()
        and (match := unwanted.search((root / name).read_bytes()))
    }
    assert found == set()


def test_the_server_image_holds_what_the_dockerfile_promises(root: Path) -> None:
    last = (root / "Dockerfile").read_text().split("\nFROM ")[-1]
    assert "USER 10001" in last
    assert re.search(r"^EXPOSE 50051 9090$", last, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", last, re.MULTILINE)
    assert '"twinserve", "health"' in last
    assert not re.search(r"g\+\+|gcc|build-essential|torch", last)


def test_the_data_in_the_repository_is_what_its_readme_says(root: Path) -> None:
    readme = (root / "data" / "README.md").read_text()
    archives = [path for path in (root / "data").rglob("*") if path.suffix == ".zip"]
    assert archives
    for path in archives:
        assert str(path.relative_to(root / "data")) in readme
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme
        assert (path.parent / "LICENSE").is_file()
