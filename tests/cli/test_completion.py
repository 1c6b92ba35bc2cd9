"""Completion in a real bash; of zsh and fish, that the script is whole, and runs where they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twinserve.cli import completion
from twinserve.cli.__main__ import VERBS, parser_of

# Loads the script, types the words, presses Tab on the last one, and prints what bash offers.
_PRESS_TAB = """
source "$1"
complete -p twinserve >/dev/null || exit 9
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
_shtab_twinserve
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "twinserve"
    path.write_text(completion.script("bash"))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("face.png", "twin.onnx", "photos/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def offered(script: Path, folder: Path, *words: str) -> set[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", _PRESS_TAB, "bash", str(script), "twinserve", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
class TestBash:
    def test_verbs_are_completed(self, bash_script: Path, folder: Path) -> None:
        assert offered(bash_script, folder, "") == set(VERBS)
        assert offered(bash_script, folder, "e") == {"export", "embed", "enroll"}

    def test_actions_and_their_flags_are_completed(self, bash_script: Path, folder: Path) -> None:
        assert offered(bash_script, folder, "gallery", "co") == {"count"}
        found = offered(bash_script, folder, "gallery", "count", "people", "--")
        assert {"--subject", "--filter", "--json", "--target"} <= found
        assert "--top-k" not in found

    @pytest.mark.parametrize("verb", ["serve", "search", "train"])
    def test_every_flag_of_a_verb_is_completed(
        self, bash_script: Path, folder: Path, verb: str
    ) -> None:
        flags = {text for one in parser_of(verb)._actions for text in one.option_strings}
        found = offered(bash_script, folder, verb, "-")
        assert found == flags

    def test_files_folders_and_choices_are_completed(self, bash_script: Path, folder: Path) -> None:
        assert offered(bash_script, folder, "embed", "fa") == {"face.png"}
        assert offered(bash_script, folder, "embed", "face.png", "ph") == {"photos"}
        assert offered(bash_script, folder, "serve", "--model", "tw") == {"twin.onnx"}
        assert offered(bash_script, folder, "serve", "--data-dir", "") == {"photos"}
        assert offered(bash_script, folder, "search", "people", "--by", "") == {"subject", "item"}
        assert offered(bash_script, folder, "completion", "") == set(completion.SHELLS)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_gets_a_script_that_it_can_read(shell: str, tmp_path: Path) -> None:
    script = completion.script(shell)
    assert all(verb in script for verb in VERBS)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here to read it")
    path = tmp_path / "twinserve"
    path.write_text(script)
    subprocess.run([shell, "-n", str(path)], check=True, timeout=20)


def test_the_page_puts_the_scripts_where_shells_look(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "command-line.md").read_text(encoding="utf-8")
    block = page.partition("## Completion")[2].partition("```bash\n")[2].partition("```")[0]
    for folder in (".config/fish/completions", "functions"):
        (tmp_path / folder).mkdir(parents=True)
    # The scripts are tried above; zsh counts from 1.
    before = 'twinserve() { echo "$@"; }; fpath=("" ~/functions)\n'
    subprocess.run(
        ["bash", "-euc", before + block],
        env={**os.environ, "HOME": str(tmp_path)},
        cwd=root,
        check=True,
        timeout=60,
    )
    for shell, written in (
        ("bash", ".local/share/bash-completion/completions/twinserve"),
        ("zsh", "functions/_twinserve"),
        ("fish", ".config/fish/completions/twinserve.fish"),
    ):
        assert (tmp_path / written).read_text() == f"completion {shell}\n"


def test_a_part_that_is_not_installed_leaves_the_other_verbs(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('PIL', 'hnswlib', 'twinserve.export'):\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from twinserve.cli.__main__ import main\n"
        "sys.exit(main(['completion', 'bash']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "--top-k" in done.stdout
