"""Opens a twin's graph with onnxruntime, and says what really runs it.

In: a path, a device, a setting. Out: a session that never falls back in silence. This module and
`gpu` alone touch onnxruntime; both go through `Library`, so that tests can stand in for hardware
that is not there.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import ManifestError, ProviderUnavailable
from twinserve.server.runtime import providers
from twinserve.server.runtime.planning import Setting, Spinning
from twinserve.server.runtime.providers import CPU, Device

log = logging.getLogger(__name__)

# Long enough to bridge the gaps between the operators of one run, and over before it costs.
SHORT_SPIN = 100  # microseconds
# onnxruntime is not sure to make two sessions at a time (its issue 27089).
_OPENING = threading.Lock()


class Session(Protocol):
    """What we use of onnxruntime's InferenceSession."""

    def run(
        self, names: list[str], feed: Mapping[str, NDArray[Any]], options: Any = None
    ) -> list[Any]:
        """Run on arrays in memory."""

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        """Run on what is bound."""

    def io_binding(self) -> Any:
        """Make an empty binding."""

    def get_providers(self) -> list[str]:
        """Name the providers that it has."""

    def get_inputs(self) -> list[Any]:
        """The graph's inputs."""

    def get_outputs(self) -> list[Any]:
        """The graph's outputs."""


class Library(Protocol):
    """What we use of onnxruntime besides sessions."""

    def session(
        self,
        path: Path,
        entries: Mapping[str, str],
        threads: int,
        chain: list[tuple[str, dict[str, str]]],
    ) -> Session:
        """Open a graph.

        Args:
            path: of the file.
            entries: of the session's configuration.
            threads: of the session, a caller's included.
            chain: providers with their options, the preferred first.
        """

    def run_options(self, entries: Mapping[str, str]) -> Any:
        """Make options for runs."""

    def device_array(self, shape: tuple[int, ...], data_type: Any, device: int) -> Any:
        """Make an array in the memory of a GPU, whose address stays."""


class Onnxruntime:
    """The library that is installed."""

    def session(
        self,
        path: Path,
        entries: Mapping[str, str],
        threads: int,
        chain: list[tuple[str, dict[str, str]]],
    ) -> Session:
        """Open a graph; a failure is raised, never answered by another provider."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Memory planned for one shape is kept beside that of the next: batches vary.
        options.enable_mem_pattern = False
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        with _OPENING:
            # From the path: opening from bytes holds the interpreter's lock.
            session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=chain, enable_fallback=0
            )
        session.disable_fallback()
        opened: Session = session
        return opened

    def run_options(self, entries: Mapping[str, str]) -> Any:
        """Make options for runs."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        for key, value in entries.items():
            options.add_run_config_entry(key, value)
        return options

    def device_array(self, shape: tuple[int, ...], data_type: Any, device: int) -> Any:
        """Make an array in the memory of a GPU."""
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            shape, np.dtype(data_type).type, "cuda", device
        )


@dataclass(frozen=True)
class Placement:
    """Which provider runs how many nodes of a graph."""

    nodes: Mapping[str, int]  # by provider
    on_cpu: Mapping[str, int]  # kinds of the nodes that the CPU runs

    def share(self, provider: str) -> float:
        """The share of the nodes that a provider runs."""
        total = sum(self.nodes.values())
        return self.nodes.get(provider, 0) / total if total else 1.0


def open_session(
    path: Path,
    device: Device,
    setting: Setting,
    library: Library,
    *,
    options: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Session:
    """Open a twin's graph on the device.

    Args:
        path: of the twin.
        device: to run on.
        setting: threads and spinning.
        library: onnxruntime.
        options: of the device's provider, over those that it has.
        strict: refuse a graph of which the CPU would run a part.

    Raises:
        ManifestError: onnxruntime cannot open the file.
        ProviderUnavailable: the session runs elsewhere, or with `strict` in part elsewhere.
    """
    entries = _spinning(setting.spinning)
    if device.provider != CPU:
        entries["session.record_ep_graph_assignment_info"] = "1"
    try:
        session = library.session(path, entries, setting.threads, device.chain(options or {}))
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ManifestError(f"onnxruntime cannot open {path}: {str(error)[:300]}") from error
    providers.check(session, device)
    if device.provider != CPU:
        _check_placement(session, device, path, strict)
    return session


def placement(session: Session) -> Placement | None:
    """Count which provider runs how many nodes; None where onnxruntime did not record it."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return None
    try:
        parts = ask()
    except Exception as error:  # not recorded; onnxruntime's exceptions share no base class
        log.debug("no record of who runs which node: %s", error)
        return None
    nodes: Counter[str] = Counter()
    on_cpu: Counter[str] = Counter()
    for part in parts:
        kinds = [node.op_type for node in part.get_nodes()]
        nodes[part.ep_name] += len(kinds)
        if part.ep_name == CPU:
            on_cpu.update(kinds)
    return Placement(nodes, on_cpu)


def _check_placement(session: Session, device: Device, path: Path, strict: bool) -> None:
    placed = placement(session)
    if placed is None:
        if strict:
            raise ProviderUnavailable(
                "--strict-device needs an onnxruntime that says who runs which node, as 1.32 does; "
                "install a newer one, or leave the flag out"
            )
        return
    if not placed.on_cpu:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(placed.on_cpu.items())[:6])
    if strict:
        raise ProviderUnavailable(
            f"--strict-device: the CPU would run {sum(placed.on_cpu.values())} nodes of {path} "
            f"({kinds}), not {device.label}; export it with operators that {device.label} has, or "
            "leave the flag out"
        )
    log.warning(
        "%s: %s runs %.0f %% of the nodes, the CPU the rest (%s)",
        path.name, device.label, 100 * placed.share(device.provider), kinds,
    )  # fmt: skip


def _spinning(spinning: Spinning) -> dict[str, str]:
    match spinning:
        case Spinning.OFF:
            return {"session.intra_op.allow_spinning": "0"}
        case Spinning.SHORT:
            return {
                "session.intra_op.allow_spinning": "1",
                "session.intra_op.spin_duration_us": str(SHORT_SPIN),
            }
        case Spinning.RUN:
            return {
                "session.intra_op.allow_spinning": "1",
                "session.force_spinning_stop": "1",
            }
        case Spinning.ON:
            return {"session.intra_op.allow_spinning": "1"}
