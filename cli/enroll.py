"""`twinserve enroll`: pictures or texts into a gallery.

In: folders (a picture's subfolder is its subject), files, patterns, texts, lists on standard input,
or a CSV. Ids follow from the paths, so that enrolling the same folder again replaces or leaves what
is there, and adds none. A file that is named by itself has the id that it has when the folder above
its own is enrolled: a/1.jpg and b/1.jpg are two items, in one command or in two.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twinserve.cli import connection, inputs, metadata
from twinserve.cli.exit_codes import FAULT, NO, OK
from twinserve.cli.output import complain, plain, print_json
from twinserve.cli.progress import Progress
from twinserve.cli.terminal import warn
from twinserve.client import ENROLL_SECONDS
from twinserve.errors import AlreadyExists, DataError, GalleryNotFound, TwinserveError
from twinserve.messages import EnrollItem

DESCRIPTION = (
    "Put pictures (or texts) into a gallery. Of a folder or a pattern in quotes, each subfolder "
    "is a subject; a file that is named by itself is of --subject, or a subject of its own. Each "
    "item counts as enrolled once the server has it on disk."
)
EXAMPLES = """
  twinserve enroll people photos/ --create           # photos/alice/1.jpg is of alice
  twinserve enroll people new.jpg --subject alice
  twinserve enroll people 'photos/*/2026-*.jpg'      # of each subfolder, as above
  find photos/alice -name '*.jpg' -print0 | twinserve enroll people -0 - --subject alice
  twinserve enroll people --csv people.csv           # columns: path or text, subject, id; others
                                                     # are kept as metadata, of the declared types
  twinserve enroll questions --text "card lost" --subject lost_card
"""

_COLUMNS = ("path", "text", "subject", "id")
_MAX_ID, _NAMED = 128, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("gallery", metavar="GALLERY")
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="folder, picture, pattern, text, or -"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one item per row")
    inputs.add_null_flag(parser)
    parser.add_argument("--subject", help="of all items, in place of their subfolders")
    inputs.add_text_flag(parser)
    inputs.add_prompt_flag(parser)
    parser.add_argument("--create", action="store_true", help="make the gallery if it is missing")
    parser.add_argument("--model", default="", help="with --create: the twin of the new gallery")
    inputs.add_batch_flag(parser)
    connection.add_arguments(parser)
    parser.set_defaults(timeout=ENROLL_SECONDS)


@dataclass
class _Tally:
    """What came of the items."""

    changes: Counter[str] = field(default_factory=Counter)  # created, replaced, unchanged
    replaced: list[str] = field(default_factory=list)  # ids
    failed: list[tuple[EnrollItem, TwinserveError]] = field(default_factory=list)


def run(arguments: argparse.Namespace) -> int:
    """Enrol all items, batch by batch."""
    if arguments.csv is None:
        inputs.check_prompt(arguments)
    items = list(_items(arguments))
    if not items:
        inputs.check_order(arguments)
        raise DataError("nothing to enrol; name a folder, pictures, or a --csv file")
    _refuse_repeated_ids(items)
    try:
        tally = _enroll(arguments, items)
    except GalleryNotFound as error:
        raise GalleryNotFound(f"{error.message}; --create makes it at once") from error
    if arguments.json:
        print_json(
            {
                "gallery": arguments.gallery,
                **{
                    change: tally.changes[change] for change in ("created", "replaced", "unchanged")
                },
                "replaced_ids": tally.replaced,
                "failed": [
                    {"item": item.id or item.subject, **plain(error)}
                    for item, error in tally.failed
                ],
            }
        )
    else:
        _print(arguments.gallery, items, tally)
    return OK if not tally.failed else NO if tally.changes else FAULT


def _enroll(arguments: argparse.Namespace, items: list[EnrollItem]) -> _Tally:
    tally = _Tally()
    with connection.connect(arguments) as client, Progress(len(items), "items") as progress:
        if arguments.create:
            try:
                client.create_gallery(arguments.gallery, model=arguments.model)
            except AlreadyExists:
                # There with other settings, such as a metric; a model named must be its own.
                if arguments.model:
                    raise
        if any(item.metadata for item in items):
            kinds = client.get_gallery(arguments.gallery).metadata_keys
            items = list(_typed(items, kinds, arguments.csv))

        replies = client.enroll_stream(
            arguments.gallery,
            items,
            prompt=arguments.prompt,
            batch=arguments.batch,
            timeout=arguments.timeout,
        )
        for batch, answers in zip(inputs.batches(items, arguments.batch), replies, strict=True):
            for item, answer in zip(batch, answers, strict=True):
                if isinstance(answer, TwinserveError):
                    tally.failed.append((item, answer))
                    continue
                tally.changes[answer.change] += 1
                if answer.change == "replaced":
                    tally.replaced.append(item.id)
            progress.advance(len(batch))
    return tally


def _print(gallery: str, items: Sequence[EnrollItem], tally: _Tally) -> None:
    for item, error in tally.failed:
        # The file is what its user can mend; its id may be spelled otherwise.
        complain(item.input if isinstance(item.input, Path) else item.id or item.subject, error)
    counts = [
        f"{count} {change}{_named(tally.replaced) if change == 'replaced' else ''}"
        for change, count in sorted(tally.changes.items())
    ]
    if tally.failed:
        counts.append(f"{len(tally.failed)} failed")
    print(f"{gallery}: {', '.join(counts)}")
    if {item.id for item in items if not item.subject}.intersection(tally.replaced):
        warn(
            "items that were replaced without a subject are subjects of their own now; "
            "`twinserve gallery move` gives them back to whom they were of"
        )


def _items(arguments: argparse.Namespace) -> Iterator[EnrollItem]:
    if arguments.csv is not None:
        yield from _rows(arguments.csv, arguments.subject)
    subject = arguments.subject or ""
    for argument in arguments.inputs:
        path = Path(argument)
        if arguments.text or argument == "-":
            named = inputs.several([argument], text=arguments.text, null=arguments.null)
        elif path.is_dir():
            yield from _below(path, inputs.pictures_below(path), subject)
            continue
        elif inputs.is_pattern(argument):
            yield from _below(inputs.fixed_part(argument), inputs.pictures(argument), subject)
            continue
        else:
            named = [inputs.one(argument, text=False)]
        for one in named:
            id = _digest(one) if isinstance(one, str) else item_id(_with_folder(one))
            yield EnrollItem(one, id=id, subject=subject)


def _below(folder: Path, pictures: Sequence[Path], subject: str) -> Iterator[EnrollItem]:
    """Yield pictures below a folder; their subfolder is their subject, unless one was given."""
    for picture in pictures:
        relative = picture.relative_to(folder)
        own = relative.parent.as_posix()
        yield EnrollItem(
            picture,
            id=item_id(relative.as_posix()),
            subject=subject or ("" if own == "." else own),
        )


def _with_folder(picture: Path) -> str:
    """Return the picture's name, with that of its folder where the command names it."""
    parts = [part for part in picture.parts if part not in ("..", picture.anchor)]
    return "/".join(parts[-2:])


