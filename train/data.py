"""Labelled images: read once, split by whole classes, drawn in P x K batches.

In: a folder or a zip of pictures, where the innermost folder is the class and the folders above it
are the class's group (Omniglot: the alphabet). Out: uint8 pixels exactly as serving decodes them,
and batches that depend on nothing but the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError, InvalidInput
from twinserve.manifest import ImageInput
from twinserve.preprocess import Pixels, decode_image
from twinserve.train.config import TrainConfig

IntArray = NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
PARTS = ("train", "calibrate", "report")


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes; labels count through `class_names`."""

    pixels: Pixels  # uint8 [n, height, width, channels]
    labels: IntArray  # [n]
    class_names: tuple[str, ...]  # [classes]: path of the class's folder, such as Latin/character01
    names: tuple[str, ...]  # [n]: path of the file

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The distinct groups of the classes, sorted; a class at the top has group ''."""
        return tuple(sorted({group_of(name) for name in self.class_names}))

    @cached_property
    def class_groups(self) -> IntArray:
        """Index into `group_names` of each class: int64 [classes]."""
        position = {name: index for index, name in enumerate(self.group_names)}
        return np.array([position[group_of(name)] for name in self.class_names], dtype=np.int64)

    @cached_property
    def groups(self) -> IntArray:
        """Index into `group_names` of each item: int64 [n]."""
        return self.class_groups[self.labels]

    @cached_property
    def digest(self) -> str:
        """sha256 over classes, names and pixels: equal for equal data, wherever it lies."""
        digest = hashlib.sha256()
        head = {
            "shape": list(self.pixels.shape),
            "classes": self.class_names,
            "names": self.names,
            "labels": self.labels.tolist(),
        }
        digest.update(json.dumps(head, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        return digest.hexdigest()

    def of_classes(self, class_names: Sequence[str]) -> LabelledImages:
        """Return the items of these classes, labelled anew in the order given.

        Raises:
            DataError: a class that is not there.
        """
        position = {name: index for index, name in enumerate(self.class_names)}
        missing = [name for name in class_names if name not in position]
        if missing:
            raise DataError(
                f"the data set has no class {missing[0]!r}; it has {len(self.class_names)} others"
            )
        fresh = np.full(len(self.class_names), -1, dtype=np.int64)
        for index, name in enumerate(class_names):
            fresh[position[name]] = index
        chosen = np.flatnonzero(fresh[self.labels] >= 0)
        return LabelledImages(
            pixels=self.pixels[chosen],
            labels=fresh[self.labels[chosen]],
            class_names=tuple(class_names),
            names=tuple(self.names[index] for index in chosen),
        )


@dataclass(frozen=True)
class Splits:
    """Which classes train, calibrate and report; no class stands in two of them."""

    train: tuple[str, ...]
    calibrate: tuple[str, ...]
    report: tuple[str, ...]

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, as splits.json holds them."""
        return {part: list(getattr(self, part)) for part in PARTS}

    @staticmethod
    def from_dict(values: dict[str, list[str]]) -> Splits:
        """Take back what `to_dict` gave."""
        return Splits(**{part: tuple(values[part]) for part in PARTS})


@dataclass(frozen=True)
class Batch:
    """P classes of K items: what to load, how to turn it, and what it counts as."""

    items: IntArray  # [P * K], index into the images
    turns: IntArray  # [P * K], quarter turns counter-clockwise, 0 to 3
    labels: IntArray  # [P * K], class * 4 + turns: a turned character is another class


def group_of(class_name: str) -> str:
    """Return the group of a class: the path above its folder, or ''."""
    return class_name.rpartition("/")[0]


def load_images(
    path: Path | str, contract: ImageInput, max_broken_images: int = 0
) -> LabelledImages:
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
    return LabelledImages(
        pixels=np.stack(pixels),
        labels=np.array([position[name] for name in classes], dtype=np.int64),
        class_names=class_names,
        names=tuple("/".join(name.parts[shared:]) for name in names),
    )


