"""`twinserve compare`: the same subject, yes or no, of one pair or of a table of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from twinserve.cli import connection, decisions, inputs
from twinserve.cli.output import complain, plain, print_json, print_table
from twinserve.cli.progress import Progress
from twinserve.client import Client
from twinserve.errors import ConfigError, TwinserveError
from twinserve.messages import Comparison, Results

DESCRIPTION = (
    "Say whether two pictures (or texts) show the same subject; with --csv, for each row of a "
    "table with the columns first and second."
)
EXAMPLES = """
  twinserve compare a.png b.png
  twinserve compare a.png b.png --far 0.001 --prior 0.01
  if twinserve compare passport.jpg selfie.jpg >/dev/null; then echo same; fi
  twinserve compare --text "card lost" "my card is gone"
  twinserve compare --csv pairs.csv --json           # columns first and second, or --columns
  twinserve compare --csv questions.csv --columns asked,archived --text
"""
EXIT_CODES = (
    f"{decisions.EXIT_CODES}\n"
    "  with --csv: 0 all pairs were compared; 1 some failed; 2 wrong usage, an error, or all failed"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("first", nargs="?", metavar="FIRST", help="picture, or text")
    parser.add_argument("second", nargs="?", metavar="SECOND", help="picture, or text")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="compare the pairs of this table")
    parser.add_argument(
        "--columns",
        metavar="FIRST,SECOND",
        help="of --csv: paths (from the table's folder) or, with --text, texts (first,second)",
    )
    inputs.add_text_flag(parser)
    inputs.add_prompt_flag(parser)
    parser.add_argument("--model", default="", help="name, name@version or alias")
    parser.add_argument(
        "--dimensions", type=inputs.positive, metavar="N", help="one of the model's truncations"
    )
    decisions.add_rule_flags(parser)
    decisions.add_prior_flag(parser)
    inputs.add_batch_flag(parser)
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare the two, or all pairs of the table."""
    inputs.check_prompt(arguments)
    if arguments.csv is not None:
        if arguments.first is not None:
            raise ConfigError("give two inputs or a --csv table of pairs, not both")
        return _compare_table(arguments)
    if arguments.columns is not None:
        raise ConfigError(f"--columns {arguments.columns} was given without --csv; name the file")
    if arguments.second is None:
        raise ConfigError("compare takes two inputs, or --csv with a table of pairs")
    pair = (
        inputs.one(arguments.first, text=arguments.text),
        inputs.one(arguments.second, text=arguments.text),
    )
    with connection.connect(arguments) as client:
        results = _ask(client, [pair], arguments)
    (comparison,) = results.checked()
    if arguments.json:
        print_json({**plain(comparison), "model_version": results.model_version})
    else:
        decisions.print_comparison(comparison, arguments)
    return decisions.exit_code(comparison.outcome)


def _compare_table(arguments: argparse.Namespace) -> int:
    names = (arguments.columns or "first,second").split(",")
    if len(names) != 2:
        raise ConfigError(f"--columns is {arguments.columns}; name two, such as first,second")
    firsts, seconds = (inputs.column_of(arguments.csv, name, text=arguments.text) for name in names)
    pairs = list(zip(firsts, seconds, strict=True))
    found: list[Comparison | TwinserveError] = []
    with connection.connect(arguments) as client, Progress(len(pairs), "pairs") as progress:
        for batch in inputs.batches(pairs, arguments.batch):
            found.extend(inputs.answers(lambda b: _ask(client, b, arguments), batch))
            progress.advance(len(batch))
    named = [(str(first), str(second)) for first, second in pairs]
    if arguments.json:
        print_json(
            [
                {"first": first, "second": second, **plain(one)}
                for (first, second), one in zip(named, found, strict=True)
            ]
        )
    else:
        _print_table(named, found)
    return inputs.exit_code(found)


def _ask(
    client: Client, pairs: Sequence[tuple[Path | str, Path | str]], arguments: argparse.Namespace
) -> Results[Comparison]:
    return client.compare(
        pairs,
        arguments.far,
        arguments.threshold,
        arguments.prior,
        model=arguments.model,
        dimensions=arguments.dimensions,
        prompt=arguments.prompt,
    )


def _print_table(
    named: Sequence[tuple[str, str]], found: Sequence[Comparison | TwinserveError]
) -> None:
    rows = [
        (first, second, one.outcome.value, one.distance, one.probability)
        for (first, second), one in zip(named, found, strict=True)
        if not isinstance(one, TwinserveError)
    ]
    if rows:
        print_table(("first", "second", "outcome", "distance", "probability"), rows)
    for (first, second), one in zip(named, found, strict=True):
        if isinstance(one, TwinserveError):
            complain(f"{first} and {second}", one)