def _rows(path: Path, subject: str | None) -> Iterator[EnrollItem]:
    """Read a CSV with a header; paths are relative to its folder."""
    columns, rows = inputs.read_table(path)
    if "path" not in columns and "text" not in columns:
        raise DataError(
            f"{path} has the columns {', '.join(columns) or 'none'}; it needs path or text, "
            "and may have subject, id, and others that are kept as metadata"
        )
    for number, row in rows:
        picture, text = row.get("path", ""), row.get("text", "")
        if bool(picture) == bool(text):
            raise DataError(f"row {number} of {path} needs a path or a text, one of the two")
        yield EnrollItem(
            path.parent / picture if picture else text,
            id=row.get("id") or (item_id(picture) if picture else _digest(text)),
            subject=row.get("subject") or subject or "",
            metadata={k: v for k, v in row.items() if k not in _COLUMNS and v},
        )


def _typed(
    items: Sequence[EnrollItem], kinds: Mapping[str, str], table: Path
) -> Iterator[EnrollItem]:
    """Give the metadata the types that the gallery declares; the rows of the table come first."""
    for number, item in enumerate(items, 2):
        cells = {key: str(cell) for key, cell in item.metadata.items()}
        values = metadata.typed_row(f"row {number} of {table}", cells, kinds)
        yield dataclasses.replace(item, metadata=values)


def item_id(path: str) -> str:
    """Return an id for a relative path: readable, stable, and of the allowed characters.

    Whatever had to be replaced or cut is told apart by a digest, so that "a b" and "a_b" differ.
    """
    wanted = path.replace("/", ":")
    allowed = re.sub(r"[^A-Za-z0-9._:-]", "_", wanted)
    if allowed == wanted and ":" not in path and len(allowed) <= _MAX_ID:
        return allowed
    digest = _digest(path)
    return f"{allowed[-(_MAX_ID - len(digest) - 1) :]}-{digest}"


def _named(ids: Sequence[str]) -> str:
    """Name what was replaced: it may be a surprise."""
    more = ", …" if len(ids) > _NAMED else ""
    return f" ({', '.join(ids[:_NAMED])}{more})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _refuse_repeated_ids(items: list[EnrollItem]) -> None:
    counts = Counter(item.id for item in items)
    twice = [id for id, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} ids stand for more than one item, such as {twice[0]!r}; enrol their "
            "common folder, or give ids in a CSV"
        )
