"""Readers of pictures and texts: from disk to labelled rows, exactly as serving prepares them.

In: a folder or zip of pictures whose innermost folder is the class, or a CSV of labelled texts or
of labelled paths of pictures. Out: `Labelled`. Data that cannot be meant is refused with its place
in the file, since a label that is none would become a class, and a class calibrates.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from twinserve.errors import DataError, InvalidInput
from twinserve.feed import Row
from twinserve.manifest import ImageInput
from twinserve.preprocess import Pixels, decode_image
from twinserve.tokens import Tokenizer
from twinserve.train.data import IntArray, Labelled
from twinserve.train.faults import Faults
from twinserve.train.forms import LABEL_NAMES, OTHER_PICTURES, PICTURES, TEXT_NAMES
from twinserve.train.labels import classes, label_of
from twinserve.train.tables import Column, read_table

SUFFIXES = PICTURES


def load_images(
    path: Path | str,
    contract: ImageInput,
    max_broken_images: int = 0,
    faults: Faults | None = None,
) -> Labelled:
    """Read and decode every picture of a folder or zip.

    Hidden files and files without a picture's suffix are passed over. Folders that all classes
    share are not part of their names.

    Args:
        path: a folder, or a zip of one.
        contract: how pictures become pixels; the same decoder as in serving.
        max_broken_images: so many that cannot be decoded are left out.
        faults: takes the others; None raises.

    Raises:
        DataError: nothing there, too many broken images (the first ones named), a file that lies
            in no class folder.
    """
    path = Path(path)
    pixels = decode_all(
        ((str(name), content) for name, content in files(path)),
        contract,
        str(path),
        max_broken_images,
        faults or Faults(),
    )
    if not pixels:
        raise DataError(
            f"{path} holds no images ({', '.join(SUFFIXES)}){_of_other_formats(path)}; "
            "give a folder or a zip with one folder of images per class"
        )
    names = [PurePosixPath(name) for name in pixels]
    shared = _shared_folders([name.parent.parent for name in names])
    labels = ["/".join(name.parts[shared:-1]) for name in names]
    if "" in labels:
        raise DataError(
            f"{names[labels.index('')]} in {path} lies in no class folder; "
            "put each class's images into a folder of its own"
        )
    class_names, indices = classes(labels)
    return Labelled(
        rows=np.stack(list(pixels.values())),
        labels=indices,
        class_names=class_names,
        names=tuple("/".join(name.parts[shared:]) for name in names),
    )


def decode_all(
    pictures: Iterable[tuple[str, bytes | OSError]],
    contract: ImageInput,
    where: str,
    max_broken_images: int,
    faults: Faults,
) -> dict[str, Pixels]:
    """Decode pictures by name, leaving out those that cannot be: name -> pixels.

    Args:
        pictures: names with contents, or why there is none.
        contract: how pictures become pixels.
        where: they lie, for the sentences.
        max_broken_images: so many are left out.
        faults: takes the others.
    """
    found: dict[str, Pixels] = {}
    broken = 0
    for name, content in pictures:
        try:
            if isinstance(content, OSError):
                raise InvalidInput(f"it cannot be read ({content.strerror})")
            found[name] = decode_image(content, contract)
        except InvalidInput as error:
            broken += 1
            faults.add(
                "broken_image",
                f"{broken} broken image{'s' if broken > 1 else ''} in {where}, the limit is "
                f"{max_broken_images} (max_broken_images); the last is {name}: {error.message}",
                item=f"{name}: {error.message}",
                allowed=max_broken_images,
            )
    return found


def load_image_table(
    path: Path | str,
    contract: ImageInput,
    columns: Sequence[Column],
    *,
    split_column: str = "",
    max_broken_images: int = 0,
    faults: Faults | None = None,
) -> Labelled:
    """Read a CSV of paths of pictures, seen from its folder, and their labels.

    Args:
        path: of the CSV.
        contract: how pictures become pixels.
        columns: of the paths and of the labels.
        split_column: names each picture's part; "" for none.
        max_broken_images: so many that are not there or cannot be decoded are left out.
        faults: takes the others, and labels that are none; None raises.

    Raises:
        DataError: as `read_table`; no picture that can be used, one path with two labels.
    """
    path, faults = Path(path), faults or Faults()
    lines = read_table(path, columns, "the path of a picture and its label", faults, split_column)
    labels: dict[str, str] = {}
    parts: dict[str, str] = {}
    for line in lines:
        name = line.cells[0]
        label = label_of(line.cells[1], f"line {line.number} of {path}", faults)
        if not label:
            continue
        if labels.setdefault(name, label) != label:
            faults.add(
                "two_labels",
                f"line {line.number} of {path} calls {name} {label!r}, which an earlier line calls "
                f"{labels[name]!r}; keep one of them",
            )
        parts.setdefault(name, line.part)
    pixels = decode_all(
        pictures_beside(path, list(labels)), contract, str(path), max_broken_images, faults
    )
    if not pixels:
        raise DataError(f"{path} names no picture that can be used; mend its paths")
    class_names, indices = classes([labels[name] for name in pixels])
    return Labelled(
        np.stack(list(pixels.values())),
        indices,
        class_names,
        tuple(pixels),
        tuple(parts[name] for name in pixels) if split_column else (),
    )


def pictures_beside(table: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes | OSError]]:
    """Yield the pictures that a table names by their paths from its folder."""
    for name in names:
        try:
            yield name, (table.parent / name).read_bytes()
        except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
            yield name, error if isinstance(error, OSError) else OSError(0, str(error))


@dataclass(frozen=True)
class Texts:
    """Labelled texts as they were written: what a tokenizer is trained on, and then cuts."""

    texts: tuple[str, ...]  # [n]
    labels: IntArray  # [n]
    class_names: tuple[str, ...]  # [classes]
    parts: tuple[str, ...] = ()  # [n], as of `Labelled`

    def of_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """Return the texts of some classes, in the file's order."""
        wanted = set(class_names)
        return tuple(
            text
            for text, label in zip(self.texts, self.labels.tolist(), strict=True)
            if self.class_names[label] in wanted
        )

    def encoded(self, tokenizer: Tokenizer) -> Labelled:
        """Cut the texts into tokens; a text too long is cut short, whatever the contract says.

        Raises:
            DataError: a text that the tokenizer cannot take.
        """
        rows = encode_all(self.texts, tokenizer)
        return Labelled(rows, self.labels, self.class_names, self.texts, self.parts)


