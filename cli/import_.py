"""`twinserve import`: a model made elsewhere as a twin, with thresholds where data is given.

What the model's files leave open is guessed, and the guesses are shown on standard error, each with
its reason and the flag that sets it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twinserve.cli.exit_codes import FAULT, NO, OK
from twinserve.cli.inputs import positive
from twinserve.cli.output import print_json
from twinserve.cli.progress import Working
from twinserve.cli.terminal import warn
from twinserve.distance import Metric

if TYPE_CHECKING:
    from twinserve.train.pretrained.settings import Answer, Settings

DESCRIPTION = (
    "Make a twin of a model made elsewhere: a folder of sentence-transformers, transformers or "
    "Optimum, or an ONNX file. The twin must repeat the model on real inputs, or nothing is "
    "written. What the model's files do not say is guessed, shown, and set by flags."
)
EXAMPLES = """
  twinserve import all-MiniLM-L6-v2/ --out minilm.onnx
  twinserve import all-MiniLM-L6-v2/ --out minilm.onnx --data questions.csv
      thresholds from a CSV of texts and their labels
  twinserve import model/ --out model.onnx --pairs pairs.csv --precision fp32,int8
      thresholds from judged pairs: columns first, second, same
  twinserve import matryoshka/ --out m.onnx --truncations 256,128
  twinserve import face.onnx --out face.onnx --color-order BGR --scale 1/127.5 --mean 1 \\
      --metric cosine --data faces/
"""
EXIT_CODES = (
    "0 done; 1 a precision did not pass its gate and the others were written; 2 wrong usage, "
    "an error, or nothing written"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("path", type=Path, metavar="PATH", help="the model's folder, or ONNX file")
    parser.add_argument("--out", type=Path, required=True, metavar="twin.onnx")
    parser.add_argument("--name", help="the twin's name; default: the file's, up to its first dot")
    parser.add_argument(
        "--version", help="the twin's version; default: the first digits of its digest"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="one or more of fp32, fp16, int8, with commas between (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")

    measure = parser.add_argument_group("what it is measured on")
    measure.add_argument(
        "--data", type=Path, help="labelled items for thresholds: a folder or CSV, as in training"
    )
    measure.add_argument(
        "--pairs", type=Path, help="judged pairs for thresholds: CSV of first, second, same"
    )
    measure.add_argument(
        "--same-above", type=float, metavar="X", help="pairs with a score: the same from X on"
    )
    measure.add_argument(
        "--samples",
        type=Path,
        help="inputs for the gate alone: a file of a text per line, a folder of pictures, or .npy",
    )

    any_kind = parser.add_argument_group("any model")
    any_kind.add_argument("--metric", type=_metric, metavar="|".join(Metric))
    any_kind.add_argument(
        "--pooling", type=_words, help="how tokens or places become one vector: mean, cls, max, …"
    )
    any_kind.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale to unit length"
    )
    any_kind.add_argument(
        "--truncations", type=_numbers, metavar="N,N", help="smaller dimensions of use (Matryoshka)"
    )
    any_kind.add_argument(
        "--dimension", type=positive, metavar="N", help="text: keep the leading N coordinates"
    )

    text = parser.add_argument_group("texts")
    text.add_argument("--max-tokens", type=positive, metavar="N")
    text.add_argument(
        "--prompt",
        type=_prompt,
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a text put before the input where a call asks for it by name; may be repeated",
    )
    text.add_argument("--default-prompt", metavar="NAME", help="used where a call names none")
    text.add_argument("--tokenizer", type=Path, metavar="tokenizer.json")
    text.add_argument("--pad-id", type=int, metavar="N", help="id that pads shorter texts")

    image = parser.add_argument_group("pictures")
    image.add_argument("--size", type=_size, metavar="HEIGHTxWIDTH")
    image.add_argument("--color-order", metavar="L|RGB|BGR")
    image.add_argument("--resize", metavar="stretch|crop|pad")
    image.add_argument("--resample", metavar="bilinear|bicubic|…")
    image.add_argument(
        "--scale", type=_number, metavar="X", help="multiplies pixels of 0..255, such as 1/255"
    )
    image.add_argument("--mean", type=_floats, metavar="X,X,X", help="subtracted after scale")
    image.add_argument("--std", type=_floats, metavar="X,X,X", help="divided by after mean")

    plain = parser.add_argument_group("an ONNX file alone")
    plain.add_argument("--modality", metavar="image|text|tensor")
    plain.add_argument("--output", metavar="NAME", help="which of several outputs embeds")
    plain.add_argument(
        "--open-batch",
        action="store_true",
        help="open a batch that the graph fixes; written only if other batches agree with it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Import, and show what is in the files."""
    from twinserve.export.imports.importer import Measure, import_model
    from twinserve.export.inspect import describe

    precisions = tuple(word.strip() for word in arguments.precision.split(",") if word.strip())
    measure = Measure(
        data=arguments.data,
        pairs=arguments.pairs,
        same_above=arguments.same_above,
        samples=arguments.samples,
    )
    with Working("importing") as working:
        done = import_model(
            arguments.path,
            arguments.out,
            name=arguments.name,
            version=arguments.version,
            precisions=precisions,
            settings=_settings(arguments),
            measure=measure,
            progress=working.stage,
            tell=lambda answers: _show(answers, working),
        )
    twins = done.outcome.twins
    if arguments.json:
        documents = [json.loads(twin.manifest.to_json()) for twin in twins]
        print_json(documents if len(precisions) > 1 else documents[0] if documents else None)
    else:
        for twin in twins:
            print(describe(twin.manifest))
            print(f"\nwrote {done.paths[twin.precision]}\n")
        if twins:
            first = done.paths[twins[0].precision]
            if not twins[0].manifest.calibrations:
                print(f"no thresholds yet: twinserve calibrate {first} --pairs pairs.csv")
            print(f"next: twinserve serve --model {first} --data-dir data")
    for precision, error in done.outcome.refused.items():
        warn(f"{precision} was not written: {error.message}")
    if not done.outcome.refused:
        return OK
    return NO if twins else FAULT