def split(images: LabelledImages, config: TrainConfig) -> Splits:
    """Divide the classes into train, calibrate and report.

    By the groups that the config names, else by a seeded shuffle of the classes in the config's
    fractions. Groups that the config does not name are left out.

    Raises:
        DataError: an unknown group, a class with a single item, or too few classes for a part.
    """
    if config.train_groups:
        splits = _split_by_groups(images, config)
    else:
        splits = _split_by_fractions(images, config)
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    single = {name for name, count in zip(images.class_names, counts, strict=True) if count < 2}
    for part in PARTS:
        classes: tuple[str, ...] = getattr(splits, part)
        if len(classes) < 2:
            raise DataError(
                f"the {part} part of the split has {len(classes)} of {len(images.class_names)} "
                "classes, and needs 2 at least; give more classes or other fractions"
            )
        alone = sorted(single.intersection(classes))
        if alone:
            raise DataError(
                f"class {alone[0]!r} has a single image (as have {len(alone) - 1} more); "
                "a genuine pair needs two: add images or take the class out"
            )
    return splits


class Batches:
    """P x K batches of a labelled set, each a function of the seed and the step alone.

    P classes are drawn without repetition, K items of each without repetition while they last.
    With rotations, a class turned by 90, 180 or 270 degrees is a class of its own. A share of the
    batches draws all its classes from one group, since telling characters of one alphabet apart is
    the task. Where fewer than P classes are there, a batch holds all of them.
    """

    def __init__(
        self,
        images: LabelledImages,
        *,
        classes_per_batch: int,
        items_per_class: int,
        rotations: bool = False,
        one_group_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._members = [
            np.flatnonzero(images.labels == label) for label in range(len(images.class_names))
        ]
        self._class_groups = images.class_groups
        self._classes_per_batch = classes_per_batch
        self._items_per_class = items_per_class
        self._turns = 4 if rotations else 1
        self._one_group_share = one_group_share if len(images.group_names) > 1 else 0.0
        self._seed = seed

    def __getitem__(self, step: int) -> Batch:
        generator = np.random.default_rng([self._seed, step])
        classes = np.arange(len(self._members))
        if generator.random() < self._one_group_share:
            group = generator.integers(self._class_groups.max() + 1)
            classes = np.flatnonzero(self._class_groups == group)
        count = min(self._classes_per_batch, len(classes) * self._turns)
        drawn = generator.choice(len(classes) * self._turns, size=count, replace=False)
        owners, turns = classes[drawn // self._turns], drawn % self._turns
        items = [self._draw(self._members[owner], generator) for owner in owners]
        return Batch(
            items=np.concatenate(items),
            turns=np.repeat(turns, self._items_per_class),
            labels=np.repeat(owners * 4 + turns, self._items_per_class),
        )

    def _draw(self, members: IntArray, generator: np.random.Generator) -> IntArray:
        wanted = self._items_per_class
        if len(members) >= wanted:
            return generator.choice(members, size=wanted, replace=False)
        again = generator.choice(members, size=wanted - len(members))
        return np.concatenate([generator.permutation(members), again])


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


def _split_by_groups(images: LabelledImages, config: TrainConfig) -> Splits:
    chosen: dict[str, tuple[str, ...]] = {}
    for part in PARTS:
        groups: tuple[str, ...] = getattr(config, f"{part}_groups")
        unknown = [group for group in groups if group not in images.group_names]
        if unknown:
            raise DataError(
                f"{part}_groups names {unknown[0]!r}, which the data set does not have; "
                f"it has {', '.join(repr(name) for name in images.group_names)}"
            )
        chosen[part] = tuple(n for n in images.class_names if group_of(n) in groups)
    return Splits(**chosen)


def _split_by_fractions(images: LabelledImages, config: TrainConfig) -> Splits:
    names = images.class_names
    order = np.random.default_rng(config.seed).permutation(len(names))
    calibrate = round(config.calibrate_fraction * len(names))
    report = round(config.report_fraction * len(names))
    parts = np.split(order, [calibrate, calibrate + report])
    calibrated, reported, trained = (
        tuple(names[index] for index in sorted(part.tolist())) for part in parts
    )
    return Splits(train=trained, calibrate=calibrated, report=reported)
