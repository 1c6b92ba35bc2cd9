"""`twinserve calibrate`: a twin's thresholds, from labelled data or judged pairs of the user's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from twinserve.cli.exit_codes import OK
from twinserve.cli.inputs import positive
from twinserve.cli.output import print_json
from twinserve.cli.progress import Progress

DESCRIPTION = (
    "Set a twin's thresholds from evidence of your own: labelled items, or pairs that somebody "
    "judged, of subjects that the twin was not trained on. The file is written anew, whole or not "
    "at all; its graph stays as it is. A rate that the evidence does not carry gets no threshold. "
    "Rates set from pairs are those of pairs drawn in the same way: among near misses that "
    "somebody picked, false accepts are more frequent than among strangers."
)
EXAMPLES = """
  twinserve calibrate minilm.onnx --data questions.csv --far 0.001
  twinserve calibrate minilm.onnx --pairs judged.csv --same-above 4 --out ours.onnx
  twinserve calibrate faces.onnx --data faces/

  questions.csv has the columns text and label; faces/ (or a zip) one folder of pictures per
  subject, or a CSV has their paths and labels; vectors come as npz, npy or Parquet (docs/data.md).
  judged.csv has the columns first, second and same (0 or 1, yes or no) or score, and perhaps
  first_subject and second_subject; its texts stand inline, pictures as paths from its folder.
"""
EXIT_CODES = "0 done; 2 wrong usage, evidence that cannot be used, or that does not carry a rate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", type=Path, metavar="twin.onnx")
    evidence = parser.add_mutually_exclusive_group(required=True)
    evidence.add_argument("--data", type=Path, metavar="PATH", help="labelled items")
    evidence.add_argument("--pairs", type=Path, metavar="FILE", help="judged pairs")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write here instead of into the file itself"
    )
    parser.add_argument(
        "--far",
        type=float,
        action="append",
        default=[],
        metavar="R",
        help="a false accept rate that the evidence must carry, or nothing is written; may be "
        "given several times",
    )
    parser.add_argument(
        "--default-far",
        type=float,
        metavar="R",
        help="the rate used when a request names none (0.01); the evidence must carry it",
    )
    parser.add_argument(
        "--same-above",
        type=float,
        metavar="X",
        help="pairs are judged by a score, and count as the same from X on",
    )
    for column in ("text", "label"):
        parser.add_argument(
            f"--{column}-column",
            default="",
            metavar="NAME",
            help=f"the {column}'s column in a CSV of labelled items, by name or number from 1",
        )
    parser.add_argument("--threads", type=positive, metavar="N", help="of onnxruntime")
    parser.add_argument("--json", action="store_true", help="print the new manifest as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, and show what was found."""
    from twinserve.export.calibrator import Wishes, calibrate_file
    from twinserve.export.evidence_text import describe_calibrations
    from twinserve.export.labelled import Columns

    wishes = Wishes(
        rates=tuple(arguments.far),
        default_far=arguments.default_far,
        same_above=arguments.same_above,
        columns=Columns(arguments.text_column, arguments.label_column),
    )
    with Progress(0, "items") as progress:
        manifest = calibrate_file(
            arguments.file,
            data=arguments.data,
            pairs=arguments.pairs,
            out=arguments.out,
            wishes=wishes,
            threads=arguments.threads,
            stage=lambda stage: progress.say(f"{stage} …"),
            advance=progress.reach,
        )
    if arguments.json:
        print_json(json.loads(manifest.to_json()))
        return OK
    own = [entry for entry in manifest.calibrations if entry.precision == manifest.precision]
    print(f"{manifest.name}@{manifest.version}, {manifest.precision}\n")
    print("\n\n".join(describe_calibrations(own, manifest.dimension, wishes.rates)))
    written = arguments.file if arguments.out is None else arguments.out
    print(f"\nwrote {written}")
    print(f"next: twinserve serve --model {written} --data-dir data")
    return OK
