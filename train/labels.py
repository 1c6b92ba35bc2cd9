"""Labels as the words of classes: a label that is none would become a class, and calibrate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twinserve.train.data import IntArray
from twinserve.train.faults import Faults


def label_of(label: str, place: str, faults: Faults) -> str:
    """Return a label's class name, "" where it is none; a slash makes a group, as folders do.

    Args:
        label: as it stands in the data.
        place: where, for the sentence.
        faults: takes an empty label or NaN.
    """
    name = label.strip()
    if not name or name.lower() == "nan":
        what = "NaN as its label" if name else "an empty label"
        faults.add("no_label", f"{place} has {what}; name the class, or leave it out")
        return ""
    return name


def classes(labels: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """Return the distinct classes, sorted, and the index of each label: int64 [n]."""
    class_names = tuple(sorted(set(labels)))
    position = {name: index for index, name in enumerate(class_names)}
    return class_names, np.array([position[label] for label in labels], dtype=np.int64)
