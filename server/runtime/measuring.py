"""Times a twin on this machine: settings against each other, and runs by size and length.

In: ways to open a session and rows to run. Out: duels for `planning`, and `costs.Measured` for the
batcher's table. Two settings are timed in turns and compared by the median of the turns' ratios,
since the machine may be busy with others. All of it keeps to a budget of seconds: a server that
starts slowly is worse than one that is a few percent slower.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinserve.feed import Row
from twinserve.server.batching.costs import Measured
from twinserve.server.runtime.planning import Duel, Setting
from twinserve.server.runtime.running import Running

# Rows in flight at which settings are compared: what a busy server has, and a less busy one.
LOADS = (32, 8)
# A run at the first load that takes longer than this is tried with fewer rows in flight.
LONG_RUN = 0.15  # seconds
# The least that one turn lasts; shorter ones are noise.
TURN = 0.04  # seconds
# Runs of one row, for its latency, and the time from which on they are enough.
_SINGLES, _SINGLES_SECONDS = 5, 0.15
# Runs of one row after a pause: pairs of them, at least and at most, and the pause. A lone call
# finds the helpers asleep, as they are not in runs that follow each other.
_LEAST_LONE, _MOST_LONE, _PAUSE = 2, 5, 0.005
# Time after a run in which spinning threads would burn it.
IDLE = 0.03  # seconds


@dataclass(frozen=True)
class Budget:
    """How long measuring may take."""

    seconds: float = 2.5
    turns: int = 3
    # A twin that opens more slowly is not opened again to be compared.
    opening: float = 1.5


class SettingsBench:
    """Times settings of one twin, each opened when it is first asked for.

    Args:
        open_with: opens the twin with a setting.
        row: as a caller would send it.
        budget: of seconds.
        opened: the setting that is open already, with what it took to open.
    """

    def __init__(
        self,
        open_with: Callable[[Setting], Running],
        row: Row,
        budget: Budget,
        opened: tuple[Setting, Running, float],
    ) -> None:
        self._open_with = open_with
        self._row = row
        self._budget = budget
        setting, running, self._opening = opened
        self._open: dict[Setting, Running] = {self._session_of(setting): running}
        self._until = time.monotonic() + budget.seconds

    def duel(self, first: Setting, second: Setting) -> Duel | None:
        """Time two settings in turns at each load; None where there is no time for it."""
        pair = first, second
        if not all(self._ready(setting) for setting in pair):
            return None
        latency = self._latencies(pair)
        if latency is None:
            return None
        loads = _bearable(latency[0])
        turns = self._budget.turns
        # Each turn is a run at least, of all its rows.
        least = sum(2 * turns * max(TURN, load * latency[0]) for load in loads)
        if time.monotonic() + least > self._until:
            return None
        ratios, speeds = [], []
        for load in loads:
            pairs = [(self._rate(first, load), self._rate(second, load)) for _ in range(turns)]
            ratios.append(statistics.median(theirs / ours for ours, theirs in pairs))
            if load == loads[0]:
                ours, theirs = zip(*pairs, strict=True)
                speeds = [statistics.median(ours), statistics.median(theirs)]
        ratio = math.prod(ratios) ** (1 / len(ratios))
        return Duel(ratio, (speeds[0], speeds[1]), latency)

    def alone(self, first: Setting, second: Setting) -> tuple[float, float] | None:
        """Seconds of one row after a pause, in turns; None where there is no time for it."""
        pair = first, second
        if not all(self._ready(setting) for setting in pair):
            return None
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(_MOST_LONE):
            for setting, taken in zip(pair, times, strict=True):
                running = self._running(setting)
                time.sleep(_PAUSE)
                began = time.perf_counter()
                running.run([self._row])
                taken.append(time.perf_counter() - began)
            left = self._until - time.monotonic()
            if left < times[0][-1] + times[1][-1] + 2 * _PAUSE:
                if turn + 1 < _LEAST_LONE:
                    return None
                break
        return statistics.median(times[0]), statistics.median(times[1])

    def idle(self, setting: Setting) -> float | None:
        """CPU seconds of this process in the time after a run; None where there is no time."""
        if not self._ready(setting):
            return None
        running = self._running(setting)
        burnt = []
        for _ in range(2):
            running.run([self._row])
            began = time.process_time()
            time.sleep(IDLE)
            burnt.append(time.process_time() - began)
        return min(burnt)

    def keep(self, *settings: Setting) -> None:
        """Let go of all others: a large twin is in memory twice, never thrice, while compared."""
        kept = {self._session_of(setting) for setting in settings}
        self._open = {key: running for key, running in self._open.items() if key in kept}

    def opened(self, setting: Setting) -> Running:
        """Return the twin opened with a setting, for good."""
        return self._running(setting)

    def _ready(self, setting: Setting) -> bool:
        if self._session_of(setting) in self._open:
            return time.monotonic() < self._until
        if self._opening > self._budget.opening or time.monotonic() + self._opening > self._until:
            return False
        self._running(setting)
        return True

    def _running(self, setting: Setting) -> Running:
        key = self._session_of(setting)
        if key not in self._open:
            began = time.monotonic()
            self._open[key] = self._open_with(setting)
            self._open[key].run([self._row])
            self._opening = max(self._opening, time.monotonic() - began)
        return self._open[key]

    @staticmethod
    def _session_of(setting: Setting) -> Setting:
        """Settings that differ in the runs at a time share a session."""
        return Setting(0, setting.threads, setting.spinning)

    def _latencies(self, pair: tuple[Setting, Setting]) -> tuple[float, float] | None:
        """Seconds of one row alone, the least of some; None where there is no time for them."""
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_SINGLES):
            for setting, taken in zip(pair, times, strict=True):
                running = self._running(setting)
                began = time.perf_counter()
                running.run([self._row])
                taken.append(time.perf_counter() - began)
                if time.monotonic() + taken[0] > self._until:
                    return None
            if sum(times[0]) > _SINGLES_SECONDS:
                break
        return min(times[0]), min(times[1])

    def _rate(self, setting: Setting, load: int) -> float:
        """Rows a second with so many rows in flight, for one turn."""
        running = self._running(setting)
        rows = [self._row] * max(1, load // setting.runners)
        return rate(lambda: running.run(rows), len(rows), setting.runners, TURN)


def rate(run: Callable[[], object], rows: int, runners: int, seconds: float) -> float:
    """Call `run` from several threads for some seconds, each at least once; rows a second."""
    counts = [0] * runners
    spans = [0.0] * runners
    start = threading.Barrier(runners)

    def work(place: int) -> None:
        start.wait()
        began = time.perf_counter()
        while True:
            run()
            counts[place] += rows
            spans[place] = time.perf_counter() - began
            if spans[place] >= seconds:
                return

    threads = [threading.Thread(target=work, args=(place,)) for place in range(1, runners)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    return sum(count / span for count, span in zip(counts, spans, strict=True))


def seconds_of(run: Callable[[], object], times: int = 10) -> float:
    """Return the median time of some calls, at most a second of them."""
    taken: list[float] = []
    while len(taken) < times and sum(taken) < 1.0:
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def table(
    run: Callable[[Sequence[Row]], object],
    row_of: Callable[[int], Row],
    shapes: Sequence[tuple[int, int]],
    seconds: float,
) -> list[Measured]:
    """Time runs of some shapes, the most useful first, until the time is up.

    Args:
        run: the twin.
        row_of: a row of so many tokens.
        shapes: rows and length of each run; 1 where rows are no texts.
        seconds: for all of them; the first shape is timed whatever it takes.
    """
    until = time.monotonic() + seconds
    measured: list[Measured] = []
    for rows, length in shapes:
        if measured and time.monotonic() > until:
            break
        batch = [row_of(length)] * rows
        taken: list[float] = []
        # The first run of a shape pays for memory; a long one is not asked twice.
        while len(taken) < 3 and not (taken and taken[0] > seconds / 20):
            began = time.perf_counter()
            run(batch)
            taken.append(time.perf_counter() - began)
        measured.append(Measured(rows, length, min(taken)))
    return measured


def _bearable(latency: float) -> list[int]:
    """The loads at which a run of all rows in flight does not take too long."""
    loads = [load for load in LOADS if load * latency <= LONG_RUN]
    return loads or [2]
