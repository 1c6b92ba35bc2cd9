"""Looks at a machine as a server would, and times twins on it as a server would run them.

In: what `twinserve serve` would be told. Out: a `Diagnosis`. Twins of one space are timed in turns,
so that a busy machine slows all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from twinserve import manifest as manifests
from twinserve.errors import ConfigError, ProviderUnavailable, TwinserveError
from twinserve.manifest import TextInput
from twinserve.server.config import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from twinserve.server.runtime import machine, measuring, providers
from twinserve.server.runtime.advice import advice_on_cards, advice_on_machine, advice_on_precision
from twinserve.server.runtime.buckets import blank_row
from twinserve.server.runtime.diagnosis import Diagnosis, Provider, Timed
from twinserve.server.runtime.measuring import Budget
from twinserve.server.runtime.planning import Asked
from twinserve.server.runtime.providers import CPU, CUDA, TENSORRT, Device, GpuOptions, Runtime
from twinserve.server.runtime.runner import Runner

# More patient than a server that starts.
_BUDGET = Budget(seconds=10.0, turns=5, opening=10.0)
# Turns of the comparison of twins, and rows in flight of each.
_TURNS, _IN_FLIGHT, _TURN = 5, 32, 0.15
_MAX_BATCH = 64
# Of texts: the tokens that rows/s are told for.
_TOKENS = 32


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
            faults.append(f"--data-dir {data_dir} cannot be used: {error.strerror}")
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
            *advice_on_cards(cards, known),
            *advice_on_machine(processors, open_files, folder),
            *advice_on_precision(twins, instructions, chosen),
        ),
    )


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
