"""`twinserve gallery`: galleries, their items and aliases; and to carry them away."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from twinserve.cli import connection, gallery_files, inputs, metadata
from twinserve.cli.exit_codes import NO, OK
from twinserve.cli.output import print_fields, print_json, print_table
from twinserve.client import Client, Gallery
from twinserve.errors import ConfigError

DESCRIPTION = (
    "Create, list, show, back up, export, import and delete galleries; remove and relabel their "
    "items; let aliases stand for them."
)
EXAMPLES = """
  twinserve gallery create people --key site=text --key age=integer
  twinserve gallery list
  twinserve gallery items people --subject alice
  twinserve gallery count people --subject alice
  twinserve gallery count people --filter site=north --filter 'age>=18'
  twinserve gallery move people a1 a2 --to bob
  twinserve gallery rename people bob robert
  twinserve gallery remove people --subject alice
  twinserve gallery alias live people            # calls may say live from now on
  twinserve gallery alias live --delete
  twinserve gallery delete people --yes
  twinserve gallery backup monday                    # below the server's --backup-dir
  twinserve gallery export people people-parquet/
  twinserve gallery import people2 people-parquet/ --create
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
        "--max-bytes",
        type=inputs.size,
        default=0,
        metavar="SIZE",
        help="that its database may take on the server's disk, such as 10GiB; default: no limit",
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
    count = actions.add_parser("count", help="how many items there are, of how many subjects")
    remove = actions.add_parser("remove", help="delete items by id, or all of a subject")
    move = actions.add_parser("move", help="give items another subject")
    rename = actions.add_parser("rename", help="give all items of a subject another one")
    delete = actions.add_parser("delete", help="delete a gallery with all its items")
    alias = actions.add_parser("alias", help="let a name stand for a gallery, or end that")
    for action in (show, items, count, remove, move, rename, delete):
        action.add_argument("name", metavar="NAME")
    items.add_argument("--subject", default="", help="only the items of this one")
    count.add_argument("--subject", default="", help="only the items of this one")
    for action in (items, count):
        metadata.add_filter_flag(action)
    remove.add_argument("ids", nargs="*", metavar="ID")
    remove.add_argument("--subject")
    move.add_argument("ids", nargs="+", metavar="ID")
    move.add_argument(
        "--to", required=True, metavar="SUBJECT", help="empty makes each item its own subject"
    )
    rename.add_argument("old", metavar="OLD")
    rename.add_argument("new", metavar="NEW")
    rename.add_argument(
        "--merge", action="store_true", help="also where NEW has items: both become one"
    )
    alias.add_argument("alias", metavar="ALIAS")
    alias.add_argument("gallery", nargs="?", metavar="GALLERY", help="that it is to stand for")
    alias.add_argument("--delete", action="store_true", help="end the alias; its gallery stays")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    made = (create, listing, show, items, count, remove, move, rename, delete, alias)
    for action in (*made, *gallery_files.add(actions)):
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
                    max_bytes=arguments.max_bytes,
                )
                _show(gallery, arguments.json)
            case "list":
                _list(list(client.list_galleries()), arguments.json)
            case "show":
                _show(client.get_gallery(arguments.name), arguments.json)
            case "items":
                _items(client, arguments)
            case "count":
                _count(client, arguments)
            case "remove":
                _remove(client, arguments)
            case "move":
                moved = client.move_items(arguments.name, arguments.to, arguments.ids).moved
                whose = f"subject {arguments.to}" if arguments.to else "subjects of their own"
                _say_moved(moved, f"to {whose}", arguments.json)
            case "rename":
                moved = client.rename_subject(
                    arguments.name, arguments.old, arguments.new, merge=arguments.merge
                ).moved
                _say_moved(moved, f"from {arguments.old} to {arguments.new}", arguments.json)
            case "alias":
                _alias(client, arguments)
            case "delete":
                return _delete(client, arguments)
            case "backup":
                gallery_files.backup(client, arguments)
            case "export":
                gallery_files.export(client, arguments)
            case "import":
                gallery_files.import_(client, arguments)
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
    if not galleries:
        print("no galleries yet; `twinserve gallery create NAME` makes one", file=sys.stderr)
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
            ("bytes on disk", gallery.disk_bytes),
            ("most bytes", gallery.max_bytes or None),
            ("index debt", gallery.index_debt),
            ("segments", gallery.segment_count),
            ("dead vectors", gallery.dead_count),
            ("bytes in memory", gallery.memory_bytes),
            ("metadata keys", keys or None),
            ("aliases", ", ".join(gallery.aliases) or None),
            ("created", gallery.create_time),
        ]
    )


def _items(client: Client, arguments: argparse.Namespace) -> None:
    wanted = metadata.filter_of(client, arguments.name, arguments.filter)
    found = client.list_items(arguments.name, filter=wanted, subject=arguments.subject, full=True)
    items = list(found)
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
                metadata.shown(item.metadata),
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
        print(f"{_items_of(removed)} removed from {arguments.name}")


def _count(client: Client, arguments: argparse.Namespace) -> None:
    wanted = metadata.filter_of(client, arguments.name, arguments.filter)
    count = client.count_items(arguments.name, filter=wanted, subject=arguments.subject)
    if arguments.json:
        print_json({"items": count.items, "subjects": count.subjects})
    else:
        subjects = f"{count.subjects} {'subject' if count.subjects == 1 else 'subjects'}"
        print(f"{_items_of(count.items)} of {subjects} in {arguments.name}")


def _say_moved(moved: int, where: str, as_json: bool) -> None:
    if as_json:
        print_json({"moved": moved})
    else:
        print(f"{_items_of(moved)} moved {where}")


def _items_of(count: int) -> str:
    return f"{count} {'item' if count == 1 else 'items'}"


def _alias(client: Client, arguments: argparse.Namespace) -> None:
    alias, gallery = arguments.alias, arguments.gallery
    if arguments.delete == (gallery is not None):
        raise ConfigError("alias takes a GALLERY to stand for, or --delete; give one of the two")
    if arguments.delete:
        client.delete_gallery_alias(alias)
        if arguments.json:
            print_json({"deleted": alias})
        else:
            print(f"{alias} stands for nothing any more")
        return
    previous = client.set_gallery_alias(alias, gallery)
    if arguments.json:
        print_json({"alias": alias, "gallery": gallery, "previous": previous})
    else:
        before = f", and no longer for {previous}" if previous not in ("", gallery) else ""
        print(f"{alias} stands for {gallery}{before}")


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
