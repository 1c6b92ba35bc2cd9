"""One set of data with all that search it, up at once and asked in turn.

Raw hnswlib is built and our server filled first, and both are timed doing it. Whoever has no turn
is held still. The order within a turn is turned round each time, and ratios are taken turn by turn.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gallery import messages, twin, workers
from benchmarks.gallery.data import Data
from benchmarks.gallery.matching import Match, Recalls
from benchmarks.gallery.served import SEARCH, Served
from benchmarks.gallery.workers import Worker
from benchmarks.serving import machine
from benchmarks.serving.figures import Spread, ratios, spread
from benchmarks.serving.report import Aim, Line, Report

GALLERY = "bench"
RAW = "hnswlib"


@dataclass(frozen=True)
class Setting:
    """How long and how often is measured."""

    seconds: float = 4.0  # of one window
    warm: float = 1.0  # before it
    turns: int = 3
    targets: tuple[float, ...] = (0.97, 0.99)  # recalls to be reached
    in_flight: int = 16
    threads: int = field(default_factory=machine.cores)  # of a search through a raw index
    most_filtered: int = 100_000  # items of the galleries of the filter and the stall rows
    most_for_peers: int = 100_000
    flags: tuple[str, ...] = ()  # of our server
    environments: dict[str, Path] = field(default_factory=dict)  # of peers and further indexes
    pings: float = 0.02  # seconds between those that look for stalls
    rests: float = 10.0  # seconds that the idle server is watched for stalls


@dataclass
class Stage:
    """Data, raw hnswlib that holds it, and our server that does."""

    data: Data
    setting: Setting
    report: Report
    folder: Path
    raw: Worker
    ours: Served
    load: Worker
    raw_build: dict[int, float] = field(default_factory=dict)  # threads -> rows per second
    raw_memory: float = 0.0  # bytes of each vector
    memory_empty: int = 0  # bytes of our server without items
    start_empty: float = 0.0  # seconds until our server without items said SERVING
    space: str = ""
    found: dict[str, Any] = field(default_factory=dict)  # what one row leaves for another

    @property
    def exact_below(self) -> int:
        """Items up to which our server builds no graph, as it is started here."""
        from twinserve.server.gallery import GalleryLimits

        flags = self.setting.flags
        for flag, value in itertools.pairwise(flags):
            if flag == "--exact-below":
                return int(value)
        return GalleryLimits().exact_scan_below

    @property
    def target(self) -> float:
        """The highest recall asked for."""
        return max(self.setting.targets)

    def turns(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Give the order of each turn."""
        for turn in range(self.setting.turns):
            yield list(names) if turn % 2 == 0 else list(reversed(names))

    def in_turns(self, measures: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """Measure each in every turn: name -> what each turn gave."""
        found: dict[str, list[Any]] = {name: [] for name in measures}
        for order in self.turns(list(measures)):
            for name in order:
                found[name].append(measures[name]())
        return found

    # -- raw hnswlib ------------------------------------------------------------------------------

    def raw_recalls(self) -> Recalls:
        """Recalls of raw hnswlib by breadth."""
        known = self.found.get("raw recalls")
        if known is None:
            known = self.found["raw recalls"] = Recalls(lambda ef: recall_of(self.raw, ef))
        assert isinstance(known, Recalls)
        return known

    def raw_rate(
        self, ef: int, rows: int, *, apart: bool = False, threads: int = 0
    ) -> dict[str, float]:
        """Measure raw hnswlib in its turn."""
        with self.raw.turn():
            return self.raw.ask(
                "rate",
                ef=ef,
                rows=rows,
                threads=threads or self.setting.threads,
                seconds=self.setting.seconds,
                apart=apart,
            )

    # -- our server -------------------------------------------------------------------------------

    def served_recalls(self, rows: int = 32) -> Recalls:
        """Recalls of our server by breadth, in calls of so many probes."""
        known = self.found.get(f"served recalls {rows}")
        if known is None:

            def measure(ef: int) -> float:
                with self.ours.turn():
                    return self.ours.recall(GALLERY, self.space, self.data, ef, rows)

            known = self.found[f"served recalls {rows}"] = Recalls(measure)
        assert isinstance(known, Recalls)
        return known

    def served_match(self, target: float, rows: int) -> Match:
        """Return the breadth that reaches a recall, which is counted in calls as they are timed."""
        ef = self.served_recalls().match(target).ef
        return Match(ef, self.served_recalls(rows)(ef))

    def bodies(self, ef: int, rows: int, *, by_subject: bool = False) -> str:
        """Return a file of searches of so many probes each."""
        path = self.folder / f"search-{self.data.folder.name}-{ef}-{rows}-{by_subject}"
        if not path.exists():
            probes = self.data.probes
            last = max(1, len(probes) - rows + 1)
            messages.keep(
                path,
                (
                    messages.search(
                        GALLERY, probes[start : start + rows], self.space, ef, by_subject=by_subject
                    )
                    for start in range(0, last, rows)
                ),
            )
        return str(path)

    def served_rate(
        self,
        ef: int,
        rows: int,
        in_flight: int,
        *,
        by_subject: bool = False,
        client: str = "closed",
    ) -> dict[str, float]:
        """Put a window of searches on our server: probes per second, waits, CPU of a call."""
        bodies = self.bodies(ef, rows, by_subject=by_subject)
        with self.ours.turn():
            before = self.ours.cpu()
            found = self.load.ask(
                client,
                port=self.ours.port,
                path=SEARCH,
                bodies=bodies,
                in_flight=in_flight,
                seconds=self.setting.seconds,
                warm=self.setting.warm,
            )
            cpu = (self.ours.cpu() - before) / found["all"]
        if found["failed"]:
            raise RuntimeError(f"searches failed, by status: {found['failed']}")
        found["per_second"] *= rows
        return {**found, "cpu": cpu}

    # -- the report -------------------------------------------------------------------------------

    def line(
        self,
        table: str,
        load: str,
        who: str,
        figures: dict[str, str],
        aims: Sequence[Aim] = (),
        **windows: Any,
    ) -> None:
        """Add a line to the report."""
        self.report.lines.append(
            Line(table, str(self.data), load, who, figures, tuple(aims), windows)
        )


def recall_of(worker: Worker, ef: int, rows: int = 0) -> float:
    """Count the recall of an index in its turn."""
    with worker.turn():
        return float(worker.ask("recall", ef=ef, rows=rows)["recall"])


def rates(windows: Sequence[dict[str, float]], name: str = "per_second") -> list[float]:
    """Return one figure of each turn."""
    return [window[name] for window in windows]


def median(windows: Sequence[dict[str, float]], name: str, scale: float = 1.0) -> Spread:
    """Return one figure's median and range."""
    return spread([window[name] * scale for window in windows])


def share(
    some: Sequence[dict[str, float]],
    others: Sequence[dict[str, float]],
    name: str = "per_second",
) -> Spread:
    """Return the ratio of one figure, turn by turn."""
    return ratios(rates(some, name), rates(others, name))


def builder_threads() -> int:
    """Return how many threads our builder of graphs has, as its settings come."""
    from twinserve.server.gallery import GalleryLimits

    return getattr(GalleryLimits(), "build_threads", 1) or machine.cores()


@contextlib.contextmanager
def set_up(
    data: Data, setting: Setting, report: Report, work: Path, *, served: bool
) -> Iterator[Stage]:
    """Build raw hnswlib, and start our server empty; `rows.enrol` fills it.

    Args:
        data: that all hold.
        setting: of every row.
        report: that takes the lines.
        work: folder of twins.
        served: whether our server is wanted at all.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work)))
        os.chmod(folder, 0o755)
        raw = Worker(RAW, "benchmarks.gallery.engines", RAW)
        stack.callback(raw.close)
        load = Worker("the load", "benchmarks.gallery.load")
        stack.callback(load.close)
        ours = Served(twin.made(work, data.dimension), folder / "data", setting.flags)
        stack.callback(ours.close)
        stage = Stage(data, setting, report, folder, raw, ours, load)
        raw.ask("open", folder=str(data.folder))
        with raw.turn():
            before = workers.anonymous(raw.pid)
            threads = builder_threads()
            seconds = raw.ask("build", threads=threads)["seconds"]
            stage.raw_build[threads] = data.count / seconds
            stage.raw_memory = (workers.anonymous(raw.pid) - before) / data.count
        if served:
            stage.start_empty = ours.start()
            ours.settle()
            stage.memory_empty = ours.anonymous()
            stage.space = ours.create(GALLERY)
        yield stage
