"""Run the tutorials as a reader would: their blocks in order, in an empty folder, with one Python.

In: Markdown whose blocks are marked as `tests/house/documents.py` tells, the programs to run them
with, and what a tutorial wants to find in its folder (`<!-- needs: orl_faces.zip -->`): taken from
--put, else from the repository's root. Out: each block with what it said and how long it took, and
exit status 1 where a block fails. What a block says may differ from what its document shows, since
a training on another machine gives other figures: that is shown, and fails with --strict alone.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.house.documents import (  # noqa: E402 - the root is found first
    Block,
    BlockFailed,
    Reading,
    blocks,
    can_run,
    differences,
    needs,
)


class Missing(Exception):
    """Something that a tutorial wants to find and nobody gave; the message says how to give it."""


@dataclass
class Outcome:
    """How a tutorial went."""

    ran: int = 0
    left_out: int = 0
    failed: str = ""  # of the block that ended it
    differing: int = 0
    said: dict[tuple[int, int], str] = field(default_factory=dict)  # by the span of the output


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tutorials that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tutorials", nargs="+", type=Path, metavar="TUTORIAL.md")
    parser.add_argument(
        "--programs",
        type=Path,
        metavar="DIR",
        help="folder of the python and twinserve to use; default: of this Python",
    )
    parser.add_argument(
        "--put",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help="what a tutorial needs: it lies in its folder as NAME",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="run in DIR, and leave all there")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="write each tutorial there, with what its blocks said as the outputs it shows",
    )
    parser.add_argument("--strict", action="store_true", help="fail where a block says else")
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out tutorials whose needs nobody gave"
    )
    options = parser.parse_args(argv)
    given = dict(one.split("=", 1) for one in options.put)
    status = 0
    for tutorial in options.tutorials:
        markdown = tutorial.read_text(encoding="utf-8")
        try:
            found = needed(markdown, given, tutorial.name)
        except Missing as error:
            print(f"{tutorial}: {'left out: ' if options.skip_missing else ''}{error}", flush=True)
            status = status if options.skip_missing else 1
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.keep or Path(temporary)) / tutorial.stem
            outcome = run(tutorial.name, markdown, folder, found, options.programs)
        print(
            f"\n{tutorial}: {outcome.ran} blocks ran, {outcome.left_out} left out, "
            f"{outcome.differing} said something else",
            flush=True,
        )
        if outcome.failed:
            print(outcome.failed, flush=True)
        if outcome.failed or (options.strict and outcome.differing):
            status = 1
        if options.write:
            options.write.mkdir(parents=True, exist_ok=True)
            written = options.write / tutorial.name
            written.write_text(rewritten(markdown, outcome.said), encoding="utf-8")
    return status


def needed(markdown: str, given: Mapping[str, str], name: str) -> dict[str, Path]:
    """Find what a tutorial wants to find in its folder: name -> path.

    Args:
        markdown: the tutorial.
        given: name -> path, of --put.
        name: of the tutorial, for messages.

    Raises:
        Missing: nobody gave it, and the repository does not have it.
    """
    found = {}
    for need in needs(markdown):
        path = Path(given.get(need, ROOT / need)).resolve()
        if not path.exists():
            raise Missing(f"{name} needs {need}: give --put {need}=PATH")
        found[need] = path
    return found


def run(
    name: str, markdown: str, folder: Path, found: Mapping[str, Path], programs: Path | None
) -> Outcome:
    """Run a tutorial's blocks in a folder, up to the first that fails.

    Args:
        name: of the tutorial, for messages.
        markdown: the tutorial.
        folder: made, and empty but for what the tutorial needs.
        found: what it needs, as of `needed`.
        programs: folder of the python and twinserve to use; None for this Python's.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; name another folder, or clear it")
    folder.mkdir(parents=True, exist_ok=True)
    for need, path in found.items():
        (folder / need).parent.mkdir(parents=True, exist_ok=True)
        (folder / need).symlink_to(path)
    outcome = Outcome()
    here = None if programs is None else programs.resolve()
    with Reading(name, folder, here) as reading:
        for block in blocks(markdown):
            if not can_run(block):
                outcome.left_out += 1
                continue
            print(f"\n{prompted(block)}", flush=True)
            before, started = _processor_seconds(), time.monotonic()
            try:
                said = reading.said(block)
            except BlockFailed as error:
                outcome.failed = str(error)
                return outcome
            outcome.ran += 1
            took = time.monotonic() - started
            print(
                f"{said}  [{took:.1f} s, {_processor_seconds() - before:.1f} s of processor time]",
                flush=True,
            )
            if block.output is None or block.output_span is None:
                continue
            outcome.said[block.output_span] = said
            if how := differences(block.output, said):
                outcome.differing += 1
                print(f"which is not what {name} shows:\n{how}\n", flush=True)
    return outcome


def prompted(block: Block) -> str:
    """Return a block as it is typed."""
    prompt = {"bash": "$ ", "python": ">>> "}.get(block.language, "")
    return "".join(f"{prompt}{line}\n" for line in block.text.splitlines())


def rewritten(markdown: str, said: Mapping[tuple[int, int], str]) -> str:
    """Return a tutorial with what its blocks said in the place of what it shows."""
    for (start, end), text in sorted(said.items(), reverse=True):
        shown = "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())
        markdown = f"{markdown[:start]}{shown}{markdown[end:]}"
    return markdown


def _processor_seconds() -> float:
    """User time of the blocks that have ended; of a server it counts when the document ends."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


if __name__ == "__main__":
    sys.exit(main())
