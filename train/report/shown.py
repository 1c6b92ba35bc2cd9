"""What a page shows of held-out data: its hardest pairs, a map, its split, all as text or items.

In: labelled items or judged pairs, with embeddings of the report part. Out: `Shown`, which knows no
HTML. Here alone do the two forms of data differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from twinserve.calibration import PairDistances, pair_distances
from twinserve.distance import Embeddings, FloatArray, paired
from twinserve.feed import Rows
from twinserve.train.checkpoint import Run
from twinserve.train.components import LinkSplits
from twinserve.train.data import PARTS, Labelled
from twinserve.train.evaluate import IntArray, measured_items
from twinserve.train.held_out import HeldOut
from twinserve.train.judged import judged_distances
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.report.exhibits import class_name
from twinserve.train.report.hardest import HardPair, hardest, hardest_judged
from twinserve.train.report.space import SpaceMap, space_map

_PAIRS = 8  # of each kind
_MARKS = 1000  # pairs on a chart
_USES = {
    "train": "shaped the weights",
    "calibrate": "chose the step, and set the thresholds on export",
    "report": "chose nothing; measured here",
}


@dataclass(frozen=True)
class Card:
    """Two items, by index, that were hard to tell apart or to bring together."""

    pair: HardPair
    caption: str


@dataclass(frozen=True)
class Shown:
    """What a page shows of the held-out data."""

    lead: str  # what was measured, as in "How good the twin is on …"
    whole: str  # of how much data it is a part
    part: Labelled  # the items; of judged pairs all of one class without a name
    pairs: PairDistances | None  # None where there is no genuine or no impostor pair
    cards: tuple[tuple[str, str, tuple[Card, ...]], ...]  # heading, what to say if none, the pairs
    hardest: str  # how the pairs were chosen
    drawn: SpaceMap | None
    split_head: tuple[str, ...]
    split: tuple[tuple[str, ...], ...]
    shared: int = 0  # pairs or triplets of the part that hold an item of another part
    # Distances and scores of some pairs, [k] each, where pairs are judged by a score.
    scored: tuple[FloatArray, FloatArray] | None = None


def of_classes(run: Run, labelled: Labelled, embeddings: Embeddings, measured: HeldOut) -> Shown:
    """Show the report classes of a labelled data set.

    Args:
        run: gives the split, the metric and the seed.
        labelled: the whole data set.
        embeddings: float32 [n, dimension], of all items of the report classes.
        measured: on them.
    """
    part = labelled.of_classes(run.classes.report)
    chosen = measured_items(len(part), run.config.seed)
    part, embeddings = part.of_items(chosen), embeddings[chosen]
    metric = run.twin.metric
    genuine, impostor = hardest(embeddings, part.labels, metric, _PAIRS)
    groups = [name for name in labelled.of_classes(run.classes.report).group_names if name]
    of = f" of {', '.join(groups)}" if 0 < len(groups) <= 4 else ""
    return Shown(
        lead=f"{measured.items:,} items of {measured.classes:,} classes{of}",
        whole=f"{len(labelled):,} items of {len(labelled.class_names):,} classes",
        part=part,
        pairs=(
            pair_distances(embeddings, part.labels, metric)
            if measured.verification is not None
            else None
        ),
        cards=(
            ("Farthest genuine pairs", "No class has two items.", _named(part, genuine)),
            ("Nearest impostor pairs", "There is one class alone.", _named(part, impostor)),
        ),
        hardest="The hardest pairs, at most one of a class or of two classes.",
        drawn=space_map(embeddings, part.labels, metric, seed=run.config.seed),
        split_head=("part", "classes", "items", "items of a class", "use", "groups"),
        split=tuple(_class_part(labelled, run, name) for name in PARTS),
    )


def of_links(
    run: Run,
    part: PairData | TripletData,
    embeddings: Embeddings,
    measured: HeldOut,
    counts: Mapping[str, tuple[int, int]],
) -> Shown:
    """Show the pairs or triplets of a report part, a triplet as two pairs.

    Args:
        run: gives the metric and the seed.
        part: the report part.
        embeddings: float32 [n, dimension], of its items.
        measured: on them.
        counts: how many rows and items each part of the split has.
    """
    pairs = part.pairs if isinstance(part, TripletData) else part
    shown = of_pairs(
        rows=pairs.rows,
        names=pairs.names,
        members=pairs.members,
        targets=pairs.targets.astype(np.float64),
        components=pairs.components,
        embeddings=embeddings,
        measured=measured,
        run=run,
        counts=counts,
    )
    if isinstance(run.splits, LinkSplits):
        shown = replace(shown, shared=run.splits.shared[1])
    if not isinstance(part, TripletData):
        return shown
    rows, items = (sum(count[which] for count in counts.values()) for which in (0, 1))
    return replace(
        shown,
        lead=f"{len(part):,} triplets of {measured.items:,} items",
        whole=f"{rows:,} triplets of {items:,} items",
        split_head=("part", "triplets", *shown.split_head[2:]),
    )


def of_pairs(
    *,
    rows: Rows,
    names: tuple[str, ...],
    members: IntArray,
    targets: FloatArray,
    components: IntArray,
    embeddings: Embeddings,
    measured: HeldOut,
    run: Run,
    counts: Mapping[str, tuple[int, int]],
) -> Shown:
    """Show the judged pairs of a report part.

    Args:
        rows: [n] distinct items, as of `Labelled`.
        names: [n], the text itself, or the picture's path.
        members: int64 [pairs, 2], the items of each pair.
        targets: float [pairs], from 0 (different) to 1 (the same).
        components: int64 [n], as `measure_pairs` took them.
        embeddings: float32 [n, dimension].
        measured: on them.
        run: gives the metric.
        counts: how many pairs and items each part of the split has.
    """
    distances = paired(embeddings[members[:, 0]], embeddings[members[:, 1]], run.twin.metric)
    too_far, too_near = hardest_judged(distances, targets, _PAIRS)
    scored = not np.isin(targets, (0.0, 1.0)).all()
    drawn = np.random.default_rng(run.config.seed).permutation(len(distances))[:_MARKS]

    def cards(chosen: IntArray) -> tuple[Card, ...]:
        return tuple(
            Card(
                HardPair(int(members[row, 0]), int(members[row, 1]), float(distances[row])),
                _judgement(float(targets[row]), scored),
            )
            for row in chosen.tolist()
        )

    pairs, items = (sum(count[which] for count in counts.values()) for which in (0, 1))
    return Shown(
        lead=f"{measured.judged_pairs:,} judged pairs of {measured.items:,} items",
        whole=f"{pairs:,} judged pairs of {items:,} items",
        part=Labelled(rows, np.zeros(len(names), np.int64), ("",), names),
        pairs=(
            judged_distances(distances, members, targets, components)
            if measured.verification is not None
            else None
        ),
        cards=(
            ("Too far for how alike they are", "No pair is too far.", cards(too_far)),
            ("Too near for how different they are", "No pair is too near.", cards(too_near)),
        ),
        hardest="The pairs whose closeness ranks farthest from their judgement.",
        drawn=None,
        split_head=("part", "pairs", "items", "use"),
        split=tuple(
            (name, f"{counts[name][0]:,}", f"{counts[name][1]:,}", _USES[name])
            for name in PARTS
            if name in counts
        ),
        scored=(distances[drawn], np.asarray(targets, np.float64)[drawn]) if scored else None,
    )


def _named(part: Labelled, pairs: tuple[HardPair, ...]) -> tuple[Card, ...]:
    """Name a pair's one class, or its two; without their group where there is only one."""
    cards = []
    for pair in pairs:
        names = [class_name(part, item) for item in (pair.first, pair.second)]
        if len(part.group_names) == 1:
            names = [name.rpartition("/")[2] for name in names]
        cards.append(Card(pair, " and ".join(dict.fromkeys(names))))
    return tuple(cards)


def _judgement(target: float, scored: bool) -> str:
    if scored:
        return f"judged {target:.2f} of 1"
    return "judged the same" if target == 1.0 else "judged different"


def _class_part(labelled: Labelled, run: Run, name: str) -> tuple[str, ...]:
    part = labelled.of_classes(getattr(run.classes, name))
    counts = np.bincount(part.labels, minlength=len(part.class_names))
    low, high = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    groups = [group for group in part.group_names if group]
    more = f" and {len(groups) - 6} more" if len(groups) > 6 else ""
    return (
        name,
        f"{len(part.class_names):,}",
        f"{len(part):,}",
        f"{low}" if low == high else f"{low} to {high}",
        _USES[name],
        ", ".join(groups[:6]) + more or "–",
    )
