"""`twinserve completion`: a script by which a shell completes verbs, flags and files.

The script is made once, by shtab from the parsers themselves, and knows all that they know, so that
pressing Tab starts no Python. It is made again after an upgrade.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from twinserve.cli.exit_codes import OK

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = (
    "Print a script that completes verbs, flags, choices and files in your shell. Save it once, "
    "and again after an upgrade; a new shell reads it."
)
EXAMPLES = """
  mkdir -p ~/.local/share/bash-completion/completions
  twinserve completion bash > ~/.local/share/bash-completion/completions/twinserve
  twinserve completion zsh > "${fpath[1]}/_twinserve"
  twinserve completion fish > ~/.config/fish/completions/twinserve.fish

  without bash-completion, or to try it:
  source <(twinserve completion bash)
"""
EXIT_CODES = "0 done; 2 wrong usage"

# What a metavar calls a place on disk; INPUT and PROBE may be texts, but are files mostly.
_FILES = frozenset(
    (
        *("FILE", "PATH", "INPUT", "PROBE", "FIRST", "SECOND", "FOLDER_OR_FILE", "FILE.npy"),
        *("FILE.png", "FILE.toml", "FILE.csv", "twin.onnx", "[NAME=]twin.onnx", "tokenizer.json"),
    )
)
_FOLDERS = frozenset(("DIR", "RUN_DIR", "RUN", "FOLDER", "OUT_FOLDER"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print(script(arguments.shell))
    return OK


def script(shell: str) -> str:
    """Return the completion script of a shell, one of `SHELLS`."""
    import shtab

    from twinserve.cli.__main__ import whole_parser

    parser = whole_parser()
    for action in _actions(parser):
        if action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in _FILES or action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    made: str = shtab.complete(parser, shell)
    return made


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # told in no public way
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action
