"""Checks of pairs and triplets: judgements, batches, and evidence.

In: what was read, and its material. Out: facts and findings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from twinserve.errors import ConfigError, DataError
from twinserve.manifest import TextInput
from twinserve.train import evidence
from twinserve.train.components import MAX_SHARED
from twinserve.train.config import TrainConfig
from twinserve.train.data import PARTS, IntArray
from twinserve.train.findings import Checked, Finding, check_vectors, number, spread, stand
from twinserve.train.forms import Kind, check_loss
from twinserve.train.links import Links, identities
from twinserve.train.material import LinkMaterial
from twinserve.train.pairs import LinkBatches, PairData

# Scores of one pair that lie so far apart, of 1, contradict each other.
_CONTRADICTION = 0.5
# Losses that know the same and different, and nothing between.
_OF_LABELS = ("contrastive", "concatenation")


def link_facts(links: Links) -> dict[str, Any]:
    """Count items, rows and judgements."""
    facts: dict[str, Any] = {"items": len(links.names), links.form: len(links)}
    if links.targets is not None:
        same, different = int((links.targets == 1).sum()), int((links.targets == 0).sum())
        facts["judgements"] = {
            "same": same,
            "different": different,
            "between": len(links) - same - different,
            **spread(links.targets),
        }
    return facts


def of_links(material: LinkMaterial, config: TrainConfig) -> Checked:
    """Check pairs or triplets that were read and split."""
    data, splits = material.data, material.splits
    texts = isinstance(material.contract, TextInput)
    same = identities(data.names, None if texts else data.rows)[data.members]
    what = "pairs" if isinstance(data, PairData) else "triplets"
    facts: dict[str, Any] = {
        "form": what,
        "components": {"count": splits.components, "largest": splits.largest},
        "split_by": splits.by,
        "parts": {
            part: {
                "rows": len(getattr(splits, part)),
                "share": round(len(getattr(splits, part)) / len(data), 4),
                **_kinds(data, getattr(splits, part)),
            }
            for part in PARTS
        },
    }
    findings = []
    try:
        check_loss(Kind(config.modality, what, True), config)
    except ConfigError as error:  # which stops a training before it reads its data
        findings.append(Finding("loss_of_other_data", False, error.message))
    if sum(splits.shared):
        findings.append(
            Finding(
                "items_in_two_parts",
                False,  # the split itself refuses many of them
                f"{sum(splits.shared)} held-out {what} ({splits.shared[0]} to calibrate, "
                f"{splits.shared[1]} to report) hold an item of another part, so that figures on "
                "them are too good: take them out",
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
    findings += check_vectors(data.rows, material.contract, facts)
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
                f"{number(int(both.sum()), 'pair')} {stand(both)} there judged both ways, and "
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
                f"{number(repeated, 'pair')} {stand(np.ones(repeated))} there more than once, in "
                "this or the other order; each counts anew",
            )
        )
    if config.loss in _OF_LABELS and not data.binary:
        found.append(
            Finding(
                "labels_outside_the_loss",
                True,
                f"loss={config.loss} takes pairs that are the same or not, and these are scored: "
                "set loss=cosine_mse different_cosine=0, or judge the pairs 0 or 1",
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
            same = targets.min() == 1
            if same and config.loss == "multiple_negatives":
                continue  # the others of a batch are the impostors
            stops = part == "train" or (part == "calibrate" and not same)
            found.append(
                Finding(
                    "one_judgement_alone",
                    stops,
                    f"all pairs of the {part} part are judged {targets[0]:g}, which leaves nothing "
                    "to tell apart: add pairs of the other kind"
                    + (", or set loss=multiple_negatives" if stops and same else ""),
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
            f"{number(int(wrong.sum()), 'triplet')} ({wrong.mean():.1%}) cannot be met: the "
            "negative is the anchor or the positive, or another triplet has the two the other way "
            "round. Take them out",
        )
    ]


def _pair(data: PairData, row: int) -> str:
    first, second = data.members[row].tolist()
    return f"{data.names[first]} | {data.names[second]}: {data.targets[row]:g}"
