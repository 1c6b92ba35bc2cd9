"""`twinserve search`: who is this, or nobody (1:N)?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from twinserve.cli import connection, decisions, inputs, metadata
from twinserve.cli.output import complain, plain, print_json, print_table
from twinserve.cli.progress import Progress
from twinserve.cli.terminal import painted
from twinserve.decision import Outcome
from twinserve.errors import TwinserveError
from twinserve.messages import Hits, Results

DESCRIPTION = "Find the subjects of a gallery that are nearest to each probe, and decide."
EXAMPLES = """
  twinserve search people probe.jpg
  twinserve search people inbox/ --top-k 3 --fpir 0.01
  twinserve search people 'inbox/*.jpg' --json
  ls inbox/*.jpg | twinserve search people -
  twinserve search questions --csv asked.csv --column question --text
  twinserve search people probe.jpg --filter site=north --filter 'age>=18'
  twinserve search questions --text "where is my card?" --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("gallery", metavar="GALLERY")
    parser.add_argument(
        "probes", nargs="*", metavar="PROBE", help="picture, folder, pattern, text, or -"
    )
    inputs.add_source_flags(parser)
    inputs.add_text_flag(parser)
    inputs.add_prompt_flag(parser)
    parser.add_argument(
        "--top-k", type=inputs.positive, default=10, metavar="K", help="most hits (%(default)s)"
    )
    decisions.add_rule_flags(parser, search=True)
    parser.add_argument("--max-distance", type=float, metavar="D", help="drop hits farther than D")
    parser.add_argument(
        "--by",
        choices=("subject", "item"),
        default="subject",
        help="what a hit is (%(default)s)",
    )
    decisions.add_mean_flag(parser)
    metadata.add_filter_flag(parser)
    parser.add_argument("--exact", action="store_true", help="scan every item, without the index")
    parser.add_argument("--full", action="store_true", help="metadata too; with --json, times")
    inputs.add_batch_flag(parser)
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search for every probe, batch by batch."""
    inputs.check_prompt(arguments)
    named = inputs.gathered(arguments, arguments.probes)
    found: list[Hits | TwinserveError] = []
    with connection.connect(arguments) as client, Progress(len(named), "probes") as progress:
        wanted = metadata.filter_of(client, arguments.gallery, arguments.filter)

        def search(batch: Sequence[Path | str]) -> Results[Hits]:
            return client.search(
                arguments.gallery,
                batch,
                arguments.top_k,
                arguments.far,
                arguments.threshold,
                arguments.fpir,
                prompt=arguments.prompt,
                filter=wanted,
                max_distance=arguments.max_distance,
                by_item=arguments.by == "item",
                exact=arguments.exact,
                mean_of=arguments.mean_of,
                full=arguments.full,
            )

        for batch in inputs.batches(named, arguments.batch):
            found.extend(inputs.answers(search, batch))
            progress.advance(len(batch))
    if arguments.json:
        print_json(
            [{"probe": str(name), **plain(hits)} for name, hits in zip(named, found, strict=True)]
        )
    else:
        for name, hits in zip(named, found, strict=True):
            if isinstance(hits, TwinserveError):
                complain(name, hits)
            else:
                _print_hits(str(name), hits, arguments)
    return inputs.exit_code(found)


def _print_hits(name: str, hits: Hits, arguments: argparse.Namespace) -> None:
    facts = [painted(hits.outcome.value, decisions.COLOURS[hits.outcome])]
    if hits.threshold is not None:
        source = f" (by the {hits.evidence})" if hits.evidence else ""
        facts.append(f"threshold {hits.threshold:.4f}{source}")
    if hits.outcome is Outcome.NOT_CALIBRATED:
        facts.append(decisions.no_evidence(arguments, search=True))
    rate = hits.false_positive_identification_rate
    if rate is not None:
        upper = hits.false_positive_identification_rate_upper
        bound = "" if upper is None else f" (at most {upper:.2g})"
        facts.append(f"a stranger matches somebody at a rate of {rate:.2g}{bound}")
    if hits.expected_false_matches is not None:
        facts.append(f"{hits.expected_false_matches:.2g} false matches expected by chance")
    print(f"{name}: {', '.join(facts)}")
    if hits:
        columns = ["rank", "subject", "item", "distance", "match", "probability"]
        rows: list[list[object]] = [
            [rank, hit.subject, hit.item.id, hit.distance, hit.match, hit.probability]
            for rank, hit in enumerate(hits, 1)
        ]
        if hits.match is None:  # no threshold: no hit is a match, and none is refused
            for row in rows:
                row[columns.index("match")] = None
        if arguments.full:
            columns.append("metadata")
            for row, hit in zip(rows, hits, strict=True):
                row.append(metadata.shown(hit.item.metadata))
        print_table(columns, rows)
    print()
