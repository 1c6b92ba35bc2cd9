"""`twinserve embed`: inputs to vectors, printed, or kept as an array on disk."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.cli import connection, inputs
from twinserve.cli.output import complain, plain, print_json, print_table
from twinserve.cli.progress import Progress
from twinserve.errors import ConfigError, FailedPrecondition, TwinserveError
from twinserve.messages import ENCODINGS, Embeddings, Vector

DESCRIPTION = (
    "Turn pictures (or texts) into vectors. A folder stands for all pictures below it, a pattern "
    "in quotes for the files named like it, and - for a list on standard input."
)
# Batches from which on they go over one stream, several at a time.
_MANY = 4
EXAMPLES = """
  twinserve embed face.jpg --json
  twinserve embed photos/ --out vectors.npy
  twinserve embed photos/ --out bits.npy --encoding binary
  twinserve embed 'photos/**/*.jpg' --out vectors.npy
  twinserve embed --csv faces.csv --column file --out vectors.npy
  find photos -name '*.jpg' -print0 | twinserve embed -0 - --out vectors.npy
  twinserve embed --text "where is my card?" --prompt query
  twinserve embed --text - --out vectors.npy < questions.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="picture, folder, pattern, text, or -"
    )
    inputs.add_source_flags(parser)
    inputs.add_text_flag(parser)
    inputs.add_prompt_flag(parser)
    parser.add_argument(
        "--truncate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="cut texts over the model's limit, or refuse them (the model's own rule)",
    )
    parser.add_argument("--model", default="", help="name, name@version or alias")
    parser.add_argument(
        "--dimensions", type=inputs.positive, metavar="N", help="one of the model's truncations"
    )
    parser.add_argument(
        "--encoding",
        choices=ENCODINGS,
        help="how vectors travel: float16 in half the bytes, int8 in a quarter, both with less "
        "precision; binary as bits (whether above 0), for Hamming distance (float32)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.npy",
        help="write float32 [inputs, dimension], rows that failed NaN; of --encoding binary bool, "
        "rows that failed False",
    )
    inputs.add_batch_flag(parser)
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Embed all inputs, batch by batch."""
    if arguments.out is not None and arguments.out.suffix != ".npy":
        raise ConfigError(f"--out is {arguments.out}; give a name that ends in .npy")
    inputs.check_prompt(arguments)
    named = inputs.gathered(arguments, arguments.inputs)
    found: list[Vector | TwinserveError] = []
    versions: set[str] = set()
    cut: list[Path | str] = []
    with connection.connect(arguments) as client, Progress(len(named), "inputs") as progress:

        def read(batch: Sequence[Path | str], reply: Embeddings) -> list[Vector | TwinserveError]:
            if reply.model_version:
                versions.add(reply.model_version)
            cut.extend(name for name, was in zip(batch, reply.truncated, strict=True) if was)
            return [error or reply[i] for i, error in enumerate(reply.errors)]

        options = {
            "model": arguments.model,
            "dimensions": arguments.dimensions,
            "prompt": arguments.prompt,
            "truncate": arguments.truncate,
            "encoding": arguments.encoding,
        }
        parts = list(inputs.batches(named, arguments.batch))
        if len(parts) < _MANY:
            for batch in parts:
                found.extend(inputs.answers(lambda b: read(b, client.embed(b, **options)), batch))
                progress.advance(len(batch))
        else:
            replies = client.embed_stream(named, batch=arguments.batch, **options)
            for batch, reply in zip(parts, replies, strict=True):
                found.extend(read(batch, reply))
                progress.advance(len(batch))
    vectors = [answer for answer in found if isinstance(answer, Vector)]
    if len({vector.space_id for vector in vectors}) > 1:
        raise FailedPrecondition(
            f"the model changed on the way ({', '.join(sorted(versions))}), and the vectors are "
            "of several spaces; embed again, with --model NAME@VERSION"
        )
    if not vectors:
        _complain(named, found)
        return inputs.exit_code(found)
    kind = vectors[0].values.dtype
    if arguments.out is not None:
        missing = np.full(len(vectors[0].values), np.nan if kind == np.float32 else False, kind)
        np.save(
            arguments.out,
            np.stack([a.values if isinstance(a, Vector) else missing for a in found]),
        )
    if arguments.json:
        _print_json(arguments.out, named, found, vectors[0], versions, cut)
    else:
        print(f"model {', '.join(sorted(versions))}, space {vectors[0].space_id}")
        if arguments.out is not None:
            print(f"wrote {kind} [{len(found)}, {len(vectors[0].values)}] to {arguments.out}")
        else:
            _print_vectors(named, found)
        if cut:
            print(
                f"{len(cut)} of {len(named)} texts are over the model's limit and were cut; "
                "--no-truncate refuses them"
            )
        _complain(named, found)
    return inputs.exit_code(found)


def _print_json(
    out: Path | None,
    named: Sequence[Path | str],
    found: Sequence[Vector | TwinserveError],
    first: Vector,
    versions: set[str],
    cut: Sequence[Path | str],
) -> None:
    results = []
    for name, answer in zip(named, found, strict=True):
        if isinstance(answer, TwinserveError):
            results.append({"input": str(name), **plain(answer)})
        else:
            results.append({"input": str(name), "embedding": None if out else _numbers(answer)})
    print_json(
        {
            "model_version": ", ".join(sorted(versions)),
            "space_id": first.space_id,
            "dimension": len(first.values),
            "file": None if out is None else str(out),
            "truncated": [str(name) for name in cut],
            "results": results,
        }
    )


def _print_vectors(named: Sequence[Path | str], found: Sequence[Vector | TwinserveError]) -> None:
    rows: list[tuple[object, ...]] = []
    length = "length"
    for name, answer in zip(named, found, strict=True):
        if not isinstance(answer, Vector):
            continue
        values = _numbers(answer)
        size: float = float(np.linalg.norm(values))
        first = " ".join(f"{value:+.4f}" for value in values[:4])
        if answer.values.dtype == np.bool_:
            length, size = "ones", int(values.sum())
            first = "".join(str(value) for value in values[:16])
        rows.append((_short(name), len(values), size, f"{first} …"))
    print_table(("input", "dimension", length, "first values"), rows)


def _numbers(vector: Vector) -> NDArray[Any]:
    """Return a vector as it is shown: of bits, 0 and 1."""
    values: NDArray[Any] = vector.values
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def _complain(named: Sequence[Path | str], found: Sequence[Vector | TwinserveError]) -> None:
    for name, answer in zip(named, found, strict=True):
        if isinstance(answer, TwinserveError):
            complain(name, answer)


def _short(name: Path | str) -> str:
    text = str(name)
    return text if len(text) <= 48 else f"…{text[-47:]}"
