"""`twinserve gallery backup`, `export` and `import`: whole galleries to and from folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from twinserve import transfer
from twinserve.cli import inputs
from twinserve.cli.output import print_json
from twinserve.cli.progress import Progress
from twinserve.client import Client


def add(actions: Any) -> tuple[argparse.ArgumentParser, ...]:
    """Declare the three actions, and return their parsers."""
    backup: argparse.ArgumentParser = actions.add_parser(
        "backup", help="copy galleries on the server's disk, while they are used"
    )
    backup.add_argument("folder", metavar="FOLDER", help="to make, below the server's --backup-dir")
    backup.add_argument("names", nargs="*", metavar="NAME", help="default: all galleries")
    export: argparse.ArgumentParser = actions.add_parser(
        "export", help="write a gallery's items and embeddings as Parquet, on this machine"
    )
    export.add_argument("name", metavar="NAME")
    export.add_argument(
        "folder",
        type=Path,
        metavar="OUT_FOLDER",
        help="new or empty, or with an export of this gallery that was cut off, which goes on",
    )
    export.add_argument(
        "--rows",
        type=inputs.positive,
        default=transfer.PART_ROWS,
        metavar="N",
        help="most rows of one file (%(default)s, or 64 MB)",
    )
    importing: argparse.ArgumentParser = actions.add_parser(
        "import", help="enrol the rows of Parquet files; one that was cut off goes on"
    )
    importing.add_argument("name", metavar="NAME")
    importing.add_argument(
        "path",
        type=Path,
        metavar="FOLDER_OR_FILE",
        help="an export, or any Parquet with a column embedding, and perhaps id and subject",
    )
    importing.add_argument(
        "--create", action="store_true", help="make the gallery, as it was exported, if missing"
    )
    importing.add_argument(
        "--model", default="", help="with --create: the twin; default: the one it was exported of"
    )
    importing.add_argument(
        "--batch",
        type=inputs.positive,
        default=0,
        metavar="N",
        help=f"rows in one call (up to {transfer.BATCH_ROWS}, or {transfer.BATCH_BYTES >> 20} MB)",
    )
    return backup, export, importing


def backup(client: Client, arguments: argparse.Namespace) -> None:
    """Have the server make a backup."""
    with Progress(0, "MB") as progress:
        made = client.backup_galleries(
            arguments.folder,
            arguments.names,
            lambda _, done, total: progress.reach(done >> 20, max(total >> 20, 1)),
        )
    if arguments.json:
        print_json(made)
    else:
        print(f"{made.bytes / 1e6:.1f} MB copied to {made.path} on the server")


def export(client: Client, arguments: argparse.Namespace) -> None:
    """Write a gallery's items into a folder."""
    with Progress(0, "items") as progress:
        done = transfer.export_gallery(
            client, arguments.name, arguments.folder, progress.reach, part_rows=arguments.rows
        )
    if arguments.json:
        print_json(done)
    else:
        before = done.items - done.exported
        kept = f", {before} of them by an earlier run" if before else ""
        items = "1 item" if done.items == 1 else f"{done.items} items"
        files = "1 file" if done.parts == 1 else f"{done.parts} files"
        print(f"{arguments.name}: {items} in {files} of {done.folder}{kept}")


def import_(client: Client, arguments: argparse.Namespace) -> None:
    """Enrol the rows of Parquet files."""
    if arguments.create:
        transfer.create_like(client, arguments.name, arguments.path, arguments.model)
    with Progress(0, "items") as progress:
        done = transfer.import_items(
            client, arguments.name, arguments.path, progress.reach, batch=arguments.batch
        )
    if arguments.json:
        print_json(done)
    else:
        counts = [f"{count} {change}" for change, count in sorted(done.changes.items())]
        if done.skipped:
            counts.append(f"{done.skipped} enrolled by an earlier run")
        print(f"{arguments.name}: {', '.join(counts) or 'no rows'}")
