"""`twinserve inspect`: everything that a twin file says of itself; the graph is not opened."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from twinserve import manifest
from twinserve.cli.exit_codes import OK
from twinserve.cli.output import print_json
from twinserve.errors import ConfigError
from twinserve.export import det
from twinserve.export.inspect import describe

DESCRIPTION = (
    "Show the manifest of a twin file: input, space, thresholds with their evidence and what it "
    "would take for smaller rates, the parity gate, and where the twin is from."
)
EXAMPLES = """
  twinserve inspect twin.onnx
  twinserve inspect twin.onnx --json | jq .calibrations
  twinserve inspect twin.onnx --det det.png
"""
EXIT_CODES = "0 done; 2 wrong usage, or not a twin"
_TERMINAL = "-"
# As many curves as can be told apart.
_CURVES_OF_TEXT, _CURVES_OF_PICTURE = 3, 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", type=Path, metavar="twin.onnx")
    parser.add_argument("--json", action="store_true", help="print the manifest as it is")
    parser.add_argument(
        "--det",
        nargs="?",
        const=_TERMINAL,
        metavar="FILE.png",
        help="draw false rejects over false accepts, here or as a PNG; on a terminal it is drawn "
        "unasked",
    )


def run(arguments: argparse.Namespace) -> int:
    """Read and print."""
    found = manifest.read(arguments.file)
    picture = None if arguments.det in (None, _TERMINAL) else Path(arguments.det)
    most = _CURVES_OF_TEXT if picture is None else _CURVES_OF_PICTURE
    chosen = det.curves(found.calibrations, found.dimension, most)
    if arguments.det is not None and not chosen:
        raise ConfigError(
            f"{arguments.file} holds no calibration to draw; run `twinserve calibrate` first"
        )
    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise ConfigError(f"--det {picture} is no .png; name one, or give --det alone")
        det.save_png(chosen, picture, f"{found.name}@{found.version}")
    if arguments.json:
        print_json(json.loads(found.to_json()))
        return OK
    print(describe(found))
    if chosen and (arguments.det == _TERMINAL or (picture is None and sys.stdout.isatty())):
        print()
        print(det.plot(chosen))
    if picture is not None:
        print(f"\nwrote {picture}")
    return OK
