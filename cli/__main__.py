"""The command line: `twinserve VERB …`, one module per verb.

In: arguments. Out: results on standard output, everything else on standard error, and an exit code
that scripts can trust. A verb's module is imported only when that verb is asked for, so that
`twinserve --help` is instant and no verb pays for another's packages.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from twinserve import __version__
from twinserve.cli.exit_codes import FAULT, INTERRUPTED
from twinserve.errors import TwinserveError

VERBS = {
    "demo": "train, export, serve and search real handwriting, in a few minutes",
    "data": "check a data set before a training, and say what would spoil it",
    "train": "train a twin on labelled pictures, texts or vectors",
    "report": "say how good trained twins are, one by one and over several folds",
    "export": "write a trained twin as one ONNX file with its thresholds",
    "calibrate": "set a twin's thresholds from labelled data or judged pairs of yours",
    "import": "make a twin of a model made elsewhere",
    "inspect": "show what a twin file says of itself",
    "serve": "serve twins over gRPC",
    "key": "make, list and revoke the keys that a server lets in",
    "embed": "turn inputs into vectors",
    "compare": "say whether two inputs show the same subject",
    "enroll": "put inputs into a gallery",
    "search": "say who in a gallery a probe is, or nobody",
    "verify": "say whether a probe is one subject of a gallery",
    "gallery": "create, list, show, empty, back up, export, import and delete galleries",
    "model": "list, load, unload, alias and try the models of a server",
    "health": "ask whether a server is serving",
    "doctor": "say what this machine offers a server, and what is missing for more",
}

_EXIT_CODES = "0 done; 1 some of the items failed; 2 wrong usage, an error, or all items failed"


class Verb(Protocol):
    """What the module of a verb holds."""

    DESCRIPTION: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error is one sentence, never a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        print("twinserve: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except Exception as error:
        if os.environ.get("TWINSERVE_DEBUG"):
            raise
        print(f"twinserve: {_sentence(error)}", file=sys.stderr)
        return FAULT


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a verb's arguments, one of `VERBS`."""
    verb = _verb(name)
    parser = argparse.ArgumentParser(
        prog=f"twinserve {name}",
        description=verb.DESCRIPTION,
        epilog=f"examples:\n{verb.EXAMPLES.strip(chr(10))}\n\n"
        f"exit codes:\n  {getattr(verb, 'EXIT_CODES', _EXIT_CODES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    return parser


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    if name not in VERBS:
        return _overview(argv or ["--help"])
    return _verb(name).run(parser_of(name).parse_args(argv[1:]))


def _verb(name: str) -> Verb:
    # No module can be imported by the name of a keyword.
    module = f"{name}_" if keyword.iskeyword(name) else name
    return cast(Verb, importlib.import_module(f"twinserve.cli.{module}"))


def _overview(argv: list[str]) -> int:
    width = max(map(len, VERBS))
    parser = argparse.ArgumentParser(
        prog="twinserve",
        usage="twinserve VERB [arguments]",
        description="Are these two alike, and who is this closest to?",
        epilog="verbs:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
        + "\n\n`twinserve VERB --help` shows a verb's arguments, examples and exit codes."
        "\nTWINSERVE_TARGET and TWINSERVE_API_KEY stand in for --target and --api-key;"
        "\nTWINSERVE_DEBUG=1 shows the traceback of an error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"twinserve {__version__}")
    parser.add_argument("verb", metavar="VERB", choices=VERBS)
    parser.parse_args(argv)
    raise AssertionError("argparse accepts known verbs only, and those were dispatched")


def _sentence(error: Exception) -> str:
    """Return one line for a person: what was wrong and, if we know it, what to do."""
    if isinstance(error, TwinserveError):
        where = f" [{error.field}]" if error.field and error.field not in error.message else ""
        return f"{error.message}{where}"
    if isinstance(error, ModuleNotFoundError):
        return (
            f"the package {error.name} is missing; install what this verb needs: "
            "twinserve[train] for data, train, report, export, import and demo, "
            "twinserve[cpu] or [gpu] for serve"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no message'} (TWINSERVE_DEBUG=1 shows where)"


if __name__ == "__main__":
    sys.exit(main())
