"""What would spoil a training, told from its data before any time is lost.

In: a config, or the material that was made of one. Out: `Checked`: facts, and findings that say what
to do. `check` is what every training does, on what it has read anyway; `examine` is what `twinserve
data check` does: it reads on where a training would stop, so that all broken items are named, and
looks at what training does not need (the pictures' own sizes, how many texts are cut).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from twinserve.errors import DataError
from twinserve.feed import Rows
from twinserve.manifest import ImageInput, InputContract, TextInput
from twinserve.tokens import Tokenizer
from twinserve.train import evidence
from twinserve.train.components import MAX_SHARED
from twinserve.train.config import TrainConfig
from twinserve.train.data import PARTS, IntArray, Labelled, group_of
from twinserve.train.faults import Faults
from twinserve.train.forms import OTHER_PICTURES, kind_of
from twinserve.train.links import Links, identities
from twinserve.train.material import (
    LinkMaterial,
    Material,
    read_labelled,
    read_linked,
    settle,
    settle_links,
)
from twinserve.train.pairs import LinkBatches, PairData
from twinserve.train.readers import Texts, files, pictures_beside

# Scores of one pair that lie so far apart, of 1, contradict each other.
_CONTRADICTION = 0.5
# Batches without impostors: above this share of them, most of the training teaches nothing.
_MOST_LONELY = 0.5


@dataclass(frozen=True)
class Finding:
    """Something wrong with the data, or with what is asked of them."""

    kind: str  # a stable word, such as duplicates_across_parts
    stops: bool  # it would spoil a training
    message: str  # what is wrong, and what to do
    items: tuple[str, ...] = ()  # all that it is about


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    facts: dict[str, Any]  # plain values, as JSON takes them
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether nothing would spoil a training."""
        return not any(finding.stops for finding in self.findings)

    def refuse(self) -> None:
        """Stop a training that would be spoiled.

        Raises:
            DataError: the first finding that stops, and how many more there are.
        """
        stops = [finding.message for finding in self.findings if finding.stops]
        if stops:
            more = f" (and {len(stops) - 1} more: twinserve data check)" if stops[1:] else ""
            raise DataError(f"{stops[0]}{more}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as data.json holds them."""
        shown = [
            {"kind": f.kind, "stops": f.stops, "message": f.message, "items": list(f.items)}
            for f in self.findings
        ]
        return {**self.facts, "findings": shown}


def check(material: Material | LinkMaterial, config: TrainConfig) -> Checked:
    """Check what a training is about to use: its batches, duplicates, labels and evidence.

    Args:
        material: read and split without a fault.
        config: of the training.
    """
    if isinstance(material, LinkMaterial):
        return _of_links(material, config)
    return _of_labelled(material, config)


def examine(config: TrainConfig) -> Checked:
    """Check a data set as a whole: every item that cannot be used, and what `check` looks at.

    Raises:
        ConfigError: a twin that does not take such data, or settings that do not fit them.
        DataError: the path leads nowhere.
    """
    if not Path(config.data).exists():
        raise DataError(f"{config.data} does not exist; give a folder, zip, table or vectors")
    faults = Faults(gather=True)
    facts: dict[str, Any] = {}
    findings: list[Finding] = []
    try:
        kind = kind_of(config)
        facts |= {"data": config.data, "modality": kind.modality, "form": kind.form}
        if kind.form == "labelled":
            read = read_labelled(config, faults)
            facts |= _class_facts(read)
            material: Material | LinkMaterial = settle(read, config)
        else:
            linked = read_linked(config, faults)
            facts |= _link_facts(linked[0])
            material = settle_links(linked, config)
        checked = check(material, config)
        facts |= checked.facts
        findings += checked.findings
        if isinstance(material.contract, TextInput):
            _look_at_texts(material, config, facts, findings)
    except DataError as error:
        # A reader that found nothing to use says less than the faults that it met.
        findings.append(Finding("unusable", True, error.message))
    if config.modality == "image":
        _look_at_files(config, facts, findings)
    return Checked(facts, (*_of_faults(faults, config), *findings))


def _of_faults(faults: Faults, config: TrainConfig) -> list[Finding]:
    found = []
    for kind, count in Counter(fault.kind for fault in faults.found).items():
        own = [fault for fault in faults.found if fault.kind == kind]
        items = tuple(fault.item or fault.message for fault in own)
        if kind == "broken_image":
            stops = count > config.max_broken_images
            message = (
                f"{_number(count, 'picture')} cannot be decoded, and max_broken_images is "
                f"{config.max_broken_images}: mend them, take them out, or raise the limit"
            )
            found.append(Finding(kind, stops, message, items))
            continue
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        found.append(Finding(kind, True, f"{own[0].message}{more}", items))
    return found


# ---- labelled items ------------------------------------------------------------------------------


def _class_facts(read: Texts | Labelled) -> dict[str, Any]:
    counts = np.bincount(read.labels, minlength=len(read.class_names))
    single = [name for name, count in zip(read.class_names, counts, strict=True) if count == 1]
    return {
        "items": len(read.labels),
        "classes": len(read.class_names),
        "groups": len({group_of(name) for name in read.class_names}),
        "items_per_class": _spread(counts),
        "classes_of_one_item": single,
    }


def _of_labelled(material: Material, config: TrainConfig) -> Checked:
    labelled, splits = material.labelled, material.splits
    facts = _class_facts(labelled)
    parts = {part: labelled.of_classes(getattr(splits, part)) for part in PARTS}
    facts["parts"] = {
        part: {"classes": len(own.class_names), "items": len(own)} for part, own in parts.items()
    }
    findings = [
        *_classes_and_batches(parts["train"], config),
        *_duplicates(material, facts),
        *_vectors(labelled.rows, material.contract, facts),
    ]
    counts = np.bincount(parts["calibrate"].labels)
    facts["evidence"], lacking = evidence.of_classes(counts, config.false_accept_rates)
    findings += [Finding("too_little_evidence", one.asked, one.message) for one in lacking]
    return Checked(facts, tuple(findings))


def _classes_and_batches(train: Labelled, config: TrainConfig) -> list[Finding]:
    found = []
    turns = 4 if config.rotations else 1
    there = len(train.class_names) * turns
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
                f"{_number(int(two_parts[held_out].sum()), 'held-out item')} ({share:.1%}) "
                f"{_stand(two_parts[held_out])} in another part too, so that figures on them are "
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
                f"{_number(int(two_labels.sum()), 'item')} ({share:.1%}) "
                f"{_stand(two_labels)} under two labels with the very same content: keep one label "
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
                f"{_number(alone, 'item')} {'is a copy' if alone == 1 else 'are copies'} of another "
                "one of the same label, which makes that pair too easy: take copies out",
                _named(names, _repeated(same) & ~two_labels, same),
            )
        )
    return found


