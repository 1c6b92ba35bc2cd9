"""Readers: from a data set on disk to labelled rows, exactly as serving prepares them.

In: a folder or zip of pictures, whose innermost folder is the class. Out: `Labelled`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from twinserve.errors import DataError, InvalidInput
from twinserve.manifest import ImageInput
from twinserve.preprocess import Pixels, decode_image
from twinserve.train.data import Labelled

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


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
    class_names = tuple(sorted(set(classes)))
    position = {name: index for index, name in enumerate(class_names)}
    return Labelled(
        rows=np.stack(pixels),
        labels=np.array([position[name] for name in classes], dtype=np.int64),
        class_names=class_names,
        names=tuple("/".join(name.parts[shared:]) for name in names),
    )


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
