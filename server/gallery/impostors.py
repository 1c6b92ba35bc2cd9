"""How strangers fare in a gallery, measured on its own items against those of all other subjects.

In: a view. Out: an `Estimate`: at which distances each of a sample of enrolled items meets the two
nearest other subjects, found exactly, and how many others lie how near. A stranger in front of the
gallery fares like an enrolled item whose own subject was left out, so these distances say how
often a threshold lets strangers in (`twinserve.identification` draws that conclusion).

The scan works in small pieces and rests in between, as told by its caller: it shares its machine
with searches. Its memory is bounded by the pieces and the sample, not by the gallery.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.distance import Embeddings, FloatArray, Metric, paired
from twinserve.identification import Impostors
from twinserve.server.gallery.search import View
from twinserve.server.gallery.segments import Probes, Segment, stitched

Indices = NDArray[np.int64]
Codes = NDArray[np.int32]

SAMPLE = 2_000  # probes of one estimate
SAMPLE_IN_FLOAT64 = 200  # where float32 cannot rank, every distance costs some thirty times more
COLUMNS = 2_048  # rows that are brought together at a time
CELLS = 1 << 16  # distances computed at a time: a millisecond or less, on one core
PILOT_COLUMNS = 1_024
PILOT_PROBES = 64
NEAR_SUBJECTS = 16  # about so many nearest subjects a probe are counted; farther ones are sampled
MOST_NEAR = 4_000_000
RECOMPUTED = 16
LADDER = 256

_LARGEST = float(np.finfo(np.float32).max) / 2

Units = NDArray[np.float32] | FloatArray
# Told how long the last piece took; may rest, and says whether to go on.
Pace = Callable[[float], bool]


@dataclass(frozen=True, eq=False)
class Estimate:
    """One measurement of one state, with n sampled items as probes.

    `ladder` rises: a probe has on average at most `ladder_subjects[i]` other subjects within
    `ladder[i]`, and more than `ladder_subjects[i - 1]` from there on.
    """

    nearest: Impostors  # the two nearest other subjects of each probe, exact, float64
    ladder: FloatArray  # [m]
    ladder_subjects: FloatArray  # [m]

    def subjects_within(self, distance: float) -> float:
        """How many other subjects a probe has within `distance`, on average; rounded up a step."""
        if not len(self.nearest.subject):
            return 0.0
        step = int(np.searchsorted(self.ladder, distance))
        counted = 0.0
        if step == len(self.ladder):
            counted = float(self.nearest.subjects - 1)
        elif step > 0 or distance == self.ladder[0]:
            counted = float(self.ladder_subjects[step])
        # The ladder comes from float32, the two nearest are exact.
        exact = float((self.nearest.distance <= distance).sum(axis=1).mean())
        return max(counted, exact)


def nobody(items: int, subjects: int) -> Estimate:
    """The estimate of a gallery in which nobody can be taken for anybody else."""
    codes, others = np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.int64)
    nearest = Impostors(codes, others.astype(np.float64), others, subjects, items)
    return Estimate(nearest, np.zeros(0), np.zeros(0))


def seconds_to_measure(view: View) -> float:
    """About how long `measure` takes on one thread, without its rests."""
    rows = view.rows
    if rows.subject_count < 2:
        return 0.0
    if not view.safe:
        each = 5e-9 * view.dimension
        return each * min(SAMPLE_IN_FLOAT64, rows.item_count) * rows.item_count
    each = 8e-9 + 8e-11 * view.dimension
    if rows.subject_count < rows.item_count:
        each += 2e-8  # the least of each subject
    columns = rows.item_count + _pilot_columns(rows.item_count)
    return 0.002 + each * min(SAMPLE, rows.item_count) * columns


def measure(view: View, pace: Pace = lambda seconds: True) -> Estimate | None:
    """Measure a view, or return None where `pace` says to stop.

    The probes are chosen by a fixed hash: one item of each subject first, then second items, and
    so on, up to `SAMPLE`. Distances to the nearest are recomputed in float64; where more than
    `RECOMPUTED` subjects of a block lie within rounding, the first in float32 stand for them.
    """
    rows = view.rows
    if rows.subject_count < 2:
        return nobody(rows.item_count, rows.subject_count)
    live = rows.live_rows
    # Subjects side by side, so that one with many items is counted once.
    live = live[np.argsort(rows.subject[live], kind="stable")]
    scan = _Scan(view, live, pace)
    return scan.estimate() if scan.pilot() and scan.run() else None


def sample(codes: Codes, rows: Indices, most: int) -> Indices:
    """Choose probes, spread over subjects: positions, ascending, at most `most`.

    codes: [n] subjects, equal ones side by side; rows: [n], what is hashed.
    """
    if len(codes) <= most:
        return np.arange(len(codes))
    starts = np.flatnonzero(_begins(codes))
    by_subject = _hashed(codes)
    if len(starts) >= most:
        picked = starts[np.argsort(by_subject[starts], kind="stable")[:most]]
        sizes = np.diff(np.r_[starts, len(codes)])[np.searchsorted(starts, picked)]
        return np.sort(picked + (_hashed(rows[picked]) % sizes.astype(np.uint64)).astype(np.int64))
    within = np.lexsort((_hashed(rows), codes))  # equal codes are side by side already
    turn = np.empty(len(codes), dtype=np.int64)
    turn[within] = np.arange(len(codes)) - np.repeat(starts, np.diff(np.r_[starts, len(codes)]))
    return np.sort(np.lexsort((by_subject, turn))[:most])


def _hashed(values: NDArray[np.signedinteger[Any]]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, 2014): scattered, and the same at every call."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


class _Scan:
    """All sampled probes against all rows, piece by piece, in ranking units.

    Where float32 cannot rank, these are float64 distances, and the sample is smaller.
    """

    def __init__(self, view: View, live: Indices, pace: Pace) -> None:
        self._view, self._pace = view, pace
        self._codes = view.rows.subject[live]
        self._labels = view.rows.label[live]
        self._chosen = sample(self._codes, live, SAMPLE if view.safe else SAMPLE_IN_FLOAT64)
        self._probe_codes = self._codes[self._chosen]
        vectors = self._vectors(self._chosen)
        step = max(1, CELLS // min(COLUMNS, len(live)))
        self._probes = [
            (slice(start, start + step), Probes(vectors[start : start + step], view.metric))
            for start in range(0, len(vectors), step)
        ]
        count = len(vectors)
        self._error = np.zeros(count)  # [n] how far the units of a probe can be off
        if view.safe:
            longest = max(part.longest for part in view.live[2])
            self._error = Probes(vectors, view.metric).error(longest)
        self._reach = np.full(count, np.inf)  # [n] the two nearest other subjects lie within it
        # Of each part of the probes: (probe within it, position, units) of who may be nearest.
        self._candidates: list[list[tuple[Indices, Indices, FloatArray]]] = [
            [] for _ in self._probes
        ]
        self._near = -np.inf  # up to here other subjects are counted
        self._near_units: list[FloatArray] = []
        self._near_count = 0
        self._far = np.zeros(0)

    def pilot(self) -> bool:
        """Sample other subjects, and set from them how far a probe has to look."""
        starts = np.flatnonzero(_begins(self._codes))
        most = _pilot_columns(len(self._codes))
        sizes = np.minimum(np.diff(np.r_[starts, len(self._codes)]), most)
        drawn = np.argsort(_hashed(self._codes[starts]), kind="stable")
        # Three at least, so that everybody meets two others.
        drawn = drawn[: max(3, int(np.searchsorted(np.cumsum(sizes[drawn]), most)))]
        columns = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in drawn])
        block, codes = self._block(columns), self._codes[columns]
        firsts = np.flatnonzero(_begins(codes))
        asked = np.zeros(len(self._chosen), dtype=np.bool_)
        asked[np.argsort(_hashed(self._chosen), kind="stable")[:PILOT_PROBES]] = True
        far: list[Units] = []
        for part, probes in self._probes:
            began = time.perf_counter()
            units = _least_of_runs(self._units(probes, block), firsts)
            other = codes[firsts][None, :] != self._probe_codes[part][:, None]
            units[~other] = np.inf
            if units.shape[1] > 2:
                second = np.partition(units, 1, axis=1)[:, 1].astype(np.float64)
                self._reach[part] = second + 2.0 * self._error[part]
            far.append(units[asked[part]][other[asked[part]]])
            if not self._pace(time.perf_counter() - began):
                return False
        self._far = np.sort(np.concatenate(far).astype(np.float64))
        share = max(NEAR_SUBJECTS / self._view.rows.subject_count, 30 / len(self._far))
        at = int(share * len(self._far))
        self._near = float(self._far[at]) if at < len(self._far) else np.inf
        return True

    def run(self) -> bool:
        """Compare every probe with every row; False where told to stop."""
        for start, end in self._cuts():
            block = self._block(np.arange(start, end))
            codes = self._codes[start:end]
            firsts = np.flatnonzero(_begins(codes))
            for number, (part, probes) in enumerate(self._probes):
                began = time.perf_counter()
                units = self._units(probes, block)
                self._leave_out_own(units, self._probe_codes[part], codes)
                found = self._take(part, start, units, firsts)
                self._candidates[number].append(found)
                if not self._pace(time.perf_counter() - began):
                    return False
        return True

    def estimate(self) -> Estimate | None:
        """Put together what the scan found; None where told to stop."""
        shape = (len(self._chosen), 2)
        nearest, others = np.full(shape, np.inf), np.full(shape, -1, dtype=np.int64)
        for number, (part, _) in enumerate(self._probes):
            began = time.perf_counter()
            nearest[part], others[part] = self._two_nearest(part, self._candidates[number])
            if not self._pace(time.perf_counter() - began):
                return None
        rows = self._view.rows
        subject = self._probe_codes.astype(np.int64)
        ladder, subjects = self._ladder()
        return Estimate(
            Impostors(subject, nearest, others, rows.subject_count, rows.item_count),
            ladder,
            subjects,
        )

    def _two_nearest(
        self, part: slice, candidates: list[tuple[Indices, Indices, FloatArray]]
    ) -> tuple[FloatArray, Indices]:
        """Exact distances [n, 2] of a part's probes, and whose these are."""
        probe, column, units = (np.concatenate(found) for found in zip(*candidates, strict=True))
        error = 2.0 * self._error[part]
        least = _least(probe, self._codes[column], units)
        seconds = least[_place(probe[least]) == 1]
        reach = np.full(len(error), np.inf)
        reach[probe[seconds]] = units[seconds] + error[probe[seconds]]
        close = units <= reach[probe]
        probe, column = probe[close], column[close]
        distances = paired(
            self._vectors(column), self._vectors(self._chosen[part][probe]), self._view.metric
        )
        codes = self._codes[column]
        least = _least(probe, codes, distances)
        place = _place(probe[least])
        nearest, others = np.full((len(error), 2), np.inf), np.full((len(error), 2), -1)
        for rank in (0, 1):
            found = least[place == rank]
            nearest[probe[found], rank] = distances[found]
            others[probe[found], rank] = codes[found]
        return nearest, others

    @staticmethod
    def _leave_out_own(units: Units, probe_codes: Codes, codes: Codes) -> None:
        """Put the rows of a probe's own subject out of reach; both codes ascend."""
        first = int(np.searchsorted(probe_codes, codes[0], side="left"))
        last = int(np.searchsorted(probe_codes, codes[-1], side="right"))
        begins = np.searchsorted(codes, probe_codes[first:last], side="left").tolist()
        ends = np.searchsorted(codes, probe_codes[first:last], side="right").tolist()
        for probe, begin, end in zip(range(first, last), begins, ends, strict=True):
            units[probe, begin:end] = np.inf

    def _take(
        self, part: slice, start: int, units: Units, firsts: Indices
    ) -> tuple[Indices, Indices, FloatArray]:
        """Return who may be nearest to a probe; keep how near the near ones are.

        units: [probes, rows of the block]; firsts: where its subjects begin.
        """
        reach = self._reach[part]  # a view of it
        by_subject = _least_of_runs(units, firsts)
        wanted = np.minimum(np.maximum(reach, self._near), _LARGEST)
        limit = np.nextafter(wanted.astype(units.dtype), units.dtype.type(np.inf))
        probe, subject = np.nonzero(by_subject <= limit[:, None])
        least = by_subject[probe, subject].astype(np.float64)
        near = least[least <= self._near]
        self._near_units.append(near)
        self._near_count += len(near)
        if self._near_count > MOST_NEAR:
            self._come_nearer()

        reached = least <= reach[probe]
        probe, subject, least = probe[reached], subject[reached], least[reached]
        order = np.lexsort((least, probe))
        place = _place(probe[order])
        # The two nearest of this block are two, wherever the two nearest of all are.
        seconds = order[place == 1]
        whose = probe[seconds]
        reach[whose] = np.minimum(reach[whose], least[seconds] + 2.0 * self._error[part][whose])
        order = order[place < RECOMPUTED]
        probe, subject, least = probe[order], subject[order], least[order]
        if by_subject is units:
            column = subject
        else:
            # Items of a subject that only rounding may have put behind its nearest come along.
            bound = np.full(by_subject.shape, -np.inf, dtype=units.dtype)
            bound[probe, subject] = least + 2.0 * self._error[part][probe]
            sizes = np.diff(np.r_[firsts, units.shape[1]])
            probe, column = np.nonzero(units <= np.repeat(bound, sizes, axis=1))
            least = units[probe, column].astype(np.float64)
        return probe, column + start, least

    def _come_nearer(self) -> None:
        """Count less far, since there are many more near ones than the pilot made believe."""
        units = np.sort(np.concatenate(self._near_units))
        middle = float(units[len(units) // 2])
        kept = units[units <= middle]
        if len(kept) > 0.9 * MOST_NEAR:  # all alike
            kept, middle = kept[:0], float(np.nextafter(units[0], -np.inf))
        self._near, self._near_units, self._near_count = middle, [kept], len(kept)

    def _ladder(self) -> tuple[FloatArray, FloatArray]:
        """Distances, and how many other subjects a probe has within them on average."""
        near = np.sort(np.concatenate(self._near_units))
        others = self._view.rows.subject_count - 1
        steps, counts = _thinned(near)
        # A subject that was cut was counted in each block.
        counts = np.minimum(counts / len(self._chosen), others)
        far_steps, far_counts = _thinned(self._far)
        beyond = far_steps > self._near
        sampled = far_counts[beyond] / max(len(self._far), 1) * others
        steps = np.concatenate([steps, far_steps[beyond]])
        counts = np.maximum.accumulate(np.concatenate([counts, sampled]))
        if self._view.safe and self._view.metric is Metric.EUCLIDEAN:
            steps = np.sqrt(np.maximum(steps, 0.0))
        return np.maximum(steps, 0.0), counts

    def _cuts(self) -> list[tuple[int, int]]:
        """Blocks of at most COLUMNS rows; a subject is cut only where it alone is larger."""
        ends = np.flatnonzero(np.r_[_begins(self._codes)[1:], True]) + 1
        cuts, start, count = [], 0, len(self._codes)
        while start < count:
            fitting = int(np.searchsorted(ends, start + COLUMNS, side="right"))
            end = int(ends[fitting - 1]) if fitting else start
            if end <= start:
                end = min(start + COLUMNS, count)
            cuts.append((start, end))
            start = end
        return cuts

    def _vectors(self, positions: Indices) -> Embeddings:
        return stitched(self._view.segments, self._labels[positions], self._view.dimension)[0]

    def _block(self, positions: Indices) -> Segment:
        labels = self._labels[positions]
        vectors, lengths = stitched(self._view.segments, labels, self._view.dimension)
        return Segment(labels, np.zeros(len(vectors), dtype=np.uint64), vectors, lengths)

    def _units(self, probes: Probes, block: Segment) -> Units:
        if self._view.safe:
            return probes.units(block)
        one_by_one = [paired(block.vectors, one[None], probes.metric) for one in probes.vectors]
        return np.stack(one_by_one)


def _pilot_columns(items: int) -> int:
    return min(PILOT_COLUMNS, max(items // 4, 64))


def _begins(values: NDArray[np.signedinteger[Any]]) -> NDArray[np.bool_]:
    """Where a run of equal values begins."""
    begins = np.ones(len(values), dtype=np.bool_)
    begins[1:] = values[1:] != values[:-1]
    return begins


def _least_of_runs(units: Units, firsts: Indices) -> Units:
    """The least of each run of columns; the array itself where all runs are single columns."""
    if len(firsts) == units.shape[1]:
        return units
    least: Units = np.minimum.reduceat(units, firsts, axis=1)
    return least


def _least(probe: Indices, code: Codes, value: FloatArray) -> Indices:
    """The entry of the least value of each (probe, code), ordered by probe, then value."""
    order = np.lexsort((value, code, probe))
    first = order[_begins(probe[order]) | _begins(code[order])]
    return np.asarray(first[np.lexsort((value[first], probe[first]))])


def _place(probe: Indices) -> Indices:
    """The place of each entry within its run of equal values."""
    begins = _begins(probe)
    return np.asarray(np.arange(len(probe)) - np.flatnonzero(begins)[np.cumsum(begins) - 1])


def _thinned(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """At most LADDER of the sorted values, and how many values are at most each."""
    ranks = np.unique(np.rint(np.geomspace(1, max(len(values), 1), LADDER)).astype(np.int64))
    ranks = ranks[ranks <= len(values)]
    steps = values[ranks - 1]
    # Of equal steps the last one counts them all.
    last = np.r_[steps[1:] != steps[:-1], True][: len(steps)]
    steps = steps[last]
    return steps, np.searchsorted(values, steps, side="right").astype(np.float64)
