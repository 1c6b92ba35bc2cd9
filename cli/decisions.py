"""What compare, verify and search share: the rule's flags, the words, the exit code."""

from __future__ import annotations

import argparse

from twinserve.cli import inputs
from twinserve.cli.exit_codes import NO, NOT_CALIBRATED, OK
from twinserve.cli.output import print_fields
from twinserve.cli.terminal import painted
from twinserve.decision import Outcome
from twinserve.messages import Comparison

EXIT_CODES = "0 match; 1 no match; 3 not calibrated (distance only); 2 wrong usage or an error"

_CODES = {Outcome.MATCH: OK, Outcome.NO_MATCH: NO, Outcome.NOT_CALIBRATED: NOT_CALIBRATED}

COLOURS = {Outcome.MATCH: "green", Outcome.NO_MATCH: "red", Outcome.NOT_CALIBRATED: "yellow"}


def add_rule_flags(parser: argparse.ArgumentParser, *, search: bool = False) -> None:
    """Add --far, --threshold and, for search, --fpir; at most one may be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--far",
        type=float,
        metavar="RATE",
        help="decide at this false accept rate, such as 0.01; default: the model's own",
    )
    group.add_argument(
        "--threshold", type=float, metavar="DISTANCE", help="match iff distance <= this"
    )
    if search:
        group.add_argument(
            "--fpir",
            type=float,
            metavar="RATE",
            help="the chance that a probe of nobody in the gallery gets any match",
        )


def add_prior_flag(parser: argparse.ArgumentParser) -> None:
    """Add --prior."""
    parser.add_argument(
        "--prior",
        type=float,
        metavar="P",
        help='probability of "same" before looking (0.5)',
    )


def add_mean_flag(parser: argparse.ArgumentParser) -> None:
    """Add --mean-of."""
    parser.add_argument(
        "--mean-of",
        type=inputs.positive,
        default=1,
        metavar="M",
        help="a subject's distance is the mean of its M nearest items, not the nearest's alone; "
        "it has no probability then",
    )


def no_evidence(arguments: argparse.Namespace, *, search: bool = False) -> str:
    """Say why nothing was decided, and by which flag something may be."""
    far, fpir = arguments.far is not None, search and arguments.fpir is not None
    rate = "this rate" if far or search else "the model's own rate here"
    flag = "--fpir" if fpir or (search and not far) else "--far"
    return f"no evidence for {rate}: a larger {flag} may have some, or give a --threshold"


def exit_code(outcome: Outcome) -> int:
    """Return the exit code that tells a script the decision."""
    return _CODES[outcome]


def print_comparison(
    comparison: Comparison, arguments: argparse.Namespace, *others: tuple[str, object]
) -> None:
    """Print a decision and the evidence behind it, and other fields in line with that."""
    prior, rate = arguments.prior, None
    undecided = comparison.outcome is Outcome.NOT_CALIBRATED
    if comparison.false_accept_rate is not None:
        rate = f"{comparison.false_accept_rate:.2g}"
        if comparison.false_accept_rate_upper is not None:
            rate += f", at most {comparison.false_accept_rate_upper:.2g} (95 %)"
    probability = None
    if comparison.probability is not None:
        probability = f"{comparison.probability:.4f} (prior {0.5 if prior is None else prior:g})"
    ratio = comparison.log_likelihood_ratio
    print(painted(comparison.outcome.value.upper(), COLOURS[comparison.outcome]))
    print_fields(
        [
            ("distance", comparison.distance),
            ("threshold", comparison.threshold),
            ("why", no_evidence(arguments) if undecided else None),
            ("false accept rate", rate),
            ("probability", probability),
            ("log likelihood ratio", None if ratio is None else f"{ratio:+.3f}"),
            *others,
        ]
    )