# ---- pairs and triplets --------------------------------------------------------------------------


def _link_facts(links: Links) -> dict[str, Any]:
    facts: dict[str, Any] = {"items": len(links.names), links.form: len(links)}
    if links.targets is not None:
        same, different = int((links.targets == 1).sum()), int((links.targets == 0).sum())
        facts["judgements"] = {
            "same": same,
            "different": different,
            "between": len(links) - same - different,
            **_spread(links.targets),
        }
    return facts


def _of_links(material: LinkMaterial, config: TrainConfig) -> Checked:
    data, splits = material.data, material.splits
    texts = isinstance(material.contract, TextInput)
    same = identities(data.names, None if texts else data.rows)[data.members]
    facts: dict[str, Any] = {
        "components": {"count": splits.components, "largest": splits.largest},
        "split_by": splits.by,
        "parts": {
            part: {"rows": len(getattr(splits, part)), **_kinds(data, getattr(splits, part))}
            for part in PARTS
        },
    }
    what = "pairs" if isinstance(data, PairData) else "triplets"
    findings = []
    if sum(splits.shared):
        findings.append(
            Finding(
                "items_in_two_parts",
                False,  # the split itself refuses many of them
                f"{sum(splits.shared)} held-out {what} hold an item of another part: take them out",
            )
        )
    if len(splits.train) < config.pairs_per_batch:
        findings.append(
            Finding(
                "small_batches",
                False,
                f"batches hold all {len(splits.train)} training {what}, where pairs_per_batch asks "
                f"for {config.pairs_per_batch}: give more, or set a smaller one",
            )
        )
    if isinstance(data, PairData):
        findings += _judgements(data, same, config)
        findings += _sides(material, data, config, facts)
    else:
        findings += _contradictory_triplets(same)
    findings += _vectors(data.rows, material.contract, facts)
    return Checked(facts, tuple(findings))


