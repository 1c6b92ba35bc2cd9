"""`twinserve export`: a run's twin as one ONNX file, written only if the parity gate passes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from twinserve.cli.exit_codes import OK
from twinserve.cli.output import print_json
from twinserve.errors import ConfigError

DESCRIPTION = (
    "Write the twin of a run as one ONNX file that holds its thresholds. The file must repeat the "
    "trained twin on held-out inputs, or nothing is written."
)
EXAMPLES = """
  twinserve export runs/faces --out faces.onnx
  twinserve export runs/faces --out faces.onnx --name faces --version 2
"""
EXIT_CODES = "0 done; 2 wrong usage, an error, or a gate that did not pass"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder that train left")
    parser.add_argument("--out", type=Path, required=True, metavar="twin.onnx")
    parser.add_argument("--name", help="the twin's name; default: the run folder's")
    parser.add_argument("--version", help="the twin's version; default: the exporter's choice")
    parser.add_argument(
        "--precision", default="fp32", help="one or more of fp32, fp16, int8 (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Export, and show what is in the file."""
    if not arguments.run.is_dir():
        raise ConfigError(f"{arguments.run} is no folder; give the --out of twinserve train")
    from twinserve.export.exporter import export
    from twinserve.export.inspect import describe

    options = {
        name: value
        for name in ("name", "version", "precision")
        if (value := getattr(arguments, name)) is not None
    }
    manifest = export(
        arguments.run,
        arguments.out,
        **options,
        progress=lambda step: print(f"{step} …", file=sys.stderr),
    )
    if arguments.json:
        print_json(json.loads(manifest.to_json()))
    else:
        print(describe(manifest))
        print(f"\nwrote {arguments.out}")
        print(f"next: twinserve serve --model {arguments.out} --data-dir data")
    return OK
