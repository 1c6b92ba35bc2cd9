"""`twinserve model`: which twins a server runs, and what each says of itself."""

from __future__ import annotations

import argparse
import json

from twinserve.cli import connection
from twinserve.cli.exit_codes import OK
from twinserve.cli.output import plain, print_fields, print_json, print_table
from twinserve.client import Client

DESCRIPTION = "List the models of a server, or show one."
EXAMPLES = """
  twinserve model list
  twinserve model show
  twinserve model show faces@3 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all loaded models, by name and version")
    showing = actions.add_parser("show", help="one model, with all that its manifest says")
    showing.add_argument(
        "name", nargs="?", default="", help="name, name@version or alias; default: the only one"
    )
    for action in (listing, showing):
        connection.add_arguments(action)


def run(arguments: argparse.Namespace) -> int:
    """List or show."""
    with connection.connect(arguments) as client:
        if arguments.action == "list":
            _list(client, arguments.json)
        else:
            _show(client, arguments.name, arguments.json)
    return OK


def _list(client: Client, as_json: bool) -> None:
    models = list(client.models())
    if as_json:
        print_json([_document(plain(model)) for model in models])
        return
    print_table(
        ("name", "version", "modality", "dimension", "metric", "precision", "provider", "space"),
        [
            (
                model.name,
                model.version,
                model.modality,
                model.dimension,
                model.metric,
                model.precision,
                model.provider,
                model.space_id,
            )
            for model in models
        ],
    )


def _show(client: Client, name: str, as_json: bool) -> None:
    model = client.model(name)
    if as_json:
        print_json(_document(plain(model)))
        return
    # Rendering a manifest is the exporter's; it needs no torch.
    from twinserve.export.inspect import describe

    print_fields(
        [
            ("served as", f"{model.name}@{model.version}"),
            ("aliases", ", ".join(model.aliases) or None),
            ("provider", model.provider),
        ]
    )
    print()
    print(describe(model.manifest()))


def _document(model: dict[str, object]) -> dict[str, object]:
    """Return the model with its manifest as an object instead of a text."""
    text = str(model.pop("manifest_json"))
    return {**model, "manifest": json.loads(text) if text else None}
