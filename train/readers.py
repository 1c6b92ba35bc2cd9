"""Readers: from a data set on disk to labelled rows, exactly as serving prepares them.

In: a folder or zip of pictures whose innermost folder is the class, a CSV of labelled texts, or an
npz of labelled vectors. Out: `Labelled`. Data that cannot be meant is refused with its place in the
file, since a label that is none would become a class, and a class calibrates.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError, InvalidInput
from twinserve.manifest import ImageInput, TensorInput
from twinserve.preprocess import Pixels, decode_image
from twinserve.tokens import Tokenizer
from twinserve.train.data import IntArray, Labelled
from twinserve.train.tables import records

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# What the columns of a CSV are usually called, the likeliest first.
TEXT_NAMES = ("text", "sentence", "question", "query")
LABEL_NAMES = ("label", "category", "class", "intent", "subject")


def load_images(path: Path | str, contract: ImageInput, max_broken_images: int = 0) -> Labelled:
    """Read and decode every picture of a folder or zip.

    Hidden files and files without a picture's suffix are passed over. Folders that all classes
    share are not part of their names.

    Args:
        path: a folder, or a zip of one.
        contract: how pictures become pixels; the same decoder as in serving.
        max_broken_images: so many that cannot be decoded are left out.

    Raises:
        DataError: nothing there, too many broken images (the first ones named), a file that lies
            in no class folder.
    """
    path = Path(path)
    names: list[PurePosixPath] = []
    pixels: list[Pixels] = []
    broken: list[str] = []
    for name, content in _files(path):
        try:
            pixels.append(decode_image(content, contract))
            names.append(name)
        except InvalidInput as error:
            broken.append(f"{name}: {error.message}")
            if len(broken) > max_broken_images:
                raise DataError(
                    f"{len(broken)} broken image{'s' if len(broken) > 1 else ''} in {path}, the "
                    f"limit is {max_broken_images} (max_broken_images); the last is {broken[-1]}"
                ) from error
    if not names:
        raise DataError(
            f"{path} holds no images ({', '.join(SUFFIXES)}); "
            "give a folder or a zip with one folder of images per class"
        )
    shared = _shared_folders([name.parent.parent for name in names])
    classes = ["/".join(name.parts[shared:-1]) for name in names]
    if "" in classes:
        raise DataError(
            f"{names[classes.index('')]} in {path} lies in no class folder; "
            "put each class's images into a folder of its own"
        )
    class_names, labels = _classes(classes)
    return Labelled(
        rows=np.stack(pixels),
        labels=labels,
        class_names=class_names,
        names=tuple("/".join(name.parts[shared:]) for name in names),
    )


@dataclass(frozen=True)
class Texts:
    """Labelled texts as they were written: what a tokenizer is trained on, and then cuts."""

    texts: tuple[str, ...]  # [n]
    labels: IntArray  # [n]
    class_names: tuple[str, ...]  # [classes]

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
        rows = []
        for text in self.texts:
            try:
                rows.append(tokenizer.encode(text, truncate=True).ids)
            except InvalidInput as error:
                raise DataError(f"the text {text!r:.80} cannot be used: {error.message}") from error
        return Labelled(rows, self.labels, self.class_names, self.texts)


def load_texts(
    path: Path | str, tokenizer: Tokenizer, *, text_column: str = "", label_column: str = ""
) -> Labelled:
    """Read a CSV of labelled texts as token ids; see `read_texts`."""
    return read_texts(path, text_column=text_column, label_column=label_column).encoded(tokenizer)


def read_texts(path: Path | str, *, text_column: str = "", label_column: str = "") -> Texts:
    """Read a CSV (or, named .tsv, a file with tabs) of one text and its label a line.

    The first line is a header if it holds a column's name: one asked for here, or one of
    `TEXT_NAMES` and `LABEL_NAMES`. Without a header the text stands first and the label second.

    Args:
        path: of a UTF-8 file.
        text_column: a name in the header, or a number from 1; "" finds it by its usual names.
        label_column: likewise.

    Raises:
        DataError: not a CSV, no such column, a line without one of the two, an empty text, a label
            that is none (empty or NaN).
    """
    path = Path(path)
    lines = records(path, "texts and labels")
    if not lines:
        raise DataError(f"{path} holds no lines; give one text and its label a line")
    first = [cell.strip() for cell in lines[0][1]]
    columns = tuple(
        _column(path, first, *asked)
        for asked in (
            ("text_column", text_column, TEXT_NAMES, 0),
            ("label_column", label_column, LABEL_NAMES, 1),
        )
    )
    if columns[0] == columns[1]:
        raise DataError(
            f"text and label would both be column {columns[0] + 1} of {path}; set text_column and "
            "label_column"
        )
    known = {text_column, label_column, *TEXT_NAMES, *LABEL_NAMES} - {""}
    if any(cell in known or cell.lower() in known for cell in first if not cell.isdigit()):
        lines = lines[1:]
    texts: list[str] = []
    labels: list[str] = []
    for number, cells in lines:
        if len(cells) <= max(columns):
            raise DataError(
                f"line {number} of {path} has {len(cells)} columns, and needs "
                f"{max(columns) + 1}; write a text and its label, quoted where they hold commas"
            )
        text, label = (cells[column].strip() for column in columns)
        if not text:
            raise DataError(f"line {number} of {path} has an empty text; leave the line out")
        texts.append(text)
        labels.append(_label(label, f"line {number} of {path}"))
    if not texts:
        raise DataError(f"{path} holds a header alone; give one text and its label a line")
    class_names, indices = _classes(labels)
    return Texts(tuple(texts), indices, class_names)


def load_vectors(path: Path | str, contract: TensorInput | None = None) -> Labelled:
    """Read an npz with `vectors`, float32 [n, *shape], and `labels`, integers or words [n].

    Args:
        path: of the npz.
        contract: the shape and type that they must have; None takes any shape of float32.

    Raises:
        DataError: not an npz, an array missing, of another type or shape, or with NaN in it, or
            labels that are none.
    """
    vectors, labels = _arrays(Path(path))
    kind = "float32" if contract is None else contract.data_type
    if vectors.dtype != kind:
        raise DataError(
            f"vectors in {path} are {vectors.dtype}, they must be {kind}; "
            f"save vectors.astype(numpy.{kind})"
        )
    if vectors.ndim < 2 or 0 in vectors.shape:
        raise DataError(f"vectors in {path} have shape {vectors.shape}; give [items, coordinates]")
    if contract is not None and vectors.shape[1:] != contract.shape:
        raise DataError(
            f"vectors in {path} have shape {vectors.shape[1:]} each, the twin takes "
            f"{contract.shape}; give the vectors that it was made for"
        )
    if labels.shape != (len(vectors),):
        raise DataError(
            f"labels in {path} have shape {labels.shape} for {len(vectors)} vectors; "
            "give one label a vector"
        )
    if labels.dtype.kind not in "iuUS":
        raise DataError(
            f"labels in {path} are {labels.dtype}, which is no type of a label; "
            "give whole numbers or words"
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    broken = np.flatnonzero(~np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1))
    if len(broken):
        raise DataError(
            f"{len(broken)} of the vectors in {path} hold NaN or infinity, the first is row "
            f"{broken[0]}; leave them out"
        )
    class_names, indices = _classes(
        [_label(str(label), f"row {row} of {path}") for row, label in enumerate(labels.tolist())]
    )
    return Labelled(vectors, indices, class_names, tuple(map(str, range(len(vectors)))))


def _files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield (name, content) of every picture, sorted by name."""
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


