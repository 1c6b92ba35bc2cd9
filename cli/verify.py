"""`twinserve verify`: is this probe that subject of the gallery (1:1)?"""

from __future__ import annotations

import argparse

from twinserve.cli import connection, decisions, inputs
from twinserve.cli.output import print_json

DESCRIPTION = (
    "Say whether a probe is one subject of a gallery. The false accept rate holds for the subject "
    "as a whole, however many items it has."
)
EXAMPLES = """
  twinserve verify people alice probe.jpg
  twinserve verify people alice probe.jpg --far 0.001 --json
"""
EXIT_CODES = decisions.EXIT_CODES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("gallery", metavar="GALLERY")
    parser.add_argument("subject", metavar="SUBJECT")
    parser.add_argument("probe", metavar="PROBE", help="picture, or text")
    inputs.add_text_flag(parser)
    inputs.add_prompt_flag(parser)
    decisions.add_rule_flags(parser)
    decisions.add_prior_flag(parser)
    decisions.add_mean_flag(parser)
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Verify the probe."""
    inputs.check_prompt(arguments)
    probe = inputs.one(arguments.probe, text=arguments.text)
    with connection.connect(arguments) as client:
        verification = client.verify(
            arguments.gallery,
            arguments.subject,
            probe,
            arguments.far,
            arguments.threshold,
            arguments.prior,
            prompt=arguments.prompt,
            mean_of=arguments.mean_of,
        )
    if arguments.json:
        print_json(verification)
    else:
        decisions.print_comparison(
            verification,
            arguments,
            ("nearest item", verification.item_id),
            ("items compared", verification.items_compared),
        )
    return decisions.exit_code(verification.outcome)