def _kinds(data: object, rows: IntArray) -> dict[str, int]:
    if not isinstance(data, PairData) or not data.binary:
        return {}
    same = int((data.targets[rows] == 1).sum())
    return {"same": same, "different": len(rows) - same}


def _judgements(data: PairData, same: IntArray, config: TrainConfig) -> list[Finding]:
    """Find pairs that are judged both ways, and judgements that a loss cannot take."""
    found = []
    ordered = np.sort(same, axis=1)
    key = np.unique(ordered, axis=0, return_inverse=True)[1].reshape(-1)
    least, most = np.full(key.max() + 1, np.inf), np.full(key.max() + 1, -np.inf)
    np.minimum.at(least, key, data.targets)
    np.maximum.at(most, key, data.targets)
    itself = (ordered[:, 0] == ordered[:, 1]) & (data.targets < 1 - _CONTRADICTION)
    both = (most - least)[key] > _CONTRADICTION
    wrong = both | itself
    if wrong.any():
        share = float(wrong.mean())
        found.append(
            Finding(
                "conflicting_labels",
                share > MAX_SHARED,
                f"{_number(int(both.sum()), 'pair')} {_stand(both)} there judged both ways, and "
                f"{int(itself.sum())} of an item with itself as different ({share:.1%} together): "
                "keep one judgement for each",
                tuple(_pair(data, row) for row in np.flatnonzero(wrong).tolist()),
            )
        )
    repeated = len(key) - len(np.unique(key))
    if repeated:
        found.append(
            Finding(
                "duplicates",
                False,
                f"{_number(repeated, 'pair')} {_stand(np.ones(repeated))} there more than once, in "
                "this or the other order; each counts anew",
            )
        )
    if config.loss == "contrastive" and not data.binary:
        found.append(
            Finding(
                "labels_outside_the_loss",
                True,
                "the contrastive loss takes pairs that are the same or not, and these are scored: "
                "take a loss of scores, or judge the pairs 0 or 1",
            )
        )
    return found


def _sides(
    material: LinkMaterial, data: PairData, config: TrainConfig, facts: dict[str, Any]
) -> list[Finding]:
    """Find parts that hold pairs of one kind alone, and evidence that does not suffice."""
    found = []
    for part in PARTS:
        targets = data.targets[getattr(material.splits, part)]
        if targets.min() == targets.max():
            found.append(
                Finding(
                    "one_judgement_alone",
                    part == "train",
                    f"all pairs of the {part} part are judged {targets[0]:g}, which leaves nothing "
                    "to tell apart: add pairs of the other kind",
                )
            )
    if config.balanced_pairs:
        try:
            LinkBatches(data.of_rows(material.splits.train), size=2, balanced=True)
        except DataError as error:
            found.append(Finding("unbalanced", True, error.message))
    if data.binary:
        different = int((data.targets[material.splits.calibrate] == 0).sum())
        facts["evidence"], lacking = evidence.of_pairs(different, config.false_accept_rates)
        found += [Finding("too_little_evidence", one.asked, one.message) for one in lacking]
    return found


def _contradictory_triplets(same: IntArray) -> list[Finding]:
    anchor, positive, negative = same.T
    rows = {tuple(row) for row in same.tolist()}
    turned = np.array([(a, n, p) in rows for a, p, n in same.tolist()])
    wrong = (anchor == negative) | (positive == negative) | turned
    if not wrong.any():
        return []
    return [
        Finding(
            "conflicting_labels",
            float(wrong.mean()) > MAX_SHARED,
            f"{_number(int(wrong.sum()), 'triplet')} ({wrong.mean():.1%}) cannot be met: the "
            "negative is the anchor or the positive, or another triplet has the two the other way "
            "round. Take them out",
        )
    ]


# ---- what one kind of input has ------------------------------------------------------------------


def _vectors(rows: Rows, contract: InputContract, facts: dict[str, Any]) -> list[Finding]:
    if isinstance(contract, ImageInput | TextInput):
        return []
    norms = np.linalg.norm(np.asarray(rows).reshape(len(rows), -1).astype(np.float64), axis=1)
    facts["vectors"] = {"shape": list(contract.shape), "norms": _spread(norms)}
    zero = np.flatnonzero(norms == 0)
    if not len(zero):
        return []
    return [
        Finding(
            "zero_vectors",
            len(zero) > MAX_SHARED * len(norms),
            f"{len(zero)} of {len(norms)} vectors are all zeros, as where one is missing: leave "
            "them out",
            tuple(map(str, zero.tolist())),
        )
    ]


