"""`twinserve compare`: the same subject, yes or no, with distance and probability."""

from __future__ import annotations

import argparse

from twinserve.cli import connection, decisions, inputs
from twinserve.cli.output import plain, print_json

DESCRIPTION = "Say whether two pictures (or texts) show the same subject."
EXAMPLES = """
  twinserve compare a.png b.png
  twinserve compare a.png b.png --far 0.001 --prior 0.01
  if twinserve compare passport.jpg selfie.jpg >/dev/null; then echo same; fi
  twinserve compare --text "card lost" "my card is gone"
"""
EXIT_CODES = decisions.EXIT_CODES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("first", metavar="FIRST", help="picture, or text")
    parser.add_argument("second", metavar="SECOND", help="picture, or text")
    inputs.add_text_flag(parser)
    inputs.add_prompt_flag(parser)
    parser.add_argument("--model", default="", help="name, name@version or alias")
    parser.add_argument(
        "--dimensions", type=inputs.positive, metavar="N", help="one of the model's truncations"
    )
    decisions.add_rule_flags(parser)
    decisions.add_prior_flag(parser)
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare the two."""
    inputs.check_prompt(arguments)
    pair = (
        inputs.one(arguments.first, text=arguments.text),
        inputs.one(arguments.second, text=arguments.text),
    )
    with connection.connect(arguments) as client:
        results = client.compare(
            [pair],
            arguments.far,
            arguments.threshold,
            arguments.prior,
            model=arguments.model,
            dimensions=arguments.dimensions,
            prompt=arguments.prompt,
        )
    (comparison,) = results.checked()
    if arguments.json:
        print_json({**plain(comparison), "model_version": results.model_version})
    else:
        decisions.print_comparison(comparison, arguments.prior)
    return decisions.exit_code(comparison.outcome)
