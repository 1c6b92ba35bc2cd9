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
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, Protocol, cast

from twinserve.cli.exit_codes import FAULT, INTERRUPTED, OK
from twinserve.cli.parser import Parser
from twinserve.cli.terminal import painted, warn
from twinserve.errors import TwinserveError
from twinserve.suggestions import did_you_mean

# In the order of a twin's life: made, served, asked, looked after.
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
    "completion": "print a script that completes verbs, flags and files in your shell",
}

# A verb that is in none of these comes last.
_GROUPS = {
    "make a twin": ("demo", "data", "train", "report", "export", "calibrate", "import", "inspect"),
    "serve it": ("serve", "doctor", "health"),
    "ask a server": ("embed", "compare", "enroll", "search", "verify"),
    "look after a server": ("gallery", "model", "completion"),
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
    # Or a command's one sentence stands below lines of gRPC's own. A server has its own rule, which
    # is stricter: anybody who connects could fill its log (server/front/core.py).
    if argv[:1] != ["serve"]:
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        warn("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except Exception as error:
        if os.environ.get("TWINSERVE_DEBUG"):
            raise
        warn(_sentence(error))
        return FAULT


def parser_of(name: str) -> Parser:
    """Return the parser of a verb's arguments, one of `VERBS`."""
    parser = Parser(prog=f"twinserve {name}", **_presentation(name))
    _verb(name).add_arguments(parser)
    return parser


def whole_parser() -> Parser:
    """Return one parser of all verbs, which takes every verb's imports: for completion scripts."""
    parser = Parser(prog="twinserve", description="Are these two alike?")
    parser.add_argument("--version", action="store_true", help="say what this installation is")
    verbs = parser.add_subparsers(metavar="VERB")
    for name, text in VERBS.items():
        try:
            inner = verbs.add_parser(name, help=text, description=text)
            _verb(name).add_arguments(inner)
        except ModuleNotFoundError:
            continue  # this installation cannot do it: twinserve[client] has no server
    return parser


def _presentation(name: str) -> dict[str, Any]:
    verb = _verb(name)
    return {
        # argparse wraps either all or nothing, and examples stay as they are.
        "description": textwrap.fill(
            verb.DESCRIPTION, min(shutil.get_terminal_size().columns, 100)
        ),
        "epilog": f"examples:\n{verb.EXAMPLES.strip(chr(10))}\n\n"
        f"exit codes:\n  {getattr(verb, 'EXIT_CODES', _EXIT_CODES)}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    if name not in VERBS:
        return _without_verb(argv)
    verb, parser = _verb(name), parser_of(name)
    parse = getattr(verb, "parse", None)  # of a verb that reads more than its arguments
    return verb.run(parse(parser, argv[1:]) if parse else parser.parse_args(argv[1:]))


def _verb(name: str) -> Verb:
    # No module can be imported by the name of a keyword.
    module = f"{name}_" if keyword.iskeyword(name) else name
    return cast(Verb, importlib.import_module(f"twinserve.cli.{module}"))


def _without_verb(argv: list[str]) -> int:
    match argv:
        case []:
            print(_overview())
        case ["-h" | "--help"] | ["help"]:
            print(f"{_overview()}\n\n{_FOOT}")
        case ["help", verb, *_] if verb in VERBS:
            return _dispatch([verb, "--help"])
        case ["--version", *flags] if set(flags) <= {"--json"}:
            from twinserve.cli import version

            version.show(as_json=bool(flags))
        case ["help", word, *_]:
            return _without_verb([word])
        case [word, *_] if word.startswith("-"):
            hint = did_you_mean(word, ("--help", "--version"))
            warn(f"{word} is not known without a verb{hint} (see twinserve --help)")
            return FAULT
        case [word, *_]:
            warn(f"there is no verb '{word}'{did_you_mean(word, VERBS)} (see twinserve --help)")
            return FAULT
    return OK


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = ["twinserve: are these two alike, and who is this closest to?", ""]
    grouped = {verb for verbs in _GROUPS.values() for verb in verbs}
    for group, verbs in _GROUPS.items():
        lines.append(painted(group, "bold"))
        lines += [f"  {verb:<{width}}  {VERBS[verb]}" for verb in verbs]
    lines += [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items() if verb not in grouped]
    lines += [
        "",
        "new here?  twinserve demo                trains, serves and searches in a few minutes",
        "           twinserve VERB --help         arguments, examples and exit codes",
    ]
    return "\n".join(lines)


_FOOT = """\
twinserve --version [--json]  what this installation is made of

On every verb: results on standard output (--json for programs), all else on standard error;
exit code 0 done, 1 no or some failed, 2 wrong usage or an error, 130 interrupted by Ctrl-C.

TWINSERVE_TARGET and TWINSERVE_API_KEY stand in for --target and --api-key;
TWINSERVE_NAME for each setting of serve; TWINSERVE_DEBUG=1 shows the traceback of an error;
NO_COLOR=1 turns colours off, FORCE_COLOR=1 on."""


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
