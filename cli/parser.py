"""argparse with errors of one sentence that name the nearest word which would have been right."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from twinserve.cli.exit_codes import FAULT
from twinserve.cli.terminal import warn
from twinserve.suggestions import did_you_mean

_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")
_NO_ACTION = "the following arguments are required: ACTION"
_UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """A parser whose subparsers are of its kind, too; no flag can be abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})
        self._intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments of which inputs may stand before, between and behind the flags.

        argparse's own way ends a list of inputs at the first flag, so that `enroll people --text
        "card lost"` would have no input. Its way of intermixing calls this method again, twice, and
        does not know `--`, behind which everything is an input.
        """
        if self._intermixing or self._subparsers is not None or "--" in (args or ()):
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is; argparse would print the whole usage before it."""
        choice = _CHOICE.search(message)
        if choice is not None:
            message += did_you_mean(choice[1], [word.strip("' ") for word in choice[2].split(",")])
        elif message == _NO_ACTION and self._subparsers is not None:
            actions = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
            message = f"an action is needed, one of {', '.join(actions[0].choices)}"
        elif message.startswith(_UNKNOWN):
            words = message.removeprefix(_UNKNOWN).split()
            flag = next((word for word in words if word.startswith("-")), None)
            if flag is not None:
                message += did_you_mean(flag.partition("=")[0], set(_flags(self)))
        warn(f"{message} (see {self.prog} --help)")
        raise SystemExit(FAULT)


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the flags of a parser and all its subparsers: argparse does not say whose it was."""
    for action in parser._actions:  # told in no public way
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _flags(inner)