def _column(
    path: Path, first: Sequence[str], key: str, asked: str, usual: Sequence[str], place: int
) -> int:
    """Return the index of a column: as asked for, by a usual name, or by its place."""
    if asked.isdigit() and int(asked) >= 1:
        return int(asked) - 1
    lowered = [cell.lower() for cell in first]
    if asked:
        if asked not in first:
            raise DataError(
                f"{key} is {asked!r}, which is no column of {path}; its first line is "
                f"{', '.join(map(repr, first))[:200]}"
            )
        return first.index(asked)
    return next((lowered.index(name) for name in usual if name in lowered), place)


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        # A handle of our own: numpy leaves its own open where the file is cut short.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["vectors"], arrays["labels"]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give an npz of vectors and labels") from error
    except KeyError as error:
        raise DataError(
            f"{path} has no array {error.args[0].split()[0]!r}; save it with "
            "numpy.savez(path, vectors=vectors, labels=labels)"
        ) from error
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an npz of plain arrays ({str(error)[:200]}); save it with "
            "numpy.savez(path, vectors=vectors, labels=labels)"
        ) from error


def _label(label: str, place: str) -> str:
    """Return a label's class name, refusing what is none; a slash makes a group, as folders do."""
    name = label.strip()
    if not name or name.lower() == "nan":
        raise DataError(
            f"{place} has {'an empty label' if not name else 'NaN as its label'}; "
            "name the class, or leave it out"
        )
    return name


def _classes(labels: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """Return the distinct classes, sorted, and the index of each label: int64 [n]."""
    class_names = tuple(sorted(set(labels)))
    position = {name: index for index, name in enumerate(class_names)}
    return class_names, np.array([position[label] for label in labels], dtype=np.int64)
