"""`twinserve inspect`: everything that a twin file says of itself; the graph is not opened."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from twinserve import manifest
from twinserve.cli.exit_codes import OK
from twinserve.cli.output import print_json
from twinserve.export.inspect import describe

DESCRIPTION = "Show the manifest of a twin file: input, space, thresholds with their evidence."
EXAMPLES = """
  twinserve inspect twin.onnx
  twinserve inspect twin.onnx --json | jq .calibrations
"""
EXIT_CODES = "0 done; 2 wrong usage, or not a twin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", type=Path, metavar="twin.onnx")
    parser.add_argument("--json", action="store_true", help="print the manifest as it is")


def run(arguments: argparse.Namespace) -> int:
    """Read and print."""
    found = manifest.read(arguments.file)
    if arguments.json:
        print_json(json.loads(found.to_json()))
    else:
        print(describe(found))
    return OK
