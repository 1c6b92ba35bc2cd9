"""Checks of labelled items: classes, batches, equal items, and evidence.

In: what was read, and its material. Out: facts and findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinserve.manifest import TextInput
from twinserve.train import evidence
from twinserve.train.components import MAX_SHARED
from twinserve.train.config import TrainConfig
from twinserve.train.data import PARTS, IntArray, Labelled, group_of
from twinserve.train.findings import Checked, Chosen, Finding, check_vectors, number, spread, stand
from twinserve.train.links import identities
from twinserve.train.material import Material
from twinserve.train.readers import Texts

# Batches without impostors: above this share of them, most of the training teaches nothing.
_MOST_LONELY = 0.5


def class_facts(read: Texts | Labelled) -> dict[str, Any]:
    """Count items, classes and groups, and name the classes of one item."""
    counts = np.bincount(read.labels, minlength=len(read.class_names))
    single = [name for name, count in zip(read.class_names, counts, strict=True) if count == 1]
    return {
        "items": len(read.labels),
        "classes": len(read.class_names),
        "groups": len({group_of(name) for name in read.class_names}),
        "items_per_class": spread(counts),
        "classes_of_one_item": single,
    }


def of_labelled(material: Material, config: TrainConfig) -> Checked:
    """Check labelled items that were read and split."""
    labelled, splits = material.labelled, material.splits
    facts: dict[str, Any] = {"form": "labelled", **class_facts(labelled)}
    parts = {part: labelled.of_classes(getattr(splits, part)) for part in PARTS}
    facts["parts"] = {
        part: {"classes": len(own.class_names), "items": len(own)} for part, own in parts.items()
    }
    findings = [
        *_classes_and_batches(parts["train"], config, facts),
        *_duplicates(material, facts),
        *check_vectors(labelled.rows, material.contract, facts),
    ]
    counts = np.bincount(parts["calibrate"].labels)
    facts["evidence"], lacking = evidence.of_classes(counts, config.false_accept_rates)
    findings += [Finding("too_little_evidence", one.asked, one.message) for one in lacking]
    return Checked(facts, tuple(findings))


def _classes_and_batches(
    train: Labelled, config: TrainConfig, facts: dict[str, Any]
) -> list[Finding]:
    found = []
    turns = 4 if config.rotations else 1
    there = len(train.class_names) * turns
    facts["batches"] = {
        "classes": min(there, config.classes_per_batch),
        "items_per_class": config.items_per_class,
    }
    if there < config.classes_per_batch:
        found.append(
            Finding(
                "small_batches",
                False,
                f"batches hold all {there} training classes, where classes_per_batch asks for "
                f"{config.classes_per_batch}: give more classes, or set classes_per_batch={there}",
            )
        )
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    short = np.flatnonzero(counts < config.items_per_class)
    if len(short):
        found.append(
            Finding(
                "repeated_items",
                False,
                f"{len(short)} of {len(counts)} training classes have fewer items than "
                f"items_per_class={config.items_per_class}, so theirs repeat in a batch: give more "
                f"items, or set items_per_class={max(2, int(counts.min()))}",
                tuple(train.class_names[label] for label in short.tolist()),
            )
        )
    groups = np.bincount(train.class_groups)
    lonely = config.one_group_share * float(np.mean(groups * turns < 2))
    if len(groups) > 1 and lonely > 0:
        found.append(
            Finding(
                "batches_of_one_class",
                lonely > _MOST_LONELY,
                f"{lonely:.0%} of the batches would hold one class alone, which has nothing to be "
                f"told from: {int((groups < 2).sum())} of {len(groups)} groups have one class. Set "
                "one_group_share=0",
            )
        )
    return found


def _duplicates(material: Material, facts: dict[str, Any]) -> list[Finding]:
    """Find equal items, in a class, in several classes, and on two sides of the split."""
    labelled = material.labelled
    texts = isinstance(material.contract, TextInput)
    same = identities(labelled.names, None if texts else labelled.rows)
    part_of_class = {
        name: index for index, part in enumerate(PARTS) for name in getattr(material.splits, part)
    }
    places = np.array([part_of_class.get(name, -1) for name in labelled.class_names])
    part = places[labelled.labels]
    used = part >= 0
    label, part, same = labelled.labels[used], part[used], same[used]
    names = [labelled.names[item] for item in np.flatnonzero(used).tolist()]
    copies = len(same) - len(np.unique(same))
    two_labels = _in_several(same, label)
    two_parts = _in_several(same, part)
    facts["duplicates"] = {
        "copies": copies,
        "with_two_labels": int(two_labels.sum()),
        "in_two_parts": int(two_parts.sum()),
    }
    found = []
    if two_parts.any():
        held_out = part > 0
        share = float(two_parts[held_out].mean())
        found.append(
            Finding(
                "duplicates_across_parts",
                share > MAX_SHARED,
                f"{number(int(two_parts[held_out].sum()), 'held-out item')} ({share:.1%}) "
                f"{stand(two_parts[held_out])} in another part too, so that figures on them are "
                "too good: take the copies out, or give equal items one label",
                _named(names, two_parts, same),
            )
        )
    if two_labels.any():
        share = float(two_labels.mean())
        found.append(
            Finding(
                "conflicting_labels",
                share > MAX_SHARED,
                f"{number(int(two_labels.sum()), 'item')} ({share:.1%}) "
                f"{stand(two_labels)} under two labels with the very same content: keep one label "
                "for each",
                _named(names, two_labels, same),
            )
        )
    alone = copies - int(_extra(same, two_labels))
    if alone > 0:
        found.append(
            Finding(
                "duplicates",
                False,
                f"{number(alone, 'item')} {'is a copy' if alone == 1 else 'are copies'} of another "
                "one of the same label, which makes that pair too easy: take copies out",
                _named(names, _repeated(same) & ~two_labels, same),
            )
        )
    return found


def _in_several(same: IntArray, sort: IntArray) -> Chosen:
    """Return which items have an equal one of another sort: [n]."""
    kinds = np.unique(np.stack([same, sort], axis=1), axis=0)[:, 0]
    several: Chosen = np.bincount(kinds)[same] > 1
    return several


def _repeated(same: IntArray) -> Chosen:
    repeated: Chosen = np.bincount(same)[same] > 1
    return repeated


def _extra(same: IntArray, chosen: Chosen) -> int:
    return int(chosen.sum()) - len(np.unique(same[chosen]))


def _named(names: Sequence[str], chosen: Chosen, same: IntArray) -> tuple[str, ...]:
    """Name items, equal ones beside each other."""
    rows = np.flatnonzero(chosen)
    return tuple(names[row] for row in rows[np.argsort(same[rows], kind="stable")].tolist())
