"""`twinserve gallery`: create, list, show, empty and delete galleries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from twinserve.cli import connection, inputs
from twinserve.cli.exit_codes import NO, OK
from twinserve.cli.output import print_fields, print_json, print_table
from twinserve.client import Client, Gallery
from twinserve.errors import ConfigError

DESCRIPTION = "Create, list, show, empty and delete galleries."
EXAMPLES = """
  twinserve gallery create people --key site=text --key age=integer
  twinserve gallery list
  twinserve gallery items people
  twinserve gallery remove people --subject alice
  twinserve gallery delete people --yes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a gallery")
    create.add_argument("name", metavar="NAME", help="lower-case letters, digits, . _ -")
    create.add_argument("--model", default="", help="the twin whose space it takes")
    create.add_argument(
        "--dimension",
        type=inputs.positive,
        default=0,
        metavar="N",
        help="one of the twin's truncations; default: its full dimension",
    )
    create.add_argument("--metric", choices=("euclidean", "cosine"), help="default: the twin's")
    create.add_argument(
        "--max-items", type=int, default=0, metavar="N", help="default: the server's limit"
    )
    create.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="KEY=TYPE",
        help="a metadata key to filter by: text, integer, number, flag or time; repeat for more",
    )
    listing = actions.add_parser("list", help="all galleries, by name")
    show = actions.add_parser("show", help="one gallery")
    items = actions.add_parser("items", help="the items of a gallery, by id")
    remove = actions.add_parser("remove", help="delete items by id, or all of a subject")
    delete = actions.add_parser("delete", help="delete a gallery with all its items")
    for action in (show, items, remove, delete):
        action.add_argument("name", metavar="NAME")
    remove.add_argument("ids", nargs="*", metavar="ID")
    remove.add_argument("--subject")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    for action in (create, listing, show, items, remove, delete):
        connection.add_arguments(action)


def run(arguments: argparse.Namespace) -> int:
    """Do the action."""
    with connection.connect(arguments) as client:
        match arguments.action:
            case "create":
                gallery = client.create_gallery(
                    arguments.name,
                    model=arguments.model,
                    dimension=arguments.dimension,
                    metric=arguments.metric,
                    metadata_keys=_keys(arguments.key),
                    max_items=arguments.max_items,
                )
                _show(gallery, arguments.json)
            case "list":
                _list(list(client.list_galleries()), arguments.json)
            case "show":
                _show(client.get_gallery(arguments.name), arguments.json)
            case "items":
                _items(client, arguments)
            case "remove":
                _remove(client, arguments)
            case "delete":
                return _delete(client, arguments)
    return OK


def _keys(texts: Sequence[str]) -> dict[str, str]:
    keys = {}
    for text in texts:
        key, separator, kind = text.partition("=")
        if not (key and separator and kind):
            raise ConfigError(f"--key is {text!r}; write KEY=TYPE, such as site=text")
        keys[key] = kind
    return keys


def _list(galleries: Sequence[Gallery], as_json: bool) -> None:
    if as_json:
        print_json(list(galleries))
        return
    print_table(
        ("name", "items", "subjects", "dimension", "metric", "index debt", "model"),
        [
            (
                gallery.name,
                gallery.item_count,
                gallery.subject_count,
                gallery.dimension,
                gallery.metric,
                gallery.index_debt,
                gallery.model,
            )
            for gallery in galleries
        ],
    )


def _show(gallery: Gallery, as_json: bool) -> None:
    if as_json:
        print_json(gallery)
        return
    keys = ", ".join(f"{key} ({kind})" for key, kind in gallery.metadata_keys.items())
    print_fields(
        [
            ("name", gallery.name),
            ("model", gallery.model),
            ("space", gallery.space_id),
            ("dimension", gallery.dimension),
            ("metric", gallery.metric),
            ("items", gallery.item_count),
            ("subjects", gallery.subject_count),
            ("most items", gallery.max_items or None),
            ("index debt", gallery.index_debt),
            ("segments", gallery.segment_count),
            ("dead vectors", gallery.dead_count),
            ("bytes in memory", gallery.memory_bytes),
            ("metadata keys", keys or None),
            ("created", gallery.create_time),
        ]
    )


def _items(client: Client, arguments: argparse.Namespace) -> None:
    items = list(client.list_items(arguments.name, full=True))
    if arguments.json:
        print_json(items)
        return
    print_table(
        ("id", "subject", "updated", "metadata"),
        [
            (
                item.id,
                item.subject,
                item.update_time,
                ", ".join(f"{key}={value}" for key, value in item.metadata.items()),
            )
            for item in items
        ],
    )


def _remove(client: Client, arguments: argparse.Namespace) -> None:
    if bool(arguments.ids) == (arguments.subject is not None):
        raise ConfigError("remove takes some ids, or --subject; give one of the two")
    removed = client.remove(
        arguments.name, arguments.ids or None, subject=arguments.subject
    ).removed
    if arguments.json:
        print_json({"removed": removed})
    else:
        print(f"{removed} {'item' if removed == 1 else 'items'} removed from {arguments.name}")


def _delete(client: Client, arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"deleting {arguments.name} cannot be undone; give --yes to delete without asking"
            )
        count = client.get_gallery(arguments.name).item_count
        print(f"Delete {arguments.name} with its {count} items, for good? [y/N] ", end="")
        if input().strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return NO
    client.delete_gallery(arguments.name)
    if arguments.json:
        print_json({"deleted": arguments.name})
    else:
        print(f"{arguments.name} deleted")
    return OK
