"""Whether data shares items with what a twin was trained on, told from the twin's file alone.

In: the training items' digests. Out, in the manifest: two bottom-k sketches (Broder, 1997; Cohen
and Kaplan, 2007), of the items' digests and of the classes' ones, a few kB whatever the size of the
training set. A data set is held against them by its own digests: of its items whose digest falls
below the sketch's largest, the share that stands in the sketch estimates the share that was trained
on. Neither pictures, nor texts, nor names can be read back from it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError, ManifestError
from twinserve.manifest import Manifest
from twinserve.train.data import Labelled

SIZE = 2048
KEY = "train_digests"
# Data sets hold the odd item twice (a blank picture, a "hello"). So many are no overlap, as long as
# they do not make up a class.
MAX_SHARE = 0.01
# A class is shared when so much of it is, and not by a single item.
_SHARED_CLASS = 0.5
_SHARED_ITEMS = 2

Digests = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Sketch:
    """The smallest `SIZE` of a set's digests, which are a uniform draw of them."""

    smallest: Digests  # [at most SIZE], rising
    count: int  # distinct digests in the whole set

    @staticmethod
    def of(digests: Digests) -> Sketch:
        """Sketch a set of digests, uint64 [n], in any order and with repetitions."""
        distinct = np.unique(digests)
        return Sketch(distinct[:SIZE], len(distinct))

    def judged(self, digests: Digests) -> NDArray[np.bool_]:
        """Return which digests the sketch can tell of: all, where it holds the whole set."""
        if self.count == len(self.smallest):
            return np.ones(len(digests), dtype=np.bool_)
        judged: NDArray[np.bool_] = digests <= self.smallest[-1]
        return judged

    def holds(self, digests: Digests) -> NDArray[np.bool_]:
        """Return which digests stand in the sketch."""
        return np.isin(digests, self.smallest)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        packed = self.smallest.astype(">u8").tobytes()
        return {"count": self.count, "smallest": base64.b64encode(packed).decode()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Sketch:
        """Take back what `to_dict` gave.

        Raises:
            ManifestError: anything else.
        """
        try:
            packed = base64.b64decode(values["smallest"], validate=True)
            smallest = np.frombuffer(packed, dtype=">u8").astype(np.uint64)
            count = int(values["count"])
            if len(smallest) != min(count, SIZE):
                raise ValueError(f"{len(smallest)} digests of {count}")
            return Sketch(smallest, count)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ManifestError(
                f"the manifest is damaged: training.{KEY} is no sketch ({error}); export again"
            ) from error


@dataclass(frozen=True)
class Overlap:
    """What a data set shares with a training set."""

    items: int  # of the data set
    judged: int  # of them, those that the sketch can tell of
    shared: int  # of those, the ones that were trained on
    classes: int  # of the data set that were trained on, as far as is known

    @property
    def share(self) -> float:
        """Estimated share of the data set's items that were trained on."""
        return self.shared / self.judged if self.judged else 0.0


def sketches(train: Labelled) -> dict[str, Any]:
    """Return what a manifest keeps of the training set, under training["train_digests"]."""
    items = item_digests(train)
    return {
        "items": Sketch.of(items).to_dict(),
        "classes": Sketch.of(_class_digests(train, items)).to_dict(),
    }


def measure(training: Mapping[str, Any], labelled: Labelled) -> Overlap | None:
    """Estimate what a data set shares with a training set.

    Args:
        training: of the manifest.
        labelled: prepared under the twin's own contract, as the training set was.

    Returns:
        None where the manifest keeps no digests, as of an imported twin.

    Raises:
        ManifestError: damaged sketches.
    """
    kept = training.get(KEY)
    if kept is None:
        return None
    if not isinstance(kept, dict) or not {"items", "classes"} <= kept.keys():
        raise ManifestError(f"the manifest is damaged: training.{KEY} is no sketch; export again")
    known, known_classes = Sketch.from_dict(kept["items"]), Sketch.from_dict(kept["classes"])
    digests = item_digests(labelled)
    judged, shared = known.judged(digests), known.holds(digests)
    count = len(labelled.class_names)
    seen = np.bincount(labelled.labels[judged], minlength=count)
    hit = np.bincount(labelled.labels[shared], minlength=count)
    by_items = (hit >= _SHARED_ITEMS) & (hit >= _SHARED_CLASS * seen)
    # The whole class once more is told even where the sketch of items is thin.
    present = np.unique(labelled.labels)
    whole = np.zeros(count, dtype=np.bool_)
    whole[present] = known_classes.holds(_class_digests(labelled, digests))
    return Overlap(
        items=len(labelled),
        judged=int(judged.sum()),
        shared=int(shared.sum()),
        classes=int((by_items | whole).sum()),
    )


def check(twin: Manifest | Mapping[str, Any], labelled: Labelled) -> None:
    """Refuse to set thresholds on what the twin was trained on: they would promise too much.

    Args:
        twin: its manifest, or the manifest's `training`.
        labelled: the calibrating data, prepared under the twin's own contract.

    Raises:
        DataError: a shared class, or more than `MAX_SHARE` of the items.
    """
    found = measure(twin.training if isinstance(twin, Manifest) else twin, labelled)
    if found is None or (found.classes == 0 and found.share <= MAX_SHARE):
        return
    items = round(found.share * found.items)
    exact = found.judged == found.items
    classes = f", and {found.classes} of its classes" if found.classes else ""
    raise DataError(
        f"the calibration set overlaps what the twin was trained on: "
        f"{'' if exact else 'about '}{items} of its {found.items} items ({found.share:.1%})"
        f"{classes} stand in the training set"
        f"{'' if exact else f' (judged by a sample of {found.judged})'}. Thresholds set on them "
        "would promise too much; give classes that the twin has not seen",
        metadata={
            "shared_items": str(items),
            "items": str(found.items),
            "shared_classes": str(found.classes),
        },
    )


def item_digests(labelled: Labelled) -> Digests:
    """Return 8 bytes of each row's sha256: uint64 [n]."""
    # The bytes as they are fed; a text's row is its token ids.
    digests = [
        hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()[:8] for row in labelled.rows
    ]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _class_digests(labelled: Labelled, items: Digests) -> Digests:
    """Name each class that has items, by those, in no order: uint64 [classes present]."""
    order = np.argsort(labelled.labels, kind="stable")
    starts = np.flatnonzero(np.diff(labelled.labels[order])) + 1
    digests = [
        hashlib.sha256(np.sort(own).astype(">u8").tobytes()).digest()
        for own in np.split(items[order], starts)
        if len(own)
    ]
    packed = b"".join(digest[:8] for digest in digests)
    return np.frombuffer(packed, dtype=">u8").astype(np.uint64)
