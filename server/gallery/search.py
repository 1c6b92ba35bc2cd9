"""The planner: which items are nearest to a probe, read from one view.

In: a view (rows and segments of one sequence) and probes. Out: hits, nearest first, ties by id,
grouped by subject. Small or narrow questions are scanned exactly; others go through the graphs,
wider and wider, and end in the exact scan when too few survive. Every distance that leaves is
recomputed in float64 from the vectors as enrolled; float32 only chooses whom to recompute.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, paired, paired_with
from twinserve.server.gallery.rows import RowsView
from twinserve.server.gallery.segments import Probes, Segment, vectors_at
from twinserve.server.gallery.types import Filter

Indices = NDArray[np.int64]
Far = TypeVar("Far", float, FloatArray)

CELLS = 1 << 23  # float32 cells of one block of a scan: 32 MB
REMEMBERED_FILTERS = 64
QUICK = 1 << 23  # float32 values that are compared within a few milliseconds
VISIT = 16  # vectors that a graph compares for each that it is asked for
NARROW = 0.1  # a filter that keeps less is scanned: exact, and cheaper than the graph


@dataclass(frozen=True, eq=False)
class Passed:
    """What a filter lets through."""

    mask: NDArray[np.bool_]  # [rows]
    items: int
    subjects: int


@dataclass(frozen=True, eq=False)
class View:
    """One state of a gallery: O(1) to take, unchanged while others write."""

    rows: RowsView
    segments: tuple[Segment, ...]
    newest: tuple[NDArray[np.int32], ...]  # by segment, [its vectors] the last row of each
    dimension: int
    metric: Metric
    safe: bool  # every living vector may be ranked in float32; dead ones may not
    _passed: dict[Filter, Passed] = field(default_factory=dict)

    @property
    def sequence(self) -> int:
        """The number of the last request that this state holds."""
        return self.rows.sequence

    @cached_property
    def live(self) -> tuple[Indices, Indices, list[Stretch]]:
        """The live rows, their labels, and where those lie."""
        labels = self.rows.label[self.rows.live_rows]
        return self.rows.live_rows, labels, stretches(self.segments, labels)

    def passed(self, wanted: Filter) -> Passed:
        """What a filter lets through; worked out once, since searches repeat their filters."""
        known = self._passed.get(wanted)
        if known is None:
            mask = self.rows.passing(wanted)
            items = int(np.count_nonzero(mask))
            subjects = self.rows.count_subjects(np.flatnonzero(mask)) if items else 0
            known = Passed(mask, items, subjects)
            while len(self._passed) >= REMEMBERED_FILTERS:
                self._passed.clear()
            self._passed[wanted] = known
        return known


@dataclass(frozen=True)
class Question:
    """What is asked of each probe."""

    k: int
    by_subject: bool = True
    max_distance: float | None = None
    exact: bool = False
    ef: int = 64
    mean_of: int = 1  # a subject's distance is the mean of so many of its nearest items

    @property
    def limit(self) -> float:
        """The largest distance that may be answered."""
        return np.inf if self.max_distance is None else self.max_distance

    @property
    def averages(self) -> bool:
        """Whether a subject's distance is that of several items."""
        return self.by_subject and self.mean_of > 1


@dataclass(frozen=True, eq=False)
class Found:
    """Hits of n probes, end to end: those of probe i are at starts[i]:starts[i + 1]."""

    starts: Indices  # [n + 1]
    rows: Indices  # [m] the row that decided
    distances: FloatArray  # [m]
    exact: NDArray[np.bool_]  # [n] these are provably the nearest

    @property
    def counts(self) -> Indices:
        """How many hits each probe has, [n]."""
        return np.asarray(self.starts[1:] - self.starts[:-1])

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """One after another."""
        counts = np.concatenate([part.counts for part in parts])
        return cls(
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.distances for part in parts]),
            np.concatenate([part.exact for part in parts]),
        )

    def picked(self, probes: Indices) -> Found:
        """The hits of some probes."""
        return Found.joined([self.of(int(probe)) for probe in probes])

    def of(self, probe: int) -> Found:
        """The hits of one probe."""
        start, end = int(self.starts[probe]), int(self.starts[probe + 1])
        return Found(
            np.array([0, end - start]),
            self.rows[start:end],
            self.distances[start:end],
            self.exact[probe : probe + 1],
        )