def encode_all(texts: Sequence[str], tokenizer: Tokenizer) -> list[Row]:
    """Cut texts into tokens, int64 [length] each; one too long is cut short.

    Raises:
        DataError: a text that the tokenizer cannot take.
    """
    rows: list[Row] = []
    for text in texts:
        try:
            rows.append(tokenizer.encode(text, truncate=True).ids)
        except InvalidInput as error:
            raise DataError(f"the text {text!r:.80} cannot be used: {error.message}") from error
    return rows


def load_texts(
    path: Path | str, tokenizer: Tokenizer, *, text_column: str = "", label_column: str = ""
) -> Labelled:
    """Read a CSV of labelled texts as token ids; see `read_texts`."""
    return read_texts(path, text_column=text_column, label_column=label_column).encoded(tokenizer)


def read_texts(
    path: Path | str,
    *,
    text_column: str = "",
    label_column: str = "",
    split_column: str = "",
    faults: Faults | None = None,
) -> Texts:
    """Read a CSV (or, named .tsv, a file with tabs) of one text and its label a line.

    The first line is a header if it holds a column's name: one asked for here, or one of
    `TEXT_NAMES` and `LABEL_NAMES`. Without a header the text stands first and the label second.

    Args:
        path: of a UTF-8 file.
        text_column: a name in the header, or a number from 1; "" finds it by its usual names.
        label_column: likewise.
        split_column: names each text's part; "" for none.
        faults: takes empty texts and labels that are none; None raises at the first.

    Raises:
        DataError: not a CSV, no such column, a line without one of the two, an empty text, a label
            that is none (empty or NaN).
    """
    path, faults = Path(path), faults or Faults()
    columns = (
        Column("text_column", text_column, TEXT_NAMES, 0),
        Column("label_column", label_column, LABEL_NAMES, 1),
    )
    texts: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    for line in read_table(path, columns, "one text and its label", faults, split_column):
        text, label = line.cells
        if not text:
            faults.add(
                "empty_text",
                f"line {line.number} of {path} has an empty text; leave the line out",
            )
            continue
        name = label_of(label, f"line {line.number} of {path}", faults)
        if name:
            texts.append(text)
            labels.append(name)
            parts.append(line.part)
    class_names, indices = classes(labels)
    return Texts(tuple(texts), indices, class_names, tuple(parts) if split_column else ())


def files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield (name, content) of every picture of a folder or zip, sorted by name.

    Raises:
        DataError: there is none, or the zip cannot be read.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file())
        for file in found:
            name = PurePosixPath(file.relative_to(path).as_posix())
            if _is_picture(name):
                yield name, file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(archive.namelist()):
                if _is_picture(PurePosixPath(entry)):
                    yield PurePosixPath(entry), archive.read(entry)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give a folder or a zip of images") from error
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a zip ({error}); give a folder or a whole zip of images"
        ) from error


def _of_other_formats(path: Path) -> str:
    """Say which pictures lie there that are not decoded, if any."""
    names: Iterable[str] = (str(file) for file in path.rglob("*"))
    if not path.is_dir():
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in names)
    others = [f"{suffixes[one]} {one}" for one in OTHER_PICTURES if suffixes[one]]
    return f", but {', '.join(others)}, which serving does not decode: save them as PNG" * bool(
        others
    )


def _is_picture(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return name.suffix.lower() in SUFFIXES and not hidden


def _shared_folders(parents: Sequence[PurePosixPath]) -> int:
    """Count the leading folders that all of these paths share."""
    first, last = min(p.parts for p in parents), max(p.parts for p in parents)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return shared
