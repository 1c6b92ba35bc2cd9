"""Labelled rows of any modality: split by whole classes, drawn in P x K batches.

In: rows as `feed` takes them, with their classes; a class's name may be a path, whose folders above
the last are its group (Omniglot: the alphabet). Out: parts that share no class, and batches that
depend on nothing but the seed and the step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError
from twinserve.feed import Rows
from twinserve.train.config import TrainConfig

IntArray = NDArray[np.int64]

PARTS = ("train", "calibrate", "report")


class Classed(Protocol):
    """What a split looks at: the class of every item, and the part that its data names."""

    @property
    def labels(self) -> IntArray: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def parts(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Labelled:
    """Rows with their classes; labels count through `class_names`."""

    # Of pictures uint8 [n, height, width, channels], of vectors [n, *shape], of texts a list of
    # int64 [tokens].
    rows: Rows
    labels: IntArray  # [n]
    class_names: tuple[str, ...]  # [classes], such as Latin/character01
    names: tuple[str, ...]  # [n]: path of the picture, the text itself, or the row's number
    # [n]: the part of the split that the data itself names; empty where it names none.
    parts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The distinct groups of the classes, sorted; a class at the top has group ''."""
        return group_names(self.class_names)

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
        """sha256 over classes, names and rows: equal for equal data, wherever it lies.

        Texts count as they were written, not as a tokenizer cut them.
        """
        digest = hashlib.sha256()
        head: dict[str, Any] = {
            "classes": self.class_names,
            "names": self.names,
            "labels": self.labels.tolist(),
        }
        if isinstance(self.rows, np.ndarray):
            head["shape"] = list(self.rows.shape)
            if self.rows.dtype != np.uint8:
                head["type"] = self.rows.dtype.str
        digest.update(json.dumps(head, sort_keys=True).encode())
        if isinstance(self.rows, np.ndarray):
            digest.update(np.ascontiguousarray(self.rows).tobytes())
        return digest.hexdigest()

    def of_items(self, items: IntArray) -> Labelled:
        """Return these items, int64 [k], in the order given; all class names stay."""
        return Labelled(
            rows=take(self.rows, items),
            labels=self.labels[items],
            class_names=self.class_names,
            names=tuple(self.names[index] for index in items.tolist()),
            parts=tuple(self.parts[index] for index in items.tolist()) if self.parts else (),
        )

    def of_classes(self, class_names: Sequence[str]) -> Labelled:
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
        chosen = self.of_items(np.flatnonzero(fresh[self.labels] >= 0))
        return dataclasses.replace(
            chosen, labels=fresh[chosen.labels], class_names=tuple(class_names)
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

    items: IntArray  # [P * K], index into the labelled set
    turns: IntArray  # [P * K], quarter turns counter-clockwise, 0 to 3
    labels: IntArray  # [P * K], class, or class * 4 + turns: a turned character is another class


def group_of(class_name: str) -> str:
    """Return the group of a class: the path above its folder, or ''."""
    return class_name.rpartition("/")[0]


def group_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct groups of some classes, sorted."""
    return tuple(sorted({group_of(name) for name in class_names}))


def take(rows: Rows, items: IntArray) -> Rows:
    """Return rows by their index, int64 [k], as an array where they are one, else as a list."""
    return rows[items] if isinstance(rows, np.ndarray) else [rows[item] for item in items.tolist()]


def split(labelled: Classed, config: TrainConfig) -> Splits:
    """Divide the classes into train, calibrate and report.

    By the parts that the data names (held-out parts that it does not name are drawn from the
    classes that are to train), else by the groups that the config names, else by a seeded shuffle
    of the classes in the config's fractions, or in its folds. Groups that the config does not name
    are left out.

    Raises:
        DataError: one class alone, an unknown group, a class in two parts, a class with a single
            item, or too few classes for a part.
    """
    if len(labelled.class_names) < 2:
        raise DataError(
            f"the data set has one class alone, {labelled.class_names[0]!r}: nothing to tell it "
            "from; give items of many classes, or check which column or folder names the class"
        )
    if labelled.parts:
        splits = _split_by_parts(labelled, config)
    elif config.train_groups:
        splits = _split_by_groups(labelled, config)
    else:
        splits = _split_by_fractions(labelled, config)
    counts = np.bincount(labelled.labels, minlength=len(labelled.class_names))
    single = {name for name, count in zip(labelled.class_names, counts, strict=True) if count < 2}
    for part in PARTS:
        classes: tuple[str, ...] = getattr(splits, part)
        if len(classes) < 2:
            raise DataError(
                f"the {part} part of the split has {len(classes)} of {len(labelled.class_names)} "
                "classes, and needs 2 at least; give more classes or other fractions"
            )
        alone = sorted(single.intersection(classes))
        if alone:
            more = f" (as have {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise DataError(
                f"class {alone[0]!r} has a single item{more}; "
                "a genuine pair needs two: add items or take the class out"
            )
    return splits


class Batches:
    """P x K batches of a labelled set, each a function of the seed and the step alone.

    P classes are drawn without repetition, K items of each without repetition while they last.
    With rotations, a class turned by 90, 180 or 270 degrees is a class of its own. A share of the
    batches draws all its classes from one group, since telling characters of one alphabet apart is
    the task; with `turns_groups` they are turned alike, as that alphabet's text on its side would
    be, and classes of other groups fill the batch up to P. Where fewer than P classes are there, a
    batch holds all of them.
    """

    def __init__(
        self,
        labelled: Labelled,
        *,
        classes_per_batch: int,
        items_per_class: int,
        rotations: bool = False,
        one_group_share: float = 0.0,
        turns_groups: bool = False,
        seed: int = 0,
    ) -> None:
        self._members = [
            np.flatnonzero(labelled.labels == label) for label in range(len(labelled.class_names))
        ]
        self._class_groups = labelled.class_groups
        self._classes_per_batch = classes_per_batch
        self._items_per_class = items_per_class
        self._turns = 4 if rotations else 1
        self._one_group_share = one_group_share if len(labelled.group_names) > 1 else 0.0
        self._turns_groups = turns_groups
        self._seed = seed

    @property
    def classes(self) -> int:
        """How many classes there are, turned ones included; labels are below it."""
        return len(self._members) * self._turns

    def __getitem__(self, step: int) -> Batch:
        generator = np.random.default_rng([self._seed, step])
        classes = np.arange(len(self._members))
        whole = generator.random() >= self._one_group_share
        if not whole:
            group = generator.integers(self._class_groups.max() + 1)
            classes = np.flatnonzero(self._class_groups == group)
        if whole or not self._turns_groups:
            owners, turns = self._drawn(classes, self._classes_per_batch, generator)
        else:
            owners, turns = self._drawn_alike(classes, generator)
        items = [self._draw(self._members[owner], generator) for owner in owners]
        return Batch(
            items=np.concatenate(items),
            turns=np.repeat(turns, self._items_per_class),
            labels=np.repeat(owners * self._turns + turns, self._items_per_class),
        )

    def _drawn(
        self, classes: IntArray, count: int, generator: np.random.Generator
    ) -> tuple[IntArray, IntArray]:
        """Draw classes and turns of them, each pair once."""
        count = min(count, len(classes) * self._turns)
        drawn = generator.choice(len(classes) * self._turns, size=count, replace=False)
        return classes[drawn // self._turns], drawn % self._turns

    def _drawn_alike(
        self, classes: IntArray, generator: np.random.Generator
    ) -> tuple[IntArray, IntArray]:
        """Draw classes with one turn for all of them, and fill up from the others."""
        count = min(self._classes_per_batch, len(classes))
        owners = generator.choice(classes, size=count, replace=False)
        turns = np.full(count, generator.integers(self._turns))
        others = np.setdiff1d(np.arange(len(self._members)), classes)
        filled, filled_turns = self._drawn(others, self._classes_per_batch - count, generator)
        return np.concatenate([owners, filled]), np.concatenate([turns, filled_turns])

    def _draw(self, members: IntArray, generator: np.random.Generator) -> IntArray:
        wanted = self._items_per_class
        if len(members) >= wanted:
            return generator.choice(members, size=wanted, replace=False)
        again = generator.choice(members, size=wanted - len(members))
        return np.concatenate([generator.permutation(members), again])


def _split_by_parts(labelled: Classed, config: TrainConfig) -> Splits:
    found: dict[int, str] = {}
    for label, part in zip(labelled.labels.tolist(), labelled.parts, strict=True):
        if found.setdefault(label, part) != part:
            raise DataError(
                f"split_column puts class {labelled.class_names[label]!r} into {found[label]} and "
                f"into {part}; give all items of a class the same part, or unset split_column to "
                "have whole classes divided"
            )
    labels = sorted(found)
    pool = [label for label in labels if found[label] == "train"]
    order = np.random.default_rng(config.seed).permutation(pool).tolist()
    for part in ("calibrate", "report"):
        if part not in found.values():
            for _ in range(round(getattr(config, f"{part}_fraction") * len(pool))):
                found[order.pop()] = part
    return Splits(
        **{
            part: tuple(labelled.class_names[label] for label in labels if found[label] == part)
            for part in PARTS
        }
    )


def _split_by_groups(labelled: Classed, config: TrainConfig) -> Splits:
    chosen: dict[str, tuple[str, ...]] = {}
    known = group_names(labelled.class_names)
    for part in PARTS:
        groups: tuple[str, ...] = getattr(config, f"{part}_groups")
        unknown = [group for group in groups if group not in known]
        if unknown:
            raise DataError(
                f"{part}_groups names {unknown[0]!r}, which the data set does not have; "
                f"it has {', '.join(repr(name) for name in known)}"
            )
        chosen[part] = tuple(n for n in labelled.class_names if group_of(n) in groups)
    return Splits(**chosen)


def _split_by_fractions(labelled: Classed, config: TrainConfig) -> Splits:
    names = labelled.class_names
    order = np.random.default_rng(config.seed).permutation(len(names))
    calibrate = round(config.calibrate_fraction * len(names))
    report = round(config.report_fraction * len(names))
    if config.folds:
        bounds = np.linspace(0, len(names), config.folds + 1).round().astype(int)
        start, end = bounds[config.fold - 1 : config.fold + 1].tolist()
        # The classes before the fold's calibrate, so that these change with the folds, too.
        order, report = np.roll(order, calibrate - start), end - start
    parts = np.split(order, [calibrate, calibrate + report])
    calibrated, reported, trained = (
        tuple(names[index] for index in sorted(part.tolist())) for part in parts
    )
    return Splits(train=trained, calibrate=calibrated, report=reported)