def nothing_found(probes: int) -> Found:
    """No hits, and there are none."""
    none = np.zeros(0, dtype=np.int64)
    starts = np.zeros(probes + 1, dtype=np.int64)
    return Found(starts, none, none.astype(np.float64), np.ones(probes, dtype=np.bool_))


def go_on() -> None:
    """Let a search run to its end."""


def search(
    view: View,
    probes: Probes,
    question: Question,
    wanted: Filter | None,
    exact_below: int,
    proceed: Callable[[], None] = go_on,
    threads: int = 1,
) -> tuple[Found, int, int]:
    """Answer each probe; also how many items and subjects were searched.

    Args:
        view: what is searched.
        probes: sound ones.
        question: what is asked.
        wanted: only items that pass are searched.
        exact_below: up to so many live vectors are scanned.
        proceed: called between pieces of the work; what it raises ends the search.
        threads: of a graph that is asked for many probes.
    """
    proceed()
    rows = view.rows
    passed = None if wanted is None else view.passed(wanted)
    kept, subjects = rows.item_count, rows.subject_count
    if passed is not None:
        kept, subjects = passed.items, passed.subjects
    if kept == 0 or not len(probes):
        return nothing_found(len(probes)), kept, subjects
    scan = (
        question.exact
        or min(kept, rows.vector_count) <= exact_below
        or kept < NARROW * rows.item_count
        or not view.safe
        or not probes.are_safe
        or all(segment.graph is None for segment in view.segments)
    )
    enough = min(question.k, subjects if question.by_subject else kept)
    scope = Scope(view, question, passed, enough, proceed)
    if scan:
        return _scan(scope, probes), kept, subjects
    return _through_graphs(scope, probes, kept, threads), kept, subjects


def quick(view: View, probes: int, k: int, ef: int, exact_below: int) -> bool:
    """Whether a search without a filter takes a few milliseconds at most."""
    rows = view.rows
    bare = [len(segment) for segment in view.segments if segment.graph is None]
    wanted = max(ef, 2 * k)
    if min(rows.item_count, rows.vector_count) <= exact_below or 4 * wanted > rows.vector_count:
        compared = sum(map(len, view.segments))
    else:
        compared = VISIT * wanted * (len(view.segments) - len(bare)) + sum(bare)
    return (
        view.safe
        and 2 * rows.item_count > rows.count  # else the dead have it asked for far more
        and compared * view.dimension * probes <= QUICK
    )


@dataclass(frozen=True, eq=False)
class Scope:
    """One search's question, where it is asked, and how many hits end it."""

    view: View
    question: Question
    passed: Passed | None
    enough: int
    proceed: Callable[[], None]

    def admits(self, rows: Indices) -> NDArray[np.bool_]:
        """Which of some rows may be answered."""
        if self.passed is not None:
            return self.passed.mask[rows]
        return self.view.rows.lives(rows)


def rescore(view: View, probe: Embeddings, labels: Indices) -> FloatArray:
    """Exact distances, float64 [n], of one probe [d] to the vectors of labels."""
    unique, back = np.unique(labels, return_inverse=True)
    vectors = vectors_at(view.segments, unique, view.dimension)
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