def _settings(arguments: argparse.Namespace) -> Settings:
    from twinserve.train.pretrained.settings import Settings

    return Settings(
        metric=arguments.metric,
        pooling=arguments.pooling,
        normalize=arguments.normalize,
        truncations=arguments.truncations,
        dimension=arguments.dimension,
        max_tokens=arguments.max_tokens,
        prompts=dict(arguments.prompt),
        default_prompt=arguments.default_prompt,
        tokenizer=arguments.tokenizer,
        pad_id=arguments.pad_id,
        size=arguments.size,
        color_order=arguments.color_order,
        resize=arguments.resize,
        resample=arguments.resample,
        scale=arguments.scale,
        mean=arguments.mean,
        std=arguments.std,
        modality=arguments.modality,
        output=arguments.output,
        open_batch=arguments.open_batch,
    )


def _show(answers: Sequence[Answer], working: Working) -> None:
    """Print what was taken for each question, guesses marked, on standard error."""
    if not answers:
        return
    rows = [
        (
            answer.question,
            answer.taken,
            f"{'guessed: ' if answer.guessed else ''}{answer.because}",
            answer.flag,
        )
        for answer in answers
    ]
    header = ("ASKED", "TAKEN", "BECAUSE", "SET WITH")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(3)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        working.say("  ".join([*cells, row[3]]))


def _metric(text: str) -> Metric:
    try:
        return Metric(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no metric; known are {', '.join(Metric)}"
        ) from error


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace("+", ",").split(",") if word)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(positive(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 256,128") from error


def _number(text: str) -> float:
    """Parse a number or a fraction, such as 1/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        number = float(numerator) / float(denominator if slash else 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return number


def _floats(text: str) -> tuple[float, ...]:
    return tuple(_number(word) for word in text.split(","))


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.lower().partition("x")
    try:
        return positive(height), positive(width if times else height)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 224x224") from error


def _prompt(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TEXT")
    return name, value