def _look_at_texts(
    material: Material | LinkMaterial,
    config: TrainConfig,
    facts: dict[str, Any],
    findings: list[Finding],
) -> None:
    """Count tokens, and texts that are cut."""
    contract, names = material.contract, _names(material)
    assert isinstance(contract, TextInput)
    assert material.tokenizer is not None
    tokenizer = Tokenizer(material.tokenizer, contract)
    lengths = np.array([tokenizer.encode(name, truncate=True).count for name in names])
    cut = lengths > contract.max_tokens
    facts["tokens"] = {**_spread(lengths), "cut": float(cut.mean())}
    if cut.any():
        findings.append(
            Finding(
                "long_texts",
                False,
                f"{int(cut.sum())} of {len(names)} texts ({cut.mean():.1%}) have more than "
                f"max_tokens={config.max_tokens} tokens, and lose their ends: set "
                f"max_tokens={int(lengths.max())}, or shorten them",
                tuple(names[item] for item in np.flatnonzero(cut).tolist()),
            )
        )


def _names(material: Material | LinkMaterial) -> tuple[str, ...]:
    return material.data.names if isinstance(material, LinkMaterial) else material.labelled.names


def _look_at_files(config: TrainConfig, facts: dict[str, Any], findings: list[Finding]) -> None:
    """Measure the pictures as they lie on the disk."""
    path = Path(config.data)
    sizes: list[tuple[int, int]] = []
    try:
        if kind_of(config).table:
            links = read_linked if facts.get("form") != "labelled" else None
            names = links(config, Faults(gather=True))[0].names if links else ()
            pictures = list(pictures_beside(path, names))
        else:
            pictures = list(files(path))
    except DataError:
        return  # told already
    for _, content in pictures:
        if isinstance(content, bytes):
            try:
                sizes.append(Image.open(io.BytesIO(content)).size)
            except (OSError, ValueError):
                continue  # told already, by its name
    if sizes:
        facts["pictures"] = {
            "widths": _spread([width for width, _ in sizes]),
            "heights": _spread([height for _, height in sizes]),
            "sizes": len(set(sizes)),
        }
    others = Counter(
        PurePosixPath(str(file)).suffix.lower()
        for file in (path.rglob("*") if path.is_dir() else ())
    )
    passed = {suffix: others[suffix] for suffix in OTHER_PICTURES if others[suffix]}
    if passed:
        findings.append(
            Finding(
                "other_formats",
                False,
                f"{sum(passed.values())} pictures of formats that serving does not decode were "
                f"passed over ({', '.join(passed)}): save them as PNG",
            )
        )


# ---- counting ------------------------------------------------------------------------------------


def _spread(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    array = np.asarray(values)
    found = {"least": array.min(), "median": np.median(array), "most": array.max()}
    return {name: round(float(value), 6) for name, value in found.items()}


def _in_several(same: IntArray, sort: IntArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which items have an equal one of another sort: [n]."""
    kinds = np.unique(np.stack([same, sort], axis=1), axis=0)[:, 0]
    several: np.ndarray[Any, np.dtype[np.bool_]] = np.bincount(kinds)[same] > 1
    return several


def _repeated(same: IntArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    repeated: np.ndarray[Any, np.dtype[np.bool_]] = np.bincount(same)[same] > 1
    return repeated


def _extra(same: IntArray, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    return int(chosen.sum()) - len(np.unique(same[chosen]))


def _named(
    names: Sequence[str], chosen: np.ndarray[Any, np.dtype[np.bool_]], same: IntArray
) -> tuple[str, ...]:
    """Name items, equal ones beside each other."""
    rows = np.flatnonzero(chosen)
    return tuple(names[row] for row in rows[np.argsort(same[rows], kind="stable")].tolist())


def _pair(data: PairData, row: int) -> str:
    first, second = data.members[row].tolist()
    return f"{data.names[first]} | {data.names[second]}: {data.targets[row]:g}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _stand(chosen: np.ndarray[Any, Any]) -> str:
    return "stands" if int(chosen.sum()) == 1 else "stand"
