"""One twin with all that serve it, up at once and asked in turn.

The order within a turn is turned round each time, so that a machine that slows down or warms up
favours nobody; shares are taken turn by turn.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.serving import forms, machine, servers
from benchmarks.serving.h2load import Window
from benchmarks.serving.limit import Layout, others
from benchmarks.serving.report import Report
from benchmarks.serving.servers import Limit, Server
from benchmarks.serving.subjects import Subject

RAW = "onnxruntime"
# Those that somebody might choose instead of ours; their layout is tried, as ours is at warm-up.
COMPARED_AT_THEIR_BEST = ("bare", "mosec")


@dataclass(frozen=True)
class Setting:
    """How long and how often is measured."""

    seconds: float = 4.0  # of one window
    warm: float = 1.0  # before it
    turns: int = 3
    in_flight: tuple[int, ...] = (24, 32)
    try_layouts: bool = True
    peers: dict[str, Path] = field(default_factory=dict)  # name -> environment

    @property
    def tries(self) -> float:
        """Seconds of each layout and batch size that the raw limit is looked for with."""
        return self.seconds / 12


@dataclass
class Stage:
    """One subject, its limit, and its servers held still."""

    subject: Subject
    setting: Setting
    report: Report
    limit: Limit
    servers: dict[str, Server]
    folder: Path
    overhead: dict[str, float] = field(default_factory=dict)  # kind of echo -> CPU seconds a call
    layouts: dict[str, Layout] = field(default_factory=dict)  # of the peers

    @property
    def ours(self) -> Server:
        """Our own server."""
        return self.servers["ours"]

    @property
    def cores(self) -> int:
        """The processors that all share."""
        return machine.cores()

    def body(self, server: Server, items: int = 1) -> Path:
        """Return a file with a call of so many items in a server's form."""
        path = self.folder / f"{server.form.path.strip('/').replace('/', '.')}.{items}"
        if not path.exists():
            inputs = [forms.given(self.subject, number) for number in range(items)]
            path.write_bytes(server.form.body(self.subject, inputs))
        return path

    def window(
        self, server: Server, in_flight: int, items: int = 1, stretch: float = 1.0
    ) -> Window:
        """Put one window of load on one server, the others being held still.

        Args:
            server: one of the stage's.
            in_flight: calls at a time.
            items: of each call.
            stretch: how many times as long as usual.
        """
        least = 4 * self.subject.manifest.dimension * items
        if not server.form.grpc and server.name != "mosec":
            least = 1  # JSON: as long as its digits
        with server.turn():
            return server.load(
                self.body(server, items),
                in_flight,
                stretch * self.setting.seconds,
                reply_bytes=least,
                warm=self.setting.warm,
            )

    def turns(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Give the order of each turn."""
        for turn in range(self.setting.turns):
            yield list(names) if turn % 2 == 0 else list(reversed(names))


@contextlib.contextmanager
def set_up(subject: Subject, setting: Setting, report: Report) -> Iterator[Stage]:
    """Start a subject's limit and servers, and check that all of them answer alike.

    A peer that does not start is left out, and the report says so.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        limit = Limit(subject, setting.tries, folder)
        stack.callback(limit.close)
        stage = Stage(subject, setting, report, limit, {}, folder)
        stage.servers["ours"] = stack.enter_context(servers.ours(subject.path))
        for name, environment in {"bare": None, **setting.peers}.items():
            try:
                layout = _best_layout(stage, name, environment)
                server = servers.peer(name, subject, layout, environment, folder)
                stage.servers[name] = stack.enter_context(server)
                stage.layouts[name] = layout
            except (RuntimeError, OSError) as error:
                report.notes.append(f"{name} on {subject}: {error}")
        _check(stage)
        _measure_overhead(stage)
        yield stage


def _best_layout(stage: Stage, name: str, environment: Path | None) -> Layout:
    """Return the layout that a peer answers most calls with; the slow ones take onnxruntime's."""
    best = stage.limit.layout
    if name not in COMPARED_AT_THEIR_BEST or not stage.setting.try_layouts:
        return best
    rates = {}
    for layout in [best, *others(best, stage.cores)]:
        with servers.peer(name, stage.subject, layout, environment, stage.folder) as server:
            rates[layout] = stage.window(server, 32).rate
    return max(rates, key=rates.__getitem__)


def _check(stage: Stage) -> None:
    """Compare each server's embedding with the bare server's, which is onnxruntime's own."""
    found = {}
    for name, server in stage.servers.items():
        server.probe = stage.body(server).read_bytes()
        with server.turn():
            found[name] = server.ask(server.probe)
    for name, embedding in found.items():
        if not np.allclose(embedding, found["bare"], atol=1e-4):
            raise RuntimeError(f"{name} gives another embedding of {stage.subject} than the graph")


def _measure_overhead(stage: Stage) -> None:
    """Measure what a call costs in servers that only echo, and in the generator."""
    reply = 5 + 4 * stage.subject.manifest.dimension
    for kind in ("aio", "poll"):
        with servers.echo(kind, reply) as server:
            window = stage.window(server, 32)
        stage.overhead[kind] = window.server_cpu + window.own_cpu
