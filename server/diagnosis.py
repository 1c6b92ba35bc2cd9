"""What `twinserve doctor` finds: the machine, what a server would use of it, and what to mend.

In: what a server would be told. Out: one plain document, and advice, each with what to do. Nothing
is guessed: twins are opened and timed as a server would, those of one space in turns, so that what
is said of int8 against fp32 is what this machine measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinserve import manifest as manifests
from twinserve.errors import ConfigError, ProviderUnavailable, TwinserveError
from twinserve.manifest import TextInput
from twinserve.server import machine, measuring, providers
from twinserve.server.buckets import blank_row
from twinserve.server.config import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from twinserve.server.machine import Folder, Gpu, Memory, Processors
from twinserve.server.measuring import Budget
from twinserve.server.planning import Asked, Plan
from twinserve.server.providers import CPU, CUDA, TENSORRT, Device, GpuOptions, Runtime
from twinserve.server.runner import Runner

# More patient than a server that starts.
_BUDGET = Budget(seconds=10.0, turns=5, opening=10.0)
# Turns of the comparison of twins, and rows in flight of each.
_TURNS, _IN_FLIGHT, _TURN = 5, 32, 0.15
_MAX_BATCH = 64
# Of texts: the tokens that rows/s are told for.
_TOKENS = 32

# Fewer than these are worth a word.
_OPEN_FILES = 4096
_SYNCS = 200.0
_FREE_DISK = 1 << 30


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


def examine(
    device: str = "auto",
    models: Sequence[Path] = (),
    data_dir: Path | None = None,
    asked: Asked | None = None,
    runtime: Runtime | None = None,
) -> Diagnosis:
    """Look at the machine, and time some twins on it.

    Args:
        device: as of `twinserve serve`.
        models: twins; the other precisions beside each are timed too.
        data_dir: whose disk is measured.
        asked: runners, threads and spinning, as of `twinserve serve`.
        runtime: the onnxruntime to ask; None is the one installed.

    Raises:
        ConfigError: a device that has no such name.
    """
    import onnxruntime

    runtime = runtime or Runtime.installed()
    faults: list[str] = []
    chosen: Device | None = None
    try:
        chosen = providers.choose(device, runtime, GpuOptions())
    except ProviderUnavailable as error:
        faults.append(error.message)
    folder = None
    if data_dir is not None:
        try:
            folder = machine.folder(data_dir)
        except OSError as error:
            faults.append(f"--data-dir {data_dir} cannot be written to: {error.strerror}")
    twins: list[Timed] = []
    if chosen is not None:
        twins = _timed(_with_siblings(models), chosen, asked or Asked(), faults)
    cards = machine.gpus()
    known = _providers(runtime)
    processors = machine.processors()
    instructions = machine.instructions()
    open_files, _ = machine.open_files()
    return Diagnosis(
        processor=machine.model_name(),
        instructions=instructions,
        processors=processors,
        memory=machine.memory(),
        gpus=cards,
        onnxruntime=onnxruntime.__version__,
        compiled=tuple(runtime.available()),
        providers=known,
        open_files=open_files,
        shared_memory=machine.shared_memory(),
        data_dir=folder,
        device=None if chosen is None else chosen.label,
        faults=tuple(faults),
        twins=tuple(twins),
        advice=(
            *_advice_on_cards(cards, known),
            *advice_on_machine(processors, open_files, folder),
            *advice_on_precision(twins, instructions, chosen),
        ),
    )


def advice_on_machine(
    processors: Processors, open_files: int, folder: Folder | None
) -> list[Advice]:
    """Say what of processors, files and disk holds a server back."""
    advice = []
    if processors.quota is not None and processors.bound_by == "quota":
        if processors.quota != int(processors.quota):
            advice.append(
                Advice(
                    f"the quota is {processors.quota:g} processors: the begun one is taken away in "
                    "the middle of runs, which shows in the slowest answers",
                    "give the container a whole number of processors",
                )
            )
        advice.append(
            Advice(
                f"the quota grants {processors.quota:g} of {processors.affinity} processors",
                "raise it (docker --cpus, or limits.cpu) for more rows a second",
            )
        )
    elif processors.bound_by == "affinity":
        advice.append(
            Advice(
                f"this process may run on {processors.affinity} of {processors.host} processors",
                "widen its affinity (taskset, docker --cpuset-cpus) for more rows a second",
            )
        )
    if open_files < _OPEN_FILES:
        advice.append(
            Advice(
                f"{open_files} files may be open, connections included",
                f"raise the limit to {_OPEN_FILES} or more (ulimit -n, LimitNOFILE=)",
            )
        )
    if folder is not None and folder.syncs_per_second < _SYNCS:
        advice.append(
            Advice(
                f"{folder.path} is on a disk that syncs {folder.syncs_per_second:.0f} times a "
                "second; each Enroll waits for one",
                "enroll many items a call, or keep --data-dir on a faster disk",
            )
        )
    if folder is not None and folder.free < _FREE_DISK:
        advice.append(
            Advice(
                f"{folder.free >> 20} MB are free for {folder.path}",
                "make room: galleries stop to take items when the disk is full",
            )
        )
    return advice


def advice_on_precision(
    twins: Sequence[Timed], instructions: Sequence[str], device: Device | None
) -> list[Advice]:
    """Say which precision measured faster here, or what would have to be measured."""
    if device is None:
        return []
    advice = []
    for first in twins:
        others = [t for t in twins if t.space_id == first.space_id and t.path != first.path]
        if first.faster is not None:
            continue  # told with the first of its space
        for other in others:
            if other.faster is None:
                continue
            advice.append(_on_pair(first, other, instructions))
        if not others and first.precision == "fp32":
            precision = "int8" if device.provider == CPU else "fp16"
            advice.append(
                Advice(
                    f"no {precision} form of {first.path.name} to compare it with",
                    f"export it with --precision fp32,{precision}, and run doctor again",
                )
            )
    return advice


def _on_pair(first: Timed, other: Timed, instructions: Sequence[str]) -> Advice:
    assert other.faster is not None
    because = ""
    if other.precision == "int8":
        quick = [name for name in ("AMX", "VNNI", "I8MM", "DOT") if name in instructions]
        because = (
            f": this processor multiplies bytes by {quick[0]}"
            if quick
            else ": this processor has no VNNI, which would make more of it"
        )
    found = (
        f"{other.precision} runs {other.faster:.2f} times as many rows a second as "
        f"{first.precision}{because}"
    )
    if other.faster > 1.05:
        return Advice(found, f"serve {other.path.name}; its gate has compared its embeddings")
    return Advice(found, f"serve {first.path.name}")


def _advice_on_cards(cards: Sequence[Gpu], known: Sequence[Provider]) -> list[Advice]:
    cuda = next(provider for provider in known if provider.name == CUDA)
    if not cards or cuda.missing is None:
        return []
    return [
        Advice(
            f"there is a {cards[0].name}, but {cuda.missing}",
            "install twinserve[gpu] in place of twinserve[cpu], with the libraries that it names",
        )
    ]


def _providers(runtime: Runtime) -> tuple[Provider, ...]:
    cards = (Provider(name, providers.missing(runtime, name)) for name in (CUDA, TENSORRT))
    return Provider(CPU, None), *cards


def _with_siblings(models: Sequence[Path]) -> list[Path]:
    """Add the other precisions, as the exporter names them, that lie beside each twin."""
    found: dict[Path, None] = {}
    for path in models:
        found[path] = None
        for precision in ("fp16", "int8"):
            sibling = path.with_suffix(f".{precision}.onnx")
            if sibling.is_file():
                found[sibling] = None
    return list(found)


def _timed(paths: Sequence[Path], device: Device, asked: Asked, faults: list[str]) -> list[Timed]:
    opened: list[tuple[Path, Runner, int]] = []
    for path in paths:
        before = machine.resident()
        try:
            if not path.is_file():
                raise ConfigError(f"{path} is not a file; give the path of a twin.onnx")
            runner = Runner(path, device, asked)
            tokens = CPU_BATCH_TOKENS if device.provider == CPU else GPU_BATCH_TOKENS
            runner.warm(_MAX_BATCH, tokens, _BUDGET)
        except TwinserveError as error:
            faults.append(error.message)
            continue
        opened.append((path, runner, max(0, machine.resident() - before)))
    # In turns, so that a busy machine slows all alike.
    speeds: dict[Path, list[float]] = {path: [] for path, _, _ in opened}
    for _ in range(_TURNS):
        for path, runner, _ in opened:
            speeds[path].append(_rows_per_second(runner))
    firsts: dict[str, Path] = {}
    timed = []
    for path, runner, resident in opened:
        manifest = runner.manifest
        first = firsts.setdefault(manifest.space_id, path)
        faster = None
        if first != path:
            pairs = zip(speeds[first], speeds[path], strict=True)
            faster = statistics.median(ours / theirs for theirs, ours in pairs)
        timed.append(
            Timed(
                path,
                manifest.name,
                manifest.precision,
                manifest.space_id,
                runner.plan,
                statistics.median(speeds[path]),
                _latency(runner),
                resident,
                _length(manifest) if isinstance(manifest.input, TextInput) else None,
                faster,
            )
        )
        runner.close()
    return timed


def _length(manifest: manifests.Manifest) -> int:
    contract = manifest.input
    return min(_TOKENS, contract.max_tokens) if isinstance(contract, TextInput) else 1


def _rows_per_second(runner: Runner) -> float:
    row = blank_row(runner.manifest.input, _length(runner.manifest))
    rows = [row] * max(1, _IN_FLIGHT // runner.plan.runners)
    return measuring.rate(lambda: runner.run(rows), len(rows), runner.plan.runners, _TURN)


def _latency(runner: Runner) -> float:
    row = blank_row(runner.manifest.input, _length(runner.manifest))
    return measuring.seconds_of(lambda: runner.run([row]))
