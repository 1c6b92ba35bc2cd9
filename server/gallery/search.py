"""The planner: which items are nearest to a probe, read from one view.

In: a view (rows and segments of one sequence) and probes. Out: hits, nearest first, ties by id,
grouped by subject. Small or narrow questions are scanned exactly; others go through the graphs,
wider and wider, and end in the exact scan when too few survive. Every distance that leaves is
recomputed in float64 from the vectors as enrolled; float32 only chooses whom to recompute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, paired
from twinserve.server.gallery.rows import RowsView
from twinserve.server.gallery.segments import Probes, Segment, safe, stitched
from twinserve.server.gallery.types import Filter, Hit, Hits

Indices = NDArray[np.int64]

CELLS = 1 << 23  # float32 cells of one block of a scan: 32 MB
NARROW = 0.1  # a filter that keeps less is scanned: exact, and cheaper than the graph


@dataclass(frozen=True, eq=False)
class View:
    """One state of a gallery: O(1) to take, unchanged while others write."""

    rows: RowsView
    segments: tuple[Segment, ...]
    dimension: int
    metric: Metric
    safe: bool  # every living vector may be ranked in float32; dead ones may not

    @property
    def sequence(self) -> int:
        """The number of the last request that this state holds."""
        return self.rows.sequence

    @cached_property
    def live(self) -> tuple[Indices, Indices, list[Stretch]]:
        """The live rows, their labels, and where those lie."""
        labels = self.rows.label[self.rows.live_rows]
        return self.rows.live_rows, labels, stretches(self.segments, labels)


@dataclass(frozen=True)
class Question:
    """What is asked of each probe."""

    k: int
    by_subject: bool = True
    max_distance: float | None = None
    exact: bool = False
    ef: int = 64

    def limit(self) -> float:
        """The largest distance that may be answered."""
        return np.inf if self.max_distance is None else self.max_distance


def go_on() -> None:
    """Let a search run to its end."""


def search(
    view: View,
    probes: Embeddings,
    question: Question,
    wanted: Filter | None,
    exact_below: int,
    proceed: Callable[[], None] = go_on,
) -> tuple[list[Hits], int, int]:
    """Answer each probe; also how many items and subjects were searched.

    Args:
        view: what is searched.
        probes: float32 [n, dimension], checked.
        question: what is asked.
        wanted: only items that pass are searched.
        exact_below: up to so many live vectors are scanned.
        proceed: called between pieces of the work; what it raises ends the search.
    """
    proceed()
    rows = view.rows
    if wanted is None:
        passing = rows.alive
        kept, subjects = rows.item_count, rows.subject_count
    else:
        passing = rows.passing(wanted)
        chosen = np.flatnonzero(passing)
        kept, subjects = len(chosen), rows.count_subjects(chosen)
    if kept == 0:
        return [Hits((), True) for _ in probes], 0, 0
    ready = Probes(probes, view.metric)
    scan = (
        question.exact
        or min(kept, rows.vector_count) <= exact_below
        or kept < NARROW * rows.item_count
        or not view.safe
        or not safe(ready.lengths, view.metric)
        or all(segment.graph is None for segment in view.segments)
    )
    answers: list[Hits | None] = [None] * len(probes)
    enough = min(question.k, subjects if question.by_subject else kept)
    if not scan:
        _through_graphs(view, ready, question, passing, enough, answers, proceed)
    open_probes = [number for number, answer in enumerate(answers) if answer is None]
    if open_probes:
        chosen_rows = None if wanted is None else np.flatnonzero(passing)
        part = (
            ready if len(open_probes) == len(probes) else Probes(probes[open_probes], view.metric)
        )
        scanned = _scan(view, part, question, chosen_rows, enough, proceed)
        for number, hits in zip(open_probes, scanned, strict=True):
            answers[number] = hits
    return [answer for answer in answers if answer is not None], kept, subjects


def rescore(view: View, probe: Embeddings, labels: Indices) -> FloatArray:
    """Exact distances, float64 [n], of one probe [d] to the vectors of labels."""
    unique, back = np.unique(labels, return_inverse=True)
    vectors, _ = stitched(view.segments, unique, view.dimension)
    return paired(vectors, probe[None, :], view.metric)[back]


# -- exact ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stretch:
    """Which columns of a scan lie in which segment, and where; None = all of it, in order."""

    segment: Segment
    columns: Indices | slice
    local: Indices | None

    @cached_property
    def longest(self) -> float:
        """Of these vectors only: a dead extreme one must not blur the comparison of the others."""
        lengths = self.segment.lengths
        return float((lengths if self.local is None else lengths[self.local]).max())


def stretches(segments: Sequence[Segment], labels: Indices) -> list[Stretch]:
    """Divide labels by segment."""
    starts = np.array([segment.labels[0] for segment in segments])
    owner = np.searchsorted(starts, labels, side="right") - 1
    found = []
    for number, segment in enumerate(segments):
        columns = np.flatnonzero(owner == number)
        if not len(columns):
            continue
        local = segment.local(labels[columns])
        whole = len(local) == len(segment) and bool((np.diff(local) == 1).all())
        together = int(columns[-1]) - int(columns[0]) + 1 == len(columns)
        found.append(
            Stretch(
                segment,
                slice(int(columns[0]), int(columns[-1]) + 1) if together else columns,
                None if whole else local,
            )
        )
    return found


def _units(probes: Probes, parts: Sequence[Stretch], count: int) -> NDArray[np.float32]:
    if len(parts) == 1 and parts[0].local is None:
        return probes.units(parts[0].segment)
    units = np.empty((len(probes.vectors), count), dtype=np.float32)
    for part in parts:
        if part.local is None:
            units[:, part.columns] = probes.units(part.segment)
        elif 2 * len(part.local) > len(part.segment):
            # Most of it: comparing with all is cheaper than copying the vectors together.
            units[:, part.columns] = probes.units(part.segment)[:, part.local]
        else:
            units[:, part.columns] = probes.units(part.segment, part.local)
    return units


def _scan(
    view: View,
    probes: Probes,
    question: Question,
    rows: Indices | None,
    enough: int,
    proceed: Callable[[], None],
) -> list[Hits]:
    """Answer exactly over `rows`, or over all live rows where None."""
    if rows is None:
        rows, labels, parts = view.live
    else:
        labels = view.rows.label[rows]
        parts = stretches(view.segments, labels)
    if not (view.safe and safe(probes.lengths, view.metric)):
        slow = []
        for probe in probes.vectors:
            proceed()
            slow.append(_hits(view, question, rows, rescore(view, probe, labels), exact=True))
        return slow
    errors = probes.error(max(part.longest for part in parts))
    block = max(1, CELLS // len(rows))
    answers: list[Hits] = []
    for start in range(0, len(probes.vectors), block):
        some = probes
        if block < len(probes.vectors):
            some = Probes(probes.vectors[start : start + block], probes.metric)
        proceed()
        for number, units in enumerate(_units(some, parts, len(rows)), start):
            proceed()
            ranked = Ranked(rows, labels, units, float(errors[number]))
            answers.append(_nearest(view, question, probes.vectors[number], ranked, enough))
    return answers


@dataclass(frozen=True, eq=False)
class Ranked:
    """Rows with their ranking units to one probe, each off by at most `error`."""

    rows: Indices
    labels: Indices
    units: NDArray[np.float32]
    error: float


def _nearest(
    view: View, question: Question, probe: Embeddings, ranked: Ranked, enough: int
) -> Hits:
    """Recompute the front-runners, then everybody whom float32 could have wronged."""

    def recompute(chosen: Indices) -> Hits:
        distances = rescore(view, probe, ranked.labels[chosen])
        return _hits(view, question, ranked.rows[chosen], distances, exact=True)

    total = len(ranked.rows)
    take = 2 * question.k + 16
    while take < total:
        edge = np.partition(ranked.units, take - 1)[take - 1]
        hits = recompute(np.flatnonzero(ranked.units <= edge))
        bound = question.limit()
        if len(hits.hits) >= enough:
            bound = min(bound, hits.hits[-1].distance)
        if bound < np.inf:
            reach = _float32_above(_reach(bound, ranked.error, view.metric))
            return hits if reach <= edge else recompute(np.flatnonzero(ranked.units <= reach))
        take *= 4
    return recompute(np.arange(total))


def _float32_above(value: float) -> np.float32:
    clipped = min(value, float(np.finfo(np.float32).max))
    above: np.float32 = np.nextafter(np.float32(clipped), np.float32(np.inf))
    return above


def _reach(distance: float, error: float, metric: Metric) -> float:
    """The ranking units below which a vector may lie at `distance` or nearer."""
    units = distance**2 if metric is Metric.EUCLIDEAN else distance
    return units * (1.0 + 1e-6) + error


# -- through the graphs ---------------------------------------------------------------------------


def _through_graphs(
    view: View,
    probes: Probes,
    question: Question,
    passing: NDArray[np.bool_],
    enough: int,
    answers: list[Hits | None],
    proceed: Callable[[], None],
) -> None:
    """Fill in the answers that the graphs give; leave None where the exact scan must decide."""
    rows = view.rows
    share = max(np.count_nonzero(passing) / max(rows.count, 1), 1e-3)
    wanted = max(question.ef, int(2 * question.k / share) if share < 0.9 else 2 * question.k)
    most = rows.vector_count // 4
    open_probes = list(range(len(answers)))
    while open_probes and wanted <= most:
        part = probes
        if len(open_probes) < len(answers):
            part = Probes(probes.vectors[open_probes], probes.metric)
        labels, units = _candidates(view.segments, part, wanted)
        still_open = []
        for number, probe in enumerate(open_probes):
            proceed()
            vector = probes.vectors[probe]
            found = rows.of_labels(labels[number])
            found = found[passing[found]]
            distances = rescore(view, vector, rows.label[found])
            hits = _hits(view, question, found, distances, exact=False)
            farthest = float(units[number].max())
            covered = question.max_distance is not None and farthest > _reach(
                question.max_distance, 0.0, view.metric
            )
            if len(hits.hits) >= enough or covered:
                answers[probe] = hits
            else:
                still_open.append(probe)
        open_probes = still_open
        wanted *= 4


def _candidates(
    segments: Sequence[Segment], probes: Probes, wanted: int
) -> tuple[Indices, FloatArray]:
    """The `wanted` nearest labels per probe over all segments, as far as the graphs know."""
    labels: list[Indices] = []
    units: list[FloatArray] = []
    for segment in segments:
        if not len(segment):
            continue
        take = min(wanted, len(segment))
        found = segment.graph.nearest(probes.vectors, take) if segment.graph else None
        local, near = found if found is not None else _scan_segment(segment, probes, take)
        labels.append(segment.labels[local])
        units.append(near)
    all_labels, all_units = np.concatenate(labels, axis=1), np.concatenate(units, axis=1)
    if all_labels.shape[1] > wanted:
        order = np.argpartition(all_units, wanted - 1, axis=1)[:, :wanted]
        all_labels = np.take_along_axis(all_labels, order, axis=1)
        all_units = np.take_along_axis(all_units, order, axis=1)
    return all_labels, all_units


def _scan_segment(segment: Segment, probes: Probes, take: int) -> tuple[Indices, FloatArray]:
    units = probes.units(segment)
    if take < len(segment):
        order = np.argpartition(units, take - 1, axis=1)[:, :take]
    else:
        order = np.broadcast_to(np.arange(len(segment)), units.shape)
    return order, np.take_along_axis(units, order, axis=1).astype(np.float64)


# -- grouping -------------------------------------------------------------------------------------


def _hits(
    view: View, question: Question, rows: Indices, distances: FloatArray, *, exact: bool
) -> Hits:
    """Order by (distance, id), keep the first of each subject, cut at k and at the limit."""
    view_rows = view.rows
    limit = question.limit()
    found: list[Hit] = []
    seen: set[int] = set()
    ids = view_rows.ids
    codes = view_rows.subject
    items = 1
    ordered = sorted(
        (distance, ids[row], row)
        for distance, row in zip(distances.tolist(), rows.tolist(), strict=True)
        if distance <= limit
    )
    for distance, item_id, row in ordered:
        if question.by_subject:
            code = int(codes[row])
            if code in seen:
                continue
            seen.add(code)
            items = int(view_rows.subject_sizes[code])
        found.append(Hit(item_id, view_rows.subject_of(row), distance, items))
        if len(found) == question.k:
            break
    return Hits(tuple(found), exact)
