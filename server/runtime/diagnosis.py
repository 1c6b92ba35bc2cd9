"""What `twinserve doctor` found: the machine, what a server would use of it, and what to mend.

Plain data, for people and as JSON; `examining` fills it in, `advice` draws the conclusions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinserve.server.runtime.machine import Folder, Gpu, Memory, Processors
from twinserve.server.runtime.planning import Plan


@dataclass(frozen=True)
class Provider:
    """One of onnxruntime's ways to run a graph."""

    name: str
    missing: str | None  # why it does not load; None where it does


@dataclass(frozen=True)
class Timed:
    """A twin as this machine runs it."""

    path: Path
    name: str
    precision: str
    space_id: str
    plan: Plan
    rows_per_second: float  # with 32 rows in flight
    latency: float  # seconds of one row
    resident: int  # bytes of memory that it took
    tokens: int | None  # of each row where rows are texts
    faster: float | None = None  # than the first twin of its space, in the same minutes


@dataclass(frozen=True)
class Advice:
    """Something that could be better, and what to do."""

    found: str
    do: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found."""

    processor: str
    instructions: tuple[str, ...]
    processors: Processors
    memory: Memory
    gpus: tuple[Gpu, ...]
    onnxruntime: str
    compiled: tuple[str, ...]  # providers that onnxruntime was built with
    providers: tuple[Provider, ...]  # those that twins run on
    open_files: int
    shared_memory: int
    data_dir: Folder | None
    device: str | None  # that a server would use; None where it would not start
    faults: tuple[str, ...]  # why a server would not start
    twins: tuple[Timed, ...]
    advice: tuple[Advice, ...]