def _scan(scope: Scope, probes: Probes) -> Found:
    """Answer exactly."""
    view = scope.view
    if scope.passed is None:
        rows, labels, parts = view.live
    else:
        rows = np.flatnonzero(scope.passed.mask)
        labels = view.rows.label[rows]
        parts = stretches(view.segments, labels)
    if not (view.safe and probes.are_safe):
        slow = []
        for probe in probes.vectors:
            scope.proceed()
            distances = rescore(view, probe, labels)
            slow.append(_ranked_one(scope, probe, rows, distances, exact=True))
        return Found.joined(slow)
    errors = probes.error(max(part.longest for part in parts))
    block = max(1, CELLS // len(rows))
    answers: list[Found] = []
    for start in range(0, len(probes.vectors), block):
        some = probes
        if block < len(probes.vectors):
            some = probes.some(slice(start, start + block))
        scope.proceed()
        for number, units in enumerate(_units(some, parts, len(rows)), start):
            scope.proceed()
            ranked = Ranked(rows, labels, units, float(errors[number]))
            answers.append(_nearest(scope, probes.vectors[number], ranked, exact=True))
    return Found.joined(answers)


@dataclass(frozen=True, eq=False)
class Ranked:
    """Rows with their ranking units to one probe, each off by at most `error`."""

    rows: Indices
    labels: Indices
    units: NDArray[np.float32]
    error: float


def _nearest(scope: Scope, probe: Embeddings, ranked: Ranked, *, exact: bool) -> Found:
    """Recompute the front-runners, then everybody whom float32 could have wronged."""
    view, question = scope.view, scope.question

    def recompute(chosen: Indices) -> Found:
        distances = rescore(view, probe, ranked.labels[chosen])
        return _ranked_one(scope, probe, ranked.rows[chosen], distances, exact=exact)

    total = len(ranked.rows)
    take = 2 * question.k + 16
    while take < total:
        edge = np.partition(ranked.units, take - 1)[take - 1]
        found = recompute(np.flatnonzero(ranked.units <= edge))
        bound = question.limit
        if len(found.rows) >= scope.enough:
            bound = min(bound, float(found.distances[-1]))
        if bound < np.inf:
            # A mean is at least the distance of its nearest item, so the bound holds for means too.
            reach = _float32_above(_reach(bound, ranked.error, view.metric))
            return found if reach <= edge else recompute(np.flatnonzero(ranked.units <= reach))
        take *= 4
    return recompute(np.arange(total))


def _float32_above(value: float) -> np.float32:
    clipped = min(value, float(np.finfo(np.float32).max))
    above: np.float32 = np.nextafter(np.float32(clipped), np.float32(np.inf))
    return above


def _reach(distance: Far, error: float, metric: Metric) -> Far:
    """The ranking units below which a vector may lie at `distance` or nearer."""
    units = distance**2 if metric is Metric.EUCLIDEAN else distance
    return units * (1.0 + 1e-6) + error


# -- through the graphs ---------------------------------------------------------------------------


def _through_graphs(scope: Scope, probes: Probes, kept: int, threads: int) -> Found:
    """Ask the graphs, wider and wider, and scan where too few survive."""
    view, question = scope.view, scope.question
    share = max(kept / max(view.rows.count, 1), 1e-3)
    needed = question.k * question.mean_of if question.averages else question.k
    wanted = max(question.ef, int(2 * needed / share) if share < 0.9 else 2 * needed)
    most = view.rows.vector_count // 4
    answers: dict[int, Found] = {}
    part, places = probes, np.arange(len(probes))  # those without an answer
    while len(part) and wanted <= most:
        candidates = _candidates(view, part, wanted, threads)
        scope.proceed()
        found = _judge(scope, part, candidates)
        done = found.counts >= scope.enough
        if question.averages:
            # Only who has no item as near as the last mean is surely farther than that.
            last = found.distances[found.starts[1:][done] - 1]
            done[done] = candidates.reached[done] > _reach(last, 0.0, view.metric)
        if question.max_distance is not None:
            done |= candidates.reached > _reach(question.max_distance, 0.0, view.metric)
        everyone = bool(done.all())
        if everyone and not answers:
            return found
        answers |= {int(places[i]): found.of(int(i)) for i in np.flatnonzero(done)}
        places = places[~done]
        part = probes.some(places)
        wanted *= 4
    if len(part):
        rest = _scan(scope, part)
        answers |= {int(place): rest.of(i) for i, place in enumerate(places)}
    return Found.joined([answers[probe] for probe in range(len(probes))])


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows that the graphs name for n probes, dead ones included."""

    rows: Indices  # [n, w]; any where the units are infinite
    units: NDArray[np.float32]  # [n, w] ranking units; infinite where there is no candidate

    # [n] every segment was asked for what lies nearer than this
    reached: FloatArray


def _candidates(view: View, probes: Probes, wanted: int, threads: int) -> Candidates:
    """The `wanted` nearest of each segment per probe, as far as its graph knows."""
    count = len(probes)
    all_rows: list[Indices] = []
    all_units: list[NDArray[np.float32]] = []
    reached = np.full(count, np.inf)
    for segment, newest in zip(view.segments, view.newest, strict=True):
        take = min(wanted, len(segment))
        found = segment.graph.nearest(probes.scaled, take, threads) if segment.graph else None
        local, units = found if found is not None else _scan_segment(segment, probes, take)
        if take == wanted:
            np.minimum(reached, units.max(axis=1), out=reached)
        flat = local.reshape(-1)
        labels = functools.partial(segment.labels_at, flat)
        rows, places = view.rows.of_labels(newest[flat], labels)
        if places is None:
            rows = rows.reshape(count, take)
        else:
            rows, units = _side_by_side(count, places // take, rows, units.reshape(-1)[places])
        all_rows.append(rows)
        all_units.append(units)
    if len(all_rows) == 1:
        return Candidates(all_rows[0], all_units[0], reached)
    return Candidates(np.concatenate(all_rows, axis=1), np.concatenate(all_units, axis=1), reached)


def _side_by_side(
    count: int, owners: Indices, rows: Indices, units: NDArray[np.float32]
) -> tuple[Indices, NDArray[np.float32]]:
    """Candidates [m] of `count` probes as a row for each of these, filled up with infinite ones."""
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=count)
    owners = owners[order]
    columns = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    shape = count, int(counts.max(initial=0))
    placed, near = np.zeros(shape, dtype=np.int64), np.full(shape, np.inf, dtype=np.float32)
    placed[owners, columns] = rows[order]
    near[owners, columns] = units[order]
    return placed, near


def _scan_segment(
    segment: Segment, probes: Probes, take: int
) -> tuple[Indices, NDArray[np.float32]]:
    units = probes.units(segment)
    if take < len(segment):
        order = np.argpartition(units, take - 1, axis=1)[:, :take]
    else:
        order = np.broadcast_to(np.arange(len(segment)), units.shape)
    return order, np.take_along_axis(units, order, axis=1)


def _judge(scope: Scope, probes: Probes, candidates: Candidates) -> Found:
    """Rescore the best candidates of each probe exactly, and rank them."""
    view, question = scope.view, scope.question
    units = candidates.units
    if scope.passed is not None or view.rows.has_dead:
        units = np.where(scope.admits(candidates.rows), units, np.float32(np.inf))
    if question.averages:
        return _judge_averages(scope, probes, candidates.rows, units)
    errors = probes.error(_longest(probes, units))
    most = question.k
    while True:
        fronts, reach = _fronts(units, most, errors)
        owners, columns = np.nonzero(fronts)
        rows = candidates.rows[owners, columns]
        vectors = vectors_at(view.segments, view.rows.label[rows], view.dimension)
        distances = paired_with(vectors, probes.precise, owners, view.metric)
        found = _ranked(scope, len(probes), owners, rows, distances, exact=False)
        if most >= units.shape[1] or _reach_far_enough(scope, found, reach, errors):
            return found
        most *= 4


def _longest(probes: Probes, units: NDArray[np.float32]) -> float:
    """Which length no candidate has more than: it is as far from its probe as it says, and the
    probe as long as it is. Cosine knows no length.
    """
    if probes.metric is Metric.COSINE:
        return 1.0
    within = units[units < np.inf]
    return probes.extent[1] + math.sqrt(float(within.max(initial=0.0)))


def _fronts(
    units: NDArray[np.float32], most: int, errors: FloatArray
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Which candidates [n, w] may be among the `most` nearest of their probes.

    float32 ranks well enough to leave out who is surely behind them: most of the work. Whoever is
    left out lies beyond the second answer, [n].
    """
    if most >= units.shape[1]:
        return units < np.inf, np.full(len(units), np.inf)
    last = np.partition(units, most - 1, axis=1)[:, most - 1].astype(np.float64)
    reach = np.minimum(last * (1.0 + 4e-6) + 4.0 * errors, np.finfo(np.float32).max)
    return units <= reach[:, None], reach


def _reach_far_enough(scope: Scope, found: Found, reach: FloatArray, errors: FloatArray) -> bool:
    """Whether nobody beyond `reach` [n] can be nearer than the hits that were found."""
    question, metric = scope.question, scope.view.metric
    limit = _reach(question.limit, 0.0, metric)
    done = found.counts >= scope.enough
    if bool(done.all()):
        if not question.by_subject:
            return True  # of items it holds by the choice of `reach`
        last = found.distances[found.starts[1:] - 1]
        return bool((np.minimum(_reach(last, 0.0, metric), limit) + errors <= reach).all())
    return limit < np.inf and bool((done | (limit + errors <= reach)).all())


def _judge_averages(
    scope: Scope, probes: Probes, rows: Indices, units: NDArray[np.float32]
) -> Found:
    labels = scope.view.rows.label[rows]
    errors = probes.error(_longest(probes, units))
    answers = []
    for number, probe in enumerate(probes.vectors):
        scope.proceed()
        own = units[number] < np.inf
        ranked = Ranked(
            rows[number][own], labels[number][own], units[number][own], float(errors[number])
        )
        answers.append(_nearest(scope, probe, ranked, exact=False))
    return Found.joined(answers)


# -- ranking --------------------------------------------------------------------------------------


def _ranked_one(
    scope: Scope, probe: Embeddings, rows: Indices, distances: FloatArray, *, exact: bool
) -> Found:
    """Rank one probe's candidates; where subjects have means, with all their other items."""
    if not scope.question.averages:
        owners = np.zeros(len(rows), dtype=np.int64)
        return _ranked(scope, 1, owners, rows, distances, exact=exact)
    view = scope.view
    codes = np.unique(view.rows.subject[rows]).tolist()
    whole = [view.rows.of_code(code) for code in codes]
    rows = np.concatenate([*whole, np.zeros(0, dtype=np.int64)])
    rows = rows[scope.admits(rows)]
    distances = rescore(view, probe, view.rows.label[rows])
    owners = np.zeros(len(rows), dtype=np.int64)
    return _ranked(scope, 1, owners, rows, distances, exact=exact)


def _ranked(
    scope: Scope,
    count: int,
    owners: Indices,
    rows: Indices,
    distances: FloatArray,
    *,
    exact: bool,
) -> Found:
    """Order by (distance, id), keep one of each subject, cut at k and at the limit.

    owners [m]: which of `count` probes each row was found for.
    """
    view, question = scope.view, scope.question
    if count == 1:
        order = np.argsort(distances, kind="stable")
    else:
        order = np.lexsort((distances, owners))
        owners = owners[order]
    rows, distances = rows[order], distances[order]
    _order_ties(view, owners, rows, distances)
    if question.by_subject:
        codes = view.rows.subject[rows].astype(np.int64)
        groups = owners * (int(codes.max(initial=0)) + 1) + codes
        if question.mean_of > 1:
            owners, rows, distances = _means(scope, groups, owners, rows, distances)
        elif len(set(groups.tolist())) < len(groups):
            firsts = np.sort(np.unique(groups, return_index=True)[1])
            owners, rows, distances = owners[firsts], rows[firsts], distances[firsts]
    if question.max_distance is not None:
        within = distances <= question.limit
        owners, rows, distances = owners[within], rows[within], distances[within]
    if count == 1:
        rows, distances = rows[: question.k], distances[: question.k]
        return Found(np.array([0, len(rows)]), rows, distances, np.array([exact]))
    ends = np.searchsorted(owners, np.arange(count + 1))
    ranks = np.arange(len(owners)) - ends[owners]
    chosen = ranks < question.k
    counts = np.minimum(np.diff(ends), question.k)
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return Found(starts, rows[chosen], distances[chosen], np.full(count, exact))


def _order_ties(view: View, owners: Indices, rows: Indices, distances: FloatArray) -> None:
    """Put rows of equal distance to one probe into the order of their ids, in place."""
    equal = distances[1:] == distances[:-1]
    if not equal.any():
        return
    same = np.flatnonzero(equal & (owners[1:] == owners[:-1]))
    if not len(same):
        return
    breaks = np.flatnonzero(np.diff(same) > 1)
    firsts = same[np.concatenate([[0], breaks + 1])]
    lasts = same[np.concatenate([breaks, [len(same) - 1]])] + 1
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        rows[first : last + 1] = sorted(rows[first : last + 1].tolist(), key=view.rows.id_of)


def _means(
    scope: Scope, groups: Indices, owners: Indices, rows: Indices, distances: FloatArray
) -> tuple[Indices, Indices, FloatArray]:
    """One row per group: its nearest, with the mean distance of its nearest `mean_of`."""
    view, most = scope.view, scope.question.mean_of
    order = np.argsort(groups, kind="stable")  # within a group: nearest first, as before
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.arange(len(order)) - np.repeat(starts, sizes)
    means = means_of(distances[order[ranks < most]], np.minimum(sizes, most))
    owners, rows = owners[order][starts], rows[order][starts]
    again = np.lexsort((means, owners))
    owners, rows, means = owners[again], rows[again], means[again]
    _order_ties(view, owners, rows, means)
    return owners, rows, means


def means_of(distances: FloatArray, sizes: Indices) -> FloatArray:
    """The mean distances [n] of n groups of `sizes` [n], end to end, the nearest of each first.

    Summed one after another, so that a subject's mean does not depend on what is searched beside
    it; and at least its nearest distance, whatever rounding does.
    """
    groups = np.repeat(np.arange(len(sizes)), sizes)
    means = np.bincount(groups, weights=distances, minlength=len(sizes)) / sizes
    nearest = distances[np.cumsum(sizes) - sizes]
    at_least: FloatArray = np.maximum(means, nearest)
    return at_least
