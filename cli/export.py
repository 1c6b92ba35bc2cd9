"""`twinserve export`: a run's twin as ONNX files, each written only if its gate passes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from twinserve.cli.exit_codes import FAULT, NO, OK
from twinserve.cli.output import print_json
from twinserve.cli.progress import Working
from twinserve.cli.terminal import warn
from twinserve.errors import ConfigError

if TYPE_CHECKING:  # brings onnxruntime, which `--help` need not wait for
    from twinserve.export.assemble import Outcome

DESCRIPTION = (
    "Write the twin of a run as ONNX files that hold their thresholds, one per precision. The "
    "fp32 file must repeat the trained twin on held-out inputs, or nothing is written; each other "
    "precision must decide like the fp32 one, or its file is not written."
)
EXAMPLES = """
  twinserve export runs/faces --out faces.onnx
  twinserve export runs/faces --out faces.onnx --name faces --version 2
  twinserve export runs/faces --out faces.onnx --precision fp32,fp16,int8
      writes faces.onnx, faces.fp16.onnx (for GPUs) and faces.int8.onnx (for CPUs)
"""
EXIT_CODES = (
    "0 done; 1 a precision did not pass its gate and the others were written; 2 wrong usage, "
    "an error, an fp32 graph that did not pass, or nothing written"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder that train left")
    parser.add_argument("--out", type=Path, required=True, metavar="twin.onnx")
    parser.add_argument("--name", help="the twin's name; default: the file's, up to its first dot")
    parser.add_argument(
        "--version", help="the twin's version; default: the first digits of its weights' digest"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="one or more of fp32, fp16, int8, with commas between (%(default)s); a file other "
        "than the fp32 one has its precision before .onnx",
    )
    parser.add_argument(
        "--import-twin",
        metavar="MODULE:CALLABLE",
        help="the code of a run's own twin, which is run when the run is opened",
    )
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="text twins: fuse the fp32 graph's attention, where that is measured to be faster "
        "here; off, equal runs give equal bytes",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the manifest as JSON; several as a list"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, and show what is in the files."""
    if not arguments.run.is_dir():
        raise ConfigError(f"{arguments.run} is no folder; give the --out of twinserve train")
    from twinserve.export.exporter import export_precisions

    if arguments.import_twin:
        from twinserve.train import own

        own.ask(arguments.import_twin)
    precisions = tuple(word.strip() for word in arguments.precision.split(",") if word.strip())
    with Working("exporting") as working:
        outcome = export_precisions(
            arguments.run,
            arguments.out,
            arguments.name,
            arguments.version,
            precisions=precisions,
            optimize=arguments.optimize,
            progress=working.stage,
        )
    return finish(outcome, arguments.out, as_json=arguments.json)


def finish(outcome: Outcome, out: Path, *, as_json: bool) -> int:
    """Show what was written, and in a sentence each what was not.

    Args:
        outcome: as it was written.
        out: the --out.
        as_json: whether to print the manifests; a list where several precisions were asked for.

    Returns:
        The exit code.
    """
    from twinserve.export.assemble import paths_for
    from twinserve.export.inspect import describe

    asked = [*(twin.precision for twin in outcome.twins), *outcome.refused]
    paths = paths_for(out, asked)
    if as_json:
        documents = [json.loads(twin.manifest.to_json()) for twin in outcome.twins]
        print_json(documents[0] if len(asked) == len(documents) == 1 else documents)
    else:
        for twin in outcome.twins:
            print(describe(twin.manifest, training=False))  # whose settings the user just gave
            print(f"\nwrote {paths[twin.precision]}\n")
        if outcome.twins:
            first = paths[outcome.twins[0].precision]
            print(f"next: twinserve serve --model {first} --data-dir data")
    for precision, error in outcome.refused.items():
        warn(f"{precision} was not written: {error.message}")
    if not outcome.refused:
        return OK
    return NO if outcome.twins else FAULT
