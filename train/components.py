"""Splits of pairs and triplets: what hangs together stays together.

In: rows of items, such as the two of a pair. Items that a row joins belong to one component, and so
does all that is joined to them; a component goes into one part as a whole, so that no item stands
on two sides. Out: the rows of each part, with how far that came out from what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinserve.errors import DataError
from twinserve.train.config import TrainConfig
from twinserve.train.data import PARTS, IntArray

# A part with less than this share of what it should have is no part.
_LEAST_SHARE = 0.5
# Data sets hold the odd item on two sides; below this share of a part's rows it is no matter.
MAX_SHARED = 0.01


@dataclass(frozen=True)
class LinkSplits:
    """Which pairs or triplets train, calibrate and report: row numbers, int64 each, rising."""

    train: IntArray
    calibrate: IntArray
    report: IntArray
    by: str  # component or column
    components: int
    largest: int  # rows of the largest component
    shared: tuple[int, int] = (0, 0)  # rows to calibrate and to report with an item of another part

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as splits.json holds them."""
        return {
            **{part: getattr(self, part).tolist() for part in PARTS},
            "by": self.by,
            "components": self.components,
            "largest_component": self.largest,
            "shared": list(self.shared),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> LinkSplits:
        """Take back what `to_dict` gave."""
        return LinkSplits(
            **{part: np.array(values[part], dtype=np.int64) for part in PARTS},
            by=values["by"],
            components=values["components"],
            largest=values["largest_component"],
            shared=(values["shared"][0], values["shared"][1]),
        )


def components(members: IntArray, items: int) -> IntArray:
    """Number the connected components, by the first of their items.

    Args:
        members: int64 [rows, k], the items that each row joins.
        items: how many there are.

    Returns:
        int64 [items], counted from 0.
    """
    parent = list(range(items))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, *others in members.tolist():
        for other in others:
            a, b = root(first), root(other)
            parent[max(a, b)] = min(a, b)
    roots = [root(item) for item in range(items)]
    found: IntArray = np.unique(roots, return_inverse=True)[1].astype(np.int64)
    return found


def split_links(
    members: IntArray,
    items: int,
    config: TrainConfig,
    named: Sequence[str] = (),
    what: str = "pairs",
) -> LinkSplits:
    """Divide pairs or triplets into train, calibrate and report.

    By the parts that the data names; parts that it does not name are drawn from the rows that are
    to train, by whole components and the config's seed, until each has its fraction of them. A
    component too large for what a part still lacks trains.

    Args:
        members: int64 [rows, k], the items that each row joins.
        items: how many there are.
        config: gives seed, fractions, and whether named parts may share items.
        named: [rows], the part that each row names; empty where they name none.
        what: the rows are, for the sentences.

    Raises:
        DataError: a part is empty, or far from its fraction because one component holds too much;
            or parts that the data names share items.
    """
    places = np.array([PARTS.index(part) for part in named or ["train"] * len(members)])
    fractions = {1: config.calibrate_fraction, 2: config.report_fraction}
    drawn = {part: share for part, share in fractions.items() if not (places == part).any()}
    pool = np.flatnonzero(places == 0)
    if drawn and len(pool):
        places[pool] = _drawn(_component_of(members[pool], items), drawn, config.seed)
    component = _component_of(members, items)
    train, calibrate, report = (np.flatnonzero(places == index) for index in range(len(PARTS)))
    splits = LinkSplits(
        train=train,
        calibrate=calibrate,
        report=report,
        by="column" if named else "component",
        components=int(component.max()) + 1,
        largest=int(np.bincount(component).max()),
        shared=_shared(members, items, places),
    )
    _refuse_small(splits, len(pool), drawn, what)
    if not config.allow_shared_items:
        _refuse_shared(splits, what)
    return splits


def _component_of(members: IntArray, items: int) -> IntArray:
    """Return the component of each row, numbered without gaps: int64 [rows]."""
    found: IntArray = np.unique(components(members, items)[members[:, 0]], return_inverse=True)[1]
    return found


def _drawn(component: IntArray, fractions: Mapping[int, float], seed: int) -> IntArray:
    """Draw a part for each component, and return that of each row, by its place in `PARTS`."""
    lacks = {part: round(share * len(component)) for part, share in fractions.items()}
    sizes = np.bincount(component)
    place = np.zeros(len(sizes), dtype=np.int64)  # train, unless a part has room
    for one in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        for part in lacks:
            if sizes[one] <= lacks[part]:
                lacks[part] -= int(sizes[one])
                place[one] = part
                break
    return place[component]


def _shared(members: IntArray, items: int, places: IntArray) -> tuple[int, int]:
    """Count the rows to calibrate and to report on with an item that another part has too."""
    seen = np.zeros((items, len(PARTS)), dtype=np.bool_)
    for column in members.T:
        seen[column, places] = True
    on_two_sides = (seen.sum(axis=1) > 1)[members].any(axis=1)  # [rows]
    return int(on_two_sides[places == 1].sum()), int(on_two_sides[places == 2].sum())


def _refuse_small(splits: LinkSplits, pool: int, drawn: Mapping[int, float], what: str) -> None:
    """Refuse parts of fewer than two rows, and drawn ones far below their fraction of the pool."""
    for index, part in enumerate(PARTS):
        rows = len(getattr(splits, part))
        share = drawn.get(index, 0.0) if index else 1.0 - sum(drawn.values())
        least = _LEAST_SHARE * share * pool if index in drawn or (drawn and not index) else 0
        if rows >= 2 and rows >= least:
            continue
        if index not in drawn and not (drawn and not index):
            raise DataError(
                f"split_column gives {rows} {what} to the {part} part, and it needs 2 at least; "
                "name train, calibrate (or dev) and report (or test)"
            )
        if share * pool < 2:
            raise DataError(
                f"the {part} part would get {share:.0%} of {pool} {what}, and a part needs 2 at "
                "least; give more, or other fractions"
            )
        raise DataError(
            f"the {part} part would get {rows} of {pool} {what} where {share:.0%} were asked for: "
            f"they hang together in {splits.components} components, the largest of "
            f"{splits.largest} {what} ({splits.largest / max(pool, 1):.0%}), and no item may stand "
            "in two parts. Give a split_column, leave out what joins the largest component, or ask "
            "for other fractions"
        )


def _refuse_shared(splits: LinkSplits, what: str) -> None:
    for part, shared in zip(PARTS[1:], splits.shared, strict=True):
        rows = len(getattr(splits, part))
        if shared > MAX_SHARED * rows:
            raise DataError(
                f"split_column puts items on two sides: {shared} of {rows} {what} of the {part} "
                "part hold an item of another part, and figures measured on them would be too "
                "good. Move or leave out those rows, unset split_column to have whole components "
                "divided, or set allow_shared_items=true where the split is one that others "
                "measure on"
            )
